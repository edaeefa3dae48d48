//! Manifests: what counts as one.

use bytes::Bytes;
use protocol::{Digest, DigestAlgorithm};
use serde::Deserialize;
use url::Url;

/// Longest manifest, as registries have it.
pub const MANIFEST_LEN_MAX: u64 = 4 << 20;

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum NoManifest {
    /// Longer than any.
    #[error("it is longer than {MANIFEST_LEN_MAX} bytes")]
    TooLong,
    /// Something else, often a page for people.
    #[error("its content type is {0:?}")]
    ContentType(String),
    /// Not JSON, or without what every manifest has.
    #[error("it is no JSON object with a schemaVersion or a mediaType")]
    Json,
    /// Two answers to the question what it is.
    #[error("it is sent as {told} and calls itself {own}")]
    Contradiction {
        /// Of the answer.
        told: String,
        /// `mediaType` in it.
        own: String,
    },
}

/// A manifest that has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// As it came.
    pub bytes: Bytes,
    /// What it is.
    pub content_type: String,
}

impl Manifest {
    /// Looks at what a registry sent.
    ///
    /// # Errors
    /// [`NoManifest`].
    pub fn read(bytes: Bytes, content_type: Option<&str>) -> Result<Self, NoManifest> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            schema_version: Option<u64>,
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        if bytes.len() as u64 > MANIFEST_LEN_MAX {
            return Err(NoManifest::TooLong);
        }
        let told = content_type.and_then(media_type).transpose()?;
        let head: Head = serde_json::from_slice(&bytes).map_err(|_| NoManifest::Json)?;
        if head.schema_version.is_none() && head.media_type.is_none() {
            return Err(NoManifest::Json);
        }
        let own = head
            .media_type
            .as_deref()
            .and_then(media_type)
            .transpose()?;
        if let (Some(told), Some(own)) = (&told, &own)
            && told != own
        {
            let short = |text: &str| text.chars().take(100).collect();
            let (told, own) = (short(told), short(own));
            return Err(NoManifest::Contradiction { told, own });
        }
        let by_form = match head.manifests {
            Some(_) => "application/vnd.oci.image.index.v1+json",
            None => "application/vnd.oci.image.manifest.v1+json",
        };
        Ok(Self {
            content_type: told.or(own).unwrap_or_else(|| by_form.to_owned()),
            bytes,
        })
    }

    /// What names it.
    pub fn digest(&self) -> Digest {
        Digest::of(DigestAlgorithm::Sha256, &self.bytes)
    }
}

/// A media type without its parameters; nothing if it could be anything, as registries of old send for every manifest.
fn media_type(text: &str) -> Option<Result<String, NoManifest>> {
    let essence = text.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if matches!(
        essence.as_str(),
        "application/json" | "application/octet-stream" | "text/plain" | ""
    ) {
        return None;
    }
    let is_manifest = essence.starts_with("application/vnd.")
        && (essence.contains("json") || essence.contains("prettyjws"));
    Some(match is_manifest {
        true => Ok(essence),
        false => Err(NoManifest::ContentType(essence.chars().take(100).collect())),
    })
}

/// What a URL names in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `/v2/<name>/manifests/<tag>`.
    Tag,
    /// `/v2/<name>/manifests/<digest>`.
    Manifest,
    /// Everything else.
    Other,
}

impl Reference {
    /// Of this URL.
    pub fn of(url: &Url) -> Self {
        let Some((_, rest)) = url.path().split_once("/v2/") else {
            return Self::Other;
        };
        match rest.rsplit_once("/manifests/") {
            Some((name, reference)) if !name.is_empty() && is_reference(reference) => {
                match reference.contains(':') {
                    true => Self::Manifest,
                    false => Self::Tag,
                }
            }
            _ => Self::Other,
        }
    }
}

fn is_reference(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && !text.contains('/')
}

/// Whether a client that accepts this takes a manifest of that type.
pub fn is_accepted<'a>(accept: impl Iterator<Item = &'a str>, content_type: &str) -> bool {
    let mut any = false;
    for item in accept.flat_map(|list| list.split(',')) {
        any = true;
        let essence = item.split(';').next().unwrap_or_default().trim();
        if essence == "*/*"
            || essence == "application/*"
            || essence.eq_ignore_ascii_case(content_type)
        {
            return true;
        }
    }
    !any
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn read(text: &str, content_type: Option<&str>) -> Result<String, NoManifest> {
        Manifest::read(Bytes::from(text.to_owned()), content_type).map(|found| found.content_type)
    }

    #[test]
    fn manifests_say_what_they_are() {
        let own = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI}\"}}");
        assert_eq!(read(&own, None).unwrap(), OCI);
        assert_eq!(read(&own, Some(OCI)).unwrap(), OCI);
        assert_eq!(
            read(&own, Some("application/json; charset=utf-8")).unwrap(),
            OCI
        );
        assert_eq!(read("{\"schemaVersion\":2}", None).unwrap(), OCI);
        let index = read("{\"schemaVersion\":2,\"manifests\":[]}", None).unwrap();
        assert_eq!(index, "application/vnd.oci.image.index.v1+json");
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(read("{\"schemaVersion\":2}", Some(docker)).unwrap(), docker);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(matches!(
            read("<html>", Some("text/html")),
            Err(NoManifest::ContentType(_))
        ));
        assert!(matches!(read("<html>", None), Err(NoManifest::Json)));
        assert!(matches!(read("{}", Some(OCI)), Err(NoManifest::Json)));
        assert!(matches!(read("[1]", Some(OCI)), Err(NoManifest::Json)));
        let index = "application/vnd.oci.image.index.v1+json";
        let other = format!("{{\"schemaVersion\":2,\"mediaType\":\"{index}\"}}");
        assert!(matches!(
            read(&other, Some(OCI)),
            Err(NoManifest::Contradiction { .. })
        ));
        let page = "{\"schemaVersion\":2,\"mediaType\":\"text/html\"}";
        assert!(matches!(read(page, None), Err(NoManifest::ContentType(_))));
        let long = " ".repeat(usize::try_from(MANIFEST_LEN_MAX).unwrap() + 1);
        assert!(matches!(read(&long, None), Err(NoManifest::TooLong)));
    }

    #[test]
    fn references_are_told_apart() {
        let of = |url: &str| Reference::of(&url.parse().unwrap());
        assert_eq!(of("https://r/v2/a/b/manifests/latest?ns=x"), Reference::Tag);
        assert_eq!(
            of("https://r/v2/a/manifests/sha256:00"),
            Reference::Manifest
        );
        for other in [
            "https://r/v2/a/blobs/sha256:00",
            "https://r/v2/",
            "https://r/manifests/x",
            "https://r/v2/manifests/x",
        ] {
            assert_eq!(of(other), Reference::Other, "{other}");
        }
    }

    #[test]
    fn a_client_gets_only_what_it_accepts() {
        assert!(is_accepted(std::iter::empty(), OCI));
        assert!(is_accepted(["text/html, */*;q=0.1"].into_iter(), OCI));
        assert!(is_accepted(["text/html", OCI].into_iter(), OCI));
        assert!(!is_accepted(["text/html"].into_iter(), OCI));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_none(bytes: Vec<u8>, content_type in proptest::option::of(".{0,40}")) {
            let _ = Manifest::read(bytes.into(), content_type.as_deref());
        }
    }
}
