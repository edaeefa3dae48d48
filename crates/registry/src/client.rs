//! Asking a registry: one repository as one caller sees it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use protocol::Digest;
use source::http::{HttpOptions, HttpSource};
use source::{Get, Redacted, Request, Source, SourceError};
use tracing::debug;
use url::Url;

use crate::auth::{self, Credentials, Scheme, TokenService, Tokens};
use crate::error::RegistryError;
use crate::manifest::{ACCEPT, Descriptor, Document, MANIFEST_LEN_MAX};
use crate::name::{ManifestUrl, Reference};
use crate::platform::{Platform, Platforms};

/// Longest time for one request to a registry or its token service, tries included (Dragonfly v2: 1 min).
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// Documents of one image that are read at most: an index with that many platforms is no image.
const DOCUMENTS_MAX: usize = 256;
/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
/// Contents of one image.
const CONTENTS_MAX: usize = 10_000;
/// Notes that are kept.
const NOTES_MAX: usize = 32;

/// Speaks to registries. Keeps connections and tokens; one is enough for a process.
#[derive(Debug)]
pub struct Client {
    options: HttpOptions,
    verified: HttpSource,
    /// For callers who said that certificates are not to be verified; made when the first one comes.
    unverified: OnceLock<HttpSource>,
    tokens: Tokens,
}

/// What a caller brings along to see a repository. `Debug` shows no secret.
#[derive(Clone, Default)]
pub struct Access {
    /// Sent with every request to the registry. An `Authorization` among them is used as it is, and no token is asked for.
    pub headers: HashMap<String, String>,
    /// Who asks; `None` is anybody.
    pub credentials: Option<Credentials>,
    /// Trust roots besides those of the system, each one certificate in DER.
    pub trust_roots: Vec<Vec<u8>>,
    /// Certificates are not verified, neither of the registry nor of its token service.
    pub insecure_skip_verify: bool,
}

/// One repository, as one caller sees it.
#[derive(Debug)]
pub struct Registry {
    client: Arc<Client>,
    url: ManifestUrl,
    access: Access,
    /// Learnt from the first refusal; `None` while the registry has not asked for anything.
    scheme: Mutex<Option<Scheme>>,
    /// Whoever holds it asks for a token; the others wait and find it.
    asking: tokio::sync::Mutex<()>,
}

/// What an image is made of, each content once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Indexes and manifests; the one that was asked for first. If it was asked for by tag, the tag comes before the digest.
    pub manifests: Vec<Content>,
    /// Of each image its config, then its layers.
    pub blobs: Vec<Content>,
    /// What was left out, for people.
    pub notes: Vec<String>,
}

/// One content of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Where it is, as a pull asks for it.
    pub url: String,
    /// What it is.
    pub kind: ContentKind,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
}

/// What a content of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentKind {
    /// A manifest or index by its tag: its content may change.
    Tag,
    /// A manifest or index by its digest.
    Manifest,
    /// The configuration of an image.
    Config,
    /// A layer.
    Layer,
}

impl ContentKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer => "layer",
        }
    }
}

impl Client {
    /// A client with these options for connections.
    ///
    /// # Errors
    /// The options cannot be met.
    pub fn new(options: HttpOptions) -> Result<Self, SourceError> {
        Ok(Self {
            verified: HttpSource::new(options.clone())?,
            options,
            unverified: OnceLock::new(),
            tokens: Tokens::default(),
        })
    }

