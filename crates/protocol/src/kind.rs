//! Which kind of task a content belongs to, and where the bytes of a piece came from.

/// The kind of a task: a value that selects a policy, never a second engine. The numbers are those of
/// `common.v2.TaskType` and also stand in stored records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TaskKind {
    /// Content with an origin, kept as a cache.
    Standard = 0,
    /// Content of an object store, with replicas kept alive.
    Persistent = 1,
    /// Content without an origin, imported by a user, with replicas kept alive.
    PersistentCache = 2,
    /// Content held in memory.
    Cache = 3,
}

impl TaskKind {
    /// The kind with this number, or nothing for a number that no kind has.
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::Standard,
            Self::Persistent,
            Self::PersistentCache,
            Self::Cache,
        ]
        .into_iter()
        .find(|kind| kind.number() == number)
    }

    /// The number of `common.v2.TaskType`.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Where the bytes of a piece came from. The numbers are those of `common.v2.TrafficType` and also stand in stored
/// records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TrafficType {
    /// From the origin.
    BackToSource = 0,
    /// From a parent on another host.
    RemotePeer = 1,
    /// From this host: it was here already.
    LocalPeer = 2,
}

impl TrafficType {
    /// The traffic type with this number, or nothing for a number that none has.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::BackToSource, Self::RemotePeer, Self::LocalPeer]
            .into_iter()
            .find(|traffic| traffic.number() == number)
    }

    /// The number of `common.v2.TrafficType`.
    pub fn number(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_convert_both_ways() {
        for number in 0..=u8::MAX {
            assert_eq!(
                TaskKind::from_number(number).map(TaskKind::number),
                (number < 4).then_some(number)
            );
            assert_eq!(
                TrafficType::from_number(number).map(TrafficType::number),
                (number < 3).then_some(number)
            );
        }
    }
}
