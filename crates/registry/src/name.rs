//! What an image is called: as people write it, and as the URL of its manifest.

use std::fmt;
use std::str::FromStr;

use protocol::Digest;
use url::Url;

/// Names by which people know Docker Hub, and the host that serves its registry. Whoever computes identities from URLs must
/// agree on one of them; the proxy uses this one.
const DOCKER_HUB: &str = "registry-1.docker.io";
const DOCKER_HUB_ALIASES: [&str; 2] = ["docker.io", "index.docker.io"];

/// Longest repository name (OCI distribution specification: registries commonly refuse more than 255 with the host).
const REPOSITORY_LEN_MAX: usize = 255;
/// Longest tag, by the OCI distribution specification.
const TAG_LEN_MAX: usize = 128;

/// Which manifest of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The one that this name points to today.
    Tag(String),
    /// The one with this content.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// `<scheme>://<host>/v2/<repository>/manifests/<reference>`, taken apart. The query is dropped, and the aliases of Docker
/// Hub become the host that serves it, so that the contents have the same URLs as in a pull through the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestUrl {
    /// Scheme, host, and a path if the registry lies below one; no slash at the end.
    base: String,
    https: bool,
    repository: String,
    reference: Reference,
}

/// The text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not the URL of a manifest.
    #[error(
        "{reason}: expected the URL of a manifest, such as https://registry.example/v2/team/app/manifests/1.0"
    )]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// Not the name of an image.
    #[error("{reason}: expected an image, such as oci://registry.example/team/app:1.0")]
    Image {
        /// What is wrong with it.
        reason: String,
    },
}

impl ManifestUrl {
    /// Scheme and host of the registry (and the path below which it lies, if there is one), without a slash at the end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which manifest.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Whether the registry is spoken to by TLS.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The URL of another manifest of the same repository.
    pub fn manifest(&self, reference: &Reference) -> String {
        format!("{}/v2/{}/manifests/{reference}", self.base, self.repository)
    }

    /// The URL of a blob of the repository.
    pub fn blob(&self, digest: &Digest) -> String {
        format!("{}/v2/{}/blobs/{digest}", self.base, self.repository)
    }
}

impl fmt::Display for ManifestUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.manifest(&self.reference))
    }
}

impl FromStr for ManifestUrl {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |reason: &str| NameError::Url {
            reason: reason.to_owned(),
        };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("its scheme is neither https nor http")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "it holds a user name or password, which belong into fields of their own",
            ));
        }
        let host = url.host_str().ok_or_else(|| wrong("it has no host"))?;
        let (prefix, rest) = url
            .path()
            .split_once("/v2/")
            .ok_or_else(|| wrong("there is no /v2/ in its path"))?;
        let (repository, reference) = rest
            .rsplit_once("/manifests/")
            .ok_or_else(|| wrong("there is no /manifests/ in its path"))?;
        if !is_repository(repository) {
            return Err(wrong("the repository's name is not one"));
        }
        let host = if DOCKER_HUB_ALIASES.contains(&host) {
            DOCKER_HUB
        } else {
            host
        };
        let port = url
            .port()
            .map_or_else(String::new, |port| format!(":{port}"));
        Ok(Self {
            base: format!("{}://{host}{port}{prefix}", url.scheme()),
            https,
            repository: repository.to_owned(),
            reference: reference_of(reference).map_err(wrong)?,
        })
    }
}

/// An image as people write it: `[oci://][registry/]repository[:tag][@digest]`. Without a registry it is one of Docker Hub, where
/// a name of one part lies in `library`; without tag and digest it is `latest`. A digest beats a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    registry: String,
    repository: String,
    reference: Reference,
}

impl ImageName {
    /// The URL of its manifest; `plain` is for a registry without TLS.
    ///
    /// # Errors
    /// The registry's name is no host.
    pub fn manifest_url(&self, plain: bool) -> Result<ManifestUrl, NameError> {
        let scheme = if plain { "http" } else { "https" };
        let Self {
            registry,
            repository,
            reference,
        } = self;
        format!("{scheme}://{registry}/v2/{repository}/manifests/{reference}").parse()
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |reason: &str| NameError::Image {
            reason: reason.to_owned(),
        };
        let text = text.strip_prefix("oci://").unwrap_or(text);
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (registry, path) = match name.split_once('/') {
            // What Docker and containerd go by: a host has a dot or a port, or is localhost.
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest)
            }
            _ => ("docker.io", name),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, tag),
            None => (path, "latest"),
        };
        let hub = registry == DOCKER_HUB || DOCKER_HUB_ALIASES.contains(&registry);
        let repository = if hub && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !is_repository(&repository) {
            return Err(wrong("the repository's name is not one"));
        }
        // Both are checked, also the one that does not count.
        let tag = reference_of(tag).map_err(wrong)?;
        let reference = match digest.map(reference_of).transpose().map_err(wrong)? {
            Some(Reference::Tag(_)) => return Err(wrong("what stands behind @ is no digest")),
            Some(digest) => digest,
            None => tag,
        };
        let name = Self {
            registry: if hub {
                DOCKER_HUB.to_owned()
            } else {
                registry.to_owned()
            },
            repository,
            reference,
        };
        name.manifest_url(false)
            .map_err(|_| wrong("the registry's name is no host"))?;
        Ok(name)
    }
}

