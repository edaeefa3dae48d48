//! `dfdaemon.v2.DfdaemonDownload`: the service for the tools of this host, on the unix socket.

use std::pin::Pin;

use dragonfly_api::common::v2;
use dragonfly_api::dfdaemon::v2::dfdaemon_download_server::{
    DfdaemonDownload, DfdaemonDownloadServer,
};
use dragonfly_api::dfdaemon::v2::{
    DeleteCacheTaskRequest, DeleteLocalTaskRequest, DeleteTaskRequest, DownloadCacheTaskRequest,
    DownloadCacheTaskResponse, DownloadPersistentCacheTaskRequest,
    DownloadPersistentCacheTaskResponse, DownloadPersistentTaskRequest,
    DownloadPersistentTaskResponse, DownloadTaskRequest, ListLocalPersistentCacheTasksRequest,
    ListLocalPersistentCacheTasksResponse, ListLocalPersistentTasksRequest,
    ListLocalPersistentTasksResponse, ListLocalTasksRequest, ListLocalTasksResponse,
    ListTaskEntriesRequest, ListTaskEntriesResponse, StatCacheTaskRequest,
    StatLocalPersistentCacheTaskRequest, StatLocalPersistentCacheTaskResponse,
    StatLocalPersistentTaskRequest, StatLocalPersistentTaskResponse, StatLocalTaskRequest,
    StatLocalTaskResponse, StatPersistentCacheTaskRequest, StatPersistentTaskRequest,
    StatTaskRequest, UploadPersistentCacheTaskRequest, UploadPersistentTaskRequest,
};
use futures::Stream;
use protocol::TaskKind;
use tonic::{Request, Response, Status};

use super::convert::{Door, RequestError};
use super::reply::{Extras, Reply};
use super::socket::Peer;
use super::{ReplyStream, Tasks, convert, errors, unimplemented_rpcs};
use crate::blocklist::Subject;
use crate::output::Caller;

/// The service; its callers are users of this host, known by the kernel.
#[derive(Clone)]
pub struct DownloadService {
    tasks: Tasks,
}

impl DownloadService {
    /// The service as tonic serves it, with its message limits.
    pub fn server(tasks: Tasks) -> DfdaemonDownloadServer<Self> {
        DfdaemonDownloadServer::new(Self { tasks })
            .max_decoding_message_size(super::REQUEST_LEN_MAX)
            .max_encoding_message_size(super::ANSWER_LEN_MAX)
    }

    fn refuse_blocked(&self, download: &v2::Download) -> Result<(), Status> {
        let parts = &self.tasks.parts;
        let subject = Subject {
            url: &download.url,
            application: download.application.as_deref(),
            tag: download.tag.as_deref(),
            priority: download.priority,
        };
        if parts.dynconfig.block_list().blocks_download(subject) {
            parts.metrics.download_blocked(TaskKind::Standard);
            return Err(errors::blocked());
        }
        Ok(())
    }
}

/// What the caller was told of the length by a listing.
fn expected_length<T>(request: &Request<T>) -> Option<u64> {
    let text = request.metadata().get(api::EXPECTED_LENGTH)?;
    text.to_str().ok()?.parse().ok()
}

/// Streams of the kinds that are not served.
type NoStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DfdaemonDownload for DownloadService {
    type DownloadTaskStream = ReplyStream;

    async fn download_task(
        &self,
        request: Request<DownloadTaskRequest>,
    ) -> Result<Response<ReplyStream>, Status> {
        let caller = caller(&request);
        let expected_length = expected_length(&request);
        let download = request
            .into_inner()
            .download
            .ok_or_else(|| errors::request(&RequestError::NoDownload))?;
        self.refuse_blocked(&download)?;
        let with_content = download.need_piece_content;
        let prefetch = download.prefetch;
        let mut spec = convert::download_spec(download, Door::Socket)
            .map_err(|error| errors::request(&error))?;
        spec.expected_length = expected_length;
        let output = match convert::output_request(&spec.wire, spec.digest.clone()) {
            Some(request) => Some((request, caller?)),
            None => None,
        };
        let extras = Extras {
            output,
            with_content,
            prefetch,
        };
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

    async fn list_local_tasks(
        &self,
        _: Request<ListLocalTasksRequest>,
    ) -> Result<Response<ListLocalTasksResponse>, Status> {
        Ok(Response::new(ListLocalTasksResponse {
            tasks: self.tasks.list_local().await?,
        }))
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

    async fn delete_local_task(
        &self,
        request: Request<DeleteLocalTaskRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(
            self.tasks
                .delete_local(&request.into_inner().task_id)
                .await?,
        ))
    }

    async fn delete_host(&self, _: Request<()>) -> Result<Response<()>, Status> {
        Ok(Response::new(self.tasks.delete_host().await?))
    }

    type DownloadCacheTaskStream = NoStream<DownloadCacheTaskResponse>;
    type DownloadPersistentTaskStream = NoStream<DownloadPersistentTaskResponse>;
    type DownloadPersistentCacheTaskStream = NoStream<DownloadPersistentCacheTaskResponse>;

    unimplemented_rpcs! {
        download_cache_task(DownloadCacheTaskRequest) -> Self::DownloadCacheTaskStream;
        stat_cache_task(StatCacheTaskRequest) -> v2::CacheTask;
        delete_cache_task(DeleteCacheTaskRequest) -> ();
        download_persistent_task(DownloadPersistentTaskRequest) -> Self::DownloadPersistentTaskStream;
        upload_persistent_task(UploadPersistentTaskRequest) -> v2::PersistentTask;
        stat_persistent_task(StatPersistentTaskRequest) -> v2::PersistentTask;
        stat_local_persistent_task(StatLocalPersistentTaskRequest) -> StatLocalPersistentTaskResponse;
        list_local_persistent_tasks(ListLocalPersistentTasksRequest) -> ListLocalPersistentTasksResponse;
        download_persistent_cache_task(DownloadPersistentCacheTaskRequest) -> Self::DownloadPersistentCacheTaskStream;
        upload_persistent_cache_task(UploadPersistentCacheTaskRequest) -> v2::PersistentCacheTask;
        stat_persistent_cache_task(StatPersistentCacheTaskRequest) -> v2::PersistentCacheTask;
        stat_local_persistent_cache_task(StatLocalPersistentCacheTaskRequest) -> StatLocalPersistentCacheTaskResponse;
        list_local_persistent_cache_tasks(ListLocalPersistentCacheTasksRequest) -> ListLocalPersistentCacheTasksResponse;
    }
}

/// Who calls, as the kernel said when the connection was made.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Peer>()
        .and_then(|peer| peer.0.clone())
        .ok_or_else(|| {
            Status::permission_denied(
                "the system does not say who calls, so that no output file is written",
            )
        })
}
