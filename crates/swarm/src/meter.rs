//! Rates from byte counts: what a link carries now, and the best that it carried.

use std::time::Duration;

/// Buckets that make up "now".
const BUCKETS: usize = 5;
/// Length of a bucket; together they are half a second, long enough to even out a segment's end and
/// the start of the next.
const BUCKET: Duration = Duration::from_millis(100);
/// What remains of the best rate after each bucket: it halves in about a minute, so that a link that
/// became slower for good is believed.
const FADE: f64 = 0.999;

/// Bytes per second over the last half second, and the highest value that this had.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    /// Bytes per bucket; `current` is the bucket of time `BUCKET * epoch`.
    buckets: [u64; BUCKETS],
    epoch: u128,
    best: f64,
}

impl Meter {
    pub(crate) fn add(&mut self, now: Duration, bytes: u64) {
        self.turn(now);
        self.buckets[Self::place(self.epoch)] += bytes;
    }

    /// Bytes per second in the whole buckets before now.
    pub(crate) fn rate(&mut self, now: Duration) -> f64 {
        self.turn(now);
        self.whole_buckets()
    }

    /// The best rate seen, fading slowly.
    pub(crate) fn best(&self) -> f64 {
        self.best
    }

    fn whole_buckets(&self) -> f64 {
        let current = Self::place(self.epoch);
        let whole = self
            .buckets
            .iter()
            .enumerate()
            .filter(|(place, _)| *place != current);
        let bytes: u64 = whole.map(|(_, bytes)| *bytes).sum();
        bytes as f64 / (BUCKET.as_secs_f64() * (BUCKETS - 1) as f64)
    }

    fn turn(&mut self, now: Duration) {
        let epoch = now.as_millis() / BUCKET.as_millis();
        let steps = epoch.saturating_sub(self.epoch);
        if steps > BUCKETS as u128 {
            self.buckets = [0; BUCKETS];
            self.epoch = epoch;
            return;
        }
        for _ in 0..steps {
            self.epoch += 1;
            self.buckets[Self::place(self.epoch)] = 0;
            self.best = (self.best * FADE).max(self.whole_buckets());
        }
    }

    fn place(epoch: u128) -> usize {
        (epoch % BUCKETS as u128) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_leaves_its_best() {
        let mut meter = Meter::default();
        for ms in 0..1000 {
            meter.add(Duration::from_millis(ms), 1000);
        }
        let rate = meter.rate(Duration::from_millis(1000));
        assert!((rate - 1_000_000.0).abs() < 1.0, "{rate}");
        assert_eq!(meter.rate(Duration::from_secs(9)), 0.0);
        assert!(meter.best() > 990_000.0);
    }
}
