//! What a parent answers.

use std::fmt;

use super::take::Take;
use super::{
    DIGEST_LEN_MAX, DecodeError, ERROR_LEN_MAX, EncodeError, PARENT_ID_LEN_MAX, Tag, packet,
};
use crate::{PieceNumber, TaskKind};

/// Any reply that we send or understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The head of a piece; its bytes follow.
    Piece(TaskKind, PieceHead),
    /// The head of a part of a piece; its bytes follow.
    Segment(SegmentHead),
    /// There will be no bytes.
    Error(ErrorReply),
}

/// What stands before the bytes of a piece (tags 1, 3, 5 and 7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PieceHead {
    /// The piece that follows.
    pub piece: PieceNumber,
    /// Offset of the piece in the task, in bytes.
    pub offset: u64,
    /// How many bytes follow.
    pub length: u64,
    /// The digest as text, `crc32:<decimal>`; empty when the sender knows none (imported pieces).
    pub digest: String,
    /// The peer that the sender has the piece from; empty when it came from the origin.
    pub parent_id: String,
    /// `common.v2.TrafficType`; senders always say 1 (remote peer), so the number is kept as it is.
    pub traffic_type: u8,
    /// Whole seconds that the sender needed to obtain the piece.
    pub cost_seconds: u64,
    /// When the sender began to obtain the piece, in seconds since 1970 (UTC).
    pub created_at: i64,
}

/// What stands before the bytes of a part of a piece (tag 129).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// The piece.
    pub piece: PieceNumber,
    /// First byte that follows, counted within the piece.
    pub offset: u64,
    /// How many bytes follow.
    pub length: u64,
}

/// Why there are no bytes (tag 255).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// What kind of error.
    pub code: ErrorCode,
    /// For people and logs; nothing may depend on it.
    pub message: String,
}

/// The kinds of error in an [`ErrorReply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 0.
    Unknown,
    /// 1.
    InvalidArgument,
    /// 2: the parent has no such piece.
    NotFound,
    /// 3: the parent could not read the piece or did not get it itself.
    Internal,
    /// 64, ours: no upload slot is free; the child stands in line and is granted one over the link.
    Refused,
    /// 65, ours: the parent does not hold more bytes of the piece than the offset asked for.
    NotAhead,
    /// Any other number.
    Reserved(u8),
}

impl ErrorCode {
    /// The code with this number.
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::InvalidArgument,
            2 => Self::NotFound,
            3 => Self::Internal,
            64 => Self::Refused,
            65 => Self::NotAhead,
            number => Self::Reserved(number),
        }
    }

    /// The number that stands on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::InvalidArgument => 1,
            Self::NotFound => 2,
            Self::Internal => 3,
            Self::Refused => 64,
            Self::NotAhead => 65,
            Self::Reserved(number) => number,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown error"),
            Self::InvalidArgument => f.write_str("invalid argument"),
            Self::NotFound => f.write_str("not found"),
            Self::Internal => f.write_str("internal error"),
            Self::Refused => f.write_str("refused"),
            Self::NotAhead => f.write_str("not ahead"),
            Self::Reserved(number) => write!(f, "error {number}"),
        }
    }
}

