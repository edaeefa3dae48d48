//! Origins that speak HTTP or HTTPS.
//!
//! Reads are always GETs: signed URLs are often bound to the method, so a HEAD is sent only when a GET did not
//! tell the length. They use HTTP/1.1 only, one connection per range: ranges read side by side then do not share
//! one TCP window, as they would over HTTP/2. What is merely passed on ([`HttpSource::forward`]) may use HTTP/2. Redirects are followed here and not by the HTTP library, because each hop must pass the egress
//! policy and shed the credentials meant for another origin.
//!
//! [`Upstream`] says what single origins need: trust roots, a client certificate, a proxy, credentials, another address.
//!
//! A changed content is recognised twice: by `If-Match` (or `If-Unmodified-Since` where there is no strong ETag) and by comparing
//! every answer with the version seen first. `If-Range` is not used: its answer to a change is the whole new content, which we do not want.
//!
//! Not here: any cache, and any decision about which bytes to read.

mod answer;
mod clients;
mod failure;
mod forward;
mod listing;
mod literal;
mod options;
mod outgoing;
mod resolver;
mod sending;
mod tls;
mod upstream;
mod way;

use std::collections::HashMap;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode, header};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use reqwest::Response;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;
use url::Url;

pub use forward::Forward;
pub use options::{EncodedContent, HttpOptions, ProxyUse};
/// The body of a forwarded request, and of the answer to it.
pub use reqwest::Body as ForwardBody;
pub use upstream::{ClientIdentity, Credentials, HostPattern, ParseHostError, Upstream};
pub use way::{ParseProxyError, UpstreamProxy};

use crate::content::BodyLimits;
use crate::dialect::Verification;
use crate::{
    Body, Content, Entry, Facts, Get, ListLimits, RangeSupport, Redacted, Request, Source,
    SourceError, StallPhase, Version, Want,
};
use answer::Verdict;
use clients::{Clients, Use};
use outgoing::Outgoing;

/// A body up to this length is read rather than dropped, so that its connection can be used again.
const DRAIN_MAX: u64 = 64 << 10;

/// The backend for `http` and `https`.
#[derive(Debug)]
pub struct HttpSource {
    options: HttpOptions,
    clients: Clients,
}

/// What is at the end of the redirects.
struct Followed {
    response: Response,
    url: Url,
    /// Headers of the redirects that the dialect asked for.
    passed: HashMap<String, String>,
}

/// The end of the operation, and the limit that made it.
type Deadline = Option<(Instant, std::time::Duration)>;

impl HttpSource {
    /// A backend with these options. Connects nowhere yet; trust roots of the system are read when the first HTTPS URL comes.
    ///
    /// # Errors
    ///
    /// [`SourceError::Setup`] if a proxy variable of the environment or a configured trust root cannot be used.
    pub fn new(options: HttpOptions) -> Result<Self, SourceError> {
        let clients = Clients::new(&options)?;
        Ok(Self { options, clients })
    }

    /// Makes the tries that the options allow, the mirror remembered in the version first.
    async fn read(&self, request: &Request, get: &Get) -> Result<Content, SourceError> {
        let deadline = end_of(request);
        let tries = async {
            if let Some(location) = get
                .version
                .as_ref()
                .and_then(|version| version.location.clone())
            {
                match self.read_once(request, get, Some(location), deadline).await {
                    Err(error) if !is_final(&error) => {
                        debug!(%error, "mirror given up, asking the original URL")
                    }
                    outcome => return outcome,
                }
            }
            let mut failed = 0;
            loop {
                let error = match self.read_once(request, get, None, deadline).await {
                    Ok(content) => return Ok(content),
                    Err(error) => error,
                };
                failed += 1;
                match self.options.retry.pause(failed, &error, fastrand::f64()) {
                    Some(pause) => {
                        debug!(%error, failed, pause_ms = pause.as_millis(), "origin request failed, trying again");
                        tokio::time::sleep(pause).await;
                    }
                    None => return Err(error),
                }
            }
        };
        within(deadline, &request.url, tries).await
    }

