//! Serving pieces to other hosts: what is here, who may have it now.
//!
//! [`PieceServer`] answers the requests of the piece port from the store. How many are served at once is decided by the
//! pure [`swarm::Slots`], kept in [`Uploads`]: a child of this project that comes too early is refused and granted a slot
//! over its link later; a Dragonfly v2 child waits. Bytes that are still arriving here are relayed to children of this
//! project; a v2 child is only given pieces that are whole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use protocol::vortex::{
    ErrorCode, ErrorReply, PieceHead, PieceRequest, Request, SegmentHead, SegmentRequest,
};
use protocol::{PieceNumber, TaskId};
use storage::{Lookup, PieceView, Task, Verdict};
use swarm::{ChildId, ChildKind, Slots, SlotsAction, SlotsEvent, UploadId};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use transfer::{Arrival, ArrivalFailed, Arriving, Content, ContentHead, PieceSource, Upload};

use crate::link::proto::{Grant, frame::Kind};
use crate::link::{HeraldEvent, Hub, Link, TaskLinks};
use crate::metrics::Metrics;

/// How long a v2 child may wait for a piece that is still arriving here (`download.pieceTimeout`).
const PIECE_WAIT_MAX: Duration = Duration::from_secs(360);
/// Uploads of v2 children that may wait for a slot; more are answered with an error.
const WAITING_MAX: usize = 4096;

/// The upload slots of this host and everything that stands in line for them.
pub struct Uploads {
    state: Mutex<State>,
    epoch: Instant,
    changed: Notify,
    metrics: Arc<Metrics>,
}

struct State {
    slots: Slots,
    actions: Vec<SlotsAction>,
    next_upload: u64,
    asked: HashMap<UploadId, oneshot::Sender<bool>>,
    links: HashMap<ChildId, Weak<Link>>,
    meter: Meter,
}

/// The best rate at which this host has sent, for a while.
#[derive(Default)]
struct Meter {
    window_start: Duration,
    window_bytes: u64,
    /// Bytes per second.
    best: u64,
}

impl Meter {
    /// How long bytes are counted for one figure.
    const WINDOW: Duration = Duration::from_millis(500);

    fn sent(&mut self, now: Duration, bytes: u64) {
        self.window_bytes += bytes;
        let elapsed = now.saturating_sub(self.window_start);
        if elapsed >= Self::WINDOW {
            let millis = u64::try_from(elapsed.as_millis())
                .unwrap_or(u64::MAX)
                .max(1);
            let rate = self.window_bytes.saturating_mul(1000) / millis;
            // An idle window says nothing about the link; a slower one says little.
            self.best = rate.max(self.best - self.best / 16);
            self.window_start = now;
            self.window_bytes = 0;
        }
    }
}

/// Why a request is not served now.
#[derive(Debug, PartialEq, Eq)]
enum NotNow {
    Refused,
    Overloaded,
}

