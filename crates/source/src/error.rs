//! What can go wrong between us and an origin: whose fault it is, whether another try helps, and what to do.

use std::collections::HashMap;
use std::time::Duration;

use protocol::ByteRange;

use crate::Redacted;

/// A stat, read or listing failed.
///
/// The text names the URL without its secrets and says what to do; [`SourceError::detail`] is the same for the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No backend is registered for the scheme of the URL.
    #[error("{url}: no backend for scheme {scheme:?}: use one of {known}")]
    UnknownScheme {
        /// The URL.
        url: Redacted,
        /// Its scheme.
        scheme: String,
        /// The schemes that are known, comma-separated.
        known: String,
    },
    /// The text is not a URL this backend can use.
    #[error("{url}: not a usable URL: {reason}")]
    InvalidUrl {
        /// The text.
        url: Redacted,
        /// What is wrong with it.
        reason: String,
    },
    /// A header of the request cannot be sent.
    #[error(
        "{url}: header {name:?} cannot be sent: its name or value has characters that HTTP does not allow"
    )]
    InvalidHeader {
        /// The URL.
        url: Redacted,
        /// Name of the header.
        name: String,
    },
    /// A range that no content can have: empty, or its end does not fit in 64 bits.
    #[error("{url}: range of {} bytes from {} asks for nothing: give a length of at least one byte", range.length, range.start)]
    InvalidRange {
        /// The URL.
        url: Redacted,
        /// What was asked for.
        range: ByteRange,
    },
    /// The egress policy forbids this host or every address of it.
    #[error("{url}: connections to {host} are forbidden by the egress policy of this daemon")]
    Denied {
        /// The URL, or the redirect's target.
        url: Redacted,
        /// Host or address.
        host: String,
    },
    /// The host name has no address.
    #[error(
        "{url}: host {host} cannot be resolved ({reason}): check the name and the DNS of this host"
    )]
    Resolve {
        /// The URL.
        url: Redacted,
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// No connection.
    #[error(
        "{url}: cannot connect ({reason}): check that the server runs and that this host may reach it"
    )]
    Connect {
        /// The URL.
        url: Redacted,
        /// What the system said.
        reason: String,
    },
    /// The TLS handshake failed, mostly because the certificate is not trusted.
    #[error(
        "{url}: TLS failed ({reason}): if the certificate is right, add its CA to the trusted ones"
    )]
    Tls {
        /// The URL.
        url: Redacted,
        /// What rustls said.
        reason: String,
    },
    /// The origin answered with an error status. Its body was not read.
    #[error("{url}: the origin answered {status_code}{}{}{}", status_name(*status_code), said(header), status_advice(*status_code))]
    Status {
        /// The URL.
        url: Redacted,
        /// The HTTP status.
        status_code: u16,
        /// Response headers, names in lower case.
        header: HashMap<String, String>,
        /// How long the origin wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Nothing came for too long.
    #[error("{url}: the origin sent nothing for {} while {phase}: it hangs or is overloaded, try again later", humantime::format_duration(*limit))]
    Stalled {
        /// The URL.
        url: Redacted,
        /// What we were waiting for.
        phase: StallPhase,
        /// How long we waited.
        limit: Duration,
        /// Content bytes received before.
        received: u64,
    },
    /// The time for the whole operation is over.
    #[error("{url}: not done within {}: allow more time or find out why the origin is slow", humantime::format_duration(*limit))]
    Deadline {
        /// The URL.
        url: Redacted,
        /// The limit.
        limit: Duration,
        /// Content bytes received before.
        received: u64,
    },
    /// The connection broke in mid-answer, or the body ended too early.
    #[error("{url}: the connection broke after {received} of {} bytes ({reason})", expected.map_or_else(|| "unknown".to_owned(), |n| n.to_string()))]
    Interrupted {
        /// The URL.
        url: Redacted,
        /// Content bytes received.
        received: u64,
        /// Content bytes promised, if they were.
        expected: Option<u64>,
        /// What the connection said.
        reason: String,
    },
    /// The body is longer than announced.
    #[error(
        "{url}: the origin sent more than the {expected} bytes it announced: its answer cannot be trusted"
    )]
    TooLong {
        /// The URL.
        url: Redacted,
        /// Content bytes promised.
        expected: u64,
    },
    /// A partial answer is not the part that was asked for.
    #[error(
        "{url}: asked for bytes {asked}, the origin answered {got:?}: its range support is broken"
    )]
    WrongRange {
        /// The URL.
        url: Redacted,
        /// What was asked for, as `start-end`.
        asked: String,
        /// Its `Content-Range`, or what else is wrong.
        got: String,
    },
    /// A range was asked for, and the origin only has whole answers.
    #[error("{url}: the origin does not serve ranges: read it whole, from the start")]
    RangesUnsupported {
        /// The URL.
        url: Redacted,
    },
    /// The range begins behind the end of the content.
    #[error("{url}: the range begins at {start}, the content has {} bytes", content_length.map_or_else(|| "fewer".to_owned(), |n| n.to_string()))]
    BeyondEnd {
        /// The URL.
        url: Redacted,
        /// First byte asked for.
        start: u64,
        /// Length of the content, if told.
        content_length: Option<u64>,
    },
    /// The answer is compressed although it was asked for as it is.
    #[error(
        "{url}: the origin sent content encoding {encoding:?} although asked for none: switch its compression off for this file"
    )]
    Encoded {
        /// The URL.
        url: Redacted,
        /// `Content-Encoding` of the answer.
        encoding: String,
    },
    /// The content is not what it was when the download began.
    #[error(
        "{url}: the content changed at the origin during the download ({changed}): what was read so far is of no use, start again"
    )]
    Changed {
        /// The URL.
        url: Redacted,
        /// What differs.
        changed: Changed,
    },
    /// A redirect that cannot be followed.
    #[error("{url}: cannot follow the redirect: {reason}")]
    Redirect {
        /// The URL that redirected.
        url: Redacted,
        /// Why not.
        reason: String,
    },
    /// The answer is not a directory listing.
    #[error("{url}: cannot list it: {reason}")]
    NotListable {
        /// The URL.
        url: Redacted,
        /// Why not.
        reason: String,
    },
    /// The directory holds more than the caller allows.
    #[error("{url}: holds more than {limit} {what}: list a smaller directory")]
    ListTooLarge {
        /// The URL.
        url: Redacted,
        /// The limit.
        limit: usize,
        /// What was counted.
        what: &'static str,
    },
    /// The request could not be signed, or the credentials for it could not be had.
    #[error("{url}: no credentials to sign the request with: {reason}")]
    Credentials {
        /// The URL.
        url: Redacted,
        /// Why not, and what to do.
        reason: String,
        /// Whether it may work later.
        passing: bool,
    },
    /// An option that this kind of origin needs is missing or senseless.
    #[error("{url}: {reason}")]
    InvalidOption {
        /// The URL.
        url: Redacted,
        /// What is wrong and what to give.
        reason: String,
    },
    /// The plugin for this scheme failed.
    #[error("{url}: plugin {plugin} {reason}")]
    Plugin {
        /// The URL.
        url: Redacted,
        /// Its file.
        plugin: String,
        /// What it did, and what to do about it.
        reason: String,
    },
    /// The client for this request cannot be set up: trust roots that cannot be read, or a system without any.
    #[error("cannot set up the origin client: {reason}")]
    Setup {
        /// What is wrong.
        reason: String,
    },
}

