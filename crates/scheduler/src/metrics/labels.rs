//! The values of labels, all from closed sets.

use std::time::Instant;

use dragonfly_api::common::v2::Priority;
use protocol::{HostRole, TaskKind, TrafficType};

/// What a peer's figures are filed under.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PeerLabels {
    priority: &'static str,
    pub(super) task_type: &'static str,
    host_type: &'static str,
    pub(super) content_length: Option<u64>,
    pub(super) since: Option<Instant>,
}

impl PeerLabels {
    pub(crate) fn new(
        priority: i32,
        kind: TaskKind,
        role: Option<HostRole>,
        content_length: Option<u64>,
    ) -> Self {
        Self {
            priority: Priority::try_from(priority)
                .unwrap_or(Priority::Level0)
                .as_str_name(),
            task_type: match kind {
                TaskKind::Standard => "STANDARD",
                TaskKind::Persistent => "PERSISTENT",
                TaskKind::PersistentCache => "PERSISTENT_CACHE",
                TaskKind::Cache => "CACHE",
            },
            host_type: match role {
                Some(HostRole::Seed) => "super",
                Some(HostRole::Normal) | None => "normal",
            },
            content_length,
            since: Some(Instant::now()),
        }
    }

    pub(super) fn of_peer(&self) -> [&'static str; 3] {
        [self.priority, self.task_type, self.host_type]
    }

    pub(super) fn of_piece(&self, traffic: TrafficType) -> [&'static str; 3] {
        [traffic_name(traffic), self.task_type, self.host_type]
    }
}

/// The label of a task's length: powers of two from 1 MiB on, with the gaps that Dragonfly v2 has.
pub(super) fn size_level(content_length: u64) -> usize {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const BOUNDS: [u64; 19] = [
        MIB,
        4 * MIB,
        8 * MIB,
        16 * MIB,
        32 * MIB,
        64 * MIB,
        128 * MIB,
        256 * MIB,
        512 * MIB,
        GIB,
        4 * GIB,
        8 * GIB,
        16 * GIB,
        32 * GIB,
        64 * GIB,
        128 * GIB,
        256 * GIB,
        512 * GIB,
        1024 * GIB,
    ];
    if content_length == 0 {
        return 0;
    }
    1 + BOUNDS
        .iter()
        .take_while(|bound| content_length >= **bound)
        .count()
}

fn traffic_name(traffic: TrafficType) -> &'static str {
    match traffic {
        TrafficType::BackToSource => "BACK_TO_SOURCE",
        TrafficType::RemotePeer => "REMOTE_PEER",
        TrafficType::LocalPeer => "LOCAL_PEER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_levels_of_the_sheet() {
        let table = [
            (0, 0),
            (1, 1),
            (1 << 20, 2),
            (300 << 20, 9),
            (512 << 20, 10),
            (1 << 30, 11),
            (4 << 30, 12),
            (1 << 40, 20),
        ];
        for (length, level) in table {
            assert_eq!(size_level(length), level, "{length}");
        }
    }
}
