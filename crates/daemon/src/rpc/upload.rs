//! `dfdaemon.v2.DfdaemonUpload`: the service for schedulers and other hosts, on TCP.
//!
//! Its callers are strangers. Whatever path or overwrite rule a request carries is not looked at: content goes to the
//! store and nowhere else.

use std::net::SocketAddr;
use std::pin::Pin;

use dragonfly_api::common::v2;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use dragonfly_api::dfdaemon::v2::{
    DeleteCacheTaskRequest, DeletePersistentCacheTaskRequest, DeletePersistentTaskRequest,
    DeleteTaskRequest, DownloadCachePieceRequest, DownloadCachePieceResponse,
    DownloadCacheTaskRequest, DownloadCacheTaskResponse, DownloadPersistentCacheTaskRequest,
    DownloadPersistentCacheTaskResponse, DownloadPersistentTaskRequest,
    DownloadPersistentTaskResponse, DownloadTaskRequest, ListTaskEntriesRequest,
    ListTaskEntriesResponse, StatCacheTaskRequest, StatLocalTaskRequest, StatLocalTaskResponse,
    StatPersistentCacheTaskRequest, StatPersistentTaskRequest, StatTaskRequest,
    SyncCachePiecesRequest, SyncCachePiecesResponse, SyncHostRequest,
    SyncPersistentCachePiecesRequest, SyncPersistentCachePiecesResponse,
    SyncPersistentPiecesRequest, SyncPersistentPiecesResponse, SyncPiecesRequest,
    SyncPiecesResponse, UpdatePersistentCacheTaskRequest, UpdatePersistentTaskRequest,
};
use futures::{Stream, StreamExt};
use protocol::TaskId;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::convert::{Door, RequestError};
use super::reply::{Extras, Reply};
use super::{ReplyStream, Tasks, convert, errors, unimplemented_rpcs};

/// Most pieces that a child can be interested in: the most that a content can have.
const INTERESTED_MAX: usize = 1 << 20;

/// The service; its callers are strangers.
#[derive(Clone)]
pub struct UploadService {
    tasks: Tasks,
}

impl UploadService {
    /// The service as tonic serves it, with its message limits.
    pub fn server(tasks: Tasks) -> DfdaemonUploadServer<Self> {
        DfdaemonUploadServer::new(Self { tasks })
            .max_decoding_message_size(super::REQUEST_LEN_MAX)
            .max_encoding_message_size(super::ANSWER_LEN_MAX)
    }
}

