//! Who may take how much space, and who has to go for it.
//!
//! A task takes its whole space when it is created, so that no download fails late for want of it. Where the
//! filesystem sets blocks aside, it keeps the books itself; elsewhere (in memory) what is promised but not
//! written yet is subtracted from what it calls free. A capacity bounds the sum of all tasks besides.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use protocol::{Geometry, TaskId, TaskKind};

use crate::entry::Entry;
use crate::error::{CreateError, DiskContext, DiskError};
use crate::journal::PIECE_RECORD_LEN;
use crate::live::Parked;
use crate::meta::{NewTask, Retention, TaskTimes};
use crate::store::Inner;
use crate::sys::{self, Preallocation};

/// A task that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// Which.
    pub id: TaskId,
    /// Its kind: only standard tasks are reported to the scheduler.
    pub kind: TaskKind,
    /// Length of its content, in bytes.
    pub content_length: u64,
    /// Bytes that the disk got back: 0 when the content lives on under another name.
    pub freed_bytes: u64,
    /// Why.
    pub reason: EvictionReason,
}

/// Why a task was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvictionReason {
    /// Its time was over.
    Expired,
    /// The disk was over its high watermark.
    Watermark,
    /// A new task needed the space.
    Admission,
    /// Somebody asked for it.
    Deleted,
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The capacity, or the size of the filesystem, in bytes.
    pub total: u64,
    /// What is left of it, in bytes.
    pub available: u64,
    /// What the store's tasks take, whoever else uses the disk, in bytes.
    pub used_by_tasks: u64,
    /// How many tasks there are.
    pub tasks: usize,
}

impl Usage {
    /// How full it is, as Dragonfly v2 counts it: 100 less the whole percents that are available.
    pub fn percent(&self) -> u8 {
        if self.total == 0 {
            return 100;
        }
        let available = u128::from(self.available) * 100 / u128::from(self.total);
        100 - u8::try_from(available).unwrap_or(100).min(100)
    }
}

const BLOCK_LEN: u64 = 4096;

/// Longest that admission waits for the filesystem to give back what was removed, before it removes more.
const FREEING_PATIENCE: Duration = Duration::from_secs(2);

/// What a task takes of the disk, in bytes: content and records, in blocks.
pub(crate) fn footprint(geometry: Geometry) -> u64 {
    footprint_of(geometry.content_length(), geometry.piece_length())
}

pub(crate) fn footprint_of(content_length: u64, piece_length: u64) -> u64 {
    let records = content_length
        .div_ceil(piece_length.max(1))
        .saturating_mul(PIECE_RECORD_LEN);
    let in_blocks = |len: u64| len.div_ceil(BLOCK_LEN).saturating_mul(BLOCK_LEN);
    in_blocks(content_length).saturating_add(in_blocks(records.saturating_add(BLOCK_LEN)))
}

impl Parked {
    pub(crate) fn fresh(task: &NewTask, created_at: SystemTime) -> Self {
        Self {
            times: TaskTimes::new(created_at),
            retention: (task.retention, task.ttl),
            recorded_pieces: 0,
        }
    }
}

impl Inner {
    /// Evicts until the task fits. Evicts nothing when it could not fit anyway.
    pub(crate) fn make_room(
        &self,
        task: &NewTask,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), CreateError> {
        let needed = footprint(task.geometry);
        if needed <= self.free()? {
            return Ok(());
        }
        let candidates = self.candidates();
        let evictable: u64 = candidates.iter().map(|entry| self.gain(entry)).sum();
        let mut expected = self.free()?;
        if expected.saturating_add(evictable) < needed {
            return Err(self.no_space(task, std::mem::take(evicted)));
        }
        for entry in candidates {
            if expected >= needed && self.wait_for_free(needed)? {
                return Ok(());
            }
            let gain = self.gain(&entry);
            if let Some(gone) = self.evict(&entry, EvictionReason::Admission, is_evictable) {
                expected = expected.saturating_add(gain);
                evicted.push(gone);
            }
        }
        if self.wait_for_free(needed)? {
            Ok(())
        } else {
            Err(self.no_space(task, std::mem::take(evicted)))
        }
    }

