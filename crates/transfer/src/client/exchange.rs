//! One exchange with a parent, on a blocking thread: ask, read the head, receive the content.
//!
//! A link brings packets one by one, and whoever waits is woken for each. So a receive asks to be woken for a batch of bytes
//! (`SO_RCVLOWAT`), never for more than are still to come: a mark beyond the tail of a piece would not be reached. Whatever came
//! by the next [`TICK`] is taken all the same, so a slow parent's bytes are passed on without much delay.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::vortex::{HEADER_LEN, Header, Reply};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::cancel::Attached;
use super::{CancelHandle, FetchError, FetchRequest, Shared, Sink};
use crate::{RateLimit, sys};

/// Fetches what is wanted; counts in `received` what the sink has taken.
pub(super) fn fetch<S: Sink>(
    shared: &Shared,
    request: &FetchRequest,
    sink: &mut S,
    cancel: &CancelHandle,
    received: &mut u64,
) -> Result<(), FetchError> {
    let packet = request.wanted.to_request().to_packet(fastrand::u8(..))?;
    let (connection, Replied { reply, early }) = ask(shared, request, &packet, cancel)?;
    let expected = early.len() as u64 <= reply_content_length(&reply);
    let outcome = match request.wanted.accept(reply) {
        Ok(head) => {
            sink.head(&head)?;
            let mut buffer = shared.buffers.take();
            let content = Content {
                shared,
                request,
                cancel,
                connection: &connection,
            };
            let outcome = content.receive(&early, &mut buffer, sink, received);
            shared.buffers.put(buffer);
            outcome
        }
        Err(error) => Err(error),
    };
    // After an error reply, too, a parent keeps the connection. One that sends more than it was asked for cannot be used.
    if expected && matches!(outcome, Ok(()) | Err(FetchError::Refused(_))) {
        connection.keep(shared, request.parent);
    }
    outcome
}

fn reply_content_length(reply: &Reply) -> u64 {
    match reply {
        Reply::Piece(_, head) => head.length,
        Reply::Segment(head) => head.length,
        Reply::Error(_) => 0,
    }
}

/// A connection within reach of the cancel handle.
struct Connection<'a> {
    stream: Arc<TcpStream>,
    attached: Attached<'a>,
    cancel: &'a CancelHandle,
}

/// A reply, and the first bytes of the content that came along with it.
struct Replied {
    reply: Reply,
    early: Vec<u8>,
}

/// How much is read at first: an ordinary head is some 120 bytes long, and what comes along must be copied once more.
const EARLY_LEN: usize = 512;

/// How long a receive waits before it looks at the time. Set once per connection, so that limits need no system call of
/// their own; they are exceeded by this at most.
const TICK: Duration = Duration::from_millis(50);

/// Bytes that are worth waking up for. At twice as many, older kernels bound the receive window to them.
const BATCH: usize = 64 << 10;

/// Asks on a connection that is there; if that fails for any reason but time, once more on a new one.
fn ask<'a>(
    shared: &Shared,
    request: &FetchRequest,
    packet: &[u8],
    cancel: &'a CancelHandle,
) -> Result<(Connection<'a>, Replied), FetchError> {
    let deadline = Instant::now() + request.limits.head;
    if let Some(stream) = shared.pool.take(request.parent, Instant::now()) {
        let connection = Connection::attach(stream, cancel)?;
        match connection.exchange(packet, deadline, request.limits.head) {
            Ok(reply) => return Ok((connection, reply)),
            Err(error @ (FetchError::Cancelled | FetchError::Stalled(_))) => return Err(error),
            Err(_) => {}
        }
    }
    let connection = connect(request.parent, shared.options.connect, cancel)?;
    let deadline = Instant::now() + request.limits.head;
    let reply = connection.exchange(packet, deadline, request.limits.head)?;
    Ok((connection, reply))
}

fn connect(
    parent: SocketAddr,
    timeout: Duration,
    cancel: &CancelHandle,
) -> Result<Connection<'_>, FetchError> {
    let socket = Socket::new(
        Domain::for_address(parent),
        Type::STREAM,
        Some(Protocol::TCP),
    );
    let stream = Arc::new(TcpStream::from(socket.map_err(FetchError::Connect)?));
    let connection = Connection::attach(stream, cancel)?;
    let socket = SockRef::from(&*connection.stream);
    let connected = sys::set_piece_socket_options(&socket)
        .and_then(|()| socket.connect_timeout(&parent.into(), timeout))
        .and_then(|()| socket.set_write_timeout(Some(timeout)))
        .and_then(|()| socket.set_read_timeout(Some(TICK)));
    match connected {
        Ok(()) => Ok(connection),
        Err(_) if cancel.is_cancelled() => Err(FetchError::Cancelled),
        Err(error) => Err(FetchError::Connect(error)),
    }
}

impl<'a> Connection<'a> {
    fn attach(stream: Arc<TcpStream>, cancel: &'a CancelHandle) -> Result<Self, FetchError> {
        let attached = cancel.attach(&stream).ok_or(FetchError::Cancelled)?;
        Ok(Self {
            stream,
            attached,
            cancel,
        })
    }

