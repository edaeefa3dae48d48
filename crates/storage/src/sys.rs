//! The system calls of the store, each in the form in which it is needed here.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::journal::Stamp;

/// Whether a filesystem can set blocks aside for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preallocation {
    /// Blocks are set aside and no longer count as free.
    Blocks,
    /// Space is only accounted for: the filesystem cannot set blocks aside, or is in memory, where doing so means clearing every page.
    Accounted,
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// How space is reserved on the filesystem of `dir`.
pub(crate) fn preallocation(dir: &File) -> Preallocation {
    // The width and sign of the magic differ between architectures; all magics fit 32 bits.
    let magic = rustix::fs::fstatfs(dir)
        .map(|found| i128::from(found.f_type) & 0xffff_ffff)
        .unwrap_or_default();
    match magic == i128::from(TMPFS_MAGIC) || magic == i128::from(RAMFS_MAGIC) {
        true => Preallocation::Accounted,
        false => Preallocation::Blocks,
    }
}

/// Sets blocks aside for the first `length` bytes; the file's length stays. Says whether the filesystem can.
pub(crate) fn reserve(file: &File, length: u64) -> io::Result<Preallocation> {
    if length == 0 {
        return Ok(Preallocation::Blocks);
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length) {
            Ok(()) => return Ok(Preallocation::Blocks),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Preallocation::Accounted),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How the file looks from outside.
pub(crate) fn stamp(file: &File) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let found = file.metadata()?;
    Ok(Stamp {
        len: found.len(),
        mtime_s: found.mtime(),
        mtime_ns: u32::try_from(found.mtime_nsec()).unwrap_or(0),
    })
}

/// Whether the file can be reached, and changed, under another name too.
pub(crate) fn has_other_names(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|found| found.nlink() > 1)
}

/// Sets the file's modification time to now. A failure costs only a place in the order of eviction.
pub(crate) fn touch(file: &File) {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let _ = rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: omit,
            last_modification: now,
        },
    );
}

/// Size and free space of a filesystem, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// What is left of the filesystem that `dir` lies on, for a process without privileges.
pub(crate) fn space(dir: impl AsFd) -> io::Result<Space> {
    let found = rustix::fs::fstatvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space {
        total: bytes(found.f_blocks),
        available: bytes(found.f_bavail),
    })
}
