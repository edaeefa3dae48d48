//! Sends a reply and the bytes behind it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use protocol::vortex::{ErrorReply, Reply};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Shared, residency};
use crate::{Arrival, Content, Upload};

/// Bytes that are checked for being in memory, charged to the upload limit and sent in one go.
const WINDOW: u64 = 1 << 20;
/// Under an upload limit, the window is what the limit allows in this part of a second: whoever waits for its turn must not
/// look stalled to its child.
const LIMITED_WINDOWS_PER_SECOND: u64 = 20;
/// Smallest window under a limit.
const WINDOW_MIN: u64 = 64 << 10;
/// How far ahead of a cold window the disk is asked to read.
const READ_AHEAD: u64 = 8 << 20;
/// After so many bytes without waiting, other connections get a turn.
const TURN: u64 = 4 << 20;

/// Sends to one child.
pub(super) struct Sender<'a, S> {
    shared: &'a Shared<S>,
    stream: &'a TcpStream,
}

impl<'a, S> Sender<'a, S> {
    pub(super) fn new(shared: &'a Shared<S>, stream: &'a TcpStream) -> Self {
        Self { shared, stream }
    }

    pub(super) async fn send_error(&self, error: ErrorReply) -> io::Result<()> {
        self.send_packet(&Reply::Error(error), SendFlags::empty())
            .await
    }

    /// Sends the reply and all of the content, or fails; then the connection must be closed, which tells the child.
    pub(super) async fn send(&self, reply: Reply, content: Content) -> io::Result<()> {
        let options = &self.shared.options;
        let time =
            options.stall + Duration::from_secs(content.head.length() / options.rate_min.max(1));
        timeout(time, self.send_all(&reply, content))
            .await
            .map_err(|_| ErrorKind::TimedOut)?
    }

    async fn send_all(&self, reply: &Reply, content: Content) -> io::Result<()> {
        let length = content.head.length();
        let Content {
            file,
            file_offset,
            arrival,
            mut upload,
            ..
        } = content;
        let mut body = Body {
            file: &file,
            file_offset,
            length,
            sent: 0,
            upload: &mut *upload,
        };
        match arrival {
            Arrival::Whole => {
                // The head travels in the first segment of the content.
                let more = if length > 0 {
                    SendFlags::MORE
                } else {
                    SendFlags::empty()
                };
                self.send_packet(reply, more).await?;
                self.send_body(&mut body, length).await
            }
            Arrival::Arriving(mut arriving) => {
                self.send_packet(reply, SendFlags::empty()).await?;
                while body.sent < length {
                    let more = timeout(self.shared.options.stall, arriving.more(body.sent)).await;
                    let available = more
                        .map_err(|_| ErrorKind::TimedOut)?
                        .map_err(io::Error::other)?;
                    if available <= body.sent {
                        return Err(io::Error::other(
                            "the source promised more bytes and has none",
                        ));
                    }
                    self.send_body(&mut body, available.min(length)).await?;
                }
                Ok(())
            }
        }
    }

    async fn send_packet(&self, reply: &Reply, more: SendFlags) -> io::Result<()> {
        let packet = reply
            .to_packet(fastrand::u8(..))
            .map_err(io::Error::other)?;
        let mut rest = packet.as_slice();
        while !rest.is_empty() {
            let send = || {
                Ok(rustix::net::send(
                    self.stream,
                    rest,
                    more | SendFlags::NOSIGNAL,
                )?)
            };
            let (count, _) = self.when_writable(send).await?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Sends the content up to its byte `end`.
    async fn send_body(&self, body: &mut Body<'_>, end: u64) -> io::Result<()> {
        let limit = self.shared.options.upload_limit.as_deref();
        let window_max = limit.map_or(WINDOW, |limit| {
            (limit.bytes_per_second() / LIMITED_WINDOWS_PER_SECOND).clamp(WINDOW_MIN, WINDOW)
        });
        let mut turn = 0;
        while body.sent < end {
            let offset = body.file_offset + body.sent;
            let window = (end - body.sent).min(window_max);
            if !residency::is_resident(body.file, offset, window) {
                let ahead = (body.length - body.sent - window).min(READ_AHEAD);
                residency::warm(&self.shared.disk_reads, body.file, offset, window, ahead).await?;
            }
            if let Some(limit) = limit {
                limit.acquire(window).await;
            }
            let waited = self.send_window(body, window).await?;
            turn = if waited { 0 } else { turn + window };
            if turn >= TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Sends the next `window` bytes; says whether it had to wait for the child.
    async fn send_window(&self, body: &mut Body<'_>, window: u64) -> io::Result<bool> {
        let (mut left, mut waited) = (window, false);
        while left > 0 {
            let mut offset = body.file_offset + body.sent;
            let want = usize::try_from(left).unwrap_or(usize::MAX);
            let send = || {
                Ok(rustix::fs::sendfile(
                    self.stream,
                    body.file,
                    Some(&mut offset),
                    want,
                )?)
            };
            let (count, had_to_wait) = self.when_writable(send).await?;
            if count == 0 {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the file is shorter than the content",
                ));
            }
            waited |= had_to_wait;
            left -= count as u64;
            body.sent += count as u64;
            body.upload.sent(count as u64);
        }
        Ok(waited)
    }

    /// Runs `call` as soon as the socket takes bytes; says whether it had to wait for that.
    async fn when_writable<T>(
        &self,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<(T, bool)> {
        let mut deadline = None;
        loop {
            match self.stream.try_io(Interest::WRITABLE, &mut call) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => return Ok((done?, deadline.is_some())),
            }
            let deadline =
                *deadline.get_or_insert_with(|| Instant::now() + self.shared.options.stall);
            timeout_at(deadline, self.stream.writable())
                .await
                .map_err(|_| ErrorKind::TimedOut)??;
        }
    }
}

/// A content on its way.
struct Body<'a> {
    file: &'a Arc<File>,
    file_offset: u64,
    length: u64,
    sent: u64,
    upload: &'a mut dyn Upload,
}
