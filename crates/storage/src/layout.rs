//! The data folder: what lies where, who owns it, and in which life of the store it was written.
//!
//! ```text
//! LOCK                      held with flock by the one process that uses the folder; holds its process id
//! FORMAT                    one line, the version of everything below
//! EPOCH                     the life of the store: a number, and the boot of the machine that it belongs to
//! tasks/<task id>.data      the bytes, at their final length and place
//! tasks/<task id>.journal   the records of the task
//! staging/                  files on their way to a rename; emptied at each start
//! tmp/                      for callers who need a path on this filesystem; left alone
//! ```
//!
//! A task exists when its journal has a good first record: creation writes the content file first and the journal second, deletion
//! removes them in the opposite order, and opening removes every content file that has no journal. All tasks share one folder,
//! because a folder for each costs as much again as its two files, and today's filesystems find a name
//! among a hundred thousand as fast as among ten. Files with other names are never touched.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use protocol::TaskId;
use rustix::fs::FlockOperation;

use crate::error::{DiskContext, DiskError, OpenError};

const FORMAT: &str = "dragonfly-store 1";
const TASKS: &str = "tasks";

/// The paths of an open data folder, and the lock on it: dropped, the folder is free.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    /// Open for `statvfs` and `syncfs`, which then cannot end up on another filesystem.
    dir_file: File,
    _lock: File,
}

/// Which of the two files of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Content,
    Journal,
}

impl Part {
    fn suffix(self) -> &'static str {
        match self {
            Self::Content => ".data",
            Self::Journal => ".journal",
        }
    }
}

impl Layout {
    /// Creates what is missing of the folder and takes the lock.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        create_folder(dir)?;
        let dir = fs::canonicalize(dir).doing("find the data folder", dir)?;
        if !dir.is_dir() {
            return Err(OpenError::NotAFolder { dir });
        }
        let lock = lock(&dir)?;
        check_format(&dir)?;
        for folder in [TASKS, "staging", "tmp"] {
            create_folder(&dir.join(folder))?;
        }
        let dir_file = File::open(&dir).doing("open the data folder", &dir)?;
        let layout = Self {
            dir,
            dir_file,
            _lock: lock,
        };
        layout.empty_staging()?;
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn dir_file(&self) -> &File {
        &self.dir_file
    }

    pub(crate) fn temporary_dir(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(crate) fn staging(&self, name: &str) -> PathBuf {
        self.dir.join("staging").join(name)
    }

    /// The path of a task's file.
    pub(crate) fn path(&self, part: Part, id: &TaskId) -> PathBuf {
        self.dir.join(TASKS).join(format!("{id}{}", part.suffix()))
    }

    /// Removes the files of a task, in the order that keeps "a journal implies a content file" true.
    pub(crate) fn remove(&self, id: &TaskId) -> Result<(), DiskError> {
        for part in [Part::Journal, Part::Content] {
            remove_file(&self.path(part, id))?;
        }
        Ok(())
    }

    /// The ids of all files of one part. Files that are none of ours are passed over.
    pub(crate) fn ids(&self, part: Part) -> Result<Vec<TaskId>, DiskError> {
        let id = |file: fs::DirEntry| {
            let name = file.file_name();
            TaskId::try_from(name.to_str()?.strip_suffix(part.suffix())?).ok()
        };
        Ok(read_dir(&self.dir.join(TASKS))?
            .into_iter()
            .filter_map(id)
            .collect())
    }

    /// Removes the files of every task.
    pub(crate) fn remove_all(&self) -> Result<(), DiskError> {
        for part in [Part::Journal, Part::Content] {
            for id in self.ids(part)? {
                remove_file(&self.path(part, &id))?;
            }
        }
        Ok(())
    }

    /// The epoch that stamps of this life carry. It is the last one as long as nothing can have been lost since: the store was flushed
    /// and closed, or the machine did not start anew.
    pub(crate) fn begin_epoch(&self) -> Result<u64, DiskError> {
        let path = self.dir.join("EPOCH");
        let last = read_text(&path)?;
        let boot = boot_id();
        let (number, state) = last
            .as_deref()
            .and_then(|text| text.trim_end().split_once(' '))
            .unwrap_or(("0", ""));
        // An unreadable number could be any earlier one: a number from the clock is none of them.
        let number = number
            .parse::<u64>()
            .unwrap_or_else(|_| crate::journal::millis(SystemTime::now()));
        let unbroken = state == "closed" || (state == boot && !boot.is_empty());
        let epoch = if unbroken {
            number
        } else {
            number.wrapping_add(1)
        };
        self.write_epoch(epoch, &boot)?;
        Ok(epoch)
    }

    /// Flushes the filesystem and records that nothing of this epoch can be lost any more.
    pub(crate) fn close_epoch(&self, epoch: u64) -> Result<(), DiskError> {
        rustix::fs::syncfs(&self.dir_file).doing("flush the filesystem of", &self.dir)?;
        self.write_epoch(epoch, "closed")
    }

    /// Written, flushed and renamed: a torn or old epoch file would lend trust to a wrong stamp.
    fn write_epoch(&self, epoch: u64, state: &str) -> Result<(), DiskError> {
        let staging = self.staging("EPOCH");
        let mut file = File::create(&staging).doing("write", &staging)?;
        file.write_all(format!("{epoch} {state}\n").as_bytes())
            .doing("write", &staging)?;
        file.sync_all().doing("flush", &staging)?;
        let path = self.dir.join("EPOCH");
        fs::rename(&staging, &path).doing("replace", &path)?;
        self.dir_file.sync_all().doing("flush", &self.dir)
    }

    fn empty_staging(&self) -> Result<(), DiskError> {
        for file in read_dir(&self.dir.join("staging"))? {
            remove_file(&file.path())?;
        }
        Ok(())
    }
}

/// Takes the lock or says who has it.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644);
    let mut file = options.open(&path).doing("open the lock", &path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let read = (&mut file).take(32).read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                pid,
            });
        }
        Err(error) => return Err(DiskError::new("lock", &path, error).into()),
    }
    file.set_len(0).doing("write the lock", &path)?;
    writeln!(file, "{}", std::process::id()).doing("write the lock", &path)?;
    Ok(file)
}

fn check_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("FORMAT");
    match read_text(&path)? {
        Some(found) if found.trim_end() == FORMAT => Ok(()),
        // A kill between creating and writing leaves it empty.
        Some(found) if !found.trim_end().is_empty() => Err(OpenError::Format {
            dir: dir.to_owned(),
            found: found.trim_end().to_owned(),
            known: FORMAT,
        }),
        _ => Ok(fs::write(&path, format!("{FORMAT}\n")).doing("write", &path)?),
    }
}

/// Names this run of the machine's kernel; empty when it cannot be told.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn create_folder(path: &Path) -> Result<(), DiskError> {
    match DirBuilder::new().recursive(true).mode(0o755).create(path) {
        // Also what a file of that name gives; the caller looks.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.doing("create the folder", path),
    }
}

/// The file's text, or nothing when there is no file. At most a few lines are read.
fn read_text(path: &Path) -> Result<Option<String>, DiskError> {
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(4096)
                .read_to_end(&mut bytes)
                .doing("read", path)?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

fn read_dir(path: &Path) -> Result<Vec<fs::DirEntry>, DiskError> {
    fs::read_dir(path)
        .and_then(Iterator::collect)
        .doing("list", path)
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DiskError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}
