//! One task being downloaded by this host, for however many callers.
//!
//! An actor: everything that happens (scheduler, links, fetches, origin, callers) arrives as an [`Event`] on one
//! bounded queue; the pure [`swarm::Picker`] decides what to ask of whom; the session carries it out and sleeps until the
//! next event or deadline. It never waits for any single party. The ladder when something is missing: another
//! neighbour, then the scheduler, then the origin, then an error that says what was tried.

mod hear;
mod ladder;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Peer;
use protocol::{Bitmap, Crc32, Digest, PeerId, PieceNumber, SegmentIndex, TrafficType};
use storage::PieceRecord;
use swarm::{
    NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, RequestId, Shown, Suspicion,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::conversation::{Conversation, Ending, SchedulerEvent, Speaker};
use super::express::Lull;
use super::fetch::{Fetch, FetchParts, Fetched};
use super::origin::{OriginEvent, OriginReader, Reach, Wishes};
use super::parents::{Doubt, Parents, V2Event, V2News, sync_request};
use super::pieces::{NoWriter, Pieces, Settled, Trust};
use super::verify::{self, Verification};
use super::{DownloadError, DownloadSpec, Inner, convert, public};
use crate::link::{Link, LinkEvent, LinkNews, TaskLinks};

/// Events that may wait; whoever brings one waits when it is full.
const EVENTS_LEN: usize = 512;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);
/// A registration that is not answered by then is as good as no scheduler.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Without a byte for so long, a parent that does not deliver is told to the scheduler.
const SILENCE: Duration = Duration::from_millis(900);
/// A download tells its neighbours this often that it goes on, and a reader of the origin a scheduler of this project: a slow origin
/// sends in bursts, and to be taken for frozen between two of them would bring a second reader. Three times in [`SILENCE`].
const HEARTBEAT: Duration = Duration::from_millis(300);
/// Without a byte for longer than this nothing is said any more. The source itself gives an origin up after 15 s.
const PAUSE_MAX: Duration = Duration::from_secs(12);
/// Requests for other parents are not sent more often than this.
const RESCHEDULE_MIN: Duration = Duration::from_millis(500);
/// Without a byte from anywhere for this long the origin is asked, scheduler or not.
const STARVED_MAX: Duration = Duration::from_secs(10);
/// Without a byte from anywhere for this long, and no origin to ask, the download fails.
const HOPELESS_MAX: Duration = Duration::from_secs(60);
/// A piece that has all of its bytes may wait this long for its digest before others are asked.
const DIGEST_MAX: Duration = Duration::from_millis(1500);
/// Pieces from the origin in a row that the store may refuse before the download fails.
const WRITES_FAILED_MAX: u32 = 3;
/// How long a session without callers goes on.
const GRACE: Duration = Duration::from_secs(10);

/// Everything that a session hears.
#[derive(Debug)]
pub enum Event {
    /// A caller wants these pieces too.
    Want(Want),
    /// Somebody who reads in order waits for this segment; nobody any more if there is none.
    ReaderAt(Option<SegmentIndex>),
    /// From the scheduler.
    Scheduler(SchedulerEvent),
    /// From or about a host of this project.
    Link(LinkEvent),
    /// From a v2 parent.
    V2(V2Event),
    /// A fetch from a parent ended.
    Fetched(Fetched),
    /// From the origin.
    Origin(OriginEvent),
}

/// What a caller wants of a session.
#[derive(Debug, Clone)]
pub struct Want {
    pub(super) pieces: Bitmap,
    /// Where a caller that reads in order begins.
    pub(super) reader: Option<SegmentIndex>,
    /// Fetched ahead of need: it may wait, and is read from the origin with a bandwidth limit of its own.
    pub(super) ahead: bool,
    /// The caller gets the bytes past the pieces, which may wait while others do.
    pub(super) express: bool,
    /// The digest that names the content, of a caller that wants all of it.
    pub(super) named_by: Option<Digest>,
}

/// How a session ended; `None` while it runs.
pub(super) type Outcome = Option<Result<(), DownloadError>>;

/// What the engine keeps of a running session.
#[derive(Clone)]
pub(super) struct SessionHandle {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) outcome: watch::Receiver<Outcome>,
    /// One clone per caller; the session counts them.
    pub(super) interest: Arc<()>,
    pub(super) peer_id: PeerId,
}

