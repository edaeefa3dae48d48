//! Requests that are out: their progress, their end.

use std::time::Duration;

use super::neighbour::Line;
use super::{Failure, NeighbourId, NeighbourKind, Picker, PickerAction, RequestId};

/// A request that is out.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: RequestId,
    pub(super) neighbour: NeighbourId,
    pub(super) kind: NeighbourKind,
    pub(super) piece: u32,
    /// First byte within the piece.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) received: u64,
    pub(super) asked_at: Duration,
    /// When a byte last came, or the request was made.
    pub(super) last_byte: Duration,
    /// It lags so far that its bytes may be asked elsewhere; it does not count as running.
    pub(super) stalled: bool,
    /// Bytes per second lately, and `received` when that was last worked out.
    pub(super) rate: f64,
    pub(super) rated: u64,
}

impl Live {
    /// The next byte that it brings, within the piece.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.received
    }
}

/// How long a byte of a request usually takes, from the request to its end.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds_per_byte: Option<f64>,
}

impl Pace {
    fn learn(&mut self, bytes: u64, took: Duration) {
        if bytes > 0 {
            let sample = took.as_secs_f64() / bytes as f64;
            let usual = self.seconds_per_byte.get_or_insert(sample);
            *usual += (sample - *usual) / 8.0;
        }
    }

    /// Usual bytes per second of one request, once one has ended.
    pub(super) fn rate(&self) -> Option<f64> {
        self.seconds_per_byte
            .filter(|seconds| *seconds > 0.0)
            .map(|seconds| 1.0 / seconds)
    }
}

impl Picker {
    /// The segments that a request still has to bring.
    pub(super) fn remaining(&self, live: &Live) -> std::ops::Range<u32> {
        let layout = &self.segments.layout;
        let piece = layout.segments_of(live.piece);
        let at = |offset| layout.segment_at(super::PieceNumber(live.piece), offset);
        let first = at(live.position()).unwrap_or(piece.end);
        let last =
            at((live.offset + live.length).saturating_sub(1)).map_or(piece.end, |last| last + 1);
        first.min(last)..last
    }

    pub(super) fn progress(&mut self, now: Duration, request: RequestId, received: u64) {
        let Some(index) = self.live.iter().position(|live| live.id == request) else {
            return;
        };
        let live = &mut self.live[index];
        let received = received.min(live.length);
        if received <= live.received {
            return;
        }
        let (from, neighbour, piece) = (live.position(), live.neighbour, live.piece);
        self.downlink.add(now, received - live.received);
        live.received = received;
        live.last_byte = now;
        let to = live.position();
        self.fed_at = Some(now);
        if let Some(at) = self.find(neighbour) {
            self.neighbours[at].delivered(now);
        }
        if self.live[index].stalled {
            self.revive(index);
        }
        let first = self
            .segments
            .layout
            .segment_at(super::PieceNumber(piece), from);
        for segment in first.unwrap_or(u32::MAX)..self.segments.layout.segments_of(piece).end {
            let start = self.segments.layout.offset_in_piece(segment);
            if start >= to {
                break;
            }
            self.overtake(request, segment, to);
            self.store(segment, to - start, Some(neighbour));
        }
    }

    /// The first `length` bytes of the segment are there; whole, it needs no request any more, be it
    /// running or stalled.
    pub(super) fn store(&mut self, segment: u32, length: u64, sender: Option<NeighbourId>) {
        if !self.segments.store(segment, length, sender) {
            return;
        }
        let layout = &self.segments.layout;
        let (piece, start) = (layout.piece_of(segment), layout.offset_in_piece(segment));
        let bytes = start..start + layout.segment_len(segment);
        let needless = |live: &&Live| {
            let within = live.piece == piece && bytes.contains(&live.offset);
            live.kind == NeighbourKind::Mesh && within && live.position() < bytes.end
        };
        let needless = self
            .live
            .iter()
            .filter(needless)
            .map(|live| live.id)
            .collect();
        self.cancel_all(needless);
        for request in self.segments.running(segment).to_vec() {
            self.segments.stop(segment, request);
        }
    }

