//! How a store is opened: what is kept, how much it may take, what is believed.

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// What happens to the tasks that are there (`storage.keep`).
    pub start: Start,
    /// Most bytes that the store takes, rounded up to blocks (`gc.policy.diskThreshold`); none: what the filesystem has.
    pub capacity: Option<u64>,
    /// Bytes of the filesystem that no task may take, so that the machine and the store's own records can go on.
    pub headroom: u64,
    /// Which recovered pieces are digested before their first use.
    pub verify: Verify,
}

impl Default for Options {
    /// Keeps what is there, takes what the filesystem has but 16 MiB, verifies when in doubt.
    fn default() -> Self {
        Self {
            start: Start::Resume,
            capacity: None,
            headroom: 16 << 20,
            verify: Verify::InDoubt,
        }
    }
}

/// What happens to the tasks that are in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// They are served again (`storage.keep: true`).
    Resume,
    /// They are removed, and the store starts empty (`storage.keep: false`). Only files in the store's own form and place are touched.
    Empty,
}

/// Which recovered pieces are digested before their first use.
///
/// Nothing is flushed piece by piece. A kill of the process loses nothing that was written, a power loss may. So what
/// a journal says is believed without a look at the bytes only if nothing can have come between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Pieces of a task are trusted when the machine has not started anew since the last use of the store (or the
    /// store was flushed by [`Store::close`](crate::Store::close)) **and** the task was let go in peace **and** its content file has the length
    /// and the modification time that it had then. All others are verified before their first use.
    InDoubt,
    /// Every recovered piece is verified before its first use, which also finds what a disk lost silently.
    Always,
}
