//! The way of a request through the swarm: from the request to a task, and from the task to a streamed answer.
//!
//! [`request`] makes the task that Dragonfly v2 would make. [`access`] decides whether this client may have it. The engine learns
//! its length; then [`answer`] decides by the client's range and conditions what to send, and [`body`] sends it as it arrives. The
//! status line goes out with the first byte, so that what fails early is an honest error; what fails late breaks the connection.
//! Manifests are small and are looked at before anybody gets them ([`manifest`], `tag`).

pub mod access;
pub mod answer;
pub mod body;
mod errors;
pub mod manifest;
mod memory;
pub mod range;
pub mod request;
mod tag;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use parking_lot::Mutex;
use protocol::Digest;
use source::SourceError;
use storage::{Mark, Task};
use tracing::{debug, info, warn};
use url::Url;

use super::body::ProxyBody;
use super::rules::Rule;
use super::window::Windows;
use crate::config;
use crate::engine::{
    DownloadError, DownloadSpec, Engine, Known, Probe, Run, ToldBy, is_away, public, stored_version,
};
use crate::identity::Identity;
use crate::metrics::{InProgress, Metrics, TaskLabels};
use access::{Access, Claim};
use body::{Crowd, Portions};
use manifest::{MANIFEST_LEN_MAX, Manifest, Reference};
use memory::Memory;
use request::{Defaults, Wish};
use tag::Rescue;

/// How long it is believed that a content is given to anybody, while its origin could be asked.
const PUBLIC_MAX: Duration = Duration::from_secs(24 * 3600);

/// Places of which an origin gives the bytes to show that it has a content: who knows one in a thousand bytes must not get by.
const SHOW_TIMES: usize = 3;
/// Bytes of each place.
const SHOW_LEN: u64 = 32;
/// Where they are taken from if the origin has no ranges: the first so many bytes of what has come.
const SHOW_WITHIN: u64 = 64 << 10;
/// Places out of which each is chosen.
const SHOW_PLACES: usize = 8;
/// Out of how many bytes they are taken, at least.
const SHOW_FROM: u64 = 4096;
/// How many of them must be different: zeros prove nothing.
const SHOW_DIFFERENT: usize = 8;
/// The longest part of a content of which the origin has shown a part only.
const SHOWN_PART_MAX: u64 = 1 << 20;
/// How long it may take to show them.
const SHOW_MAX: Duration = Duration::from_secs(15);

/// A GET or HEAD that a rule, or `X-Dragonfly-Use-P2P`, sends into the swarm.
#[derive(Debug, Clone)]
pub struct P2pRequest {
    /// GET or HEAD.
    pub method: Method,
    /// The URL at the origin, after the rewriting of mirror and rule, with its full query.
    pub url: Url,
    /// The client's headers without those that are meant for one hop and without the credentials of the proxy.
    pub headers: HeaderMap,
    /// The rule that matched.
    pub rule: Arc<Rule>,
    /// The client.
    pub remote: IpAddr,
    /// For an answer whose bytes the kernel may send.
    pub windows: Option<Windows>,
}

/// What became of it.
#[derive(Debug)]
pub enum Outcome {
    /// The answer for the client, also if it is an error.
    Answer(Response<ProxyBody>),
    /// The swarm is not the right way for this one: forward it to the origin.
    Direct(DirectReason),
    /// As before; but if the origin does not answer, there may be something better than to say so.
    DirectOr(DirectReason, Rescue),
}

/// Why the swarm is not the right way for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectReason {
    /// This daemon has no swarm behind its proxy.
    NoSwarm,
    /// Only the registry knows what a tag names now.
    HeadOfTag,
    /// Nothing is known here of what HEAD asks about.
    UnknownHead,
    /// Nobody knows how long it is: the client gets it as it comes.
    NoLength,
    /// The origin insists on an encoding, which may suit this client only.
    Encoded,
    /// The origin gives this client something else than is held here.
    Differs,
    /// The origin says that it has what the digest names, but does not give its bytes.
    NotShown,
    /// The client's condition is about what the origin has now.
    Condition,
    /// The origin's answer is neither content nor a refusal.
    NoContent,
}

