//! Staged announcement: a seed shows each segment to one child first.

use std::ops::Range;
use std::time::Duration;

use protocol::{Bitmap, Geometry, PieceNumber, SegmentIndex};

use crate::choose::cheapest;
use crate::layout::Layout;
use crate::{ChildId, Shown};

/// How a child takes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// One of ours: segments, can be refused.
    Mesh,
    /// A Dragonfly v2 child: whole pieces that are held, never refused.
    V2,
}

/// Something that happened on the seed; hand it to [`Stage::handle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageEvent {
    /// A child can be shown segments or pieces.
    Joined {
        /// Who.
        child: ChildId,
        /// What it can be shown.
        kind: ChildKind,
    },
    /// The child is gone.
    Left {
        /// Who.
        child: ChildId,
    },
    /// The first bytes of a segment are here.
    Arriving {
        /// The segment.
        segment: SegmentIndex,
    },
    /// A piece is whole here and its digest is known.
    PieceHeld {
        /// The piece.
        piece: PieceNumber,
    },
    /// A child announced what it has itself.
    ChildShows {
        /// Who.
        child: ChildId,
        /// What.
        what: Shown,
    },
    /// We serve this child these bytes now (or it stands in our queue with them).
    Asked {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within the piece.
        offset: u64,
    },
    /// The bytes have been sent to their end.
    Served {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within the piece, as it was asked.
        offset: u64,
    },
}

/// Something to send to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageAction {
    /// Announce this segment of a piece to a mesh child (as arriving, or as held when the piece is).
    ShowSegment {
        /// Who.
        child: ChildId,
        /// The segment.
        segment: SegmentIndex,
    },
    /// Announce this held piece to a v2 child.
    ShowPiece {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
    },
    /// The stage is over: from now on everything is announced to everybody, as a plain host does.
    Open,
}

/// Least time that a child has to ask for what it was shown.
const UNASKED: Duration = Duration::from_millis(300);
/// The same in segment times of the uplink, whichever is longer.
const UNASKED_SEGMENTS: f64 = 4.0;
/// A segment that is served so many times slower than its share is clearly slow.
const SLOW: f64 = 4.0;
/// Least time before a segment that was asked for counts as slow.
const SLOW_MIN: Duration = Duration::from_secs(1);
/// With nothing outstanding and nothing new for so long, the uplink idles and may repeat itself.
const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// Segments or pieces outstanding at one child, unless there are few children.
const PER_CHILD_MIN: usize = 2;
/// Uplink taken for granted until one is measured, in bytes per second.
const UPLINK_UNKNOWN: f64 = 25e6;

#[derive(Debug)]
struct Child {
    id: ChildId,
    kind: ChildKind,
    /// Segments of pieces that it holds, as it says.
    has: Bitmap,
    /// Segments that it has or is getting, as it says.
    gets: Bitmap,
    /// Segments that we showed it.
    shown: Bitmap,
}

/// Something shown to a child and not yet served: a segment, or the segments of a piece for v2.
#[derive(Debug)]
struct Outstanding {
    child: ChildId,
    segments: Range<u32>,
    since: Duration,
    asked: bool,
    /// It was shown again elsewhere: it does not count any more.
    given_up: bool,
}

/// Which segment a seed shows to which child first.
///
/// Each segment goes to one child; few are outstanding at once, so that the next goes to whoever is
/// ready. It is shown to a second child when the first does not ask for it in time, is clearly slow, or
/// leaves. When everything is here and was shown once, the stage opens: [`StageAction::Open`].
#[derive(Debug)]
pub struct Stage {
    layout: Layout,
    chance: fastrand::Rng,
    /// Most segments outstanding at once.
    limit: usize,
    uplink: f64,
    children: Vec<Child>,
    /// Segments that are here or arriving.
    here: Bitmap,
    held: Bitmap,
    /// Segments that some child was shown, or has by itself.
    placed: Bitmap,
    /// Pieces kept whole for v2 children; decided when their first segment arrives.
    for_v2: Bitmap,
    v2_credit: i64,
    outstanding: Vec<Outstanding>,
    idle_since: Option<Duration>,
    open: bool,
    decided_at: Duration,
}

