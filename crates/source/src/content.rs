//! The answer to a read: facts, and a body that keeps its promise or says why not.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::{BoxStream, StreamExt};
use protocol::ByteRange;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Facts, Redacted, SourceError, StallPhase};

/// Bytes of an origin, and what came along with them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Content {
    /// What the answer told about the content.
    pub facts: Facts,
    /// Offset in the content of the first byte of the body.
    pub start: u64,
    /// How many bytes the body has; `None` if the origin does not tell (then its end is the connection's word).
    pub length: Option<u64>,
    /// The bytes.
    pub body: Body,
}

impl Content {
    pub(crate) fn new(facts: Facts, start: u64, body: Body) -> Self {
        Self {
            facts,
            start,
            length: body.expected,
            body,
        }
    }

    /// Which bytes of the content the body holds, if its length is known.
    #[must_use]
    pub fn range(&self) -> Option<ByteRange> {
        self.length.map(|length| ByteRange {
            start: self.start,
            length,
        })
    }
}

/// A stream of content bytes in order.
///
/// It ends with `None` only if every promised byte was handed out, never with a byte too many, and always within its limits: an
/// idle origin ends in [`SourceError::Stalled`], a slow one in [`SourceError::Deadline`]. After an error it is over. At most one network
/// read (some 400 KiB) is held in memory; a reader that pauses holds the origin back through TCP. Dropping it ends the transfer.
pub struct Body {
    stream: BoxStream<'static, Result<Bytes, String>>,
    url: Redacted,
    expected: Option<u64>,
    received: u64,
    skip: u64,
    surplus: Surplus,
    limits: BodyLimits,
    last_read: Instant,
    alarm: Pin<Box<Sleep>>,
    over: bool,
}

/// What bytes behind the expected ones mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// The origin contradicts itself.
    Refuse,
    /// We only want a part of what it sends.
    Leave,
}

/// The limits of a [`Body`] in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Longest pause between two reads.
    pub(crate) idle: Duration,
    /// The end of the whole operation, and the limit that made it, for the message.
    pub(crate) deadline: Option<(Instant, Duration)>,
}

impl Body {
    /// A body of `expected` bytes (if known) out of `stream`.
    pub(crate) fn new(
        stream: BoxStream<'static, Result<Bytes, String>>,
        url: Redacted,
        expected: Option<u64>,
        limits: BodyLimits,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            url,
            expected,
            received: 0,
            skip: 0,
            surplus: Surplus::Refuse,
            limits,
            last_read: now,
            alarm: Box::pin(sleep_until(limits.next_end(now))),
            over: false,
        }
    }

    /// The same stream, of which only `length` bytes after the first `start` ones are wanted.
    pub(crate) fn slice(mut self, start: u64, length: u64) -> Self {
        self.skip = start;
        self.expected = Some(length);
        self.surplus = Surplus::Leave;
        self
    }

    /// The same stream, which must have `length` bytes.
    pub(crate) fn expect(mut self, length: u64) -> Self {
        self.expected = Some(length);
        self
    }

    /// The next bytes; `None` when all were handed out. Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`SourceError::Stalled`], [`SourceError::Deadline`], [`SourceError::Interrupted`], [`SourceError::TooLong`].
    pub async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        StreamExt::next(self).await
    }

    /// How many content bytes were handed out so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// All of it at once.
    ///
    /// # Errors
    ///
    /// As [`Body::next`], and [`SourceError::TooLong`] if there are more than `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Vec<u8>, SourceError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if bytes.len() > limit - whole.len() {
                return Err(SourceError::TooLong {
                    url: self.url,
                    expected: limit as u64,
                });
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    fn is_complete(&self) -> bool {
        self.skip == 0
            && self
                .expected
                .is_none_or(|expected| self.received >= expected)
    }

    /// Takes one read in and returns what of it the caller gets.
    fn admit(&mut self, mut bytes: Bytes) -> Result<Bytes, SourceError> {
        let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        bytes = bytes.split_off(skipped);
        self.skip -= skipped as u64;
        if let Some(expected) = self.expected
            && bytes.len() as u64 > expected - self.received
        {
            if self.surplus == Surplus::Refuse {
                return Err(SourceError::TooLong {
                    url: self.url.clone(),
                    expected,
                });
            }
            let wanted = expected - self.received;
            bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        }
        self.received += bytes.len() as u64;
        Ok(bytes)
    }

    /// Why the body is over although bytes are missing.
    fn interrupted(&self, reason: String) -> SourceError {
        SourceError::Interrupted {
            url: self.url.clone(),
            received: self.received,
            expected: self.expected,
            reason,
        }
    }

    /// Whether a time limit has passed; wakes the task at the next one otherwise.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        loop {
            if self.alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if let Some((end, limit)) = self.limits.deadline
                && now >= end
            {
                return Poll::Ready(SourceError::Deadline {
                    url: self.url.clone(),
                    limit,
                    received: self.received,
                });
            }
            if now >= self.last_read + self.limits.idle {
                return Poll::Ready(SourceError::Stalled {
                    url: self.url.clone(),
                    phase: StallPhase::Body,
                    limit: self.limits.idle,
                    received: self.received,
                });
            }
            // There was a read since the alarm was set: it is moved here, once, instead of at every read.
            let next_end = self.limits.next_end(self.last_read);
            self.alarm.as_mut().reset(next_end);
        }
    }
}

impl BodyLimits {
    /// For a body that waits for nobody.
    pub(crate) fn none() -> Self {
        Self {
            idle: Duration::from_secs(3600),
            deadline: None,
        }
    }

    fn next_end(&self, last_read: Instant) -> Instant {
        let idle_end = last_read + self.idle;
        self.deadline.map_or(idle_end, |(end, _)| end.min(idle_end))
    }
}

impl Stream for Body {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over || (this.surplus == Surplus::Leave && this.is_complete()) {
            return Poll::Ready(None);
        }
        let outcome = loop {
            match this.stream.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    this.last_read = Instant::now();
                    match this.admit(bytes) {
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => return Poll::Ready(Some(Ok(bytes))),
                        Err(error) => break Some(error),
                    }
                }
                Poll::Ready(None) if this.is_complete() => break None,
                Poll::Ready(None) => break Some(this.interrupted("the body ended".to_owned())),
                // All is here; how the origin closes its answer is of no interest any more.
                Poll::Ready(Some(Err(_))) if this.expected.is_some() && this.is_complete() => {
                    break None;
                }
                Poll::Ready(Some(Err(reason))) => break Some(this.interrupted(reason)),
                Poll::Pending => match this.poll_limits(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) if this.expected.is_some() && this.is_complete() => break None,
                    Poll::Ready(error) => break Some(error),
                },
            }
        };
        this.over = true;
        Poll::Ready(outcome.map(Err))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("url", &self.url)
            .field("expected", &self.expected)
            .field("received", &self.received)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