/// What the way into the swarm is made of.
pub struct P2pParts<'a> {
    /// Downloads.
    pub engine: Engine,
    /// Who this daemon is.
    pub identity: Arc<Identity>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// `proxy`.
    pub config: &'a config::Proxy,
    /// `storage.dir`: manifests are kept below it.
    pub storage_dir: &'a Path,
}

/// Requests as tasks; cheap to clone.
#[derive(Clone, Default)]
pub struct P2p {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    engine: Engine,
    identity: Arc<Identity>,
    metrics: Arc<Metrics>,
    defaults: Defaults,
    access: Mutex<Access>,
    memory: Memory,
    crowd: Crowd,
}

/// What an origin has shown of what a digest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Nothing.
    Nothing,
    /// That it has the part that is asked for.
    Part,
    /// That it has the content.
    Whole,
}

/// Whether a client may have a content.
enum Admission {
    Yes,
    /// The origin says so; but what a digest names is somebody else's content until the origin has shown that it has it.
    IfShown,
    /// The origin gives this client another content, or another version.
    Differs,
    /// The origin is away: only if it is known that it gives the content to anybody.
    IfPublic,
    /// The origin's answer to this client is neither content nor a refusal: it is for the client to understand.
    NotHere,
    No(Response<ProxyBody>),
}

impl P2p {
    /// Of these parts. (The default has no swarm: everything goes to its origin.)
    pub fn new(parts: P2pParts<'_>) -> Self {
        let mut key = [0; 32];
        for half in key.chunks_mut(16) {
            half.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        let inner = Inner {
            defaults: Defaults {
                disable_back_to_source: parts.config.disable_back_to_source,
                prefetch: parts.config.prefetch,
                blob_digest: parts.config.registry_mirror.task_id_based_blob_digest,
            },
            engine: parts.engine,
            identity: parts.identity,
            metrics: parts.metrics,
            access: Mutex::new(Access::new(key)),
            memory: Memory::new(memory::folder(parts.storage_dir)),
            crowd: Crowd::default(),
        };
        Self {
            inner: Some(Arc::new(inner)),
        }
    }

    /// Answers from the swarm, or says that the origin should be asked directly.
    pub async fn serve(&self, request: P2pRequest) -> Outcome {
        let Some(inner) = &self.inner else {
            return Outcome::Direct(DirectReason::NoSwarm);
        };
        if answer::needs_origin(&request.headers) {
            return Outcome::Direct(DirectReason::Condition);
        }
        let wish = match request::wish(&request, &inner.defaults) {
            Ok(wish) => wish,
            Err(refusal) => return Outcome::Answer(errors::refusal(&refusal)),
        };
        let reference = Reference::of(&request.url);
        if reference == Reference::Tag && wish.spec.named_by.is_none() {
            return inner.clone().tag(request, wish.spec).await;
        }
        let url = wish.spec.url_redacted();
        let mut outcome = inner.content(&request, wish.clone(), &reference).await;
        if let Err(DownloadError::Source(error)) = &outcome
            && matches!(**error, SourceError::Changed { .. })
        {
            // What was known of it is of an earlier version, and is forgotten by now.
            info!(url, %error, "asking again");
            outcome = inner.content(&request, wish, &reference).await;
        }
        match outcome {
            Ok(outcome) => outcome,
            Err(DownloadError::Unmeasured) => Outcome::Direct(DirectReason::NoLength),
            Err(DownloadError::Source(error)) if matches!(*error, SourceError::Encoded { .. }) => {
                Outcome::Direct(DirectReason::Encoded)
            }
            Err(error) if errors::is_no_failure(&error) => Outcome::Direct(DirectReason::NoContent),
            Err(error) => {
                warn!(url, %error, "proxied download failed");
                Outcome::Answer(errors::download(&error))
            }
        }
    }
}

impl std::fmt::Debug for P2p {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("P2p")
            .field("swarm", &self.inner.is_some())
            .finish()
    }
}

