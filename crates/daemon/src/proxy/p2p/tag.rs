//! Manifests by tag: asked of the registry each time, and remembered for the time that it is away.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use protocol::{Digest, DigestAlgorithm};
use source::{Get, SourceError};
use tracing::{info, warn};

use super::manifest::{MANIFEST_LEN_MAX, Manifest, NoManifest, is_accepted};
use super::memory::{Kept, Named, Remembered};
use super::{
    DirectReason, Inner, Outcome, P2pRequest, accepts, answer, authority, bare, collect, errors,
    is_public,
};
use crate::engine::{DownloadError, DownloadSpec, Probe, is_away};
use crate::proxy::answer::{ErrorType, error};
use crate::proxy::body::ProxyBody;

/// How long a registry may take for a manifest.
const REGISTRY_MAX: Duration = Duration::from_secs(30);
/// How long the swarm may take for the manifest of a tag while the registry is away.
const SWARM_MAX: Duration = Duration::from_secs(10);

/// What can still be answered when a registry does not answer.
pub struct Rescue {
    inner: Arc<Inner>,
    request: P2pRequest,
    spec: Box<DownloadSpec>,
}

impl Rescue {
    /// The last good answer, if there is one that this client may have.
    pub async fn answer(self) -> Option<Response<ProxyBody>> {
        let Self {
            inner,
            request,
            spec,
        } = self;
        let stale = inner.stale(&request, *spec).await?;
        (stale.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(stale)
    }
}

impl Rescue {
    /// The registry has answered: what it says that the tag names is remembered. containerd asks by HEAD, and then for the manifest by
    /// its digest.
    pub async fn learn(self, answered: &HeaderMap) {
        let Self { inner, request, .. } = self;
        let digest = answered
            .get("docker-content-digest")
            .and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok());
        let Some(digest) = digest.filter(|digest| digest.algorithm() != DigestAlgorithm::Crc32)
        else {
            return;
        };
        let claims = inner.claims(bare(&request.url), &request, &[]);
        inner.accepted(&authority(&request.url), claims[0]);
        let named = Named {
            digest,
            at: SystemTime::now(),
        };
        let noted =
            tokio::task::spawn_blocking(move || inner.memory.note(&request.url, &named)).await;
        if let Ok(Err(error)) = noted {
            warn!(%error, "tag not remembered: it cannot be resolved while the registry is away");
        }
    }
}

