//! What the scheduler knows: hosts, tasks and peers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::{ByteRange, HostId, HostRole, PeerId, TaskId, TaskKind};

use crate::arena::Key;
use crate::cost::CostWindow;
use crate::evaluator::Site;
use crate::message::{SourceFailure, StreamId};
use crate::origin::{Reader, Verdict};
use crate::roster::Places;
use crate::states::{PeerState, TaskState};
use crate::trigger::Trigger;

/// A moment, as the time since the core was made. The caller's clock must be monotonic.
pub type Time = Duration;

/// Marks the keys of hosts.
#[derive(Debug)]
pub enum HostMark {}
/// Marks the keys of tasks.
#[derive(Debug)]
pub enum TaskMark {}
/// Marks the keys of peers.
#[derive(Debug)]
pub enum PeerMark {}

/// Names a host of a core.
pub type HostKey = Key<HostMark>;
/// Names a task of a core.
pub type TaskKey = Key<TaskMark>;
/// Names a peer of a core.
pub type PeerKey = Key<PeerMark>;

/// A machine with a daemon. `H` is what the caller wants to remember of it.
#[derive(Debug)]
pub struct Host<H> {
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
    /// Its announced upload bandwidth, bit/s; 0 is unknown.
    pub max_tx_bandwidth: u64,
    /// How often it announces itself; zero if it did not say.
    pub announce_interval: Duration,
    /// When it was first heard of.
    pub created_at: Time,
    /// When it was last heard of.
    pub updated_at: Time,
    /// What was put on it so far.
    pub uploads: Uploads,
    /// What the caller wants to remember.
    pub data: H,
    pub(crate) peers: Vec<PeerKey>,
}

impl<H> Host<H> {
    /// How many peers it has, over all tasks.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    pub(crate) fn site(&self) -> Site<'_> {
        Site {
            idc: self.idc.as_deref(),
            location: self.location.as_deref(),
        }
    }
}

/// What the scheduler has put on a host by naming it as a parent (scheduler sheet, section 3.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uploads {
    /// Children assigned now.
    pub concurrent_count: u64,
    /// Children assigned ever.
    pub count: u64,
    /// Piece failures reported ever.
    pub failed_count: u64,
    /// Bandwidth expected by the children assigned now, bit/s.
    pub tx_bandwidth: u64,
    /// Pieces that the children assigned now may ask for at once.
    pub concurrent_piece_count: u64,
    /// Content that the children assigned now want, bytes.
    pub content_length: u64,
}

/// One content. `T` is what the caller wants to remember of it.
#[derive(Debug)]
pub struct Task<T> {
    /// Its id.
    pub id: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// Where it stands; see [`TaskState`] for what that does not say.
    pub state: TaskState,
    /// Its length in bytes, if known.
    pub content_length: Option<u64>,
    /// The length of its pieces in bytes, 0 if not known.
    pub piece_length: u64,
    /// How many pieces it has, if known.
    pub piece_count: Option<u32>,
    /// When the first peer registered.
    pub created_at: Time,
    /// When it was last heard of.
    pub updated_at: Time,
    /// What the caller wants to remember, from the newest registration.
    pub data: T,
    /// The pieces that were reported by readers of the origin.
    pub pieces: BTreeMap<u32, PieceRecord>,
    /// Failures of readers of the origin since the last success of any peer.
    pub peer_failed_count: u32,
    /// All peers.
    pub(crate) peers: Vec<PeerKey>,
    /// Peers that a v2 child may be given: they have the content or a source of it.
    pub(crate) serving: Vec<PeerKey>,
    /// Those of them that have it whole.
    pub(crate) holders: Vec<PeerKey>,
    /// Mesh peers that take part.
    pub(crate) mesh: Vec<PeerKey>,
    /// Peers on seed hosts; may hold keys of peers that are gone.
    pub(crate) seeds: Vec<PeerKey>,
    /// Peers that were not answered yet, longest waiting first; may hold peers that wait no more.
    pub(crate) waiting: Vec<PeerKey>,
    /// When the next of them must be decided about.
    pub(crate) waiting_due: Option<Time>,
    /// Mesh peers with fewer neighbours than they should have; may hold keys of peers that are gone.
    pub(crate) short: HashSet<PeerKey>,
    /// When they get more.
    pub(crate) top_up_due: Option<Time>,
    /// Since when that is put off.
    pub(crate) top_up_first: Time,
    /// Who reads the origin.
    pub(crate) readers: Vec<Reader>,
    /// The seed peer that was asked to.
    pub(crate) trigger: Option<Trigger>,
    /// Seed hosts whose trigger was given up.
    pub(crate) given_up_seeds: Vec<HostKey>,
    /// Readers that failed in a row.
    pub(crate) reader_failure_count: u32,
    /// Readers that fell silent in a row.
    pub(crate) reader_silence_count: u32,
    /// What the origin last answered, for the peers that had registered by then.
    pub(crate) verdict: Option<Verdict>,
    /// The time of the one timer that counts.
    pub(crate) timer_at: Option<Time>,
}

