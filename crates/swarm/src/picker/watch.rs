//! What goes wrong silently: requests without bytes, parents that turned slow.

use std::time::Duration;

use super::live::Live;
use super::{NeighbourKind, Picker, PickerAction, RequestId, Suspicion};

/// How often requests are looked at.
const SWEEP: Duration = Duration::from_millis(100);
/// A stalled request is cancelled after this even when nobody else has its bytes.
const STALLED_MAX: Duration = Duration::from_secs(10);
/// No request is judged before it had this long.
const JUDGE_AFTER: Duration = Duration::from_millis(250);
/// A second parent must be expected to save at least this.
const HEDGE_GAIN: Duration = Duration::from_millis(100);
/// Requests out at most beyond the usual number for the sake of hedges.
const HEDGE_EXTRA: usize = 2;
/// Weight of the newest tenth of a second in a request's rate.
const RATE_WEIGHT: f64 = 0.3;

impl Picker {
    /// The first request is out: the first look is due a little later.
    pub(super) fn start_watch(&mut self, now: Duration) {
        self.next_sweep = now + SWEEP;
    }

    /// Looks at every request: measures it, notices that it stalled, or asks a second parent.
    pub(super) fn sweep(&mut self, now: Duration) {
        let since = now.saturating_sub(self.next_sweep) + SWEEP;
        self.next_sweep = now + SWEEP;
        for live in &mut self.live {
            let fresh = (live.received - live.rated) as f64 / since.as_secs_f64();
            let weight = if live.rated == 0 { 1.0 } else { RATE_WEIGHT };
            live.rate += (fresh - live.rate) * weight;
            live.rated = live.received;
        }
        let room = self.has_room(now);
        let quiet = |live: &&Live| {
            !live.stalled && now.saturating_sub(live.last_byte) >= self.patience(live, room)
        };
        let quiet: Vec<RequestId> = self.live.iter().filter(quiet).map(|live| live.id).collect();
        quiet
            .into_iter()
            .for_each(|request| self.stall(now, request));
        let dead = |live: &&Live| live.stalled && now.saturating_sub(live.last_byte) >= STALLED_MAX;
        self.cancel_all(self.live.iter().filter(dead).map(|live| live.id).collect());
        self.hedge(now);
        self.move_slow_pieces(now);
    }

    /// How long a request may be without a byte. While our own downlink is full, its queue is the likely
    /// cause. A v2 parent starts over elsewhere, so it gets more.
    fn patience(&self, live: &Live, room: bool) -> Duration {
        let stall = self.options.stall;
        match (live.kind, room) {
            (NeighbourKind::Mesh, true) => stall,
            (NeighbourKind::V2, true) => stall * 3 / 2,
            (_, false) => stall * 3,
        }
    }

    /// No byte for too long: the segment is open again, and if nothing else came from the neighbour
    /// either, it is frozen, and so are its other requests.
    fn stall(&mut self, now: Duration, request: RequestId) {
        let Some(index) = self
            .live
            .iter()
            .position(|live| live.id == request && !live.stalled)
        else {
            return;
        };
        let (neighbour, remaining) = (
            self.live[index].neighbour,
            self.remaining(&self.live[index]),
        );
        let live = self.live.swap_remove(index);
        self.disown(live.piece, live.neighbour);
        self.unbook(&live);
        self.live.push(Live {
            stalled: true,
            ..live
        });
        let Some(at) = self.find(neighbour) else {
            return;
        };
        remaining.for_each(|segment| self.neighbours[at].set_behind(now, segment));
        let silent = now.saturating_sub(self.neighbours[at].last_sign);
        if silent >= self.options.stall && self.neighbours[at].is_well(now) {
            self.freeze(now, at);
            let others = |live: &&Live| live.neighbour == neighbour && !live.stalled;
            let others: Vec<RequestId> = self
                .live
                .iter()
                .filter(others)
                .map(|live| live.id)
                .collect();
            others
                .into_iter()
                .for_each(|request| self.stall(now, request));
        }
    }

    pub(super) fn freeze(&mut self, now: Duration, at: usize) {
        self.neighbours[at].freeze(now);
        let neighbour = self.neighbours[at].id;
        self.pending.push(PickerAction::Suspect {
            neighbour,
            why: Suspicion::Frozen,
        });
    }

