//! What can go wrong with the store, in words that tell an operator what to do.

use std::io;
use std::path::{Path, PathBuf};

use protocol::{Crc32, PieceNumber, TaskId};

use crate::Evicted;

/// The disk refused an operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {error}{}", path.display(), self.cause().advice())]
pub struct DiskError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// Why the disk refused, as far as it changes what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskCause {
    /// No space or no quota is left.
    Full,
    /// This process may not do that.
    Denied,
    /// The filesystem is mounted read-only.
    ReadOnly,
    /// The process has no descriptors left.
    TooManyFiles,
    /// Anything else, usually a failing device.
    Other,
}

impl DiskError {
    pub(crate) fn new(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            error: error.into(),
        }
    }

    /// Why it was refused.
    pub fn cause(&self) -> DiskCause {
        match self.error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskCause::Full,
            io::ErrorKind::PermissionDenied => DiskCause::Denied,
            io::ErrorKind::ReadOnlyFilesystem => DiskCause::ReadOnly,
            _ if matches!(self.error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                DiskCause::TooManyFiles
            }
            _ => DiskCause::Other,
        }
    }

    /// What the operating system said.
    pub fn io_error(&self) -> &io::Error {
        &self.error
    }
}

impl DiskCause {
    fn advice(self) -> &'static str {
        match self {
            Self::Full => {
                ": free some space, lower gc.policy thresholds or move storage.dir to a larger disk"
            }
            Self::Denied => {
                ": give this user read and write access to it, or set storage.dir to a folder of its own"
            }
            Self::ReadOnly => ": mount it writable, or move storage.dir to a writable disk",
            Self::TooManyFiles => ": raise the limit of open files (ulimit -n, LimitNOFILE)",
            Self::Other => "",
        }
    }
}

