//! Files for the caller: the finished content at the path that a caller of the unix socket named.
//!
//! The daemon usually runs as root and its callers do not, so that a path is only a wish: whatever is opened, created,
//! linked or renamed for a caller is done **as that caller** (its user, group and further groups as the kernel told them
//! when it connected), on a thread of its own whose identity the kernel checks. A daemon that is not root writes for its own
//! user and for root only. The network-facing service never comes here.
//!
//! The file appears under its name in one step, when the content is complete and its digest has been checked: by hard
//! link, else reflink, else copy (see `storage::Export`). A failed download leaves nothing behind, and an existing file is
//! replaced, never written into: it may be linked to another task's content. (Dragonfly v2 links the empty file first.)
//!
//! A hard link shares the store's file, so that only who may write to the store anyway gets one: root and the daemon's
//! own user. Other callers get a file of their own.

mod caller;
#[allow(unsafe_code)]
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use protocol::{ByteRange, Digest, DigestHasher};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use storage::{Existing, Export, ExportError, Exported, HardLink, Task};

pub use caller::{Authority, Caller, CallerError};

/// Longest path that is looked at, as `PATH_MAX`.
const PATH_LEN_MAX: usize = 4096;

/// Bytes that are read at once to compute a digest.
const DIGEST_BUFFER_LEN: usize = 1 << 20;

/// Where a caller wants its file, and how.
#[derive(Debug, Clone)]
pub struct OutputRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// What happens to a file that is there.
    pub existing: Existing,
    /// Fail rather than copy.
    pub force_hard_link: bool,
    /// What the whole content must hash to; not looked at when a range was asked for, as in v2.
    pub digest: Option<Digest>,
}

/// Why there is no output file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The path cannot be one.
    #[error("output path {path:?}: {reason}: give an absolute path that ends in a file name")]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration allows output elsewhere only.
    #[error(
        "output path {path:?} is not below one of download.outputRoots: choose another path or extend that list"
    )]
    OutsideRoots {
        /// As given.
        path: PathBuf,
    },
    /// The folder cannot be opened or written to by the caller.
    #[error("output path {path:?}: user {uid} cannot create a file there: {error}")]
    Folder {
        /// As given.
        path: PathBuf,
        /// The caller.
        uid: u32,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// There is something already.
    #[error(
        "output path {path:?} exists already: choose another path, remove it, or allow overwriting"
    )]
    Exists {
        /// As given.
        path: PathBuf,
    },
    /// Only who may write to the store gets a hard link into it.
    #[error(
        "output path {path:?}: a hard link to the store's file is only made for root or the daemon's user, not for user {uid}: leave force_hard_link out to get a copy"
    )]
    HardLinkDenied {
        /// As given.
        path: PathBuf,
        /// The caller.
        uid: u32,
    },
    /// Hard links do not cross filesystems.
    #[error(
        "output path {path:?} is on another filesystem than storage.dir, so that no hard link can be made: choose a path on the same one or allow a copy"
    )]
    OtherFilesystem {
        /// As given.
        path: PathBuf,
    },
    /// The content is not what the caller expects; nothing was written.
    #[error(
        "content of task {task_id} has digest {got}, expected {want}: the origin has something else, or the expectation is wrong; no file was written"
    )]
    Digest {
        /// The task.
        task_id: protocol::TaskId,
        /// As computed.
        got: Box<Digest>,
        /// As asked for.
        want: Box<Digest>,
    },
    /// The identity of the caller forbids it, or cannot be taken on.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// The store could not give it.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The content cannot be read back.
    #[error("content of task {task_id} cannot be read: {error}")]
    Read {
        /// The task.
        task_id: protocol::TaskId,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

/// An output that has passed every check that is possible before the content is there.
///
/// The folder stays open, so that nobody can move the file elsewhere by exchanging a part of the path.
#[derive(Debug)]
pub struct Output {
    request: OutputRequest,
    folder: OwnedFd,
    name: std::ffi::OsString,
    caller: Caller,
}

impl Output {
    /// Opens the folder as the caller and checks that the caller may create a file in it.
    ///
    /// Blocks for the disk.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn open(
        request: OutputRequest,
        caller: Caller,
        roots: &[PathBuf],
    ) -> Result<Self, OutputError> {
        let path = &request.path;
        let (parent, name) = split(path)?;
        let authority = caller.authority()?;
        if request.force_hard_link && authority == Authority::AsCaller {
            return Err(OutputError::HardLinkDenied {
                path: path.clone(),
                uid: caller.uid,
            });
        }
        let folder = caller
            .run(|| open_folder(parent))?
            .map_err(|error| OutputError::Folder {
                path: path.clone(),
                uid: caller.uid,
                error: error.into(),
            })?;
        if !is_below(&folder, roots) {
            return Err(OutputError::OutsideRoots { path: path.clone() });
        }
        Ok(Self {
            name: name.to_owned(),
            folder,
            caller,
            request,
        })
    }

    /// Checks what can only be checked when the task is known and before it is downloaded: whether something else is in
    /// the way, and whether a forced hard link is possible.
    ///
    /// Blocks for the disk.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn check(&self, task: &Task) -> Result<(), OutputError> {
        let path = || self.request.path.clone();
        let content = stat(&task.content_file(), task)?;
        match rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let same = (found.st_dev, found.st_ino) == (content.st_dev, content.st_ino);
                let may_stay = same && self.hard_link() != HardLink::Never;
                if self.request.existing == Existing::Refuse && !may_stay {
                    return Err(OutputError::Exists { path: path() });
                }
            }
            Err(Errno::NOENT) => {}
            Err(error) => {
                return Err(OutputError::Folder {
                    path: path(),
                    uid: self.caller.uid,
                    error: error.into(),
                });
            }
        }
        if self.request.force_hard_link {
            let folder = rustix::fs::fstat(&self.folder);
            if folder.is_ok_and(|folder| folder.st_dev != content.st_dev) {
                return Err(OutputError::OtherFilesystem { path: path() });
            }
        }
        Ok(())
    }

    /// Puts the complete content (or that range of it) at its place, after checking its digest.
    ///
    /// Blocks for as long as a copy takes.
    ///
    /// # Errors
    /// See [`OutputError`]; nothing is left at the path then that was not there before.
    pub fn place(self, task: &Task, range: Option<ByteRange>) -> Result<Exported, OutputError> {
        if let (Some(want), None) = (&self.request.digest, range)
            && !task.is_confirmed(want)
        {
            check_digest(task, want)?;
        }
        // The folder that was checked, not the path, which may lead elsewhere by now.
        let folder = PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()));
        let destination = folder.join(&self.name);
        let how = Export {
            hard_link: self.hard_link(),
            existing: self.request.existing,
            ..Export::default()
        };
        let exported = self.caller.run(|| match range {
            None => task.export(&destination, &how),
            Some(range) => task.export_range(range, &destination, &how),
        })?;
        exported.map_err(|error| self.in_callers_words(error))
    }

    fn hard_link(&self) -> HardLink {
        match self.caller.authority() {
            Ok(Authority::AsDaemon) if self.request.force_hard_link => HardLink::Require,
            Ok(Authority::AsDaemon) => HardLink::Prefer,
            _ => HardLink::Never,
        }
    }

    /// The store was given a path through a descriptor; the caller knows another one.
    fn in_callers_words(&self, error: ExportError) -> OutputError {
        let path = self.request.path.clone();
        match error {
            ExportError::Exists { .. } => OutputError::Exists { path },
            ExportError::NotAFile { .. } => OutputError::Path {
                path,
                reason: "it is a directory",
            },
            ExportError::NoHardLink { reason, .. } => {
                OutputError::Export(ExportError::NoHardLink { path, reason })
            }
            ExportError::Disk(error) => OutputError::Folder {
                path,
                uid: self.caller.uid,
                error: io::Error::new(error.io_error().kind(), error.io_error().to_string()),
            },
            other => OutputError::Export(other),
        }
    }
}

