//! What was changed and how it was before: the folder from which `dfinit undo` restores.
//!
//! Files are named in it as the host names them, so that what a container has changed can be undone on the host itself.
//!
//! A file is kept once, before its first change, so that any number of runs can be undone. The order of writes: the copies, the journal
//! that names them, and only then the files themselves. Whatever is missing after a crash, each file is either as it was or has its
//! copy, and a restart that is due is still known.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use protocol::{Digest, DigestAlgorithm};
use serde::{Deserialize, Serialize};

use super::files::{missing_folders, replace, settle, write_new};
use super::plan::Edit;
use super::root::HostRoot;

const JOURNAL: &str = "journal.json";
/// The version of the journal's format.
const FORMAT: u32 = 1;

/// Something could not be written or restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    #[error("cannot {what} {}: {error}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("somebody has changed {} at this moment: nothing was changed: run dfinit again", path.display())]
    Meanwhile { path: PathBuf },
    #[error("{0}: other files are changed already: `dfinit undo` takes that back")]
    Half(Box<JournalError>),
    #[error("the journal {} is damaged ({reason}): the copies of the files lie beside it; restore them by hand and remove the folder", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "somebody else has changed {} since dfinit did: nothing was restored: look at `diff`, then say --force to lose these changes; the former files are in {}",
        names(.files), folder.display()
    )]
    ChangedSince {
        files: Vec<PathBuf>,
        folder: PathBuf,
    },
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(", ")
}

/// The journal of one host.
#[derive(Debug)]
pub(super) struct Journal {
    root: HostRoot,
    /// Without links, as are all files that are written here.
    folder: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    format: u32,
    files: Vec<Record>,
    /// Runtimes that have not been restarted since a change that they do not see otherwise, and when that was.
    restart_due: BTreeMap<String, SystemTime>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// As the host names it; links in it are followed each time.
    path: PathBuf,
    /// The runtime that has to be restarted when the file changes.
    restarts: Option<String>,
    /// `None` if there was no file.
    original: Option<Original>,
    /// SHA-256 of what was written last.
    written: String,
    /// Whether what was there before the last write was neither ours nor the original.
    changed_between: bool,
    /// Whether the runtime has been restarted since the first write, so that it knows of it.
    known: bool,
    /// Folders that were made for it, the outermost first.
    folders: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Original {
    /// The copy's name in the journal's folder.
    copy: String,
    sha256: String,
}

impl Journal {
    /// Opens the journal of the host at `root`, in a `folder` there that need not exist yet.
    pub(super) fn open(root: &HostRoot, folder: &Path) -> Result<Self, JournalError> {
        let folder = found(root, folder)?;
        let path = folder.join(JOURNAL);
        let content = match fs::read(&path) {
            Ok(bytes) => {
                let content: Content =
                    serde_json::from_slice(&bytes).map_err(|error| JournalError::Damaged {
                        path: path.clone(),
                        reason: error.to_string(),
                    })?;
                if content.format != FORMAT {
                    return Err(JournalError::Damaged {
                        path,
                        reason: format!("its format is {}, expected {FORMAT}", content.format),
                    });
                }
                content
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content {
                format: FORMAT,
                ..Content::default()
            },
            Err(error) => return Err(failed("read", &path, error)),
        };
        Ok(Self {
            root: root.clone(),
            folder,
            content,
        })
    }

    /// Whether an earlier run has written `path`.
    pub(super) fn wrote(&self, path: &Path) -> bool {
        let path = self.root.on_host(path);
        self.content.files.iter().any(|record| record.path == path)
    }

    /// Whether `runtime` has to be restarted, for what this run or an earlier one did.
    pub(super) fn is_restart_due(&self, runtime: &str) -> bool {
        self.content.restart_due.contains_key(runtime)
    }

    /// When `runtime` was changed without having been restarted since, as far as dfinit was told.
    pub(super) fn due_since(&self, runtime: &str) -> Option<SystemTime> {
        self.content.restart_due.get(runtime).copied()
    }

    /// Notes when `runtime` has started last: a restart that somebody else has done since is not asked for again, or each run would
    /// ask for one.
    pub(super) fn hear_started(
        &mut self,
        runtime: &str,
        started: SystemTime,
    ) -> Result<(), JournalError> {
        match self.due_since(runtime) {
            Some(due) if started > due => self.restarted(runtime),
            _ => Ok(()),
        }
    }

    /// Writes the files. `runtime` is restarted for those that need it.
    pub(super) fn apply(&mut self, edits: &[(&str, &Edit)]) -> Result<(), JournalError> {
        let edits: Vec<_> = edits.iter().filter(|(_, edit)| edit.changes()).collect();
        if edits.is_empty() {
            return Ok(());
        }
        for (_, edit) in &edits {
            self.is_as_planned(edit)?;
        }
        fs::create_dir_all(&self.folder)
            .map_err(|error| failed("make the folder", &self.folder, error))?;
        let due_before = self.content.restart_due.clone();
        for (runtime, edit) in &edits {
            self.remember(runtime, edit)?;
        }
        self.save()?;
        for (place, (_, edit)) in edits.iter().enumerate() {
            if let Err(error) = self.write(edit) {
                if !edits[..place].iter().any(|(_, edit)| edit.needs_restart) {
                    self.content.restart_due = due_before;
                }
                self.forget_unwritten()?;
                return Err(match place {
                    0 => error,
                    _ => JournalError::Half(Box::new(error)),
                });
            }
        }
        Ok(())
    }

    fn write(&self, edit: &Edit) -> Result<(), JournalError> {
        let path = found(&self.root, &edit.path)?;
        for folder in missing_folders(&path) {
            fs::create_dir(&folder).map_err(|error| failed("make the folder", &folder, error))?;
        }
        replace(&path, edit.after.as_bytes()).map_err(|error| failed("write", &path, error))
    }

    /// Takes out what is as it was: after a write that failed it must not count as written by us.
    fn forget_unwritten(&mut self) -> Result<(), JournalError> {
        let files = std::mem::take(&mut self.content.files);
        let (unwritten, written): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|record| record.is_original(&self.root));
        self.content.files = written;
        self.save()?;
        for record in unwritten {
            record.remove_copy(&self.folder);
            for made in record.folders.iter().rev() {
                let _ = fs::remove_dir(self.root.named(made));
            }
        }
        self.remove_if_empty();
        Ok(())
    }

