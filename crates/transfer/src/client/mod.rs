//! The child's side: fetches one piece or segment from one parent.
//!
//! A fetch runs on a blocking thread: receive, hand to the sink (which digests and writes), receive. That keeps the bytes
//! warm in one core's cache and costs no task switch per portion. The number of threads is bounded by a semaphore, the
//! buffers are reused and there is one per thread that receives content.
//!
//! What it deliberately does not do: choose parents, retry elsewhere, check digests (the sink does).

mod cancel;
mod error;
mod exchange;
mod pool;
mod request;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use cancel::CancelHandle;
pub use error::{Fault, FetchError, SinkError};
pub use request::{FetchRequest, Limits, Wanted};

use self::pool::{Buffers, Pool};
use crate::{ContentHead, RateLimit};

/// Takes what a fetch receives. Called on a blocking thread, so it may write to disk.
pub trait Sink: Send + 'static {
    /// The head of the reply, already compared with what was wanted; before any content. A piece's digest is in it.
    ///
    /// # Errors
    /// [`SinkError`] ends the fetch.
    fn head(&mut self, head: &ContentHead) -> Result<(), SinkError> {
        let _ = head;
        Ok(())
    }

    /// The next bytes of the content; `offset` counts from the first byte wanted. Comes in order, without gaps, and never
    /// with more bytes in total than were wanted.
    ///
    /// # Errors
    /// [`SinkError`] ends the fetch.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;
}

/// What became of a fetch.
#[derive(Debug)]
pub struct FetchOutcome<S> {
    /// The sink, as the fetch left it.
    pub sink: S,
    /// How many bytes the sink has taken; with an error, where another parent can resume.
    pub received: u64,
    /// From the start of the fetch (after any wait for a free worker) to its end.
    pub elapsed: Duration,
    /// Whether everything that was wanted has come.
    pub result: Result<(), FetchError>,
}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Fetches that run at the same time; others wait. Each may hold one buffer and one thread. Default 128.
    pub workers_max: usize,
    /// Longest wait for a connection. Default 2 s, as in the reference.
    pub connect: Duration,
    /// How long an unused connection is kept. Default 30 s: parents close theirs then.
    pub idle: Duration,
    /// Limits what all fetches receive together.
    pub download_limit: Option<Arc<RateLimit>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            workers_max: 128,
            connect: Duration::from_secs(2),
            idle: Duration::from_secs(30),
            download_limit: None,
        }
    }
}

/// Fetches pieces and segments, and keeps connections for the next time. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ClientOptions,
    pool: Pool,
    buffers: Buffers,
    workers: Arc<Semaphore>,
}

impl Client {
    /// A client without connections.
    pub fn new(options: ClientOptions) -> Self {
        let workers = Arc::new(Semaphore::new(
            options.workers_max.clamp(1, Semaphore::MAX_PERMITS),
        ));
        let pool = Pool::new(options.idle);
        Self {
            shared: Arc::new(Shared {
                options,
                pool,
                buffers: Buffers::default(),
                workers,
            }),
        }
    }

    /// Fetches what `request` names into `sink`. Must be called within a tokio runtime.
    ///
    /// Dropping the future cancels the fetch; the thread then ends on its own, soon, and drops the sink.
    pub async fn fetch<S: Sink>(
        &self,
        request: FetchRequest,
        sink: S,
        cancel: CancelHandle,
    ) -> FetchOutcome<S> {
        let on_drop = cancel.cancel_on_drop();
        let slot = Arc::new(Mutex::new(Some(sink)));
        let (received, elapsed, result) = match self.shared.worker(&cancel).await {
            Ok(permit) => {
                let (shared, slot) = (Arc::clone(&self.shared), Arc::clone(&slot));
                let work = move || {
                    let _permit = permit;
                    shared.work(&request, &slot, &cancel)
                };
                let joined = tokio::task::spawn_blocking(work).await;
                joined.unwrap_or_else(|error| {
                    (
                        0,
                        Duration::ZERO,
                        Err(FetchError::Worker(error.to_string())),
                    )
                })
            }
            Err(error) => (0, Duration::ZERO, Err(error)),
        };
        on_drop.defuse();
        let sink = slot
            .lock()
            .take()
            .expect("the worker puts the sink back, also after a panic");
        FetchOutcome {
            sink,
            received,
            elapsed,
            result,
        }
    }

    /// Closes connections that have been unused for too long. They also go when the pool is used; call this now and then
    /// so that they go without that.
    pub fn close_idle(&self) {
        self.shared.pool.close_idle(Instant::now());
    }
}

impl Shared {
    async fn worker(&self, cancel: &CancelHandle) -> Result<OwnedSemaphorePermit, FetchError> {
        let permit = Arc::clone(&self.workers).acquire_owned();
        match cancel.unless_cancelled(permit).await {
            Some(permit) => Ok(permit.expect("the semaphore is never closed")),
            None => Err(FetchError::Cancelled),
        }
    }

    /// Runs on a blocking thread. The sink leaves the slot for the time of the work, whatever happens.
    fn work<S: Sink>(
        &self,
        request: &FetchRequest,
        slot: &Mutex<Option<S>>,
        cancel: &CancelHandle,
    ) -> (u64, Duration, Result<(), FetchError>) {
        let started = Instant::now();
        let mut sink = slot.lock().take().expect("only this worker takes the sink");
        let mut received = 0;
        let work =
            AssertUnwindSafe(|| exchange::fetch(self, request, &mut sink, cancel, &mut received));
        // Nothing of ours is left half-changed by a panic of the sink: connection and buffer are dropped with it.
        let result = catch_unwind(work)
            .unwrap_or_else(|_| Err(FetchError::Worker("the sink panicked".to_owned())));
        *slot.lock() = Some(sink);
        (received, started.elapsed(), result)
    }
}
