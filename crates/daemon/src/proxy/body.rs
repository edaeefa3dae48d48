//! The body of an answer, whatever it is made of.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};

/// Why a body ended early. It breaks the connection, so that nobody takes a torso for the whole.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// A stream of bytes for the client of the proxy. An error in it ends the connection without a proper end of the message.
pub struct ProxyBody(UnsyncBoxBody<Bytes, BodyError>);

impl ProxyBody {
    /// No bytes.
    pub fn empty() -> Self {
        Self::wrap(Empty::new())
    }

    /// These bytes; their number becomes `Content-Length`.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::wrap(Full::new(bytes.into()))
    }

    /// The bytes of `stream`. It is polled only when the client takes more, so a slow client holds it back. Without a
    /// `Content-Length` among the headers it is sent chunked.
    pub fn from_stream<S, E>(stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<BodyError> + 'static,
    {
        Self::wrap(StreamBody::new(
            stream.map(|read| read.map(Frame::data).map_err(Into::into)),
        ))
    }

    /// Any other body, with its trailers.
    pub fn wrap<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        Self(body.map_err(Into::into).boxed_unsync())
    }

    /// The same body, which keeps `guard` until it is over or given up.
    pub fn holding<T: Send + Unpin + 'static>(self, guard: T) -> Self {
        Self::wrap(Holding {
            body: self,
            _guard: guard,
        })
    }
}

/// A body with something that lives as long.
struct Holding<T> {
    body: ProxyBody,
    _guard: T,
}

impl<T: Unpin> Body for Holding<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl std::fmt::Debug for ProxyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ProxyBody").field(&self.size_hint()).finish()
    }
}
