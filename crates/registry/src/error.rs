//! What can go wrong between us and a registry.

use source::{Redacted, SourceError};

use crate::challenge::ChallengeError;
use crate::manifest::ManifestError;
use crate::name::NameError;

/// An image could not be resolved, or no token was to be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The text names no image.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The registry or its token service cannot be reached, or answers with an error.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no such manifest, or the registry does not want to tell this caller.
    #[error(
        "{url}: the registry has no such manifest (404): check the name, and whether it wants credentials"
    )]
    NotFound {
        /// Of the manifest.
        url: Redacted,
    },
    /// The credentials are missing or wrong.
    #[error("{url}: the registry refuses access ({status_code}): {advice}")]
    Unauthorized {
        /// Of the manifest or the token service.
        url: Redacted,
        /// 401 or 403.
        status_code: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The registry wants something that nobody can give.
    #[error("{url}: its WWW-Authenticate header cannot be used: {reason}")]
    Challenge {
        /// Of the manifest.
        url: Redacted,
        /// What is wrong with it.
        reason: String,
    },
    /// The token service answered with something else.
    #[error("{url}: the token service answered without a usable token: {reason}")]
    Token {
        /// Of the token service.
        url: Redacted,
        /// What is wrong with its answer.
        reason: String,
    },
    /// What came is no manifest.
    #[error("{url}: {error}")]
    Manifest {
        /// Where it came from.
        url: Redacted,
        /// What is wrong with it.
        #[source]
        error: ManifestError,
    },
    /// What came is not what the digest names.
    #[error("{url}: the registry sent something else than the digest names: it is damaged or lies")]
    Digest {
        /// Where it came from.
        url: Redacted,
    },
    /// The image is not made for any of the platforms that are wanted.
    #[error("{url}: there is nothing for {wanted}, only for {present}: name another platform")]
    Platform {
        /// Of the index.
        url: Redacted,
        /// What was wanted.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// The image is larger than any should be.
    #[error("{url}: {reason}")]
    TooLarge {
        /// Of the manifest or index where it became too much.
        url: Redacted,
        /// What there is too much of.
        reason: String,
    },
}

impl RegistryError {
    /// Whether another try later may well succeed: nothing is wrong with what was asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Source(SourceError::Status { status_code, .. }) => {
                *status_code >= 500 || *status_code == 429
            }
            Self::Source(error) => matches!(
                error,
                SourceError::Resolve { .. }
                    | SourceError::Connect { .. }
                    | SourceError::Stalled { .. }
                    | SourceError::Deadline { .. }
                    | SourceError::Interrupted { .. }
            ),
            _ => false,
        }
    }
}

impl From<(Redacted, ChallengeError)> for RegistryError {
    fn from((url, error): (Redacted, ChallengeError)) -> Self {
        Self::Challenge {
            url,
            reason: error.to_string(),
        }
    }
}
