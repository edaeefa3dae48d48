//! A limit on how many calls a server begins per second.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::codegen::BoxFuture;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tower::{Layer, Service};

/// A token bucket in front of all services of a server: `rate` calls per second with a burst of as many, counting unary
/// calls and the opening of streams. A call beyond it waits for its turn if fewer than `queue` are waiting, else it is
/// refused with `RESOURCE_EXHAUSTED`. Clones share the bucket. Put it around a server's routes with [`RateLimit::around`].
#[derive(Clone)]
pub struct RateLimit {
    bucket: Arc<Mutex<Bucket>>,
    /// Time that one call takes out of the bucket.
    interval: Duration,
    burst: Duration,
    queue: Duration,
}

/// The virtual scheduling form of a token bucket (GCRA): `due` is when the bucket will be full again. One instant instead of
/// a count and a timer.
struct Bucket {
    due: Instant,
}

impl RateLimit {
    /// `rate` is in calls per second, at least one per hour; `queue` is how many calls may wait.
    pub fn new(rate: f64, queue: u32) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate.clamp(1.0 / 3600.0, 1e9));
        Self {
            bucket: Arc::new(Mutex::new(Bucket {
                due: Instant::now(),
            })),
            interval,
            burst: Duration::from_secs_f64(
                (interval.as_secs_f64() * rate).clamp(interval.as_secs_f64(), 3600.0),
            ),
            queue: interval.saturating_mul(queue),
        }
    }

    /// `routes` behind this limit.
    pub fn around(self, routes: Routes) -> Routes {
        routes.into_axum_router().layer(self).into()
    }

    /// Takes a token if there is one now: for calls that do not wait. Whoever gets `false` refuses the call.
    pub fn admits(&self) -> bool {
        self.take(Instant::now()) == Some(Duration::ZERO)
    }

    /// Takes a token at `now`: how long the call must wait, or `None` if it is refused.
    fn take(&self, now: Instant) -> Option<Duration> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let due = bucket.due.max(now) + self.interval;
        let wait = due.saturating_duration_since(now + self.burst);
        if wait > self.queue {
            return None;
        }
        bucket.due = due;
        Some(wait)
    }
}

impl<S> Layer<S> for RateLimit {
    type Service = RateLimited<S>;

    fn layer(&self, inner: S) -> RateLimited<S> {
        RateLimited {
            inner,
            limit: self.clone(),
        }
    }
}

/// A service behind a [`RateLimit`].
#[derive(Clone)]
pub struct RateLimited<S> {
    inner: S,
    limit: RateLimit,
}

impl<S, B, R> Service<Request<B>> for RateLimited<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    S::Error: Send,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<Response<R>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.limit.take(Instant::now()) {
            Some(Duration::ZERO) => Box::pin(self.inner.call(request)),
            Some(wait) => {
                // The service that was polled ready must be the one that is called.
                let unpolled = self.inner.clone();
                let mut ready = std::mem::replace(&mut self.inner, unpolled);
                Box::pin(async move {
                    tokio::time::sleep(wait).await;
                    ready.call(request).await
                })
            }
            None => {
                let status = Status::resource_exhausted(
                    "more requests per second than requestRateLimit: try later",
                );
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_calls_queue_then_they_are_refused() {
        let limit = RateLimit::new(10.0, 2);
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(limit.take(now), Some(Duration::ZERO));
        }
        assert_eq!(limit.take(now), Some(Duration::from_millis(100)));
        assert_eq!(limit.take(now), Some(Duration::from_millis(200)));
        assert_eq!(limit.take(now), None);
        // One token later there is one more place in the queue.
        assert_eq!(
            limit.take(now + Duration::from_millis(100)),
            Some(Duration::from_millis(200))
        );
        // The bucket fills up to the burst and not beyond.
        let later = now + Duration::from_secs(100);
        assert_eq!((0..13).filter(|_| limit.take(later).is_some()).count(), 12);
    }
}
