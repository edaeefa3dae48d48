//! From what is open and who is free to requests.

use std::ops::Range;
use std::time::Duration;

use super::live::Live;
use super::neighbour::{Line, Neighbour};
use super::{NeighbourKind, Picker, PickerAction, PieceNumber, Request, RequestId};
use crate::choose::{candidates, cheapest, first_one, intersects};

/// Granted slots are taken even when so many requests too many are out: a refused grant costs a round
/// through the line.
const GRANT_EXTRA: usize = 2;
/// Least number of requests at one parent that is allowed, so that its link never idles between two.
const PER_PARENT_MIN: usize = 2;

impl Picker {
    /// Every grant is used or declined at once, so that the slot does not idle.
    pub(super) fn answer_grants(&mut self, now: Duration) {
        for at in 0..self.neighbours.len() {
            if self.neighbours[at].line != Line::Granted {
                continue;
            }
            self.neighbours[at].line = Line::Open;
            let most = self.limited(self.options.in_flight + GRANT_EXTRA);
            let room = self.running(NeighbourKind::Mesh) < most;
            let well = self.neighbours[at].is_well(now);
            let open = if room && well {
                self.choose(now, &[at])
            } else {
                None
            };
            if let Some((segment, _)) = open {
                self.ask_segment(now, at, segment);
            } else if let Some(segment) = self
                .slow_segment(now)
                .filter(|s| well && self.can_give(at, *s))
            {
                self.ask_segment(now, at, segment);
            } else {
                let neighbour = self.neighbours[at].id;
                self.pending.push(PickerAction::Decline { neighbour });
            }
        }
    }

    /// Asks mesh neighbours that have a free slot, as far as we know, for the rarest segments.
    pub(super) fn ask_mesh(&mut self, now: Duration) {
        if self.segments.open().count() == 0 {
            return;
        }
        let cap = self.per_parent(now);
        let mut free: Vec<usize> = Vec::with_capacity(self.neighbours.len());
        while self.running(NeighbourKind::Mesh) < self.limited(self.options.in_flight) {
            free.clear();
            free.extend((0..self.neighbours.len()).filter(|at| self.can_ask(*at, now, cap)));
            let Some((segment, at)) = self.choose(now, &free) else {
                return;
            };
            self.ask_segment(now, at, segment);
        }
    }

    /// Asks v2 neighbours for whole pieces: first such of which nothing is here, then such that no mesh
    /// neighbour can complete.
    pub(super) fn ask_v2(&mut self, now: Duration) {
        if self
            .neighbours
            .iter()
            .all(|n| n.kind == NeighbourKind::Mesh)
        {
            return;
        }
        let missing = self.segments.missing();
        let useful = |n: &&Neighbour| {
            n.kind == NeighbourKind::V2 && n.is_well(now) && intersects(n.usable(), missing)
        };
        let parents = self.neighbours.iter().filter(useful).count().max(1);
        let cap = (self.options.v2_in_flight / parents).max(PER_PARENT_MIN);
        while self.running(NeighbourKind::V2) < self.limited(self.options.v2_in_flight) {
            let Some((piece, at)) = self.choose_piece(now, cap) else {
                return;
            };
            self.ask_piece(now, at, piece);
        }
    }

    fn limited(&self, count: usize) -> usize {
        self.limit.map_or(count, |limit| count.min(limit))
    }

    pub(super) fn running(&self, kind: NeighbourKind) -> usize {
        self.live
            .iter()
            .filter(|live| live.kind == kind && !live.stalled)
            .count()
    }

    /// Most requests at one mesh parent: a share of all, but at least two.
    pub(super) fn per_parent(&self, now: Duration) -> usize {
        let missing = self.segments.missing();
        let useful = |n: &&Neighbour| {
            n.kind == NeighbourKind::Mesh && n.is_well(now) && intersects(n.usable(), missing)
        };
        let parents = self.neighbours.iter().filter(useful).count().max(1);
        self.options.in_flight.div_ceil(parents).max(PER_PARENT_MIN)
    }

