//! What a run showed.

use super::{Host, Scene};

/// Figures of one run; per host, the seed first.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seconds of the lower bound.
    pub bound: f64,
    /// Seconds at which each host was done, if it was.
    pub done: Vec<Option<f64>>,
    /// Bytes received for the first time.
    pub fresh: Vec<u64>,
    /// Bytes received again, or after a cancel.
    pub waste: Vec<u64>,
    /// Bytes sent.
    pub sent: Vec<u64>,
    /// Requests made, and how many of them were refused.
    pub asked: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests refused because the relay was not ahead.
    pub not_ahead: u64,
    /// Grants declined.
    pub declined: u64,
    /// Frozen, slow and starved notices.
    pub frozen: u64,
    /// Slow notices.
    pub slow: u64,
    /// Starved notices.
    pub starved: u64,
    /// Time of the last host, each over the bound that its own downlink sets.
    pub last_own: f64,
    content: f64,
}

impl Report {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            fresh: vec![0; hosts],
            waste: vec![0; hosts],
            sent: vec![0; hosts],
            ..Self::default()
        }
    }

    pub(super) fn close(&mut self, scene: &Scene, hosts: &[Host], bound: f64) {
        self.bound = bound;
        self.content = scene.content as f64;
        let lives = |host: &Host| host.alive && !host.frozen;
        let own = |host: &&Host| {
            let least = bound.min((self.content / host.down).max(self.content / scene.rate));
            host.done
                .map_or(f64::INFINITY, |at| at.as_secs_f64() / least)
        };
        self.last_own = hosts[1..]
            .iter()
            .filter(|host| lives(host))
            .map(|host| own(&host))
            .fold(0.0, f64::max);
        self.done = hosts[1..]
            .iter()
            .filter(|host| lives(host))
            .map(|host| host.done.map(|at| at.as_secs_f64()))
            .collect();
    }

    /// Time of the last host over the bound; infinite when one did not end.
    pub fn last(&self) -> f64 {
        self.done
            .iter()
            .map(|done| done.unwrap_or(f64::INFINITY))
            .fold(0.0, f64::max)
            / self.bound
    }

    /// Time of the middle host over the bound.
    pub fn median(&self) -> f64 {
        let mut done: Vec<f64> = self
            .done
            .iter()
            .map(|done| done.unwrap_or(f64::INFINITY))
            .collect();
        done.sort_by(f64::total_cmp);
        done.get(done.len() / 2).copied().unwrap_or(0.0) / self.bound
    }

    /// Copies that the seed sent.
    pub fn seed_copies(&self) -> f64 {
        self.sent[0] as f64 / self.content
    }

    /// Most copies that any host sent.
    pub fn most_copies(&self) -> f64 {
        self.sent.iter().copied().max().unwrap_or(0) as f64 / self.content
    }

    /// Bytes received in vain over all bytes.
    pub fn waste_share(&self) -> f64 {
        self.waste.iter().sum::<u64>() as f64 / self.fresh.iter().sum::<u64>().max(1) as f64
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "last {:.3} (own {:.3}) median {:.3} of {:.2} s; copies: seed {:.2} most {:.2}; waste {:.2} %; asked {} refused {} not ahead {} declined {}; frozen {} slow {} starved {}",
            self.last(),
            self.last_own,
            self.median(),
            self.bound,
            self.seed_copies(),
            self.most_copies(),
            self.waste_share() * 100.0,
            self.asked,
            self.refused,
            self.not_ahead,
            self.declined,
            self.frozen,
            self.slow,
            self.starved,
        )
    }
}