impl Inner {
    /// Answers out of a task.
    async fn content(
        &self,
        request: &P2pRequest,
        wish: Wish,
        reference: &Reference,
    ) -> Result<Outcome, DownloadError> {
        let Wish { mut spec, prefetch } = wish;
        let is_get = request.method == Method::GET;
        let mut here = self.engine.store().task(&spec.task_id)?;
        if !is_get && here.is_none() && spec.named_by.is_none() {
            return Ok(Outcome::Direct(DirectReason::UnknownHead));
        }
        let mut admission = self.admit(request, &mut spec, here.as_ref()).await;
        if matches!(admission, Admission::Differs) {
            let outdated = match here.take() {
                // With a digest for its name a content does not change: who says so is wrong about a whole one.
                Some(task) if spec.named_by.is_some() => !task.is_complete().unwrap_or(true),
                Some(task) => self.engine.is_anonymous(&spec) && is_replaced(&task, &spec.probe),
                None => false,
            };
            if !outdated || !self.engine.forget(&spec.task_id).await {
                return Ok(Outcome::Direct(DirectReason::Differs));
            }
            admission = self.asked(&spec);
        }
        match admission {
            Admission::No(refusal) => return Ok(Outcome::Answer(refusal)),
            Admission::NotHere => return Ok(Outcome::Direct(DirectReason::NoContent)),
            _ => {}
        }
        // What an origin says of a digest is not to be what is known here of the content.
        if !is_get && here.is_none() && matches!(admission, Admission::IfShown) {
            return Ok(Outcome::Direct(DirectReason::UnknownHead));
        }
        let known = self.engine.know(&spec).await?;
        if here.is_none() && spec.named_by.is_none() {
            match known.told_by {
                ToldBy::Origin => {}
                // The engine found the origin away.
                ToldBy::Swarm => admission = Admission::IfPublic,
                // Another client was quicker, and the origin was asked in its name.
                ToldBy::Store => {
                    admission = self.admit(request, &mut spec, Some(&known.task)).await;
                    match admission {
                        Admission::No(refusal) => return Ok(Outcome::Answer(refusal)),
                        Admission::Differs => return Ok(Outcome::Direct(DirectReason::Differs)),
                        Admission::NotHere => {
                            return Ok(Outcome::Direct(DirectReason::NoContent));
                        }
                        _ => {}
                    }
                }
            }
        }
        let task = known.task.clone();
        let facts = facts(&task, &spec);
        let plan = answer::plan(&request.headers, is_get, &facts);
        let mut response = Response::new(ProxyBody::empty());
        *response.status_mut() = plan.status;
        *response.headers_mut() = answer::headers(&facts, &plan);
        self.add_own_headers(&mut response, &spec, &task);
        let Some(range) = plan.range.filter(|_| is_get) else {
            return Ok(match self.may(&admission, &task) {
                true => Outcome::Answer(response),
                // It has not shown anything: what it says goes to the client as it is.
                false if matches!(admission, Admission::IfShown) => {
                    Outcome::Direct(DirectReason::NotShown)
                }
                false => Outcome::Answer(errors::unasked()),
            });
        };
        let is_part = plan.status == StatusCode::PARTIAL_CONTENT;
        spec.range = is_part.then_some(range);
        let exchange = Exchange::begin(&self.metrics, &spec);
        let begun = self.begin(
            known,
            &spec,
            is_part && prefetch,
            &exchange,
            &request.windows,
        );
        let mut portions = match begun.await {
            Ok(portions) => portions,
            Err(error) => {
                exchange.failed();
                return Err(error);
            }
        };
        if matches!(admission, Admission::IfShown) {
            match self.shows(&spec, &task, &mut portions).await {
                Ok(Shown::Whole) => self.shown(request, &spec, &task),
                Ok(Shown::Part) => {}
                Ok(Shown::Nothing) => return Ok(Outcome::Direct(DirectReason::NotShown)),
                Err(error) => {
                    exchange.failed();
                    return Err(error);
                }
            }
        }
        // The neighbours that gave the first bytes have said by now whether the content is public.
        if !matches!(admission, Admission::IfShown) && !self.may(&admission, &task) {
            return Ok(Outcome::Answer(errors::unasked()));
        }
        if *reference == Reference::Manifest && !is_part && facts.named_by.is_some() {
            let manifest = match collect(&mut portions).await {
                Ok(bytes) => {
                    Manifest::read(bytes, facts.header.get("content-type").map(String::as_str))
                }
                Err(error) => {
                    exchange.failed();
                    return Err(error);
                }
            };
            return Ok(Outcome::Answer(tag::looked_at(response, manifest)));
        }
        *response.body_mut() = exchange.body(portions);
        Ok(Outcome::Answer(response))
    }

