//! Task ids from what a request says about the content.
//!
//! The parts are hashed one behind the other **without separators**, because every Dragonfly v2 client does so and must
//! arrive at the same id.

use sha2::{Digest as _, Sha256};

use crate::{CanonicalUrlError, Digest, IdError, TaskId, canonical_url};

/// What identifies a standard task (`common.v2.Download`). Fields that are not here (digest, range, headers, priority,
/// output path, credentials) are no part of the identity.
#[derive(Debug, Clone, Copy, Default)]
pub struct StandardTask<'a> {
    /// Where the content comes from.
    pub url: &'a str,
    /// Query parameters that do not belong to the identity; see [`canonical_url`] for what an empty list means.
    pub filtered_query_params: &'a [String],
    /// Separates equal URLs on purpose; the empty text is the same as none.
    pub tag: Option<&'a str>,
    /// Who asks; the empty text is the same as none.
    pub application: Option<&'a str>,
    /// Revision in a model hub, from the first hub message present (Hugging Face, ModelScope, OpenCSG).
    pub revision: Option<&'a str>,
    /// The piece length **requested**, in bytes; not one that was computed.
    pub piece_length: Option<u64>,
    /// `content_for_calculating_task_id`: decides alone when present.
    pub content: Option<&'a str>,
    /// `enable_task_id_based_blob_digest`: a URL of an OCI blob or manifest is named by the digest in it.
    pub blob_digest: bool,
}

impl StandardTask<'_> {
    /// The id that every Dragonfly v2 daemon gives to this task.
    ///
    /// # Errors
    /// [`TaskIdError`]: the URL cannot be parsed, or names an OCI blob by something that is no digest.
    pub fn task_id(&self) -> Result<TaskId, TaskIdError> {
        if let Some(content) = self.content {
            return Ok(content_task_id(content));
        }
        if self.blob_digest {
            if let Some(reference) = oci_reference(self.url, "/blobs/") {
                let encoded = encoded_digest(reference).ok_or(TaskIdError::BlobDigest)?;
                return Ok(TaskId::try_from(encoded)?);
            }
            let manifest = oci_reference(self.url, "/manifests/").and_then(encoded_digest);
            if let Some(id) = manifest.and_then(|encoded| TaskId::try_from(encoded).ok()) {
                return Ok(id);
            }
        }
        Ok(self.url_task_id()?)
    }

    /// The digest that names this content, if a digest does: then [`StandardTask::task_id`] is its text behind the colon, and bytes
    /// with another digest are not this content.
    ///
    /// # Errors
    /// [`TaskIdError::BlobDigest`] for a digest that only looks like one: no content could ever have it.
    pub fn named_digest(&self) -> Result<Option<Digest>, TaskIdError> {
        if self.content.is_some() || !self.blob_digest {
            return Ok(None);
        }
        let named = |kind| {
            oci_reference(self.url, kind).filter(|reference| encoded_digest(reference).is_some())
        };
        named("/blobs/")
            .or_else(|| named("/manifests/"))
            .map(|reference| reference.parse().map_err(|_| TaskIdError::BlobDigest))
            .transpose()
    }

    fn url_task_id(&self) -> Result<TaskId, CanonicalUrlError> {
        let mut hasher = Sha256::new();
        hasher.update(canonical_url(self.url, self.filtered_query_params)?);
        for part in [self.tag, self.application, self.revision]
            .into_iter()
            .flatten()
        {
            hasher.update(part);
        }
        if let Some(piece_length) = self.piece_length {
            hasher.update(piece_length.to_string());
        }
        // The trailer is the same for every value of Download.type.
        hasher.update("STANDARD");
        Ok(finish(hasher))
    }
}

/// The id of a task whose caller said what to calculate it from: SHA-256 of the text, nothing added.
pub fn content_task_id(content: &str) -> TaskId {
    finish(Sha256::new_with_prefix(content))
}

