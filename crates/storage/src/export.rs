//! Giving a content to a path outside of the store.
//!
//! A copy is made under a name of its own beside the destination and put in its place by one rename, so the destination is either
//! what it was or complete. The destination's folder is opened once and everything is done relative to it; the last component is
//! never followed if it is a symbolic link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::{ByteRange, PieceNumber};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::error::{DiskContext, DiskError, ExportError, TaskError};
use crate::task::Task;

/// How a content is to be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Whether the destination may be another name of the store's own file.
    pub hard_link: HardLink,
    /// What happens to something that is at the destination already.
    pub existing: Existing,
    /// Permissions of a copy; a hard link has those of the store's file.
    pub mode: u32,
    /// User and group that a copy is given to; a hard link stays with the store's user.
    pub owner: Option<(u32, u32)>,
}

impl Default for Export {
    /// A hard link if possible; nothing is replaced; a copy is readable by all and belongs to this process's user.
    fn default() -> Self {
        Self {
            hard_link: HardLink::Prefer,
            existing: Existing::Refuse,
            mode: 0o644,
            owner: None,
        }
    }
}

/// Whether a hard link is wanted. Whoever may write to it writes to the store's content: the store notices and verifies
/// its pieces again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HardLink {
    /// If it can be made.
    Prefer,
    /// That or nothing (`force_hard_link`).
    Require,
    /// A copy of its own in any case.
    Never,
}

/// What happens to something that is at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the export fails, unless it is the content itself already.
    Refuse,
    /// It is replaced, in one step. A symbolic link is replaced itself, not what it points to.
    Replace,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The way that worked.
    pub method: Method,
    /// Length of what is at the destination, in bytes.
    pub bytes: u64,
}

/// A way to export, the cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// The destination was a hard link to the content already.
    AlreadyLinked,
    /// A second name for the same file.
    HardLink,
    /// A file of its own that shares its blocks until one of the two is written to.
    Reflink,
    /// Copied within the kernel.
    CopyFileRange,
    /// Copied through this process.
    Copy,
}

pub(crate) fn whole(
    task: &Task,
    destination: &Path,
    how: &Export,
) -> Result<Exported, ExportError> {
    let length = task.geometry().content_length();
    check_pieces(task, 0..task.geometry().piece_count())?;
    let place = Place::open(destination)?;
    let exported = |method| Exported {
        method,
        bytes: length,
    };
    if let Some(found) = place.look()? {
        if is_same_file(&found, &task.content_file())? && how.hard_link != HardLink::Never {
            return Ok(exported(Method::AlreadyLinked));
        }
        if how.existing == Existing::Refuse {
            return Err(ExportError::Exists { path: place.path });
        }
    }
    if how.hard_link != HardLink::Never {
        match place.link(&task.live().content_path, how.existing)? {
            Ok(()) => return Ok(exported(Method::HardLink)),
            Err(reason) if how.hard_link == HardLink::Require => {
                return Err(ExportError::NoHardLink {
                    path: place.path,
                    reason: reason.into(),
                });
            }
            Err(_) => {}
        }
    }
    place
        .copy(task, ByteRange::whole(length), how)
        .map(exported)
}

pub(crate) fn range(
    task: &Task,
    range: ByteRange,
    destination: &Path,
    how: &Export,
) -> Result<Exported, ExportError> {
    let content_length = task.geometry().content_length();
    let out_of_bounds = || ExportError::OutOfBounds {
        task: task.id().clone(),
        start: range.start,
        length: range.length,
        content_length,
    };
    if range
        .start
        .checked_add(range.length)
        .is_none_or(|end| end > content_length)
    {
        return Err(out_of_bounds());
    }
    if range.length > 0 {
        let pieces: Vec<PieceNumber> = task
            .geometry()
            .pieces_of(range)
            .map_err(|_| out_of_bounds())?
            .map(|span| span.number)
            .collect();
        check_pieces(task, pieces.iter().map(|piece| piece.0))?;
    }
    let place = Place::open(destination)?;
    if place.look()?.is_some() && how.existing == Existing::Refuse {
        return Err(ExportError::Exists { path: place.path });
    }
    let method = place.copy(task, range, how)?;
    Ok(Exported {
        method,
        bytes: range.length,
    })
}

fn check_pieces(task: &Task, wanted: impl IntoIterator<Item = u32>) -> Result<(), ExportError> {
    let held = task.held().map_err(|error| match error {
        TaskError::Disk(error) => ExportError::Disk(error),
        TaskError::Deleted { task } => ExportError::Deleted { task },
        // Not a question of one piece.
        TaskError::NoSuchPiece { task, .. } => ExportError::Deleted { task },
    })?;
    let missing = wanted
        .into_iter()
        .filter(|number| !held.get(*number))
        .count();
    match u32::try_from(missing).unwrap_or(u32::MAX) {
        0 => Ok(()),
        missing => Err(ExportError::Incomplete {
            task: task.id().clone(),
            missing,
        }),
    }
}

