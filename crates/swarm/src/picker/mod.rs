//! The child: which bytes to ask of whom.
//!
//! Rules, each measured by simulation before it was written down:
//!
//! - Rarest segment first, within a window behind the first gap; in order in front of a reader.
//! - Few requests in flight, few at one parent, and none at a parent that refused us: we are in line
//!   there, and name the segment only when a slot is granted (late binding).
//! - A request without a byte for a second is asked elsewhere, from the byte reached. A neighbour from
//!   which nothing at all comes is frozen: it is left alone until it shows a sign of life.
//! - A second parent is asked for a slow segment only while our own downlink has room; whoever is
//!   overtaken is cancelled.
//!
//! Whatever order the events come in: at most two running requests bring the same byte, the second as
//! a hedge; a request that stalled does not count as running, and is cancelled when its bytes are asked
//! elsewhere.

mod api;
mod ask;
mod live;
mod neighbour;
mod segments;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::{Bitmap, Geometry, PieceNumber};

pub use api::{
    Failure, NeighbourId, NeighbourKind, PickerAction, PickerEvent, PickerOptions, Request,
    RequestId, Shown, Suspicion,
};

use crate::choose::intersects;
use crate::layout::Layout;
use crate::meter::Meter;
use live::{Live, Pace};
use neighbour::{Line, Neighbour};
use segments::Segments;

/// The child's part in one task: takes events, gives requests.
///
/// A decision costs well under a microsecond with 16 neighbours and 1,600 pieces (`examples/speed.rs`); memory is a few dozen
/// bytes per segment and three bits per segment and neighbour.
#[derive(Debug)]
pub struct Picker {
    options: PickerOptions,
    segments: Segments,
    neighbours: Vec<Neighbour>,
    live: Vec<Live>,
    next_request: u64,
    chance: fastrand::Rng,
    reader: Option<u32>,
    /// Bytes from all neighbours.
    downlink: Meter,
    pace: Pace,
    /// Pieces that failed their digest: they come from one neighbour alone, so that the next failure has a name.
    sole: BTreeMap<u32, Option<NeighbourId>>,
    /// Actions that events caused; the next decision hands them out.
    pending: Vec<PickerAction>,
    next_sweep: Duration,
    /// When bytes last came, or something was first wanted.
    fed_at: Option<Duration>,
    next_starved: Option<Duration>,
    said_complete: bool,
    decided_at: Duration,
    /// See [`Picker::limit_requests`].
    limit: Option<usize>,
}

impl Picker {
    /// A picker that wants the pieces `wanted` of a task of which `held` are here already. Both have
    /// one bit per piece. The same seed and events give the same decisions.
    pub fn new(
        geometry: &Geometry,
        wanted: &Bitmap,
        held: &Bitmap,
        options: PickerOptions,
        seed: u64,
    ) -> Self {
        let mut segments = Segments::new(Layout::new(geometry), held);
        segments.want(wanted);
        Self {
            options,
            segments,
            neighbours: Vec::new(),
            live: Vec::new(),
            next_request: 0,
            chance: fastrand::Rng::with_seed(seed),
            reader: None,
            downlink: Meter::default(),
            pace: Pace::default(),
            sole: BTreeMap::new(),
            pending: Vec::new(),
            next_sweep: Duration::ZERO,
            fed_at: None,
            next_starved: None,
            said_complete: false,
            decided_at: Duration::ZERO,
            limit: None,
        }
    }