    /// One try: the redirects to the answer, the answer's check, and for an unwilling origin the read without a range.
    async fn read_once(
        &self,
        request: &Request,
        get: &Get,
        location: Option<Url>,
        deadline: Deadline,
    ) -> Result<Content, SourceError> {
        let Followed {
            response,
            url,
            passed,
        } = self
            .follow(request, Method::GET, get, location.clone())
            .await?;
        let encoded = request.dialect.encoded.unwrap_or(self.options.encoded);
        match answer::judge(get, &url, response.status(), response.headers(), encoded)? {
            Verdict::Body(judged) => {
                let moved = (url != request.url).then(|| url.clone());
                let mut facts = judged.facts;
                facts.version.location = moved;
                for (name, value) in passed {
                    facts.header.entry(name).or_insert(value);
                }
                let limits = BodyLimits {
                    idle: self.options.idle_limit,
                    deadline,
                };
                let body = Body::new(
                    bytes_of(response),
                    Redacted::url(&url),
                    judged.length,
                    limits,
                );
                Ok(match judged.slice {
                    Some(slice) => {
                        Content::new(facts, slice.start, body.slice(slice.start, slice.length))
                    }
                    None => Content::new(facts, judged.start, body),
                })
            }
            Verdict::AskWithoutRange => {
                drain(response, self.options.idle_limit).await;
                let whole = Get {
                    want: Want::Whole,
                    version: get.version.clone(),
                };
                let mut content =
                    Box::pin(self.read_once(request, &whole, location, deadline)).await?;
                content.facts.ranges = RangeSupport::No;
                Ok(content)
            }
        }
    }

    /// Sends the request and follows redirects up to the first answer that is none.
    async fn follow(
        &self,
        request: &Request,
        method: Method,
        get: &Get,
        location: Option<Url>,
    ) -> Result<Followed, SourceError> {
        let outgoing = Outgoing::new(request, get, &self.options)?;
        let mut url = location.unwrap_or_else(|| outgoing.url.clone());
        let mut crossed = false;
        let mut passed = HashMap::new();
        for _ in 0..=self.options.redirects_max {
            // What counts is who is contacted: an upstream that is rewritten may redirect to its new name.
            let [here, first] = [&url, &outgoing.url].map(|url| self.clients.route(url).url);
            crossed |= !outgoing::same_origin(&here, &first);
            let mut headers = outgoing.headers(crossed);
            let mut signed = url.clone();
            if let Some(signer) = request.dialect.signer.as_ref().filter(|_| !crossed) {
                signer.sign(&method, &mut signed, &mut headers).await?;
            }
            let response = self.send(request, &method, &signed, headers).await?;
            if !is_redirect(response.status()) {
                return Ok(Followed {
                    response,
                    url,
                    passed,
                });
            }
            for name in request.dialect.redirect_headers {
                let value = response.headers().get(*name).map(|value| value.to_str());
                if let Some(Ok(value)) = value {
                    passed.insert((*name).to_owned(), value.to_owned());
                }
            }
            let next = redirect_target(&url, response.headers())?;
            drain(response, self.options.idle_limit).await;
            url = next;
        }
        Err(SourceError::Redirect {
            url: Redacted::url(&request.url),
            reason: format!(
                "there are more than {} of them in a row",
                self.options.redirects_max
            ),
        })
    }

    async fn send(
        &self,
        request: &Request,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, SourceError> {
        let route = self.clients.route(url);
        self.clients.check(&route).await?;
        let client = self
            .clients
            .client_for(
                &route,
                Use::Reads,
                &request.trust_roots,
                request.dialect.verification,
            )
            .await?;
        let mut headers = headers;
        route.add_credentials(&mut headers);
        let sent = client
            .request(method.clone(), route.url.clone())
            .headers(headers)
            .send();
        let limit = self.options.header_limit;
        match timeout(limit, sent).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failure::of_exchange(
                &error,
                url,
                self.options.connect_limit,
            )),
            Err(_) => Err(SourceError::Stalled {
                url: Redacted::url(url),
                phase: StallPhase::Header,
                limit,
                received: 0,
            }),
        }
    }

    /// One exchange outside of any content, for token endpoints and the like: no redirects, no further tries, the answer as it is.
    pub(crate) async fn ask(
        &self,
        request: ::http::Request<Bytes>,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<::http::Response<Bytes>, SourceError> {
        let (parts, body) = request.into_parts();
        let mut question = Request::new(&parts.uri.to_string())?.with_deadline(limit);
        question.dialect.is_own = true;
        let url = question.url.clone();
        let exchange = async {
            let route = self.clients.route(&url);
            self.clients.check(&route).await?;
            let client = self
                .clients
                .client_for(&route, Use::Reads, &[], Verification::On)
                .await?;
            let failed = |error: reqwest::Error| {
                failure::of_exchange(&error, &url, self.options.connect_limit)
            };
            let mut response = client
                .request(parts.method, route.url.clone())
                .headers(parts.headers)
                .body(body)
                .send()
                .await
                .map_err(failed)?;
            let mut answer = ::http::Response::new(Bytes::new());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = response.headers().clone();
            let mut whole = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                if whole.len() + chunk.len() > bytes_max {
                    return Err(SourceError::TooLong {
                        url: Redacted::url(&url),
                        expected: bytes_max as u64,
                    });
                }
                whole.extend_from_slice(&chunk);
            }
            *answer.body_mut() = whole.freeze();
            Ok(answer)
        };
        within(end_of(&question), &url, exchange).await
    }

    /// The facts, with the length from a HEAD if a GET does not tell it.
    async fn learn(&self, request: &Request) -> Result<Facts, SourceError> {
        let Content {
            mut facts,
            body,
            length,
            ..
        } = self.read(request, &Get::prefix(1)).await?;
        if length.is_some_and(|length| length <= DRAIN_MAX) {
            // Only for the sake of the connection: the facts are known.
            let _ = body
                .collect(usize::try_from(DRAIN_MAX).unwrap_or(usize::MAX))
                .await;
        }
        if facts.content_length.is_none()
            && let Some(length) = self.length_by_head(request).await
        {
            facts.content_length = Some(length);
            facts.version.content_length = Some(length);
            facts
                .header
                .insert("content-length".to_owned(), length.to_string());
        }
        Ok(facts)
    }

    /// What a HEAD tells of the length; an origin that cannot answer it tells nothing.
    async fn length_by_head(&self, request: &Request) -> Option<u64> {
        let Followed { response, .. } = self
            .follow(request, Method::HEAD, &Get::whole(), None)
            .await
            .ok()?;
        let is_length = response.status() == StatusCode::OK
            && !response.headers().contains_key(header::TRANSFER_ENCODING)
            && !response.headers().contains_key(header::CONTENT_ENCODING);
        is_length
            .then(|| answer::content_length(response.headers()))
            .flatten()
    }
}

