//! What this host has, wants and is getting, segment by segment.

use protocol::Bitmap;

use super::{NeighbourId, RequestId};
use crate::layout::Layout;

#[derive(Clone, Debug, Default)]
struct Segment {
    /// Bytes from the segment's start that are in the store.
    reached: u64,
    /// Neighbours that show it.
    shown_by: u16,
    /// Read from the origin by the caller.
    origin: bool,
    /// Requests that are bringing it and run; more than one only as a hedge.
    running: Vec<RequestId>,
    /// Who sent bytes of it since the piece was last empty.
    senders: Vec<NeighbourId>,
}

/// The table of segments.
///
/// Invariants: `missing` = wanted, and not all bytes in the store; `open` = missing, no request runs
/// for it, and the caller does not read it from the origin.
#[derive(Debug)]
pub(super) struct Segments {
    pub(super) layout: Layout,
    table: Vec<Segment>,
    wanted: Bitmap,
    held: Bitmap,
    missing: Bitmap,
    open: Bitmap,
    /// Wanted pieces that are not held.
    lacking: u32,
    origin_count: u32,
}

impl Segments {
    pub(super) fn new(layout: Layout, held: &Bitmap) -> Self {
        let mut own = Bitmap::new(layout.pieces());
        held.ones().for_each(|piece| {
            own.set(piece);
        });
        Self {
            layout,
            table: vec![Segment::default(); layout.segments() as usize],
            wanted: Bitmap::new(layout.pieces()),
            held: own,
            missing: Bitmap::new(layout.segments()),
            open: Bitmap::new(layout.segments()),
            lacking: 0,
            origin_count: 0,
        }
    }

    pub(super) fn want(&mut self, pieces: &Bitmap) {
        let end = self.layout.pieces();
        for piece in pieces.ones().take_while(|piece| *piece < end) {
            if self.wanted.set(piece) && !self.held.get(piece) {
                self.lacking += 1;
                for segment in self.layout.segments_of(piece) {
                    self.settle(segment);
                }
            }
        }
    }

    pub(super) fn missing(&self) -> &Bitmap {
        &self.missing
    }

    pub(super) fn open(&self) -> &Bitmap {
        &self.open
    }

    /// Whether every wanted piece is held.
    pub(super) fn is_complete(&self) -> bool {
        self.lacking == 0
    }

    /// Segments that the caller reads from the origin.
    pub(super) fn origin_count(&self) -> u32 {
        self.origin_count
    }

    pub(super) fn reached(&self, segment: u32) -> u64 {
        self.table[segment as usize].reached
    }

    pub(super) fn shown_by(&self, segment: u32) -> u16 {
        self.table[segment as usize].shown_by
    }

    pub(super) fn running(&self, segment: u32) -> &[RequestId] {
        &self.table[segment as usize].running
    }

    pub(super) fn senders(&self, segment: u32) -> &[NeighbourId] {
        &self.table[segment as usize].senders
    }

    /// Whether nothing of the piece is here, on its way or unwanted: a v2 parent loses nothing by sending all of it.
    pub(super) fn is_fresh(&self, piece: u32) -> bool {
        self.layout
            .segments_of(piece)
            .all(|segment| self.open.get(segment) && self.reached(segment) == 0)
    }

    pub(super) fn show(&mut self, segment: u32) {
        self.table[segment as usize].shown_by += 1;
    }

    pub(super) fn unshow(&mut self, segment: u32) {
        self.table[segment as usize].shown_by -= 1;
    }

    /// A request for the segment runs (again).
    pub(super) fn run(&mut self, segment: u32, request: RequestId) {
        let running = &mut self.table[segment as usize].running;
        if !running.contains(&request) {
            running.push(request);
        }
        self.settle(segment);
    }

    /// The request is over, or counts as stalled.
    pub(super) fn stop(&mut self, segment: u32, request: RequestId) {
        self.table[segment as usize]
            .running
            .retain(|other| *other != request);
        self.settle(segment);
    }

    /// The first `length` bytes of the segment are in the store. True when that makes it whole now.
    pub(super) fn store(&mut self, segment: u32, length: u64, sender: Option<NeighbourId>) -> bool {
        let full = self.layout.segment_len(segment);
        let entry = &mut self.table[segment as usize];
        let before = entry.reached;
        entry.reached = before.max(length.min(full));
        if let Some(sender) = sender
            && !entry.senders.contains(&sender)
        {
            entry.senders.push(sender);
        }
        let whole = before < full && entry.reached == full;
        if whole {
            self.settle(segment);
        }
        whole
    }

    pub(super) fn set_origin(&mut self, segment: u32, origin: bool) {
        let entry = &mut self.table[segment as usize];
        if entry.origin != origin {
            entry.origin = origin;
            self.origin_count = if origin {
                self.origin_count + 1
            } else {
                self.origin_count - 1
            };
            self.settle(segment);
        }
    }

    /// The piece is whole and checked.
    pub(super) fn hold(&mut self, piece: u32) {
        if piece < self.layout.pieces() && self.held.set(piece) && self.wanted.get(piece) {
            self.lacking -= 1;
        }
        for segment in self.layout.segments_of(piece) {
            self.table[segment as usize].reached = self.layout.segment_len(segment);
            self.set_origin(segment, false);
            self.settle(segment);
        }
    }

    /// Nothing of the piece is in the store any more. The caller has ended its requests.
    pub(super) fn empty(&mut self, piece: u32) {
        if self.held.clear(piece) && self.wanted.get(piece) {
            self.lacking += 1;
        }
        for segment in self.layout.segments_of(piece) {
            let entry = &mut self.table[segment as usize];
            entry.reached = 0;
            entry.senders.clear();
            self.set_origin(segment, false);
            self.settle(segment);
        }
    }

    /// Restores the invariants of one segment.
    fn settle(&mut self, segment: u32) {
        let piece = self.layout.piece_of(segment);
        let entry = &self.table[segment as usize];
        let lacks = entry.reached < self.layout.segment_len(segment);
        let missing = lacks && self.wanted.get(piece) && !self.held.get(piece);
        let open = missing && entry.running.is_empty() && !entry.origin;
        put(&mut self.missing, segment, missing);
        put(&mut self.open, segment, open);
    }
}

fn put(map: &mut Bitmap, index: u32, value: bool) {
    if value {
        map.set(index);
    } else {
        map.clear(index);
    }
}