/// What we were waiting for when nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallPhase {
    /// The TCP and TLS handshake.
    Connect,
    /// Status line and headers.
    Header,
    /// More of the body.
    Body,
}

impl std::fmt::Display for StallPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Header => "waiting for its answer",
            Self::Body => "sending the content",
        })
    }
}

/// In what a content differs from its former version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Changed {
    /// Another length.
    #[error("length {before} became {now}")]
    Length {
        /// Before.
        before: u64,
        /// Now.
        now: u64,
    },
    /// Another entity tag.
    #[error("ETag {before} became {now}")]
    Etag {
        /// Before.
        before: String,
        /// Now.
        now: String,
    },
    /// Another time of modification.
    #[error("Last-Modified {before:?} became {now:?}")]
    LastModified {
        /// Before.
        before: String,
        /// Now.
        now: String,
    },
    /// The origin refused the condition that it is still the same (412).
    #[error("it no longer fulfils the condition {condition}")]
    Condition {
        /// The condition that was sent.
        condition: String,
    },
}

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever asked: wrong URL, missing rights, forbidden address.
    Caller,
    /// The origin.
    Origin,
    /// Something between here and the origin.
    Network,
    /// This host.
    Here,
}

/// Whether another try makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same request will fail again.
    Never,
    /// It may work after a pause of the caller's choice.
    Backoff,
    /// The origin asked for at least this pause.
    After(Duration),
}

/// The fields of `errordetails.v2.Backend`, which v2 sends as JSON in the details of a gRPC status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// The error's text.
    pub message: String,
    /// The origin's response headers, if it answered.
    pub header: HashMap<String, String>,
    /// The origin's status, if it answered with an error; never a success.
    pub status_code: Option<i32>,
}

