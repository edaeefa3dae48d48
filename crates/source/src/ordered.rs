//! One ordered stream out of a few ranges read side by side.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt};
use protocol::ByteRange;
use tokio::time::Instant;

use crate::{Body, Get, RangePlan, Request, RetryPolicy, SourceError, Sources, Version};

/// Reads the ranges of a [`RangePlan`] a few at a time and hands their bytes out in order.
///
/// What arrives ahead of its turn waits in memory: at most the plan's depth times its chunk length. A range whose connection
/// breaks is continued at the byte reached. There is no task behind it: it reads only while it is polled, and dropping it ends everything.
pub struct OrderedReader {
    origin: Origin,
    plan: RangePlan,
    lanes: VecDeque<Lane>,
    begin: Instant,
    over: bool,
}

/// Where all lanes read.
#[derive(Clone)]
struct Origin {
    sources: Sources,
    request: Request,
    version: Version,
    retry: RetryPolicy,
}

/// One range on its way.
struct Lane {
    stream: BoxStream<'static, Result<Bytes, SourceError>>,
    ahead: VecDeque<Bytes>,
    ended: bool,
}

impl OrderedReader {
    /// Reads what `plan` says of `version` of the content; the origin must serve ranges.
    #[must_use]
    pub fn new(sources: Sources, request: Request, version: Version, plan: RangePlan) -> Self {
        Self {
            origin: Origin {
                sources,
                request,
                version,
                retry: RetryPolicy::default(),
            },
            plan,
            lanes: VecDeque::new(),
            begin: Instant::now(),
            over: false,
        }
    }

    /// The next bytes in order; `None` at the end of the plan. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The first [`SourceError`] that further tries did not overcome; the reader is over then.
    pub async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        StreamExt::next(self).await
    }

    fn fill_lanes(&mut self) {
        while self.lanes.len() < self.plan.depth() {
            let Some(range) = self.plan.next_range() else {
                break;
            };
            self.lanes.push_back(Lane {
                stream: self.origin.read(range),
                ahead: VecDeque::new(),
                ended: false,
            });
        }
    }

    /// Reads every lane as far as it has bytes now.
    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), SourceError> {
        let mut arrived = 0;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            while !lane.ended && (index > 0 || lane.ahead.is_empty()) {
                match lane.stream.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        arrived += bytes.len() as u64;
                        lane.ahead.push_back(bytes);
                    }
                    Poll::Ready(Some(Err(error))) => return Err(error),
                    Poll::Ready(None) => lane.ended = true,
                    Poll::Pending => break,
                }
            }
        }
        if arrived > 0 {
            self.plan.arrived(self.begin.elapsed(), arrived);
        }
        Ok(())
    }
}

impl Stream for OrderedReader {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.over {
            this.fill_lanes();
            if let Err(error) = this.drive(cx) {
                this.over = true;
                this.lanes.clear();
                return Poll::Ready(Some(Err(error)));
            }
            let Some(first) = this.lanes.front_mut() else {
                break;
            };
            if let Some(bytes) = first.ahead.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if !first.ended {
                return Poll::Pending;
            }
            this.lanes.pop_front();
        }
        this.over = true;
        Poll::Ready(None)
    }
}

impl Origin {
    /// The bytes of `range`, continued over broken connections.
    fn read(&self, range: ByteRange) -> BoxStream<'static, Result<Bytes, SourceError>> {
        let state = LaneState {
            origin: self.clone(),
            at: range.start,
            end: range.end(),
            body: None,
            failed: 0,
        };
        stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.step().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

struct LaneState {
    origin: Origin,
    at: u64,
    end: u64,
    body: Option<Body>,
    failed: u32,
}

impl LaneState {
    async fn step(&mut self) -> Result<Option<Bytes>, SourceError> {
        while self.at < self.end {
            let Some(body) = &mut self.body else {
                let rest = ByteRange {
                    start: self.at,
                    length: self.end - self.at,
                };
                let get = Get::range(rest).of_version(self.origin.version.clone());
                self.body = Some(
                    self.origin
                        .sources
                        .get(&self.origin.request, get)
                        .await?
                        .body,
                );
                continue;
            };
            match body.next().await {
                Some(Ok(bytes)) => {
                    self.at += bytes.len() as u64;
                    self.failed = 0;
                    return Ok(Some(bytes));
                }
                Some(Err(error)) => {
                    self.failed += 1;
                    let pause = self
                        .origin
                        .retry
                        .pause(self.failed, &error, fastrand::f64())
                        .ok_or(error)?;
                    self.body = None;
                    tokio::time::sleep(pause).await;
                }
                None => self.body = None,
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for OrderedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderedReader")
            .field("request", &self.origin.request)
            .field("plan", &self.plan)
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}