    /// Takes the folder away if the journal says nothing; it stays if somebody put something there.
    fn remove_if_empty(&self) {
        if self.content.files.is_empty() && self.content.restart_due.is_empty() {
            let _ = fs::remove_dir(&self.folder);
        }
    }

    /// Whether the file still says what the edit was made of; else the change of somebody would be lost.
    fn is_as_planned(&self, edit: &Edit) -> Result<(), JournalError> {
        let path = found(&self.root, &edit.path)?;
        let now = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path, error)),
        };
        match now.as_deref() == edit.before.as_deref().map(str::as_bytes) {
            true => Ok(()),
            false => Err(JournalError::Meanwhile {
                path: edit.path.clone(),
            }),
        }
    }

    fn remember(&mut self, runtime: &str, edit: &Edit) -> Result<(), JournalError> {
        let written = sha256(edit.after.as_bytes());
        let path = self.root.on_host(&edit.path);
        let found = found(&self.root, &edit.path)?;
        if edit.needs_restart {
            self.content
                .restart_due
                .insert(runtime.to_owned(), SystemTime::now());
        }
        let now = edit.before.as_ref().map(|text| sha256(text.as_bytes()));
        if let Some(record) = self
            .content
            .files
            .iter_mut()
            .find(|record| record.path == path)
        {
            let original = record.original_sha256();
            record.changed_between |= now.as_ref() != Some(&record.written) && now != original;
            record.written = written;
            return Ok(());
        }
        let original = match &edit.before {
            None => None,
            Some(_) => Some(self.copy(&found)?),
        };
        self.content.files.push(Record {
            path,
            restarts: edit.needs_restart.then(|| runtime.to_owned()),
            original,
            written,
            changed_between: false,
            known: false,
            folders: missing_folders(&found)
                .iter()
                .map(|folder| self.root.on_host(folder))
                .collect(),
        });
        Ok(())
    }

    fn copy(&self, path: &Path) -> Result<Original, JournalError> {
        let bytes = fs::read(path).map_err(|error| failed("read", path, error))?;
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let is_free = |copy: &String| {
            let mut originals = self
                .content
                .files
                .iter()
                .filter_map(|it| it.original.as_ref());
            originals.all(|original| original.copy != *copy)
        };
        let copy = (1_u32..)
            .map(|number| format!("{number}-{name}"))
            .find(is_free)
            .expect("there are more numbers than files");
        let target = self.folder.join(&copy);
        write_new(&target, &bytes, fs::metadata(path).ok().as_ref())
            .and_then(|()| settle(&target))
            .map_err(|error| failed("write the copy", &target, error))?;
        Ok(Original {
            copy,
            sha256: sha256(&bytes),
        })
    }

    /// Restores every file. Returns them, the last written first.
    pub(super) fn undo(&mut self, force: bool) -> Result<Vec<PathBuf>, JournalError> {
        let changed: Vec<PathBuf> = self
            .content
            .files
            .iter()
            .filter(|record| !record.is_known(&self.root))
            .map(|record| self.root.named(&record.path))
            .collect();
        if !changed.is_empty() && !force {
            return Err(JournalError::ChangedSince {
                files: changed,
                folder: self.folder.clone(),
            });
        }
        self.announce_restarts()?;
        let mut restored = Vec::new();
        for record in self.content.files.iter().rev() {
            if record.restore(&self.root, &self.folder)? {
                restored.push(self.root.named(&record.path));
            }
        }
        let records = std::mem::take(&mut self.content.files);
        // Who was not restarted since the first change has never seen any.
        let knows = |runtime: &str| {
            let mut records = records.iter();
            records.any(|record| record.known && record.restarts.as_deref() == Some(runtime))
        };
        self.content.restart_due.retain(|runtime, due| {
            *due = SystemTime::now();
            knows(runtime)
        });
        // The copies go last: what the journal names is there.
        self.save()?;
        for record in &records {
            record.remove_copy(&self.folder);
        }
        self.remove_if_empty();
        Ok(restored)
    }

    /// Notes the restarts that restoring will make necessary: an undo that is cut off finds files that are as they were, and could
    /// not tell any more.
    fn announce_restarts(&mut self) -> Result<(), JournalError> {
        let records = self.content.files.iter();
        let due: Vec<String> = records
            .filter(|record| record.known && !record.is_original(&self.root))
            .filter_map(|record| record.restarts.clone())
            .collect();
        for runtime in due {
            let now = SystemTime::now();
            self.content.restart_due.entry(runtime).or_insert(now);
        }
        match self.content.files.is_empty() {
            true => Ok(()),
            false => self.save(),
        }
    }

    /// A runtime was restarted.
    pub(super) fn restarted(&mut self, runtime: &str) -> Result<(), JournalError> {
        self.content.restart_due.remove(runtime);
        for record in &mut self.content.files {
            record.known |= record.restarts.as_deref() == Some(runtime);
        }
        self.save()
    }

    fn save(&self) -> Result<(), JournalError> {
        let path = self.folder.join(JOURNAL);
        if self.content.files.is_empty() && self.content.restart_due.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove", &path, error))
                }
                _ => {
                    self.remove_if_empty();
                    Ok(())
                }
            };
        }
        let bytes = serde_json::to_vec_pretty(&self.content).expect("the journal is plain data");
        fs::create_dir_all(&self.folder)
            .map_err(|error| failed("make the folder", &self.folder, error))?;
        replace(&path, &bytes).map_err(|error| failed("write", &path, error))
    }
}

