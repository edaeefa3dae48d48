//! What sets a backend that speaks HTTP underneath apart from a plain web server.

use std::fmt;
use std::sync::Arc;

use ::http::{HeaderMap, Method};
use async_trait::async_trait;
use url::Url;

use crate::SourceError;
use crate::http::EncodedContent;

/// How the requests of one backend differ from plain HTTP.
#[derive(Clone, Default)]
pub(crate) struct Dialect {
    /// The backend's own request: the headers that are configured for web servers do not belong there.
    pub(crate) is_own: bool,
    /// Signs every request to the first origin; a redirect to another one goes unsigned.
    pub(crate) signer: Option<Arc<dyn Sign>>,
    /// Whether certificates are verified.
    pub(crate) verification: Verification,
    /// What to do with compressed answers, if not what the options say.
    pub(crate) encoded: Option<EncodedContent>,
    /// Headers of redirects that tell of the content; the facts have them unless the last answer has its own.
    pub(crate) redirect_headers: &'static [&'static str],
}

/// Whether the certificates of an origin are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Verification {
    /// As the options say.
    #[default]
    On,
    /// Never: the caller said so for this request.
    Off,
}

/// Adds to a request what proves who sends it.
#[async_trait]
pub(crate) trait Sign: Send + Sync {
    /// Signs the request. Nothing else may be changed in it afterwards.
    async fn sign(
        &self,
        method: &Method,
        url: &mut Url,
        headers: &mut HeaderMap,
    ) -> Result<(), SourceError>;
}

impl fmt::Debug for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialect")
            .field("is_own", &self.is_own)
            .field("is_signed", &self.signer.is_some())
            .field("verification", &self.verification)
            .finish_non_exhaustive()
    }
}