#[async_trait]
impl Source for HttpSource {
    fn schemes(&self) -> Vec<&str> {
        vec!["http", "https"]
    }

    async fn stat(&self, request: &Request) -> Result<Facts, SourceError> {
        within(end_of(request), &request.url, self.learn(request)).await
    }

    async fn get(&self, request: &Request, get: Get) -> Result<Content, SourceError> {
        if let Want::Range(range) | Want::RangeOrSkip(range) = get.want
            && (range.length == 0 || range.start.checked_add(range.length).is_none())
        {
            return Err(SourceError::InvalidRange {
                url: Redacted::url(&request.url),
                range,
            });
        }
        self.read(request, &get).await
    }

    async fn exists(&self, request: &Request) -> Result<bool, SourceError> {
        match self.stat(request).await {
            Ok(_) => Ok(true),
            Err(SourceError::Status {
                status_code: 404 | 410,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, request: &Request, limits: ListLimits) -> Result<Vec<Entry>, SourceError> {
        listing::list(self, request, limits).await
    }
}

/// Whether the original URL would say the same as the mirror did.
fn is_final(error: &SourceError) -> bool {
    matches!(
        error,
        SourceError::Changed { .. } | SourceError::InvalidHeader { .. } | SourceError::Setup { .. }
    )
}

fn end_of(request: &Request) -> Deadline {
    request
        .deadline
        .map(|limit| (Instant::now() + limit, limit))
}

/// Runs an operation up to its deadline.
async fn within<T>(
    deadline: Deadline,
    url: &Url,
    operation: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    let Some((end, limit)) = deadline else {
        return operation.await;
    };
    match timeout_at(end, operation).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SourceError::Deadline {
            url: Redacted::url(url),
            limit,
            received: 0,
        }),
    }
}

/// Redirects that mean the same content elsewhere. 300 and 304 to 306 do not.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, SourceError> {
    let refused = |reason: String| SourceError::Redirect {
        url: Redacted::url(from),
        reason,
    };
    let location = headers
        .get(header::LOCATION)
        .ok_or_else(|| refused("it has no Location".to_owned()))?;
    // Locations are often UTF-8 although they should not be; the URL parser escapes what it must.
    let location = str::from_utf8(location.as_bytes())
        .map_err(|_| refused("its Location is no text".to_owned()))?;
    let mut target = from
        .join(location)
        .map_err(|error| refused(format!("its Location is no URL: {error}")))?;
    if !matches!(target.scheme(), "http" | "https") {
        return Err(refused(format!("it leads to scheme {:?}", target.scheme())));
    }
    target.set_fragment(None);
    Ok(target)
}

fn bytes_of(
    response: Response,
) -> futures::stream::BoxStream<'static, Result<bytes::Bytes, String>> {
    response
        .bytes_stream()
        .map(|read| read.map_err(|error| failure::root_cause(&error)))
        .boxed()
}

/// Reads a short body that nobody wants, so that its connection can be used again.
async fn drain(mut response: Response, limit: std::time::Duration) {
    if answer::content_length(response.headers()).is_some_and(|length| length <= DRAIN_MAX) {
        let read_all = async { while let Ok(Some(_)) = response.chunk().await {} };
        // A body that does not come within the limit costs the connection and nothing else.
        let _ = timeout(limit, read_all).await;
    }
}

impl Version {
    pub(crate) fn of_headers(headers: &HeaderMap, content_length: Option<u64>) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(|value| value.trim().to_owned())
        };
        Self {
            content_length,
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            location: None,
        }
    }
}
