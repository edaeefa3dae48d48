//! All links of this host, by task.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::{Geometry, HostId, PeerId, PieceNumber, TaskId};
use swarm::ChildId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::actor::Dialler;
use super::herald::{Herald, HeraldEvent};
use super::proto::swarm_client::SwarmClient;
use super::{Link, LinkEvent, LinkNews, actor, service};
use crate::dial::Dialer;
use crate::engine::session::Event;
use crate::identity::Identity;
use crate::serve::Uploads;

/// How long a host may take to accept a connection and say Hello.
const DIAL_MAX: Duration = Duration::from_secs(3);
/// Links of one task; further hosts are refused.
const LINKS_MAX: usize = 64;
/// Tasks with links; further ones are refused.
const TASKS_MAX: usize = 16_384;
/// Events that may wait for one herald.
const HERALD_LEN: usize = 4096;
/// Connections to other hosts kept for the next use.
const CHANNELS_MAX: usize = 1024;

/// A host to link with.
#[derive(Debug, Clone)]
pub struct Target {
    /// The host.
    pub host_id: HostId,
    /// Its part in the task, as the scheduler said.
    pub peer_id: PeerId,
    /// Its upload gRPC address.
    pub addr: SocketAddr,
}

/// All links of this host.
pub struct Hub {
    pub(crate) identity: Arc<Identity>,
    pub(crate) store: storage::Store,
    pub(crate) uploads: Arc<Uploads>,
    dialer: Dialer,
    tasks: Mutex<HashMap<TaskId, Arc<TaskLinks>>>,
    tokens: Mutex<HashMap<u64, Weak<Link>>>,
    channels: Mutex<HashMap<SocketAddr, Channel>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// The links of one task.
pub struct TaskLinks {
    pub(crate) hub: Arc<Hub>,
    pub(crate) task: storage::Task,
    pub(crate) geometry: Geometry,
    /// Our part in this task, told to every neighbour.
    peer_id: Mutex<PeerId>,
    links: Mutex<HashMap<HostId, Arc<Link>>>,
    session: Mutex<Option<mpsc::Sender<Event>>>,
    herald: mpsc::Sender<HeraldEvent>,
    /// The v2 child that last asked for SyncPieces from an address: its piece requests come without a name.
    v2_children: Mutex<HashMap<IpAddr, ChildId>>,
    pub(crate) cancel: CancellationToken,
}

impl Hub {
    /// A hub without links.
    pub fn new(
        identity: Arc<Identity>,
        store: storage::Store,
        uploads: Arc<Uploads>,
        dialer: Dialer,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity,
            store,
            uploads,
            dialer,
            tasks: Mutex::default(),
            tokens: Mutex::default(),
            channels: Mutex::default(),
            tracker: TaskTracker::new(),
            cancel,
        })
    }

    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(future);
    }

    /// Ends all links and waits for their tasks.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        // Tasks and hub hold each other; the store is free for another process only when this ends.
        self.tasks.lock().clear();
    }

    /// The links of a task, made when there are none yet.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many tasks have links.
    pub fn links_of(self: &Arc<Self>, task: &storage::Task) -> Result<Arc<TaskLinks>, Status> {
        let mut tasks = self.tasks.lock();
        if let Some(links) = tasks.get(task.id()) {
            return Ok(links.clone());
        }
        if tasks.len() >= TASKS_MAX {
            return Err(Status::resource_exhausted(
                "too many tasks are being shared: try again later",
            ));
        }
        let (herald, events) = mpsc::channel(HERALD_LEN);
        let links = Arc::new(TaskLinks {
            hub: self.clone(),
            task: task.clone(),
            geometry: *task.geometry(),
            peer_id: Mutex::new(self.identity.new_peer_id()),
            links: Mutex::default(),
            session: Mutex::default(),
            herald,
            v2_children: Mutex::default(),
            cancel: self.cancel.child_token(),
        });
        tasks.insert(task.id().clone(), links.clone());
        self.spawn(Herald::new(links.clone()).run(events));
        Ok(links)
    }

    /// As [`Hub::links_of`], and lets a session hear of them; also returns those that stand already.
    ///
    /// # Errors
    /// As [`Hub::links_of`].
    pub fn attach(
        self: &Arc<Self>,
        task: &storage::Task,
        session: mpsc::Sender<Event>,
    ) -> Result<(Arc<TaskLinks>, Vec<Arc<Link>>), Status> {
        loop {
            let links = self.links_of(task)?;
            let tasks = self.tasks.lock();
            // Between the two locks its herald may have forgotten the task.
            if tasks
                .get(task.id())
                .is_some_and(|there| Arc::ptr_eq(there, &links))
            {
                *links.session.lock() = Some(session);
                *links.peer_id.lock() = self.identity.new_peer_id();
                let standing = links.links.lock().values().cloned().collect();
                return Ok((links, standing));
            }
        }
    }

    /// The links of a task that this host has or is getting, for a host that dialled us.
    pub(super) fn accept(self: &Arc<Self>, task_id: &TaskId) -> Result<Arc<TaskLinks>, Status> {
        let task = self
            .store
            .task(task_id)
            .map_err(|error| Status::internal(error.to_string()))?
            .ok_or_else(|| Status::not_found(format!("task {task_id} is not here")))?;
        self.links_of(&task)
    }

    /// The links of a task, when there are any.
    pub fn existing(&self, task_id: &TaskId) -> Option<Arc<TaskLinks>> {
        self.tasks.lock().get(task_id).cloned()
    }

    /// Forgets a task that has neither links nor a session.
    pub(super) fn forget(&self, links: &Arc<TaskLinks>) -> bool {
        let mut tasks = self.tasks.lock();
        let idle = links.links.lock().is_empty() && links.session.lock().is_none();
        if idle {
            tasks.remove(links.task.id());
        }
        idle
    }

    /// The link whose other side names itself by `token` in segment requests to us.
    pub fn by_token(&self, token: u64) -> Option<Arc<Link>> {
        self.tokens.lock().get(&token)?.upgrade()
    }

    /// A connection to the upload port of another host; shared by all tasks.
    fn channel(&self, addr: SocketAddr) -> Channel {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(&addr) {
            return channel.clone();
        }
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = self.dialer.lazy(addr);
        channels.insert(addr, channel.clone());
        channel
    }
}