    /// Gives the connection back to the pool, unless it was shut down meanwhile.
    fn keep(self, shared: &Shared, parent: SocketAddr) {
        if self.attached.detach() {
            shared.pool.put(parent, self.stream, Instant::now());
        }
    }

    /// Sends the request and reads the head of the reply.
    fn exchange(
        &self,
        packet: &[u8],
        deadline: Instant,
        limit: Duration,
    ) -> Result<Replied, FetchError> {
        (&*self.stream)
            .write_all(packet)
            .map_err(|error| self.failed(error, limit))?;
        let mut bytes = vec![0; EARLY_LEN];
        let mut filled = 0;
        while filled < HEADER_LEN {
            filled += self.receive(&mut bytes[filled..], deadline, limit)?;
        }
        let header = bytes
            .first_chunk()
            .map(|bytes| Header::from_bytes(*bytes))
            .expect("the buffer is longer");
        let end = HEADER_LEN + header.reply_len()?;
        bytes.resize(filled.max(end), 0);
        while filled < end {
            filled += self.receive(&mut bytes[filled..], deadline, limit)?;
        }
        let reply = Reply::decode(header.tag, &bytes[HEADER_LEN..end])?;
        Ok(Replied {
            reply,
            early: bytes.split_off(end),
        })
    }

    /// Waits for bytes and says how many came; an end of the stream is an error. `limit` is what the caller allowed, for
    /// the error's text.
    fn receive(
        &self,
        bytes: &mut [u8],
        deadline: Instant,
        limit: Duration,
    ) -> Result<usize, FetchError> {
        loop {
            if Instant::now() >= deadline {
                return Err(self.failed(ErrorKind::TimedOut.into(), limit));
            }
            match (&*self.stream).read(bytes) {
                Ok(0) => return Err(self.failed(ErrorKind::UnexpectedEof.into(), limit)),
                Ok(count) => return Ok(count),
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(self.failed(error, limit)),
            }
        }
    }

    fn failed(&self, error: io::Error, limit: Duration) -> FetchError {
        match error.kind() {
            // Shutting the socket down shows as an end or as an error, depending on the moment.
            _ if self.cancel.is_cancelled() => FetchError::Cancelled,
            ErrorKind::TimedOut => FetchError::Stalled(limit),
            ErrorKind::UnexpectedEof => FetchError::Closed,
            _ => FetchError::Broken(error),
        }
    }
}

/// The content that follows an accepted head.
struct Content<'a> {
    shared: &'a Shared,
    request: &'a FetchRequest,
    cancel: &'a CancelHandle,
    connection: &'a Connection<'a>,
}

impl Content<'_> {
    /// Hands `early` and everything that follows to the sink.
    fn receive<S: Sink>(
        &self,
        early: &[u8],
        buffer: &mut [u8],
        sink: &mut S,
        received: &mut u64,
    ) -> Result<(), FetchError> {
        let limits = self.request.limits;
        let deadline = Instant::now() + limits.content;
        let length = self.request.wanted.length();
        let buffer_len = buffer.len();
        let room = |at: u64| {
            usize::try_from(length - at)
                .unwrap_or(usize::MAX)
                .min(buffer_len)
        };
        let mut mark = Mark::new(&self.connection.stream);
        let mut filled = early.len().min(room(0));
        buffer[..filled].copy_from_slice(&early[..filled]);
        while *received < length {
            let want = room(*received);
            if filled < want {
                mark.set(want - filled);
                let stalled = Instant::now() + limits.stall;
                filled +=
                    self.connection
                        .receive(&mut buffer[filled..want], stalled, limits.stall)?;
            }
            sink.write(*received, &buffer[..filled])?;
            *received += filled as u64;
            if Instant::now() > deadline && *received < length {
                return Err(FetchError::Deadline(limits.content));
            }
            if let Some(limit) = &self.shared.options.download_limit {
                self.pace(limit, filled as u64)?;
            }
            filled = 0;
        }
        Ok(())
    }

    /// Waits until the download limit allows what has come; the parent is held back by the full receive window.
    fn pace(&self, limit: &RateLimit, bytes: u64) -> Result<(), FetchError> {
        let now = Instant::now();
        let until = now + limit.reserve(bytes, now).min(PACE_MAX);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.cancel.is_cancelled() {
                return Err(FetchError::Cancelled);
            }
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(PACE_STEP));
        }
    }
}

/// How many bytes wake a receive up. Back to one when dropped.
struct Mark<'a> {
    stream: &'a TcpStream,
    bytes: usize,
}

impl<'a> Mark<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, bytes: 1 }
    }

    /// A batch, if as many as `most` are to come, else those.
    fn set(&mut self, most: usize) {
        let bytes = most.min(BATCH);
        if bytes != self.bytes {
            // Where it is refused, one byte wakes as before.
            let mark = u32::try_from(bytes).unwrap_or(1);
            if sys::set_receive_mark(self.stream, mark).is_ok() {
                self.bytes = bytes;
            }
        }
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.set(1);
    }
}

/// Longest wait for the download limit between two portions; whoever is held longer has a limit that is far too low.
const PACE_MAX: Duration = Duration::from_secs(60);
/// A cancelled fetch that waits for the download limit ends within this time.
const PACE_STEP: Duration = Duration::from_millis(20);
