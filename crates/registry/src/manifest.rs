//! Manifests and indexes: the documents that say what an image is made of.
//!
//! They come from whoever runs the registry. A document is taken for what its media type says, its body must not contradict
//! it, and one that could be read as either kind is refused: two readers must never see two different images in the same bytes.

use protocol::Digest;
use serde::Deserialize;

use crate::name::content_digest;
use crate::platform::Platform;

/// Longest manifest or index, bytes: what registries commonly accept.
pub const MANIFEST_LEN_MAX: usize = 4 << 20;

/// What is accepted when a manifest is asked for (`Accept`).
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// What servers say that do not know what they send.
const VAGUE: [&str; 4] = [
    "",
    "application/json",
    "application/octet-stream",
    "text/plain",
];

/// Most entries of an index, and most layers of a manifest.
const ENTRIES_MAX: usize = 1000;

/// A document of a registry, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The images for several platforms.
    Index {
        /// Each manifest or further index, and the platform it is for, if it says.
        entries: Vec<(Descriptor, Option<Platform>)>,
    },
    /// One image.
    Manifest {
        /// Its configuration.
        config: Descriptor,
        /// Its layers, bottom first.
        layers: Vec<Descriptor>,
    },
}

/// What a document says of another content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What names it.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// What it is.
    pub media_type: String,
    /// It lies elsewhere and is not to be distributed by registries.
    pub foreign: bool,
}

/// The bytes are no document that can be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Another kind of content.
    #[error("it is {media_type:?}, not an image manifest or index")]
    MediaType {
        /// What it says that it is.
        media_type: String,
    },
    /// A kind that is not served any more.
    #[error(
        "it is a manifest of schema 1, which registries and runtimes have given up: push the image anew"
    )]
    Schema1,
    /// Not the JSON of such a document.
    #[error("it is not the JSON of a manifest or index: {reason}")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// It could be read in two ways.
    #[error("it contradicts itself: {reason}")]
    Ambiguous {
        /// How.
        reason: &'static str,
    },
    /// A content is named by something that is no digest.
    #[error("{digest:?} in it is no digest of a content")]
    Digest {
        /// The text.
        digest: String,
    },
    /// It names too many contents.
    #[error("it names {count} contents, the limit is {ENTRIES_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What a media type says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
}

impl Document {
    /// Reads the body of an answer with this `Content-Type` (or the media type of the descriptor that led here).
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self, ManifestError> {
        let told = kind(content_type)?;
        let raw: Raw = serde_json::from_slice(body).map_err(|error| ManifestError::Json {
            reason: error.to_string(),
        })?;
        if raw.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        let claimed = match &raw.media_type {
            Some(media_type) => kind(media_type)?,
            None => None,
        };
        let is_index = raw.manifests.is_some();
        let is_manifest = raw.config.is_some() || raw.layers.is_some();
        let shape = match (is_index, is_manifest) {
            (true, true) => {
                return Err(ManifestError::Ambiguous {
                    reason: "it has both manifests and layers",
                });
            }
            (true, false) => Kind::Index,
            (false, true) => Kind::Manifest,
            (false, false) => {
                return Err(ManifestError::Json {
                    reason: "it has neither manifests nor layers".to_owned(),
                });
            }
        };
        if [told, claimed]
            .into_iter()
            .flatten()
            .any(|kind| kind != shape)
        {
            return Err(ManifestError::Ambiguous {
                reason: "its media type is not what it holds",
            });
        }
        match shape {
            Kind::Index => Self::index(raw.manifests.unwrap_or_default()),
            Kind::Manifest => Self::manifest(raw),
        }
    }

    fn index(manifests: Vec<RawDescriptor>) -> Result<Self, ManifestError> {
        check_count(manifests.len())?;
        let entries = manifests.into_iter().map(|raw| {
            let platform = raw.platform.as_ref().map(|platform| {
                Platform::new(
                    &platform.os,
                    &platform.architecture,
                    platform.variant.as_deref().filter(|it| !it.is_empty()),
                )
            });
            Ok((raw.check()?, platform))
        });
        Ok(Self::Index {
            entries: entries.collect::<Result<_, ManifestError>>()?,
        })
    }