impl TaskLinks {
    /// A name for a v2 child that asks for SyncPieces from this address. Two streams never share one: several hosts may
    /// come from one address.
    pub fn new_v2_child(&self, ip: IpAddr) -> ChildId {
        let child = ChildId(fastrand::u64(..));
        let mut children = self.v2_children.lock();
        if children.len() >= LINKS_MAX * 16 {
            children.clear();
        }
        children.insert(ip, child);
        child
    }

    /// The v2 child that piece requests from this address belong to, as far as that can be told.
    pub fn v2_child_at(&self, ip: IpAddr) -> Option<ChildId> {
        self.v2_children.lock().get(&ip).copied()
    }

    /// This session has ended; another one may have taken its place already.
    pub fn detach(&self, session: &mpsc::Sender<Event>) {
        {
            let mut current = self.session.lock();
            if !current
                .as_ref()
                .is_some_and(|current| current.same_channel(session))
            {
                return;
            }
            *current = None;
        }
        self.tell(HeraldEvent::SessionEnded);
    }

    /// Our part in this task: a new one with each session, as a scheduler knows a peer for one download only.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id.lock().clone()
    }

    /// Whether a session runs.
    pub fn has_session(&self) -> bool {
        self.session.lock().is_some()
    }

    /// Whether there is a link with this host.
    pub fn linked(&self, host_id: &HostId) -> bool {
        self.links.lock().contains_key(host_id)
    }

    /// The links with hosts that hold this piece, as far as they have told. A seed tells the digests of all it holds, but shows
    /// each piece to few at first.
    pub(crate) fn holders(&self, piece: PieceNumber) -> Vec<Arc<Link>> {
        let links = self.links.lock();
        let holds = |link: &&Arc<Link>| {
            let known = link.known.lock();
            known.is_held(piece) || link.seed && known.has_digest(piece)
        };
        links.values().filter(holds).cloned().collect()
    }

    /// Tells the herald something that must not be lost.
    pub(crate) async fn tell_surely(&self, event: HeraldEvent) {
        // A herald that has ended has no children left to tell.
        let _ = self.herald.send(event).await;
    }

    /// Tells the herald something that is only of use now; it may be lost when very much happens at once.
    pub(crate) fn tell(&self, event: HeraldEvent) {
        let _ = self.herald.try_send(event);
    }

    /// Tells the session, if one runs.
    pub(super) async fn notify(&self, host_id: &HostId, news: LinkNews) {
        let session = self.session.lock().clone();
        if let Some(session) = session {
            let event = LinkEvent {
                host_id: host_id.clone(),
                news,
            };
            let _ = session.send(Event::Link(event)).await;
        }
    }

    /// Adds a link, replacing an older one with the same host.
    ///
    /// When both hosts dialled each other, both keep the link that the smaller host id dialled.
    pub(super) fn add(&self, link: Arc<Link>, dialler: Dialler) -> Result<(), Status> {
        let mut links = self.links.lock();
        if let Some(old) = links.get(&link.host_id) {
            let ours_is_kept = self.hub.identity.host_id.as_str() < link.host_id.as_str();
            let is_ours = dialler == Dialler::Us;
            if !old.cancel.is_cancelled() && is_ours != ours_is_kept {
                return Err(Status::already_exists("linked already"));
            }
            old.cancel.cancel();
        } else if links.len() >= LINKS_MAX {
            return Err(Status::resource_exhausted(
                "enough neighbours for this task",
            ));
        }
        let mut tokens = self.hub.tokens.lock();
        tokens.insert(link.its_token, Arc::downgrade(&link));
        links.insert(link.host_id.clone(), link);
        Ok(())
    }

    /// Removes a link, unless a newer one with the same host has taken its place.
    pub(super) fn remove(&self, link: &Arc<Link>) -> bool {
        self.hub.tokens.lock().remove(&link.its_token);
        let mut links = self.links.lock();
        let current = links
            .get(&link.host_id)
            .is_some_and(|there| Arc::ptr_eq(there, link));
        if current {
            links.remove(&link.host_id);
        }
        current
    }

    /// Dials a host in the background; what comes of it reaches the session.
    pub fn dial(self: &Arc<Self>, target: Target) {
        let links = self.clone();
        self.hub.spawn(async move {
            let cancel = links.cancel.clone();
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                outcome = links.clone().open(&target) => outcome,
            };
            if let Err(news) = outcome {
                links.notify(&target.host_id, news).await;
            }
        });
    }

    /// Opens the link and runs it to its end.
    async fn open(self: Arc<Self>, target: &Target) -> Result<(), LinkNews> {
        let failed = |status: Status| LinkNews::Failed(crate::dial::reason(&status));
        let channel = self.hub.channel(target.addr);
        let (opening, outbound) = actor::Opening::new(&self);
        let mut client = SwarmClient::new(channel.clone());
        let call = async {
            let mut inbound = client.link(Request::new(outbound)).await?.into_inner();
            let hello = service::first_hello(&mut inbound).await?;
            Ok::<_, Status>((inbound, hello))
        };
        let (inbound, hello) = match tokio::time::timeout(DIAL_MAX, call).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err(LinkNews::NotOurs(channel));
            }
            // The other side keeps the link that it dialled itself.
            Ok(Err(status)) if status.code() == Code::AlreadyExists => return Ok(()),
            Ok(Err(status)) => return Err(failed(status)),
            Err(_) => return Err(LinkNews::Failed("no answer to the link".to_owned())),
        };
        let ip: IpAddr = target.addr.ip();
        let link = opening
            .answered(&self, &hello, ip, actor::Dialler::Us)
            .map_err(failed)?;
        actor::run(self, link, inbound).await;
        Ok(())
    }
}
