//! The core behind a lock, with a clock, its streams and its timer.
//!
//! Whoever hears something on the network calls [`Brain::handle`]; what the core wants done is handed out under the same
//! lock, so that each stream sees its answers in the order in which they were decided. The lock is held for microseconds
//! and never across an await: answers are drafts that hold references, and become messages on the stream's own task.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dragonfly_api::common::v2::{Download, Host};
use parking_lot::Mutex;
use protocol::{ByteRange, HostId, PeerId, TaskId};
use runtime::shutdown::Shutdown;
use scheduling::{
    Action, Answer, BackToSourceReason, Core, Event, Peer, PeerKey, PeerState, Policy, Refusal,
    SizeScope, StreamId, TaskState, Time, TriggerFailure,
};
use tokio::sync::{Notify, mpsc};
use tracing::warn;

/// What the scheduler remembers of a host beside what decisions need: its announcement, whole.
pub(crate) type HostRecord = Arc<Host>;

/// What it remembers of a task: the newest registration's order.
pub(crate) type TaskRecord = Arc<Download>;

/// An event of this scheduler.
pub(crate) type SchedulerEvent = Event<HostRecord, TaskRecord>;

/// Answers that may wait for a peer to read them. A peer is owed a handful; one that does not read loses its stream.
const ANSWERS_MAX: usize = 64;

/// Seeds that may wait to be asked. Beyond it a trigger counts as failed, and a peer reads the origin.
pub(crate) const TRIGGERS_MAX: usize = 4096;

/// A core and what connects it to the world.
#[derive(Debug)]
pub(crate) struct Brain {
    state: Mutex<State>,
    started: Instant,
    /// The time since the Unix epoch at `started`.
    wall_start: Duration,
    rearmed: Notify,
    triggers: mpsc::Sender<TriggerOrder>,
}

#[derive(Debug)]
struct State {
    core: Core<HostRecord, TaskRecord>,
    streams: HashMap<StreamId, mpsc::Sender<Outgoing>>,
    next_stream: u64,
    /// When the timer will go off.
    armed: Option<Time>,
    /// The scheduler stops: what happens now is its own doing and says nothing about peers.
    stopped: bool,
}

/// Something for a stream.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Say that the task is empty.
    Empty,
    /// Say that the peer is known.
    MetadataOnly,
    /// Send to the origin.
    BackToSource(BackToSourceReason),
    /// Name parents.
    Parents(Vec<PeerDraft>),
    /// End with this refusal.
    Refuse(Refusal),
}

/// A peer as it is told to others.
#[derive(Debug, Clone)]
pub(crate) struct PeerDraft {
    pub(crate) id: PeerId,
    pub(crate) range: Option<ByteRange>,
    pub(crate) priority: i32,
    pub(crate) concurrent_piece_count: u32,
    pub(crate) cost: Duration,
    pub(crate) state: PeerState,
    pub(crate) need_back_to_source: bool,
    pub(crate) created_at: Time,
    pub(crate) updated_at: Time,
    pub(crate) host: HostRecord,
    pub(crate) task: TaskDraft,
}

/// A task as it is told to others.
#[derive(Debug, Clone)]
pub(crate) struct TaskDraft {
    pub(crate) id: TaskId,
    pub(crate) order: TaskRecord,
    pub(crate) content_length: Option<u64>,
    pub(crate) piece_count: Option<u32>,
    pub(crate) size_scope: SizeScope,
    pub(crate) state: TaskState,
    pub(crate) peer_count: usize,
    pub(crate) created_at: Time,
    pub(crate) updated_at: Time,
}

/// A seed to be asked for a task.
#[derive(Debug)]
pub(crate) struct TriggerOrder {
    pub(crate) task_id: TaskId,
    pub(crate) host_id: HostId,
    pub(crate) host: HostRecord,
    pub(crate) order: TaskRecord,
}

impl Brain {
    /// A brain without memories, and the orders it will give to seeds.
    pub(crate) fn new(policy: Policy, seed: u64) -> (Arc<Self>, mpsc::Receiver<TriggerOrder>) {
        let (triggers, orders) = mpsc::channel(TRIGGERS_MAX);
        let brain = Self {
            state: Mutex::new(State {
                core: Core::new(policy, seed),
                streams: HashMap::new(),
                next_stream: 0,
                armed: None,
                stopped: false,
            }),
            started: Instant::now(),
            wall_start: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            rearmed: Notify::new(),
            triggers,
        };
        (Arc::new(brain), orders)
    }

    /// A new stream and what is to be sent on it; the receiver ends when the stream is to end.
    pub(crate) fn open_stream(&self) -> (StreamId, mpsc::Receiver<Outgoing>) {
        let (tx, rx) = mpsc::channel(ANSWERS_MAX);
        let mut state = self.state.lock();
        state.next_stream += 1;
        let stream = StreamId(state.next_stream);
        state.streams.insert(stream, tx);
        (stream, rx)
    }

