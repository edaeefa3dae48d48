//! What to show next, to whom, and what to take back.

use std::time::Duration;

use protocol::{PieceNumber, SegmentIndex};

use super::{
    Child, ChildKind, LONE, Outstanding, PER_CHILD_MIN, SLOW, SLOW_MIN, Stage, StageAction,
    UNASKED, UNASKED_SEGMENTS,
};
use crate::ChildId;
use crate::choose::cheapest;

impl Stage {
    /// How much is outstanding: each occupies a slot, now or in a moment.
    pub(super) fn busy(&self) -> usize {
        self.outstanding.len()
    }

    fn busy_at(&self, child: ChildId) -> usize {
        self.outstanding
            .iter()
            .filter(|entry| entry.child == child)
            .count()
    }

    /// Most that is outstanding at all. A lone child competes with nobody: it is shown enough to never
    /// wait for an announcement.
    pub(super) fn most(&self) -> usize {
        if self.children.len() == 1 {
            self.limit * LONE
        } else {
            self.limit
        }
    }

    /// Most that is outstanding at one child.
    fn cap(&self) -> usize {
        self.most()
            .checked_div(self.children.len())
            .unwrap_or(0)
            .max(PER_CHILD_MIN)
    }

    /// Until when a child must have asked for, or got, what it was shown.
    pub(super) fn time_limit(&self, entry: &Outstanding) -> Duration {
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

    /// What a child lets lie is not outstanding any more, and may be shown to another.
    pub(super) fn take_back(&mut self, now: Duration) {
        let late = |entry: &Outstanding| self.time_limit(entry) <= now;
        let late: Vec<usize> = (0..self.outstanding.len())
            .filter(|at| late(&self.outstanding[*at]))
            .collect();
        for at in late.into_iter().rev() {
            let entry = self.outstanding.swap_remove(at);
            for segment in entry.segments {
                if !self.held_elsewhere(entry.child, segment) {
                    self.placed.clear(segment);
                }
            }
        }
    }

    fn held_elsewhere(&self, child: ChildId, segment: u32) -> bool {
        self.children
            .iter()
            .any(|other| other.id != child && other.owns.get(segment))
    }

    /// Shows the first segment that no child owns, to the child with the fewest outstanding.
    pub(super) fn show_next(&mut self, now: Duration, actions: &mut Vec<StageAction>) -> bool {
        let cap = self.cap();
        if !self
            .children
            .iter()
            .any(|child| self.busy_at(child.id) < cap)
        {
            return false;
        }
        let mut chance = self.chance.fork();
        let mut known = Vec::new();
        let mut found = None;
        for segment in self
            .placed
            .zeros()
            .filter(|segment| self.here.get(*segment))
        {
            let piece = self.layout.piece_of(segment);
            let kind = if self.for_v2.get(piece) {
                ChildKind::V2
            } else {
                ChildKind::Mesh
            };
            let starts = self.layout.offset_in_piece(segment) == 0;
            if kind == ChildKind::V2 && !(self.held.get(piece) && starts) {
                continue;
            }
            if self
                .children
                .iter()
                .all(|child| child.kind != kind || child.owns.get(segment))
            {
                known.push(segment);
                continue;
            }
            found = self
                .taker(segment, kind, cap, &mut chance)
                .map(|child| (child, segment));
            if found.is_some() {
                break;
            }
        }
        self.place_known(&known);
        let Some((at, segment)) = found else {
            return false;
        };
        self.show(now, at, segment, actions);
        true
    }

    /// A segment that every child that could take it was shown needs no further child; unless there is
    /// no such child, then those of the other kind may have it.
    fn place_known(&mut self, known: &[u32]) {
        for segment in known {
            let piece = self.layout.piece_of(*segment);
            let for_v2 = self.for_v2.get(piece);
            let kind = if for_v2 {
                ChildKind::V2
            } else {
                ChildKind::Mesh
            };
            if self.children.iter().any(|child| child.kind == kind) {
                for segment in if for_v2 {
                    self.layout.segments_of(piece)
                } else {
                    *segment..*segment + 1
                } {
                    self.placed.set(segment);
                }
            } else if for_v2 {
                self.for_v2.clear(piece);
            } else if self
                .layout
                .segments_of(piece)
                .all(|segment| !self.placed.get(segment))
            {
                self.for_v2.set(piece);
            } else {
                self.placed.set(*segment);
            }
        }
    }

    /// The child to show this segment to: it lacks it, has room, and takes it in this form.
    fn taker(
        &self,
        segment: u32,
        kind: ChildKind,
        cap: usize,
        chance: &mut fastrand::Rng,
    ) -> Option<usize> {
        let fits = |at: &usize| {
            let child = &self.children[*at];
            child.kind == kind && !child.owns.get(segment) && self.busy_at(child.id) < cap
        };
        let cost = |at: usize| {
            let child = &self.children[at];
            (self.busy_at(child.id), child.owns.count())
        };
        cheapest((0..self.children.len()).filter(fits), cost, chance)
    }

    fn show(&mut self, now: Duration, at: usize, segment: u32, actions: &mut Vec<StageAction>) {
        let piece = self.layout.piece_of(segment);
        let Child {
            id: child,
            kind,
            owns,
            ..
        } = &mut self.children[at];
        let child = *child;
        let segments = match kind {
            ChildKind::Mesh => {
                actions.push(StageAction::ShowSegment {
                    child,
                    segment: SegmentIndex(segment),
                });
                segment..segment + 1
            }
            ChildKind::V2 => {
                actions.push(StageAction::ShowPiece {
                    child,
                    piece: PieceNumber(piece),
                });
                self.layout.segments_of(piece)
            }
        };
        for segment in segments.clone() {
            owns.set(segment);
            self.placed.set(segment);
        }
        self.outstanding.push(Outstanding {
            child,
            segments,
            since: now,
            asked: false,
        });
    }

    /// Shows something again: to the child that owns least, of the kinds that are still staged, what
    /// the fewest own.
    pub(super) fn repeat(&mut self, now: Duration, actions: &mut Vec<StageAction>) -> bool {
        let cap = self.cap();
        let mut chance = self.chance.fork();
        let staged = |at: &usize| {
            let child = &self.children[*at];
            (child.kind == ChildKind::V2 || !self.open) && self.busy_at(child.id) < cap
        };
        let mut children: Vec<usize> = (0..self.children.len()).filter(staged).collect();
        children.sort_by_key(|at| self.children[*at].owns.count());
        let found = children.into_iter().find_map(|at| {
            let child = &self.children[at];
            let fits = |segment: &u32| match child.kind {
                ChildKind::Mesh => self.here.get(*segment),
                ChildKind::V2 => {
                    let whole = self.held.get(self.layout.piece_of(*segment));
                    whole && self.layout.offset_in_piece(*segment) == 0
                }
            };
            let owners =
                |segment: u32| self.children.iter().filter(|c| c.owns.get(segment)).count();
            cheapest(child.owns.zeros().filter(fits), owners, &mut chance)
                .map(|segment| (at, segment))
        });
        let Some((at, segment)) = found else {
            return false;
        };
        self.show(now, at, segment, actions);
        true
    }
}
