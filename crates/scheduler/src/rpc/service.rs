//! The calls of `scheduler.v2.Scheduler`, each to its part.
//!
//! Persistent tasks answer as a Dragonfly v2 scheduler without Redis does; cache tasks are not served yet and say so.

use std::pin::Pin;
use std::sync::Arc;

use dragonfly_api::common::v2 as common;
use dragonfly_api::scheduler::v2 as wire;
use futures::Stream;
use protocol::{HostId, HostRole, PeerId, TaskId};
use runtime::shutdown::Shutdown;
use scheduling::Event;
use tonic::{Request, Response, Status, Streaming};
use wire::scheduler_server::Scheduler;

use super::announce_peer::{self, MESH_KEY};
use super::preheat::PreheatService;
use super::present::{self, Headers};
use super::{convert, validate};
use crate::brain;
use crate::metrics::Call;
use crate::parts::Parts;

/// Pieces of a task that one answer carries at most, so that it stays below the largest message a client takes.
const TOLD_PIECES_MAX: usize = 100_000;

type ServerStream<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// The stream of calls that are never served.
type Never<M> = futures::stream::Empty<Result<M, Status>>;

/// The service.
pub(super) struct Service {
    parts: Arc<Parts>,
    preheat: PreheatService,
    shutdown: Shutdown,
}

impl Service {
    pub(super) fn new(parts: Arc<Parts>, preheat: PreheatService, shutdown: Shutdown) -> Self {
        Self {
            parts,
            preheat,
            shutdown,
        }
    }

    /// Counts a call by its outcome.
    fn counted<R>(&self, call: Call, outcome: Result<R, Status>) -> Result<Response<R>, Status> {
        self.parts.metrics.called(call, &outcome);
        outcome.map(Response::new)
    }

    fn peer(&self, request: wire::StatPeerRequest) -> Result<common::Peer, Status> {
        let peer_id: PeerId = validate::id("peer_id", request.peer_id)?;
        let (draft, pieces) = self
            .parts
            .brain
            .read(|core| {
                let peer = core.find_peer(&peer_id)?;
                let task = core.task(peer.task)?;
                let pieces = task
                    .pieces
                    .values()
                    .take(TOLD_PIECES_MAX)
                    .cloned()
                    .collect::<Vec<_>>();
                Some((brain::draft(core, peer)?, pieces))
            })
            .ok_or_else(|| Status::not_found(format!("peer {peer_id} not found")))?;
        let mut peer = present::peer(&self.parts.brain, &draft, Headers::Harmless);
        if let Some(task) = &mut peer.task {
            task.pieces = pieces.iter().map(present::piece).collect();
        }
        Ok(peer)
    }

    fn task(&self, request: wire::StatTaskRequest) -> Result<common::Task, Status> {
        let task_id: TaskId = validate::id("task_id", request.task_id)?;
        let (draft, pieces) = self
            .parts
            .brain
            .read(|core| {
                let task = core.find_task(&task_id)?;
                let pieces = task
                    .pieces
                    .values()
                    .take(TOLD_PIECES_MAX)
                    .cloned()
                    .collect::<Vec<_>>();
                Some((brain::draft_task(task), pieces))
            })
            .ok_or_else(|| Status::not_found(format!("task {task_id} not found")))?;
        let mut task = present::task(&self.parts.brain, &draft, Headers::Harmless);
        task.pieces = pieces.iter().map(present::piece).collect();
        Ok(task)
    }

    fn forget_peer(&self, request: wire::DeletePeerRequest) -> Result<(), Status> {
        let peer_id = validate::id("peer_id", request.peer_id)?;
        self.parts.brain.handle(Event::PeerDeleted { peer_id });
        Ok(())
    }

    fn forget_task(&self, request: wire::DeleteTaskRequest) -> Result<(), Status> {
        let host_id = self.known_host(request.host_id)?;
        let task_id = validate::id("task_id", request.task_id)?;
        self.parts
            .brain
            .handle(Event::TaskDeleted { host_id, task_id });
        Ok(())
    }

    fn forget_host(&self, request: wire::DeleteHostRequest) -> Result<(), Status> {
        let host_id = self.known_host(request.host_id)?;
        self.parts.brain.handle(Event::HostLeft { host_id });
        Ok(())
    }