/// Where the conversation with the scheduler stands.
enum Scheduling {
    /// Not asked: small content, or no scheduler.
    None,
    /// Registered, no answer yet.
    Asked(Conversation, Instant),
    /// It has answered.
    Talking {
        conversation: Conversation,
        mesh: bool,
        answers: u32,
        rescheduled_at: Option<Instant>,
    },
}

/// The actor. See the module.
pub(super) struct Session {
    engine: Arc<Inner>,
    spec: DownloadSpec,
    task: storage::Task,
    links: Arc<TaskLinks>,
    peer_id: PeerId,
    epoch: Instant,
    events: mpsc::Receiver<Event>,
    events_tx: mpsc::Sender<Event>,
    outcome: watch::Sender<Outcome>,
    interest: std::sync::Weak<()>,
    callers_gone_at: Option<Instant>,
    picker: Picker,
    actions: Vec<PickerAction>,
    wanted: Bitmap,
    /// Those of the wanted pieces that somebody waits for now.
    hurried: Bitmap,
    /// Where somebody reads in order.
    reader: Option<PieceNumber>,
    lull: Lull,
    /// Somebody waits for pieces: there is no lull any more.
    waited_for: bool,
    /// Whether the content is what its name says, once all of it is wanted.
    verification: Option<Verification>,
    pieces: Pieces,
    parents: Parents,
    fetches: HashMap<RequestId, Fetch>,
    scheduling: Scheduling,
    mesh_scheduler: bool,
    origin: OriginReader,
    read_origin: bool,
    /// The origin has given a piece that is held.
    origin_gave: bool,
    /// Pieces from the origin in a row that the store did not take.
    writes_failed: u32,
    tick_at: Instant,
    heartbeat_at: Instant,
    last_byte: Instant,
    last_trouble: String,
    cancel: CancellationToken,
}

impl Session {
    /// Starts a session for these pieces and returns the engine's handle of it.
    ///
    /// # Errors
    /// [`DownloadError::Invalid`] when this host shares too many tasks already.
    pub(super) fn start(
        engine: &Arc<Inner>,
        spec: DownloadSpec,
        task: storage::Task,
        want: Want,
        origin: OriginReader,
    ) -> Result<SessionHandle, DownloadError> {
        let (events_tx, events) = mpsc::channel(EVENTS_LEN);
        let (links, standing) = engine
            .hub
            .attach(&task, events_tx.clone())
            .map_err(|status| DownloadError::Invalid(status.message().to_owned()))?;
        let (outcome, outcome_rx) = watch::channel(None);
        let interest = Arc::new(());
        let peer_id = links.peer_id();
        let now = Instant::now();
        let handle = SessionHandle {
            events: events_tx.clone(),
            outcome: outcome_rx,
            interest: interest.clone(),
            peer_id: peer_id.clone(),
        };
        let pieces = Pieces::new(task.clone());
        let options = PickerOptions {
            v2_in_flight: engine.parts.limits.concurrent_pieces,
            ..PickerOptions::default()
        };
        let seed = fastrand::u64(..);
        let mut session = Self {
            engine: engine.clone(),
            picker: Picker::new(task.geometry(), &want.pieces, pieces.held(), options, seed),
            pieces,
            spec,
            links,
            peer_id,
            epoch: now,
            events,
            events_tx,
            outcome,
            interest: Arc::downgrade(&interest),
            callers_gone_at: None,
            actions: Vec::new(),
            wanted: Bitmap::new(task.geometry().piece_count()),
            hurried: Bitmap::new(task.geometry().piece_count()),
            reader: None,
            lull: Lull::default(),
            waited_for: false,
            verification: None,
            parents: Parents::default(),
            fetches: HashMap::new(),
            scheduling: Scheduling::None,
            mesh_scheduler: false,
            origin,
            read_origin: false,
            origin_gave: false,
            writes_failed: 0,
            tick_at: now + TICK,
            heartbeat_at: now,
            last_byte: now,
            last_trouble: "nothing was tried yet".to_owned(),
            cancel: engine.cancel.child_token(),
            task,
        };
        session.want(want);
        engine.tasks.spawn(session.run(standing));
        Ok(handle)
    }