impl Uploads {
    /// Slots of a host that serves nobody yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                slots: Slots::new(),
                actions: Vec::new(),
                next_upload: 0,
                asked: HashMap::new(),
                links: HashMap::new(),
                meter: Meter::default(),
            }),
            epoch: Instant::now(),
            changed: Notify::new(),
            metrics,
        })
    }

    /// Keeps the deadlines of the slots until cancelled.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        const FAR: Duration = Duration::from_secs(3600);
        loop {
            let deadline = self.state.lock().slots.next_deadline();
            let wake =
                deadline.map_or_else(|| Instant::now() + FAR, |deadline| self.epoch + deadline);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.changed.notified() => {}
                () = sleep_until(wake) => self.decide(&mut self.state.lock()),
            }
        }
    }

    fn tell(&self, event: SlotsEvent) {
        let mut state = self.state.lock();
        let now = self.epoch.elapsed();
        state.slots.handle(now, event);
        self.decide(&mut state);
    }

    fn decide(&self, state: &mut State) {
        let now = self.epoch.elapsed();
        let mut actions = std::mem::take(&mut state.actions);
        state.slots.decide(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                SlotsAction::Serve { upload } => state.answer(upload, true),
                SlotsAction::Refuse { upload } => state.answer(upload, false),
                SlotsAction::Grant { child } => {
                    match state.links.get(&child).and_then(Weak::upgrade) {
                        Some(link) => link.send(Kind::Grant(Grant {})),
                        None => state.slots.handle(now, SlotsEvent::Left { child }),
                    }
                }
                // Its slot is free again; the connection itself ends by the transfer's own limits.
                SlotsAction::Drop { upload } => state.answer(upload, false),
            }
        }
        state.actions = actions;
        self.changed.notify_one();
    }

    /// How many uploads are served at once, and the best rate seen, in bytes per second (0: not known yet).
    pub fn uplink(&self) -> (u32, u64) {
        let state = self.state.lock();
        (state.slots.count(), state.meter.best)
    }

    /// A child wants nothing of us now.
    pub fn declined(&self, token: u64) {
        let child = ChildId(token);
        self.tell(SlotsEvent::Declined { child });
    }

    /// How much of its task a child has.
    pub fn holds(&self, token: u64, millionths: u32) {
        let child = ChildId(token);
        self.tell(SlotsEvent::Holds { child, millionths });
    }

    /// A child is gone.
    pub fn left(&self, token: u64) {
        let child = ChildId(token);
        self.state.lock().links.remove(&child);
        self.tell(SlotsEvent::Left { child });
    }

    /// A slot for one upload to this child.
    async fn slot(
        self: &Arc<Self>,
        child: ChildId,
        kind: ChildKind,
        link: Option<&Arc<Link>>,
    ) -> Result<Slot, NotNow> {
        let (answer, answered) = oneshot::channel();
        let upload = {
            let mut state = self.state.lock();
            if state.asked.len() >= WAITING_MAX {
                return Err(NotNow::Overloaded);
            }
            if let Some(link) = link {
                state.links.insert(child, Arc::downgrade(link));
            }
            let upload = UploadId(state.next_upload);
            state.next_upload += 1;
            state.asked.insert(upload, answer);
            upload
        };
        let mut slot = Slot {
            uploads: self.clone(),
            upload,
            sent: 0,
            serving: false,
            shown: None,
        };
        self.tell(SlotsEvent::Asked {
            upload,
            child,
            kind,
        });
        // Dropping the slot while it waits takes the request out of the line.
        if answered.await.unwrap_or(false) {
            self.metrics.concurrent_upload_piece.inc();
            slot.serving = true;
            Ok(slot)
        } else {
            Err(NotNow::Refused)
        }
    }
}

impl State {
    fn answer(&mut self, upload: UploadId, serve: bool) {
        if let Some(answer) = self.asked.remove(&upload) {
            // A child that has gone away gives its slot back when its `Slot` is dropped.
            let _ = answer.send(serve);
        }
    }
}

/// One upload that waits for a slot or has one; dropping it gives the slot back.
struct Slot {
    uploads: Arc<Uploads>,
    upload: UploadId,
    sent: u64,
    serving: bool,
    /// What the seed's stage was told about it, to be told again at the end.
    shown: Option<Shown>,
}

struct Shown {
    links: Arc<TaskLinks>,
    served: HeraldEvent,
}

impl Upload for Slot {
    fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.uploads.metrics.uploaded(bytes);
        let event = SlotsEvent::Sent {
            upload: self.upload,
            bytes: self.sent,
        };
        let now = self.uploads.epoch.elapsed();
        let mut state = self.uploads.state.lock();
        state.slots.handle(now, event);
        state.meter.sent(now, bytes);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.uploads.state.lock().asked.remove(&self.upload);
        if self.serving {
            self.uploads.metrics.concurrent_upload_piece.dec();
        }
        self.uploads.tell(SlotsEvent::Ended {
            upload: self.upload,
        });
        if let Some(shown) = self.shown.take() {
            shown.links.tell(shown.served);
        }
    }
}

