//! Where the bytes go, and who writes them there.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::arguments::Arguments;
use crate::failure::Failure;

/// Where the bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// The daemon links or copies its file to `path`, where nothing is yet, in one step and when it is whole. What is there after a failure
    /// is therefore somebody else's.
    Daemon {
        /// The output.
        path: PathBuf,
    },
    /// The daemon links or copies its file to `staged`, which takes the name `path` when it has been checked. Never into an existing file itself:
    /// that may be a hard link to the daemon's copy of another task.
    Staged {
        /// A new name beside the output.
        staged: PathBuf,
        /// The output.
        path: PathBuf,
    },
    /// The bytes come over the socket; they are written to `staged`, which becomes `path` when it is whole.
    Own {
        /// A new name beside the output.
        staged: PathBuf,
        /// The output.
        path: PathBuf,
    },
    /// The bytes come over the socket and are passed on in order.
    Stream(Stream),
}

/// Something that takes bytes in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Stdout,
    /// A pipe or a device, such as `/dev/null`.
    Special(PathBuf),
}

/// A file that must not stay behind if the download does not succeed; removed when dropped.
#[derive(Debug)]
pub(super) struct Leftover {
    path: Option<PathBuf>,
}

impl Destination {
    /// Decides for a file of a folder. A symbolic link in its place is replaced by the file, never followed: it may lead out of the folder.
    pub(super) fn in_folder(arguments: &Arguments, path: &Path) -> Result<Self, Failure> {
        let is_link = path
            .symlink_metadata()
            .is_ok_and(|there| there.is_symlink());
        if is_link {
            let staged = staged_beside(path);
            let path = path.to_owned();
            return match (arguments.overwrite, arguments.transfer_from_dfdaemon) {
                (false, _) => Err(Failure::Output {
                    path,
                    reason:
                        "a symbolic link is in its place: remove it, or replace it with --overwrite"
                            .to_owned(),
                }),
                (true, true) => Ok(Self::Own { staged, path }),
                (true, false) => Ok(Self::Staged { staged, path }),
            };
        }
        match Self::plan(arguments, path)? {
            Self::Stream(_) => Err(Failure::Output {
                path: path.to_owned(),
                reason: "something that is no file is in its place: remove it".to_owned(),
            }),
            destination => Ok(destination),
        }
    }

    /// Decides by the options and by what is at the output now.
    pub(super) fn plan(arguments: &Arguments, output: &Path) -> Result<Self, Failure> {
        if output == Path::new("-") {
            return Ok(Self::Stream(Stream::Stdout));
        }
        let path = std::path::absolute(output).map_err(|error| Failure::output(output, &error))?;
        let failure = |reason: &str| Failure::Output {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        match std::fs::metadata(&path) {
            Ok(there) if there.is_dir() => Err(failure("it is a directory: add a file name")),
            Ok(there) if !there.is_file() => Ok(Self::Stream(Stream::Special(path))),
            Ok(_) if !arguments.overwrite => Err(failure(
                "it exists: choose another name, or replace it with --overwrite",
            )),
            Ok(_) => {
                let path = path
                    .canonicalize()
                    .map_err(|error| Failure::output(&path, &error))?;
                let staged = staged_beside(&path);
                Ok(match arguments.transfer_from_dfdaemon {
                    true => Self::Own { staged, path },
                    false => Self::Staged { staged, path },
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.symlink_metadata().is_ok() {
                    return Err(failure("it is a symbolic link to nowhere: remove it first"));
                }
                if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                    return Err(failure(
                        "it names a directory, which does not exist: leave out the / or add a file name",
                    ));
                }
                if !path.parent().is_some_and(Path::is_dir) {
                    return Err(failure("its directory does not exist: make it first"));
                }
                let staged = staged_beside(&path);
                // A digest is that of the bytes that are written; daemons, as in v2, compare it with whole contents only.
                let is_unchecked = arguments.digest.is_some() && arguments.wants_range();
                Ok(match arguments.transfer_from_dfdaemon {
                    true => Self::Own { staged, path },
                    false if is_unchecked => Self::Staged { staged, path },
                    false => Self::Daemon { path },
                })
            }
            Err(error) => Err(Failure::output(&path, &error)),
        }
    }

    /// The same output, written by this process instead of by the daemon.
    pub(super) fn without_daemon(&self) -> Option<Self> {
        match self {
            Self::Daemon { path } | Self::Staged { path, .. } => Some(Self::Own {
                staged: staged_beside(path),
                path: path.clone(),
            }),
            Self::Own { .. } | Self::Stream(_) => None,
        }
    }

    /// Whether the daemon must send the bytes.
    pub(super) fn wants_content(&self) -> bool {
        matches!(self, Self::Own { .. } | Self::Stream(_))
    }

    /// The path for the daemon to write to.
    pub(super) fn daemon_path(&self) -> Option<&Path> {
        match self {
            Self::Daemon { path } => Some(path),
            Self::Staged { staged, .. } => Some(staged),
            Self::Own { .. } | Self::Stream(_) => None,
        }
    }

    /// What a failed download would leave behind. Nothing else is ever removed, in particular nothing at the output itself.
    pub(super) fn leftover(&self) -> Option<Leftover> {
        match self {
            Self::Staged { staged, .. } | Self::Own { staged, .. } => Some(Leftover {
                path: Some(staged.clone()),
            }),
            Self::Daemon { .. } | Self::Stream(_) => None,
        }
    }

    /// Gives the whole file its name.
    pub(super) fn publish(&self, overwrite: bool) -> Result<(), Failure> {
        let (Self::Staged { staged, path } | Self::Own { staged, path }) = self else {
            return Ok(());
        };
        let renamed = match overwrite {
            true => std::fs::rename(staged, path),
            false => rename_unless_there(staged, path),
        };
        renamed.map_err(|error| Failure::output(path, &error))?;
        // POSIX: renaming one name of a file to another name of the same file does nothing. Both are links to the daemon's content then.
        let _ = std::fs::remove_file(staged);
        Ok(())
    }

    /// How to call it in messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Daemon { path } | Self::Staged { path, .. } | Self::Own { path, .. } => {
                path.display().to_string()
            }
            Self::Stream(Stream::Special(path)) => path.display().to_string(),
            Self::Stream(Stream::Stdout) => "-".to_owned(),
        }
    }
}