/// A stream of messages, or of a kind that is not served.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DfdaemonUpload for UploadService {
    type DownloadTaskStream = ReplyStream;

    async fn download_task(
        &self,
        request: Request<DownloadTaskRequest>,
    ) -> Result<Response<ReplyStream>, Status> {
        let download = request.into_inner().download;
        let mut download = download.ok_or_else(|| errors::request(&RequestError::NoDownload))?;
        if download.output_path.take().is_some() {
            debug!("output path of a request from the network is not looked at");
        }
        (download.overwrite, download.force_hard_link) = (false, false);
        let extras = Extras {
            output: None,
            with_content: download.need_piece_content,
            prefetch: download.prefetch,
        };
        let spec = convert::download_spec(download, Door::Network)
            .map_err(|error| errors::request(&error))?;
        Ok(Response::new(
            Reply::begin(&self.tasks, spec, extras).await?,
        ))
    }

    async fn stat_task(
        &self,
        request: Request<StatTaskRequest>,
    ) -> Result<Response<v2::Task>, Status> {
        Ok(Response::new(
            self.tasks.stat(&request.into_inner().task_id).await?,
        ))
    }

    async fn stat_local_task(
        &self,
        request: Request<StatLocalTaskRequest>,
    ) -> Result<Response<StatLocalTaskResponse>, Status> {
        Ok(Response::new(
            self.tasks.stat_local(&request.into_inner().task_id).await?,
        ))
    }

    async fn list_task_entries(
        &self,
        request: Request<ListTaskEntriesRequest>,
    ) -> Result<Response<ListTaskEntriesResponse>, Status> {
        Ok(Response::new(
            self.tasks.list_entries(request.into_inner()).await?,
        ))
    }

    async fn delete_task(
        &self,
        request: Request<DeleteTaskRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(
            self.tasks.delete(&request.into_inner().task_id).await?,
        ))
    }

    type SyncPiecesStream = Messages<SyncPiecesResponse>;

    async fn sync_pieces(
        &self,
        request: Request<SyncPiecesRequest>,
    ) -> Result<Response<Self::SyncPiecesStream>, Status> {
        let child = remote(&request)?;
        let request = request.into_inner();
        let task_id: TaskId = request
            .task_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("task id: {error}")))?;
        if request.interested_piece_numbers.len() > INTERESTED_MAX {
            return Err(Status::invalid_argument(format!(
                "a task has at most {INTERESTED_MAX} pieces"
            )));
        }
        let engine = &self.tasks.parts.engine;
        let pieces = engine
            .sync_pieces(&task_id, &request.interested_piece_numbers, child)
            .await?;
        Ok(Response::new(Box::pin(pieces)))
    }

    type SyncHostStream = Messages<v2::Host>;

    async fn sync_host(
        &self,
        _: Request<SyncHostRequest>,
    ) -> Result<Response<Self::SyncHostStream>, Status> {
        let stop = self.tasks.parts.shutdown.token().clone();
        let rates = WatchStream::new(self.tasks.parts.monitor.network());
        // Only the network is told; the child asks the scheduler for the rest.
        let hosts = rates.map(|rates| {
            Ok(v2::Host {
                network: Some(rates.to_wire()),
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(
            hosts.take_until(stop.cancelled_owned()),
        )))
    }

    type DownloadCacheTaskStream = Messages<DownloadCacheTaskResponse>;
    type SyncCachePiecesStream = Messages<SyncCachePiecesResponse>;
    type DownloadPersistentTaskStream = Messages<DownloadPersistentTaskResponse>;
    type SyncPersistentPiecesStream = Messages<SyncPersistentPiecesResponse>;
    type DownloadPersistentCacheTaskStream = Messages<DownloadPersistentCacheTaskResponse>;
    type SyncPersistentCachePiecesStream = Messages<SyncPersistentCachePiecesResponse>;

    unimplemented_rpcs! {
        download_cache_task(DownloadCacheTaskRequest) -> Self::DownloadCacheTaskStream;
        stat_cache_task(StatCacheTaskRequest) -> v2::CacheTask;
        delete_cache_task(DeleteCacheTaskRequest) -> ();
        sync_cache_pieces(SyncCachePiecesRequest) -> Self::SyncCachePiecesStream;
        download_cache_piece(DownloadCachePieceRequest) -> DownloadCachePieceResponse;
        download_persistent_task(DownloadPersistentTaskRequest) -> Self::DownloadPersistentTaskStream;
        sync_persistent_pieces(SyncPersistentPiecesRequest) -> Self::SyncPersistentPiecesStream;
        update_persistent_task(UpdatePersistentTaskRequest) -> ();
        stat_persistent_task(StatPersistentTaskRequest) -> v2::PersistentTask;
        delete_persistent_task(DeletePersistentTaskRequest) -> ();
        download_persistent_cache_task(DownloadPersistentCacheTaskRequest) -> Self::DownloadPersistentCacheTaskStream;
        update_persistent_cache_task(UpdatePersistentCacheTaskRequest) -> ();
        stat_persistent_cache_task(StatPersistentCacheTaskRequest) -> v2::PersistentCacheTask;
        delete_persistent_cache_task(DeletePersistentCacheTaskRequest) -> ();
        sync_persistent_cache_pieces(SyncPersistentCachePiecesRequest) -> Self::SyncPersistentCachePiecesStream;
    }
}

fn remote<T>(request: &Request<T>) -> Result<SocketAddr, Status> {
    request
        .remote_addr()
        .ok_or_else(|| Status::failed_precondition("this service is for callers on the network"))
}
