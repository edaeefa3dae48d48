//! How long a peer's pieces took, and whether its newest one shows that the peer has gone bad.

use std::collections::VecDeque;
use std::time::Duration;

/// Samples that are kept (scheduler sheet, section 4.5).
const WINDOW_LEN: usize = 2000;

/// The last 2000 piece costs of a peer, with their running sums.
///
/// A peer that has ended gets no further samples: [`CostWindow::freeze`] keeps the verdict and frees the window.
#[derive(Debug, Default)]
pub(crate) struct CostWindow {
    /// Microseconds, at least 1; the rules only compare ratios.
    samples: VecDeque<u32>,
    sum: u64,
    sum_of_squares: u128,
    frozen_bad: bool,
}

impl CostWindow {
    pub(crate) fn push(&mut self, cost: Duration) {
        let micros = u32::try_from(cost.as_micros()).unwrap_or(u32::MAX).max(1);
        if self.samples.len() == WINDOW_LEN {
            let oldest = self.samples.pop_front().map_or(0, u64::from);
            self.sum -= oldest;
            self.sum_of_squares -= u128::from(oldest * oldest);
        }
        self.samples.push_back(micros);
        let micros = u64::from(micros);
        self.sum += micros;
        self.sum_of_squares += u128::from(micros * micros);
    }

    /// Whether the newest sample is far out of line with the ones before it: more than 20 times their mean, or, with a full
    /// window, more than three standard deviations above it.
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums of 2000 samples of 32 bits; ratios are compared"
    )]
    pub(crate) fn is_bad(&self) -> bool {
        let Some(newest) = self.samples.back().copied().map(u64::from) else {
            return self.frozen_bad;
        };
        if self.samples.len() < 2 {
            return false;
        }
        let count = (self.samples.len() - 1) as f64;
        let mean = (self.sum - newest) as f64 / count;
        if self.samples.len() < WINDOW_LEN {
            return newest as f64 > 20.0 * mean;
        }
        let mean_of_squares = (self.sum_of_squares - u128::from(newest * newest)) as f64 / count;
        let deviation = (mean_of_squares - mean * mean).max(0.0).sqrt();
        newest as f64 > mean + 3.0 * deviation
    }

    /// Keeps the verdict and gives the memory back.
    pub(crate) fn freeze(&mut self) {
        *self = Self {
            frozen_bad: self.is_bad(),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(costs_ms: impl IntoIterator<Item = u64>, bad: bool) {
        let mut window = CostWindow::default();
        costs_ms
            .into_iter()
            .for_each(|cost| window.push(Duration::from_millis(cost)));
        assert_eq!(window.is_bad(), bad);
        window.freeze();
        assert_eq!(window.is_bad(), bad, "frozen");
    }

    #[test]
    fn the_newest_sample_decides() {
        check([], false);
        check([5], false);
        check([10, 200], false);
        check([10, 201], true);
        check([10, 201, 10], false);
    }

    #[test]
    fn a_full_window_uses_the_three_sigma_rule_without_the_newest() {
        let steady = |newest| {
            (0..1999)
                .map(|n| if n % 2 == 0 { 90 } else { 110 })
                .chain([newest])
        };
        check(steady(129), false);
        check(steady(131), true);
        // One sample short of a full window the coarse rule holds.
        check(steady(131).skip(1), false);
    }

    #[test]
    fn old_samples_leave_the_window() {
        check(
            (0..2000)
                .map(|_| 1000)
                .chain((0..2000).map(|_| 10))
                .chain([31]),
            true,
        );
    }
}
