//! From the HTTP library's errors to ours.

use std::error::Error;
use std::time::Duration;

use url::Url;

use super::resolver::ResolveFailure;
use crate::{Redacted, SourceError, StallPhase};

/// What it means that no answer came.
pub(super) fn of_exchange(
    error: &reqwest::Error,
    url: &Url,
    connect_limit: Duration,
) -> SourceError {
    let shown = Redacted::url(url);
    for cause in chain(error) {
        match cause.downcast_ref::<ResolveFailure>() {
            Some(ResolveFailure::NotFound { host, reason }) => {
                return SourceError::Resolve {
                    url: shown,
                    host: host.clone(),
                    reason: reason.clone(),
                };
            }
            Some(ResolveFailure::Denied { host }) => {
                return SourceError::Denied {
                    url: shown,
                    host: host.clone(),
                };
            }
            None => {}
        }
        if let Some(reason) = tls_reason(cause) {
            return SourceError::Tls { url: shown, reason };
        }
    }
    if error.is_timeout() {
        return SourceError::Stalled {
            url: shown,
            phase: StallPhase::Connect,
            limit: connect_limit,
            received: 0,
        };
    }
    let reason = root_cause(error);
    if error.is_connect() {
        SourceError::Connect { url: shown, reason }
    } else if error.is_builder() {
        SourceError::InvalidUrl { url: shown, reason }
    } else {
        SourceError::Interrupted {
            url: shown,
            received: 0,
            expected: None,
            reason,
        }
    }
}

/// The innermost text: the layers above it repeat that a request failed, and may show the URL with its secrets.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| {
        (*cause).source()
    })
}

/// An error of rustls, which comes packed into I/O errors and is then not part of the chain itself.
pub(super) fn tls_reason(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(error.to_string());
    }
    tls_reason(cause.downcast_ref::<std::io::Error>()?.get_ref()?)
}
