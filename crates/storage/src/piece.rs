//! A view of one piece for reading.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use protocol::{Crc32, PieceNumber, PieceSpan};

use crate::arrival::{End, SharedArrival};
use crate::error::ReadError;
use crate::task::Task;

/// One piece that is whole or arriving, and the file that its bytes are in. Holding it keeps the task from being
/// evicted. It stays with the arrival that it was made for: if that is given up, the view says so, even when the piece
/// is fetched anew.
#[derive(Debug, Clone)]
pub struct PieceView {
    task: Task,
    span: PieceSpan,
    bytes: Bytes,
}

#[derive(Debug, Clone)]
enum Bytes {
    Whole(Crc32),
    Arriving(SharedArrival),
}

impl PieceView {
    pub(crate) fn whole(task: Task, span: PieceSpan, crc32: Crc32) -> Self {
        Self {
            task,
            span,
            bytes: Bytes::Whole(crc32),
        }
    }

    pub(crate) fn arriving(task: Task, span: PieceSpan, arrival: SharedArrival) -> Self {
        Self {
            task,
            span,
            bytes: Bytes::Arriving(arrival),
        }
    }

    /// Which piece it is.
    pub fn number(&self) -> PieceNumber {
        self.span.number
    }

    /// The piece's length in bytes.
    pub fn length(&self) -> u64 {
        self.span.length
    }

    /// Where the piece begins in the content, and in [`PieceView::file`].
    pub fn offset(&self) -> u64 {
        self.span.offset
    }

    /// The task that the piece belongs to.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The content file, for `sendfile`. Its bytes from `offset() + n` on are the piece's for as many as
    /// [`PieceView::ready`]`(n)` says.
    pub fn file(&self) -> Arc<File> {
        self.task.content_file()
    }

    /// The digest, once the piece is whole.
    pub fn crc32(&self) -> Option<Crc32> {
        match &self.bytes {
            Bytes::Whole(crc32) => Some(*crc32),
            Bytes::Arriving(arrival) if arrival.end() == End::Committed => arrival.digest(),
            Bytes::Arriving(_) => None,
        }
    }

    /// How many bytes can be read from `offset` of the piece on, without a gap. 0 when none has arrived yet.
    ///
    /// # Errors
    /// [`ReadError::Abandoned`] when the piece was given up, whatever had arrived.
    pub fn ready(&self, offset: u64) -> Result<u64, ReadError> {
        self.in_bounds(offset)?;
        match &self.bytes {
            Bytes::Whole(_) => Ok(self.span.length - offset),
            Bytes::Arriving(arrival) if arrival.end() == End::Abandoned => {
                Err(ReadError::Abandoned {
                    piece: self.span.number,
                })
            }
            Bytes::Arriving(arrival) => Ok(arrival.available(offset)),
        }
    }

    /// As [`PieceView::ready`], but waits until there is a byte at `offset`; at the very end of the piece it returns 0 at once. Has no limit of its
    /// own: the caller sets one. Cancel-safe: dropping it leaves nothing behind.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn wait(&self, offset: u64) -> Result<u64, ReadError> {
        let ready = self.ready(offset)?;
        match &self.bytes {
            Bytes::Arriving(arrival) if ready == 0 && offset < self.span.length => {
                arrival.wait(offset).await
            }
            _ => Ok(ready),
        }
    }

    /// Reads bytes that are ready, up to the buffer's length, from `offset` of the piece on. 0 when none is ready. Blocks
    /// for the disk when the bytes are not in the page cache.
    ///
    /// # Errors
    /// What the disk says, or [`ReadError`] as its source.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.ready(offset).map_err(io::Error::other)?;
        let wanted = usize::try_from(ready)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.task
            .live()
            .content
            .read_at(&mut buffer[..wanted], self.span.offset + offset)
    }

    fn in_bounds(&self, offset: u64) -> Result<(), ReadError> {
        let (piece, length) = (self.span.number, self.span.length);
        if offset > length {
            Err(ReadError::OutOfBounds {
                piece,
                offset,
                length,
            })
        } else {
            Ok(())
        }
    }
}