/// Answers the requests of the piece port.
pub struct PieceServer {
    hub: Arc<Hub>,
    store: storage::Store,
    uploads: Arc<Uploads>,
}

impl PieceServer {
    /// Serves what is in this store, and what arrives in it.
    pub fn new(hub: Arc<Hub>, store: storage::Store, uploads: Arc<Uploads>) -> Self {
        Self {
            hub,
            store,
            uploads,
        }
    }

    fn task(&self, task_id: &TaskId) -> Result<Task, ErrorReply> {
        match self.store.task(task_id) {
            Ok(Some(task)) => Ok(task),
            Ok(None) => Err(not_found(format!("task {task_id} is not here"))),
            Err(error) => Err(internal(error)),
        }
    }

    /// A whole piece, for a v2 child; waits for it while it is on its way.
    async fn piece(
        &self,
        request: &PieceRequest,
        child: SocketAddr,
    ) -> Result<Content, ErrorReply> {
        let task = self.task(&request.task_id)?;
        let found = tokio::time::timeout(PIECE_WAIT_MAX, self.whole(&task, request));
        let view = found
            .await
            .map_err(|_| internal("the piece did not arrive in time"))??;
        let record = task.piece_record(request.piece).ok_or_else(|| {
            not_found(format!("piece {}", request.task_id.piece_id(request.piece)))
        })?;
        let links = self.hub.existing(&request.task_id);
        let child = links
            .as_ref()
            .and_then(|links| links.v2_child_at(child.ip()))
            .unwrap_or_else(|| stranger(&request.task_id, child));
        let mut slot = self
            .uploads
            .slot(child, ChildKind::V2, None)
            .await
            .map_err(NotNow::reply)?;
        slot.show(links, child, request.piece, 0);
        let head = PieceHead {
            piece: record.number,
            offset: record.offset,
            length: record.length,
            digest: record.crc32.to_string(),
            parent_id: record
                .origin
                .parent
                .map(|parent| parent.to_string())
                .unwrap_or_default(),
            traffic_type: 1,
            cost_seconds: record.origin.cost.as_secs(),
            created_at: unix_seconds(record.origin.created_at),
        };
        Ok(Content {
            head: ContentHead::Piece(head),
            file: view.file(),
            file_offset: view.offset(),
            arrival: Arrival::Whole,
            upload: Box::new(slot),
        })
    }

    async fn whole(&self, task: &Task, request: &PieceRequest) -> Result<PieceView, ErrorReply> {
        let mut changes = task.changes();
        loop {
            changes.borrow_and_update();
            match task.piece(request.piece).map_err(internal)? {
                Lookup::Whole(view) => return Ok(view),
                Lookup::Unverified => verify(task, request.piece).await?,
                Lookup::Arriving(_) => changes.changed().await.map_err(internal)?,
                Lookup::Missing => {
                    let coming = self
                        .hub
                        .existing(task.id())
                        .is_some_and(|links| links.has_session());
                    if !coming {
                        return Err(not_found(format!(
                            "piece {} not found",
                            task.id().piece_id(request.piece)
                        )));
                    }
                    changes.changed().await.map_err(internal)?;
                }
            }
        }
    }