impl Reply {
    /// The whole packet. `packet_id` should be a random byte. A message that is too long is cut.
    ///
    /// # Errors
    /// [`EncodeError::FieldLength`] when digest or parent id are longer than a receiver of ours takes.
    pub fn to_packet(&self, packet_id: u8) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Piece(kind, head) => head.to_packet(packet_id, *kind),
            Self::Segment(head) => Ok(packet(packet_id, Tag::SegmentContent, |value| {
                value.extend(head.piece.0.to_be_bytes());
                value.extend(head.offset.to_be_bytes());
                value.extend(head.length.to_be_bytes());
            })),
            Self::Error(error) => Ok(packet(packet_id, Tag::Error, |value| {
                value.push(error.code.number());
                let end = error.message.floor_char_boundary(ERROR_LEN_MAX - 1);
                value.extend(error.message[..end].bytes());
            })),
        }
    }

    /// Reads the value of a packet with this tag.
    ///
    /// # Errors
    /// [`DecodeError`]: it is no reply or malformed.
    pub fn decode(tag: Tag, value: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Take(value);
        match tag {
            Tag::PieceContent(kind) => Ok(Self::Piece(kind, PieceHead::decode(value)?)),
            Tag::SegmentContent => {
                let piece = PieceNumber(rest.u32("the piece number")?);
                let head = SegmentHead {
                    piece,
                    offset: rest.u64("the offset")?,
                    length: rest.u64("the length")?,
                };
                rest.end()?;
                Ok(Self::Segment(head))
            }
            Tag::Error => {
                let [code] = rest.array("the error code")?;
                // The text serves people only, so broken UTF-8 in it does not hide the code.
                let message = String::from_utf8_lossy(rest.0).into_owned();
                Ok(Self::Error(ErrorReply {
                    code: ErrorCode::from_number(code),
                    message,
                }))
            }
            tag => Err(DecodeError::NoReply { tag: tag.number() }),
        }
    }
}

impl PieceHead {
    fn to_packet(&self, packet_id: u8, kind: TaskKind) -> Result<Vec<u8>, EncodeError> {
        let digest_len = bounded("the digest", &self.digest, DIGEST_LEN_MAX)?;
        let parent_id_len = bounded("the parent id", &self.parent_id, PARENT_ID_LEN_MAX)?;
        let metadata_len = 4 + 8 + 8 + 4 + digest_len + 4 + parent_id_len + 1 + 8 + 8;
        Ok(packet(packet_id, Tag::PieceContent(kind), |value| {
            value.extend(metadata_len.to_be_bytes());
            value.extend(self.piece.0.to_be_bytes());
            value.extend(self.offset.to_be_bytes());
            value.extend(self.length.to_be_bytes());
            value.extend(digest_len.to_be_bytes());
            value.extend(self.digest.bytes());
            value.extend(parent_id_len.to_be_bytes());
            value.extend(self.parent_id.bytes());
            value.push(self.traffic_type);
            value.extend(self.cost_seconds.to_be_bytes());
            value.extend(self.created_at.to_be_bytes());
        }))
    }

    /// The metadata must fill the value: what stands between them would be content to a reference child. Bytes behind the
    /// last field within the metadata are ignored, there newer peers may add fields.
    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Take(value);
        let metadata_len = rest.u32("the metadata length")?;
        if usize::try_from(metadata_len) != Ok(rest.0.len()) {
            return Err(DecodeError::FieldLength {
                field: "the metadata",
                len: metadata_len.into(),
            });
        }
        let piece = PieceNumber(rest.u32("the piece number")?);
        let offset = rest.u64("the offset")?;
        let length = rest.u64("the length")?;
        let digest_len = rest.u32("the length of the digest")?;
        let digest = rest
            .text("the digest", digest_len.into(), DIGEST_LEN_MAX)?
            .to_owned();
        let parent_id_len = rest.u32("the length of the parent id")?;
        let parent_id = rest
            .text("the parent id", parent_id_len.into(), PARENT_ID_LEN_MAX)?
            .to_owned();
        let [traffic_type] = rest.array("the traffic type")?;
        let cost_seconds = rest.u64("the cost")?;
        let created_at = i64::from_be_bytes(rest.array("the creation time")?);
        Ok(Self {
            piece,
            offset,
            length,
            digest,
            parent_id,
            traffic_type,
            cost_seconds,
            created_at,
        })
    }
}

fn bounded(field: &'static str, text: &str, max: usize) -> Result<u32, EncodeError> {
    let too_long = EncodeError::FieldLength {
        field,
        len: text.len(),
    };
    if text.len() > max {
        return Err(too_long);
    }
    u32::try_from(text.len()).map_err(|_| too_long)
}