    async fn run(mut self, standing: Vec<Arc<Link>>) {
        let mut outcome = match self.begin(standing) {
            Ok(()) => self.work().await,
            Err(error) => Err(error),
        };
        while outcome.is_ok() && !self.leave() {
            outcome = self.work().await;
        }
        self.finish(outcome).await;
    }

    /// Works until all that is wanted is here.
    async fn work(&mut self) -> Result<(), DownloadError> {
        while !self.is_complete() {
            self.act()?;
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(DownloadError::Stopping),
                event = self.events.recv() => {
                    let event = event.expect("the session holds a sender itself");
                    self.hear(event)?;
                    // Decide once for everything that has come.
                    while let Ok(event) = self.events.try_recv() {
                        self.hear(event)?;
                    }
                }
                verdict = verdict(&mut self.verification) => verdict?,
                () = sleep_until(wake) => {}
            }
            // Also in a stream of events.
            if Instant::now() >= self.tick_at {
                self.tick_at = Instant::now() + TICK;
                self.tick()?;
            }
        }
        Ok(())
    }

    /// Takes the session out of the engine's books, unless somebody has joined it at the last moment and wants more.
    fn leave(&mut self) -> bool {
        let engine = self.engine.clone();
        // Whoever joins holds this lock: nobody can join between looking and leaving.
        let mut sessions = engine.sessions.lock();
        while let Ok(event) = self.events.try_recv() {
            if let Event::Want(want) = event {
                self.want(want);
            }
        }
        if !self.is_complete() {
            return false;
        }
        sessions.remove(self.task.id());
        true
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let deadline = self.picker.next_deadline().map(|at| self.epoch + at);
        let lull = self.lull.next_change(now);
        [deadline, lull]
            .into_iter()
            .flatten()
            .fold(self.tick_at, Instant::min)
    }

    fn is_complete(&self) -> bool {
        let verified = self
            .verification
            .as_ref()
            .is_none_or(|verification| matches!(verification.verdict(), Some(Ok(()))));
        verified && self.pieces.all_held(&self.wanted)
    }

    fn begin(&mut self, standing: Vec<Arc<Link>>) -> Result<(), DownloadError> {
        for link in standing {
            self.link_up(link);
        }
        if self.is_complete() {
            return Ok(());
        }
        if self.is_small() {
            return self.back_to_source("the content is small");
        }
        match self.engine.parts.schedulers.for_task(self.task.id()) {
            Some(scheduler) => {
                let speaker = Speaker {
                    host_id: self.engine.parts.identity.host_id.clone(),
                    task_id: self.task.id().clone(),
                    peer_id: self.peer_id.clone(),
                };
                let download = convert::registration(&self.spec, self.task.geometry());
                let conversation = Conversation::open(
                    scheduler.channel,
                    speaker,
                    download,
                    self.events_tx.clone(),
                    &self.engine.tasks,
                );
                self.scheduling = Scheduling::Asked(conversation, Instant::now());
                Ok(())
            }
            None => self.back_to_source("no scheduler is available"),
        }
    }

    /// Small content comes straight from the origin: asking around would take longer (as Dragonfly v2 does).
    fn is_small(&self) -> bool {
        const SMALL: u64 = 4 << 20;
        let is_small = |length: u64| length <= SMALL;
        let small = is_small(self.task.geometry().content_length())
            || self.spec.range.is_some_and(|range| is_small(range.length));
        let at_neighbours = self.requests_max().is_some();
        small && !at_neighbours && !self.spec.scheduling_always && !self.spec.disable_back_to_source
    }

    fn want(&mut self, want: Want) {
        self.wanted.union_with(&want.pieces);
        if !want.ahead {
            self.hurried.union_with(&want.pieces);
        }
        if let Some(digest) = &want.named_by
            && self.verification.is_none()
        {
            self.verification = Some(verify::verify(&self.engine, &self.task, digest));
        }
        self.pick(PickerEvent::WantMore {
            pieces: want.pieces,
        });
        for link in self.parents.links() {
            self.tell_wants(link);
        }
        if want.express {
            self.lull.part_read(Instant::now());
        } else if !want.ahead {
            self.waited_for = true;
        }
        if want.reader.is_some() {
            self.reader_at(want.reader);
        }
    }

    /// A seed deals a content out to many: who waits for a part of it has to say so.
    pub(super) fn tell_wants(&self, link: &Link) {
        let waited_for = if self.hurried.is_full() {
            Vec::new()
        } else {
            self.pieces.missing(&self.hurried)
        };
        link.want(waited_for, !self.wanted.is_full());
    }

    fn reader_at(&mut self, segment: Option<SegmentIndex>) {
        let geometry = self.task.geometry();
        self.reader = segment.and_then(|segment| Some(geometry.segment(segment)?.piece));
        if self.reader.is_some() {
            self.lull.end();
        }
        self.pick(PickerEvent::ReaderAt { segment });
    }

    fn pick(&mut self, event: PickerEvent) {
        let now = self.now();
        self.picker.handle(now, event);
    }

    fn act(&mut self) -> Result<(), DownloadError> {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.picker.limit_requests(self.requests_max());
        self.picker.decide(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                PickerAction::Request(request) => self.request(request),
                PickerAction::Cancel { request } => {
                    if let Some(fetch) = self.fetches.remove(&request) {
                        fetch.cancel();
                    }
                }
                PickerAction::Decline { neighbour } => {
                    if let Some(link) = self.parents.link(neighbour) {
                        link.decline();
                    }
                }
                PickerAction::Suspect { neighbour, why } => {
                    debug!(task_id = %self.task.id(), ?neighbour, ?why, "parent suspected");
                    self.last_trouble = format!("a parent was found {why:?}");
                    let doubt = match why {
                        Suspicion::Frozen | Suspicion::Slow => Doubt::Quiet,
                        Suspicion::BadData => Doubt::Wrong,
                    };
                    self.parents.suspect(neighbour, doubt);
                    // While others deliver it is enough not to ask this one.
                    if self.last_byte.elapsed() > SILENCE {
                        self.ask_for_others("a parent does not deliver")?;
                    }
                }
                PickerAction::Starved { since } => self.starved(now.saturating_sub(since))?,
                PickerAction::Complete => {}
            }
        }
        self.actions = actions;
        self.feed_origin();
        Ok(())
    }

    /// Most requests for pieces now, if there is a limit: see [`Lull`].
    fn requests_max(&self) -> Option<usize> {
        if self.waited_for || self.reader.is_some() {
            return None;
        }
        self.lull.requests_max(Instant::now())
    }

    fn request(&mut self, request: swarm::Request) {
        let Some(route) = self.parents.route(request.neighbour) else {
            return self.request_failed(request.id, swarm::Failure::Lost);
        };
        let writer = match self.pieces.writer(request.piece) {
            Ok(writer) => writer,
            Err(NoWriter::Held) => {
                let piece = request.piece;
                self.request_failed(request.id, swarm::Failure::Lost);
                return self.pick(PickerEvent::PieceHeld { piece });
            }
            Err(NoWriter::Failed(error)) => {
                debug!(task_id = %self.task.id(), piece = request.piece.0, error, "piece cannot be written");
                self.last_trouble = error;
                return self.request_failed(request.id, swarm::Failure::Lost);
            }
        };
        let parent = self.parents.peer_id(request.neighbour).cloned();
        let parts = FetchParts {
            engine: &self.engine,
            links: &self.links,
            events: &self.events_tx,
            kind: self.spec.kind,
        };
        match Fetch::start(&parts, &route, &request, writer, parent) {
            Some(fetch) => {
                self.fetches.insert(request.id, fetch);
            }
            None => self.request_failed(request.id, swarm::Failure::NotFound),
        }
    }

    fn request_failed(&mut self, request: RequestId, failure: swarm::Failure) {
        self.pick(PickerEvent::Failed {
            request,
            failure,
            received: 0,
        });
    }

    /// Gives the origin reader, if it is at work, pieces to read.
    fn feed_origin(&mut self) {
        loop {
            let moving = self.fetches.values().filter(|fetch| !fetch.is_stalled());
            let busy = moving.map(Fetch::piece).collect();
            let reach = Reach {
                engine: &self.engine,
                links: &self.links,
                spec: &self.spec,
                events: &self.events_tx,
                cancel: &self.cancel,
            };
            let wishes = Wishes {
                wanted: &self.wanted,
                hurried: &self.hurried,
                from: self.reader,
            };
            let run = self
                .origin
                .next_run(&reach, &wishes, &busy, &mut self.pieces);
            if run.is_empty() {
                return;
            }
            for piece in run {
                self.give_up_fetches_of(piece);
                let segments = self.pieces.segments(piece);
                self.pick(PickerEvent::OriginTook { segments });
            }
        }
    }

    /// The origin reads this piece now; whoever was asked for it was silent for too long.
    fn give_up_fetches_of(&mut self, piece: PieceNumber) {
        let of_piece =
            |(&request, fetch): (&RequestId, &Fetch)| (fetch.piece() == piece).then_some(request);
        let requests: Vec<RequestId> = self.fetches.iter().filter_map(of_piece).collect();
        for request in requests {
            let Some(fetch) = self.fetches.remove(&request) else {
                continue;
            };
            fetch.cancel();
            self.pick(PickerEvent::Failed {
                request,
                failure: swarm::Failure::Stalled,
                received: fetch.received(),
            });
        }
    }

    /// What the origin has shown by its bytes: that it gives to anybody what a digest names, or that its content is another one now.
    async fn judge_origin(&self, outcome: &Result<(), DownloadError>) {
        let (task, spec) = (&self.task, &self.spec);
        let named = spec.named_by.as_ref();
        match outcome {
            Ok(()) if self.origin_gave && named.is_some_and(|digest| task.is_confirmed(digest)) => {
                let anonymous =
                    self.engine.parts.limits.origins_know_nobody && public::is_anonymous(spec);
                if anonymous && let Err(error) = task.mark(storage::Mark::Public) {
                    debug!(task_id = %task.id(), %error, "task not marked as public");
                }
            }
            // What is here of it can never be completed.
            Err(DownloadError::Source(error))
                if matches!(**error, source::SourceError::Changed { .. }) =>
            {
                let (store, id) = (self.engine.parts.store.clone(), task.id().clone());
                info!(task_id = %id, "the content has changed at its origin, its beginning is deleted");
                let _ = tokio::task::spawn_blocking(move || store.delete(&id)).await;
            }
            _ => {}
        }
    }

    async fn finish(mut self, outcome: Result<(), DownloadError>) {
        for (_, fetch) in self.fetches.drain() {
            fetch.cancel();
        }
        if let (Err(DownloadError::Digest { .. }), Some(conversation)) =
            (&outcome, self.conversation())
            && let Some(parent) = verify::sole_parent(&self.task)
        {
            // Nobody else can have been at fault: it is not offered to us again.
            conversation.piece_failed(0, &parent);
        }
        self.parents.close();
        self.links.detach(&self.events_tx);
        self.cancel.cancel();
        self.engine.session_ended(self.task.id(), &self.events_tx);
        let ending = match &outcome {
            Ok(()) if self.read_origin => Ending::FinishedFromSource,
            Ok(()) => Ending::Finished,
            Err(error) if self.read_origin => Ending::SourceFailed(error.to_string()),
            Err(error) => Ending::Failed(error.to_string()),
        };
        let mark = match &outcome {
            Ok(()) => storage::Mark::Finished,
            Err(_) => storage::Mark::Failed,
        };
        if let Err(error) = self.task.mark(mark) {
            warn!(task_id = %self.task.id(), %error, "task not marked");
        }
        self.judge_origin(&outcome).await;
        self.outcome.send_replace(Some(outcome));
        match self.scheduling {
            Scheduling::Asked(conversation, _) | Scheduling::Talking { conversation, .. } => {
                conversation.finish(ending).await;
            }
            Scheduling::None => {}
        }
    }
}

/// Waits for a verdict that is against the content; a good one is seen by [`Session::is_complete`].
async fn verdict(verification: &mut Option<Verification>) -> Result<(), DownloadError> {
    match verification {
        Some(verification) if verification.verdict().is_none() => verification.wait().await,
        Some(verification) => match verification.verdict() {
            Some(Err(error)) => Err(error),
            _ => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