impl SourceError {
    /// Who can do something about it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::UnknownScheme { .. }
            | Self::InvalidUrl { .. }
            | Self::InvalidHeader { .. }
            | Self::InvalidRange { .. }
            | Self::BeyondEnd { .. }
            | Self::ListTooLarge { .. }
            | Self::Credentials { passing: false, .. }
            | Self::InvalidOption { .. }
            | Self::Denied { .. } => Fault::Caller,
            Self::Status { status_code, .. }
                if (400..500).contains(status_code) && !is_transient(*status_code) =>
            {
                Fault::Caller
            }
            Self::Status { .. }
            | Self::Tls { .. }
            | Self::TooLong { .. }
            | Self::WrongRange { .. }
            | Self::RangesUnsupported { .. }
            | Self::Encoded { .. }
            | Self::Changed { .. }
            | Self::Redirect { .. }
            | Self::Credentials { .. }
            | Self::NotListable { .. }
            | Self::Deadline { .. }
            | Self::Stalled { .. } => Fault::Origin,
            Self::Resolve { .. } | Self::Connect { .. } | Self::Interrupted { .. } => {
                Fault::Network
            }
            Self::Setup { .. } | Self::Plugin { .. } => Fault::Here,
        }
    }

    /// Whether another try makes sense, after the tries that this crate has made already.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Status {
                retry_after: Some(pause),
                status_code,
                ..
            } if is_transient(*status_code) => Retry::After(*pause),
            Self::Status { status_code, .. } if is_transient(*status_code) => Retry::Backoff,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Stalled { .. }
            | Self::Plugin { .. }
            | Self::Credentials { passing: true, .. }
            | Self::Interrupted { .. } => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    /// The origin's status, if an error status is the reason.
    #[must_use]
    pub fn status_code(&self) -> Option<u16> {
        match self {
            Self::Status { status_code, .. } => Some(*status_code),
            Self::BeyondEnd { .. } => Some(416),
            Self::Changed {
                changed: Changed::Condition { .. },
                ..
            } => Some(412),
            _ => None,
        }
    }

    /// The same for the wire.
    #[must_use]
    pub fn detail(&self) -> Detail {
        let header = match self {
            Self::Status { header, .. } => header.clone(),
            _ => HashMap::new(),
        };
        Detail {
            message: self.to_string(),
            header,
            status_code: self.status_code().map(i32::from),
        }
    }
}

/// Statuses that tell of a passing condition.
pub(crate) fn is_transient(status_code: u16) -> bool {
    matches!(status_code, 408 | 425 | 429 | 500 | 502..=504)
}

fn status_name(status_code: u16) -> String {
    ::http::StatusCode::from_u16(status_code)
        .ok()
        .and_then(|status| status.canonical_reason())
        .map_or_else(String::new, |reason| format!(" {reason}"))
}

/// What the origin says in words, where it has a header for it: model hubs do.
fn said(header: &HashMap<String, String>) -> String {
    const SHOWN_MAX: usize = 200;
    header
        .get("x-error-message")
        .map_or_else(String::new, |said| {
            format!(" ({})", said.chars().take(SHOWN_MAX).collect::<String>())
        })
}

fn status_advice(status_code: u16) -> &'static str {
    match status_code {
        401 => {
            ": it wants credentials: give the header, keys or token that this kind of origin takes"
        }
        403 => ": the credentials are missing or do not suffice, or a signed URL has expired",
        404 | 410 => ": check the address",
        407 => ": the HTTP proxy in between wants credentials",
        408 | 425 | 429 | 503 => ": it is overloaded, try again later",
        500 | 502 | 504 => ": it is in trouble, try again later",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Redacted {
        Redacted::text("http://h/f")
    }

    fn status(status_code: u16, retry_after: Option<Duration>) -> SourceError {
        SourceError::Status {
            url: url(),
            status_code,
            header: HashMap::from([("server".into(), "x".into())]),
            retry_after,
        }
    }

    #[test]
    fn a_missing_file_is_the_callers_fault_and_an_overload_is_worth_a_wait() {
        let missing = status(404, None);
        assert_eq!(
            (missing.fault(), missing.retry()),
            (Fault::Caller, Retry::Never)
        );
        assert_eq!(
            missing.to_string(),
            "http://h/f: the origin answered 404 Not Found: check the address"
        );
        assert_eq!(missing.detail().status_code, Some(404));
        assert_eq!(missing.detail().header["server"], "x");

        let busy = status(503, Some(Duration::from_secs(7)));
        assert_eq!(
            (busy.fault(), busy.retry()),
            (Fault::Origin, Retry::After(Duration::from_secs(7)))
        );
        assert_eq!(status(429, None).retry(), Retry::Backoff);
        assert_eq!(status(501, None).retry(), Retry::Never);
    }

    #[test]
    fn a_failure_never_reports_a_success_status() {
        let broken = SourceError::Interrupted {
            url: url(),
            received: 3,
            expected: Some(9),
            reason: "reset".into(),
        };
        assert_eq!(broken.detail().status_code, None);
        assert_eq!(
            broken.to_string(),
            "http://h/f: the connection broke after 3 of 9 bytes (reset)"
        );
    }

    #[test]
    fn the_error_stays_small_enough_to_be_returned_by_value() {
        assert!(
            size_of::<SourceError>() <= 128,
            "{}",
            size_of::<SourceError>()
        );
    }
}