    /// A stream is gone; so are those of `peers` that had not ended.
    pub(crate) fn end_stream(&self, stream: StreamId, peers: impl Iterator<Item = PeerId>) {
        self.state.lock().streams.remove(&stream);
        for peer_id in peers {
            self.handle(Event::StreamEnded { stream, peer_id });
        }
    }

    /// Tells the core what happened and does what it says.
    pub(crate) fn handle(&self, event: SchedulerEvent) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        let mut actions = state.core.handle(self.now(), event);
        while !actions.is_empty() {
            let mut failed = Vec::new();
            for action in actions {
                failed.extend(self.perform(&mut state, action));
            }
            actions = failed
                .into_iter()
                .flat_map(|event| state.core.handle(self.now(), event))
                .collect();
        }
        let due = state.core.next_deadline();
        if due < state.armed || state.armed.is_none() {
            state.armed = due;
            self.rearmed.notify_one();
        }
    }

    /// Looks into the core.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Core<HostRecord, TaskRecord>) -> R) -> R {
        look(&self.state.lock().core)
    }

    /// From now on nothing that happens is taken in.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
    }

    /// A moment of the core as the time since the Unix epoch.
    pub(crate) fn wall_time(&self, time: Time) -> Duration {
        self.wall_start + time
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// Does one thing. Gives what that led to, if it failed.
    fn perform(&self, state: &mut State, action: Action) -> Option<SchedulerEvent> {
        match action {
            Action::Answer {
                stream,
                peer,
                answer,
            } => {
                let outgoing = match answer {
                    Answer::Empty => Outgoing::Empty,
                    Answer::MetadataOnly => Outgoing::MetadataOnly,
                    Answer::BackToSource(reason) => Outgoing::BackToSource(reason),
                    Answer::Parents(keys) => Outgoing::Parents(
                        keys.iter()
                            .filter_map(|key| draft_peer(&state.core, *key))
                            .collect(),
                    ),
                };
                let sent = state
                    .streams
                    .get(&stream)
                    .is_some_and(|tx| tx.try_send(outgoing).is_ok());
                if !sent {
                    // Nobody reads there: the stream ends, and its end is an event of its own.
                    state.streams.remove(&stream);
                    let id = state.core.peer(peer).map(|peer| peer.id.clone());
                    warn!(peer_id = ?id, "peer does not read its answers, its stream is ended");
                }
                None
            }
            Action::Close { stream, outcome } => {
                if let (Some(tx), Err(refusal)) = (state.streams.remove(&stream), outcome) {
                    // A full queue ends without the reason.
                    let _ = tx.try_send(Outgoing::Refuse(refusal));
                }
                None
            }
            Action::TriggerSeed { task_id, host_id } => {
                let order = state
                    .core
                    .find_host(&host_id)
                    .zip(state.core.find_task(&task_id));
                let order = order.map(|(host, task)| TriggerOrder {
                    task_id: task_id.clone(),
                    host_id: host_id.clone(),
                    host: host.data.clone(),
                    order: task.data.clone(),
                });
                let sent = order.is_some_and(|order| self.triggers.try_send(order).is_ok());
                (!sent).then_some(Event::SeedTriggerEnded {
                    task_id,
                    host_id,
                    outcome: Err(TriggerFailure::Seed),
                })
            }
        }
    }
}

/// Calls the core when its time has come, until the shutdown begins.
pub(crate) async fn keep_time(brain: Arc<Brain>, shutdown: Shutdown) {
    loop {
        let due = {
            let mut state = brain.state.lock();
            state.armed = state.core.next_deadline();
            state.armed.map(|due| brain.started + due)
        };
        let sleep = tokio::time::sleep_until(
            due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
                .into(),
        );
        tokio::select! {
            biased;
            () = shutdown.begun() => return brain.stop(),
            () = brain.rearmed.notified() => {}
            () = sleep => brain.handle(Event::Tick),
        }
    }
}

/// What others are told of a peer; `None` if it is gone.
pub(crate) fn draft_peer(core: &Core<HostRecord, TaskRecord>, key: PeerKey) -> Option<PeerDraft> {
    draft(core, core.peer(key)?)
}

/// As [`draft_peer`], for a peer that was looked up.
pub(crate) fn draft(core: &Core<HostRecord, TaskRecord>, peer: &Peer) -> Option<PeerDraft> {
    Some(PeerDraft {
        id: peer.id.clone(),
        range: peer.range,
        priority: peer.priority,
        concurrent_piece_count: peer.concurrent_piece_count,
        cost: peer.cost,
        state: peer.state,
        need_back_to_source: peer.need_back_to_source,
        created_at: peer.created_at,
        updated_at: peer.updated_at,
        host: core.host(peer.host)?.data.clone(),
        task: draft_task(core.task(peer.task)?),
    })
}

/// What others are told of a task.
pub(crate) fn draft_task(task: &scheduling::Task<TaskRecord>) -> TaskDraft {
    TaskDraft {
        id: task.id.clone(),
        order: task.data.clone(),
        content_length: task.content_length,
        piece_count: task.piece_count,
        size_scope: task.size_scope(),
        state: task.state,
        peer_count: task.peer_count(),
        created_at: task.created_at,
        updated_at: task.updated_at,
    }
}