    fn known_host(&self, id: String) -> Result<HostId, Status> {
        let host_id: HostId = validate::id("host_id", id)?;
        if self
            .parts
            .brain
            .read(|core| core.find_host(&host_id).is_none())
        {
            return Err(Status::not_found(format!("host {host_id} not found")));
        }
        Ok(host_id)
    }

    fn hosts(&self, request: wire::ListHostsRequest) -> wire::ListHostsResponse {
        let wanted = |kind: u32| request.r#type.is_none_or(|wanted| wanted == kind);
        let hosts = self.parts.brain.read(|core| {
            let hosts = core.hosts().filter(|host| wanted(host.data.r#type));
            hosts.map(|host| host.data.clone()).collect::<Vec<_>>()
        });
        wire::ListHostsResponse {
            hosts: hosts.iter().map(|host| common::Host::clone(host)).collect(),
        }
    }

    fn announce(&self, request: wire::AnnounceHostRequest) -> Result<(), Status> {
        let announcement = convert::announcement(request, self.parts.cluster_id)?;
        let seed = announcement.role == HostRole::Seed;
        self.parts.brain.handle(Event::HostAnnounced(announcement));
        if seed {
            self.parts.probe.now();
        }
        Ok(())
    }
}

fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} are not served by this scheduler"))
}

/// What a Dragonfly v2 scheduler without Redis says.
fn needs_redis() -> Status {
    Status::failed_precondition(
        "redis is not enabled: persistent tasks are not served by this scheduler",
    )
}

#[tonic::async_trait]
impl Scheduler for Service {
    type AnnouncePeerStream = ServerStream<wire::AnnouncePeerResponse>;

    async fn announce_peer(
        &self,
        request: Request<Streaming<wire::AnnouncePeerRequest>>,
    ) -> Result<Response<Self::AnnouncePeerStream>, Status> {
        let mesh = request
            .metadata()
            .get(MESH_KEY)
            .is_some_and(|value| value == "1");
        let stream = announce_peer::serve(
            self.parts.clone(),
            self.shutdown.clone(),
            mesh,
            request.into_inner(),
        );
        let mut response = Response::new(Box::pin(stream) as Self::AnnouncePeerStream);
        if mesh {
            response
                .metadata_mut()
                .insert(MESH_KEY, tonic::metadata::MetadataValue::from_static("1"));
        }
        Ok(response)
    }

    async fn stat_peer(
        &self,
        request: Request<wire::StatPeerRequest>,
    ) -> Result<Response<common::Peer>, Status> {
        self.counted(Call::StatPeer, self.peer(request.into_inner()))
    }

    async fn delete_peer(
        &self,
        request: Request<wire::DeletePeerRequest>,
    ) -> Result<Response<()>, Status> {
        self.counted(Call::LeavePeer, self.forget_peer(request.into_inner()))
    }

    async fn stat_task(
        &self,
        request: Request<wire::StatTaskRequest>,
    ) -> Result<Response<common::Task>, Status> {
        self.counted(Call::StatTask, self.task(request.into_inner()))
    }

    async fn delete_task(
        &self,
        request: Request<wire::DeleteTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.counted(Call::LeaveTask, self.forget_task(request.into_inner()))
    }

    async fn announce_host(
        &self,
        request: Request<wire::AnnounceHostRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let host = request.host.clone().unwrap_or_default();
        let outcome = self.announce(request);
        self.parts.metrics.announced(&host, outcome.is_ok());
        outcome.map(Response::new)
    }

    async fn list_hosts(
        &self,
        request: Request<wire::ListHostsRequest>,
    ) -> Result<Response<wire::ListHostsResponse>, Status> {
        self.counted(Call::ListHosts, Ok(self.hosts(request.into_inner())))
    }

    async fn delete_host(
        &self,
        request: Request<wire::DeleteHostRequest>,
    ) -> Result<Response<()>, Status> {
        self.counted(Call::LeaveHost, self.forget_host(request.into_inner()))
    }

    type AnnounceCachePeerStream = Never<wire::AnnounceCachePeerResponse>;

    async fn announce_cache_peer(
        &self,
        _: Request<Streaming<wire::AnnounceCachePeerRequest>>,
    ) -> Result<Response<Self::AnnounceCachePeerStream>, Status> {
        Err(unimplemented("cache tasks"))
    }

    async fn stat_cache_peer(
        &self,
        _: Request<wire::StatCachePeerRequest>,
    ) -> Result<Response<common::CachePeer>, Status> {
        Err(unimplemented("cache tasks"))
    }

