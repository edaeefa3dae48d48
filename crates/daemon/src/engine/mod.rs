//! The download engine: from a URL to whole pieces in the store.
//!
//! One [`session`] runs per task, however many callers wait for it. It asks the scheduler for parents, keeps
//! [`crate::link`]s with hosts of this project and SyncPieces streams with Dragonfly v2 hosts, lets the pure
//! [`swarm::Picker`] choose what to ask of whom, moves the bytes through `transfer`, and reads the origin when the
//! scheduler (or the lack of one) says so. Callers hold a [`Download`]: they watch the store, so a slow caller never
//! slows the session down.
//!
//! What it does not do: output files, RPC messages (see `rpc`), choosing the scheduler.

mod at_once;
pub mod conversation;
mod convert;
pub mod error;
mod express;
pub mod fetch;
mod held;
pub mod origin;
pub mod parents;
mod pieces;
mod prefetch;
pub mod public;
mod reader;
pub mod session;
mod spec;
mod sync_pieces;
mod unmeasured;
mod verify;
mod waiting;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::{Bitmap, ByteRange, Geometry, PieceSpan, SegmentIndex, TaskId};
use source::{Facts, Get, RangeSupport, Version};
use storage::{CreateError, Mark, NewTask, Task};
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub use error::DownloadError;
pub use reader::{Reader, Run};
pub use spec::{DownloadSpec, Limits, Probe};
pub use waiting::{Download, PieceDone, Started};

use crate::identity::Identity;
use crate::link::Hub;
use crate::metrics::Metrics;
use crate::schedulers::Schedulers;
use express::Express;
use origin::OriginReader;
use session::{Event, Session, SessionHandle, Want};
use unmeasured::Spooled;