impl<T> Task<T> {
    /// How many peers it has.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// What its lengths make of it.
    pub fn size_scope(&self) -> SizeScope {
        const TINY_LEN_MAX: u64 = 128;
        match (self.content_length, self.piece_count) {
            (None, _) | (_, None) => SizeScope::Unknown,
            (Some(0), _) => SizeScope::Empty,
            (Some(length), _) if length <= TINY_LEN_MAX => SizeScope::Tiny,
            (_, Some(1)) => SizeScope::Small,
            _ => SizeScope::Normal,
        }
    }
}

/// How large a task is, in the words of `common.v2.SizeScope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeScope {
    /// Several pieces.
    Normal,
    /// One piece.
    Small,
    /// At most 128 bytes.
    Tiny,
    /// No byte.
    Empty,
    /// Not known. Dragonfly v2's Go code has the number 4 for it, the published enum has none.
    Unknown,
}

impl SizeScope {
    /// The number on the wire.
    pub fn number(self) -> i32 {
        match self {
            Self::Normal => 0,
            Self::Small => 1,
            Self::Tiny => 2,
            Self::Empty => 3,
            Self::Unknown => 4,
        }
    }
}

/// A piece as a reader of the origin reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRecord {
    /// Its position in the task.
    pub number: u32,
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its digest, as text.
    pub digest: Box<str>,
    /// How long it took.
    pub cost: Duration,
    /// When the reader wrote it, as the reader's clock says: the time since the Unix epoch.
    pub created_at: Duration,
}

/// One host's part in one task.
#[derive(Debug)]
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// Its task.
    pub task: TaskKey,
    /// Its host.
    pub host: HostKey,
    /// Where it stands.
    pub state: PeerState,
    /// It speaks our extension: links to neighbours work both ways, and it takes pushed parents.
    pub mesh: bool,
    /// The part of the content that it wants; `None` is all of it.
    pub range: Option<ByteRange>,
    /// Its priority, 0 to 6, as it asked.
    pub priority: i32,
    /// How many pieces it fetches at once.
    pub concurrent_piece_count: u32,
    /// It asked to be sent to the origin.
    pub need_back_to_source: bool,
    /// How long it took, once it has ended.
    pub cost: Duration,
    /// When it registered.
    pub created_at: Time,
    /// When it was last heard of.
    pub updated_at: Time,
    /// When it last reported a piece; when it registered, if it never did.
    pub piece_updated_at: Time,
    /// How many pieces it reported.
    pub finished_piece_count: u32,
    /// It must not read the origin.
    pub(crate) origin_forbidden: bool,
    /// Tells apart what different credentials would be answered by the origin.
    pub(crate) credentials: u64,
    /// Where it is answered; `None` once the stream is gone.
    pub(crate) stream: Option<StreamId>,
    /// Since when it has waited for an answer.
    pub(crate) waiting_since: Option<Time>,
    /// It stands in its task's list of waiting peers.
    pub(crate) queued: bool,
    pub(crate) parents: Vec<PeerKey>,
    pub(crate) children: Vec<PeerKey>,
    /// Mesh peers it was offered, or was offered to.
    pub(crate) neighbours: Vec<PeerKey>,
    /// Parents that failed it.
    pub(crate) blocked: Vec<PeerKey>,
    pub(crate) costs: CostWindow,
    pub(crate) places: Places,
    /// The last graph search that came by.
    pub(crate) visited: u64,
    /// What the origin last answered to it.
    pub(crate) source_failure: Option<Box<SourceFailure>>,
}

impl Peer {
    /// The peers it was offered and may fetch from, as the graph has them.
    pub fn parents(&self) -> &[PeerKey] {
        &self.parents
    }

    /// The peers it was offered to.
    pub fn children(&self) -> &[PeerKey] {
        &self.children
    }

    /// It has the whole content.
    pub(crate) fn is_holder(&self) -> bool {
        self.state == PeerState::Succeeded && self.range.is_none()
    }
}