    async fn delete_cache_peer(
        &self,
        _: Request<wire::DeleteCachePeerRequest>,
    ) -> Result<Response<()>, Status> {
        Err(unimplemented("cache tasks"))
    }

    async fn stat_cache_task(
        &self,
        _: Request<wire::StatCacheTaskRequest>,
    ) -> Result<Response<common::CacheTask>, Status> {
        Err(unimplemented("cache tasks"))
    }

    async fn delete_cache_task(
        &self,
        _: Request<wire::DeleteCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        Err(unimplemented("cache tasks"))
    }

    type AnnouncePersistentPeerStream = Never<wire::AnnouncePersistentPeerResponse>;

    async fn announce_persistent_peer(
        &self,
        _: Request<Streaming<wire::AnnouncePersistentPeerRequest>>,
    ) -> Result<Response<Self::AnnouncePersistentPeerStream>, Status> {
        Err(needs_redis())
    }

    async fn stat_persistent_peer(
        &self,
        _: Request<wire::StatPersistentPeerRequest>,
    ) -> Result<Response<common::PersistentPeer>, Status> {
        Err(needs_redis())
    }

    async fn delete_persistent_peer(
        &self,
        _: Request<wire::DeletePersistentPeerRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_task_started(
        &self,
        _: Request<wire::UploadPersistentTaskStartedRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_task_finished(
        &self,
        _: Request<wire::UploadPersistentTaskFinishedRequest>,
    ) -> Result<Response<common::PersistentTask>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_task_failed(
        &self,
        _: Request<wire::UploadPersistentTaskFailedRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn stat_persistent_task(
        &self,
        _: Request<wire::StatPersistentTaskRequest>,
    ) -> Result<Response<common::PersistentTask>, Status> {
        Err(needs_redis())
    }

    async fn delete_persistent_task(
        &self,
        _: Request<wire::DeletePersistentTaskRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    type AnnouncePersistentCachePeerStream = Never<wire::AnnouncePersistentCachePeerResponse>;

    async fn announce_persistent_cache_peer(
        &self,
        _: Request<Streaming<wire::AnnouncePersistentCachePeerRequest>>,
    ) -> Result<Response<Self::AnnouncePersistentCachePeerStream>, Status> {
        Err(needs_redis())
    }

    async fn stat_persistent_cache_peer(
        &self,
        _: Request<wire::StatPersistentCachePeerRequest>,
    ) -> Result<Response<common::PersistentCachePeer>, Status> {
        Err(needs_redis())
    }

    async fn delete_persistent_cache_peer(
        &self,
        _: Request<wire::DeletePersistentCachePeerRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_cache_task_started(
        &self,
        _: Request<wire::UploadPersistentCacheTaskStartedRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_cache_task_finished(
        &self,
        _: Request<wire::UploadPersistentCacheTaskFinishedRequest>,
    ) -> Result<Response<common::PersistentCacheTask>, Status> {
        Err(needs_redis())
    }

    async fn upload_persistent_cache_task_failed(
        &self,
        _: Request<wire::UploadPersistentCacheTaskFailedRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn stat_persistent_cache_task(
        &self,
        _: Request<wire::StatPersistentCacheTaskRequest>,
    ) -> Result<Response<common::PersistentCacheTask>, Status> {
        Err(needs_redis())
    }

    async fn delete_persistent_cache_task(
        &self,
        _: Request<wire::DeletePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        Err(needs_redis())
    }

    async fn preheat_image(
        &self,
        request: Request<wire::PreheatImageRequest>,
    ) -> Result<Response<()>, Status> {
        let outcome = self.preheat.preheat_image(request.into_inner()).await;
        self.counted(Call::PreheatImage, outcome)
    }

    async fn stat_image(
        &self,
        request: Request<wire::StatImageRequest>,
    ) -> Result<Response<wire::StatImageResponse>, Status> {
        let outcome = self.preheat.stat_image(request.into_inner()).await;
        self.counted(Call::StatImage, outcome)
    }

    async fn preheat_file(
        &self,
        request: Request<wire::PreheatFileRequest>,
    ) -> Result<Response<()>, Status> {
        let outcome = self.preheat.preheat_file(request.into_inner()).await;
        self.counted(Call::PreheatFile, outcome)
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let outcome = self.preheat.stat_file(request.into_inner()).await;
        self.counted(Call::StatFile, outcome)
    }
}