    /// Whether a mesh neighbour may be asked for one more segment.
    pub(super) fn can_ask(&self, at: usize, now: Duration, cap: usize) -> bool {
        let neighbour = &self.neighbours[at];
        let cap = if neighbour.slow { 1 } else { cap };
        neighbour.kind == NeighbourKind::Mesh && neighbour.running < cap && neighbour.is_free(now)
    }

    /// Whether the neighbour shows the segment, is no party to it already, and is allowed to send it.
    pub(super) fn can_give(&self, at: usize, segment: u32) -> bool {
        let neighbour = &self.neighbours[at];
        let party = self.live.iter().any(|live| {
            live.neighbour == neighbour.id && self.segments.running(segment).contains(&live.id)
        });
        neighbour.usable().get(segment) && !party && self.is_allowed(at, segment)
    }

    /// A piece whose digest was wrong comes from one neighbour alone the next time, as far as it can
    /// give it.
    fn is_allowed(&self, at: usize, segment: u32) -> bool {
        let piece = self.segments.layout.piece_of(segment);
        let owner = self.sole.get(&piece).copied().flatten();
        let can = |owner: &usize| {
            let owner = &self.neighbours[*owner];
            owner.is_well(self.decided_at) && owner.usable().get(segment)
        };
        let owner = owner.and_then(|owner| self.find(owner)).filter(can);
        owner.is_none_or(|owner| owner == at)
    }

    /// The best open segment that one of the `free` neighbours can give, and the one to ask.
    fn choose(&mut self, now: Duration, free: &[usize]) -> Option<(u32, usize)> {
        let offers: Vec<_> = free
            .iter()
            .map(|at| self.neighbours[*at].usable())
            .collect();
        let open = self.segments.open();
        let allowed = |segment: &u32| {
            self.sole.is_empty()
                || free.iter().any(|at| {
                    self.neighbours[*at].usable().get(*segment) && self.is_allowed(*at, *segment)
                })
        };
        let (front, end) = (self.front(), self.segments.layout.segments());
        let window = front..front.saturating_add(self.options.window).min(end);
        let first = match self.reader {
            Some(_) => {
                let near = front..front.saturating_add(self.options.in_order).min(end);
                candidates(open, &offers, near).find(allowed)
            }
            None => None,
        };
        let mut chance = self.chance.clone();
        let mut rarest = |range: Range<u32>| {
            let range = candidates(open, &offers, range).filter(allowed);
            cheapest(
                range,
                |segment| self.segments.shown_by(segment),
                &mut chance,
            )
        };
        let segment = first
            .or_else(|| rarest(window.clone()))
            .or_else(|| rarest(window.end..end))
            .or_else(|| rarest(0..front));
        let cost = |at: usize| {
            let neighbour = &self.neighbours[at];
            let strikes = if self.sole.is_empty() {
                0
            } else {
                neighbour.strikes
            };
            (
                strikes,
                neighbour.slow,
                neighbour.running,
                segment.is_some_and(|s| !neighbour.holds(s)),
            )
        };
        let givers = free
            .iter()
            .copied()
            .filter(|at| segment.is_some_and(|s| self.can_give(*at, s)));
        let giver = cheapest(givers, cost, &mut chance);
        self.chance = chance;
        debug_assert!(
            self.neighbours
                .iter()
                .all(|n| n.last_sign <= now.max(n.last_sign))
        );
        Some((segment?, giver?))
    }