/// The id of a persistent task: an object in a bucket. The URL enters as it is.
pub fn persistent_task_id(url: &str, region: &str, endpoint: &str) -> TaskId {
    let mut hasher = Sha256::new();
    for part in [url, region, endpoint, "PERSISTENT"] {
        hasher.update(part);
    }
    finish(hasher)
}

/// Computes the id of a persistent cache task from the bytes of the file, which come in portions.
#[derive(Debug, Clone, Default)]
pub struct PersistentCacheTaskHasher(Sha256);

impl PersistentCacheTaskHasher {
    /// A hasher that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id, from the file and what the upload request says beside it. `piece_length` is the requested one.
    pub fn finish(
        self,
        tag: Option<&str>,
        application: Option<&str>,
        piece_length: Option<u64>,
    ) -> TaskId {
        let mut hasher = self.0;
        for part in [tag, application].into_iter().flatten() {
            hasher.update(part);
        }
        if let Some(piece_length) = piece_length {
            hasher.update(piece_length.to_string());
        }
        hasher.update("PERSISTENT_CACHE");
        finish(hasher)
    }
}

fn finish(hasher: Sha256) -> TaskId {
    TaskId::try_from(hex::encode(hasher.finalize())).expect("64 hex digits are a task id")
}

/// The reference of a URL of the shape `<any>://<any>/v2/<any><kind><reference>`, up to the first `?`. A fragment belongs
/// to the reference, as in the reference implementation.
fn oci_reference<'a>(url: &'a str, kind: &str) -> Option<&'a str> {
    let (_, rest) = url.split_once("://")?;
    let rest = rest.split_once('?').map_or(rest, |(path, _)| path);
    let (_, behind_version) = rest.split_once("/v2/")?;
    behind_version
        .rsplit_once(kind)
        .map(|(_, reference)| reference)
}

/// The part behind the colon of a digest. Only its length is checked, as other clients do.
fn encoded_digest(reference: &str) -> Option<&str> {
    let (algorithm, encoded) = reference.split_once(':')?;
    let valid = match algorithm {
        "sha256" => encoded.len() == 64,
        "sha512" => encoded.len() == 128,
        "crc32" => !encoded.is_empty(),
        _ => false,
    };
    valid.then_some(encoded)
}