    /// Some filesystems (XFS) give the blocks of a removed file back a moment later. Says whether the space came.
    fn wait_for_free(&self, needed: u64) -> Result<bool, DiskError> {
        let deadline = Instant::now() + FREEING_PATIENCE;
        while self.free()? < needed {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Evicts the one task that was not used for the longest time. Says whether there was one.
    pub(crate) fn evict_one(&self, evicted: &mut Vec<Evicted>) -> bool {
        let gone = self
            .candidates()
            .iter()
            .find_map(|entry| self.evict(entry, EvictionReason::Admission, is_evictable));
        let found = gone.is_some();
        evicted.extend(gone);
        found
    }

    pub(crate) fn no_space(&self, task: &NewTask, evicted: Vec<Evicted>) -> CreateError {
        let (needed, free) = (footprint(task.geometry), self.free().unwrap_or(0));
        CreateError::NoSpace {
            task: task.id.clone(),
            needed,
            free,
            evicted,
        }
    }

    pub(crate) fn usage(&self) -> Result<Usage, DiskError> {
        let used_by_tasks = self.used.load(Ordering::Relaxed);
        let tasks = self.table.lock().len();
        let (total, available) = match self.options.capacity {
            Some(capacity) => (capacity, capacity.saturating_sub(used_by_tasks)),
            None => {
                let space = self.disk_space()?;
                (space.total, space.available.saturating_sub(self.promised()))
            }
        };
        Ok(Usage {
            total,
            available,
            used_by_tasks,
            tasks,
        })
    }

    pub(crate) fn evict_expired(&self, now: SystemTime, idle: Duration) -> Vec<Evicted> {
        let is_over = |parked: &Parked| {
            let (since, lifetime) = match parked.retention.1 {
                Some(ttl) => (parked.times.created_at, ttl),
                None => (parked.times.updated_at, idle),
            };
            since.checked_add(lifetime).is_some_and(|end| end < now)
        };
        let entries = self.entries();
        entries
            .iter()
            .filter_map(|entry| self.evict(entry, EvictionReason::Expired, is_over))
            .collect()
    }

    pub(crate) fn evict_to_watermark(
        &self,
        high_percent: u8,
        low_percent: u8,
    ) -> Result<Vec<Evicted>, DiskError> {
        let usage = self.usage()?;
        let percent = usage.percent();
        if percent < high_percent || percent <= low_percent {
            return Ok(Vec::new());
        }
        let goal = u128::from(usage.total) * u128::from(percent - low_percent) / 100;
        let (mut gained, mut evicted) = (0, Vec::new());
        for entry in self.candidates() {
            if gained >= goal {
                break;
            }
            let gain = self.gain(&entry);
            if let Some(gone) = self.evict(&entry, EvictionReason::Watermark, is_evictable) {
                gained += u128::from(gain);
                evicted.push(gone);
            }
        }
        Ok(evicted)
    }

    /// Bytes that a new task may take.
    fn free(&self) -> Result<u64, DiskError> {
        let disk = self.disk_space()?.available;
        let disk = disk
            .saturating_sub(self.options.headroom)
            .saturating_sub(self.promised());
        let quota = self
            .options
            .capacity
            .map(|capacity| capacity.saturating_sub(self.used.load(Ordering::Relaxed)));
        Ok(quota.map_or(disk, |quota| quota.min(disk)))
    }

    fn disk_space(&self) -> Result<sys::Space, DiskError> {
        sys::space(self.layout.dir_file()).doing("find the free space of", self.layout.dir())
    }

    /// What tasks were promised and have not written, where the filesystem does not know of it.
    fn promised(&self) -> u64 {
        if self.preallocation == Preallocation::Blocks {
            return 0;
        }
        let left = |entry: &Arc<Entry>| {
            entry
                .content_length
                .saturating_sub(entry.recorded_bytes.load(Ordering::Relaxed))
        };
        self.table.lock().values().map(left).sum()
    }

    /// What may go, the longest unused first. Without a capacity, contents with a second name stay: removing them frees nothing.
    fn candidates(&self) -> Vec<Arc<Entry>> {
        let mut entries: Vec<_> = self
            .entries()
            .into_iter()
            .filter(|entry| self.gain(entry) > 0)
            .collect();
        entries.retain(|entry| {
            let summary = entry.summary();
            !summary.in_use && summary.retention == Retention::Evictable
        });
        entries.sort_by_key(|entry| entry.last_used_ms.load(Ordering::Relaxed));
        entries
    }

    /// What evicting a task brings, in the measure that is short.
    fn gain(&self, entry: &Entry) -> u64 {
        match (self.options.capacity, self.preallocation) {
            (Some(_), _) => entry.footprint(),
            (None, Preallocation::Blocks) => self.bytes_to_free(&entry.id),
            // Written or promised, all of it comes free, unless it has a second name.
            (None, Preallocation::Accounted) => match self.bytes_to_free(&entry.id) {
                0 if entry.recorded_bytes.load(Ordering::Relaxed) > 0 => 0,
                _ => entry.footprint(),
            },
        }
    }
}

fn is_evictable(parked: &Parked) -> bool {
    parked.retention.0 == Retention::Evictable
}
