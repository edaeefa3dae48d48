//! The packets of the piece port: Vortex, and the two tags that our own peers add to it.
//!
//! A packet is a [`Header`] of six bytes (a random id, a tag, the length of the value) and the value. A child sends a
//! [`Request`], the parent answers with a [`Reply`]; the content follows a content reply as raw bytes outside of the
//! packet. All integers are big-endian.
//!
//! The published crate `vortex-protocol` has the same codec without limits: whoever believes a header allocates up to
//! 4 GiB. Here every length is bounded before anything is read: read [`HEADER_LEN`] bytes, ask [`Header::request_len`] or
//! [`Header::reply_len`] how many bytes the value may have, and only then read and decode it. The tests hold this codec
//! against the published one.
//!
//! Our addition is used only between two peers that told each other so beforehand: to others the tags 128 and 129 are
//! reserved, and they close the connection on them.
//!
//! ```
//! use protocol::vortex::{HEADER_LEN, Header, PieceRequest, Request};
//! use protocol::{PieceNumber, TaskKind};
//!
//! let request = PieceRequest { kind: TaskKind::Standard, task_id: "a".repeat(64).parse()?, piece: PieceNumber(3) };
//! let packet = Request::Piece(request.clone()).to_packet(0x12)?;
//! assert_eq!(packet.len(), 74);
//!
//! let (header, value) = packet.split_first_chunk::<HEADER_LEN>().ok_or("short")?;
//! let header = Header::from_bytes(*header);
//! assert_eq!(header.request_len()?, value.len());
//! assert_eq!(Request::decode(header.tag, value)?, Request::Piece(request));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod reply;
mod request;
mod take;

pub use reply::{ErrorCode, ErrorReply, PieceHead, Reply, SegmentHead};
pub use request::{PieceRequest, Request, SegmentRequest};

use crate::TaskKind;

/// Bytes of a packet in front of its value.
pub const HEADER_LEN: usize = 6;
/// Bytes of the task id in a piece request; ids of other lengths cannot be asked for with it.
pub const PIECE_REQUEST_TASK_ID_LEN: usize = 64;
/// Bytes of the value of a piece request, exactly.
pub const PIECE_REQUEST_LEN: usize = PIECE_REQUEST_TASK_ID_LEN + 4;
/// Most bytes of the value of a segment request.
pub const SEGMENT_REQUEST_LEN_MAX: usize = 256;
/// Bytes of the value of a segment head, exactly.
pub const SEGMENT_HEAD_LEN: usize = 20;
/// Most bytes of the metadata in a content reply, without the length in front of it.
pub const METADATA_LEN_MAX: usize = 64 << 10;
/// Most bytes of the value of an error reply.
pub const ERROR_LEN_MAX: usize = 64 << 10;
/// Most bytes of a digest text in a content reply.
pub const DIGEST_LEN_MAX: usize = 256;
/// Most bytes of the parent id in a content reply.
pub const PARENT_ID_LEN_MAX: usize = 4 << 10;

/// What a packet carries, from its second byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// 0, 2, 4, 6: asks for a whole piece of a task of this kind (no reference parent serves 6).
    DownloadPiece(TaskKind),
    /// 1, 3, 5, 7: head of a piece, content follows.
    PieceContent(TaskKind),
    /// 128, ours: asks for a part of a piece.
    DownloadSegment,
    /// 129, ours: head of a part of a piece, content follows.
    SegmentContent,
    /// 254: defined, sent by nobody.
    Close,
    /// 255: the request is answered with an error.
    Error,
    /// Any other number.
    Reserved(u8),
}

impl Tag {
    /// The tag with this number.
    pub fn from_number(number: u8) -> Self {
        match (TaskKind::from_number(number / 2), number) {
            (Some(kind), _) if number.is_multiple_of(2) => Self::DownloadPiece(kind),
            (Some(kind), _) => Self::PieceContent(kind),
            (None, 128) => Self::DownloadSegment,
            (None, 129) => Self::SegmentContent,
            (None, 254) => Self::Close,
            (None, 255) => Self::Error,
            (None, number) => Self::Reserved(number),
        }
    }

    /// The number that stands on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::DownloadPiece(kind) => kind.number() * 2,
            Self::PieceContent(kind) => kind.number() * 2 + 1,
            Self::DownloadSegment => 128,
            Self::SegmentContent => 129,
            Self::Close => 254,
            Self::Error => 255,
            Self::Reserved(number) => number,
        }
    }
}

/// The first six bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// A fresh random byte of the sender; never echoed or checked.
    pub packet_id: u8,
    /// What the packet carries.
    pub tag: Tag,
    /// The announced length of the value, in bytes. **Not yet checked** against anything.
    pub value_len: u32,
}

