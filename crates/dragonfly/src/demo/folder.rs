//! The folder that holds everything a demo writes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// What the folders of all demos begin with.
const PREFIX: &str = "dragonfly-demo-";
/// The file whose lock says that the demo of this folder lives.
const LOCK: &str = "lock";

/// A new folder, removed with all that is in it when it is dropped. A demo that was killed cannot do that, so each demo
/// also removes the folders of those that are dead.
pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as the process lives: the kernel releases it, also on SIGKILL.
    _lock: File,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error("cannot make a folder in {}: {error}: set TMPDIR to a directory that this user may write to", .parent.display())]
    Create { parent: PathBuf, error: io::Error },
    #[error(
        "{} has {free_mib} MiB free, the demo needs {needed_mib} MiB: set TMPDIR to a larger disk, or use a smaller --size or fewer --peers",
        .parent.display()
    )]
    Space {
        parent: PathBuf,
        free_mib: u64,
        needed_mib: u64,
    },
}

impl Folder {
    /// Makes a folder below `parent`, after removing those of dead demos; `needed` is how many bytes will be written.
    pub(super) fn create(parent: &Path, needed: u64) -> Result<Self, FolderError> {
        remove_dead(parent);
        let create = |error| FolderError::Create {
            parent: parent.to_owned(),
            error,
        };
        let free = free_bytes(parent).map_err(create)?;
        if free < needed {
            let (free_mib, needed_mib) = (free >> 20, needed.div_ceil(1 << 20));
            return Err(FolderError::Space {
                parent: parent.to_owned(),
                free_mib,
                needed_mib,
            });
        }
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).map_err(create)?;
        let lock = File::create(path.join(LOCK)).map_err(create)?;
        lock.lock().map_err(create)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!(
                "dragonfly demo: {} was not removed: {error}",
                self.path.display()
            );
        }
    }
}

/// Removes what killed demos of this user left. Failures are of no interest: the folder may be another user's.
fn remove_dead(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A folder without a lock file is being made at this moment, or is not ours.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_its_content_and_takes_the_dead_along() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join("dragonfly-demo-0");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join(LOCK), "").unwrap();
        let folder = Folder::create(parent.path(), 0).unwrap();
        assert!(!dead.exists() && folder.path().exists());
        std::fs::write(folder.path().join("file"), "x").unwrap();
        remove_dead(parent.path());
        assert!(folder.path().exists(), "a living one is left alone");
        drop(folder);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn too_little_space_is_told_before_anything_starts() {
        let parent = tempfile::tempdir().unwrap();
        let error = Folder::create(parent.path(), u64::MAX)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("MiB free") && error.contains("--size"),
            "{error}"
        );
    }
}
