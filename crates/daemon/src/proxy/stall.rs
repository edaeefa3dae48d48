//! Bodies that may take as long as they want, as long as something comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::body::BodyError;

/// A body that ends with an error when nothing came for a while. Time in which nobody asked for more does not count.
#[derive(Debug)]
pub(super) struct Stalling<B> {
    body: B,
    limit: Duration,
    /// Runs while the next frame is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    running: bool,
    /// Set when the body ended with an error.
    broken: Broken,
}

/// Whether a body that was given away broke.
#[derive(Debug, Clone, Default)]
pub(super) struct Broken(Arc<AtomicBool>);

impl Broken {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {}", humantime::format_duration(*.0))]
struct Stalled(Duration);

impl<B> Stalling<B> {
    pub(super) fn new(body: B, limit: Duration) -> Self {
        Self {
            body,
            limit,
            timer: None,
            running: false,
            broken: Broken::default(),
        }
    }

    pub(super) fn broken(&self) -> Broken {
        self.broken.clone()
    }
}

impl<B> Body for Stalling<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.running = false;
            let frame = frame.map(|frame| frame.map_err(Into::into));
            if matches!(frame, Some(Err(_))) {
                this.broken.0.store(true, Ordering::Relaxed);
            }
            return Poll::Ready(frame);
        }
        let end = Instant::now() + this.limit;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if !this.running {
            timer.as_mut().reset(end);
            this.running = true;
        }
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                this.broken.0.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(Stalled(this.limit).into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_body_that_stops_is_broken_and_one_that_goes_on_is_not() {
        let (tx, mut rx) = mpsc::channel::<Frame<Bytes>>(1);
        let stream = futures::stream::poll_fn(move |cx| {
            rx.poll_recv(cx).map(|it| it.map(Ok::<_, BodyError>))
        });
        let limit = Duration::from_millis(50);
        let mut body = Stalling::new(StreamBody::new(stream), limit);
        let broken = body.broken();
        for _ in 0..3 {
            tx.send(Frame::data(Bytes::from_static(b"x")))
                .await
                .unwrap();
            assert!(body.frame().await.unwrap().is_ok() && !broken.is_set());
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "nothing came for 50ms");
        assert!(broken.is_set());
    }
}