    /// The piece to ask whole of a v2 neighbour, and of which.
    fn choose_piece(&mut self, now: Duration, cap: usize) -> Option<(u32, usize)> {
        let free = |at: &usize| {
            let n = &self.neighbours[*at];
            n.kind == NeighbourKind::V2
                && n.is_free(now)
                && n.running < if n.slow { 1 } else { cap }
        };
        let free: Vec<usize> = (0..self.neighbours.len()).filter(free).collect();
        let offers: Vec<_> = free
            .iter()
            .map(|at| self.neighbours[*at].usable())
            .collect();
        let (layout, open) = (&self.segments.layout, self.segments.open());
        let piece_of = |segment| layout.piece_of(segment);
        let ahead = layout
            .segments_of(0)
            .end
            .saturating_mul(2 * u32::try_from(self.options.v2_in_flight).unwrap_or(8));
        let (front, end) = (self.front(), layout.segments());
        let window = front
            ..front
                .saturating_add(self.options.window.max(ahead))
                .min(end);
        let fresh = |segment: &u32| {
            layout.offset_in_piece(*segment) == 0 && self.segments.is_fresh(piece_of(*segment))
        };
        let alone = |segment: &u32| {
            let mesh = |n: &Neighbour| {
                n.kind == NeighbourKind::Mesh && n.is_well(now) && n.usable().get(*segment)
            };
            layout
                .segments_of(piece_of(*segment))
                .all(|other| self.segments.running(other).is_empty())
                && !self.neighbours.iter().any(mesh)
        };
        let mut chance = self.chance.clone();
        let mut rarest = |range: Range<u32>, fits: &dyn Fn(&u32) -> bool| {
            let fitting = candidates(open, &offers, range).filter(fits);
            cheapest(
                fitting,
                |segment| self.segments.shown_by(segment),
                &mut chance,
            )
        };
        let segment = rarest(window.clone(), &fresh)
            .or_else(|| rarest(window.end..end, &fresh))
            .or_else(|| rarest(0..front, &fresh))
            .or_else(|| rarest(0..end, &alone));
        let givers = free
            .iter()
            .copied()
            .filter(|at| segment.is_some_and(|s| self.can_give(*at, s)));
        let giver = cheapest(
            givers,
            |at| (self.neighbours[at].slow, self.neighbours[at].running),
            &mut chance,
        );
        self.chance = chance;
        Some((self.segments.layout.piece_of(segment?), giver?))
    }

    /// Where the window begins: the first gap, behind the reader if there is one.
    fn front(&self) -> u32 {
        let missing = self.segments.missing();
        let gap = |from| first_one(missing, from);
        self.reader.and_then(gap).or_else(|| gap(0)).unwrap_or(0)
    }

    /// Asks for a segment from the byte reached. Requests for it that stalled are cancelled.
    pub(super) fn ask_segment(&mut self, now: Duration, at: usize, segment: u32) {
        let layout = &self.segments.layout;
        let piece = layout.piece_of(segment);
        let reached = self.segments.reached(segment);
        let (offset, length) = (
            layout.offset_in_piece(segment) + reached,
            layout.segment_len(segment) - reached,
        );
        self.ask(
            now,
            at,
            segment..segment + 1,
            Span {
                piece,
                offset,
                length,
            },
        );
    }

    fn ask_piece(&mut self, now: Duration, at: usize, piece: u32) {
        let layout = &self.segments.layout;
        let (segments, length) = (layout.segments_of(piece), layout.piece_len(piece));
        self.ask(
            now,
            at,
            segments,
            Span {
                piece,
                offset: 0,
                length,
            },
        );
    }

    fn ask(&mut self, now: Duration, at: usize, segments: Range<u32>, span: Span) {
        let stalled = |live: &&Live| {
            let rest = self.remaining(live);
            live.stalled && rest.start < segments.end && segments.start < rest.end
        };
        let stalled: Vec<RequestId> = self
            .live
            .iter()
            .filter(stalled)
            .map(|live| live.id)
            .collect();
        self.cancel_all(stalled);
        if self.live.is_empty() {
            self.start_watch(now);
        }
        let id = RequestId(self.next_request);
        self.next_request += 1;
        for segment in segments {
            self.segments.run(segment, id);
        }
        if let Some(owner) = self.sole.get_mut(&span.piece) {
            *owner = Some(self.neighbours[at].id);
        }
        let neighbour = &mut self.neighbours[at];
        neighbour.running += 1;
        let Span {
            piece,
            offset,
            length,
        } = span;
        self.live.push(Live {
            id,
            neighbour: neighbour.id,
            kind: neighbour.kind,
            piece,
            offset,
            length,
            received: 0,
            asked_at: now,
            last_byte: now,
            stalled: false,
            rate: 0.0,
            rated: 0,
        });
        let piece = PieceNumber(piece);
        self.pending.push(PickerAction::Request(Request {
            id,
            neighbour: neighbour.id,
            piece,
            offset,
            length,
        }));
    }
}

/// Bytes within a piece.
struct Span {
    piece: u32,
    offset: u64,
    length: u64,
}
