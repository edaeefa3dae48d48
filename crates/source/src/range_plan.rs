//! Which range to read next, and how many at a time.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use protocol::ByteRange;

/// Cuts a range into chunks to be read in order, a few at a time.
///
/// Two at once hide the round trip between a chunk and the next. More connections are tried one by one while they bring
/// more bytes together, and taken back when they do not: an origin whose link is full, or that limits us as a whole, is not
/// asked harder than needed. Pure: time is an argument, as the time since any fixed moment.
#[derive(Debug, Clone)]
pub struct RangePlan {
    next: u64,
    end: u64,
    chunk_length: u64,
    given_back: BTreeMap<u64, u64>,
    depth: Depth,
}

impl RangePlan {
    /// Plans to read `range` in chunks of `chunk_length` bytes (at least 1), two to four at a time.
    #[must_use]
    pub fn new(range: ByteRange, chunk_length: u64) -> Self {
        Self {
            next: range.start,
            end: range.end(),
            chunk_length: chunk_length.max(1),
            given_back: BTreeMap::new(),
            depth: Depth::new(2..=4),
        }
    }

    /// The same plan with other bounds for the ranges at a time.
    #[must_use]
    pub fn with_depths(mut self, depths: RangeInclusive<usize>) -> Self {
        self.depth = Depth::new(depths);
        self
    }

    /// The next chunk in order; what was given back comes first. `None` when every byte was handed out.
    pub fn next_range(&mut self) -> Option<ByteRange> {
        if let Some((start, end)) = self.given_back.pop_first() {
            let chunk_end = end.min(start.saturating_add(self.chunk_length));
            if chunk_end < end {
                self.given_back.insert(chunk_end, end);
            }
            return Some(ByteRange {
                start,
                length: chunk_end - start,
            });
        }
        let start = self.next;
        self.next = self.end.min(start.saturating_add(self.chunk_length));
        (start < self.next).then(|| ByteRange {
            start,
            length: self.next - start,
        })
    }

    /// Takes a chunk, or the unread rest of one, back for a later [`RangePlan::next_range`].
    pub fn give_back(&mut self, range: ByteRange) {
        if range.length > 0 {
            let end = self.given_back.entry(range.start).or_insert(range.end());
            *end = (*end).max(range.end());
        }
    }

    /// How many ranges are worth being read at the same time now.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth.current
    }

    /// Tells that `bytes` came in, over all ranges together, at time `now`.
    pub fn arrived(&mut self, now: Duration, bytes: u64) {
        self.depth.arrived(now, bytes);
    }
}

/// Finds the number of connections behind which more bring nothing.
#[derive(Debug, Clone)]
struct Depth {
    current: usize,
    most: usize,
    window_begin: Option<Duration>,
    window_bytes: u64,
    phase: Phase,
    holds: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// New connections ramp up: this window is not judged. `before` is the rate without the newest one, if it is on trial.
    Settling { before: Option<f64> },
    /// The rate of this window decides.
    Measuring { before: Option<f64> },
    /// The last one brought nothing: so many windows until the next trial.
    Holding { windows: u32 },
}

impl Depth {
    /// Long enough for a connection to leave slow start on most paths, short against a download worth the effort.
    const WINDOW: Duration = Duration::from_millis(400);
    /// A further connection must bring this much more to be kept.
    const GAIN: f64 = 1.15;
    /// Windows without a trial after the first failed one; doubles up to 64 times.
    const FIRST_HOLD: u32 = 8;

    fn new(depths: RangeInclusive<usize>) -> Self {
        let least = (*depths.start()).max(1);
        Self {
            current: least,
            most: (*depths.end()).max(least),
            window_begin: None,
            window_bytes: 0,
            phase: Phase::Settling { before: None },
            holds: 0,
        }
    }