impl std::fmt::Debug for Rescue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rescue")
            .field("task_id", &self.spec.task_id)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Answers a request for what a tag names.
    pub(super) async fn tag(self: Arc<Self>, request: P2pRequest, spec: DownloadSpec) -> Outcome {
        if request.method == Method::HEAD {
            let rescue = Rescue {
                inner: self,
                request,
                spec: Box::new(spec),
            };
            return Outcome::DirectOr(DirectReason::HeadOfTag, rescue);
        }
        let authority = authority(&request.url);
        if !self.access.lock().is_away(&authority, Instant::now()) {
            match self.ask_registry(&spec).await {
                Ok((bytes, header)) => {
                    return Outcome::Answer(self.fresh(&request, &spec, bytes, &header).await);
                }
                Err(SourceError::Encoded { .. }) => {
                    return Outcome::Direct(DirectReason::Encoded);
                }
                Err(error) if is_away(&error) => {
                    info!(url = %spec.url_redacted(), %error, "registry is away");
                    self.access.lock().gone_away(&authority, Instant::now());
                    let stale = self.stale(&request, spec).await;
                    return Outcome::Answer(stale.unwrap_or_else(|| errors::origin(&error)));
                }
                Err(error) if errors::is_no_failure_of_origin(&error) => {
                    return Outcome::Direct(DirectReason::NoContent);
                }
                Err(error) => return Outcome::Answer(errors::origin(&error)),
            }
        }
        let stale = self.stale(&request, spec).await;
        Outcome::Answer(stale.unwrap_or_else(errors::unasked))
    }

    async fn ask_registry(
        &self,
        spec: &DownloadSpec,
    ) -> Result<(Bytes, std::collections::HashMap<String, String>), SourceError> {
        let request = source::Request::new(&spec.url)?
            .with_headers(spec.request_header.clone())
            .with_deadline(REGISTRY_MAX);
        let content = self.engine.sources().get(&request, Get::whole()).await?;
        let limit = usize::try_from(MANIFEST_LEN_MAX).unwrap_or(usize::MAX);
        let header = content.facts.header.clone();
        let bytes = content.body.collect(limit).await?;
        Ok((bytes.into(), header))
    }

    /// What the registry has just said: looked at, then remembered, then passed on.
    async fn fresh(
        self: &Arc<Self>,
        request: &P2pRequest,
        spec: &DownloadSpec,
        bytes: Bytes,
        header: &std::collections::HashMap<String, String>,
    ) -> Response<ProxyBody> {
        let content_type = header.get("content-type").map(String::as_str);
        let manifest = match Manifest::read(bytes, content_type) {
            Ok(manifest) => manifest,
            Err(no) => return looked_at(Response::new(ProxyBody::empty()), Err(no)),
        };
        let claims = self.claims(bare(&request.url), request, &[]);
        self.accepted(&authority(&request.url), claims[0]);
        let remembered = Remembered {
            manifest: manifest.clone(),
            public: self.engine.is_anonymous(spec),
            at: SystemTime::now(),
        };
        self.keep(request, remembered).await;
        let facts = answer::Facts {
            header: header.clone().into_iter().collect(),
            ..answer::Facts::default()
        };
        answered(&request.headers, &manifest, facts)
    }

    async fn keep(self: &Arc<Self>, request: &P2pRequest, remembered: Remembered) {
        let (inner, url) = (self.clone(), request.url.clone());
        let kept = tokio::task::spawn_blocking(move || inner.memory.keep(&url, &remembered)).await;
        if let Ok(Err(error)) = kept {
            warn!(%error, "manifest not remembered: its tag cannot be resolved while the registry is away");
        }
    }

    /// The last good answer, of this host or of the swarm; 503 if this client may not have it.
    async fn stale(
        self: &Arc<Self>,
        request: &P2pRequest,
        spec: DownloadSpec,
    ) -> Option<Response<ProxyBody>> {
        let (inner, url) = (self.clone(), request.url.clone());
        let recalled = tokio::task::spawn_blocking(move || inner.memory.recall(&url)).await;
        let remembered = match recalled.ok().flatten() {
            Some(Kept::Manifest(remembered)) => remembered,
            kept => {
                let by_digest = matches!(kept, Some(Kept::Digest(_)));
                let found = async {
                    match kept {
                        Some(Kept::Digest(named)) => self.manifest_named(request, named).await,
                        _ => self.manifest_in_swarm(&spec).await,
                    }
                };
                let found = tokio::time::timeout(SWARM_MAX, found).await;
                let remembered = found.ok()?.inspect_err(|error| {
                    info!(url = %spec.url_redacted(), %error, "the swarm does not know the tag");
                });
                let remembered = remembered.ok()?;
                let digest = remembered.manifest.digest();
                // Who says that his tag names a digest may have read it elsewhere.
                if by_digest && !remembered.public && !self.is_shown(&request.url, &digest) {
                    return Some(errors::unasked());
                }
                self.keep(request, remembered.clone()).await;
                remembered
            }
        };
        if !is_accepted(accepts(&request.headers), &remembered.manifest.content_type) {
            return None;
        }
        let claims = self.claims(bare(&request.url), request, &[]);
        let accepted = {
            let access = self.access.lock();
            let now = Instant::now();
            claims.iter().any(|claim| access.is_remembered(*claim, now))
        };
        if !remembered.public && !accepted {
            return Some(errors::unasked());
        }
        let mut response = answered(
            &request.headers,
            &remembered.manifest,
            answer::Facts::default(),
        );
        let headers = response.headers_mut();
        let warning = HeaderValue::from_static(
            "110 - \"the registry does not answer, this is what it said last\"",
        );
        headers.insert(header::WARNING, warning);
        let age = SystemTime::now().duration_since(remembered.at);
        headers.insert(header::AGE, age.unwrap_or_default().as_secs().into());
        if request.method == Method::HEAD {
            *response.body_mut() = ProxyBody::empty();
        }
        Some(response)
    }

    /// The manifest that a tag was last said to name, out of the swarm.
    async fn manifest_named(
        &self,
        request: &P2pRequest,
        named: Named,
    ) -> Result<Remembered, DownloadError> {
        let mut url = request.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push(&named.digest.to_string());
        }
        let by_digest = P2pRequest {
            method: Method::GET,
            url,
            headers: request.headers.clone(),
            rule: request.rule.clone(),
            remote: request.remote,
            windows: None,
        };
        let wish = super::request::wish(&by_digest, &self.defaults)
            .map_err(|refusal| DownloadError::Invalid(refusal.to_string()))?;
        let found = self.manifest_in_swarm(&wish.spec).await?;
        Ok(Remembered {
            at: named.at,
            ..found
        })
    }

    /// The manifest as a preheated task of the swarm, without asking the registry.
    async fn manifest_in_swarm(&self, spec: &DownloadSpec) -> Result<Remembered, DownloadError> {
        let mut spec = spec.clone();
        spec.probe = Probe::Swarm;
        spec.disable_back_to_source = true;
        let known = self.engine.know(&spec).await?;
        let task = known.task.clone();
        let download = self.engine.begin(known, spec).await?;
        let mut portions = super::Portions::new(download.into_reader(), None, &self.crowd);
        let bytes = collect(&mut portions).await?;
        let header = &task.description().response_header;
        let manifest = Manifest::read(bytes, header.get("content-type").map(String::as_str))
            .map_err(|no| {
                DownloadError::Invalid(format!("what the swarm has is no manifest: {no}"))
            })?;
        Ok(Remembered {
            manifest,
            public: is_public(&task, Duration::MAX),
            at: task.summary().times.created_at,
        })
    }
}

/// The answer with a manifest that was looked at, or what is wrong with it.
pub(super) fn looked_at(
    mut response: Response<ProxyBody>,
    manifest: Result<Manifest, NoManifest>,
) -> Response<ProxyBody> {
    match manifest {
        Ok(manifest) => {
            if let Ok(content_type) = HeaderValue::from_str(&manifest.content_type) {
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            *response.body_mut() = ProxyBody::full(manifest.bytes);
            response
        }
        Err(no) => error(
            StatusCode::BAD_GATEWAY,
            ErrorType::Backend,
            &format!(
                "what was sent for this manifest is none ({no}): is this the address of a registry?"
            ),
        ),
    }
}

/// 200 with the manifest, or 304.
fn answered(
    asked: &HeaderMap,
    manifest: &Manifest,
    mut facts: answer::Facts,
) -> Response<ProxyBody> {
    facts.length = manifest.bytes.len() as u64;
    facts.named_by = Some(manifest.digest());
    let version = "docker-distribution-api-version".to_owned();
    { facts.header.entry(version) }.or_insert_with(|| "registry/2.0".to_owned());
    // A manifest is short: ranges of it are not served.
    let plan = answer::plan(asked, false, &facts);
    let mut response = Response::new(ProxyBody::empty());
    *response.status_mut() = plan.status;
    *response.headers_mut() = answer::headers(&facts, &plan);
    if plan.range.is_some() {
        return looked_at(response, Ok(manifest.clone()));
    }
    response
}