/// Adds to an I/O error what was being done to which path.
pub(crate) trait DiskContext<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> DiskContext<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|error| DiskError::new(doing, path, error))
    }
}

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has the folder.
    #[error(
        "data folder {} is in use by {}: stop that daemon, or give this one a storage.dir of its own",
        dir.display(), process(*pid)
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
        /// Process id of the owner, when it could be read.
        pid: Option<u32>,
    },
    /// The path names something that is no folder.
    #[error("data folder {} is not a folder: set storage.dir to a folder", dir.display())]
    NotAFolder {
        /// The path given.
        dir: PathBuf,
    },
    /// The folder was written by a newer version.
    #[error(
        "data folder {} has format {found:?}, this version knows {known:?}: use a newer version, or an empty storage.dir",
        dir.display()
    )]
    Format {
        /// The folder.
        dir: PathBuf,
        /// The format line found.
        found: String,
        /// The format line that this version writes.
        known: &'static str,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// Why a task cannot be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// There is a task of this id already: ask for it with [`Store::task`](crate::Store::task).
    #[error("task {task} is in the store already: use it, or delete it first")]
    Exists {
        /// The id.
        task: TaskId,
    },
    /// The content does not fit, even without everything that may be evicted.
    #[error(
        "no space for task {task}: it needs {needed} bytes, {free} are free and the rest is in use or kept: \
         wait for running downloads, delete persistent tasks, or raise the capacity of storage.dir"
    )]
    NoSpace {
        /// The task that was refused.
        task: TaskId,
        /// Bytes that it needs on disk.
        needed: u64,
        /// Bytes that are free for new tasks now.
        free: u64,
        /// What was evicted before it became clear. Usually nothing.
        evicted: Vec<Evicted>,
    },
    /// The content would be cut into more pieces than the store keeps books of.
    #[error(
        "task {task} would have {count} pieces, the store takes {max}: ask for a larger piece length"
    )]
    TooManyPieces {
        /// The task that was refused.
        task: TaskId,
        /// Pieces that it would have.
        count: u32,
        /// Pieces that a task may have.
        max: u32,
    },
    /// URL, headers and validators together are longer than a record may be.
    #[error(
        "description of task {task} takes {len} bytes, at most {max} are stored: drop long response headers"
    )]
    DescriptionTooLong {
        /// The task that was refused.
        task: TaskId,
        /// Bytes that it would take.
        len: usize,
        /// Bytes that it may take.
        max: usize,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why something cannot be done with a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The task was deleted while this handle was held.
    #[error("task {task} was deleted: start the download again")]
    Deleted {
        /// The task.
        task: TaskId,
    },
    /// The content has no such piece.
    #[error("task {task} has no piece {piece}: it has {count} pieces")]
    NoSuchPiece {
        /// The task.
        task: TaskId,
        /// The piece asked for.
        piece: PieceNumber,
        /// How many pieces there are.
        count: u32,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why bytes were not taken by a [`PieceWriter`](crate::PieceWriter).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The bytes start behind what their segment has: something before them is missing.
    #[error(
        "bytes for offset {offset} of piece {piece} leave a gap: its segment continues at {expected}"
    )]
    Gap {
        /// The piece.
        piece: PieceNumber,
        /// Offset within the piece of the bytes given.
        offset: u64,
        /// Offset within the piece at which the segment continues.
        expected: u64,
    },
    /// The bytes reach behind the end of the piece.
    #[error(
        "bytes [{offset}, {offset} + {len}) lie outside of piece {piece}, which has {length} bytes"
    )]
    OutOfBounds {
        /// The piece.
        piece: PieceNumber,
        /// Offset within the piece of the bytes given.
        offset: u64,
        /// How many bytes were given.
        len: usize,
        /// Length of the piece.
        length: u64,
    },
    /// The piece was committed, abandoned or refused already: claim it again.
    #[error("piece {piece} takes no more bytes: its writer has ended")]
    Ended {
        /// The piece.
        piece: PieceNumber,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a piece was not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Not all bytes are there. The writer stays usable.
    #[error(
        "piece {piece} of {task} has {received} of {length} bytes: fetch the rest before committing it"
    )]
    Incomplete {
        /// The task.
        task: TaskId,
        /// The piece.
        piece: PieceNumber,
        /// Bytes received.
        received: u64,
        /// Bytes that the piece has.
        length: u64,
    },
    /// The bytes are not those that were expected. The piece is missing again and can be claimed anew.
    #[error(
        "piece {piece} of {task} has digest {got}, expected {expected}: dropped, ask another parent"
    )]
    DigestMismatch {
        /// The task.
        task: TaskId,
        /// The piece.
        piece: PieceNumber,
        /// Digest of the bytes received.
        got: Crc32,
        /// Digest wanted.
        expected: Crc32,
    },
    /// The writer has committed or given up before.
    #[error("piece {piece} of {task} cannot be committed: its writer has ended")]
    Ended {
        /// The task.
        task: TaskId,
        /// The piece.
        piece: PieceNumber,
    },
    /// The task was deleted meanwhile.
    #[error("task {task} was deleted: start the download again")]
    Deleted {
        /// The task.
        task: TaskId,
    },
    /// The disk refused the record. The writer stays usable: commit again when there is space.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why bytes of a piece will not come.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The download of the piece was given up or its bytes proved wrong.
    #[error("piece {piece} was given up while it arrived: ask for it elsewhere")]
    Abandoned {
        /// The piece.
        piece: PieceNumber,
    },
    /// The offset lies behind the end of the piece.
    #[error("offset {offset} lies behind the end of piece {piece}, which has {length} bytes")]
    OutOfBounds {
        /// The piece.
        piece: PieceNumber,
        /// Offset within the piece that was asked for.
        offset: u64,
        /// Length of the piece.
        length: u64,
    },
}

/// Why a content was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Some pieces are missing or not verified since the store was opened.
    #[error("task {task} is not complete: {missing} of its pieces are missing or not verified yet")]
    Incomplete {
        /// The task.
        task: TaskId,
        /// How many of the wanted pieces.
        missing: u32,
    },
    /// There is something at the destination and it was not to be replaced.
    #[error("{} exists already: choose another path, remove it, or allow overwriting", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// The destination is a directory, or has no file name.
    #[error("{} names no file: give a path with a file name", path.display())]
    NotAFile {
        /// The destination.
        path: PathBuf,
    },
    /// Only a hard link was wanted, and it cannot be made.
    #[error(
        "cannot hard link the content to {}: {reason}: choose a path on the filesystem of storage.dir, or allow a copy",
        path.display()
    )]
    NoHardLink {
        /// The destination.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// The range lies outside of the content.
    #[error("range {start}+{length} lies outside of task {task}, which has {content_length} bytes")]
    OutOfBounds {
        /// The task.
        task: TaskId,
        /// First byte asked for.
        start: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes that there are.
        content_length: u64,
    },
    /// The task was deleted meanwhile.
    #[error("task {task} was deleted: start the download again")]
    Deleted {
        /// The task.
        task: TaskId,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
