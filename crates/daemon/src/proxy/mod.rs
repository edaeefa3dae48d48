//! The HTTP proxy and registry mirror (port 4001): every HTTP client's way into the swarm.
//!
//! A request comes in at `listener` on a `connection`; [`target`] says what it is about, [`auth`] whether it may, [`rules`] whether
//! it goes into the swarm ([`p2p`]) or to its origin as it is (`direct`). CONNECT makes a `tunnel`, which is looked into only for
//! hosts that were named ([`intercept`]). What goes wrong is said by [`answer`].
//!
//! It never answers slower than it must: beyond its limits it says 503 at once, so that a container runtime asks its registry.
//!
//! Not here: caching, and any knowledge of pieces.

pub mod answer;
pub mod auth;
pub mod body;
mod connection;
mod direct;
pub mod headers;
pub mod intercept;
mod listener;
pub mod p2p;
pub mod rules;
mod stall;
pub mod target;
mod tunnel;
mod watch;
pub mod window;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body::Body;
use hyper::body::Incoming;
use parking_lot::Mutex;
use runtime::grpc::RateLimit;
use runtime::shutdown::Shutdown;
use source::http::HttpSource;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use url::{Position, Url};

use crate::blocklist::Subject;
use crate::config::{self, ProxyLimits};
use crate::dynconfig::Dynconfig;
use crate::metrics::Metrics;
use answer::ErrorType;
use auth::Door;
use body::ProxyBody;
use connection::Peer;
use direct::Direct;
use headers::Framing;
use intercept::Interception;
use p2p::{Outcome, P2p, P2pRequest};
use rules::Rules;
use target::{Destination, Mode, Target};

/// Asks for the swarm where no rule does.
const USE_P2P_HEADER: &str = "x-dragonfly-use-p2p";

/// What v2 takes for a request without a readable `X-Dragonfly-Priority`.
const PRIORITY_DEFAULT: i32 = 6;

/// How often a thing that clients can cause at will is logged.
const SELDOM: Duration = Duration::from_secs(60);

/// What the proxy is made of.
pub struct ProxyParts<'a> {
    /// `proxy`.
    pub config: &'a config::Proxy,
    /// Where it listens; as bound.
    pub listen: SocketAddr,
    /// The address under which others know this host.
    pub ip: IpAddr,
    /// Origins, as the rest of the daemon reaches them.
    pub http: Arc<HttpSource>,
    /// The way through the swarm.
    pub p2p: P2p,
    /// The block list.
    pub dynconfig: Arc<Dynconfig>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Looking into tunnels.
    pub interception: Option<Interception>,
}

/// The proxy of a daemon; cheap to clone.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

struct Shared {
    limits: ProxyLimits,
    door: Door,
    rules: Rules,
    registry: Url,
    own: Vec<SocketAddr>,
    /// What this proxy calls itself in `Via`; another one for each start.
    pseudonym: String,
    http: Arc<HttpSource>,
    p2p: P2p,
    dynconfig: Arc<Dynconfig>,
    metrics: Arc<Metrics>,
    interception: Option<Interception>,
    rate: RateLimit,
    running: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    connections: TaskTracker,
    /// Ends whatever is still running, answers included.
    cut: CancellationToken,
    tls_told: Seldom,
    handshake_told: Seldom,
}

impl Proxy {
    /// Of these parts. Serves nobody yet.
    pub fn new(parts: ProxyParts<'_>) -> Self {
        let config = parts.config;
        let semaphore = |permits: u32| {
            let permits = usize::try_from(permits).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
        };
        Self(Arc::new(Shared {
            limits: config.limits,
            door: Door::new(config.basic_auth.as_ref()),
            rules: Rules::new(&config.rules),
            registry: config.registry_mirror.addr.clone(),
            own: own_addresses(parts.listen, parts.ip),
            pseudonym: format!("dragonfly-{:08x}", uuid::Uuid::new_v4().as_fields().0),
            http: parts.http,
            p2p: parts.p2p,
            dynconfig: parts.dynconfig,
            metrics: parts.metrics,
            interception: parts.interception,
            rate: RateLimit::new(f64::from(config.request_rate_limit), 0),
            running: semaphore(config.limits.requests),
            tunnels: semaphore(config.limits.tunnels),
            connections: TaskTracker::new(),
            cut: CancellationToken::new(),
            tls_told: Seldom::default(),
            handshake_told: Seldom::default(),
        }))
    }

    /// Accepts connections until the end of `shutdown` begins, then finishes what is under way within `grace`.
    pub async fn serve(self, listener: TcpListener, grace: Duration, shutdown: Shutdown) {
        listener::serve(self, listener, grace, shutdown).await;
    }

    /// Waits until no connection is left, once accepting has ended.
    pub async fn ended(&self) {
        self.0.connections.wait().await;
    }