/// A name in an open folder.
struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Place {
    fn open(destination: &Path) -> Result<Self, ExportError> {
        let path = destination.to_owned();
        // `file_name` passes over a trailing slash, which asks for a directory.
        let names_a_file = !destination.as_os_str().as_encoded_bytes().ends_with(b"/");
        let Some(name) = destination
            .file_name()
            .filter(|_| names_a_file)
            .map(OsStr::to_owned)
        else {
            return Err(ExportError::NotAFile { path });
        };
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let folder =
            rustix::fs::open(parent, flags, Mode::empty()).doing("open the folder", parent)?;
        Ok(Self { folder, name, path })
    }

    /// What is at the destination, itself and not what it points to.
    fn look(&self) -> Result<Option<rustix::fs::Stat>, ExportError> {
        match rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                Err(ExportError::NotAFile {
                    path: self.path.clone(),
                })
            }
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(DiskError::new("look at", &self.path, error).into()),
        }
    }

    /// The inner result says whether a hard link is possible at all.
    fn link(&self, content: &Path, existing: Existing) -> Result<Result<(), Errno>, ExportError> {
        let link =
            |name: &OsStr| rustix::fs::linkat(CWD, content, &self.folder, name, AtFlags::empty());
        match link(&self.name) {
            Ok(()) => return Ok(Ok(())),
            Err(Errno::EXIST) if existing == Existing::Refuse => {
                return Err(ExportError::Exists {
                    path: self.path.clone(),
                });
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Ok(Err(error)),
        }
        let part = Part {
            place: self,
            name: part_name(),
        };
        match link(&part.name) {
            Ok(()) => part.publish(existing).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    fn copy(&self, task: &Task, range: ByteRange, how: &Export) -> Result<Method, ExportError> {
        let (file, part) = self.create_part()?;
        let content = task.content_file();
        let method = transfer(&content, range, &file).doing("copy the content to", &self.path)?;
        if let Some((uid, gid)) = how.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid)).doing("give away", &self.path)?;
        }
        // Last, because giving a file away may clear bits of it.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(how.mode))
            .doing("set the permissions of", &self.path)?;
        part.publish(how.existing)?;
        Ok(method)
    }

    fn create_part(&self) -> Result<(File, Part<'_>), DiskError> {
        let part = Part {
            place: self,
            name: part_name(),
        };
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, &part.name, flags, Mode::RUSR | Mode::WUSR);
        Ok((file.doing("create", &self.path)?.into(), part))
    }
}

/// A file on its way to its place; removed when it does not get there.
struct Part<'a> {
    place: &'a Place,
    name: OsString,
}

impl Part<'_> {
    fn publish(self, existing: Existing) -> Result<(), ExportError> {
        let Place { folder, name, path } = self.place;
        let renamed = match existing {
            Existing::Replace => rustix::fs::renameat(folder, &self.name, folder, name),
            Existing::Refuse => {
                match rustix::fs::renameat_with(
                    folder,
                    &self.name,
                    folder,
                    name,
                    RenameFlags::NOREPLACE,
                ) {
                    // Some filesystems cannot rename like this; a link refuses what exists too.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        rustix::fs::linkat(folder, &self.name, folder, name, AtFlags::empty())
                    }
                    other => other,
                }
            }
        };
        match renamed {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(ExportError::Exists { path: path.clone() }),
            Err(Errno::ISDIR) => Err(ExportError::NotAFile { path: path.clone() }),
            Err(error) => Err(DiskError::new("create", path, error).into()),
        }
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = rustix::fs::unlinkat(&self.place.folder, &self.name, AtFlags::empty());
    }
}

fn part_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        ".dragonfly-{}-{}.part",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
    .into()
}

fn is_same_file(found: &rustix::fs::Stat, file: &File) -> Result<bool, ExportError> {
    let ours = rustix::fs::fstat(file).doing("look at", Path::new("the content file"))?;
    Ok((found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino))
}

/// Brings a range of `from` into the empty file `to`, by the cheapest way that the two filesystems know.
fn transfer(from: &File, range: ByteRange, to: &File) -> io::Result<Method> {
    let is_whole = range.start == 0 && from.metadata()?.len() == range.length;
    if is_whole && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Method::Reflink);
    }
    // A full disk shows here, before anything was copied.
    crate::sys::reserve(to, range.length)?;
    let copied = copy_in_kernel(from, range, to)?;
    if copied == range.length {
        return Ok(Method::CopyFileRange);
    }
    copy_through(
        from,
        ByteRange {
            start: range.start + copied,
            length: range.length - copied,
        },
        to,
        copied,
    )?;
    Ok(Method::Copy)
}

/// Copies as much as the kernel is able to, and says how much that was.
fn copy_in_kernel(from: impl AsFd, range: ByteRange, to: impl AsFd) -> io::Result<u64> {
    let (mut source, mut target) = (range.start, 0);
    while target < range.length {
        let left = usize::try_from(range.length - target)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left) {
            Ok(0)
            | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                break;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(target)
}

fn copy_through(from: &File, range: ByteRange, to: &File, mut target: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let (mut source, end) = (range.start, range.end());
    while source < end {
        let wanted = usize::try_from(end - source)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        from.read_exact_at(&mut buffer[..wanted], source)?;
        to.write_all_at(&buffer[..wanted], target)?;
        source += wanted as u64;
        target += wanted as u64;
    }
    Ok(())
}