/// How long a caller waits before it tries again to join a session whose queue is full.
const JOIN_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// What the engine is made of; see [`Engine::new`].
pub struct EngineParts {
    /// Who this daemon is.
    pub identity: Arc<Identity>,
    /// Where pieces live.
    pub store: storage::Store,
    /// The origins, by scheme.
    pub sources: Arc<source::Sources>,
    /// The schedulers, by task.
    pub schedulers: Arc<Schedulers>,
    /// Fetches pieces from parents.
    pub client: transfer::Client,
    /// Numbers from the configuration.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Downloads tasks; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) parts: EngineParts,
    pub(crate) hub: Arc<Hub>,
    sessions: Mutex<HashMap<TaskId, SessionHandle>>,
    /// One probe per task at a time, however many callers come at once.
    probes: Mutex<HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
    verifications: verify::Verifications,
    /// The store creates one task after the other: whoever waits for that must not hold a thread.
    creating: Arc<tokio::sync::Mutex<()>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

impl Inner {
    pub(crate) fn session_ended(&self, task_id: &TaskId, peer: &tokio::sync::mpsc::Sender<Event>) {
        let mut sessions = self.sessions.lock();
        if sessions
            .get(task_id)
            .is_some_and(|session| session.events.same_channel(peer))
        {
            sessions.remove(task_id);
        }
    }
}

impl Engine {
    /// An engine of these parts, whose links are kept by `hub`.
    pub fn new(parts: EngineParts, hub: Arc<Hub>, cancel: CancellationToken) -> Self {
        let inner = Inner {
            parts,
            hub,
            sessions: Mutex::default(),
            probes: Mutex::default(),
            verifications: verify::Verifications::default(),
            creating: Arc::default(),
            tasks: TaskTracker::new(),
            cancel,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The store that pieces go to.
    pub fn store(&self) -> &storage::Store {
        &self.inner.parts.store
    }

    /// The origins.
    pub fn sources(&self) -> &source::Sources {
        &self.inner.parts.sources
    }

    /// Whether an origin that gives this content gives it to anybody.
    pub fn is_anonymous(&self, spec: &DownloadSpec) -> bool {
        self.inner.parts.limits.origins_know_nobody && public::is_anonymous(spec)
    }

    /// Forgets what is here of a content that its origin no longer has, unless somebody uses it. Says whether it is gone.
    pub async fn forget(&self, task_id: &TaskId) -> bool {
        let (store, id) = (self.inner.parts.store.clone(), task_id.clone());
        let forgotten = tokio::task::spawn_blocking(move || store.delete_unused(&id)).await;
        match forgotten {
            Ok(Ok(gone)) => gone,
            Ok(Err(error)) => {
                warn!(%task_id, %error, "task of an earlier version not deleted");
                false
            }
            Err(_) => false,
        }
    }

    /// Whether the origin of `spec` has these bytes of the content, read in the name of its caller. One without ranges is read from the
    /// beginning as far as it is needed.
    ///
    /// # Errors
    /// The origin's refusal, or why it was not reached.
    pub async fn gives(
        &self,
        spec: &DownloadSpec,
        start: u64,
        bytes: &[u8],
    ) -> Result<bool, source::SourceError> {
        let parts = &self.inner.parts;
        let request = origin::request(spec)?.with_deadline(parts.limits.piece_timeout);
        let range = ByteRange {
            start,
            length: bytes.len() as u64,
        };
        let got = parts.sources.get(&request, Get::range(range)).await;
        let (mut body, mut ahead) = match got {
            Ok(content) => (content.body, 0),
            Err(source::SourceError::RangesUnsupported { .. }) => {
                let content = parts.sources.get(&request, Get::whole()).await?;
                (content.body, start)
            }
            Err(error) => return Err(error),
        };
        let mut rest = bytes;
        while !rest.is_empty()
            && let Some(chunk) = body.next().await
        {
            let chunk = chunk?;
            let passed = ahead.min(chunk.len() as u64);
            ahead -= passed;
            let chunk = &chunk[usize::try_from(passed).unwrap_or(chunk.len())..];
            let common = chunk.len().min(rest.len());
            if chunk[..common] != rest[..common] {
                return Ok(false);
            }
            rest = &rest[common..];
        }
        Ok(rest.is_empty())
    }

    /// How many tasks are in progress.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.lock().len()
    }

    /// Whether this task is in progress.
    pub fn is_in_progress(&self, task_id: &TaskId) -> bool {
        self.inner.sessions.lock().contains_key(task_id)
    }

    /// Ends all sessions and waits until they have told their schedulers; bounded by their own limits.
    pub async fn close(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Begins a download, or joins the one that runs already. Returns as soon as the lengths are known.
    ///
    /// Cancel-safe: a dropped call leaves at most a task record without pieces.
    ///
    /// # Errors
    /// [`DownloadError`]; the origin's refusal, a full disk and a range that does not fit are found here.
    pub async fn download(&self, spec: DownloadSpec) -> Result<Download, DownloadError> {
        let known = self.know(&spec).await?;
        self.begin(known, spec).await
    }

    /// Learns what the content is, without fetching any of it: the first half of [`Engine::download`], for those who decide by
    /// length or version what they want of it.
    ///
    /// # Errors
    /// [`DownloadError`]; the origin's refusal and a full disk are found here.
    pub async fn know(&self, spec: &DownloadSpec) -> Result<Known, DownloadError> {
        if self.inner.cancel.is_cancelled() {
            return Err(DownloadError::Stopping);
        }
        self.task(spec).await
    }

    /// The second half of [`Engine::download`]: begins to fetch what `spec` asks for.
    ///
    /// # Errors
    /// [`DownloadError`]; a range that does not fit is found here.
    pub async fn begin(
        &self,
        known: Known,
        mut spec: DownloadSpec,
    ) -> Result<Download, DownloadError> {
        let inner = &self.inner;
        let Known {
            task,
            facts,
            is_fresh,
            ..
        } = known;
        let geometry = *task.geometry();
        let range = resolve_range(&spec, &geometry)?;
        spec.range = range;
        let spans = wanted_spans(&geometry, range)?;
        let mut wanted = Bitmap::new(geometry.piece_count());
        for span in &spans {
            wanted.set(span.number.0);
        }
        let local = verified(&task, &wanted).await?;
        let is_finished = wanted.ones().all(|piece| local.get(piece));
        // What came a moment ago, for this caller, was not here before.
        let local = if is_fresh {
            Bitmap::new(geometry.piece_count())
        } else {
            local
        };
        let whole = range.is_none_or(|range| range.length == geometry.content_length());
        if spec.digest.is_none() {
            // A model hub tells what a large file hashes to: the bytes are held to it.
            spec.digest = facts.as_ref().and_then(|facts| facts.digest.clone());
        }
        let checks = match whole {
            true => self.checks(&spec, &task)?,
            false => Vec::new(),
        };
        let express = match range {
            Some(part) if spec.in_order && !is_finished => Express::start(inner, &task, part),
            _ => None,
        };
        let want = Want {
            reader: (spec.in_order && express.is_none())
                .then(|| first_segment(&geometry, range))
                .flatten(),
            ahead: spec.is_prefetch,
            express: express.is_some(),
            named_by: spec.named_by.clone().filter(|_| whole),
            pieces: wanted.clone(),
        };
        let session = if is_finished {
            if spec.announce_if_held {
                held::announce(inner, &spec, &geometry);
            }
            None
        } else {
            let origin = facts.map_or_else(|| stored_origin(&task), OriginReader::idle);
            task.mark(Mark::Started)?;
            Some(self.join(spec, &task, &want, origin).await?)
        };
        let peer_id = match &session {
            Some(session) => session.peer_id.clone(),
            None => inner.parts.identity.new_peer_id(),
        };
        let description = task.description();
        let started = Started {
            content_length: geometry.content_length(),
            piece_length: geometry.piece_length(),
            range,
            response_header: description.response_header.clone().into_iter().collect(),
            pieces: spans,
            is_finished,
            peer_id,
            task,
        };
        let mut download = Download::new(started, wanted, local, session, checks);
        download.express = express;
        Ok(download)
    }

    /// The digests that the whole content must have, as this caller sees it.
    fn checks(
        &self,
        spec: &DownloadSpec,
        task: &Task,
    ) -> Result<Vec<verify::Verification>, DownloadError> {
        let (named, stated) = (&spec.named_by, &spec.digest);
        if let (Some(named), Some(stated)) = (named, stated)
            && named.algorithm() == stated.algorithm()
            && named != stated
        {
            return Err(DownloadError::Invalid(format!(
                "the content is named by {named}, but the request says that its digest is {stated}: correct one of them"
            )));
        }
        let stated = stated
            .as_ref()
            .filter(|stated| Some(*stated) != named.as_ref());
        let digests = named.iter().chain(stated);
        Ok(digests
            .map(|digest| verify::verify(&self.inner, task, digest))
            .collect())
    }

    /// The task in the store, created after asking the origin when it is not there yet.
    async fn task(&self, spec: &DownloadSpec) -> Result<Known, DownloadError> {
        let inner = &self.inner;
        if let Some(task) = inner.parts.store.task(&spec.task_id)? {
            return Ok(Known::stored(task));
        }
        let gate = {
            let mut probes = inner.probes.lock();
            probes.entry(spec.task_id.clone()).or_default().clone()
        };
        let turn = gate.lock().await;
        let found = match inner.parts.store.task(&spec.task_id)? {
            Some(task) => Ok(Known::stored(task)),
            None => self.probe(spec).await,
        };
        drop(turn);
        let mut probes = inner.probes.lock();
        if Arc::strong_count(&gate) <= 2 {
            probes.remove(&spec.task_id);
        }
        found
    }

    async fn probe(&self, spec: &DownloadSpec) -> Result<Known, DownloadError> {
        let inner = &self.inner;
        let learnt = self.learn(spec).await?;
        let content_length = learnt.content_length;
        let geometry = match spec.piece_length {
            Some(piece_length) => Geometry::new(content_length, piece_length)
                .map_err(|error| DownloadError::Invalid(error.to_string())),
            // Nobody chose pieces that are too short.
            None => Geometry::standard(content_length)
                .map_err(|_| DownloadError::TooLong { content_length }),
        }?;
        let is_fresh = learnt.content.is_some() || learnt.spooled.is_some();
        let task = self
            .create(spec, geometry, learnt.facts.as_ref(), learnt.content)
            .await?;
        // That an origin knows of a digest proves nothing: what it names is public where its bytes came from, not wherever somebody
        // says so.
        if learnt.facts.is_some() && spec.named_by.is_none() && self.is_anonymous(spec) {
            task.mark(Mark::Public)?;
        }
        if let Some(spooled) = learnt.spooled {
            let (filled, id) = (task.clone(), task.id().clone());
            let stored = tokio::task::spawn_blocking(move || spooled.store(&filled)).await;
            stored
                .map_err(|error| error.to_string())
                .and_then(|stored| stored)
                .map_err(|error| {
                    DownloadError::Invalid(format!("task {id} cannot be stored: {error}"))
                })?;
            task.note_origin_use("the origin does not say how long the content is")?;
            held::announce(inner, spec, &geometry);
        }
        Ok(Known {
            task,
            told_by: match learnt.facts {
                Some(_) => ToldBy::Origin,
                None => ToldBy::Swarm,
            },
            facts: learnt.facts,
            is_fresh,
        })
    }

    /// How long the content is, from whoever may be asked.
    async fn learn(&self, spec: &DownloadSpec) -> Result<Learnt, DownloadError> {
        let inner = &self.inner;
        let in_swarm = async || {
            let length = unmeasured::length_in_swarm(inner, &spec.task_id).await?;
            Some(Learnt::of(length, None))
        };
        let facts = match &spec.probe {
            Probe::Known(facts) => Facts::clone(facts),
            Probe::Swarm => {
                return in_swarm().await.ok_or_else(|| DownloadError::NoParents {
                    task_id: spec.task_id.clone(),
                    reason: "the origin is away, and no peer knows the content".to_owned(),
                });
            }
            Probe::Measure | Probe::Ask => {
                // What a digest names is the same wherever it is: the origin needs not be asked.
                if spec.named_by.is_some()
                    && let Some(learnt) = in_swarm().await
                {
                    return Ok(learnt);
                }
                if let Some(expected) = spec.expected_length
                    && at_once::is_for(spec, expected)
                    && let Ok(read) = at_once::read(inner, spec, expected, None).await
                    && let Some(length) = read.facts.content_length
                {
                    return Ok(Learnt::of(length, Some(read.facts)).with(read.content));
                }
                match self.stat(spec).await {
                    Ok(facts) => facts,
                    Err(error) if is_away(&error) => {
                        return in_swarm().await.ok_or(error.into());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if let Some(length) = facts.content_length {
            let content = if at_once::is_for(spec, length) {
                let read = at_once::read(inner, spec, length, Some(&facts)).await;
                read.ok().and_then(|read| read.content)
            } else {
                None
            };
            return Ok(Learnt::of(length, Some(facts)).with(content));
        }
        if let Some(mut learnt) = in_swarm().await {
            learnt.facts = Some(facts);
            return Ok(learnt);
        }
        if spec.disable_back_to_source {
            return Err(DownloadError::NoParents {
                task_id: spec.task_id.clone(),
                reason: "the origin does not say how long the content is, and no peer knows"
                    .to_owned(),
            });
        }
        if !matches!(spec.probe, Probe::Measure) {
            return Err(DownloadError::Unmeasured);
        }
        let room = inner
            .parts
            .store
            .usage()
            .map_or(u64::MAX, |usage| usage.available);
        let spooled = Spooled::read(inner, &origin::request(spec)?, room).await?;
        let mut learnt = Learnt::of(spooled.length(), Some(facts));
        learnt.spooled = Some(spooled);
        Ok(learnt)
    }

    /// Asks the origin about the content, in the name of the caller.
    ///
    /// # Errors
    /// The origin's refusal, or why it was not reached.
    pub async fn stat(&self, spec: &DownloadSpec) -> Result<Facts, source::SourceError> {
        let parts = &self.inner.parts;
        let request = origin::request(spec)?.with_deadline(parts.limits.piece_timeout);
        let scheme = request.url.scheme().to_owned();
        let asked = std::time::Instant::now();
        let answer = parts.sources.stat(&request).await;
        parts
            .metrics
            .origin_asked(&scheme, "HEAD", answer.is_err(), asked.elapsed());
        answer
    }

    /// Creates the task in the store, evicting others when there is no room.
    async fn create(
        &self,
        spec: &DownloadSpec,
        geometry: Geometry,
        facts: Option<&Facts>,
        content: Option<at_once::Read>,
    ) -> Result<Task, DownloadError> {
        let store = &self.inner.parts.store;
        let mut new = NewTask::new(spec.task_id.clone(), spec.kind, spec.url.clone(), geometry);
        if let Some(facts) = facts {
            new.response_header = facts.header.clone().into_iter().collect();
            // A server proves it by its answer to the probe more often than it says so; a later session has only what is stored.
            let told = |name: &String| name.eq_ignore_ascii_case("accept-ranges");
            if facts.ranges == RangeSupport::Yes && !new.response_header.keys().any(told) {
                let (name, value) = ("accept-ranges".to_owned(), "bytes".to_owned());
                new.response_header.insert(name, value);
            }
            // What a digest names has no versions, whatever the servers that have it call theirs.
            if spec.named_by.is_none() {
                new.etag.clone_from(&facts.version.etag);
                new.last_modified.clone_from(&facts.version.last_modified);
            }
        }
        let inner = self.inner.clone();
        let turn = inner.creating.clone().lock_owned().await;
        let created = tokio::task::spawn_blocking(move || {
            let created = inner.parts.store.create_task(new);
            drop(turn);
            if let (Ok(admitted), Some(content)) = (&created, content) {
                content.store(&inner, &admitted.task);
            }
            created
        })
        .await;
        match created.map_err(|error| DownloadError::Invalid(error.to_string()))? {
            Ok(admitted) => {
                for evicted in &admitted.evicted {
                    tracing::info!(?evicted, "evicted to make room");
                }
                Ok(admitted.task)
            }
            Err(CreateError::Exists { task }) => store.task(&task)?.ok_or_else(|| {
                DownloadError::Invalid(format!(
                    "task {task} was deleted at the same moment: start the download again"
                ))
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Joins the session of the task, or starts one.
    async fn join(
        &self,
        spec: DownloadSpec,
        task: &Task,
        want: &Want,
        origin: OriginReader,
    ) -> Result<SessionHandle, DownloadError> {
        let inner = &self.inner;
        loop {
            {
                let mut sessions = inner.sessions.lock();
                let running = sessions
                    .get(task.id())
                    .filter(|session| session.outcome.borrow().is_none());
                let joined =
                    running.map(|session| session.events.try_send(Event::Want(want.clone())));
                match joined {
                    Some(Ok(())) => return Ok(sessions[task.id()].clone()),
                    // It is busy hearing others.
                    Some(Err(TrySendError::Full(_))) => {}
                    Some(Err(TrySendError::Closed(_))) | None => {
                        let count = sessions.len();
                        if count >= inner.parts.limits.sessions_max {
                            return Err(DownloadError::Busy { count });
                        }
                        let session =
                            Session::start(inner, spec, task.clone(), want.clone(), origin)?;
                        sessions.insert(task.id().clone(), session.clone());
                        return Ok(session);
                    }
                }
            }
            tokio::time::sleep(JOIN_PAUSE).await;
        }
    }
}

/// A content that is known here, of which perhaps nothing is held yet.
#[derive(Debug)]
pub struct Known {
    /// The task in the store.
    pub task: Task,
    /// Who told how long it is.
    pub told_by: ToldBy,
    /// What the origin has just told, if it was asked for this.
    facts: Option<Facts>,
    /// Its content came with that.
    is_fresh: bool,
}

/// Who told of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToldBy {
    /// Its task was here already.
    Store,
    /// The origin, asked for this caller.
    Origin,
    /// The swarm alone.
    Swarm,
}

impl Known {
    fn stored(task: Task) -> Self {
        Self {
            task,
            told_by: ToldBy::Store,
            facts: None,
            is_fresh: false,
        }
    }
}

/// What has to be known before a task can be created.
struct Learnt {
    content_length: u64,
    /// Absent when only the swarm was asked.
    facts: Option<Facts>,
    spooled: Option<Spooled>,
    /// All of it, if it is small.
    content: Option<at_once::Read>,
}

impl Learnt {
    fn of(content_length: u64, facts: Option<Facts>) -> Self {
        Self {
            content_length,
            facts,
            spooled: None,
            content: None,
        }
    }

    fn with(mut self, content: Option<at_once::Read>) -> Self {
        self.content = content;
        self
    }
}

/// Whether the origin is out of reach or out of order, rather than refusing.
pub(crate) fn is_away(error: &source::SourceError) -> bool {
    error.retry() != source::Retry::Never || matches!(error, source::SourceError::Deadline { .. })
}

/// The version of the content of a task, as its origin told it when the task was created.
pub(crate) fn stored_version(task: &Task) -> Version {
    let description = task.description();
    let mut version = Version::default();
    version.content_length = Some(description.geometry.content_length());
    version.etag.clone_from(&description.etag);
    version.last_modified.clone_from(&description.last_modified);
    version
}

/// What the origin was when the task was created.
fn stored_origin(task: &Task) -> OriginReader {
    let description = task.description();
    let header = |name: &str| {
        let found = description
            .response_header
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    let ranges = match header("accept-ranges") {
        Some("bytes") => RangeSupport::Yes,
        _ => RangeSupport::Unknown,
    };
    OriginReader::stored(stored_version(task), ranges)
}

fn resolve_range(
    spec: &DownloadSpec,
    geometry: &Geometry,
) -> Result<Option<ByteRange>, DownloadError> {
    let content_length = geometry.content_length();
    let refused = |range: String| DownloadError::Range {
        range,
        content_length,
    };
    if let Some(range) = spec.range {
        let text = range.header();
        return range
            .clip(content_length)
            .map(Some)
            .map_err(|_| refused(text));
    }
    let Some(header) = &spec.range_header else {
        return Ok(None);
    };
    ByteRange::parse_header(header, content_length)
        .map(Some)
        .map_err(|_| refused(header.clone()))
}

/// Where a caller that reads in order begins.
fn first_segment(geometry: &Geometry, range: Option<ByteRange>) -> Option<SegmentIndex> {
    let start = range.map_or(0, |range| range.start);
    let span = geometry.piece(geometry.piece_at(start)?)?;
    geometry.segment_at(span.number, start - span.offset)
}

fn wanted_spans(
    geometry: &Geometry,
    range: Option<ByteRange>,
) -> Result<Vec<PieceSpan>, DownloadError> {
    Ok(match range {
        None => geometry.pieces().collect(),
        Some(range) => geometry
            .pieces_of(range)
            .map_err(|error| DownloadError::Invalid(error.to_string()))?
            .collect(),
    })
}

/// The held pieces, after verifying the wanted ones that were recorded before a restart.
async fn verified(task: &Task, wanted: &Bitmap) -> Result<Bitmap, DownloadError> {
    let held = task.held()?;
    let recorded = task.recorded()?;
    let doubtful: Vec<u32> = wanted
        .ones()
        .filter(|&piece| recorded.get(piece) && !held.get(piece))
        .collect();
    if doubtful.is_empty() {
        return Ok(held);
    }
    let checked = task.clone();
    let verifying = tokio::task::spawn_blocking(move || {
        for piece in doubtful {
            if let Err(error) = checked.verify(protocol::PieceNumber(piece)) {
                warn!(task_id = %checked.id(), piece, %error, "piece not verified");
            }
        }
    });
    verifying
        .await
        .map_err(|error| DownloadError::Invalid(error.to_string()))?;
    Ok(task.held()?)
}
