//! Bandwidth limits.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A bandwidth limit shared by any number of transfers: a token bucket that holds a tenth of a second of traffic,
/// first come first served.
///
/// A caller takes the tokens first and then waits as long as it is told, so waiting needs no queue: the debt is the queue.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// When the bucket will be, or was, empty of debt.
    paid_until: Mutex<Instant>,
}

/// How much unused time a bucket keeps for a burst.
const BURST: Duration = Duration::from_millis(100);

impl RateLimit {
    /// A limit of so many bytes per second; 0 counts as 1. The bucket starts full.
    pub fn new(bytes_per_second: u64) -> Self {
        let now = Instant::now();
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid_until: Mutex::new(now.checked_sub(BURST).unwrap_or(now)),
        }
    }

    /// The limit, in bytes per second.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Takes tokens for `bytes` and waits until they are due. Cancel-safe; tokens taken stay taken.
    pub async fn acquire(&self, bytes: u64) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes tokens for `bytes` and says how long the caller must wait before it uses them.
    pub fn reserve(&self, bytes: u64, now: Instant) -> Duration {
        let cost = u128::from(bytes) * NANOS_PER_SECOND / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        let mut paid_until = self.paid_until.lock();
        let start = now
            .checked_sub(BURST)
            .map_or(*paid_until, |earliest| earliest.max(*paid_until));
        *paid_until = start.checked_add(cost).unwrap_or(start);
        paid_until.saturating_duration_since(now)
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_free_and_the_rest_is_paid() {
        let limit = RateLimit::new(1_000_000);
        let now = Instant::now();
        assert_eq!(limit.reserve(50_000, now), Duration::ZERO);
        assert_eq!(limit.reserve(1_000_000, now).as_millis() / 10, 95);
        let later = now + Duration::from_secs(10);
        assert_eq!(limit.reserve(100_000, later), Duration::ZERO);
        assert_eq!(limit.reserve(100_000, later), Duration::from_millis(100));
    }

    #[test]
    fn absurd_sizes_do_not_panic() {
        let limit = RateLimit::new(0);
        let now = Instant::now();
        limit.reserve(u64::MAX, now);
        limit.reserve(u64::MAX, now);
    }

    proptest! {
        #[test]
        fn never_faster_than_the_limit(rate in 1_000u64..1_000_000, takes in prop::collection::vec((0u64..50_000, 0u64..100), 1..40)) {
            let limit = RateLimit::new(rate);
            let start = Instant::now();
            let mut now = start;
            let (mut total, mut due) = (0, start);
            for (bytes, pause_ms) in takes {
                now += Duration::from_millis(pause_ms);
                due = due.max(now + limit.reserve(bytes, now));
                total += bytes;
            }
            let allowed = (due - start + BURST + Duration::from_millis(1)).as_secs_f64() * rate as f64;
            prop_assert!(total as f64 <= allowed, "{total} of {allowed}");
        }
    }
}
