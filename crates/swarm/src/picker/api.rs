//! What goes into a [`Picker`](super::Picker) and what comes out.

use std::ops::Range;
use std::time::Duration;

use protocol::{Bitmap, PieceNumber, SegmentIndex};

/// A neighbour of this task on this host; the caller numbers them and never uses a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NeighbourId(pub u32);

/// A request that the picker made; never used twice within a picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a neighbour can do for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourKind {
    /// One of ours: segments, relays, refusals and grants.
    Mesh,
    /// A Dragonfly v2 parent: whole pieces, never refuses, grants nothing.
    V2,
}

/// What a neighbour says that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The first bytes of this segment are there and more are coming (a relay). Only from [`NeighbourKind::Mesh`].
    Arriving(SegmentIndex),
    /// The whole piece is there and its digest was checked.
    Held(PieceNumber),
    /// The whole task is there.
    Everything,
    /// It no longer has this piece.
    Gone(PieceNumber),
}

/// Why a request ended without all of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No upload slot: we are in line there and will be granted one (protocol code 64).
    Refused,
    /// The parent has no more bytes of the segment than we have (protocol code 65).
    NotAhead,
    /// No byte came for as long as the caller was willing to wait.
    Stalled,
    /// The connection could not be made or was closed short.
    Lost,
    /// The parent does not have it, whatever it showed.
    NotFound,
    /// The parent broke the protocol: it is not asked again.
    BadData,
}

/// Something that happened; hand it to [`Picker::handle`](super::Picker::handle).
///
/// Events about neighbours or requests that the picker does not know (any more) are ignored, so the
/// caller need not order a cancel against a late answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickerEvent {
    /// A neighbour can be asked from now on.
    Joined {
        /// Its number.
        neighbour: NeighbourId,
        /// How it is asked.
        kind: NeighbourKind,
    },
    /// The neighbour is gone; its requests are over and must not be reported any more.
    Left {
        /// Its number.
        neighbour: NeighbourId,
    },
    /// The neighbour announced something.
    Shown {
        /// Who.
        neighbour: NeighbourId,
        /// What.
        what: Shown,
    },
    /// The neighbour works on: that it sends no bytes does not mean that it is frozen, it may have none yet.
    Alive {
        /// Who.
        neighbour: NeighbourId,
    },
    /// A slot at this neighbour is ours for a moment.
    Granted {
        /// Who granted it.
        neighbour: NeighbourId,
    },
    /// Bytes of a request arrived and are in the store.
    Progress {
        /// The request.
        request: RequestId,
        /// Bytes received by this request so far, from its own `offset` on.
        received: u64,
    },
    /// All bytes of the request are in the store.
    Finished {
        /// The request.
        request: RequestId,
    },
    /// The request is over with fewer bytes than it asked for.
    Failed {
        /// The request.
        request: RequestId,
        /// Why.
        failure: Failure,
        /// Bytes of it that are in the store, from its own `offset` on.
        received: u64,
    },
    /// The first `length` bytes of the segment are in the store by another way than a request
    /// (read from the origin, left over from an earlier attempt).
    Stored {
        /// The segment.
        segment: SegmentIndex,
        /// Bytes from the start of the segment.
        length: u64,
    },
    /// The piece is whole and its digest was checked, by whatever way it came.
    PieceHeld {
        /// The piece.
        piece: PieceNumber,
    },
    /// The piece was dropped (digest mismatch, damage on disk): all of its bytes are wanted again.
    PieceDropped {
        /// The piece.
        piece: PieceNumber,
    },
    /// The caller itself reads these segments from the origin: do not ask for them.
    OriginTook {
        /// Segments, end exclusive.
        segments: Range<u32>,
    },
    /// The caller no longer reads these segments from the origin.
    OriginReleased {
        /// Segments, end exclusive.
        segments: Range<u32>,
    },
    /// These pieces are wanted (too).
    WantMore {
        /// One bit per piece of the task.
        pieces: Bitmap,
    },
    /// A reader waits for this segment; `None`: nobody reads in order.
    ReaderAt {
        /// Where the reader stands.
        segment: Option<SegmentIndex>,
    },
}

/// Bytes to ask of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number under which the caller reports about it.
    pub id: RequestId,
    /// Whom to ask.
    pub neighbour: NeighbourId,
    /// The piece.
    pub piece: PieceNumber,
    /// First byte, counted within the piece. 0 for a [`NeighbourKind::V2`] neighbour.
    pub offset: u64,
    /// Bytes from there: to the end of one segment, or the whole piece of a v2 neighbour.
    pub length: u64,
}

/// Why a neighbour is a bad parent for this task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Connected, but nothing came from it while it owed us bytes.
    Frozen,
    /// Much slower than the others.
    Slow,
    /// It alone sent a piece whose digest was wrong, or it broke the protocol; it is not asked again.
    BadData,
}

/// Something the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickerAction {
    /// Send this request.
    Request(Request),
    /// Stop this request; the picker has forgotten it, nothing about it needs to be reported. It may
    /// have ended meanwhile.
    Cancel {
        /// The request.
        request: RequestId,
    },
    /// Answer a grant: nothing is wanted there now.
    Decline {
        /// Who granted.
        neighbour: NeighbourId,
    },
    /// Tell the scheduler, or replace the neighbour.
    Suspect {
        /// Who.
        neighbour: NeighbourId,
        /// Why.
        why: Suspicion,
    },
    /// Nothing useful is in flight and no neighbour that answers has what is wanted. Repeated once a
    /// second while it lasts.
    Starved {
        /// Since when.
        since: Duration,
    },
    /// Every wanted piece is held.
    Complete,
}

/// How a [`Picker`](super::Picker) behaves; the defaults are the figures of the study that it follows.
#[derive(Clone, Debug)]
pub struct PickerOptions {
    /// Segments asked for at once over all mesh neighbours. Far fewer or more than the parents' slots costs a quarter.
    pub in_flight: usize,
    /// Whole pieces asked at once of all v2 neighbours when there are one or two of them; else two each.
    pub v2_in_flight: usize,
    /// Rarest first within so many segments from the first gap, or from the reader.
    pub window: u32,
    /// Exactly in order for so many segments in front of a reader.
    pub in_order: u32,
    /// A request without a byte for so long is asked elsewhere.
    pub stall: Duration,
    /// A parent that refused us and grants nothing for so long is asked again.
    pub line_patience: Duration,
    /// A second parent is asked for a slow segment only while the downlink runs under this share of its best.
    pub hedge_below: f64,
}

impl Default for PickerOptions {
    fn default() -> Self {
        Self {
            in_flight: 6,
            v2_in_flight: 8,
            window: 24,
            in_order: 4,
            stall: Duration::from_secs(1),
            line_patience: Duration::from_secs(2),
            hedge_below: 0.7,
        }
    }
}
