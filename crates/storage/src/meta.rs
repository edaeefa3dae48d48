//! What the store knows about a task besides its bytes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use protocol::{Crc32, Geometry, PeerId, PieceNumber, TaskId, TaskKind, TrafficType};

/// What is known about a content when its download begins. Stored once, never changed: a content that changed at its
/// origin is another content, so the old task is deleted and a new one created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// Names the content and its files.
    pub id: TaskId,
    /// Selects the policy of whoever uses the store; the store itself treats all kinds alike.
    pub kind: TaskKind,
    /// Where the content comes from, as it was asked for; empty for contents without an origin.
    pub url: String,
    /// Length and cut of the content.
    pub geometry: Geometry,
    /// Response headers of the origin, one value each.
    pub response_header: BTreeMap<String, String>,
    /// Validator of the origin (HTTP `ETag`), to notice that the content changed.
    pub etag: Option<String>,
    /// Validator of the origin (HTTP `Last-Modified`), as it was sent.
    pub last_modified: Option<String>,
    /// Whether a full disk may take it.
    pub retention: Retention,
    /// How long it lives from its creation on. Without one, the idle time given to
    /// [`Store::evict_expired`](crate::Store::evict_expired) holds, counted from the last update.
    pub ttl: Option<Duration>,
}

impl NewTask {
    /// A task of which nothing is known but this.
    pub fn new(id: TaskId, kind: TaskKind, url: impl Into<String>, geometry: Geometry) -> Self {
        Self {
            id,
            kind,
            url: url.into(),
            geometry,
            response_header: BTreeMap::new(),
            etag: None,
            last_modified: None,
            retention: Retention::Evictable,
            ttl: None,
        }
    }
}

/// Whether a task may be evicted to make space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retention {
    /// A cached copy: goes when space is needed and nobody uses it.
    Evictable,
    /// A replica that others rely on: goes only when it expires or is deleted.
    Kept,
}

/// What changes in the life of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// A download started (again): an earlier failure is forgotten.
    Started,
    /// The download that was asked for is complete. After a range download pieces may still be missing: completeness
    /// is a question per piece.
    Finished,
    /// The download failed.
    Failed,
    /// The whole content is being or was fetched because a part of it was asked for.
    Prefetched,
    /// The prefetch could not be started after all.
    PrefetchCancelled,
    /// Its origin was seen to give it to anybody, without credentials.
    Public,
}

/// A task in numbers: cheap to copy, kept in memory for every task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// The task.
    pub id: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// Length of the content, in bytes.
    pub content_length: u64,
    /// Length of every piece but the last, in bytes.
    pub piece_length: u64,
    /// How many pieces have a record: they were whole once, and are unless the disk lost them.
    pub recorded_pieces: u32,
    /// Bytes of the pieces that have a record.
    pub recorded_bytes: u64,
    /// Whether a full disk may take it.
    pub retention: Retention,
    /// Its own lifetime, counted from its creation.
    pub ttl: Option<Duration>,
    /// The times of its life.
    pub times: TaskTimes,
    /// When it was last opened or let go by anyone: the order of eviction.
    pub last_used_at: SystemTime,
    /// Whether a handle is held now: then nothing evicts it.
    pub in_use: bool,
}

/// The times in the life of a task, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskTimes {
    /// When the task was created.
    pub created_at: SystemTime,
    /// When it was last marked started, finished or failed.
    pub updated_at: SystemTime,
    /// When a download finished, unless one has started since and failed.
    pub finished_at: Option<SystemTime>,
    /// When a download failed, unless another one started or finished since.
    pub failed_at: Option<SystemTime>,
    /// When a prefetch was started.
    pub prefetched_at: Option<SystemTime>,
    /// When its origin was seen to give it to anybody.
    pub public_at: Option<SystemTime>,
}

impl TaskTimes {
    pub(crate) fn new(created_at: SystemTime) -> Self {
        Self {
            created_at,
            updated_at: created_at,
            finished_at: None,
            failed_at: None,
            prefetched_at: None,
            public_at: None,
        }
    }

    /// Finishing keeps no failure, starting forgets one, failing keeps an earlier success.
    pub(crate) fn apply(&mut self, mark: Mark, at: SystemTime) {
        match mark {
            Mark::Started => self.failed_at = None,
            Mark::Finished => {
                self.finished_at = Some(at);
                self.failed_at = None;
            }
            Mark::Failed => self.failed_at = Some(at),
            Mark::Prefetched => return self.prefetched_at = Some(at),
            Mark::PrefetchCancelled => return self.prefetched_at = None,
            Mark::Public => return self.public_at = Some(at),
        }
        self.updated_at = at;
    }
}

/// That the origin was read, and why: whoever wonders later is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginUse {
    /// In words, as it was logged.
    pub reason: String,
    /// When it began.
    pub at: SystemTime,
}

/// What is kept of a whole piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRecord {
    /// Its position in the task.
    pub number: PieceNumber,
    /// Offset of its first byte in the content.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its digest.
    pub crc32: Crc32,
    /// Who gave it, and when, and at which cost.
    pub origin: PieceOrigin,
}

/// Where a piece came from. Several parents may have given segments of it: then the one that gave the last is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceOrigin {
    /// The parent that gave it; none when it came from the origin or was imported.
    pub parent: Option<PeerId>,
    /// Which way it came.
    pub traffic: TrafficType,
    /// When its download began.
    pub created_at: SystemTime,
    /// How long it took from then until it was whole.
    pub cost: Duration,
}