/// Parts of letters, digits and `._-`, separated by slashes. More lenient than the specification, but nothing in it can lead a
/// URL elsewhere.
fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    name.len() <= REPOSITORY_LEN_MAX && name.split('/').all(is_part)
}

fn reference_of(text: &str) -> Result<Reference, &'static str> {
    if text.contains(':') {
        return content_digest(text)
            .map(Reference::Digest)
            .ok_or("the digest is not sha256 with 64 or sha512 with 128 lower-case hex digits");
    }
    let is_tag = (1..=TAG_LEN_MAX).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if is_tag {
        return Ok(Reference::Tag(text.to_owned()));
    }
    Err("the tag is not one")
}

/// A digest that can name a content in a registry, in its one spelling.
pub(crate) fn content_digest(text: &str) -> Option<Digest> {
    let digest: Digest = text.parse().ok()?;
    let names_content = matches!(digest, Digest::Sha256(_) | Digest::Sha512(_));
    (names_content && digest.to_string() == text).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "b2c366cce7e68013d5441c6326d5a3e1b12aeb5ed58564d0fd3fa089bc29cb6e";

    #[test]
    fn manifest_urls_are_taken_apart() {
        let check = |text: &str, base: &str, repository: &str, reference: &str| {
            let url: ManifestUrl = text.parse().unwrap();
            assert_eq!(
                (url.base(), url.repository(), url.reference().to_string()),
                (base, repository, reference.to_owned())
            );
        };
        check(
            "https://h.example:5000/v2/team/app/manifests/1.0?ns=docker.io#x",
            "https://h.example:5000",
            "team/app",
            "1.0",
        );
        check(
            "https://H.example:443/v2/a/manifests/x",
            "https://h.example",
            "a",
            "x",
        );
        check(
            &format!("http://h/below/v2/a/v2/b/manifests/sha256:{HEX}"),
            "http://h/below",
            "a/v2/b",
            &format!("sha256:{HEX}"),
        );
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            check(
                &format!("https://{host}/v2/library/nginx/manifests/latest"),
                "https://registry-1.docker.io",
                "library/nginx",
                "latest",
            );
        }
    }

    #[test]
    fn what_is_no_manifest_url_is_refused() {
        for text in [
            "",
            "x",
            "ftp://h/v2/a/manifests/x",
            "https://h/a/manifests/x",
            "https://h/v2/a/blobs/x",
            "https://h/v2//manifests/x",
            "https://h/v2/a/manifests/",
            "https://h/v2/a/manifests/.x",
            "https://h/v2/a/manifests/sha256:short",
            "https://h/v2/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e",
            "https://user:secret@h/v2/a/manifests/x",
            "https://h/v2/a%2f..%2f/manifests/x",
        ] {
            assert!(text.parse::<ManifestUrl>().is_err(), "{text}");
        }
        let upper = format!("https://h/v2/a/manifests/sha256:{}", HEX.to_uppercase());
        assert!(upper.parse::<ManifestUrl>().is_err());
    }

    #[test]
    fn images_are_named_as_everywhere() {
        let check = |text: &str, want: &str| {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(
                name.manifest_url(false).unwrap().to_string(),
                want,
                "{text}"
            );
        };
        let hub = "https://registry-1.docker.io/v2";
        check(
            "oci://nginx",
            &format!("{hub}/library/nginx/manifests/latest"),
        );
        check(
            "docker.io/nginx:1",
            &format!("{hub}/library/nginx/manifests/1"),
        );
        check("team/app:1", &format!("{hub}/team/app/manifests/1"));
        check("localhost/app", "https://localhost/v2/app/manifests/latest");
        check("oci://h:5000/a/b:t", "https://h:5000/v2/a/b/manifests/t");
        check(
            &format!("oci://h.example/a:t@sha256:{HEX}"),
            &format!("https://h.example/v2/a/manifests/sha256:{HEX}"),
        );
        let plain: ImageName = "oci://127.0.0.1:5000/a".parse().unwrap();
        assert_eq!(
            plain.manifest_url(true).unwrap().to_string(),
            "http://127.0.0.1:5000/v2/a/manifests/latest"
        );
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for text in [
            "",
            "oci://",
            "a@b",
            "a:",
            "a:b:c",
            "h.example/",
            "A B",
            "h.example/../a",
            "a@sha256:1",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_url_that_was_read_is_read_again(text in "https://[a-z.]{1,9}(:[0-9]{1,4})?(/[a-z]{0,3})?/v2/[a-zA-Z0-9._/-]{0,12}/manifests/[a-z0-9:._-]{0,12}") {
            if let Ok(url) = text.parse::<ManifestUrl>() {
                prop_assert_eq!(url.to_string().parse::<ManifestUrl>(), Ok(url));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,80}") {
            let _ = text.parse::<ManifestUrl>();
            let _ = text.parse::<ImageName>();
        }
    }
}
