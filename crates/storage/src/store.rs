//! The store: the tasks of one data folder.
//!
//! Lock order: admission, then an entry's state, then the table. An entry's state is held while its files are opened,
//! parked or removed, so nobody opens what is being removed, and only one set of open files per task exists.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use protocol::TaskId;

use crate::entry::{Entry, EntryState};
use crate::error::{CreateError, DiskContext, DiskError, OpenError, TaskError};
use crate::journal::{self, Journal, PIECE_RECORD_LEN, RECORD_LEN_MAX, from_millis, millis};
use crate::layout::{Layout, Part};
use crate::live::{self, Live, Parked};
use crate::meta::{NewTask, TaskSummary};
use crate::options::{Options, Start, Verify};
use crate::recovery::recover;
use crate::space::{self, Evicted, EvictionReason, Usage};
use crate::sys::{self, Preallocation};
use crate::task::Task;

/// The tasks of one data folder. Cheap to clone; the folder is free for another process when the last clone, task, view
/// and writer are gone.
///
/// Every method may block for the disk; those that look at one task or create one are short.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) options: Options,
    pub(crate) preallocation: Preallocation,
    /// Held while space is looked for and taken, so that two tasks do not take the same.
    pub(crate) admission: Mutex<()>,
    pub(crate) table: Mutex<HashMap<TaskId, Arc<Entry>>>,
    /// What all tasks take, as [`space::footprint`] counts it.
    pub(crate) used: AtomicU64,
    epoch: u64,
}

/// A task that was created, and what had to go for it.
#[derive(Debug)]
pub struct Admitted {
    /// The new task.
    pub task: Task,
    /// What was evicted to make space for it; the scheduler wants to know.
    pub evicted: Vec<Evicted>,
}

