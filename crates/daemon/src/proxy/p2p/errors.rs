//! The one map from what went wrong to what a client of the proxy sees.
//!
//! Statuses follow Dragonfly v2 where they tell the truth; see docs/compatibility.md for the others. An answer is never a success
//! with an empty body.

use std::collections::HashMap;

use http::{HeaderValue, Response, StatusCode, header};
use source::SourceError;
use storage::CreateError;

use super::answer::headers_of_error;
use super::request::Refusal;
use crate::engine::DownloadError;
use crate::proxy::answer::{self, ErrorType};
use crate::proxy::body::ProxyBody;

/// A request that means nothing.
pub(super) fn refusal(refusal: &Refusal) -> Response<ProxyBody> {
    let whose = match refusal {
        Refusal::PieceLength(_) => ErrorType::Proxy,
        Refusal::Request(_) => ErrorType::Dfdaemon,
    };
    answer::error(StatusCode::BAD_REQUEST, whose, &refusal.to_string())
}

/// A download that failed before its first byte was sent.
pub(super) fn download(error: &DownloadError) -> Response<ProxyBody> {
    let text = error.to_string();
    let (status, whose) = match error {
        DownloadError::Source(error) => return origin(error),
        DownloadError::Refused {
            header,
            status_code,
            ..
        } => {
            let status = u16::try_from(*status_code).unwrap_or(502);
            return refused(status, header, &text);
        }
        DownloadError::Create(error) => match **error {
            CreateError::NoSpace { .. } => (StatusCode::INSUFFICIENT_STORAGE, ErrorType::Dfdaemon),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, ErrorType::Dfdaemon),
        },
        DownloadError::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorType::Dfdaemon),
        DownloadError::Invalid(_) => (StatusCode::BAD_REQUEST, ErrorType::Dfdaemon),
        DownloadError::TooLong { .. } => (StatusCode::BAD_GATEWAY, ErrorType::Backend),
        DownloadError::Unmeasured => (StatusCode::UNPROCESSABLE_ENTITY, ErrorType::Dfdaemon),
        DownloadError::Digest { .. } | DownloadError::Retracted { .. } => {
            (StatusCode::BAD_GATEWAY, ErrorType::Backend)
        }
        DownloadError::Stalled { .. } => (StatusCode::GATEWAY_TIMEOUT, ErrorType::Dfdaemon),
        DownloadError::NoParents { .. } | DownloadError::Busy { .. } | DownloadError::Stopping => {
            let mut response =
                answer::error(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Dfdaemon, &text);
            let pause = HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, pause);
            return response;
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, ErrorType::Dfdaemon),
    };
    answer::error(status, whose, &text)
}

/// An origin that refused or broke down.
pub(super) fn origin(error: &SourceError) -> Response<ProxyBody> {
    if let SourceError::UnknownScheme { .. }
    | SourceError::InvalidUrl { .. }
    | SourceError::InvalidHeader { .. } = error
    {
        let text = error.to_string();
        return answer::error(StatusCode::BAD_REQUEST, ErrorType::Dfdaemon, &text);
    }
    match error.status_code() {
        // The origin's 412 answers a condition of ours.
        _ if matches!(error, SourceError::Changed { .. }) => answer::error(
            StatusCode::BAD_GATEWAY,
            ErrorType::Backend,
            &error.to_string(),
        ),
        Some(status) => refused(status, &error.detail().header, &error.to_string()),
        None => answer::unreachable(error),
    }
}

/// Whether the origin answered with a status that means no failure, but is no content to share either (204, 203, 304, ...).
pub(super) fn is_no_failure(error: &DownloadError) -> bool {
    match error {
        DownloadError::Source(error) => is_no_failure_of_origin(error),
        DownloadError::Refused { status_code, .. } => (200..400).contains(status_code),
        _ => false,
    }
}

/// As [`is_no_failure`].
pub(super) fn is_no_failure_of_origin(error: &SourceError) -> bool {
    let status = error.status_code();
    status.is_some_and(|status| (200..400).contains(&status))
}

/// What this client may not have while its origin cannot be asked.
pub(super) fn unasked() -> Response<ProxyBody> {
    let text = "the origin does not answer, and it is not known that it would give this to you: come back when it does";
    let mut response = answer::error(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Backend, text);
    let pause = HeaderValue::from_static("5");
    response.headers_mut().insert(header::RETRY_AFTER, pause);
    response
}

/// The origin's own status, with the headers that a client needs to do better.
fn refused(status: u16, header: &HashMap<String, String>, text: &str) -> Response<ProxyBody> {
    // Anything but an error would be taken for content.
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error())
        .unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = answer::error(status, ErrorType::Backend, text);
    response.headers_mut().extend(headers_of_error(header));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn seen(error: &DownloadError) -> (u16, String) {
        let response = download(error);
        let whose = response.headers()[answer::ERROR_TYPE].to_str().unwrap();
        (response.status().as_u16(), whose.to_owned())
    }

    fn status(status_code: i32) -> DownloadError {
        let challenge = (
            "www-authenticate".to_owned(),
            "Bearer realm=\"r\"".to_owned(),
        );
        DownloadError::Refused {
            message: "no".into(),
            header: HashMap::from([challenge, ("set-cookie".into(), "a=b".into())]),
            status_code,
        }
    }

    #[test]
    fn an_origins_refusal_keeps_its_status_and_challenge() {
        let response = download(&status(401));
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"r\"");
        assert!(!response.headers().contains_key("set-cookie"));
    }

    #[test]
    fn an_error_never_looks_like_a_success() {
        for code in [200, 204, 206, 302, 304, 0, 99_999, -1] {
            assert_eq!(seen(&status(code)), (502, "backend".into()), "{code}");
        }
    }

    #[test]
    fn statuses_are_pinned() {
        let task_id: protocol::TaskId = "task".parse().unwrap();
        let digest = || Box::new(protocol::Digest::of(protocol::DigestAlgorithm::Sha256, b""));
        let cases = [
            (DownloadError::Invalid("x".into()), 400, "dfdaemon"),
            (DownloadError::Unmeasured, 422, "dfdaemon"),
            (
                DownloadError::TooLong {
                    content_length: 1 << 62,
                },
                502,
                "backend",
            ),
            (DownloadError::Busy { count: 1 }, 503, "dfdaemon"),
            (DownloadError::Stopping, 503, "dfdaemon"),
            (DownloadError::Write { reason: "x".into() }, 500, "dfdaemon"),
            (
                DownloadError::NoParents {
                    task_id: task_id.clone(),
                    reason: "x".into(),
                },
                503,
                "dfdaemon",
            ),
            (
                DownloadError::Stalled {
                    task_id: task_id.clone(),
                    seconds: 60,
                    reason: "x".into(),
                },
                504,
                "dfdaemon",
            ),
            (
                DownloadError::Digest {
                    task_id: task_id.clone(),
                    got: digest(),
                    want: digest(),
                    from: "x".into(),
                },
                502,
                "backend",
            ),
            (
                DownloadError::Retracted {
                    task_id,
                    piece: protocol::PieceNumber(1),
                },
                502,
                "backend",
            ),
            (
                DownloadError::Source(Arc::new(source::Request::new("no url").unwrap_err())),
                400,
                "dfdaemon",
            ),
        ];
        for (error, code, whose) in cases {
            assert_eq!(seen(&error), (code, whose.to_owned()), "{error}");
        }
    }
}