impl Stage {
    /// The stage of a task of which the pieces `held` are here.
    pub fn new(geometry: &Geometry, held: &Bitmap, seed: u64) -> Self {
        let layout = Layout::new(geometry);
        let mut stage = Self {
            layout,
            chance: fastrand::Rng::with_seed(seed),
            limit: 6,
            uplink: UPLINK_UNKNOWN,
            children: Vec::new(),
            here: Bitmap::new(layout.segments()),
            held: Bitmap::new(layout.pieces()),
            placed: Bitmap::new(layout.segments()),
            for_v2: Bitmap::new(layout.pieces()),
            v2_credit: 0,
            outstanding: Vec::new(),
            idle_since: None,
            open: false,
            decided_at: Duration::ZERO,
        };
        held.ones()
            .take_while(|piece| *piece < layout.pieces())
            .for_each(|piece| stage.hold(piece));
        stage
    }

    /// How many upload slots there are (as many segments may be outstanding), and the measured uplink
    /// in bytes per second, 0 when unknown.
    pub fn set_uplink(&mut self, slots: u32, bytes_per_second: u64) {
        self.limit = (slots as usize).max(PER_CHILD_MIN);
        self.uplink = if bytes_per_second == 0 {
            UPLINK_UNKNOWN
        } else {
            bytes_per_second as f64
        };
    }

    /// Whether everything is announced to everybody.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes in something that happened at `now`.
    pub fn handle(&mut self, now: Duration, event: StageEvent) {
        match event {
            StageEvent::Joined { child, kind } => self.joined(child, kind),
            StageEvent::Left { child } => self.left(child),
            StageEvent::Arriving { segment } => {
                if self.here.set(segment.0) {
                    self.assign(self.layout.piece_of(segment.0));
                }
            }
            StageEvent::PieceHeld { piece } if piece.0 < self.layout.pieces() => self.hold(piece.0),
            StageEvent::PieceHeld { .. } => {}
            StageEvent::ChildShows { child, what } => self.child_shows(child, &what),
            StageEvent::Asked {
                child,
                piece,
                offset,
            } => {
                if let Some(segment) = self.layout.segment_at(piece, offset) {
                    self.asked(now, child, segment);
                }
            }
            StageEvent::Served {
                child,
                piece,
                offset,
            } => {
                if let Some(segment) = self.layout.segment_at(piece, offset) {
                    self.outstanding
                        .retain(|entry| entry.child != child || !entry.segments.contains(&segment));
                }
            }
        }
    }

    /// Decides what to show now and appends it to `actions`.
    pub fn decide(&mut self, now: Duration, actions: &mut Vec<StageAction>) {
        self.decided_at = now;
        if self.open {
            return;
        }
        self.take_back(now);
        while self.busy() < self.limit && self.show_next(now, actions) {}
        if self.busy() > 0 || self.children.is_empty() {
            self.idle_since = None;
        } else if now.saturating_sub(*self.idle_since.get_or_insert(now)) >= REPEAT_AFTER {
            self.repeat(now, actions);
        }
        if self.here.is_full() && self.held.is_full() && self.placed.is_full() {
            self.open = true;
            self.outstanding.clear();
            actions.push(StageAction::Open);
        }
    }