    fn manifest(raw: Raw) -> Result<Self, ManifestError> {
        let layers = raw.layers.unwrap_or_default();
        check_count(layers.len())?;
        let config = raw.config.ok_or_else(|| ManifestError::Json {
            reason: "it has layers and no config".to_owned(),
        })?;
        Ok(Self::Manifest {
            config: config.check()?,
            layers: layers
                .into_iter()
                .map(RawDescriptor::check)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, ManifestError> {
        let digest = content_digest(&self.digest).ok_or_else(|| ManifestError::Digest {
            digest: self.digest.chars().take(256).collect(),
        })?;
        let foreign =
            self.media_type.contains(".foreign.") || self.media_type.contains(".nondistributable.");
        Ok(Descriptor {
            digest,
            len: self.size,
            media_type: self.media_type,
            foreign,
        })
    }
}

fn check_count(count: usize) -> Result<(), ManifestError> {
    if count > ENTRIES_MAX {
        return Err(ManifestError::TooMany { count });
    }
    Ok(())
}

/// `None` for a media type that says nothing.
fn kind(media_type: &str) -> Result<Option<Kind>, ManifestError> {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let is = |known: &&str| essence.eq_ignore_ascii_case(known);
    if INDEXES.iter().any(is) {
        return Ok(Some(Kind::Index));
    }
    if MANIFESTS.iter().any(is) {
        return Ok(Some(Kind::Manifest));
    }
    if VAGUE.iter().any(is) {
        return Ok(None);
    }
    if essence.contains("docker.distribution.manifest.v1") {
        return Err(ManifestError::Schema1);
    }
    Err(ManifestError::MediaType {
        media_type: essence.chars().take(128).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parse(content_type: &str, body: &Value) -> Result<Document, ManifestError> {
        Document::parse(content_type, body.to_string().as_bytes())
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": A, "size": 7},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": B, "size": 500},
                {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": A, "size": 1, "urls": ["https://x/"]},
            ],
            "annotations": {"a": "b"},
        })
    }

    fn index() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": INDEXES[0],
            "manifests": [
                {"mediaType": MANIFESTS[0], "digest": A, "size": 7, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
                {"mediaType": MANIFESTS[0], "digest": B, "size": 8},
            ],
        })
    }

    #[test]
    fn manifests_are_read() {
        for content_type in [
            MANIFESTS[0],
            MANIFESTS[1],
            "application/json; charset=utf-8",
            "",
        ] {
            let Ok(Document::Manifest { config, layers }) = parse(content_type, &manifest()) else {
                panic!("{content_type}");
            };
            assert_eq!((config.digest.to_string().as_str(), config.len), (A, 7));
            let foreign: Vec<bool> = layers.iter().map(|layer| layer.foreign).collect();
            assert_eq!(foreign, [false, true]);
        }
    }

    #[test]
    fn indexes_are_read() {
        for content_type in INDEXES {
            let Ok(Document::Index { entries }) = parse(content_type, &index()) else {
                panic!("{content_type}");
            };
            let platforms: Vec<Option<String>> = entries
                .iter()
                .map(|(_, platform)| platform.as_ref().map(ToString::to_string))
                .collect();
            assert_eq!(platforms, [Some("linux/arm64".to_owned()), None]);
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(matches!(
            Document::parse("text/html", b"<html>"),
            Err(ManifestError::MediaType { .. })
        ));
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(Document::parse(signed, b"{}"), Err(ManifestError::Schema1));
        assert_eq!(
            parse("", &json!({"schemaVersion": 1})),
            Err(ManifestError::Schema1)
        );
        for body in [
            "",
            "[]",
            "{}",
            "null",
            "{\"layers\":[]}",
            "{\"config\":7}",
            "\u{0}",
        ] {
            assert!(
                matches!(
                    Document::parse("application/json", body.as_bytes()),
                    Err(ManifestError::Json { .. })
                ),
                "{body}"
            );
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Document::parse("", format!("{{\"x\":{deep}}}").as_bytes()).is_err());
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let mut both = manifest();
        both["manifests"] = index()["manifests"].clone();
        let mut claims = manifest();
        claims["mediaType"] = json!(INDEXES[0]);
        let twice = format!("{{\"layers\":[],{}", &manifest().to_string()[1..]);
        assert!(
            Document::parse("", twice.as_bytes()).is_err(),
            "a key twice"
        );
        for (content_type, body) in [
            ("", &both),
            (MANIFESTS[0], &claims),
            (MANIFESTS[0], &index()),
            (INDEXES[1], &manifest()),
        ] {
            assert!(
                matches!(
                    parse(content_type, body),
                    Err(ManifestError::Ambiguous { .. })
                ),
                "{content_type} {body}"
            );
        }
    }

    #[test]
    fn contents_are_named_by_digests_and_counted() {
        for digest in [
            "latest",
            "sha256:..",
            "sha256:../../etc/passwd",
            "md5:1",
            &A.replace('a', "A"),
        ] {
            let mut wrong = manifest();
            wrong["layers"][0]["digest"] = json!(digest);
            assert!(
                matches!(parse("", &wrong), Err(ManifestError::Digest { .. })),
                "{digest}"
            );
        }
        let mut negative = manifest();
        negative["layers"][0]["size"] = json!(-1);
        assert!(parse("", &negative).is_err());
        let mut many = manifest();
        many["layers"] = json!(vec![many["layers"][0].clone(); ENTRIES_MAX + 1]);
        assert_eq!(
            parse("", &many),
            Err(ManifestError::TooMany {
                count: ENTRIES_MAX + 1
            })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(content_type in "\\PC{0,40}", body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&content_type, &body);
        }

        #[test]
        fn no_cut_or_flipped_manifest_is_too_odd(at in 0usize..600, byte in any::<u8>()) {
            for document in [manifest(), index()] {
                let mut bytes = document.to_string().into_bytes();
                let at = at % bytes.len();
                bytes[at] = byte;
                let _ = Document::parse("", &bytes);
                let _ = Document::parse("", &bytes[..at]);
            }
        }
    }
}