impl Header {
    /// Reads a header. Every combination of bytes is one.
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let [packet_id, tag, a, b, c, d] = bytes;
        Self {
            packet_id,
            tag: Tag::from_number(tag),
            value_len: u32::from_be_bytes([a, b, c, d]),
        }
    }

    /// The header as it stands on the wire.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.value_len.to_be_bytes();
        [self.packet_id, self.tag.number(), a, b, c, d]
    }

    /// How many bytes the value of this request has: safe to allocate, at most [`SEGMENT_REQUEST_LEN_MAX`].
    ///
    /// # Errors
    /// [`DecodeError`] when no request has this tag or this length. The connection must then be closed without an answer.
    pub fn request_len(self) -> Result<usize, DecodeError> {
        match self.tag {
            Tag::DownloadPiece(_) => self.len_within(PIECE_REQUEST_LEN, PIECE_REQUEST_LEN),
            Tag::DownloadSegment => self.len_within(0, SEGMENT_REQUEST_LEN_MAX),
            tag => Err(DecodeError::NoRequest { tag: tag.number() }),
        }
    }

    /// How many bytes the value of this reply has: safe to allocate, at most 64 KiB and four.
    ///
    /// # Errors
    /// [`DecodeError`] when no reply has this tag or this length. The connection must then be closed.
    pub fn reply_len(self) -> Result<usize, DecodeError> {
        match self.tag {
            Tag::PieceContent(_) => self.len_within(0, METADATA_LEN_MAX + 4),
            Tag::SegmentContent => self.len_within(SEGMENT_HEAD_LEN, SEGMENT_HEAD_LEN),
            Tag::Error => self.len_within(1, ERROR_LEN_MAX),
            tag => Err(DecodeError::NoReply { tag: tag.number() }),
        }
    }

    fn len_within(self, min: usize, max: usize) -> Result<usize, DecodeError> {
        let refused = DecodeError::Length {
            tag: self.tag.number(),
            len: self.value_len,
        };
        let len = usize::try_from(self.value_len).map_err(|_| refused.clone())?;
        if (min..=max).contains(&len) {
            Ok(len)
        } else {
            Err(refused)
        }
    }
}

/// Writes header and value of a packet; the value must be shorter than the limits above, so its length fits.
fn packet(packet_id: u8, tag: Tag, value: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = Vec::with_capacity(256);
    packet.extend(
        Header {
            packet_id,
            tag,
            value_len: 0,
        }
        .to_bytes(),
    );
    value(&mut packet);
    let value_len = u32::try_from(packet.len() - HEADER_LEN).expect("values are bounded to 64 KiB");
    packet[2..HEADER_LEN].copy_from_slice(&value_len.to_be_bytes());
    packet
}

/// Why bytes of the other side are no packet we take. The connection cannot be used any further, except after
/// [`DecodeError::TaskId`], where the packet is well-formed and names a task that cannot exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The tag is none of a request.
    #[error("tag {tag} is no request")]
    NoRequest {
        /// Number of the tag.
        tag: u8,
    },
    /// The tag is none of a reply.
    #[error("tag {tag} is no reply")]
    NoReply {
        /// Number of the tag.
        tag: u8,
    },
    /// The announced length is impossible or above our limit for this tag.
    #[error("a packet with tag {tag} announces a value of {len} bytes")]
    Length {
        /// Number of the tag.
        tag: u8,
        /// Length announced, in bytes.
        len: u32,
    },
    /// The value ends before the field does.
    #[error("the value ends within {field}")]
    Short {
        /// The field that is cut off.
        field: &'static str,
    },
    /// Bytes are left over behind the last field, where none may be.
    #[error("bytes are left over behind the last field")]
    Excess,
    /// A field within the value is longer than our limit.
    #[error("{field} has {len} bytes, more than any real one")]
    FieldLength {
        /// The field.
        field: &'static str,
        /// Length announced, in bytes.
        len: u64,
    },
    /// A text field is no UTF-8.
    #[error("{field} is no UTF-8")]
    Utf8 {
        /// The field.
        field: &'static str,
    },
    /// The text of a task id is none that a task can have: answer that there is no such piece.
    #[error("no task can have the id asked for: {0}")]
    TaskId(#[from] crate::IdError),
}

/// Why a packet cannot be sent. A caller's mistake: nothing from the network leads here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Vortex has room for task ids of 64 characters only.
    #[error(
        "a piece request carries task ids of 64 characters, not {len}: ask one of our own peers or the origin"
    )]
    TaskIdLength {
        /// Length of the id, in bytes.
        len: usize,
    },
    /// A text that the other side would refuse.
    #[error("{field} has {len} bytes, more than the other side takes")]
    FieldLength {
        /// The field.
        field: &'static str,
        /// Its length, in bytes.
        len: usize,
    },
}

#[cfg(test)]
mod tests;
