//! Why a fetch failed, and whose fault that is.

use std::error::Error;
use std::io;
use std::time::Duration;

use protocol::vortex::{DecodeError, EncodeError, ErrorReply};

/// Who has to change for the next attempt to go better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The parent broke the protocol or sent something else than was asked for: do not trust it with this task again.
    Parent,
    /// The parent, or the way to it, is slow, busy or gone: ask another one, this one may recover.
    Path,
    /// Something on this host: asking another parent does not help.
    Here,
    /// Nobody's: the fetch was cancelled.
    Nobody,
}

/// Why a fetch did not deliver everything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No connection within the connect timeout.
    #[error("cannot connect to the parent's piece port ({0}): ask another parent")]
    Connect(#[source] io::Error),
    /// The parent answered with an error.
    #[error("the parent answered \"{}\" ({}): ask another parent", .0.code, .0.message.escape_debug())]
    Refused(ErrorReply),
    /// The reply is malformed.
    #[error("the parent's reply is malformed ({0}): drop the parent")]
    Malformed(#[from] DecodeError),
    /// The reply is about something else than was asked for: another kind, number, offset or length.
    #[error("the parent answered with {got} instead of {wanted}: drop the parent")]
    WrongContent {
        /// What was asked for.
        wanted: String,
        /// What the head says.
        got: String,
    },
    /// The connection ended before the last byte. A relay whose own download failed looks like this too.
    #[error("the parent closed the connection too early: resume at another parent")]
    Closed,
    /// The connection broke.
    #[error("the connection to the parent broke ({0}): resume at another parent")]
    Broken(#[source] io::Error),
    /// No byte came for too long.
    #[error("no byte came for {} ms: resume at another parent", .0.as_millis())]
    Stalled(Duration),
    /// Bytes came, but not all of them in the time allowed.
    #[error("not complete within {} ms: resume at another parent", .0.as_millis())]
    Deadline(Duration),
    /// Cancelled through the [`CancelHandle`](super::CancelHandle) or by dropping the future.
    #[error("cancelled")]
    Cancelled,
    /// The sink found fault with what the parent sent.
    #[error("the parent's content was refused ({0}): drop the parent")]
    Rejected(#[source] Box<dyn Error + Send + Sync>),
    /// The sink could not take the bytes.
    #[error("the content cannot be stored ({0}): look at the disk")]
    Sink(#[source] Box<dyn Error + Send + Sync>),
    /// The request cannot be written in the protocol.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The worker panicked, or the runtime is shutting down.
    #[error("the transfer's worker ended without a result: {0}")]
    Worker(String),
}

impl FetchError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Malformed(_) | Self::WrongContent { .. } | Self::Rejected(_) => Fault::Parent,
            Self::Connect(_)
            | Self::Refused(_)
            | Self::Closed
            | Self::Broken(_)
            | Self::Stalled(_)
            | Self::Deadline(_) => Fault::Path,
            Self::Sink(_) | Self::Encode(_) | Self::Worker(_) => Fault::Here,
            Self::Cancelled => Fault::Nobody,
        }
    }
}

/// Why a sink takes no more bytes.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// What the parent sent is wrong, for example a digest that is none.
    #[error("{0}")]
    Parent(#[source] Box<dyn Error + Send + Sync>),
    /// The bytes cannot be kept, for example because the disk is full.
    #[error("{0}")]
    Here(#[source] Box<dyn Error + Send + Sync>),
    /// The bytes are no longer wanted.
    #[error("no longer wanted")]
    Stop,
}

impl From<io::Error> for SinkError {
    fn from(error: io::Error) -> Self {
        Self::Here(error.into())
    }
}

impl From<SinkError> for FetchError {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Parent(reason) => Self::Rejected(reason),
            SinkError::Here(reason) => Self::Sink(reason),
            SinkError::Stop => Self::Cancelled,
        }
    }
}
