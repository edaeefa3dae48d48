//! Answers of our own: what went wrong, whose fault it was, and what to do.

use http::{HeaderValue, Method, Response, StatusCode, header};
use source::SourceError;

use super::body::ProxyBody;

/// Says in an answer that it is an error and whose.
pub const ERROR_TYPE: &str = "x-dragonfly-error-type";

/// Whose fault an error is, as `X-Dragonfly-Error-Type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// The request, or this proxy.
    Proxy,
    /// The origin, or the way to it.
    Backend,
    /// The daemon behind the proxy.
    Dfdaemon,
}

impl ErrorType {
    /// The value of the header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Backend => "backend",
            Self::Dfdaemon => "dfdaemon",
        }
    }
}

/// An error with its text as a line.
pub fn error(status: StatusCode, whose: ErrorType, text: &str) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::full(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ERROR_TYPE, HeaderValue::from_static(whose.name()));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// As [`error`], asking to come back in a second.
pub fn busy(status: StatusCode, text: &str) -> Response<ProxyBody> {
    let mut response = error(status, ErrorType::Proxy, text);
    { response.headers_mut() }.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The last answer of its connection.
pub fn closing(mut response: Response<ProxyBody>) -> Response<ProxyBody> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// To a request that may not go on. TRACE would show everybody who can send one what other hops added, credentials among it.
pub fn last_hop(method: &Method) -> Response<ProxyBody> {
    let mut response = match *method {
        Method::OPTIONS => Response::new(ProxyBody::empty()),
        _ => error(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorType::Proxy,
            "this proxy shows no requests: allow one hop more (Max-Forwards) to ask the next one",
        ),
    };
    let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

/// In the place of a registry that is away: it is one. podman and skopeo begin each pull by this question, and would not come to ask for
/// what the swarm has.
pub fn ping() -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::full("{}\n"));
    let headers = response.headers_mut();
    for (name, value) in [
        ("docker-distribution-api-version", "registry/2.0"),
        ("content-type", "application/json"),
        ("warning", "110 - \"the registry does not answer\""),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What became of a request that was passed on and got no answer.
pub fn unreachable(failure: &SourceError) -> Response<ProxyBody> {
    let (status, whose) = match failure {
        SourceError::Denied { .. } => (StatusCode::FORBIDDEN, ErrorType::Proxy),
        SourceError::InvalidUrl { .. } | SourceError::InvalidHeader { .. } => {
            (StatusCode::BAD_REQUEST, ErrorType::Proxy)
        }
        SourceError::Setup { .. } => (StatusCode::INTERNAL_SERVER_ERROR, ErrorType::Proxy),
        SourceError::Stalled { .. } | SourceError::Deadline { .. } => {
            (StatusCode::GATEWAY_TIMEOUT, ErrorType::Backend)
        }
        _ => (StatusCode::BAD_GATEWAY, ErrorType::Backend),
    };
    error(status, whose, &failure.to_string())
}
