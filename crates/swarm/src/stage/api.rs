//! What goes into a [`Stage`](super::Stage) and what comes out.

use protocol::{Bitmap, PieceNumber, SegmentIndex};

use crate::{ChildId, Shown};

/// How a child takes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// One of ours: segments, can be refused.
    Mesh,
    /// A Dragonfly v2 child: whole pieces that are held, never refused.
    V2,
}

/// Something that happened on the seed; hand it to [`Stage::handle`](super::Stage::handle).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageEvent {
    /// A child can be shown segments or pieces.
    Joined {
        /// Who.
        child: ChildId,
        /// What it can be shown.
        kind: ChildKind,
    },
    /// The child is gone.
    Left {
        /// Who.
        child: ChildId,
    },
    /// The seed will have these pieces (too).
    WantMore {
        /// One bit per piece of the task.
        pieces: Bitmap,
    },
    /// The first bytes of a segment are here.
    Arriving {
        /// The segment.
        segment: SegmentIndex,
    },
    /// A piece is whole here and its digest is known.
    PieceHeld {
        /// The piece.
        piece: PieceNumber,
    },
    /// The seed lost a piece (digest mismatch, damage on disk).
    PieceDropped {
        /// The piece.
        piece: PieceNumber,
    },
    /// A child announced what it has itself.
    ChildShows {
        /// Who.
        child: ChildId,
        /// What.
        what: Shown,
    },
    /// We serve this child these bytes now (or it stands in our queue with them).
    Asked {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within the piece.
        offset: u64,
    },
    /// The bytes have been sent to their end.
    Served {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within the piece, as it was asked.
        offset: u64,
    },
}

/// Something to send to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageAction {
    /// Announce this segment of a piece to a mesh child (as arriving, or as held when the piece is).
    ShowSegment {
        /// Who.
        child: ChildId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Announce this held piece to a v2 child.
    ShowPiece {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
    },
    /// The stage is over for mesh children: from now on everything is announced to each of them, as a
    /// plain host does. V2 children still see only what [`StageAction::ShowPiece`] says.
    Open,
}
