//! Whose turn it is while a request is passed on.
//!
//! An origin answers when it has the whole body, so its time must not run while the body is waited for; but it must run while the
//! origin does not take what is there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::ForwardBody;

/// Since when the origin has been expected to do something; nothing while the body is waited for.
#[derive(Debug, Clone)]
pub(super) struct Turn(Arc<Mutex<Option<Instant>>>);

impl Turn {
    /// The origin's, from now on.
    pub(super) fn of_origin() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    /// `body`, which notes whose turn it is as it is sent.
    pub(super) fn watching(&self, body: ForwardBody) -> ForwardBody {
        ForwardBody::wrap(Sending {
            body,
            turn: self.clone(),
        })
    }

    /// What `answer` gives, or nothing once the origin had its turn for `limit` without a break.
    pub(super) async fn within<F: Future>(&self, limit: Duration, answer: F) -> Option<F::Output> {
        let mut answer = std::pin::pin!(answer);
        loop {
            // A turn that begins later ends later than this.
            let end = self.since().unwrap_or_else(Instant::now) + limit;
            tokio::select! {
                biased;
                answer = &mut answer => return Some(answer),
                () = sleep_until(end) => {
                    if self.since().is_some_and(|since| since + limit <= end) {
                        return None;
                    }
                }
            }
        }
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// A body on its way to an origin.
#[derive(Debug)]
struct Sending {
    body: ForwardBody,
    turn: Turn,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = <ForwardBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        *self.turn.0.lock() = frame.is_ready().then(Instant::now);
        frame
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
    use futures::StreamExt;
    use http_body_util::BodyExt;

    use super::*;

    const UNIT: Duration = Duration::from_millis(50);

    /// Units to get a frame of the body, for the origin to take it, and for it to answer in the end; whether that is in time.
    async fn check(getting: u32, taking: u32, answering: u32, in_time: bool) {
        let frames = futures::stream::iter(0..2).then(move |_| async move {
            tokio::time::sleep(UNIT * getting).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
        });
        let turn = Turn::of_origin();
        let mut body = turn.watching(ForwardBody::wrap_stream(frames));
        let origin = async {
            while let Some(frame) = body.frame().await {
                frame.unwrap();
                tokio::time::sleep(UNIT * taking).await;
            }
            tokio::time::sleep(UNIT * answering).await;
        };
        let answer = turn.within(UNIT * 10, origin).await;
        assert_eq!(answer.is_some(), in_time, "{getting} {taking} {answering}");
    }

    #[tokio::test]
    async fn the_origins_time_runs_only_in_its_turn() {
        tokio::join!(
            check(3, 3, 3, true),
            check(15, 0, 3, true),
            check(15, 3, 3, true),
            check(0, 0, 20, false),
            check(15, 0, 20, false),
            check(0, 20, 0, false),
        );
    }
}