    /// Waits for the first byte, so that what fails before it is an honest error.
    async fn begin(
        &self,
        known: Known,
        spec: &DownloadSpec,
        prefetch: bool,
        exchange: &Exchange,
        windows: &Option<Windows>,
    ) -> Result<Portions, DownloadError> {
        let download = self.engine.begin(known, spec.clone()).await?;
        if prefetch {
            self.engine
                .prefetch(spec, &download.started.task, &exchange.labels);
        }
        let mut portions = Portions::new(download.into_reader(), windows.clone(), &self.crowd);
        portions.ready().await?;
        Ok(portions)
    }

    /// Whether the origin gives this content to this client, as far as that has to be asked and can be.
    async fn admit(
        &self,
        request: &P2pRequest,
        spec: &mut DownloadSpec,
        here: Option<&Task>,
    ) -> Admission {
        let must_ask = answer::must_revalidate(&request.headers) || here.is_some_and(varies);
        if !must_ask && here.is_some_and(|task| is_public(task, PUBLIC_MAX)) {
            return Admission::Yes;
        }
        if here.is_none() && spec.named_by.is_none() {
            // The engine asks the origin in the name of this client.
            return Admission::Yes;
        }
        let claims = self.claims_to(request, spec);
        let authority = authority(&request.url);
        let now = Instant::now();
        if !must_ask {
            let access = self.access.lock();
            if claims.iter().any(|claim| access.is_fresh(*claim, now)) {
                return Admission::Yes;
            }
        }
        let is_away_still = self.access.lock().is_away(&authority, now);
        if !is_away_still {
            match self.engine.stat(spec).await {
                Ok(facts) => {
                    self.access.lock().is_back(&authority);
                    let is_same = here.is_none_or(|task| is_given(task, spec, &facts));
                    spec.probe = Probe::Known(Arc::new(facts));
                    if !is_same {
                        return Admission::Differs;
                    }
                    let admission = self.asked(spec);
                    if let (Admission::Yes, Some(task)) = (&admission, here) {
                        self.shown(request, spec, task);
                    }
                    return admission;
                }
                Err(error) if is_away(&error) => {
                    info!(url = %spec.url_redacted(), %error, "origin is away");
                    self.access.lock().gone_away(&authority, Instant::now());
                }
                Err(error) if errors::is_no_failure_of_origin(&error) => return Admission::NotHere,
                Err(error) => {
                    self.access.lock().refuse(claims[0]);
                    return Admission::No(errors::origin(&error));
                }
            }
        }
        spec.probe = Probe::Swarm;
        let access = self.access.lock();
        let remembered = claims
            .iter()
            .any(|claim| access.is_remembered(*claim, Instant::now()));
        match remembered {
            true => Admission::Yes,
            false => Admission::IfPublic,
        }
    }

    /// What the yes of an origin that was asked is worth.
    fn asked(&self, spec: &DownloadSpec) -> Admission {
        let Some(digest) = &spec.named_by else {
            return Admission::Yes;
        };
        let access = self.access.lock();
        let shown = access.claim(&shown_by(&spec.url, digest), std::iter::empty());
        match access.is_remembered(shown, Instant::now()) {
            true => Admission::Yes,
            false => Admission::IfShown,
        }
    }

