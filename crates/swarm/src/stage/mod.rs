//! Staged announcement: a seed shows each segment to one child first.
//!
//! Without it every child asks the seed for the same first segments, and the seed sends each of them to
//! everybody while the children have nothing to give to each other. With it, the seed sends each byte
//! about once, and the children exchange the rest.
//!
//! A v2 child takes whole pieces only, and would ask the seed for all that it is shown. It is shown its
//! share of the first copies, whole, when their digest is known; and later, for as long as it stays,
//! one piece after another while slots are free, the rarest first.

mod api;
mod show;

use std::ops::Range;
use std::time::Duration;

use protocol::{Bitmap, Geometry};

pub use api::{ChildKind, StageAction, StageEvent};

use crate::layout::Layout;
use crate::{ChildId, Shown};

/// Least time that a child has to ask for what it was shown.
const UNASKED: Duration = Duration::from_millis(300);
/// The same in segment times of the uplink, whichever is longer.
const UNASKED_SEGMENTS: f64 = 4.0;
/// What is served so many times slower than with a fair share of the slots is clearly slow.
const SLOW: f64 = 4.0;
/// Least time before something that was asked for counts as slow.
const SLOW_MIN: Duration = Duration::from_secs(1);
/// With nothing outstanding and nothing new for so long, the uplink idles and may repeat itself.
const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// Segments or pieces outstanding at one child, unless there are few children.
const PER_CHILD_MIN: usize = 2;
/// A lone child may have so many times the usual number outstanding.
const LONE: usize = 4;
/// V2 children get first copies only when they are more than one in so many.
const FEW_V2: usize = 3;
/// Uplink taken for granted until one is measured, in bytes per second.
const UPLINK_UNKNOWN: f64 = 25e6;

#[derive(Debug)]
struct Child {
    id: ChildId,
    kind: ChildKind,
    /// Segments that we showed it, or of pieces that it holds as it says.
    owns: Bitmap,
    /// Segments that it has or is getting, as it says.
    gets: Bitmap,
}

/// Something shown to a child and not yet served: a segment, or the segments of a piece for v2.
#[derive(Debug)]
struct Outstanding {
    child: ChildId,
    segments: Range<u32>,
    since: Duration,
    asked: bool,
}

/// Which segment a seed shows to which child first.
///
/// Each segment goes to one child; as many as there are upload slots are outstanding at once, so that
/// the next goes to whoever is ready. A segment goes to a second child when the first does not ask for
/// it in time, is clearly slow, or leaves. When everything that the seed wants is held and was shown
/// once, the stage opens for mesh children; v2 children are metered for as long as they stay.
#[derive(Debug)]
pub struct Stage {
    layout: Layout,
    chance: fastrand::Rng,
    /// Most segments outstanding at once.
    limit: usize,
    /// Bytes per second.
    uplink: f64,
    children: Vec<Child>,
    /// Pieces that the seed has or will have.
    wanted: Bitmap,
    held: Bitmap,
    /// Segments that are here or arriving.
    here: Bitmap,
    /// Segments that some child owns.
    placed: Bitmap,
    /// Pieces whose first copy goes whole to a v2 child; decided when their first segment arrives.
    for_v2: Bitmap,
    v2_credit: i64,
    outstanding: Vec<Outstanding>,
    idle_since: Option<Duration>,
    open: bool,
    decided_at: Duration,
}