    /// A part of a piece, for a child that has a link with us; relayed while it arrives.
    async fn segment(&self, request: &SegmentRequest) -> Result<Content, ErrorReply> {
        let link = self
            .hub
            .by_token(request.link_token)
            .ok_or_else(|| not_found("no link has this token: link again".to_owned()))?;
        let task = self.task(&request.task_id)?;
        let span = task
            .geometry()
            .piece(request.piece)
            .ok_or_else(|| not_found("no such piece".to_owned()))?;
        let end = request.offset.checked_add(request.length);
        if request.length == 0 || end.is_none_or(|end| end > span.length) {
            return Err(not_found(format!("the piece has {} bytes", span.length)));
        }
        let mut found = task.piece(request.piece).map_err(internal)?;
        if matches!(found, Lookup::Unverified) {
            verify(&task, request.piece).await?;
            found = task.piece(request.piece).map_err(internal)?;
        }
        let (Lookup::Whole(view) | Lookup::Arriving(view)) = found else {
            return Err(not_found("the piece is not here".to_owned()));
        };
        let ready = view.ready(request.offset).map_err(internal)?;
        if ready == 0 {
            return Err(reply(
                ErrorCode::NotAhead,
                "no byte of it is here beyond yours",
            ));
        }
        let child = ChildId(link.its_token);
        let mut slot = self
            .uploads
            .slot(child, ChildKind::Mesh, Some(&link))
            .await
            .map_err(NotNow::reply)?;
        slot.show(
            self.hub.existing(&request.task_id),
            child,
            request.piece,
            request.offset,
        );
        let arrival = if ready >= request.length {
            Arrival::Whole
        } else {
            Arrival::Arriving(Box::new(Relay {
                view: view.clone(),
                from: request.offset,
            }))
        };
        let head = SegmentHead {
            piece: request.piece,
            offset: request.offset,
            length: request.length,
        };
        Ok(Content {
            head: ContentHead::Segment(head),
            file: view.file(),
            file_offset: span.offset + request.offset,
            arrival,
            upload: Box::new(slot),
        })
    }
}

impl Slot {
    /// Tells the seed's stage that these bytes are on their way.
    fn show(
        &mut self,
        links: Option<Arc<TaskLinks>>,
        child: ChildId,
        piece: PieceNumber,
        offset: u64,
    ) {
        let Some(links) = links else { return };
        links.tell(HeraldEvent::Asked {
            child,
            piece,
            offset,
        });
        self.shown = Some(Shown {
            links,
            served: HeraldEvent::Served {
                child,
                piece,
                offset,
            },
        });
    }
}

impl PieceSource for PieceServer {
    async fn open(&self, request: Request, child: SocketAddr) -> Result<Content, ErrorReply> {
        match request {
            Request::Piece(request) => self.piece(&request, child).await,
            Request::Segment(request) => self.segment(&request).await,
        }
    }
}

/// Follows a piece that is still arriving here.
struct Relay {
    view: PieceView,
    /// First byte of the content, within the piece.
    from: u64,
}

impl Arriving for Relay {
    fn more(
        &mut self,
        have: u64,
    ) -> Pin<Box<dyn Future<Output = Result<u64, ArrivalFailed>> + Send + '_>> {
        Box::pin(async move {
            let beyond = self
                .view
                .wait(self.from + have)
                .await
                .map_err(|_| ArrivalFailed)?;
            Ok(have + beyond)
        })
    }
}

/// How a v2 child that follows no SyncPieces here is known to the slots: its address and task name it.
fn stranger(task_id: &TaskId, child: SocketAddr) -> ChildId {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(task_id, child.ip()), &mut hasher);
    ChildId(std::hash::Hasher::finish(&hasher))
}

async fn verify(task: &Task, piece: PieceNumber) -> Result<(), ErrorReply> {
    let task = task.clone();
    let verdict = tokio::task::spawn_blocking(move || task.verify(piece)).await;
    match verdict.map_err(internal)?.map_err(internal)? {
        Verdict::Good => Ok(()),
        Verdict::Dropped | Verdict::NotWhole => Err(not_found("the piece is not here".to_owned())),
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn reply(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
    ErrorReply {
        code,
        message: message.into(),
    }
}

fn not_found(message: String) -> ErrorReply {
    reply(ErrorCode::NotFound, message)
}

/// The text stays vague: the other side may be a stranger.
fn internal(error: impl std::fmt::Display) -> ErrorReply {
    tracing::debug!(%error, "piece not served");
    reply(ErrorCode::Internal, "the piece cannot be served")
}

impl NotNow {
    fn reply(self) -> ErrorReply {
        match self {
            Self::Refused => reply(
                ErrorCode::Refused,
                "no upload slot is free: one will be granted",
            ),
            Self::Overloaded => reply(ErrorCode::Internal, "too many uploads wait"),
        }
    }
}
