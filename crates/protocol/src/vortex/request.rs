//! What a child asks a parent for.

use super::take::Take;
use super::{DecodeError, EncodeError, PIECE_REQUEST_TASK_ID_LEN, Tag, packet};
use crate::{PieceNumber, TaskId, TaskKind};

/// Any request that we serve or send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A whole piece, as every Dragonfly v2 peer asks.
    Piece(PieceRequest),
    /// A part of a piece, between two of ours.
    Segment(SegmentRequest),
}

/// Asks for a whole piece (tags 0, 2, 4 and 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRequest {
    /// Kind of the task.
    pub kind: TaskKind,
    /// The task; on the wire it has exactly 64 bytes.
    pub task_id: TaskId,
    /// The piece.
    pub piece: PieceNumber,
}

/// Asks for a part of a piece (tag 128), which the parent may still be receiving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRequest {
    /// The token that the parent gave in its greeting on the link: says which child asks.
    pub link_token: u64,
    /// The task.
    pub task_id: TaskId,
    /// The piece.
    pub piece: PieceNumber,
    /// First byte wanted, counted within the piece.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Request {
    /// The task asked for.
    pub fn task_id(&self) -> &TaskId {
        match self {
            Self::Piece(request) => &request.task_id,
            Self::Segment(request) => &request.task_id,
        }
    }

    /// The piece asked for, or of which a part is asked for.
    pub fn piece(&self) -> PieceNumber {
        match self {
            Self::Piece(request) => request.piece,
            Self::Segment(request) => request.piece,
        }
    }

    /// The whole packet. `packet_id` should be a random byte.
    ///
    /// # Errors
    /// [`EncodeError::TaskIdLength`] when a whole piece is asked for and the task id has not 64 characters.
    pub fn to_packet(&self, packet_id: u8) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Piece(request) => {
                let task_id = request.task_id.as_str();
                if task_id.len() != PIECE_REQUEST_TASK_ID_LEN {
                    return Err(EncodeError::TaskIdLength { len: task_id.len() });
                }
                Ok(packet(
                    packet_id,
                    Tag::DownloadPiece(request.kind),
                    |value| {
                        value.extend(task_id.bytes());
                        value.extend(request.piece.0.to_be_bytes());
                    },
                ))
            }
            Self::Segment(request) => Ok(packet(packet_id, Tag::DownloadSegment, |value| {
                let task_id = request.task_id.as_str();
                let len = u16::try_from(task_id.len()).expect("task ids have at most 128 bytes");
                value.extend(request.link_token.to_be_bytes());
                value.extend(len.to_be_bytes());
                value.extend(task_id.bytes());
                value.extend(request.piece.0.to_be_bytes());
                value.extend(request.offset.to_be_bytes());
                value.extend(request.length.to_be_bytes());
            })),
        }
    }

    /// Reads the value of a packet with this tag.
    ///
    /// # Errors
    /// [`DecodeError`]: it is no request, malformed, or names a task that cannot exist.
    pub fn decode(tag: Tag, value: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Take(value);
        match tag {
            Tag::DownloadPiece(kind) => {
                let task_id = rest.text(
                    "the task id",
                    PIECE_REQUEST_TASK_ID_LEN as u64,
                    PIECE_REQUEST_TASK_ID_LEN,
                )?;
                let piece = PieceNumber(rest.u32("the piece number")?);
                rest.end()?;
                Ok(Self::Piece(PieceRequest {
                    kind,
                    task_id: task_id.parse()?,
                    piece,
                }))
            }
            Tag::DownloadSegment => {
                let link_token = rest.u64("the link token")?;
                let len = u16::from_be_bytes(rest.array("the length of the task id")?);
                let task_id = rest.text("the task id", u64::from(len), TaskId::LEN_MAX)?;
                let piece = PieceNumber(rest.u32("the piece number")?);
                let offset = rest.u64("the offset")?;
                let length = rest.u64("the length")?;
                rest.end()?;
                Ok(Self::Segment(SegmentRequest {
                    link_token,
                    task_id: task_id.parse()?,
                    piece,
                    offset,
                    length,
                }))
            }
            tag => Err(DecodeError::NoRequest { tag: tag.number() }),
        }
    }
}