    /// The origin gives this content to this client, and has it.
    fn shown(&self, request: &P2pRequest, spec: &DownloadSpec, task: &Task) {
        let claim = self.claims_to(request, spec)[0];
        let mut access = self.access.lock();
        access.accept(claim, Instant::now());
        if let Some(digest) = &spec.named_by {
            let shown = access.claim(&shown_by(&spec.url, digest), std::iter::empty());
            access.accept(shown, Instant::now());
        }
        drop(access);
        if self.engine.is_anonymous(spec)
            && let Err(error) = task.mark(Mark::Public)
        {
            debug!(task_id = %task.id(), %error, "task not marked as public");
        }
    }

    /// Whether the origin has shown lately that it has what this digest names.
    fn is_shown(&self, url: &Url, digest: &Digest) -> bool {
        let access = self.access.lock();
        let shown = access.claim(&shown_by(url.as_str(), digest), std::iter::empty());
        access.is_remembered(shown, Instant::now())
    }

    /// Lets the origin show that it has the content that its digest names: some bytes that only who has it can know. Anybody can set up a
    /// registry that says yes to every digest, and may know a part of the content: so the place is not the client's to choose.
    async fn shows(
        &self,
        spec: &DownloadSpec,
        task: &Task,
        portions: &mut Portions,
    ) -> Result<Shown, DownloadError> {
        let start = portions.reader().wanted().start;
        let Some(run) = portions.ready().await? else {
            return Ok(Shown::Whole);
        };
        let content_length = task.geometry().content_length();
        let with_ranges = match &spec.probe {
            Probe::Known(facts) => facts.ranges != source::RangeSupport::No,
            _ => true,
        };
        // Without ranges all before it would have to be read, too.
        let within = |length: u64| match with_ranges {
            true => length,
            false => length.min(SHOW_WITHIN),
        };
        let file = task.content_file();
        let from_file = |buffer: &mut [u8], at: u64| file.read_exact_at(buffer, at);
        let shown = match spec.range {
            None => Shown::Whole,
            Some(_) if task.is_complete()? => Shown::Whole,
            Some(part) if part.length <= SHOWN_PART_MAX => Shown::Part,
            Some(_) => return Ok(Shown::Nothing),
        };
        let is_complete = task.is_complete()?;
        let sample = || match &run {
            _ if is_complete => telling(0, within(content_length), content_length, from_file),
            Run::Express(bytes) => {
                telling(start, bytes.len() as u64, content_length, |buffer, at| {
                    let at = usize::try_from(at - start).unwrap_or(usize::MAX);
                    let part = bytes.get(at..at + buffer.len()).unwrap_or_default();
                    buffer[..part.len()].copy_from_slice(part);
                    Ok(())
                })
            }
            Run::Stored { offset, length, .. } => {
                telling(*offset, within(*length), content_length, from_file)
            }
        };
        let mut samples = Vec::new();
        for _ in 0..SHOW_TIMES {
            let sample = sample().map_err(|error| {
                DownloadError::Invalid(format!("what has come cannot be read: {error}"))
            })?;
            match sample {
                Some(sample) => samples.push(sample),
                None => return Ok(Shown::Nothing),
            }
        }
        let asking = samples
            .iter()
            .map(|(offset, bytes)| self.engine.gives(spec, *offset, bytes));
        let asked = tokio::time::timeout(SHOW_MAX, futures::future::try_join_all(asking));
        let gives = match asked.await {
            Ok(gives) => gives?.into_iter().all(|gives| gives),
            Err(_) => false,
        };
        // The rest may have come meanwhile, and be found wrong: an error as long as it can be said.
        portions.ready().await?;
        Ok(if gives { shown } else { Shown::Nothing })
    }

    fn claims_to(&self, request: &P2pRequest, spec: &DownloadSpec) -> [Claim; 2] {
        let what = format!("{} {}", bare(&request.url), spec.task_id);
        self.claims(&what, request, &spec.wire.filtered_query_params)
    }