impl Store {
    /// Opens a data folder, creates what is missing of it, and recovers its tasks: what was committed, and nothing else. Reads every journal,
    /// no content.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let layout = Layout::open(dir)?;
        if options.start == Start::Empty {
            layout.remove_all()?;
        }
        let epoch = layout.begin_epoch()?;
        let preallocation = sys::preallocation(layout.dir_file());
        let (table, used) = recover(&layout)?;
        let (table, admission, used) = (Mutex::new(table), Mutex::new(()), AtomicU64::new(used));
        let inner = Inner {
            layout,
            options,
            preallocation,
            admission,
            table,
            used,
            epoch,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Creates a task: finds space for its whole content, evicting others if needed, and takes it.
    ///
    /// # Errors
    /// [`CreateError`]. After one, nothing of the task is left.
    pub fn create_task(&self, task: NewTask) -> Result<Admitted, CreateError> {
        check_bounds(&task)?;
        let inner = &self.inner;
        let _admission = inner.admission.lock();
        if inner.table.lock().contains_key(&task.id) {
            return Err(CreateError::Exists { task: task.id });
        }
        let created_at = from_millis(millis(SystemTime::now()));
        let mut evicted = Vec::new();
        inner.make_room(&task, &mut evicted)?;
        let files = loop {
            match inner.create_files(&task, created_at) {
                Ok(files) => break files,
                // The filesystem promised more than it has: for its own records, or to somebody else meanwhile.
                Err(error) if error.cause() == crate::DiskCause::Full => {
                    if !inner.evict_one(&mut evicted) {
                        return Err(inner.no_space(&task, evicted));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        let entry = Arc::new(Entry::new(
            &task,
            Parked::fresh(&task, created_at),
            0,
            created_at,
        ));
        let recorded = Arc::clone(&entry.recorded_bytes);
        inner
            .used
            .fetch_add(space::footprint(task.geometry), Ordering::Relaxed);
        let live = Arc::new(Live::fresh(task, created_at, files, recorded, inner.epoch));
        let task = inner.hand_out(&entry, &mut entry.state.lock(), live);
        inner.table.lock().insert(entry.id.clone(), entry);
        Ok(Admitted { task, evicted })
    }

    /// A handle on a task, or nothing when the store does not have it.
    ///
    /// # Errors
    /// [`TaskError::Disk`].
    pub fn task(&self, id: &TaskId) -> Result<Option<Task>, TaskError> {
        let Some(entry) = self.inner.table.lock().get(id).cloned() else {
            return Ok(None);
        };
        let mut state = entry.state.lock();
        if state.gone {
            return Ok(None);
        }
        entry
            .last_used_ms
            .store(millis(SystemTime::now()), Ordering::Relaxed);
        if let Some(live) = state.live.clone().filter(|live| live.is_given_away()) {
            return self.inner.leave_to_its_owner(&entry, &mut state, &live);
        }
        if let Some(handle) = state.handle.upgrade() {
            return Ok(Some(Task::from_handle(handle)));
        }
        let live = match &state.live {
            Some(live) => Arc::clone(live),
            None => match self.inner.load(&entry)? {
                Some(live) if live.is_given_away() => {
                    return self.inner.leave_to_its_owner(&entry, &mut state, &live);
                }
                Some(live) => Arc::new(live),
                None => {
                    tracing::warn!(task_id = %id, "files of the task are missing or beyond repair, dropped");
                    self.inner.remove_entry(&entry, &mut state)?;
                    return Ok(None);
                }
            },
        };
        Ok(Some(self.inner.hand_out(&entry, &mut state, live)))
    }

    /// All tasks in numbers, in no order.
    pub fn tasks(&self) -> Vec<TaskSummary> {
        self.inner
            .entries()
            .iter()
            .map(|entry| entry.summary())
            .collect()
    }

    /// One task in numbers.
    pub fn summary(&self, id: &TaskId) -> Option<TaskSummary> {
        let entry = self.inner.table.lock().get(id).cloned()?;
        Some(entry.summary())
    }

    /// Removes a task, used or not. Handles that are held keep the bytes readable that they can see, until they are dropped;
    /// all else fails from here on. Nothing when the store does not have it.
    ///
    /// # Errors
    /// [`DiskError`] when a file cannot be removed; the task is gone all the same.
    pub fn delete(&self, id: &TaskId) -> Result<Option<Evicted>, DiskError> {
        let Some(entry) = self.inner.table.lock().get(id).cloned() else {
            return Ok(None);
        };
        let mut state = entry.state.lock();
        if state.gone {
            return Ok(None);
        }
        if let Some(live) = &state.live {
            live.set_deleted();
        }
        self.inner
            .remove_entry(&entry, &mut state)
            .map(|freed| Some(entry.evicted(freed, EvictionReason::Deleted)))
    }

    /// As [`Store::delete`], unless somebody uses the task. Says whether it is gone.
    ///
    /// # Errors
    /// [`DiskError`]; the task is then half gone, and may be deleted again.
    pub fn delete_unused(&self, id: &TaskId) -> Result<bool, DiskError> {
        let Some(entry) = self.inner.table.lock().get(id).cloned() else {
            return Ok(true);
        };
        let mut state = entry.state.lock();
        if state.handle.strong_count() > 0 {
            return Ok(false);
        }
        if !state.gone {
            self.inner.remove_entry(&entry, &mut state)?;
        }
        Ok(true)
    }

    /// How full the store is.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn usage(&self) -> Result<Usage, DiskError> {
        self.inner.usage()
    }

    /// Removes the tasks whose time is over and that nobody uses: those with a lifetime of their own that long after their creation, the
    /// others `idle` after their last update.
    pub fn evict_expired(&self, now: SystemTime, idle: std::time::Duration) -> Vec<Evicted> {
        self.inner.evict_expired(now, idle)
    }

    /// If the store is at least `high_percent` full, removes what was not used for the longest time until it is at most `low_percent` full:
    /// nothing in use, nothing that is kept.
    ///
    /// # Errors
    /// [`DiskError`] when it cannot be told how full the disk is.
    pub fn evict_to_watermark(
        &self,
        high_percent: u8,
        low_percent: u8,
    ) -> Result<Vec<Evicted>, DiskError> {
        self.inner.evict_to_watermark(high_percent, low_percent)
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        self.inner.layout.dir()
    }

    /// A folder on the same filesystem, for callers who want to hard link. The store leaves it alone.
    pub fn temporary_dir(&self) -> PathBuf {
        self.inner.layout.temporary_dir()
    }

    /// Flushes the filesystem and notes that no later power loss can take anything. Without it nothing is lost either, but
    /// after a new start of the machine every piece is verified before its first use. May take as long as the disk needs for
    /// all that is unwritten; call it when nothing is being downloaded any more.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn close(self) -> Result<(), DiskError> {
        self.inner.layout.close_epoch(self.inner.epoch)
    }
}

impl Inner {
    /// Called by the last clone of a handle.
    pub(crate) fn let_go(&self, entry: &Arc<Entry>, live: &Arc<Live>) {
        let mut state = entry.state.lock();
        let current = state
            .live
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, live));
        if !current || state.handle.strong_count() > 0 {
            return;
        }
        live.park();
        state.parked = live.parked();
        state.live = None;
        entry
            .last_used_ms
            .store(millis(SystemTime::now()), Ordering::Relaxed);
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.table.lock().values().cloned().collect()
    }

    /// Removes a task that nobody uses and that `still` holds for. Says what that freed.
    pub(crate) fn evict(
        &self,
        entry: &Arc<Entry>,
        reason: EvictionReason,
        still: impl FnOnce(&Parked) -> bool,
    ) -> Option<Evicted> {
        // Whoever holds the state is opening or removing the task: it is in use, or gone in a moment.
        let mut state = entry.state.try_lock()?;
        if state.gone || state.live.is_some() || !still(&state.parked) {
            return None;
        }
        match self.remove_entry(entry, &mut state) {
            Ok(freed) => Some(entry.evicted(freed, reason)),
            Err(error) => {
                tracing::error!(task_id = %entry.id, %error, "files of an evicted task stay behind until the next start");
                None
            }
        }
    }

    fn hand_out(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        state: &mut EntryState,
        live: Arc<Live>,
    ) -> Task {
        state.live = Some(Arc::clone(&live));
        let (task, handle) = Task::new(Arc::clone(self), Arc::clone(entry), live);
        state.handle = handle;
        task
    }

    /// Forgets a task whose content file somebody has changed under another name; his file stays as it is.
    fn leave_to_its_owner(
        &self,
        entry: &Arc<Entry>,
        state: &mut EntryState,
        live: &Live,
    ) -> Result<Option<Task>, TaskError> {
        tracing::warn!(task_id = %entry.id, "content file was changed under another name, the task is given up and the file left alone");
        live.set_deleted();
        self.remove_entry(entry, state)?;
        Ok(None)
    }

    /// Content first, journal second: only the second makes the task exist.
    fn create_files(
        &self,
        task: &NewTask,
        created_at: SystemTime,
    ) -> Result<(File, PathBuf, Journal), DiskError> {
        // What a removal left behind that failed half way.
        self.layout.remove(&task.id)?;
        let created = self.try_create_files(task, created_at);
        if created.is_err() {
            let _ = self.layout.remove(&task.id);
        }
        created
    }

    fn try_create_files(
        &self,
        task: &NewTask,
        created_at: SystemTime,
    ) -> Result<(File, PathBuf, Journal), DiskError> {
        let path = self.layout.path(Part::Content, &task.id);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o644);
        let content = options.open(&path).doing("create", &path)?;
        content
            .set_len(task.geometry.content_length())
            .doing("set the length of", &path)?;
        let journal_path = self.layout.path(Part::Journal, &task.id);
        if self.preallocation == Preallocation::Blocks {
            sys::reserve(&content, task.geometry.content_length())
                .doing("reserve space for", &path)?;
        }
        let journal = Journal::create(&journal_path, task, created_at)?;
        if self.preallocation == Preallocation::Blocks {
            // So that a full disk cannot refuse the record of a piece whose bytes it took.
            let records = u64::from(task.geometry.piece_count()) * PIECE_RECORD_LEN;
            sys::reserve(journal.file(), records).doing("reserve space for", &journal_path)?;
        }
        Ok((content, path, journal))
    }

