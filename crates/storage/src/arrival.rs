//! A piece while it arrives.
//!
//! The piece is cut into segments. Each segment grows from its front; different segments grow at the same time, each
//! under a lock of its own, which is held for one positional write and the checksum of the bytes just written, while they are in the processor's cache.
//! How far a segment got is published after the write, so whoever sees the number can read the bytes from the
//! file. Two sources may send the same segment: the bytes that came first stay, the others are passed over.
//!
//! When a piece ends, by commit or not, every segment is closed under its lock. From then on no late writer can touch the bytes,
//! even if the piece is being fetched anew at the same place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use protocol::{Crc32, Crc32Hasher, PieceNumber, PieceSpan};
use tokio::sync::Notify;

use crate::error::{DiskContext, ReadError, WriteError};

/// Most bytes between two publications: a relay passes them on, and they stay in the cache between the write and the
/// checksum.
const STRIDE: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Arrival {
    span: PieceSpan,
    segment_length: u64,
    segments: Box<[Segment]>,
    end: AtomicU8,
    grown: Notify,
    /// Shared by all arriving pieces of a task: who may write to its file now.
    turn: Arc<Mutex<()>>,
}

/// Invariant: `received` bytes from the segment's start are in the file, and the hasher has seen exactly these.
#[derive(Debug)]
struct Segment {
    /// Written only under the lock of `tail`.
    received: AtomicU64,
    tail: Mutex<Tail>,
}

#[derive(Debug, Default)]
struct Tail {
    hasher: Crc32Hasher,
    closed: bool,
}

/// How a piece ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum End {
    Open = 0,
    Committed = 1,
    Abandoned = 2,
}

impl Arrival {
    pub(crate) fn new(span: PieceSpan, segment_length: u64, turn: Arc<Mutex<()>>) -> Self {
        let count = span.length.div_ceil(segment_length);
        let segments = (0..count)
            .map(|_| Segment {
                received: AtomicU64::new(0),
                tail: Mutex::default(),
            })
            .collect();
        let end = AtomicU8::new(End::Open as u8);
        Self {
            span,
            segment_length,
            segments,
            end,
            grown: Notify::new(),
            turn,
        }
    }

    pub(crate) fn number(&self) -> PieceNumber {
        self.span.number
    }

    pub(crate) fn span(&self) -> PieceSpan {
        self.span
    }

    pub(crate) fn end(&self) -> End {
        match self.end.load(Ordering::Acquire) {
            0 => End::Open,
            1 => End::Committed,
            _ => End::Abandoned,
        }
    }

    /// Takes the bytes that start at `offset` of the piece. Returns how many of them were new.
    pub(crate) fn write(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        data: &[u8],
    ) -> Result<u64, WriteError> {
        let piece = self.span.number;
        let length = self.span.length;
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > length)
        {
            return Err(WriteError::OutOfBounds {
                piece,
                offset,
                len: data.len(),
                length,
            });
        }
        let (mut offset, mut data, mut accepted) = (offset, data, 0);
        while !data.is_empty() {
            let (start, segment_len) = self.segment_bounds(offset);
            let room = usize::try_from(start + segment_len - offset).unwrap_or(usize::MAX);
            let (part, rest) = data.split_at(room.min(data.len()));
            accepted += self.write_to_segment(file, path, start, offset, part)?;
            offset += part.len() as u64;
            data = rest;
        }
        Ok(accepted)
    }

    /// Bytes that can be read from `offset` of the piece on, without a gap.
    pub(crate) fn available(&self, offset: u64) -> u64 {
        let mut reached = offset;
        while reached < self.span.length {
            let (start, segment_len) = self.segment_bounds(reached);
            let received = start + self.received_of(start);
            reached = reached.max(received);
            if received < start + segment_len {
                break;
            }
        }
        reached - offset
    }

    /// Bytes received so far in all segments.
    pub(crate) fn received(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.received.load(Ordering::Acquire))
            .sum()
    }

    /// Waits for bytes at `offset`. Cancel-safe: holds nothing between polls.
    pub(crate) async fn wait(&self, offset: u64) -> Result<u64, ReadError> {
        loop {
            // Registered before looking, so that no growth between the two is missed.
            let grown = self.grown.notified();
            if self.end() == End::Abandoned {
                return Err(ReadError::Abandoned {
                    piece: self.span.number,
                });
            }
            let available = self.available(offset);
            if available > 0 {
                return Ok(available);
            }
            grown.await;
        }
    }

    /// The digest of the whole piece from those of its segments; nothing while bytes are missing.
    pub(crate) fn digest(&self) -> Option<Crc32> {
        let mut whole = Crc32::default();
        for (index, segment) in self.segments.iter().enumerate() {
            let (_, segment_len) = self.segment_bounds(index as u64 * self.segment_length);
            let tail = segment.tail.lock();
            if segment.received.load(Ordering::Acquire) < segment_len {
                return None;
            }
            whole = whole.followed_by(tail.hasher.finish(), segment_len);
        }
        Some(whole)
    }

    /// Ends the piece, once: no write goes through from here on, and readers learn of it. Says whether it was open.
    pub(crate) fn close(&self, end: End) -> bool {
        for segment in &self.segments {
            segment.tail.lock().closed = true;
        }
        let open = End::Open as u8;
        let first = self
            .end
            .compare_exchange(open, end as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        self.grown.notify_waiters();
        first
    }

    fn write_to_segment(
        &self,
        file: &File,
        path: &Path,
        start: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<u64, WriteError> {
        let segment = self.segment(start);
        let mut tail = segment.tail.lock();
        let mut received = segment.received.load(Ordering::Relaxed);
        let piece = self.span.number;
        if start + received < offset {
            return Err(WriteError::Gap {
                piece,
                offset,
                expected: start + received,
            });
        }
        let known = usize::try_from(start + received - offset).unwrap_or(usize::MAX);
        let new = data.get(known..).unwrap_or_default();
        if tail.closed {
            return Err(WriteError::Ended { piece });
        }
        for stride in new.chunks(STRIDE) {
            {
                // The kernel writes to one file at a time anyway, and lets those who wait for it spin.
                let _turn = self.turn.lock();
                file.write_all_at(stride, self.span.offset + start + received)
                    .doing("write a piece to", path)?;
            }
            tail.hasher.update(stride);
            received += stride.len() as u64;
            segment.received.store(received, Ordering::Release);
            self.grown.notify_waiters();
        }
        Ok(new.len() as u64)
    }

    /// Start and length of the segment that holds `offset`, which lies inside the piece.
    fn segment_bounds(&self, offset: u64) -> (u64, u64) {
        let start = offset - offset % self.segment_length;
        (start, self.segment_length.min(self.span.length - start))
    }

    fn segment(&self, start: u64) -> &Segment {
        let index = usize::try_from(start / self.segment_length).unwrap_or(usize::MAX);
        &self.segments[index]
    }

    fn received_of(&self, start: u64) -> u64 {
        self.segment(start).received.load(Ordering::Acquire)
    }
}

/// A shared arrival.
pub(crate) type SharedArrival = Arc<Arrival>;