    /// What this client claims, and what everybody could: that the content is given without credentials.
    fn claims(&self, what: &str, request: &P2pRequest, filtered: &[String]) -> [Claim; 2] {
        let access = self.access.lock();
        let mut shown: Vec<(&str, &[u8])> = request
            .headers
            .iter()
            .filter(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                source::is_secret_header(name.as_str())
                    && !public::is_anonymous_token(name.as_str(), &value)
            })
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        shown.sort_unstable();
        if public::is_signed(&request.url) || public::is_filtered(&request.url, filtered) {
            shown.push(("url", request.url.as_str().as_bytes()));
        }
        [
            access.claim(what, shown.into_iter()),
            access.claim(what, std::iter::empty()),
        ]
    }

    fn accepted(&self, authority: &str, claim: Claim) {
        let mut access = self.access.lock();
        access.accept(claim, Instant::now());
        access.is_back(authority);
    }

    fn may(&self, admission: &Admission, task: &Task) -> bool {
        matches!(admission, Admission::Yes) || is_public(task, Duration::MAX)
    }

    fn add_own_headers<B>(&self, response: &mut Response<B>, spec: &DownloadSpec, task: &Task) {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(spec.task_id.as_str()) {
            headers.insert("x-dragonfly-task-id", id);
        }
        if let Ok(ip) = HeaderValue::from_str(&self.identity.ip.to_string()) {
            headers.insert("x-dragonfly-server-ip", ip);
        }
        if task.is_complete().unwrap_or(false) {
            let finished = HeaderValue::from_static("true");
            headers.insert("x-dragonfly-task-download-finished", finished);
        }
    }
}

/// One download for a client, as it is counted. Held until the last byte.
struct Exchange {
    metrics: Arc<Metrics>,
    labels: TaskLabels,
    kind: protocol::TaskKind,
    task_id: protocol::TaskId,
    began: Instant,
    _in_progress: InProgress,
}

impl Exchange {
    fn begin(metrics: &Arc<Metrics>, spec: &DownloadSpec) -> Self {
        let labels = metrics.task_labels(
            spec.kind,
            spec.tag.as_deref(),
            spec.application.as_deref(),
            spec.priority,
        );
        Self {
            _in_progress: metrics.download_begins(&labels),
            metrics: metrics.clone(),
            kind: spec.kind,
            task_id: spec.task_id.clone(),
            began: Instant::now(),
            labels,
        }
    }

    fn failed(&self) {
        self.metrics.download_failed(&self.labels);
    }

    /// The body of the answer; an error in it breaks the connection.
    fn body(self, portions: Portions) -> ProxyBody {
        let stream =
            futures::stream::try_unfold((portions, self), |(mut portions, exchange)| async move {
                match portions.next().await {
                    Ok(Some(bytes)) => Ok(Some((bytes, (portions, exchange)))),
                    Ok(None) => {
                        let bytes = portions.reader().wanted().length;
                        let took = exchange.began.elapsed();
                        exchange.metrics.download_took(exchange.kind, bytes, took);
                        Ok(None)
                    }
                    Err(error) => {
                        exchange.failed();
                        warn!(task_id = %exchange.task_id, %error, "answer broken off");
                        Err(error)
                    }
                }
            });
        ProxyBody::from_stream(stream)
    }
}

/// All of a short content.
async fn collect(portions: &mut Portions) -> Result<Bytes, DownloadError> {
    let length = portions.reader().wanted().length;
    if length > MANIFEST_LEN_MAX {
        return Err(DownloadError::Invalid(format!(
            "a manifest of {length} bytes is longer than any: {MANIFEST_LEN_MAX} are the limit"
        )));
    }
    let mut bytes = BytesMut::new();
    while let Some(portion) = portions.next().await? {
        bytes.extend_from_slice(&portion);
    }
    Ok(bytes.freeze())
}

fn facts(task: &Task, spec: &DownloadSpec) -> answer::Facts {
    let description = task.description();
    answer::Facts {
        length: description.geometry.content_length(),
        header: description.response_header.clone(),
        etag: description.etag.clone(),
        last_modified: description.last_modified.clone(),
        named_by: spec.named_by.clone(),
    }
}