impl Record {
    /// Whether the file is as it was or as it was written last, and nobody else's change is under that.
    fn is_known(&self, root: &HostRoot) -> bool {
        let now = self.now(root);
        now == self.original_sha256()
            || (now.as_ref() == Some(&self.written) && !self.changed_between)
    }

    fn is_original(&self, root: &HostRoot) -> bool {
        self.now(root) == self.original_sha256()
    }

    fn remove_copy(&self, folder: &Path) {
        if let Some(original) = &self.original {
            let _ = fs::remove_file(folder.join(&original.copy));
        }
    }

    fn original_sha256(&self) -> Option<String> {
        let original = self.original.as_ref();
        original.map(|original| original.sha256.clone())
    }

    /// The SHA-256 of the file as it is; `None` if there is none.
    fn now(&self, root: &HostRoot) -> Option<String> {
        let path = root.find(&root.named(&self.path));
        path.and_then(fs::read).ok().map(|bytes| sha256(&bytes))
    }

    /// Returns whether the file was not as it was already.
    fn restore(&self, root: &HostRoot, folder: &Path) -> Result<bool, JournalError> {
        let path = found(root, &root.named(&self.path))?;
        let now = fs::read(&path).ok().map(|bytes| sha256(&bytes));
        let changed = match &self.original {
            Some(original) if now.as_ref() == Some(&original.sha256) => false,
            Some(original) => {
                let copy = folder.join(&original.copy);
                let bytes =
                    fs::read(&copy).map_err(|error| failed("read the copy", &copy, error))?;
                replace(&path, &bytes).map_err(|error| failed("write", &path, error))?;
                true
            }
            None => match fs::remove_file(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(failed("remove", &path, error)),
            },
        };
        for made in self.folders.iter().rev() {
            // A folder that holds something else by now stays.
            let _ = fs::remove_dir(root.named(made));
        }
        Ok(changed)
    }
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> JournalError {
    JournalError::File {
        what,
        path: path.to_owned(),
        error,
    }
}

/// Where `path` leads to on the host, without links.
fn found(root: &HostRoot, path: &Path) -> Result<PathBuf, JournalError> {
    root.find(path).map_err(|error| failed("find", path, error))
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(DigestAlgorithm::Sha256, bytes).encoded()
}

#[cfg(test)]
#[path = "tests/journal.rs"]
mod tests;
