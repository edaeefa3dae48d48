//! What the store keeps of each task while nobody uses it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use protocol::{TaskId, TaskKind};

use crate::journal::{from_millis, millis};
use crate::live::{Live, Parked};
use crate::meta::{NewTask, TaskSummary};
use crate::space::{self, Evicted, EvictionReason};
use crate::task::Handle;

/// A task in the table. While nobody uses it, this is all the memory it takes.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: TaskId,
    pub(crate) kind: TaskKind,
    pub(crate) content_length: u64,
    pub(crate) piece_length: u64,
    pub(crate) recorded_bytes: Arc<AtomicU64>,
    pub(crate) last_used_ms: AtomicU64,
    pub(crate) state: Mutex<EntryState>,
}

/// Invariant: `live` is there from the first handle on until the last one has been parked.
#[derive(Debug)]
pub(crate) struct EntryState {
    pub(crate) parked: Parked,
    pub(crate) handle: Weak<Handle>,
    pub(crate) live: Option<Arc<Live>>,
    pub(crate) gone: bool,
}

impl Entry {
    pub(crate) fn new(
        task: &NewTask,
        parked: Parked,
        recorded_bytes: u64,
        last_used_at: SystemTime,
    ) -> Self {
        Self {
            id: task.id.clone(),
            kind: task.kind,
            content_length: task.geometry.content_length(),
            piece_length: task.geometry.piece_length(),
            recorded_bytes: Arc::new(AtomicU64::new(recorded_bytes)),
            last_used_ms: AtomicU64::new(millis(last_used_at)),
            state: Mutex::new(EntryState {
                parked,
                handle: Weak::new(),
                live: None,
                gone: false,
            }),
        }
    }

    pub(crate) fn summary(&self) -> TaskSummary {
        let state = self.state.lock();
        let now = state
            .live
            .as_ref()
            .map_or_else(|| state.parked.clone(), |live| live.parked());
        TaskSummary {
            id: self.id.clone(),
            kind: self.kind,
            content_length: self.content_length,
            piece_length: self.piece_length,
            recorded_pieces: now.recorded_pieces,
            recorded_bytes: self.recorded_bytes.load(Ordering::Relaxed),
            retention: now.retention.0,
            ttl: now.retention.1,
            times: now.times,
            last_used_at: from_millis(self.last_used_ms.load(Ordering::Relaxed)),
            in_use: state.handle.strong_count() > 0,
        }
    }

    pub(crate) fn evicted(&self, freed_bytes: u64, reason: EvictionReason) -> Evicted {
        let (id, kind) = (self.id.clone(), self.kind);
        Evicted {
            id,
            kind,
            content_length: self.content_length,
            freed_bytes,
            reason,
        }
    }

    pub(crate) fn footprint(&self) -> u64 {
        space::footprint_of(self.content_length, self.piece_length)
    }
}