    /// An older request for the same segment that is now behind this one has lost.
    fn overtake(&mut self, request: RequestId, segment: u32, position: u64) {
        let lost = |live: &&Live| {
            live.id < request && live.kind == NeighbourKind::Mesh && live.position() <= position
        };
        let running = self.segments.running(segment);
        let losers = self
            .live
            .iter()
            .filter(|live| running.contains(&live.id))
            .filter(lost);
        let losers: Vec<RequestId> = losers.map(|live| live.id).collect();
        self.cancel_all(losers);
    }

    /// All bytes of the request are in the store.
    pub(super) fn finished(&mut self, now: Duration, request: RequestId) {
        if let Some(live) = self.end(request) {
            self.pace
                .learn(live.length, now.saturating_sub(live.asked_at));
            if let Some(usual) = self.pace.rate()
                && let Some(at) = self.find(live.neighbour)
            {
                let took = now.saturating_sub(live.asked_at).as_secs_f64();
                self.neighbours[at].slow &= live.length as f64 / took.max(1e-9) < usual / 2.0;
            }
        }
    }

    pub(super) fn failed(&mut self, now: Duration, request: RequestId, failure: Failure) {
        let Some(live) = self.end(request) else {
            return;
        };
        self.disown(live.piece, live.neighbour);
        let Some(at) = self.find(live.neighbour) else {
            return;
        };
        let remaining = self.remaining(&live);
        let neighbour = &mut self.neighbours[at];
        match failure {
            Failure::Refused => {
                neighbour.sign_of_life(now);
                if neighbour.line != Line::Granted {
                    neighbour.line = Line::Waiting {
                        until: now + self.options.line_patience,
                    };
                }
            }
            Failure::NotAhead => {
                neighbour.sign_of_life(now);
                remaining.for_each(|segment| neighbour.set_behind(now, segment));
            }
            Failure::NotFound => {
                neighbour.sign_of_life(now);
                remaining.for_each(|segment| neighbour.unlearn(segment, &mut self.segments));
            }
            Failure::Stalled => {
                remaining.for_each(|segment| neighbour.set_behind(now, segment));
                if now.saturating_sub(neighbour.last_sign) >= self.options.stall {
                    self.freeze(now, at);
                }
            }
            Failure::Lost => {
                remaining.for_each(|segment| neighbour.set_behind(now, segment));
                neighbour.lose(now);
            }
            Failure::BadData => self.ban(at),
        }
    }

    /// The neighbour could not send the piece alone; another may try.
    pub(super) fn disown(&mut self, piece: u32, neighbour: NeighbourId) {
        if let Some(owner) = self.sole.get_mut(&piece) {
            owner.take_if(|owner| *owner == neighbour);
        }
    }

    /// Takes a request out of all books, and returns it.
    pub(super) fn end(&mut self, request: RequestId) -> Option<Live> {
        let index = self.live.iter().position(|live| live.id == request)?;
        let live = self.live.swap_remove(index);
        self.unbook(&live);
        Some(live)
    }

    /// The request no longer counts as running.
    pub(super) fn unbook(&mut self, live: &Live) {
        if live.stalled {
            return;
        }
        for segment in self.segments.layout.segments_of(live.piece) {
            self.segments.stop(segment, live.id);
        }
        if let Some(at) = self.find(live.neighbour) {
            self.neighbours[at].running -= 1;
        }
    }

    /// A stalled request brings bytes again.
    fn revive(&mut self, index: usize) {
        self.live[index].stalled = false;
        let (id, neighbour) = (self.live[index].id, self.live[index].neighbour);
        for segment in self.remaining(&self.live[index]) {
            self.segments.run(segment, id);
        }
        if let Some(at) = self.find(neighbour) {
            self.neighbours[at].running += 1;
        }
    }

    pub(super) fn cancel_piece(&mut self, piece: u32) {
        self.cancel_all(
            self.live
                .iter()
                .filter(|live| live.piece == piece)
                .map(|live| live.id)
                .collect(),
        );
    }

    pub(super) fn cancel_all(&mut self, requests: Vec<RequestId>) {
        for request in requests {
            if self.end(request).is_some() {
                self.pending.push(PickerAction::Cancel { request });
            }
        }
    }
}
