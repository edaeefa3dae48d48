//! What a parent sends: a head, and bytes of a file that are there already or still arriving.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use protocol::vortex::{PieceHead, SegmentHead};

/// What stands before the bytes: of a whole piece, or of a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentHead {
    /// Answers a request for a whole piece.
    Piece(PieceHead),
    /// Answers a request for a segment.
    Segment(SegmentHead),
}

impl ContentHead {
    /// How many bytes follow.
    pub fn length(&self) -> u64 {
        match self {
            Self::Piece(head) => head.length,
            Self::Segment(head) => head.length,
        }
    }

    /// The text of the piece's digest; empty when the parent knows none, and always for a segment (there the digest
    /// travels over the link).
    pub fn digest(&self) -> &str {
        match self {
            Self::Piece(head) => &head.digest,
            Self::Segment(_) => "",
        }
    }
}

/// An answer to a request: `head.length()` bytes of `file`, from `file_offset` on.
pub struct Content {
    /// The head, sent before the bytes. Its variant must fit the request.
    pub head: ContentHead,
    /// Where the bytes are. Sent with `sendfile`, so it must be a file with a page cache.
    pub file: Arc<File>,
    /// Offset of the first byte in the file.
    pub file_offset: u64,
    /// Whether the bytes are there.
    pub arrival: Arrival,
    /// Lives as long as the sending: an upload slot, a pin on the task. Dropped when everything has been handed to the
    /// kernel or the sending has failed.
    pub upload: Box<dyn Upload>,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = matches!(self.arrival, Arrival::Whole);
        f.debug_struct("Content")
            .field("head", &self.head)
            .field("file_offset", &self.file_offset)
            .field("whole", &whole)
            .finish_non_exhaustive()
    }
}

/// Whether all bytes of a content can be read now.
pub enum Arrival {
    /// All of them.
    Whole,
    /// Some; this tells about the others.
    Arriving(Box<dyn Arriving>),
}

/// Tells how far a content that is still being received can be read.
pub trait Arriving: Send + Sync {
    /// Waits until more than `have` bytes of the content (counted from its own start, not from the piece's) can be read,
    /// and returns how many; returns at once when they already can.
    ///
    /// Cancel-safe: the server drops the future when the child is gone or waits too long.
    ///
    /// # Errors
    /// [`ArrivalFailed`] when no more bytes will come. The connection is then closed before the last byte, which tells
    /// the child to resume elsewhere.
    fn more(
        &mut self,
        have: u64,
    ) -> Pin<Box<dyn Future<Output = Result<u64, ArrivalFailed>> + Send + '_>>;
}

/// The rest of the bytes will not come: our own parent failed, or the piece was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rest of the content will not come: its own download failed")]
pub struct ArrivalFailed;

/// Is told how a sending goes. `()` does not care.
pub trait Upload: Send + Sync {
    /// Another `bytes` bytes were handed to the kernel. Called on the reactor, so it must not block.
    fn sent(&mut self, bytes: u64) {
        let _ = bytes;
    }
}

impl Upload for () {}
