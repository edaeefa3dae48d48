//! What the core is told and what it wants done.

use std::sync::Arc;
use std::time::Duration;

use protocol::{ByteRange, HostId, HostRole, PeerId, TaskId, TaskKind};

use crate::model::{PeerKey, PieceRecord};
use crate::states::{PeerEvent, PeerState};

/// Names one open AnnouncePeer stream; given by the caller, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event<H, T> {
    /// A host announced itself, for the first time or again.
    HostAnnounced(HostAnnouncement<H>),
    /// A host leaves; its peers leave with it.
    HostLeft {
        /// Which.
        host_id: HostId,
    },
    /// These seed hosts can be asked for work, and no others.
    SeedsAvailable(Vec<HostId>),
    /// A peer registers on a stream.
    PeerRegistered(Registration<T>),
    /// A peer reports on the stream it registered on.
    PeerReported {
        /// The stream the message came on.
        stream: StreamId,
        /// Who it is about.
        peer_id: PeerId,
        /// What it says.
        report: Report,
    },
    /// The stream of a peer ended without a terminal message.
    StreamEnded {
        /// The stream.
        stream: StreamId,
        /// A peer that registered on it.
        peer_id: PeerId,
    },
    /// A peer is to be forgotten.
    PeerDeleted {
        /// Which.
        peer_id: PeerId,
    },
    /// A host has deleted its copy of a task.
    TaskDeleted {
        /// The host.
        host_id: HostId,
        /// The task.
        task_id: TaskId,
    },
    /// The call that [`Action::TriggerSeed`] asked for has ended.
    SeedTriggerEnded {
        /// The task.
        task_id: TaskId,
        /// The seed host.
        host_id: HostId,
        /// How.
        outcome: Result<(), TriggerFailure>,
    },
    /// The dynamic configuration has other limits.
    LimitsChanged {
        /// See [`crate::Policy::candidate_parent_limit`].
        candidate_parent_limit: usize,
        /// See [`crate::Policy::filter_parent_limit`].
        filter_parent_limit: usize,
    },
    /// The moment that [`crate::Core::next_deadline`] named has come.
    Tick,
}

/// A host as it announces itself.
#[derive(Debug, Clone)]
pub struct HostAnnouncement<H> {
    /// Its id.
    pub id: HostId,
    /// Its name, by which seed peers are assigned to tasks.
    pub name: Arc<str>,
    /// What it does for others.
    pub role: HostRole,
    /// It gives nothing to others.
    pub disable_shared: bool,
    /// Its data centre.
    pub idc: Option<Box<str>>,
    /// Its place, broad to narrow, parts separated by `|`.
    pub location: Option<Box<str>>,
    /// Its upload bandwidth, bit/s; 0 is unknown.
    pub max_tx_bandwidth: u64,
    /// How often it announces itself; zero if it does not say, then it is never dropped for being silent.
    pub announce_interval: Duration,
    /// What the caller wants to remember.
    pub data: H,
}

/// A peer as it registers.
#[derive(Debug, Clone)]
pub struct Registration<T> {
    /// The stream it registers on.
    pub stream: StreamId,
    /// Its host, announced before.
    pub host_id: HostId,
    /// Its task.
    pub task_id: TaskId,
    /// Its id.
    pub peer_id: PeerId,
    /// It speaks our extension.
    pub mesh: bool,
    /// The task's kind.
    pub kind: TaskKind,
    /// The task's lengths, as the peer found them.
    pub lengths: Lengths,
    /// The part of the content that it wants; `None` is all of it.
    pub range: Option<ByteRange>,
    /// Its priority, as it asked.
    pub priority: i32,
    /// What its priority comes to with the application's rules.
    pub effective_priority: Priority,
    /// How many pieces it fetches at once.
    pub concurrent_piece_count: u32,
    /// Its wish about the origin.
    pub origin: OriginWish,
    /// Tells apart what different credentials would be answered by the origin: a fingerprint of the request headers.
    pub credentials: u64,
    /// It has everything already and only wants to be known.
    pub metadata_only: bool,
    /// What the caller wants to remember of the task.
    pub data: T,
}

/// What a peer says about reading the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginWish {
    /// It does as the scheduler says.
    AsTold,
    /// It asks to (`Download.need_back_to_source`).
    Wanted,
    /// It must not (`Download.disable_back_to_source`).
    Forbidden,
}

/// The lengths of a task, as far as they are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes in all.
    pub content_length: Option<u64>,
    /// Bytes of a piece.
    pub piece_length: u64,
    /// Number of pieces.
    pub piece_count: Option<u32>,
}

/// What a priority asks of the first download of a task (scheduler sheet, section 2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// LEVEL0, LEVEL4 to LEVEL6: a seed peer fetches first.
    SeedFirst,
    /// LEVEL3: the peer fetches from the origin itself.
    OriginFirst,
    /// LEVEL2: refused, for it may only fetch from peers.
    PeersOnly,
    /// LEVEL1: refused.
    Forbidden,
}

