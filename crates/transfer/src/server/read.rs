//! Reads requests from a connection.

use std::io::{self, ErrorKind};
use std::time::Duration;

use protocol::vortex::{DecodeError, HEADER_LEN, Header, Request, SEGMENT_REQUEST_LEN_MAX};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How long a request may take from its header to its end. The reference has no limit here.
const VALUE_TIMEOUT: Duration = Duration::from_secs(10);

/// The bytes of a connection that were read and not yet used: at most one request, and the beginning of a next one.
pub(super) struct Requests {
    buffer: [u8; HEADER_LEN + SEGMENT_REQUEST_LEN_MAX],
    filled: usize,
}

/// What a connection brings next.
pub(super) enum Next {
    /// A request that can be answered.
    Request(Request),
    /// A well-formed request for a task that cannot exist.
    Impossible(DecodeError),
    /// No further request will come: the end of the stream, or silence for too long.
    End,
}

/// Why a connection must be closed without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("not a request: {0}")]
    Malformed(#[from] DecodeError),
    #[error("cut off within a request")]
    CutOff,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Requests {
    pub(super) fn new() -> Self {
        Self {
            buffer: [0; HEADER_LEN + SEGMENT_REQUEST_LEN_MAX],
            filled: 0,
        }
    }

    /// Waits for the next request; a header must come within `idle`. Not cancel-safe in the middle of a request: bytes
    /// stay in the buffer, but a caller that drops it is about to close the connection anyway.
    pub(super) async fn next(
        &mut self,
        stream: &mut TcpStream,
        idle: Duration,
    ) -> Result<Next, ReadError> {
        match self.fill(stream, HEADER_LEN, Instant::now() + idle).await {
            Ok(true) => {}
            Ok(false) if self.filled > 0 => return Err(ReadError::CutOff),
            Ok(false) => return Ok(Next::End),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(Next::End),
            Err(error) => return Err(error.into()),
        }
        let header = self
            .buffer
            .first_chunk()
            .map(|bytes| Header::from_bytes(*bytes))
            .expect("the buffer is longer");
        let len = HEADER_LEN + header.request_len()?;
        if !self
            .fill(stream, len, Instant::now() + VALUE_TIMEOUT)
            .await?
        {
            return Err(ReadError::CutOff);
        }
        let decoded = Request::decode(header.tag, &self.buffer[HEADER_LEN..len]);
        self.buffer.copy_within(len..self.filled, 0);
        self.filled -= len;
        match decoded {
            Ok(request) => Ok(Next::Request(request)),
            Err(error @ DecodeError::TaskId(_)) => Ok(Next::Impossible(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads until `len` bytes are in the buffer; false when the stream ends before.
    async fn fill(
        &mut self,
        stream: &mut TcpStream,
        len: usize,
        deadline: Instant,
    ) -> io::Result<bool> {
        while self.filled < len {
            let read = stream.read(&mut self.buffer[self.filled..]);
            let count = timeout_at(deadline, read)
                .await
                .map_err(|_| ErrorKind::TimedOut)??;
            if count == 0 {
                return Ok(false);
            }
            self.filled += count;
        }
        Ok(true)
    }
}
