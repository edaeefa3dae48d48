//! What a caller asks an origin for.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use protocol::ByteRange;
use url::Url;

use crate::dialect::Dialect;
use crate::{OriginOptions, Redacted, SourceError, Version, is_secret_header};

/// Where the content is and what the origin needs to see before it gives it.
///
/// `Debug` shows no credential: neither of the URL nor of a header.
#[derive(Clone)]
#[non_exhaustive]
pub struct Request {
    /// Address of the content.
    pub url: Url,
    /// Headers to send along (`common.v2.Download.request_header`). Names in any case. `Range`, `Host`, `Accept-Encoding`,
    /// conditions (`If-…`) and hop-by-hop headers are ours to set and ignored here.
    pub headers: HashMap<String, String>,
    /// Trust roots for this request besides those of the configuration, each one certificate in DER
    /// (`common.v2.Download.certificate_chain`).
    pub trust_roots: Vec<Vec<u8>>,
    /// Longest time for the whole operation, retries included; for a body until its last byte. `None`: only the limits of the options hold.
    pub deadline: Option<Duration>,
    /// What origins other than web servers need to know.
    pub options: OriginOptions,
    /// Set by backends that speak HTTP underneath.
    pub(crate) dialect: Dialect,
}

impl Request {
    /// A plain request for `url`.
    ///
    /// # Errors
    ///
    /// [`SourceError::InvalidUrl`] if `url` is not an absolute URL.
    pub fn new(url: &str) -> Result<Self, SourceError> {
        let url = Url::parse(url).map_err(|error| SourceError::InvalidUrl {
            url: Redacted::text(url),
            reason: error.to_string(),
        })?;
        Ok(Self {
            url,
            headers: HashMap::new(),
            trust_roots: Vec::new(),
            deadline: None,
            options: OriginOptions::default(),
            dialect: Dialect::default(),
        })
    }

    /// The same request with these headers instead.
    #[must_use]
    pub fn with_headers(mut self, headers: HashMap<String, String>) -> Self {
        self.headers = headers;
        self
    }

    /// The same request, trusting these DER certificates too.
    #[must_use]
    pub fn with_trust_roots(mut self, trust_roots: Vec<Vec<u8>>) -> Self {
        self.trust_roots = trust_roots;
        self
    }

    /// The same request with these options for its kind of origin.
    #[must_use]
    pub fn with_options(mut self, options: OriginOptions) -> Self {
        self.options = options;
        self
    }

    /// A request to the web server behind another kind of origin: the limits stay, the caller's headers and options do not.
    pub(crate) fn underneath(&self, url: Url, dialect: Dialect) -> Self {
        Self {
            url,
            headers: HashMap::new(),
            trust_roots: self.trust_roots.clone(),
            deadline: self.deadline,
            options: OriginOptions::default(),
            dialect: Dialect {
                is_own: true,
                ..dialect
            },
        }
    }

    /// The same request with a limit on its whole duration.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| {
                let shown = if is_secret_header(name) {
                    "***"
                } else {
                    value.as_str()
                };
                (name.as_str(), shown)
            })
            .collect();
        f.debug_struct("Request")
            .field("url", &Redacted::url(&self.url).to_string())
            .field("headers", &headers)
            .field("trust_roots", &self.trust_roots.len())
            .field("deadline", &self.deadline)
            .field("options", &self.options)
            .finish()
    }
}

/// Which bytes of the content are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All of it, in one stream.
    Whole,
    /// The first so many bytes, fewer if the content is shorter. An origin without ranges may answer with the whole
    /// content instead: [`crate::Content::range`] tells.
    Prefix(u64),
    /// Exactly these bytes. An origin without ranges is an error ([`SourceError::RangesUnsupported`]).
    Range(ByteRange),
    /// Exactly these bytes, by reading and dropping what comes before if the origin has no ranges.
    RangeOrSkip(ByteRange),
}

/// One read: which bytes, and of which version of the content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Get {
    /// Which bytes.
    pub want: Want,
    /// What was seen before. The answer must be of this version.
    pub version: Option<Version>,
}

impl Get {
    /// The whole content.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(Want::Whole)
    }

    /// The first `len` bytes (at least one), or the whole content from an origin that knows no ranges.
    #[must_use]
    pub fn prefix(len: u64) -> Self {
        Self::new(Want::Prefix(len.max(1)))
    }

    /// Exactly `range`.
    #[must_use]
    pub fn range(range: ByteRange) -> Self {
        Self::new(Want::Range(range))
    }

    /// Exactly `range`, even if the origin must be read from its start for it.
    #[must_use]
    pub fn range_or_skip(range: ByteRange) -> Self {
        Self::new(Want::RangeOrSkip(range))
    }

    /// The same bytes, but only if the content is still `version`.
    #[must_use]
    pub fn of_version(mut self, version: Version) -> Self {
        self.version = Some(version);
        self
    }

    fn new(want: Want) -> Self {
        Self {
            want,
            version: None,
        }
    }
}

/// What a directory holds too many of if it is too deep.
pub(crate) const LEVELS: &str = "levels of folders (do links lead in a circle?)";

/// Bounds of one directory listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListLimits {
    /// Most entries to return; more is an error rather than a silently shortened list.
    pub entries: usize,
    /// How many levels of directories there may be; 1 is the directory itself. More is an error too.
    pub depth: usize,
}

impl Default for ListLimits {
    /// 10,000 entries; 32 levels, which is more than directories have, and less than the 40 links after which Linux follows none: a circle
    /// of them is noticed for what it is.
    fn default() -> Self {
        Self {
            entries: 10_000,
            depth: 32,
        }
    }
}