    /// Opens the files of a task. Nothing when they are not there or tell of no task.
    fn load(&self, entry: &Entry) -> Result<Option<Live>, TaskError> {
        let path = self.layout.path(Part::Content, &entry.id);
        let journal_path = self.layout.path(Part::Journal, &entry.id);
        if !path.exists() || !journal_path.exists() {
            return Ok(None);
        }
        let Some((mut journal, replay)) = Journal::open(&journal_path)? else {
            return Ok(None);
        };
        if replay.task.id != entry.id {
            return Ok(None);
        }
        if replay.is_worth_compacting()
            && let Err(error) = journal.compact(&replay, &self.layout.staging(entry.id.as_str()))
        {
            tracing::debug!(task_id = %entry.id, %error, "journal not compacted, it goes on as it is");
        }
        entry
            .recorded_bytes
            .store(replay.recorded_bytes(), Ordering::Relaxed);
        let content = live::open_content(&path)?;
        let trusted = self.options.verify == Verify::InDoubt;
        let recorded = Arc::clone(&entry.recorded_bytes);
        Ok(Some(Live::recovered(
            replay,
            (content, path, journal),
            recorded,
            self.epoch,
            trusted,
        )?))
    }

    /// Takes a task out of the table and removes its files. Returns the bytes that came free.
    fn remove_entry(&self, entry: &Arc<Entry>, state: &mut EntryState) -> Result<u64, DiskError> {
        state.gone = true;
        let freed = self.bytes_to_free(&entry.id);
        let removed = self.layout.remove(&entry.id);
        let mut table = self.table.lock();
        if table
            .get(&entry.id)
            .is_some_and(|current| Arc::ptr_eq(current, entry))
        {
            table.remove(&entry.id);
            self.used.fetch_sub(entry.footprint(), Ordering::Relaxed);
        }
        removed.map(|()| freed)
    }

    /// What removing a task gives back to the disk: nothing if its content has a second name.
    pub(crate) fn bytes_to_free(&self, id: &TaskId) -> u64 {
        let look = |part| fs::symlink_metadata(self.layout.path(part, id)).ok();
        let blocks = |found: fs::Metadata| found.blocks().saturating_mul(512);
        let content = look(Part::Content).filter(|found| found.nlink() <= 1);
        content.map_or(0, |content| {
            blocks(content) + look(Part::Journal).map_or(0, blocks)
        })
    }
}

/// Most pieces of a task: bounds the table of a task in use to 4 MiB and its records to some 20 MiB. At the longest
/// ordinary piece this is a content of 16 TiB.
const PIECES_MAX: u32 = 1 << 18;

pub(crate) fn check_bounds(task: &NewTask) -> Result<(), CreateError> {
    let count = task.geometry.piece_count();
    if count > PIECES_MAX {
        return Err(CreateError::TooManyPieces {
            task: task.id.clone(),
            count,
            max: PIECES_MAX,
        });
    }
    let len = journal::description_len(task);
    if len > RECORD_LEN_MAX {
        return Err(CreateError::DescriptionTooLong {
            task: task.id.clone(),
            len,
            max: RECORD_LEN_MAX,
        });
    }
    Ok(())
}
