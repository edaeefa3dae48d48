//! What a connection is doing, so that each of its waits can have a limit of its own.
//!
//! The HTTP library knows one limit for both, a client that is silent between two requests and one that feeds us a header byte
//! by byte. They differ by a factor of thirty here. The connection notes what happens, and its owner looks once in a while:
//! no timer per read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::window::{Socket, Windows};

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of its headers.
    Head,
    /// Us, or what its answer is made of.
    Busy,
}

/// The notes about one connection.
#[derive(Debug)]
pub(super) struct Watch {
    start: Instant,
    phase: AtomicU8,
    /// When the phase began.
    since_ms: AtomicU64,
    /// When the last bytes went either way.
    moved_ms: AtomicU64,
    /// When the other side stopped taking what we write, plus one; 0 if it takes it.
    blocked_ms: AtomicU64,
    /// Requests so far.
    requests: AtomicU64,
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            phase: AtomicU8::new(Phase::Idle as u8),
            since_ms: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
            blocked_ms: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn request_begins(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.enter(Phase::Busy);
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How long the phase has lasted.
    pub(super) fn lasted(&self) -> Duration {
        self.since(self.since_ms.load(Ordering::Relaxed))
    }

    /// How long no byte went either way.
    pub(super) fn still(&self) -> Duration {
        self.since(self.moved_ms.load(Ordering::Relaxed))
    }

    /// Whether the other side does not take what we write.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_ms.load(Ordering::Relaxed) != 0
    }

    /// How long the other side has not taken what we write.
    pub(super) fn blocked(&self) -> Duration {
        match self.blocked_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self.since(began - 1),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then_ms: u64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(then_ms))
    }

    fn read(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
        if self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    fn write_polled<T>(&self, poll: &Poll<io::Result<T>>) {
        if poll.is_ready() {
            self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
            self.blocked_ms.store(0, Ordering::Relaxed);
        } else if self.blocked_ms.load(Ordering::Relaxed) == 0 {
            self.blocked_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        }
    }
}

/// A connection whose every byte is noted, with bytes in front that were read from it before. What is written out of its windows
/// is sent by the kernel.
#[derive(Debug)]
pub(super) struct Watched<I> {
    pub(super) io: I,
    ahead: Bytes,
    watch: Arc<Watch>,
    windows: Windows,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, ahead: Bytes, watch: Arc<Watch>, windows: Windows) -> Self {
        Self {
            io,
            ahead,
            watch,
            windows,
        }
    }

    /// The connection, and what was read from it without being used.
    pub(super) fn into_parts(self) -> (I, Bytes) {
        (self.io, self.ahead)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..len]);
            self.ahead.advance(len);
            self.watch.read();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.read();
        }
        poll
    }
}

impl<I: Socket> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch.write_polled(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = self
            .io
            .plain()
            .and_then(|socket| self.windows.poll_send(socket, cx, &mut bufs));
        let poll = match sent {
            Some(poll) => poll,
            None => Pin::new(&mut self.io).poll_write_vectored(cx, bufs),
        };
        self.watch.write_polled(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<I: Socket> Socket for Watched<I> {}
