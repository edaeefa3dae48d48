//! What an answer of an origin tells about the content.

use std::collections::HashMap;

use protocol::Digest;
use url::Url;

use crate::Changed;

/// What the origin said about the content.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Length of the whole content in bytes; `None` when the origin does not tell (chunked answers).
    pub content_length: Option<u64>,
    /// Whether parts can be asked for.
    pub ranges: RangeSupport,
    /// Which version of the content this was.
    pub version: Version,
    /// Status of the final answer after redirects (HTTP), 200 for other schemes.
    pub status_code: u16,
    /// Response headers, names in lower case, as they would stand in an answer with the whole content: no `Content-Range`,
    /// `Content-Length` is the length of the whole. These are the headers a proxy repeats to its clients.
    pub header: HashMap<String, String>,
    /// What the whole content hashes to, where the origin tells it in a way that holds for the bytes (model hubs do for large files).
    pub digest: Option<Digest>,
}

/// Whether an origin serves parts of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSupport {
    /// It answered a range request with the range.
    Yes,
    /// It answered a range request with the whole content.
    No,
    /// It was not asked (a whole read).
    Unknown,
}

/// Names one version of the content, so that later answers can be compared with it.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Version {
    /// Length of the whole content, if told.
    pub content_length: Option<u64>,
    /// `ETag` as sent, quotes and `W/` included.
    pub etag: Option<String>,
    /// `Last-Modified` as sent.
    pub last_modified: Option<String>,
    /// Where redirects ended, if there were any. Later reads go there first, which saves the hops and keeps all
    /// reads on the same mirror; they return to the original URL when this address no longer answers.
    pub location: Option<Url>,
}

impl Version {
    /// What differs in `now`, as far as both know it. The ETag outranks the modification time: a weak and a strong
    /// ETag are compared by their text (RFC 9110, 8.8.3.2, weak comparison).
    #[must_use]
    pub fn difference(&self, now: &Version) -> Option<Changed> {
        if let (Some(before), Some(now)) = (self.content_length, now.content_length)
            && before != now
        {
            return Some(Changed::Length { before, now });
        }
        if let (Some(before), Some(now)) = (&self.etag, &now.etag) {
            return (opaque(before) != opaque(now)).then(|| Changed::Etag {
                before: before.clone(),
                now: now.clone(),
            });
        }
        if let (Some(before), Some(now)) = (&self.last_modified, &now.last_modified)
            && before != now
        {
            return Some(Changed::LastModified {
                before: before.clone(),
                now: now.clone(),
            });
        }
        None
    }

    /// The ETag, if it promises byte equality and may therefore stand in `If-Match` and `If-Range`.
    #[must_use]
    pub fn strong_etag(&self) -> Option<&str> {
        self.etag
            .as_deref()
            .filter(|etag| !etag.starts_with("W/") && etag.starts_with('"'))
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version")
            .field("content_length", &self.content_length)
            .field("etag", &self.etag)
            .field("last_modified", &self.last_modified)
            .field(
                "location",
                &self
                    .location
                    .as_ref()
                    .map(|url| crate::Redacted::url(url).to_string()),
            )
            .finish()
    }
}

/// The part of an entity tag that is compared weakly.
fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(content_length: Option<u64>, etag: Option<&str>, modified: Option<&str>) -> Version {
        Version {
            content_length,
            etag: etag.map(str::to_owned),
            last_modified: modified.map(str::to_owned),
            location: None,
        }
    }

    #[test]
    fn a_version_differs_only_where_both_sides_know() {
        let seen = version(Some(10), Some("\"a\""), Some("Mon"));
        assert_eq!(seen.difference(&version(None, None, None)), None);
        assert_eq!(
            seen.difference(&version(Some(10), Some("W/\"a\""), Some("Tue"))),
            None
        );
        assert!(matches!(
            seen.difference(&version(Some(11), Some("\"a\""), None)),
            Some(Changed::Length {
                before: 10,
                now: 11
            })
        ));
        assert!(matches!(
            seen.difference(&version(Some(10), Some("\"b\""), Some("Mon"))),
            Some(Changed::Etag { .. })
        ));
        assert!(matches!(
            seen.difference(&version(Some(10), None, Some("Tue"))),
            Some(Changed::LastModified { .. })
        ));
    }

    #[test]
    fn only_strong_etags_may_stand_in_conditions() {
        assert_eq!(
            version(None, Some("\"a\""), None).strong_etag(),
            Some("\"a\"")
        );
        assert_eq!(version(None, Some("W/\"a\""), None).strong_etag(), None);
        assert_eq!(version(None, Some("bare"), None).strong_etag(), None);
    }
}
