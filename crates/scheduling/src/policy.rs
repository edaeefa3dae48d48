//! The numbers of the scheduling rules.

use std::time::Duration;

/// Limits and intervals. The defaults are those of Dragonfly v2 (scheduler sheet, sections 2.7, 4.2, 5.3 and 9), and of
/// the swarm study for what v2 does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Peers of one task that may read the origin at once. Default 200; the origin lease keeps it near 1 anyway.
    pub back_to_source_limit: u32,
    /// Attempts without a parent, [`Policy::retry_interval`] apart, before a peer is sent to the origin. Default 4.
    pub retry_back_to_source_limit: u32,
    /// Attempts without a parent before a peer that must not read the origin is refused. Default 5.
    pub retry_limit: u32,
    /// See [`Policy::retry_back_to_source_limit`]. Nothing is polled: the products are bounds on waiting. Default 500 ms.
    pub retry_interval: Duration,
    /// Parents named in one answer at most. Default 3.
    pub candidate_parent_limit: usize,
    /// Peers that are examined to find them. Default 15.
    pub filter_parent_limit: usize,
    /// A peer that downloads and reports no piece for so long is given up. Default 30 min.
    pub piece_download_timeout: Duration,
    /// How often peers are looked over. Default 10 s.
    pub peer_gc_interval: Duration,
    /// A peer that was not heard of for so long is given up. Default 24 h.
    pub peer_ttl: Duration,
    /// How often tasks without peers are dropped. Default 30 min.
    pub task_gc_interval: Duration,
    /// How often hosts are looked over. Default 5 min.
    pub host_gc_interval: Duration,
    /// Peers of a host that was not heard of for so long are given up. Default 1 h.
    pub host_ttl: Duration,
    /// Neighbours offered to a mesh peer when it registers. Default 4 (swarm study, section 5).
    pub mesh_offer_count: usize,
    /// A mesh peer with fewer neighbours than this gets more when arrivals pause. Default 7 (swarm study, section 5).
    pub mesh_neighbour_min: usize,
    /// How long arrivals must pause before neighbours are topped up. Default 50 ms.
    pub mesh_top_up_delay: Duration,
    /// Children up to which a seed, or another reader of the origin, is offered to every newcomer. Default 16.
    pub root_child_limit: usize,
    /// How long a triggered seed peer may take to register. Default 2 s.
    pub seed_register_max: Duration,
    /// How long a peer that was sent to the origin may take to say that it began. Default 1.5 s.
    pub lease_start_max: Duration,
    /// A reader of the origin that reports nothing for so long, while peers wait for it, is joined by another. Default
    /// 2 s; longer for a reader whose own pace was slower.
    pub reader_silence_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            back_to_source_limit: 200,
            retry_back_to_source_limit: 4,
            retry_limit: 5,
            retry_interval: Duration::from_millis(500),
            candidate_parent_limit: 3,
            filter_parent_limit: 15,
            piece_download_timeout: 30 * minute,
            peer_gc_interval: Duration::from_secs(10),
            peer_ttl: 24 * 60 * minute,
            task_gc_interval: 30 * minute,
            host_gc_interval: 5 * minute,
            host_ttl: 60 * minute,
            mesh_offer_count: 4,
            mesh_neighbour_min: 7,
            mesh_top_up_delay: Duration::from_millis(50),
            root_child_limit: 16,
            seed_register_max: Duration::from_secs(2),
            lease_start_max: Duration::from_millis(1500),
            reader_silence_max: Duration::from_secs(2),
        }
    }
}

impl Policy {
    /// How long a peer without any parent waits before it is sent to the origin.
    pub fn wait_max(&self) -> Duration {
        self.retry_interval
            .saturating_mul(self.retry_back_to_source_limit)
    }

    /// How long a peer that must not read the origin waits before it is refused.
    pub fn refuse_after(&self) -> Duration {
        self.retry_interval.saturating_mul(self.retry_limit)
    }
}