/// Whether what the origin gives this client is what is held here, as far as it says.
fn is_given(task: &Task, spec: &DownloadSpec, facts: &source::Facts) -> bool {
    let held = stored_version(task);
    if spec.named_by.is_some() {
        let length = facts.content_length;
        return length.is_none_or(|length| Some(length) == held.content_length);
    }
    let told = &facts.version;
    let names_version = told.etag.is_some() || told.last_modified.is_some();
    held.difference(told).is_none() && (names_version || !depends_on_client(&facts.header))
}

/// Whether the origin has told another version by all that is known of both. Servers behind one name often disagree about the ETags, or
/// the times, of one and the same content.
fn is_replaced(task: &Task, told: &Probe) -> bool {
    let Probe::Known(facts) = told else {
        return false;
    };
    let (held, told) = (stored_version(task), &facts.version);
    let differ = |held: &Option<String>, told: &Option<String>| match (held, told) {
        (Some(held), Some(told)) => Some(held != told),
        _ => None,
    };
    let lengths = held.content_length.zip(facts.content_length);
    let known = [
        differ(&held.etag, &told.etag),
        differ(&held.last_modified, &told.last_modified),
    ];
    let mut known = known.into_iter().flatten().peekable();
    lengths.is_some_and(|(held, told)| held != told)
        || known.peek().is_some() && known.all(|differ| differ)
}

/// Whether what is held here was one of several answers.
fn varies(task: &Task) -> bool {
    let header = &task.description().response_header;
    let vary = header.get("vary").map_or("", String::as_str);
    vary.split(',')
        .map(str::trim)
        .any(|name| !name.is_empty() && !name.eq_ignore_ascii_case("accept-encoding"))
}

/// Whether the answer is meant for this client, by RFC 9111 (sections 3.5, 4.1 and 5.2.2).
fn depends_on_client(header: &std::collections::HashMap<String, String>) -> bool {
    let lists = |name: &str, words: &[&str]| {
        let list = header.get(name).map_or("", String::as_str);
        list.split([',', '='])
            .map(str::trim)
            .any(|word| words.iter().any(|it| word.eq_ignore_ascii_case(it)))
    };
    lists("cache-control", &["private", "no-store"])
        || lists("vary", &["*", "authorization", "cookie"])
}

/// What an origin claims when it says that it has what a digest names.
fn shown_by(url: &str, digest: &Digest) -> String {
    let authority = Url::parse(url).map(|url| authority(&url));
    format!("{} has {digest}", authority.unwrap_or_default())
}

/// Of several places in `length` bytes from `start` on, the one whose bytes are hardest to guess, with these bytes; nothing if these are
/// too few, or too much alike, to tell of a content of this length.
fn telling(
    start: u64,
    length: u64,
    content_length: u64,
    read: impl Fn(&mut [u8], u64) -> std::io::Result<()>,
) -> std::io::Result<Option<(u64, Vec<u8>)>> {
    if length < content_length.min(SHOW_FROM) {
        return Ok(None);
    }
    let take = length.min(SHOW_LEN);
    let mut best = (0, start, Vec::new());
    for _ in 0..SHOW_PLACES {
        let at = start + fastrand::u64(0..=length - take);
        let mut bytes = vec![0; usize::try_from(take).unwrap_or_default()];
        read(&mut bytes, at)?;
        let mut different = bytes.clone();
        different.sort_unstable();
        different.dedup();
        if different.len() > best.0 {
            best = (different.len(), at, bytes);
        }
    }
    let (different, at, bytes) = best;
    let tells = different >= SHOW_DIFFERENT || take == content_length;
    Ok(tells.then_some((at, bytes)))
}

/// Whether the origin gave it to anybody within this time.
fn is_public(task: &Task, within: Duration) -> bool {
    let since = task.summary().times.public_at;
    since.is_some_and(|at| {
        let age = SystemTime::now().duration_since(at).unwrap_or_default();
        age < within
    })
}

/// The URL without what does not name the content at its origin.
fn bare(url: &Url) -> &str {
    &url[..url::Position::AfterPath]
}

fn authority(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or(0);
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

/// What the client accepts, header by header.
fn accepts(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
}
