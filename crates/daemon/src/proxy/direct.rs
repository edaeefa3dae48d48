//! The direct path: a request goes to its origin as it is, and the answer comes back as it is.

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::body::Incoming;
use source::http::{Forward, ForwardBody};
use tracing::debug;
use url::Url;

use super::answer::{self, ErrorType};
use super::body::ProxyBody;
use super::headers::Framing;
use super::stall::Stalling;
use super::{Proxy, headers};

/// A request for an origin.
pub(super) struct Direct {
    pub(super) method: Method,
    pub(super) url: Url,
    /// What the origin is told of it.
    pub(super) path: PathAndQuery,
    /// Without what is meant for one hop.
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
}

/// Passes `request` on. Redirects are for the client to follow.
pub(super) async fn forward(proxy: &Proxy, request: Direct) -> Response<ProxyBody> {
    let idle = proxy.limits().idle;
    let Direct {
        method,
        url,
        path,
        mut headers,
        body,
    } = request;
    headers::remove_ours(&mut headers);
    // They are made anew: from the URL, and by answering the client's expectation when its body is first read.
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
    let body = Stalling::new(body, idle);
    let broken = body.broken();
    let forward = Forward {
        method,
        url,
        path,
        headers,
        body: (!body.is_end_stream()).then(|| ForwardBody::wrap(body)),
        header_limit: idle,
    };
    match proxy.http().forward(forward).await {
        Ok(response) => passed_on(proxy, response),
        Err(error) if broken.is_set() => {
            debug!(%error, "the body of a request broke");
            answer::closing(answer::error(
                StatusCode::BAD_REQUEST,
                ErrorType::Proxy,
                "the body of the request is not well-formed HTTP, or did not come to its end",
            ))
        }
        Err(error) => {
            debug!(%error, "forwarded request");
            proxy.failed();
            answer::unreachable(&error)
        }
    }
}

fn passed_on(proxy: &Proxy, response: Response<ForwardBody>) -> Response<ProxyBody> {
    let (mut parts, body) = response.into_parts();
    let unasked = match headers::framing(&parts.headers) {
        _ if parts.status == StatusCode::SWITCHING_PROTOCOLS => "changes to another protocol",
        Framing::Coded | Framing::Twice => "uses a transfer coding",
        Framing::Plain => {
            headers::remove_hop_by_hop(&mut parts.headers);
            headers::add_via(&mut parts.headers, parts.version, proxy.pseudonym());
            parts.version = Version::HTTP_11;
            parts.extensions.clear();
            let body = Stalling::new(body, proxy.limits().idle);
            return Response::from_parts(parts, ProxyBody::wrap(body));
        }
    };
    debug!(unasked, "forwarded request");
    proxy.failed();
    let text =
        format!("the origin {unasked} that it was not asked for: its answer cannot be passed on");
    answer::error(StatusCode::BAD_GATEWAY, ErrorType::Backend, &text)
}