    /// When to decide again if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.open {
            return None;
        }
        let limits = self
            .outstanding
            .iter()
            .filter(|entry| !entry.given_up)
            .map(|entry| self.time_limit(entry));
        let repeat = self.idle_since.map(|since| since + REPEAT_AFTER);
        limits
            .chain(repeat)
            .filter(|at| *at > self.decided_at)
            .min()
    }

    fn joined(&mut self, child: ChildId, kind: ChildKind) {
        if self.find(child).is_none() {
            let empty = Bitmap::new(self.layout.segments());
            self.children.push(Child {
                id: child,
                kind,
                has: empty.clone(),
                gets: empty.clone(),
                shown: empty,
            });
        }
    }

    /// What only this child had been given must be given again, and what it had not got to the end.
    fn left(&mut self, child: ChildId) {
        let Some(at) = self.find(child) else { return };
        let gone = self.children.swap_remove(at);
        let unfinished = self.outstanding.iter().filter(|entry| entry.child == child);
        let unfinished: Vec<u32> = unfinished
            .flat_map(|entry| entry.segments.clone())
            .collect();
        let elsewhere = |segment: &u32| {
            self.children
                .iter()
                .any(|c| c.shown.get(*segment) || c.gets.get(*segment))
        };
        let lost = gone
            .shown
            .ones()
            .chain(gone.has.ones())
            .filter(|segment| !elsewhere(segment));
        let lost: Vec<u32> = lost.chain(unfinished).collect();
        self.outstanding.retain(|entry| entry.child != child);
        for segment in lost {
            self.placed.clear(segment);
        }
        if self
            .children
            .iter()
            .all(|child| child.kind == ChildKind::Mesh)
        {
            self.for_v2 = Bitmap::new(self.layout.pieces());
        }
    }

    fn find(&self, child: ChildId) -> Option<usize> {
        self.children.iter().position(|other| other.id == child)
    }

    fn hold(&mut self, piece: u32) {
        self.held.set(piece);
        for segment in self.layout.segments_of(piece) {
            self.here.set(segment);
        }
        self.assign(piece);
    }

    /// The first bytes of a piece are here: v2 children get their share of the pieces, whole.
    fn assign(&mut self, piece: u32) {
        if self
            .layout
            .segments_of(piece)
            .any(|segment| self.placed.get(segment))
            || self.for_v2.get(piece)
        {
            return;
        }
        let v2 = self
            .children
            .iter()
            .filter(|child| child.kind == ChildKind::V2)
            .count();
        let (v2, all) = (
            i64::try_from(v2).unwrap_or(0),
            i64::try_from(self.children.len()).unwrap_or(0),
        );
        if v2 == 0 {
            return;
        }
        self.v2_credit += v2;
        if self.v2_credit >= all || v2 == all {
            self.v2_credit -= all;
            self.for_v2.set(piece);
        }
    }

    fn child_shows(&mut self, child: ChildId, what: &Shown) {
        let Some(at) = self.find(child) else { return };
        let segments = match what {
            Shown::Arriving(segment) => segment.0..segment.0.saturating_add(1),
            Shown::Held(piece) => self.layout.segments_of(piece.0),
            Shown::Everything => 0..self.layout.segments(),
            Shown::Gone(_) => return,
        };
        let arriving = matches!(what, Shown::Arriving(_));
        for segment in segments {
            self.children[at].gets.set(segment);
            // What merely arrives there comes from us or from a child that we gave it.
            if !arriving {
                self.children[at].has.set(segment);
                self.placed.set(segment);
            }
        }
    }

    fn asked(&mut self, now: Duration, child: ChildId, segment: u32) {
        let theirs =
            |entry: &&mut Outstanding| entry.child == child && entry.segments.contains(&segment);
        if let Some(entry) = self.outstanding.iter_mut().find(theirs)
            && !std::mem::replace(&mut entry.asked, true)
        {
            entry.since = now;
        }
    }

    /// Outstanding segments that count: each occupies a slot, now or in a moment.
    fn busy(&self) -> usize {
        self.outstanding
            .iter()
            .filter(|entry| !entry.given_up)
            .count()
    }

    fn busy_at(&self, child: ChildId) -> usize {
        self.outstanding
            .iter()
            .filter(|entry| entry.child == child)
            .count()
    }

    /// Until when a child must have asked for, or got, what it was shown.
    fn time_limit(&self, entry: &Outstanding) -> Duration {
        let bytes: u64 = entry
            .segments
            .clone()
            .map(|segment| self.layout.segment_len(segment))
            .sum();
        let alone = Duration::from_secs_f64(bytes as f64 / self.uplink);
        let limit = if entry.asked {
            SLOW_MIN.max(alone.mul_f64(SLOW * self.limit as f64))
        } else {
            UNASKED.max(alone.mul_f64(UNASKED_SEGMENTS))
        };
        entry.since + limit
    }

    /// Segments that a child lets lie may be shown to another.
    fn take_back(&mut self, now: Duration) {
        for at in 0..self.outstanding.len() {
            let entry = &self.outstanding[at];
            if !entry.given_up && self.time_limit(entry) <= now {
                self.outstanding[at].given_up = true;
                for segment in self.outstanding[at].segments.clone() {
                    self.placed.clear(segment);
                }
            }
        }
        let over = |entry: &Outstanding| {
            entry.given_up && entry.segments.clone().all(|s| self.placed.get(s))
        };
        let done: Vec<bool> = self.outstanding.iter().map(over).collect();
        let mut done = done.into_iter();
        self.outstanding.retain(|_| !done.next().unwrap_or(false));
    }

    /// Shows the first segment that no child was shown, to the child with the fewest outstanding.
    fn show_next(&mut self, now: Duration, actions: &mut Vec<StageAction>) -> bool {
        let cap = self
            .limit
            .checked_div(self.children.len())
            .unwrap_or(0)
            .max(PER_CHILD_MIN);
        let ready = |child: &Child| self.busy_at(child.id) < cap;
        if !self.children.iter().any(ready) {
            return false;
        }
        let mut chance = self.chance.fork();
        let unplaced = |segment: &u32| self.here.get(*segment);
        let mut tried_v2 = None;
        let mut found = None;
        for segment in self.placed.zeros().filter(unplaced) {
            let piece = self.layout.piece_of(segment);
            if self.for_v2.get(piece) {
                if tried_v2 == Some(piece) || !self.held.get(piece) {
                    continue;
                }
                tried_v2 = Some(piece);
            }
            found = self
                .taker(segment, cap, &mut chance)
                .map(|child| (child, segment));
            if found.is_some() {
                break;
            }
        }
        let Some((at, segment)) = found else {
            return false;
        };
        self.show(now, at, segment, actions);
        true
    }

    /// A segment that every child that could take it was shown needs no further child.
    fn place_what_all_know(&mut self) {
        let lacks = |segment: u32| {
            self.children
                .iter()
                .any(|c| !c.shown.get(segment) && !c.has.get(segment))
        };
        let here = self
            .placed
            .zeros()
            .filter(|segment| self.here.get(*segment));
        let known: Vec<u32> = here.filter(|segment| !lacks(*segment)).collect();
        if !self.children.is_empty() {
            known.into_iter().for_each(|segment| {
                self.placed.set(segment);
            });
        }
    }

    /// The child to show this segment to: it lacks it, has room, and takes it in this form.
    fn taker(&self, segment: u32, cap: usize, chance: &mut fastrand::Rng) -> Option<usize> {
        let kind = if self.for_v2.get(self.layout.piece_of(segment)) {
            ChildKind::V2
        } else {
            ChildKind::Mesh
        };
        let fits = |at: &usize| {
            let child = &self.children[*at];
            let lacks = !child.shown.get(segment) && !child.has.get(segment);
            child.kind == kind && lacks && self.busy_at(child.id) < cap
        };
        let fitting: Vec<usize> = (0..self.children.len()).filter(fits).collect();
        let cost = |at: usize| {
            (
                self.busy_at(self.children[at].id),
                self.children[at].shown.count(),
            )
        };
        cheapest(fitting.into_iter(), cost, chance)
    }

    fn show(&mut self, now: Duration, at: usize, segment: u32, actions: &mut Vec<StageAction>) {
        let piece = self.layout.piece_of(segment);
        let child = &mut self.children[at];
        let (id, segments) = match child.kind {
            ChildKind::Mesh => {
                actions.push(StageAction::ShowSegment {
                    child: child.id,
                    segment: SegmentIndex(segment),
                });
                (child.id, segment..segment + 1)
            }
            ChildKind::V2 => {
                actions.push(StageAction::ShowPiece {
                    child: child.id,
                    piece: PieceNumber(piece),
                });
                (child.id, self.layout.segments_of(piece))
            }
        };
        for segment in segments.clone() {
            child.shown.set(segment);
            self.placed.set(segment);
        }
        self.outstanding.push(Outstanding {
            child: id,
            segments,
            since: now,
            asked: false,
            given_up: false,
        });
    }

    /// The uplink idles: the segment that the fewest children have goes to one that lacks it.
    fn repeat(&mut self, now: Duration, actions: &mut Vec<StageAction>) {
        let owners = |segment: u32| {
            self.children
                .iter()
                .filter(|c| c.shown.get(segment) || c.has.get(segment))
                .count()
        };
        let mut by_need: Vec<(usize, u32)> = self
            .here
            .ones()
            .map(|segment| (owners(segment), segment))
            .collect();
        by_need.sort_unstable();
        let mut chance = self.chance.clone();
        for (_, segment) in by_need {
            let held = self.held.get(self.layout.piece_of(segment));
            if (held || !self.for_v2.get(self.layout.piece_of(segment)))
                && let Some(at) = self.taker(segment, PER_CHILD_MIN, &mut chance)
            {
                self.show(now, at, segment, actions);
                self.idle_since = None;
                return;
            }
        }
        self.idle_since = Some(now);
    }
}

#[cfg(test)]
mod tests;