/// What a peer says.
#[derive(Debug, Clone)]
pub enum Report {
    /// It fetches from parents.
    Started,
    /// It fetches from the origin. Repeated by a mesh peer, it says that bytes still arrive.
    BackToSourceStarted,
    /// These parents do not suffice.
    Rescheduled {
        /// The parents it gives up.
        parents: Vec<PeerId>,
    },
    /// It has everything.
    Finished,
    /// It has everything, read from the origin.
    BackToSourceFinished,
    /// It gives up.
    Failed,
    /// It gives up, for the origin failed it.
    BackToSourceFailed,
    /// A piece came from a parent, or was here already.
    PieceFinished {
        /// The parent.
        parent: Option<PeerId>,
        /// How long it took.
        cost: Duration,
    },
    /// A piece came from the origin.
    SourcePieceFinished(PieceRecord),
    /// A parent failed it for a piece.
    PieceFailed {
        /// The parent.
        parent: PeerId,
    },
    /// The origin failed it for a piece.
    SourcePieceFailed(SourceFailure),
}

/// What an origin answered instead of the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the origin failed: {message}")]
pub struct SourceFailure {
    /// The HTTP status, if it was one.
    pub status: Option<u16>,
    /// What the reader said about it.
    pub message: String,
}

/// Whom an origin's answer holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Whoever asks.
    Everybody,
    /// Whoever asks with the same credentials.
    SameCredentials,
    /// Only the moment: another attempt may succeed.
    Attempt,
}

impl SourceFailure {
    pub(crate) fn reach(&self) -> Reach {
        match self.status {
            Some(401..=403 | 407) => Reach::SameCredentials,
            Some(400 | 404..=406 | 410 | 411 | 414 | 415 | 451) => Reach::Everybody,
            _ => Reach::Attempt,
        }
    }
}

/// Why a triggered seed peer will not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TriggerFailure {
    /// The seed cannot be reached, or failed for reasons of its own.
    Seed,
    /// The origin failed it.
    Origin(SourceFailure),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send an answer on a stream.
    Answer {
        /// The stream.
        stream: StreamId,
        /// Who is answered.
        peer: PeerKey,
        /// What.
        answer: Answer,
    },
    /// End a stream; whatever else is registered on it ends too.
    Close {
        /// The stream.
        stream: StreamId,
        /// `Ok` after a terminal message, else why.
        outcome: Result<(), Refusal>,
    },
    /// Ask a seed peer to fetch a task, and tell how that ended.
    TriggerSeed {
        /// The task; its newest registration is the order.
        task_id: TaskId,
        /// The seed host.
        host_id: HostId,
    },
}

/// An answer to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The task is empty.
    Empty,
    /// Fetch from these, best first. To a v2 peer: these and no others. To a mesh peer: these too.
    Parents(Vec<PeerKey>),
    /// Fetch from the origin.
    BackToSource(BackToSourceReason),
    /// The peer is known now.
    MetadataOnly,
}

/// Why a peer is sent to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackToSourceReason {
    /// It asked, or its priority did.
    Asked,
    /// Nobody else reads the origin, and there is no seed peer to do it.
    FirstReader,
    /// Whoever read the origin is gone, failed or silent.
    NextReader,
    /// It waited for parents as long as the limits allow.
    NoParents,
}

impl BackToSourceReason {
    /// The text for the wire; the texts that Dragonfly v2 has are its own.
    pub fn text(self) -> &'static str {
        match self {
            Self::Asked => "peer's NeedBackToSource is true",
            Self::FirstReader => "first reader of the origin",
            Self::NextReader => "next reader of the origin",
            Self::NoParents => "scheduling exceeded RetryBackToSourceLimit",
        }
    }
}

/// Why a peer is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The host never announced itself here, or was dropped.
    #[error("host {0} not found: it must announce itself before its peers register")]
    HostUnknown(HostId),
    /// The peer is not registered, or not on this stream.
    #[error("peer {0} not found on this stream: it must register first")]
    PeerUnknown(PeerId),
    /// The id belongs to a peer of another host or task.
    #[error("peer {0} is registered for another host or task: use a fresh id for every download")]
    PeerTaken(PeerId),
    /// The peer registered again on another stream.
    #[error("peer {0} registered again on another stream")]
    Superseded(PeerId),
    /// The message does not fit what the peer said before.
    #[error("event {event} inappropriate in current state {state}")]
    Transition {
        /// What it said.
        event: PeerEvent,
        /// Where it stands.
        state: PeerState,
    },
    /// Priority LEVEL1.
    #[error("LEVEL1 peer is forbidden")]
    Forbidden,
    /// Priority LEVEL2, and nobody has the task.
    #[error("LEVEL2 peer not found candidate peers")]
    PeersOnly,
    /// Nobody has the task and the peer must not read the origin.
    #[error(
        "scheduling exceeded RetryLimit: nobody has the task, and this peer must not or may not read the origin"
    )]
    NoParents,
    /// The origin answered somebody else in a way that holds for this peer too.
    #[error(transparent)]
    Origin(SourceFailure),
    /// The peer was deleted, or its host left.
    #[error("peer {0} was deleted")]
    Deleted(PeerId),
}