    /// The repository of `url`. Nothing is sent yet.
    pub fn open(self: &Arc<Self>, url: ManifestUrl, access: Access) -> Registry {
        Registry {
            client: self.clone(),
            url,
            access,
            scheme: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    fn source(&self, insecure: bool) -> Result<&HttpSource, SourceError> {
        if !insecure {
            return Ok(&self.verified);
        }
        if let Some(made) = self.unverified.get() {
            return Ok(made);
        }
        let mut options = self.options.clone();
        options.unverified_hosts = vec!["*".to_owned()];
        let made = HttpSource::new(options)?;
        Ok(self.unverified.get_or_init(|| made))
    }
}

/// The body of an answer, and what it says that it is.
struct Answer {
    content_type: String,
    body: Vec<u8>,
}

/// A document to be read.
struct Step {
    reference: Reference,
    /// What led here said this about it.
    expected: Option<Descriptor>,
    depth: usize,
}

impl Registry {
    /// The manifest that the caller named.
    pub fn url(&self) -> &ManifestUrl {
        &self.url
    }

    /// Follows the manifest, or the index for the wanted platforms, to every content of the image.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn resolve(&self, platforms: &Platforms) -> Result<Image, RegistryError> {
        let mut resolving = Resolving::new(&self.url, platforms);
        while let Some(step) = resolving.next()? {
            let answer = self.document(&step).await?;
            resolving.take(step, &answer)?;
        }
        Ok(resolving.image)
    }

    /// The `Authorization` header with which the contents may be read now; `None` if the registry has not asked for one. A token
    /// has at least half of its life before it.
    ///
    /// # Errors
    /// The token service gives none.
    pub async fn authorization(&self) -> Result<Option<String>, RegistryError> {
        if let Some(given) = auth::given(&self.access.headers) {
            return Ok(Some(given.to_owned()));
        }
        let scheme = self.scheme.lock().clone();
        match scheme {
            None => Ok(None),
            Some(Scheme::Basic) => Ok(self.access.credentials.as_ref().map(Credentials::basic)),
            Some(Scheme::Bearer(service)) => {
                let token = self.token(&service).await?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    /// The headers for somebody who reads the contents for this caller: the caller's own, and the authorization.
    ///
    /// # Errors
    /// As [`Registry::authorization`].
    pub async fn headers(&self) -> Result<HashMap<String, String>, RegistryError> {
        let mut headers = self.access.headers.clone();
        if let Some(authorization) = self.authorization().await? {
            headers.retain(|name, _| !name.eq_ignore_ascii_case("authorization"));
            headers.insert("Authorization".to_owned(), authorization);
        }
        Ok(headers)
    }

    /// The registry refused what [`Registry::authorization`] gave: the next one is a new one.
    pub fn refused(&self) {
        let scheme = self.scheme.lock().clone();
        if let Some(Scheme::Bearer(service)) = scheme {
            let credentials = self.access.credentials.as_ref();
            self.client.tokens.forget(&service, credentials);
        }
    }

    /// Reads a document and holds it to its digest.
    async fn document(&self, step: &Step) -> Result<Answer, RegistryError> {
        let url = self.url.manifest(&step.reference);
        let answer = self.get(&url).await?;
        let damaged = || RegistryError::Digest {
            url: Redacted::text(&url),
        };
        if let Reference::Digest(digest) = &step.reference
            && Digest::of(digest.algorithm(), &answer.body) != *digest
        {
            return Err(damaged());
        }
        match &step.expected {
            Some(expected) if expected.len != answer.body.len() as u64 => Err(damaged()),
            _ => Ok(answer),
        }
    }

    /// One manifest; a refusal is answered once with what the registry wants to see.
    async fn get(&self, url: &str) -> Result<Answer, RegistryError> {
        let mut asked_anew = false;
        loop {
            let authorization = self.authorization().await?;
            let had_one = authorization.is_some();
            let error = match self.send(url, authorization).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let SourceError::Status {
                url: shown,
                status_code: status_code @ (401 | 403 | 404),
                header,
                ..
            } = &error
            else {
                return Err(error.into());
            };
            if *status_code == 404 {
                return Err(RegistryError::NotFound { url: shown.clone() });
            }
            let fixed = auth::given(&self.access.headers).is_some();
            let challenge = header
                .get("www-authenticate")
                .filter(|_| *status_code == 401);
            match challenge {
                Some(challenge) if !fixed && !asked_anew => {
                    asked_anew = true;
                    self.learn(challenge, url)?;
                    if had_one {
                        self.refused();
                    }
                }
                _ => {
                    return Err(RegistryError::Unauthorized {
                        url: shown.clone(),
                        status_code: *status_code,
                        advice: self.advice(),
                    });
                }
            }
        }
    }

    fn advice(&self) -> &'static str {
        if auth::given(&self.access.headers).is_some() {
            "check the Authorization header that was given"
        } else if self.access.credentials.is_some() {
            "check the user name and password, and that they may pull from this repository"
        } else {
            "give a user name and password that may pull from this repository, or check the name"
        }
    }

    fn learn(&self, challenge: &str, url: &str) -> Result<(), RegistryError> {
        let parsed = Url::parse(url).map_err(|error| SourceError::InvalidUrl {
            url: Redacted::text(url),
            reason: error.to_string(),
        })?;
        let scheme = Scheme::of_header(challenge, &parsed, self.url.repository())?;
        debug!(url = %Redacted::text(url), bearer = matches!(scheme, Scheme::Bearer(_)), "registry wants authorization");
        *self.scheme.lock() = Some(scheme);
        Ok(())
    }

    async fn send(&self, url: &str, authorization: Option<String>) -> Result<Answer, SourceError> {
        let mut headers = self.access.headers.clone();
        headers.retain(|name, _| {
            !name.eq_ignore_ascii_case("accept") && !name.eq_ignore_ascii_case("authorization")
        });
        headers.insert("accept".to_owned(), ACCEPT.to_owned());
        if let Some(authorization) = authorization {
            headers.insert("authorization".to_owned(), authorization);
        }
        self.fetch(url, headers, MANIFEST_LEN_MAX).await
    }

    async fn fetch(
        &self,
        url: &str,
        headers: HashMap<String, String>,
        len_max: usize,
    ) -> Result<Answer, SourceError> {
        let source = self.client.source(self.access.insecure_skip_verify)?;
        let request = Request::new(url)?
            .with_headers(headers)
            .with_trust_roots(self.access.trust_roots.clone())
            .with_deadline(REQUEST_MAX);
        let content = source.get(&request, Get::whole()).await?;
        let content_type = content
            .facts
            .header
            .get("content-type")
            .cloned()
            .unwrap_or_default();
        Ok(Answer {
            content_type,
            body: content.body.collect(len_max).await?,
        })
    }

    async fn token(&self, service: &TokenService) -> Result<String, RegistryError> {
        let credentials = self.access.credentials.as_ref();
        let tokens = &self.client.tokens;
        if let Some(token) = tokens.fresh(service, credentials) {
            return Ok(token);
        }
        let _asking = self.asking.lock().await;
        if let Some(token) = tokens.fresh(service, credentials) {
            return Ok(token);
        }
        let mut headers = auth::harmless(&self.access.headers);
        headers.retain(|name, _| !name.eq_ignore_ascii_case("accept"));
        if let Some(credentials) = credentials {
            headers.insert("authorization".to_owned(), credentials.basic());
        }
        let answer = self
            .fetch(service.url().as_str(), headers, auth::TOKEN_ANSWER_LEN_MAX)
            .await
            .map_err(|error| match error {
                SourceError::Status {
                    url,
                    status_code: status_code @ (401 | 403),
                    ..
                } => RegistryError::Unauthorized {
                    url,
                    status_code,
                    advice: self.advice(),
                },
                error => error.into(),
            })?;
        let (token, life) = service.read(&answer.body)?;
        tokens.keep(service, credentials, &token, life);
        Ok(token)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("credentials", &self.credentials)
            .field("trust_roots", &self.trust_roots.len())
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish()
    }
}

/// The walk from the named manifest to all contents; answers come from outside.
struct Resolving<'a> {
    url: &'a ManifestUrl,
    platforms: &'a Platforms,
    image: Image,
    steps: VecDeque<Step>,
    read: usize,
    known: HashSet<Digest>,
    /// Platforms that were seen and not wanted.
    passed: Vec<Platform>,
}

impl<'a> Resolving<'a> {
    fn new(url: &'a ManifestUrl, platforms: &'a Platforms) -> Self {
        let first = Step {
            reference: url.reference().clone(),
            expected: None,
            depth: 0,
        };
        Self {
            url,
            platforms,
            image: Image::default(),
            steps: VecDeque::from([first]),
            read: 0,
            known: HashSet::new(),
            passed: Vec::new(),
        }
    }

    /// The next document to be read; `None` when all are.
    fn next(&mut self) -> Result<Option<Step>, RegistryError> {
        let Some(step) = self.steps.pop_front() else {
            if self.image.blobs.is_empty() && !self.passed.is_empty() {
                return Err(RegistryError::Platform {
                    url: self.shown(),
                    wanted: self.platforms.to_string(),
                    present: list(&self.passed),
                });
            }
            return Ok(None);
        };
        self.read += 1;
        if self.read > DOCUMENTS_MAX {
            return Err(self.too_large(format!("more than {DOCUMENTS_MAX} manifests belong to it")));
        }
        Ok(Some(step))
    }

    fn take(&mut self, step: Step, answer: &Answer) -> Result<(), RegistryError> {
        let told = match (&step.expected, answer.content_type.is_empty()) {
            (Some(expected), true) => &expected.media_type,
            _ => &answer.content_type,
        };
        let document =
            Document::parse(told, &answer.body).map_err(|error| RegistryError::Manifest {
                url: Redacted::text(&self.url.manifest(&step.reference)),
                error,
            })?;
        let len = answer.body.len() as u64;
        let digest = match &step.reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(_) => {
                let digest = Digest::of(protocol::DigestAlgorithm::Sha256, &answer.body);
                let url = self.url.manifest(&step.reference);
                self.add(ContentKind::Tag, url, &digest, len)?;
                digest
            }
        };
        if self.known.insert(digest.clone()) {
            let url = self.url.manifest(&Reference::Digest(digest.clone()));
            self.add(ContentKind::Manifest, url, &digest, len)?;
        }
        match document {
            Document::Index { entries } => self.index(entries, step.depth),
            Document::Manifest { config, layers } => self.manifest(&config, &layers),
        }
    }

    fn index(
        &mut self,
        entries: Vec<(Descriptor, Option<Platform>)>,
        depth: usize,
    ) -> Result<(), RegistryError> {
        if depth + 1 > DEPTH_MAX {
            return Err(self.too_large(format!("its indexes are nested deeper than {DEPTH_MAX}")));
        }
        // Where nothing says what it is for, everything is.
        let silent = entries.iter().all(|(_, platform)| platform.is_none());
        for (descriptor, platform) in entries {
            let nested = descriptor.media_type.contains("index")
                || descriptor.media_type.contains("manifest.list");
            let wanted = match &platform {
                Some(platform) => self.platforms.want(platform),
                None => silent || nested || *self.platforms == Platforms::All,
            };
            if !wanted {
                self.passed.extend(platform.filter(|it| !it.is_unknown()));
                continue;
            }
            if descriptor.len > MANIFEST_LEN_MAX as u64 {
                return Err(self.too_large(format!(
                    "a manifest of it has {} bytes, the limit is {MANIFEST_LEN_MAX}",
                    descriptor.len
                )));
            }
            if self.known.contains(&descriptor.digest)
                || self
                    .steps
                    .iter()
                    .any(|step| step.reference == Reference::Digest(descriptor.digest.clone()))
            {
                continue;
            }
            self.steps.push_back(Step {
                reference: Reference::Digest(descriptor.digest.clone()),
                expected: Some(descriptor),
                depth: depth + 1,
            });
        }
        Ok(())
    }

    fn manifest(
        &mut self,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<(), RegistryError> {
        let kinds = std::iter::once((ContentKind::Config, config))
            .chain(layers.iter().map(|layer| (ContentKind::Layer, layer)));
        for (kind, descriptor) in kinds {
            if descriptor.foreign {
                self.note(format!(
                    "layer {} lies elsewhere ({}) and is left out",
                    descriptor.digest, descriptor.media_type
                ));
            } else if self.known.insert(descriptor.digest.clone()) {
                let url = self.url.blob(&descriptor.digest);
                self.add(kind, url, &descriptor.digest, descriptor.len)?;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: ContentKind,
        url: String,
        digest: &Digest,
        len: u64,
    ) -> Result<(), RegistryError> {
        if self.image.manifests.len() + self.image.blobs.len() >= CONTENTS_MAX {
            return Err(self.too_large(format!("more than {CONTENTS_MAX} contents belong to it")));
        }
        let place = match kind {
            ContentKind::Tag | ContentKind::Manifest => &mut self.image.manifests,
            ContentKind::Config | ContentKind::Layer => &mut self.image.blobs,
        };
        place.push(Content {
            url,
            kind,
            digest: digest.clone(),
            len,
        });
        Ok(())
    }

    fn note(&mut self, note: String) {
        if self.image.notes.len() < NOTES_MAX && !self.image.notes.contains(&note) {
            self.image.notes.push(note);
        }
    }

    fn shown(&self) -> Redacted {
        Redacted::text(&self.url.to_string())
    }

    fn too_large(&self, reason: String) -> RegistryError {
        RegistryError::TooLarge {
            url: self.shown(),
            reason,
        }
    }
}

/// Some of them, for a message.
fn list(platforms: &[Platform]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for platform in platforms {
        let text = platform.to_string();
        if texts.len() < 20 && !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join(", ")
}

#[cfg(test)]
mod tests;