    /// Takes in something that happened at `now`. Any number of events may come before a decision.
    pub fn handle(&mut self, now: Duration, event: PickerEvent) {
        match event {
            PickerEvent::Joined { neighbour, kind } => self.joined(now, neighbour, kind),
            PickerEvent::Left { neighbour } => self.left(neighbour),
            PickerEvent::Shown { neighbour, what } => {
                if let Some(at) = self.find(neighbour) {
                    self.neighbours[at].sign_of_life(now);
                    self.neighbours[at].learn(&what, &mut self.segments);
                }
            }
            PickerEvent::Alive { neighbour } => {
                if let Some(at) = self.find(neighbour) {
                    self.neighbours[at].sign_of_life(now);
                }
            }
            PickerEvent::Granted { neighbour } => {
                let mesh = |at: &usize| self.neighbours[*at].kind == NeighbourKind::Mesh;
                if let Some(at) = self.find(neighbour).filter(mesh) {
                    self.neighbours[at].sign_of_life(now);
                    self.neighbours[at].line = Line::Granted;
                }
            }
            PickerEvent::Progress { request, received } => self.progress(now, request, received),
            PickerEvent::Finished { request } => {
                if let Some(live) = self.live.iter().find(|live| live.id == request) {
                    let length = live.length;
                    self.progress(now, request, length);
                    self.finished(now, request);
                }
            }
            PickerEvent::Failed {
                request,
                failure,
                received,
            } => {
                self.progress(now, request, received);
                self.failed(now, request, failure);
            }
            PickerEvent::Stored { segment, length } => {
                if segment.0 < self.segments.layout.segments() {
                    self.fed_at = Some(now);
                    self.store(segment.0, length, None);
                }
            }
            PickerEvent::PieceHeld { piece } => self.piece_held(piece),
            PickerEvent::PieceDropped { piece } => self.piece_dropped(piece),
            PickerEvent::OriginTook { segments } => self.origin(segments, true),
            PickerEvent::OriginReleased { segments } => self.origin(segments, false),
            PickerEvent::WantMore { pieces } => {
                self.segments.want(&pieces);
                self.said_complete &= self.segments.is_complete();
            }
            PickerEvent::ReaderAt { segment } => self.reader = segment.map(|segment| segment.0),
        }
    }

    /// Decides what to do now and appends it to `actions`. Call it after events, and at
    /// [`Picker::next_deadline`].
    pub fn decide(&mut self, now: Duration, actions: &mut Vec<PickerAction>) {
        self.decided_at = now;
        self.fed_at.get_or_insert(now);
        self.neighbours
            .iter_mut()
            .for_each(|neighbour| neighbour.catch_up(now));
        if self.segments.is_complete() {
            self.complete();
        } else {
            if now >= self.next_sweep && !self.live.is_empty() {
                self.sweep(now);
            }
            self.answer_grants(now);
            self.ask_mesh(now);
            self.ask_v2(now);
            self.mind_starvation(now);
        }
        actions.append(&mut self.pending);
    }

    /// From the next decision on, requests are only made while fewer than `limit` run, also if the options allow more. What runs
    /// goes on. For callers that need the neighbours, or the downlink, for something more urgent for a moment.
    pub fn limit_requests(&mut self, limit: Option<usize>) {
        self.limit = limit;
    }