impl Stream {
    /// Opens it for writing, without a buffer of its own.
    pub(super) fn open(&self) -> io::Result<File> {
        use std::os::fd::AsFd;
        match self {
            Self::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Self::Special(path) => OpenOptions::new().write(true).open(path),
        }
    }
}

impl Leftover {
    /// The download succeeded: the file stays.
    pub(super) fn keep(&mut self) {
        self.path = None;
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Mostly it was never made.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A hidden name in the same directory, so that a rename suffices in the end. It is random, as a process id is not of one process only where
/// containers share a directory, and short, so that it is possible beside every name.
fn staged_beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".dfget-{:016x}", fastrand::u64(..)))
}

/// A rename that never replaces anything, where the file system knows how; else a check just before.
fn rename_unless_there(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_ok() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(from, to),
        outcome => outcome.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(output: &Path, more: &[&str]) -> Result<Destination, Failure> {
        let line = ["dfget", "http://h/f", "-O", "f"]
            .into_iter()
            .chain(more.iter().copied());
        Destination::plan(&Arguments::try_parse_from(line).unwrap(), output)
    }

    #[test]
    fn an_existing_output_is_replaced_only_if_asked_for_and_never_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("f");
        assert_eq!(
            plan(&path, &[]).unwrap(),
            Destination::Daemon { path: path.clone() }
        );
        assert!(matches!(
            plan(&path, &["--transfer-from-dfdaemon"]).unwrap(),
            Destination::Own { .. }
        ));

        std::fs::write(&path, "old").unwrap();
        let refused = plan(&path, &[]).unwrap_err();
        assert!(refused.to_string().contains("--overwrite"), "{refused}");
        let Destination::Staged {
            staged,
            path: replaced,
        } = plan(&path, &["--overwrite"]).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (replaced.as_path(), staged.parent()),
            (path.as_path(), path.parent())
        );

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(
            matches!(plan(&link, &["--overwrite"]).unwrap(), Destination::Staged { path: target, .. } if target == path)
        );
        std::fs::remove_file(&path).unwrap();
        assert!(
            plan(&link, &["--overwrite"])
                .unwrap_err()
                .to_string()
                .contains("symbolic link")
        );
    }

    #[test]
    fn outputs_that_are_no_files_are_streams_or_refused() {
        assert_eq!(
            plan(Path::new("-"), &[]).unwrap(),
            Destination::Stream(Stream::Stdout)
        );
        let null = Path::new("/dev/null");
        assert_eq!(
            plan(null, &[]).unwrap(),
            Destination::Stream(Stream::Special(null.to_owned()))
        );
        assert!(
            plan(Path::new("/tmp"), &["--overwrite"])
                .unwrap_err()
                .to_string()
                .contains("directory")
        );
        let folder = tempfile::tempdir().unwrap();
        let refused = plan(&folder.path().join("new/"), &[]).unwrap_err();
        assert!(
            refused.to_string().contains("names a directory"),
            "{refused}"
        );
        assert!(
            plan(Path::new("/nowhere/at/all"), &[])
                .unwrap_err()
                .to_string()
                .contains("make it first")
        );
    }

    #[test]
    fn only_what_the_download_made_is_removed_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "old").unwrap();
        let destination = plan(&path, &["--overwrite"]).unwrap();
        let Destination::Staged { staged, .. } = &destination else {
            panic!()
        };
        std::fs::write(staged, "new, half").unwrap();
        drop(destination.leftover());
        assert!(!staged.exists());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");

        let other = folder.path().join("g");
        let destination = plan(&other, &[]).unwrap();
        std::fs::write(&other, "theirs").unwrap();
        drop(destination.leftover());
        assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
    }

    #[test]
    fn staged_names_are_short_and_of_one_download() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(255));
        let (one, other) = (staged_beside(&path), staged_beside(&path));
        assert_ne!(one, other);
        assert_eq!(one.parent(), path.parent());
        std::fs::write(one, "").unwrap();
    }

    #[test]
    fn no_second_name_stays_when_the_output_was_this_file_already() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "same").unwrap();
        let destination = plan(&path, &["--overwrite"]).unwrap();
        let Destination::Staged { staged, .. } = &destination else {
            panic!()
        };
        std::fs::hard_link(&path, staged).unwrap();
        destination.publish(true).unwrap();
        assert!(!staged.exists());
        assert_eq!(std::fs::read(&path).unwrap(), b"same");
    }

    #[test]
    fn a_file_that_appeared_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let destination = plan(&path, &["--transfer-from-dfdaemon"]).unwrap();
        let Destination::Own { staged, .. } = &destination else {
            panic!()
        };
        std::fs::write(staged, "new").unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert!(destination.publish(false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        std::fs::remove_file(&path).unwrap();
        destination.publish(false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