/// Folder and file name of an absolute path.
fn split(path: &Path) -> Result<(&Path, &std::ffi::OsStr), OutputError> {
    let refused = |reason| OutputError::Path {
        path: path.to_owned(),
        reason,
    };
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > PATH_LEN_MAX {
        return Err(refused("it is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(refused("it contains a zero byte"));
    }
    if !path.is_absolute() {
        return Err(refused("it is relative"));
    }
    if bytes.ends_with(b"/") {
        return Err(refused("it names a directory"));
    }
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => Ok((parent, name)),
        _ => Err(refused("it has no file name")),
    }
}

/// Opens the folder and checks that this thread's identity may create files in it.
fn open_folder(folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Magic links (/proc/self/fd/..., /proc/1/root) would lead to what this process has open, past every permission.
    let opened = rustix::fs::openat2(
        CWD,
        folder,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(&opened, ".", access, AtFlags::EACCESS)?;
    Ok(opened)
}

/// Whether the open folder lies below one of `roots`; every folder does when there are none.
fn is_below(folder: &OwnedFd, roots: &[PathBuf]) -> bool {
    if roots.is_empty() {
        return true;
    }
    let Ok(real) = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())) else {
        return false;
    };
    roots
        .iter()
        .filter_map(|root| root.canonicalize().ok())
        .any(|root| real.starts_with(root))
}

fn stat(file: &File, task: &Task) -> Result<rustix::fs::Stat, OutputError> {
    rustix::fs::fstat(file).map_err(|error| OutputError::Read {
        task_id: task.id().clone(),
        error: error.into(),
    })
}

fn check_digest(task: &Task, want: &Digest) -> Result<(), OutputError> {
    let file: Arc<File> = task.content_file();
    let length = task.geometry().content_length();
    let read = |error| OutputError::Read {
        task_id: task.id().clone(),
        error,
    };
    let mut hasher = DigestHasher::new(want.algorithm());
    let mut buffer =
        vec![0; DIGEST_BUFFER_LEN.min(usize::try_from(length).unwrap_or(DIGEST_BUFFER_LEN))];
    let mut offset = 0;
    while offset < length {
        let wanted = usize::try_from(length - offset)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        file.read_exact_at(&mut buffer[..wanted], offset)
            .map_err(read)?;
        hasher.update(&buffer[..wanted]);
        offset += wanted as u64;
    }
    let got = hasher.finish();
    if got == *want {
        Ok(())
    } else {
        Err(OutputError::Digest {
            task_id: task.id().clone(),
            got: Box::new(got),
            want: Box::new(want.clone()),
        })
    }
}

#[cfg(test)]
mod tests;