/// Why a request has no task id. The caller must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskIdError {
    /// The URL cannot be brought into canonical form.
    #[error(transparent)]
    Url(#[from] CanonicalUrlError),
    /// The URL has the shape of an OCI blob, but what stands for the digest is none.
    #[error(
        "the blob URL does not end in a digest: use sha256:<64 hex digits> or sha512:<128 hex digits>"
    )]
    BlobDigest,
    /// The digest in the URL cannot name a task.
    #[error("the digest of the blob URL cannot name a task")]
    Id(#[from] IdError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_FILTERED_QUERY_PARAMS;
    use proptest::prelude::*;

    fn check(task: StandardTask<'_>, filtered: &[&str], want: &str) {
        let filtered: Vec<String> = filtered.iter().map(|name| (*name).to_owned()).collect();
        let task = StandardTask {
            filtered_query_params: &filtered,
            ..task
        };
        assert_eq!(task.task_id().unwrap().as_str(), want, "{task:?}");
    }

    fn of(url: &str) -> StandardTask<'_> {
        StandardTask {
            url,
            ..Default::default()
        }
    }

    #[test]
    fn standard_ids_without_filter() {
        let example = StandardTask {
            tag: Some("foo"),
            application: Some("bar"),
            ..of("https://example.com")
        };
        let full = StandardTask {
            revision: Some("v1.0"),
            piece_length: Some(1024),
            ..example
        };
        check(
            full,
            &[],
            "5844f27a257287e9b734256bb25603d8005422ced8c0377f15063ec11963b25f",
        );
        check(
            example,
            &[],
            "06408fbf247ddaca478f8cb9565fe5591c28efd0994b8fea80a6a87d3203c5ca",
        );
        let lengthy = StandardTask {
            piece_length: Some(1024),
            tag: Some(""),
            ..of("https://example.com")
        };
        check(
            lengthy,
            &[],
            "9f7c9aafbc6f30f8f41a96ca77eeae80c5b60964b3034b0ee43ccf7b2f9e52b8",
        );
        let unsorted = of("https://example.com/file.txt?b=2&a=1");
        check(
            unsorted,
            &[],
            "980ee327518ccc5a7c30703e1a2232e8ba9047b39431f940636c85b6146f8b9a",
        );
        let model = StandardTask {
            revision: Some("main"),
            ..of("hf://deepseek-ai/OCR/config.json")
        };
        check(
            model,
            &[],
            "c002e4c79b6b613b97ea22994ea96d7f7b282c65decff5f1b22ae9abdded16bc",
        );
    }

    #[test]
    fn standard_ids_with_filter() {
        let plain = of("https://example.com?foo=foo&bar=bar");
        check(
            plain,
            &["foo", "bar"],
            "457b4328cde278e422c9e243f7bfd1e97f511fec43a80f535cf6b0ef6b086776",
        );
        let tagged = StandardTask {
            tag: Some("foo"),
            application: Some("bar"),
            ..of("https://example.com/file.txt?z=9&b=2&a=1")
        };
        check(
            tagged,
            &["z"],
            "8b3f6e9b9b8fe20903bced565cfd1d0aaef354a4c17573f0c2c1979210443f9d",
        );
        let stable = of("https://example.com/file.txt?b=2&a=1&b=1");
        check(
            stable,
            &["c"],
            "7c8801d0596be5e8f9449d5c4af23866c72fe5205119c0e5912981f3b16a37aa",
        );
        let encoded = StandardTask {
            piece_length: Some(1024),
            ..of("https://example.com/file.txt?k=a b&m=x*y&n=c~d")
        };
        check(
            encoded,
            &["none"],
            "6196a6846023f6d3c1e4d30f6c86f3d4186e4c664a33e5692b0e04e49b26a9af",
        );
        let signed = of("http://example.com/xyz?Expires=e1&Signature=s1&ns=docker.io&b=2&a=1");
        check(
            signed,
            &DEFAULT_FILTERED_QUERY_PARAMS,
            "2510d50eeecc44c4103e8fe53a9eb8ad39fe693e58bb17d7c98bc0a51bae101a",
        );
        let team = StandardTask {
            tag: Some("team-a"),
            application: Some("ml"),
            piece_length: Some(8_388_608),
            ..signed
        };
        check(
            team,
            &DEFAULT_FILTERED_QUERY_PARAMS,
            "84953ab74bd3d29a6c436aebbcc18138d502ff7d0c4423cc931b75b99cac4096",
        );
    }

    #[test]
    fn oci_content_is_named_by_its_digest() {
        let digest = "b2c366cce7e68013d5441c6326d5a3e1b12aeb5ed58564d0fd3fa089bc29cb6e";
        let url = format!("http://localhost:5000/v2/myrepo/blobs/sha256:{digest}?ns=docker.io");
        let blob = StandardTask {
            blob_digest: true,
            ..of(&url)
        };
        check(blob, &[], digest);
        assert_ne!(of(&url).task_id().unwrap().as_str(), digest);
        check(
            StandardTask {
                url: &url.replace("blobs", "manifests"),
                ..blob
            },
            &[],
            digest,
        );
        let long = format!("http://h/v2/a/b/blobs/sha512:{}", "c".repeat(128));
        check(StandardTask { url: &long, ..blob }, &[], &"c".repeat(128));
    }

    #[test]
    fn content_is_known_by_its_digest_only_when_that_names_the_task() {
        let digest = "sha256:b2c366cce7e68013d5441c6326d5a3e1b12aeb5ed58564d0fd3fa089bc29cb6e";
        let named = |url: &str, blob_digest| {
            let task = StandardTask {
                blob_digest,
                ..of(url)
            };
            task.named_digest()
                .map(|digest| digest.map(|digest| digest.to_string()))
        };
        for kind in ["blobs", "manifests"] {
            let url = format!("http://h/v2/a/b/{kind}/{digest}?ns=x");
            assert_eq!(named(&url, true), Ok(Some(digest.to_owned())));
            assert_eq!(named(&url, false), Ok(None));
        }
        assert_eq!(named("http://h/v2/a/manifests/latest", true), Ok(None));
        assert_eq!(named("http://h/f", true), Ok(None));
        let nonsense = format!("http://h/v2/a/blobs/sha256:{}", "x".repeat(64));
        assert_eq!(named(&nonsense, true), Err(TaskIdError::BlobDigest));
    }

    #[test]
    fn blobs_without_digest_are_refused_manifests_are_not() {
        for reference in [
            "latest",
            "sha256:abc",
            "sha256:",
            "md5:abc",
            "sha256:../../../../etc/passwd",
        ] {
            let url = format!("http://h/v2/repo/blobs/{reference}");
            let blob = StandardTask {
                blob_digest: true,
                ..of(&url)
            };
            assert_eq!(blob.task_id(), Err(TaskIdError::BlobDigest), "{reference}");
            let url = url.replace("blobs", "manifests");
            let manifest = StandardTask {
                blob_digest: true,
                ..of(&url)
            };
            assert_eq!(manifest.task_id(), of(&url).task_id());
        }
        let hostile = format!("http://h/v2/repo/blobs/sha256:{}", "../".repeat(21) + "x");
        let blob = StandardTask {
            blob_digest: true,
            ..of(&hostile)
        };
        assert!(matches!(blob.task_id(), Err(TaskIdError::Id(_))));
    }

    #[test]
    fn content_decides_alone() {
        let content = StandardTask {
            content: Some("This is a test file"),
            tag: Some("t"),
            blob_digest: true,
            ..of("x")
        };
        check(
            content,
            &["y"],
            "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249",
        );
    }

    #[test]
    fn persistent_ids() {
        let id = persistent_task_id(
            "my-object-key",
            "us-west-1",
            "https://s3.us-west-1.amazonaws.com",
        );
        assert_eq!(
            id.as_str(),
            "b51f4f44921bb585277a5cbac13e7f6e2858238e98546f3ee6bfeb56369979c0"
        );
        let id = persistent_task_id(
            "s3://bucket/dir/file.bin",
            "us-east-1",
            "https://s3.example.com",
        );
        assert_eq!(
            id.as_str(),
            "f446b99ccda2eb7a34cfb771ad2fc7b1aceb3e6f4214c49918210d5ff96eb27f"
        );
    }

    #[test]
    fn persistent_cache_ids() {
        let mut hasher = PersistentCacheTaskHasher::new();
        hasher.update(b"This is a ");
        hasher.update(b"test file");
        let id = hasher.finish(Some("tag1"), Some("app1"), Some(1024));
        assert_eq!(
            id.as_str(),
            "7160a071a9acea5ac341e770c14d0211c38a4b15b3bbe2c5f848a706fd47419e"
        );
        let mut hasher = PersistentCacheTaskHasher::new();
        hasher.update(b"hello world");
        let id = hasher.finish(None, None, None);
        assert_eq!(
            id.as_str(),
            "38d1455faaa0879c363d790885e2b4f9bc342776c1240731928ff152aa8b1fa1"
        );
    }

    proptest! {
        #[test]
        fn any_request_has_an_id_or_a_reason(url in "(http://h/v2/(a/)?(blobs|manifests)/(sha256|crc32|x):)?.{0,70}", filter in ".{0,2}", blob_digest: bool) {
            let filtered = [filter];
            let _ = StandardTask { filtered_query_params: &filtered, blob_digest, ..of(&url) }.task_id();
        }
    }
}
