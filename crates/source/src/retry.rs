//! How often and after what pause a request is tried again.

use std::time::Duration;

use crate::{Retry, SourceError};

/// Tries of one request that fails for a passing reason: a connection that breaks, a 408, 425, 429, 500, 502, 503 or 504.
///
/// The pause doubles from [`RetryPolicy::first_pause`] up to [`RetryPolicy::longest_pause`], and a random half of it is cut
/// off so that many daemons do not come back at the same instant. `Retry-After` lengthens it; an origin that wants
/// a longer pause than [`RetryPolicy::retry_after_max`] gets it from the caller, who is told at once ([`SourceError::retry`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many tries in all, the first included; 0 counts as 1.
    pub tries: u32,
    /// Pause before the second try.
    pub first_pause: Duration,
    /// Cap of the pause.
    pub longest_pause: Duration,
    /// Longest `Retry-After` that is waited for here.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    /// Three tries, pauses of 200 ms and 400 ms (less jitter), `Retry-After` up to 10 s.
    fn default() -> Self {
        Self {
            tries: 3,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(10),
        }
    }
}

impl RetryPolicy {
    /// One try only: the caller has its own way to go on.
    #[must_use]
    pub fn once() -> Self {
        Self {
            tries: 1,
            ..Self::default()
        }
    }

    /// The pause before the next try after `failed` tries of which the last ended in `error`; `None` to give up.
    /// `random` is in 0.0..1.0.
    pub(crate) fn pause(&self, failed: u32, error: &SourceError, random: f64) -> Option<Duration> {
        if failed >= self.tries {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(
            1_u32
                .checked_shl(failed.saturating_sub(1))
                .unwrap_or(u32::MAX),
        );
        let backoff = doubled.min(self.longest_pause).mul_f64(1.0 - random / 2.0);
        match (error, error.retry()) {
            // A stall has already cost its limit; the caller knows better whether another one is worth it.
            (SourceError::Stalled { .. }, _) | (_, Retry::Never) => None,
            (_, Retry::Backoff) => Some(backoff),
            (_, Retry::After(asked)) => (asked <= self.retry_after_max).then(|| asked.max(backoff)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Redacted;

    fn status(status_code: u16, retry_after: Option<u64>) -> SourceError {
        SourceError::Status {
            url: Redacted::text("http://h"),
            status_code,
            header: HashMap::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn pauses_double_with_jitter_up_to_the_cap() {
        let policy = RetryPolicy {
            tries: 100,
            ..RetryPolicy::default()
        };
        let busy = status(503, None);
        assert_eq!(
            policy.pause(1, &busy, 0.0),
            Some(Duration::from_millis(200))
        );
        assert_eq!(
            policy.pause(2, &busy, 0.0),
            Some(Duration::from_millis(400))
        );
        assert_eq!(
            policy.pause(2, &busy, 0.5),
            Some(Duration::from_millis(300))
        );
        assert_eq!(policy.pause(99, &busy, 0.0), Some(policy.longest_pause));
    }

    #[test]
    fn the_origin_may_ask_for_a_longer_pause_but_not_for_any() {
        let policy = RetryPolicy::default();
        assert_eq!(
            policy.pause(1, &status(429, Some(3)), 0.0),
            Some(Duration::from_secs(3))
        );
        assert_eq!(
            policy.pause(1, &status(429, Some(0)), 0.0),
            Some(Duration::from_millis(200))
        );
        assert_eq!(policy.pause(1, &status(503, Some(60)), 0.0), None);
        assert_eq!(policy.pause(1, &status(404, Some(1)), 0.0), None);
        assert_eq!(
            policy.pause(3, &status(503, None), 0.0),
            None,
            "no fourth try"
        );
    }
}