    /// Asks a second parent for the slowest segment, if our downlink has room. One at each look.
    fn hedge(&mut self, now: Duration) {
        let Some(segment) = self.slow_segment(now) else {
            return;
        };
        let cap = self.per_parent(now);
        let fits = |at: &usize| {
            let neighbour = &self.neighbours[*at];
            !neighbour.slow && self.can_ask(*at, now, cap) && self.can_give(*at, segment)
        };
        let free = (0..self.neighbours.len())
            .filter(fits)
            .min_by_key(|at| self.neighbours[*at].running);
        if let Some(at) = free {
            self.ask_segment(now, at, segment);
        }
    }

    /// The segment that has one running request, which needs more than twice the usual time, and is
    /// worth a second one; the most delayed of several.
    pub(super) fn slow_segment(&mut self, now: Duration) -> Option<u32> {
        if self.limit.is_some()
            || !self.has_room(now)
            || self.running(NeighbourKind::Mesh) >= self.options.in_flight + HEDGE_EXTRA
        {
            return None;
        }
        let delayed = |live: &Live| {
            let segment = self.remaining(live).next()?;
            let single =
                live.kind == NeighbourKind::Mesh && self.segments.running(segment).len() == 1;
            single.then_some(())?;
            Some((self.delay(live, now)?, live.neighbour, segment))
        };
        let worst = self
            .live
            .iter()
            .filter_map(delayed)
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        let (_, neighbour, segment) = worst;
        self.mark_slow(neighbour);
        Some(segment)
    }

    /// Whether our downlink runs far enough below its best that more requests can help.
    fn has_room(&mut self, now: Duration) -> bool {
        self.downlink.rate(now) <= self.downlink.best() * self.options.hedge_below
    }

    /// Seconds that the request will need beyond the usual, when that is worth acting upon.
    fn delay(&self, live: &Live, now: Duration) -> Option<f64> {
        let usual = self.pace.rate()?;
        let judged = !live.stalled && now.saturating_sub(live.asked_at) >= JUDGE_AFTER;
        let left = (live.length - live.received) as f64;
        let (needs, should) = (left / live.rate.max(1.0), left / usual);
        (judged && needs > 2.0 * should && needs - should > HEDGE_GAIN.as_secs_f64())
            .then_some(needs - should)
    }

    /// A v2 parent that turned slow loses a piece when another can send it in less than half the time.
    fn move_slow_pieces(&mut self, now: Duration) {
        let Some(usual) = self.pace.rate() else {
            return;
        };
        if !self.has_room(now) {
            return;
        }
        let movable = |live: &&Live| {
            live.kind == NeighbourKind::V2
                && self.delay(live, now).is_some_and(|delay| {
                    let again = live.length as f64 / usual;
                    let left = (live.length - live.received) as f64 / live.rate.max(1.0);
                    delay > 0.0 && left > 2.0 * again && self.has_another_parent(live, now)
                })
        };
        let Some((id, neighbour, remaining)) = self
            .live
            .iter()
            .find(movable)
            .map(|live| (live.id, live.neighbour, self.remaining(live)))
        else {
            return;
        };
        self.mark_slow(neighbour);
        if let Some(at) = self.find(neighbour) {
            remaining.for_each(|segment| self.neighbours[at].set_behind(now, segment));
        }
        if let Some(live) = self.end(id) {
            self.disown(live.piece, neighbour);
            self.pending.push(PickerAction::Cancel { request: id });
        }
    }

    fn has_another_parent(&self, live: &Live, now: Duration) -> bool {
        let Some(segment) = self.remaining(live).next() else {
            return false;
        };
        let fits = |n: &&super::Neighbour| {
            n.id != live.neighbour && n.is_free(now) && !n.slow && n.shows(segment)
        };
        self.neighbours.iter().any(|n| fits(&n))
    }

    /// Once per spell of slowness the scheduler hears of it.
    fn mark_slow(&mut self, neighbour: super::NeighbourId) {
        let Some(at) = self.find(neighbour) else {
            return;
        };
        let best = self
            .live
            .iter()
            .filter(|live| live.neighbour == neighbour)
            .map(|live| live.rate)
            .fold(0.0, f64::max);
        let far_below = self.pace.rate().is_some_and(|usual| best < usual / 4.0);
        if far_below && !std::mem::replace(&mut self.neighbours[at].slow, true) {
            self.pending.push(PickerAction::Suspect {
                neighbour,
                why: Suspicion::Slow,
            });
        }
    }
}
