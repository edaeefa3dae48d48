//! What to fetch, and the checks that it is what came.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use protocol::vortex::{PieceRequest, Reply, Request, SegmentRequest};
use protocol::{PieceNumber, PieceSpan, TaskId, TaskKind};

use super::FetchError;
use crate::ContentHead;

/// One fetch: what, from whom, and how long it may take.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The parent's piece port.
    pub parent: SocketAddr,
    /// The piece or segment.
    pub wanted: Wanted,
    /// How long it may take.
    pub limits: Limits,
}

/// A piece or a part of one.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A whole piece, as every Dragonfly v2 parent serves it. The task id must have 64 characters.
    Piece {
        /// Kind of the task.
        kind: TaskKind,
        /// The task.
        task_id: TaskId,
        /// The piece, with the offset and length that our own geometry gives it: a parent that answers with others is
        /// refused.
        span: PieceSpan,
    },
    /// A part of a piece, served by our own parents only.
    Segment {
        /// The token that the parent gave on the link.
        link_token: u64,
        /// The task.
        task_id: TaskId,
        /// The piece.
        piece: PieceNumber,
        /// First byte, counted within the piece.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

impl Wanted {
    /// How many bytes are wanted.
    pub fn length(&self) -> u64 {
        match self {
            Self::Piece { span, .. } => span.length,
            Self::Segment { length, .. } => *length,
        }
    }

    pub(super) fn to_request(&self) -> Request {
        match self.clone() {
            Self::Piece {
                kind,
                task_id,
                span,
            } => Request::Piece(PieceRequest {
                kind,
                task_id,
                piece: span.number,
            }),
            Self::Segment {
                link_token,
                task_id,
                piece,
                offset,
                length,
            } => Request::Segment(SegmentRequest {
                link_token,
                task_id,
                piece,
                offset,
                length,
            }),
        }
    }

    /// The head of the content, if the reply is one and about exactly what was asked for.
    pub(super) fn accept(&self, reply: Reply) -> Result<ContentHead, FetchError> {
        match (self, reply) {
            (_, Reply::Error(error)) => Err(FetchError::Refused(error)),
            (Self::Piece { kind, span, .. }, Reply::Piece(got_kind, head))
                if got_kind == *kind
                    && (head.piece, head.offset, head.length)
                        == (span.number, span.offset, span.length) =>
            {
                Ok(ContentHead::Piece(head))
            }
            (
                Self::Segment {
                    piece,
                    offset,
                    length,
                    ..
                },
                Reply::Segment(head),
            ) if (head.piece, head.offset, head.length) == (*piece, *offset, *length) => {
                Ok(ContentHead::Segment(head))
            }
            (_, reply) => Err(FetchError::WrongContent {
                wanted: self.to_string(),
                got: describe(&reply),
            }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Piece { kind, span, .. } => {
                write!(
                    f,
                    "{kind:?} piece {} at {} with {} bytes",
                    span.number, span.offset, span.length
                )
            }
            Self::Segment {
                piece,
                offset,
                length,
                ..
            } => {
                write!(f, "{length} bytes of piece {piece} from {offset} on")
            }
        }
    }
}

fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Piece(kind, head) => {
            format!(
                "{kind:?} piece {} at {} with {} bytes",
                head.piece, head.offset, head.length
            )
        }
        Reply::Segment(head) => format!(
            "{} bytes of piece {} from {} on",
            head.length, head.piece, head.offset
        ),
        Reply::Error(error) => error.code.to_string(),
    }
}

/// How long a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From asking to the head of the reply, without connecting. A v2 parent may be silent while the piece arrives at it
    /// or its bandwidth is used up. Default 360 s, the reference's `download.pieceTimeout`.
    pub head: Duration,
    /// Longest silence between two bytes of the content. Default 10 s.
    pub stall: Duration,
    /// From the head to the last byte. Default 360 s, the reference's `storage.writePieceTimeout`.
    pub content: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(360),
            stall: Duration::from_secs(10),
            content: Duration::from_secs(360),
        }
    }
}
