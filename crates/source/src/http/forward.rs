//! Passing on what others ask: whole requests, and tunnels of which only the far end is known.
//!
//! The same table of upstreams, the same pool of connections and the same egress policy as for reads, but no meaning: no
//! redirect is followed, no try repeated, no header but the credentials of an upstream added.

use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, Method, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::ServiceExt;
use url::Url;

use super::clients::{Route, Use};
use super::resolver::{ResolveFailure, permitted_addresses};
use super::sending::Turn;
use super::upstream::Credentials;
use super::way::{UpstreamProxy, Way};
use super::{ForwardBody, HttpSource};
use super::{failure, literal};
use crate::dialect::Verification;
use crate::{Redacted, SourceError, StallPhase};

/// A request to be passed on.
#[derive(Debug)]
pub struct Forward {
    /// Any but CONNECT.
    pub method: Method,
    /// http or https.
    pub url: Url,
    /// What the request line says of `url`, to the byte: what an URL means can be written in many ways.
    pub path: PathAndQuery,
    /// As they are to arrive; without `Host`, which comes from the URL that is contacted.
    pub headers: HeaderMap,
    /// `None` sends none. It has to end by itself when nothing comes any more: that time has no limit here.
    pub body: Option<ForwardBody>,
    /// Longest wait for the origin: to take what of the body is there, and after the last of it to answer with the status line.
    pub header_limit: Duration,
}

impl HttpSource {
    /// Sends `forward` as it is and returns whatever the origin says, redirects and errors included. The body of the answer has
    /// no time limit of its own.
    ///
    /// # Errors
    ///
    /// [`SourceError`] if the origin may not be contacted, cannot be reached, or does not answer.
    pub async fn forward(
        &self,
        mut forward: Forward,
    ) -> Result<Response<ForwardBody>, SourceError> {
        let route = self.clients.route(&forward.url);
        self.clients.check(&route).await?;
        route.add_credentials(&mut forward.headers);
        let turn = Turn::of_origin();
        forward.body = forward.body.map(|body| turn.watching(body));
        let (url, limit) = (forward.url.clone(), forward.header_limit);
        let answer = async {
            match literal::is_meant_literally(&forward.path, &route.url) {
                true => self.exchange_literally(&route, forward).await,
                false => self.exchange(&route, forward).await,
            }
        };
        match turn.within(limit, answer).await {
            Some(outcome) => outcome,
            None => Err(SourceError::Stalled {
                url: Redacted::url(&url),
                phase: StallPhase::Header,
                limit,
                received: 0,
            }),
        }
    }

    /// Sends a request for the URL of `route`, over a connection that it shares with others.
    async fn exchange(
        &self,
        route: &Route<'_>,
        forward: Forward,
    ) -> Result<Response<ForwardBody>, SourceError> {
        let client = self
            .clients
            .client_for(route, Use::Forwarding, &[], Verification::On)
            .await?;
        let mut request = client
            .request(forward.method, route.url.clone())
            .headers(forward.headers);
        if let Some(body) = forward.body {
            request = request.body(body);
        }
        match request.send().await {
            Ok(response) => Ok(response.into()),
            Err(error) => Err(failure::of_exchange(
                &error,
                &forward.url,
                self.options.connect_limit,
            )),
        }
    }

    /// A connection to `host` at `port`, through the proxy of its upstream if it has one. What is said on it is not looked at.
    ///
    /// # Errors
    ///
    /// [`SourceError`] if the host may not be contacted or cannot be reached.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, SourceError> {
        let url = Url::parse(&format!("https://{host}:{port}/")).map_err(|error| {
            SourceError::InvalidUrl {
                url: Redacted::text(host),
                reason: error.to_string(),
            }
        })?;
        let mut route = self.clients.route(&url);
        // Whoever speaks through the tunnel expects the host that it named: it is not rewritten.
        route.url = url;
        self.clients.check(&route).await?;
        let limit = self.options.connect_limit;
        let dialled = timeout(limit, self.dial_by(&route)).await;
        let stream = dialled.map_err(|_| SourceError::Stalled {
            url: Redacted::url(&route.url),
            phase: StallPhase::Connect,
            limit,
            received: 0,
        })??;
        // Without it small records of the tunnel wait for an acknowledgement; a socket that refuses it works all the same.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    pub(super) async fn dial_by(&self, route: &Route<'_>) -> Result<TcpStream, SourceError> {
        let url = &route.url;
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let unreachable = |reason: String| SourceError::Connect {
            url: Redacted::url(url),
            reason,
        };
        let addresses = async {
            permitted_addresses(&self.options.egress, host, port)
                .await
                .map_err(|failure| resolve_error(failure, url))
        };
        match &route.way {
            Way::Straight => TcpStream::connect(addresses.await?.as_slice())
                .await
                .map_err(|error| unreachable(error.to_string())),
            Way::Through(proxy) if proxy.resolves_names() => {
                through(proxy, &format!("{host}:{port}"))
                    .await
                    .map_err(|reason| unreachable(format!("through {proxy}: {reason}")))
            }
            Way::Through(proxy) => {
                let address = addresses.await?[0].to_string();
                through(proxy, &address)
                    .await
                    .map_err(|reason| unreachable(format!("through {proxy}: {reason}")))
            }
        }
    }
}

/// A connection to `authority` by way of `proxy`.
async fn through(proxy: &UpstreamProxy, authority: &str) -> Result<TcpStream, String> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let at: Uri = proxy.bare().parse().map_err(|error| text(&error))?;
    let target: Uri = format!("https://{authority}")
        .parse()
        .map_err(|error| text(&error))?;
    let credentials = proxy.credentials();
    match proxy.scheme() {
        "http" => {
            let mut tunnel = Tunnel::new(at, connector);
            if let Some((user, password)) = &credentials {
                tunnel = tunnel.with_auth(Credentials::basic(user, password).header());
            }
            let stream = tunnel.oneshot(target).await;
            stream
                .map(hyper_util::rt::TokioIo::into_inner)
                .map_err(|error| failure::root_cause(&error))
        }
        "socks5" | "socks5h" => {
            let mut socks = SocksV5::new(at, connector);
            if let Some((user, password)) = credentials {
                socks = socks.with_auth(user, password);
            }
            let stream = socks.oneshot(target).await;
            stream
                .map(hyper_util::rt::TokioIo::into_inner)
                .map_err(|error| failure::root_cause(&error))
        }
        _ => Err("tunnels need an http:// or socks5:// proxy".to_owned()),
    }
}

fn resolve_error(failure: ResolveFailure, url: &Url) -> SourceError {
    let url = Redacted::url(url);
    match failure {
        ResolveFailure::NotFound { host, reason } => SourceError::Resolve { url, host, reason },
        ResolveFailure::Denied { host } => SourceError::Denied { url, host },
    }
}