    /// When to decide again if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.segments.is_complete() {
            return None;
        }
        let sweep = (!self.live.is_empty()).then_some(self.next_sweep);
        let changes = self
            .neighbours
            .iter()
            .filter_map(|neighbour| neighbour.next_change(self.decided_at))
            .min();
        [sweep, changes, self.next_starved]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether every wanted piece is held.
    pub fn is_complete(&self) -> bool {
        self.segments.is_complete()
    }

    /// Requests that are out, stalled ones too.
    pub fn in_flight(&self) -> usize {
        self.live.len()
    }

    /// Bytes of the piece that are in the store without a gap from its start: from there an origin
    /// reader would go on.
    pub fn stored_prefix(&self, piece: PieceNumber) -> u64 {
        let layout = &self.segments.layout;
        let mut prefix = 0;
        for segment in layout.segments_of(piece.0) {
            prefix += self.segments.reached(segment);
            if self.segments.reached(segment) < layout.segment_len(segment) {
                break;
            }
        }
        prefix
    }

    /// Who sent bytes of this piece since it was last empty.
    pub fn senders(&self, piece: PieceNumber) -> Vec<NeighbourId> {
        let segments = self.segments.layout.segments_of(piece.0);
        let mut senders: Vec<_> = segments
            .flat_map(|segment| self.segments.senders(segment))
            .copied()
            .collect();
        senders.sort_unstable();
        senders.dedup();
        senders
    }

    fn find(&self, neighbour: NeighbourId) -> Option<usize> {
        self.neighbours
            .iter()
            .position(|other| other.id == neighbour)
    }

    fn joined(&mut self, now: Duration, neighbour: NeighbourId, kind: NeighbourKind) {
        if self.find(neighbour).is_none() {
            self.neighbours.push(Neighbour::new(
                neighbour,
                kind,
                self.segments.layout.segments(),
                now,
            ));
        }
    }

    fn left(&mut self, neighbour: NeighbourId) {
        let Some(at) = self.find(neighbour) else {
            return;
        };
        let over: Vec<RequestId> = self
            .live
            .iter()
            .filter(|live| live.neighbour == neighbour)
            .map(|live| live.id)
            .collect();
        over.into_iter().for_each(|request| {
            self.end(request);
        });
        self.neighbours.swap_remove(at).forget(&mut self.segments);
        self.pending.retain(|action| match action {
            PickerAction::Decline { neighbour: other }
            | PickerAction::Suspect {
                neighbour: other, ..
            } => *other != neighbour,
            _ => true,
        });
    }

    fn piece_held(&mut self, piece: PieceNumber) {
        self.segments.hold(piece.0);
        self.sole.remove(&piece.0);
        self.cancel_piece(piece.0);
    }

    /// The bytes were wrong: whoever sent all of them is named, and the next attempt has one sender.
    fn piece_dropped(&mut self, piece: PieceNumber) {
        if piece.0 >= self.segments.layout.pieces() {
            return;
        }
        self.cancel_piece(piece.0);
        let senders = self.senders(piece);
        for sender in &senders {
            if let Some(at) = self.find(*sender) {
                self.neighbours[at].strikes += 1;
                if senders.len() == 1 {
                    self.ban(at);
                }
            }
        }
        self.segments.empty(piece.0);
        self.said_complete &= self.segments.is_complete();
        self.sole.insert(piece.0, None);
    }

    fn ban(&mut self, at: usize) {
        let neighbour = &mut self.neighbours[at];
        if !std::mem::replace(&mut neighbour.banned, true) {
            let id = neighbour.id;
            self.pending.push(PickerAction::Suspect {
                neighbour: id,
                why: Suspicion::BadData,
            });
            let theirs = self
                .live
                .iter()
                .filter(|live| live.neighbour == id)
                .map(|live| live.id)
                .collect();
            self.cancel_all(theirs);
        }
    }

    fn origin(&mut self, segments: std::ops::Range<u32>, took: bool) {
        let end = segments.end.min(self.segments.layout.segments());
        for segment in segments.start..end {
            if took {
                self.cancel_all(self.segments.running(segment).to_vec());
            }
            self.segments
                .set_origin(segment, took && self.segments.missing().get(segment));
        }
    }

    fn complete(&mut self) {
        self.cancel_all(self.live.iter().map(|live| live.id).collect());
        for neighbour in &mut self.neighbours {
            if neighbour.line == Line::Granted {
                neighbour.line = Line::Open;
                self.pending.push(PickerAction::Decline {
                    neighbour: neighbour.id,
                });
            }
        }
        if !std::mem::replace(&mut self.said_complete, true) {
            self.pending.push(PickerAction::Complete);
        }
    }

    fn mind_starvation(&mut self, now: Duration) {
        let running = self.live.iter().any(|live| !live.stalled);
        let missing = self.segments.missing();
        let fed = running
            || self.segments.origin_count() > 0
            || missing.count() == 0
            || self
                .neighbours
                .iter()
                .any(|n| n.is_well(now) && intersects(n.usable(), missing));
        if fed {
            self.next_starved = None;
        } else if self.next_starved.is_none_or(|at| at <= now) {
            self.next_starved = Some(now + Duration::from_secs(1));
            self.pending.push(PickerAction::Starved {
                since: self.fed_at.unwrap_or(now),
            });
        }
    }
}

#[cfg(test)]
mod tests;