    /// The answer to one request.
    async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Response<ProxyBody> {
        let proxy = &self.0;
        let scheme = match (request.uri().scheme_str(), &peer.within) {
            (Some("https"), _) | (None, Some(_)) => "https",
            _ => "http",
        };
        proxy.metrics.proxy.request(scheme, request.method());
        if !proxy.rate.admits() {
            proxy.metrics.proxy.rate_limited.inc();
            let text = "more requests than proxy.server.requestRateLimit allows: come back later";
            return answer::busy(StatusCode::TOO_MANY_REQUESTS, text);
        }
        let Ok(permit) = proxy.running.clone().try_acquire_owned() else {
            let text = "this proxy answers as many requests as proxy.server.maxRequests allows: ask the origin, or come back later";
            return answer::busy(StatusCode::SERVICE_UNAVAILABLE, text);
        };
        let response = self.handle(request, peer).await;
        response.map(|body| body.holding(permit))
    }

    async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<ProxyBody> {
        let proxy = &self.0;
        let (mut parts, body) = request.into_parts();
        if let Some(refusal) = refused_message(&parts, &body) {
            return refusal;
        }
        let target = target::classify(
            &parts.method,
            &parts.uri,
            &parts.headers,
            peer.within.as_ref(),
            &proxy.registry,
        );
        let target = match target {
            Ok(target) => target,
            Err(error) => return bad_request(&error.to_string()),
        };
        let mode = match &target {
            Target::Url { mode, .. } => *mode,
            Target::Tunnel(_) => Mode::Forward,
        };
        // What comes out of a tunnel was let in with the tunnel.
        let opens = proxy.door.opens(&mut parts.headers);
        if !opens && peer.within.is_none() {
            return auth::challenge(mode);
        }
        if headers::has_passed(&parts.headers, &proxy.pseudonym) || self.is_own(&target) {
            return answer::error(
                StatusCode::LOOP_DETECTED,
                ErrorType::Proxy,
                "this request leads back to this proxy: check the registry or the proxy settings that it was sent with",
            );
        }
        if parts.method != Method::CONNECT
            && let Some(refusal) = tunnel::refused_upgrade(&parts.headers)
        {
            return refusal;
        }
        if !headers::may_go_on(&parts.method, &mut parts.headers) {
            return answer::last_hop(&parts.method);
        }
        match target {
            Target::Tunnel(to) => tunnel::open(self, to, peer).await,
            Target::Url { url, path, mode } => {
                let is_ping = mode == Mode::Mirror && url.path() == "/v2/";
                let response = self.fetch(parts, body, (url, path), peer).await;
                match is_ping && response.status().is_server_error() {
                    true => answer::ping(),
                    false => response,
                }
            }
        }
    }

    /// Into the swarm, or to the origin.
    async fn fetch(
        &self,
        parts: request::Parts,
        body: Incoming,
        (mut url, path): (Url, PathAndQuery),
        peer: &Peer,
    ) -> Response<ProxyBody> {
        let request::Parts {
            method,
            version,
            mut headers,
            ..
        } = parts;
        headers::remove_hop_by_hop(&mut headers);
        headers::add_via(&mut headers, version, &self.0.pseudonym);
        let mut rescue = None;
        // What comes with the question may be a part of it: a task has only the URL.
        let asks_more = !body.is_end_stream();
        if !asks_more && let Some(rule) = self.rule_for(&method, &url, &headers) {
            url = match rule.origin(&url) {
                Some(origin) => origin,
                None => return bad_request("the redirect of the rule for this URL is no host"),
            };
            // As it is understood here, and as the origin may be told.
            let written = format!("{}{path}", &url[..Position::BeforePath]);
            let refusal = { [url.as_str(), &written].into_iter() }
                .find_map(|url| self.blocked(url, &headers));
            if let Some(refusal) = refusal {
                return refusal;
            }
            self.0.metrics.proxy.via_dfdaemon.inc();
            let request = P2pRequest {
                method: method.clone(),
                url: url.clone(),
                headers: headers.clone(),
                rule,
                remote: peer.remote,
                windows: peer.windows.clone(),
            };
            match self.0.p2p.serve(request).await {
                Outcome::Answer(response) => return response,
                Outcome::Direct(reason) => {
                    tracing::debug!(?reason, "the swarm is not the way for this request");
                }
                Outcome::DirectOr(_, better) => rescue = Some(better),
            }
        }
        let request = Direct {
            method,
            url,
            path,
            headers,
            body,
        };
        let response = direct::forward(self, request).await;
        match rescue {
            Some(rescue) if response.status().is_server_error() => {
                rescue.answer().await.unwrap_or(response)
            }
            Some(rescue) if response.status() == StatusCode::OK => {
                rescue.learn(response.headers()).await;
                response
            }
            _ => response,
        }
    }

