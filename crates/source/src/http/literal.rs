//! Requests whose path the HTTP library would change on its way.
//!
//! It carries URLs in a normal form (`/a/../b` as `/b`, `'` in a query as `%27`), but whoever passes on a request leaves its path and query alone
//! (RFC 9110, section 7.7): signatures are made of them, and some servers mean what they say. Such requests are seldom, so each has a
//! connection of its own, over HTTP/1.1; all others share the library's.

use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::uri::PathAndQuery;
use ::http::{HeaderValue, Request, Response, header};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use super::clients::Route;
use super::failure;
use super::forward::Forward;
use super::upstream::Credentials;
use super::way::Way;
use super::{ForwardBody, HttpSource};
use crate::{Redacted, SourceError, StallPhase};

/// Whether `path` is not what the request line for `url` would say.
pub(super) fn is_meant_literally(path: &PathAndQuery, url: &Url) -> bool {
    path.as_str() != &url[Position::BeforePath..Position::AfterQuery]
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

type Carrier = Pin<Box<Connection<TokioIo<Box<dyn Stream>>, ForwardBody>>>;

impl HttpSource {
    /// Sends `forward` to the host of `route`, with its path.
    pub(super) async fn exchange_literally(
        &self,
        route: &Route<'_>,
        forward: Forward,
    ) -> Result<Response<ForwardBody>, SourceError> {
        let Forward {
            method,
            url,
            path,
            mut headers,
            body,
            ..
        } = forward;
        let broken = |error: hyper::Error| SourceError::Interrupted {
            url: Redacted::url(&url),
            received: 0,
            expected: None,
            reason: failure::root_cause(&error),
        };
        let limit = self.options.connect_limit;
        let connected = timeout(limit, self.connect(route)).await;
        let stream = connected.map_err(|_| SourceError::Stalled {
            url: Redacted::url(&url),
            phase: StallPhase::Connect,
            limit,
            received: 0,
        })??;
        let authority = &route.url[Position::BeforeHost..Position::AfterPort];
        let host = HeaderValue::from_str(authority).map_err(|error| invalid(&url, &error))?;
        headers.insert(header::HOST, host);
        if let Some(shown) = credentials_of(&route.url)
            && !headers.contains_key(header::AUTHORIZATION)
        {
            headers.insert(header::AUTHORIZATION, shown.header());
        }
        let mut target = path.to_string();
        if let Some(proxy) = by_whole_url(route) {
            target = format!("http://{authority}{path}");
            if let Some((user, password)) = proxy.credentials() {
                let shown = Credentials::basic(&user, &password).header();
                headers.insert(header::PROXY_AUTHORIZATION, shown);
            }
        }
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .body(body.unwrap_or_else(|| ForwardBody::from("")))
            .map_err(|error| invalid(&url, &error))?;
        *request.headers_mut() = headers;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(broken)?;
        let mut carrier = Box::pin(connection);
        let mut sending = std::pin::pin!(sender.send_request(request));
        let answer = tokio::select! {
            biased;
            answer = &mut sending => answer,
            // With the connection the answer is decided, unless it came with its last bytes.
            _ = &mut carrier => sending.await,
        };
        let answer = answer.map_err(broken)?;
        Ok(answer.map(|body| {
            ForwardBody::wrap(Carried {
                body,
                carrier: Some(carrier),
            })
        }))
    }

    async fn connect(&self, route: &Route<'_>) -> Result<Box<dyn Stream>, SourceError> {
        let url = &route.url;
        let unreachable = |error: &dyn std::fmt::Display| SourceError::Connect {
            url: Redacted::url(url),
            reason: error.to_string(),
        };
        let stream = match by_whole_url(route) {
            Some(proxy) => {
                let (host, port) = proxy.host_and_port();
                let dialled = TcpStream::connect((host, port)).await;
                dialled.map_err(|error| unreachable(&format!("through {proxy}: {error}")))?
            }
            None => self.dial_by(route).await?,
        };
        // A socket that refuses it works all the same.
        let _ = stream.set_nodelay(true);
        if url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let tls = TlsConnector::from(self.clients.tls_for(route).await?);
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| invalid(url, &error))?;
        let shaken = tls.connect(name, stream).await;
        shaken.map_or_else(
            |error| {
                Err(match failure::tls_reason(&error) {
                    Some(reason) => SourceError::Tls {
                        url: Redacted::url(url),
                        reason,
                    },
                    None => unreachable(&error),
                })
            },
            |stream| Ok(Box::new(stream) as Box<dyn Stream>),
        )
    }
}

/// The proxy that is told the whole URL instead of making a tunnel: plain HTTP by way of an HTTP proxy.
fn by_whole_url<'a>(route: &'a Route<'_>) -> Option<&'a super::UpstreamProxy> {
    match &route.way {
        Way::Through(proxy) if route.url.scheme() == "http" && proxy.scheme() == "http" => {
            Some(proxy)
        }
        _ => None,
    }
}

/// The user and the password that a URL names.
fn credentials_of(url: &Url) -> Option<Credentials> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let given = !url.username().is_empty() || url.password().is_some();
    given.then(|| {
        let password = url.password().unwrap_or_default();
        Credentials::basic(&decoded(url.username()), &decoded(password))
    })
}

fn invalid(url: &Url, error: &dyn std::fmt::Display) -> SourceError {
    SourceError::InvalidUrl {
        url: Redacted::url(url),
        reason: error.to_string(),
    }
}

/// The body of an answer, with the connection that it comes over.
struct Carried {
    body: Incoming,
    carrier: Option<Carrier>,
}

impl Body for Carried {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // What ends the connection too early is told by the body.
        if let Some(carrier) = &mut self.carrier
            && carrier.as_mut().poll(cx).is_ready()
        {
            self.carrier = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