impl Stage {
    /// The stage of a task of which the seed will have the pieces `wanted` and has `held`.
    pub fn new(geometry: &Geometry, wanted: &Bitmap, held: &Bitmap, seed: u64) -> Self {
        let layout = Layout::new(geometry);
        let mut stage = Self {
            layout,
            chance: fastrand::Rng::with_seed(seed),
            limit: 6,
            uplink: UPLINK_UNKNOWN,
            children: Vec::new(),
            wanted: Bitmap::new(layout.pieces()),
            held: Bitmap::new(layout.pieces()),
            here: Bitmap::new(layout.segments()),
            placed: Bitmap::new(layout.segments()),
            for_v2: Bitmap::new(layout.pieces()),
            v2_credit: 0,
            outstanding: Vec::new(),
            idle_since: None,
            open: false,
            decided_at: Duration::ZERO,
        };
        stage.wanted.union_with(wanted);
        held.ones().for_each(|piece| stage.hold(piece));
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

    /// Whether everything is announced to every mesh child.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes in something that happened at `now`.
    pub fn handle(&mut self, now: Duration, event: StageEvent) {
        match event {
            StageEvent::Joined { child, kind } => self.joined(child, kind),
            StageEvent::Left { child } => self.left(child),
            StageEvent::WantMore { pieces } => self.wanted.union_with(&pieces),
            StageEvent::Arriving { segment } => {
                if self.here.set(segment.0) {
                    self.assign(self.layout.piece_of(segment.0));
                }
            }
            StageEvent::PieceHeld { piece } => self.hold(piece.0),
            StageEvent::PieceDropped { piece } => self.drop_piece(piece.0),
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
        self.take_back(now);
        while !self.open && self.busy() < self.most() && self.show_next(now, actions) {}
        if !self.open && self.wanted.ones().all(|piece| self.is_done(piece)) {
            self.open = true;
            actions.push(StageAction::Open);
        }
        if self.busy() > 0 || self.children.is_empty() {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert(now);
        }
        let idle = self
            .idle_since
            .is_some_and(|since| now.saturating_sub(since) >= REPEAT_AFTER);
        if self.open || idle {
            while self.busy() < self.most() && self.repeat(now, actions) {}
        }
    }

    /// When to decide again if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let limits = self.outstanding.iter().map(|entry| self.time_limit(entry));
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
                owns: empty.clone(),
                gets: empty,
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
                .any(|c| c.owns.get(*segment) || c.gets.get(*segment))
        };
        let lost = gone.owns.ones().filter(|segment| !elsewhere(segment));
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
        if self.held.set(piece) {
            self.wanted.set(piece);
            for segment in self.layout.segments_of(piece) {
                self.here.set(segment);
            }
            self.assign(piece);
        }
    }

    /// Nothing of the piece is here any more; when it comes again, everybody may be shown it.
    fn drop_piece(&mut self, piece: u32) {
        self.held.clear(piece);
        for segment in self.layout.segments_of(piece) {
            self.here.clear(segment);
            self.placed.clear(segment);
            self.outstanding
                .retain(|entry| !entry.segments.contains(&segment));
            for child in &mut self.children {
                child.owns.clear(segment);
            }
        }
    }

    /// Whether the piece is held and some child owns all of it.
    fn is_done(&self, piece: u32) -> bool {
        self.held.get(piece)
            && self
                .layout
                .segments_of(piece)
                .all(|segment| self.placed.get(segment))
    }

    /// The first bytes of a piece are here: v2 children get their share of the first copies, whole, when
    /// they are so many that the others cannot do without their uplinks.
    fn assign(&mut self, piece: u32) {
        let begun = self
            .layout
            .segments_of(piece)
            .any(|segment| self.placed.get(segment));
        if begun || self.open || self.for_v2.get(piece) {
            return;
        }
        let count = |of: usize| i64::try_from(of).unwrap_or(i64::MAX);
        let v2 = self
            .children
            .iter()
            .filter(|child| child.kind == ChildKind::V2)
            .count();
        if v2 * FEW_V2 <= self.children.len() {
            return;
        }
        self.v2_credit += count(v2);
        if self.v2_credit >= count(self.children.len()) {
            self.v2_credit -= count(self.children.len());
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
        for segment in segments {
            self.children[at].gets.set(segment);
            // What merely arrives there comes from us or from a child that we gave it.
            if !matches!(what, Shown::Arriving(_)) {
                self.children[at].owns.set(segment);
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
}

#[cfg(test)]
mod tests;