    fn rule_for(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Option<Arc<rules::Rule>> {
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        let rules = &self.0.rules;
        let by_header = || {
            text(headers, USE_P2P_HEADER)
                .is_some_and(|value| value.eq_ignore_ascii_case("true"))
                .then(|| rules.by_header())
        };
        rules.find(url).or_else(by_header)
    }

    fn blocked(&self, url: &str, headers: &HeaderMap) -> Option<Response<ProxyBody>> {
        let priority = text(headers, "x-dragonfly-priority").and_then(|text| text.parse().ok());
        let subject = Subject {
            url,
            application: text(headers, "x-dragonfly-application"),
            tag: text(headers, "x-dragonfly-tag"),
            priority: priority.unwrap_or(PRIORITY_DEFAULT),
        };
        if !self.0.dynconfig.block_list().blocks_download(subject) {
            return None;
        }
        self.0
            .metrics
            .download_blocked(protocol::TaskKind::Standard);
        Some(answer::error(
            StatusCode::FORBIDDEN,
            ErrorType::Proxy,
            "the block list of this cluster forbids this download: ask its operators",
        ))
    }

    /// Whether `target` is this very port.
    fn is_own(&self, target: &Target) -> bool {
        let (host, port) = match target {
            Target::Tunnel(Destination { host, port }) => (Some(host.as_str()), Some(*port)),
            Target::Url { url, .. } => (url.host_str(), url.port_or_known_default()),
        };
        let host = host.unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_ours = |is_at: &dyn Fn(IpAddr) -> bool| {
            { self.0.own.iter() }.any(|own| Some(own.port()) == port && is_at(own.ip()))
        };
        match bare.parse::<IpAddr>() {
            Ok(ip) => is_ours(&|own| own.to_canonical() == ip.to_canonical()),
            Err(_) if bare.eq_ignore_ascii_case("localhost") => is_ours(&|own| own.is_loopback()),
            Err(_) => false,
        }
    }

    fn limits(&self) -> &ProxyLimits {
        &self.0.limits
    }

    fn pseudonym(&self) -> &str {
        &self.0.pseudonym
    }

    fn http(&self) -> &HttpSource {
        &self.0.http
    }

    fn interception(&self) -> Option<&Interception> {
        self.0.interception.as_ref()
    }

    fn tunnels(&self) -> &Arc<Semaphore> {
        &self.0.tunnels
    }

    fn connections(&self) -> &TaskTracker {
        &self.0.connections
    }

    fn cut(&self) {
        self.0.cut.cancel();
    }

    async fn is_cut(&self) {
        self.0.cut.cancelled().await;
    }

    /// An origin could not be reached.
    fn failed(&self) {
        self.0.metrics.proxy.failure.inc();
    }

    fn tls_on_plain_port(&self, remote: IpAddr) {
        if self.0.tls_told.may() {
            warn!(%remote, "a client speaks TLS to the plain HTTP port of the proxy: its address for this proxy or mirror must begin with http://");
        }
    }

    fn handshake_failed(&self, to: &Destination, remote: IpAddr, error: &std::io::Error) {
        if self.0.handshake_told.may() {
            warn!(%remote, host = %to.host, %error, "a client does not accept the certificate of an intercepted host: does it trust the CA of this proxy? (dfctl ca install)");
        }
    }
}

/// Every address at which this port is reached from this host.
#[must_use]
pub fn own_addresses(listen: SocketAddr, ip: IpAddr) -> Vec<SocketAddr> {
    let at = |ip| SocketAddr::new(ip, listen.port());
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    vec![
        at(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        at(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        at(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        at(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        at(ip),
    ]
}

fn bad_request(text: &str) -> Response<ProxyBody> {
    answer::error(StatusCode::BAD_REQUEST, ErrorType::Proxy, text)
}

/// What cannot be passed on without meaning something else there. The connection ends with it: where the message does is not sure.
fn refused_message(parts: &request::Parts, body: &Incoming) -> Option<Response<ProxyBody>> {
    let (status, text) = match headers::framing(&parts.headers) {
        Framing::Coded => (
            StatusCode::NOT_IMPLEMENTED,
            "the body of the request has a transfer coding that is not understood: send it as it is, or in chunks",
        ),
        Framing::Twice => (
            StatusCode::BAD_REQUEST,
            "the body of the request is said to be chunked more than once",
        ),
        Framing::Plain if parts.method == Method::CONNECT && !body.is_end_stream() => (
            StatusCode::BAD_REQUEST,
            "CONNECT has no body: what follows its headers belongs to the tunnel",
        ),
        Framing::Plain => {
            let wrong = headers::wrong_host(parts.version, &parts.headers)?;
            (StatusCode::BAD_REQUEST, wrong)
        }
    };
    let refusal = answer::error(status, ErrorType::Proxy, text);
    Some(answer::closing(refusal))
}

/// A header that is visible ASCII; anything else counts as absent, as in v2.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Lets something be said now and then.
#[derive(Debug, Default)]
struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    fn may(&self) -> bool {
        let mut last = self.0.lock();
        let may = last.is_none_or(|last| last.elapsed() >= SELDOM);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}
