//! Why a download failed, whose fault it is, and what to do.

use std::sync::Arc;

use protocol::{Digest, PieceNumber, TaskId};
use source::SourceError;

/// A download that failed. Cheap to clone: every waiting caller receives the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The origin refused or broke down; the text is the source's own.
    #[error("origin: {0}")]
    Source(Arc<SourceError>),

    /// Another host of the swarm asked the origin, and the origin refused.
    #[error("origin, asked by another peer: {message}")]
    Refused {
        /// What the origin said, as the scheduler passed it on.
        message: String,
        /// Headers of the answer.
        header: std::collections::HashMap<String, String>,
        /// HTTP status code of the answer.
        status_code: i32,
    },

    /// There is no room for the content.
    #[error("{0}")]
    Create(Arc<storage::CreateError>),

    /// The store could not take or give the bytes.
    #[error("{0}")]
    Store(Arc<storage::TaskError>),

    /// The wanted range does not exist in the content.
    #[error(
        "range {range} does not fit content of {content_length} bytes: ask for a range inside it"
    )]
    Range {
        /// As the caller wrote it.
        range: String,
        /// Bytes in the content.
        content_length: u64,
    },

    /// The caller forbade the origin and no parent had the content.
    #[error(
        "no peer has all of task {task_id} and back-to-source is disabled: {reason}; allow back-to-source or wait until a peer has it"
    )]
    NoParents {
        /// The task.
        task_id: TaskId,
        /// What was tried last.
        reason: String,
    },

    /// The content is not what it must be. It was deleted.
    #[error(
        "content of task {task_id}, given by {from}, has digest {got}, expected {want}: it was deleted; if the digest is the right one, ask again, else correct it"
    )]
    Digest {
        /// The task.
        task_id: TaskId,
        /// As computed.
        got: Box<Digest>,
        /// As it must be.
        want: Box<Digest>,
        /// Whose bytes they were.
        from: String,
    },

    /// Bytes that a reader was given before they were checked proved wrong.
    #[error(
        "piece {piece} of task {task_id} was wrong after a part of it had been handed out: ask again"
    )]
    Retracted {
        /// The task.
        task_id: TaskId,
        /// The piece.
        piece: PieceNumber,
    },

    /// The origin does not tell the length, and the caller would rather read it directly.
    #[error("the origin does not say how long the content is, and no peer knows")]
    Unmeasured,

    /// The origin announces what no task can hold, whatever its pieces.
    #[error(
        "the origin announces {content_length} bytes, more than any content has: its answer cannot be trusted"
    )]
    TooLong {
        /// As announced.
        content_length: u64,
    },

    /// Piece after piece could not be written.
    #[error("the content cannot be stored: {reason}")]
    Write {
        /// What the store said last.
        reason: String,
    },

    /// The request itself makes no sense.
    #[error("{0}")]
    Invalid(String),

    /// More tasks are in progress than allowed.
    #[error("{count} downloads are in progress already: try again later")]
    Busy {
        /// The limit that was reached.
        count: usize,
    },

    /// Nothing moved for too long.
    #[error(
        "no byte of task {task_id} arrived for {seconds} s from any parent or the origin: {reason}"
    )]
    Stalled {
        /// The task.
        task_id: TaskId,
        /// How long.
        seconds: u64,
        /// What was tried last.
        reason: String,
    },

    /// The daemon is stopping.
    #[error("the daemon is stopping: try again when it is back")]
    Stopping,
}

impl From<SourceError> for DownloadError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<storage::CreateError> for DownloadError {
    fn from(error: storage::CreateError) -> Self {
        Self::Create(Arc::new(error))
    }
}

impl From<storage::TaskError> for DownloadError {
    fn from(error: storage::TaskError) -> Self {
        Self::Store(Arc::new(error))
    }
}