    fn arrived(&mut self, now: Duration, bytes: u64) {
        let Some(begin) = self.window_begin else {
            self.window_begin = Some(now);
            return;
        };
        self.window_bytes = self.window_bytes.saturating_add(bytes);
        let elapsed = now.saturating_sub(begin);
        if elapsed < Self::WINDOW {
            return;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate needs no more than 52 bits"
        )]
        let rate = self.window_bytes as f64 / elapsed.as_secs_f64();
        self.window_begin = Some(now);
        self.window_bytes = 0;
        self.judge(rate);
    }

    fn judge(&mut self, rate: f64) {
        self.phase = match self.phase {
            Phase::Settling { before } => Phase::Measuring { before },
            Phase::Measuring {
                before: Some(before),
            } if rate < before * Self::GAIN => {
                self.current -= 1;
                self.holds = (self.holds + 1).min(7);
                Phase::Holding {
                    windows: Self::FIRST_HOLD << (self.holds - 1),
                }
            }
            Phase::Holding { windows } if windows > 1 => Phase::Holding {
                windows: windows - 1,
            },
            Phase::Measuring { .. } | Phase::Holding { .. } if self.current < self.most => {
                self.current += 1;
                Phase::Settling { before: Some(rate) }
            }
            Phase::Measuring { .. } | Phase::Holding { .. } => Phase::Measuring { before: None },
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange { start, length }
    }

    /// Runs the plan over an origin that gives `rate(depth)` bytes per second; returns the depths seen.
    fn run(rate: impl Fn(usize) -> u64, seconds: u64) -> Vec<usize> {
        let mut plan = RangePlan::new(range(0, u64::MAX), 1 << 20);
        let mut depths = vec![plan.depth()];
        for tick in 0..seconds * 50 {
            plan.arrived(Duration::from_millis(tick * 20), rate(plan.depth()) / 50);
            if depths.last() != Some(&plan.depth()) {
                depths.push(plan.depth());
            }
        }
        depths
    }

    #[test]
    fn a_full_link_is_left_at_two_after_a_short_trial() {
        let depths = run(|_| 100_000_000, 4);
        assert_eq!(depths, [2, 3, 2], "one trial, taken back");
    }

    #[test]
    fn connections_are_added_while_they_bring_more() {
        assert_eq!(run(|depth| depth as u64 * 10_000_000, 10), [2, 3, 4]);
        let depths = run(|depth| depth.min(3) as u64 * 10_000_000, 5);
        assert_eq!(depths, [2, 3, 4, 3]);
    }

    #[test]
    fn what_is_given_back_comes_first() {
        let mut plan = RangePlan::new(range(10, 25), 10);
        assert_eq!(plan.next_range(), Some(range(10, 10)));
        assert_eq!(plan.next_range(), Some(range(20, 10)));
        plan.give_back(range(14, 6));
        assert_eq!(plan.next_range(), Some(range(14, 6)));
        assert_eq!(plan.next_range(), Some(range(30, 5)));
        assert_eq!(plan.next_range(), None);
    }

    proptest! {
        #[test]
        fn every_byte_is_handed_out_once(start in 0u64..1000, length in 0u64..5000, chunk in 0u64..700, failures in prop::collection::vec(any::<u16>(), 0..20)) {
            let mut plan = RangePlan::new(range(start, length), chunk);
            let mut failures = failures.into_iter();
            let mut seen = vec![false; usize::try_from(length).unwrap()];
            while let Some(got) = plan.next_range() {
                prop_assert!(got.length > 0 && got.length <= chunk.max(1));
                let kept = failures.next().map_or(got.length, |failure| u64::from(failure) % (got.length + 1));
                plan.give_back(range(got.start + kept, got.length - kept));
                for byte in got.start..got.start + kept {
                    let seen = &mut seen[usize::try_from(byte - start).unwrap()];
                    prop_assert!(!*seen);
                    *seen = true;
                }
            }
            prop_assert!(seen.into_iter().all(|seen| seen));
        }
    }
}
