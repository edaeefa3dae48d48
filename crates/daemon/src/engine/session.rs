//! One task being downloaded by this host, for however many callers.
//!
//! An actor: everything that happens (scheduler, links, fetches, origin, callers) arrives as an [`Event`] on one
//! bounded queue; the pure [`swarm::Picker`] decides what to ask of whom; the session carries it out and sleeps until the
//! next event or deadline. It never waits for any single party. The ladder when something is missing: another
//! neighbour, then the scheduler, then the origin, then an error that says what was tried.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Peer;
use protocol::{Bitmap, Crc32, PeerId, PieceNumber, TrafficType};
use storage::PieceRecord;
use swarm::{NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, RequestId, Shown};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::conversation::{Conversation, Ending, SchedulerEvent, Speaker};
use super::fetch::{Fetch, FetchParts, Fetched};
use super::origin::{OriginEvent, OriginReader};
use super::parents::{Parents, V2Event, V2News, sync_request};
use super::pieces::{Pieces, Settled, Trust};
use super::{DownloadError, DownloadSpec, Inner, convert};
use crate::link::{Link, LinkEvent, LinkNews, TaskLinks};

/// Events that may wait; whoever brings one waits when it is full.
const EVENTS_LEN: usize = 512;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);
/// A registration that is not answered by then is as good as no scheduler.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Requests for other parents are not sent more often than this.
const RESCHEDULE_MIN: Duration = Duration::from_millis(500);
/// Without a byte from anywhere for this long the origin is asked, scheduler or not.
const STARVED_MAX: Duration = Duration::from_secs(10);
/// Without a byte from anywhere for this long, and no origin to ask, the download fails.
const HOPELESS_MAX: Duration = Duration::from_secs(60);
/// A piece that has all of its bytes may wait this long for its digest before others are asked.
const DIGEST_MAX: Duration = Duration::from_millis(1500);
/// How long a session without callers goes on.
const GRACE: Duration = Duration::from_secs(10);

/// Everything that a session hears.
#[derive(Debug)]
pub enum Event {
    /// A caller wants these pieces too.
    Want(Bitmap),
    /// A caller has gone; see [`SessionHandle`].
    CallerGone,
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
    epoch: Instant,
    events: mpsc::Receiver<Event>,
    events_tx: mpsc::Sender<Event>,
    outcome: watch::Sender<Outcome>,
    interest: std::sync::Weak<()>,
    callers_gone_at: Option<Instant>,
    picker: Picker,
    actions: Vec<PickerAction>,
    wanted: Bitmap,
    pieces: Pieces,
    parents: Parents,
    fetches: HashMap<RequestId, Fetch>,
    scheduling: Scheduling,
    mesh_scheduler: bool,
    origin: OriginReader,
    read_origin: bool,
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
        wanted: Bitmap,
        origin: OriginReader,
    ) -> Result<SessionHandle, DownloadError> {
        let (events_tx, events) = mpsc::channel(EVENTS_LEN);
        let (links, standing) = engine
            .hub
            .attach(&task, events_tx.clone())
            .map_err(|status| DownloadError::Invalid(status.message().to_owned()))?;
        let (outcome, outcome_rx) = watch::channel(None);
        let interest = Arc::new(());
        let now = Instant::now();
        let handle = SessionHandle {
            events: events_tx.clone(),
            outcome: outcome_rx,
            interest: interest.clone(),
            peer_id: links.peer_id.clone(),
        };
        let pieces = Pieces::new(task.clone());
        let options = PickerOptions {
            v2_in_flight: engine.parts.limits.concurrent_pieces,
            ..PickerOptions::default()
        };
        let seed = fastrand::u64(..);
        let session = Self {
            engine: engine.clone(),
            picker: Picker::new(task.geometry(), &wanted, pieces.held(), options, seed),
            pieces,
            spec,
            links,
            epoch: now,
            events,
            events_tx,
            outcome,
            interest: Arc::downgrade(&interest),
            callers_gone_at: None,
            actions: Vec::new(),
            wanted,
            parents: Parents::default(),
            fetches: HashMap::new(),
            scheduling: Scheduling::None,
            mesh_scheduler: false,
            origin,
            read_origin: false,
            last_byte: now,
            last_trouble: "nothing was tried yet".to_owned(),
            cancel: engine.cancel.child_token(),
            task,
        };
        engine.tasks.spawn(session.run(standing));
        Ok(handle)
    }

    async fn run(mut self, standing: Vec<Arc<Link>>) {
        let outcome = self.drive(standing).await;
        self.finish(outcome).await;
    }

    async fn drive(&mut self, standing: Vec<Arc<Link>>) -> Result<(), DownloadError> {
        self.begin(standing)?;
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
                () = sleep_until(wake) => self.tick()?,
            }
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn wake_at(&self) -> Instant {
        let tick = Instant::now() + TICK;
        match self.picker.next_deadline() {
            Some(deadline) => tick.min(self.epoch + deadline),
            None => tick,
        }
    }

    fn is_complete(&self) -> bool {
        self.pieces.all_held(&self.wanted)
    }

    // ---- the beginning

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
                    peer_id: self.links.peer_id.clone(),
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
        let geometry = self.task.geometry();
        let wanted = u64::from(self.wanted.count()) * geometry.piece_length();
        let small = geometry.content_length() <= SMALL
            || self.spec.range.is_some_and(|range| range.length <= SMALL) && wanted <= 2 * SMALL;
        small && !self.spec.scheduling_always && !self.spec.disable_back_to_source
    }

    fn want(&mut self, pieces: &Bitmap) {
        self.wanted.union_with(pieces);
        self.pick(PickerEvent::WantMore {
            pieces: pieces.clone(),
        });
    }

    fn pick(&mut self, event: PickerEvent) {
        let now = self.now();
        self.picker.handle(now, event);
    }

    // ---- carrying out decisions

    fn act(&mut self) -> Result<(), DownloadError> {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
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
                    self.parents.suspect(neighbour);
                    self.ask_for_others("a parent does not deliver")?;
                }
                PickerAction::Starved { since } => self.starved(now.saturating_sub(since))?,
                PickerAction::Complete => {}
            }
        }
        self.actions = actions;
        self.feed_origin();
        Ok(())
    }

    fn request(&mut self, request: swarm::Request) {
        let Some(route) = self.parents.route(request.neighbour) else {
            return self.request_failed(request.id, swarm::Failure::Lost);
        };
        let writer = match self.pieces.writer(request.piece) {
            Ok(writer) => writer,
            Err(error) => {
                warn!(task_id = %self.task.id(), piece = request.piece.0, %error, "piece cannot be written");
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
            let busy = self.fetches.values().map(Fetch::piece).collect();
            let run = self.origin.next_run(
                &self.engine,
                &self.links,
                &self.spec,
                &self.wanted,
                &busy,
                &mut self.pieces,
                &self.events_tx,
                &self.cancel,
            );
            if run.is_empty() {
                return;
            }
            for piece in run {
                let segments = self.pieces.segments(piece);
                self.pick(PickerEvent::OriginTook { segments });
            }
        }
    }

    // ---- hearing

    fn hear(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Want(pieces) => self.want(&pieces),
            Event::CallerGone => {}
            Event::Scheduler(event) => self.hear_scheduler(event)?,
            Event::Link(event) => self.hear_link(event),
            Event::V2(event) => self.hear_v2(event),
            Event::Fetched(fetched) => self.hear_fetched(fetched)?,
            Event::Origin(event) => self.hear_origin(event)?,
        }
        Ok(())
    }

    fn hear_scheduler(&mut self, event: SchedulerEvent) -> Result<(), DownloadError> {
        match event {
            SchedulerEvent::Opened { mesh } => self.mesh_scheduler = mesh,
            SchedulerEvent::Parents(parents) => {
                if self.answered()? {
                    self.offered(parents);
                }
            }
            SchedulerEvent::BackToSource { reason } => {
                if self.answered()? {
                    return self.back_to_source(&reason);
                }
            }
            SchedulerEvent::Empty | SchedulerEvent::MetadataOnly => {
                self.answered()?;
            }
            SchedulerEvent::Closed(status) => {
                let reason = status.map_or_else(
                    || "the scheduler ended the conversation".to_owned(),
                    |status| format!("scheduler: {}", crate::dial::reason(&status)),
                );
                self.scheduler_lost(reason)?;
            }
        }
        Ok(())
    }

    /// Counts an answer; false when a v2 scheduler has answered too often, and the origin is asked instead.
    fn answered(&mut self) -> Result<bool, DownloadError> {
        let scheduling = std::mem::replace(&mut self.scheduling, Scheduling::None);
        self.scheduling = match scheduling {
            Scheduling::Asked(conversation, _) => Scheduling::Talking {
                conversation,
                mesh: self.mesh_scheduler,
                answers: 1,
                rescheduled_at: None,
            },
            Scheduling::Talking {
                conversation,
                mesh,
                answers,
                rescheduled_at,
            } => Scheduling::Talking {
                conversation,
                mesh,
                answers: answers + 1,
                rescheduled_at,
            },
            Scheduling::None => Scheduling::None,
        };
        let max = self.engine.parts.limits.schedule_count_max;
        match &self.scheduling {
            Scheduling::Talking {
                mesh: false,
                answers,
                ..
            } if *answers > max => {
                self.back_to_source("the scheduler's parents did not suffice")?;
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    fn offered(&mut self, parents: Vec<Peer>) {
        if let Some(conversation) = self.conversation() {
            conversation.started();
        }
        for parent in parents {
            if let Err(reason) = self.parents.offer(&self.links, parent) {
                debug!(task_id = %self.task.id(), reason, "parent not used");
            }
        }
    }

    fn conversation(&self) -> Option<&Conversation> {
        match &self.scheduling {
            Scheduling::Asked(conversation, _) | Scheduling::Talking { conversation, .. } => {
                Some(conversation)
            }
            Scheduling::None => None,
        }
    }

    fn scheduler_lost(&mut self, reason: String) -> Result<(), DownloadError> {
        if matches!(self.scheduling, Scheduling::None) {
            return Ok(());
        }
        info!(task_id = %self.task.id(), reason, "going on without the scheduler");
        self.scheduling = Scheduling::None;
        self.last_trouble = reason;
        if self.parents.live() == 0 && !self.reading_origin() {
            let reason = self.last_trouble.clone();
            return self.back_to_source(&reason);
        }
        Ok(())
    }

    fn hear_link(&mut self, event: LinkEvent) {
        let host_id = event.host_id;
        match event.news {
            LinkNews::Up(link) => self.link_up(link),
            LinkNews::Arriving(segments) => {
                for segment in segments {
                    self.shown(&host_id, Shown::Arriving(segment));
                }
            }
            LinkNews::Digests(digests) => {
                for (piece, digest) in digests {
                    self.digest_known(piece, digest);
                }
            }
            LinkNews::Held(pieces) => {
                for (piece, digest) in pieces {
                    self.shown(&host_id, Shown::Held(piece));
                    self.digest_known(piece, digest);
                }
            }
            LinkNews::Gone(pieces) => {
                for piece in pieces {
                    self.shown(&host_id, Shown::Gone(piece));
                }
            }
            LinkNews::Granted => {
                if let Some(neighbour) = self.parents.neighbour_of(&host_id) {
                    self.pick(PickerEvent::Granted { neighbour });
                }
            }
            LinkNews::Down => self.parent_gone(&host_id),
            LinkNews::NotOurs(channel) => self.follow_v2(&host_id, channel),
            LinkNews::Failed(reason) => {
                debug!(task_id = %self.task.id(), %host_id, reason, "parent not reached");
                self.last_trouble = format!("parent {host_id}: {reason}");
                self.parent_gone(&host_id);
            }
        }
    }

    fn link_up(&mut self, link: Arc<Link>) {
        let (arriving, held, digests) = {
            let known = link.known.lock();
            (known.arriving(), known.held(), known.digests())
        };
        let (neighbour, replaced) = self.parents.linked(link);
        if let Some(replaced) = replaced {
            self.left(replaced);
        }
        self.pick(PickerEvent::Joined {
            neighbour,
            kind: NeighbourKind::Mesh,
        });
        for segment in arriving {
            let what = Shown::Arriving(segment);
            self.pick(PickerEvent::Shown { neighbour, what });
        }
        for piece in held {
            let what = Shown::Held(piece);
            self.pick(PickerEvent::Shown { neighbour, what });
        }
        for (piece, digest) in digests {
            self.digest_known(piece, digest);
        }
    }

    fn shown(&mut self, host_id: &protocol::HostId, what: Shown) {
        if let Some(neighbour) = self.parents.neighbour_of(host_id) {
            self.pick(PickerEvent::Shown { neighbour, what });
        }
    }

    fn digest_known(&mut self, piece: PieceNumber, digest: Crc32) {
        let settled = self.pieces.digest_known(piece, digest);
        self.settle(piece, settled);
    }

    fn parent_gone(&mut self, host_id: &protocol::HostId) {
        if let Some(neighbour) = self.parents.gone(host_id) {
            self.left(neighbour);
        }
    }

    fn left(&mut self, neighbour: swarm::NeighbourId) {
        self.pick(PickerEvent::Left { neighbour });
        self.fetches.retain(|_, fetch| {
            let stays = fetch.neighbour() != neighbour;
            if !stays {
                fetch.cancel();
            }
            stays
        });
    }

    fn follow_v2(&mut self, host_id: &protocol::HostId, channel: tonic::transport::Channel) {
        let interested = self.pieces.missing(&self.wanted);
        let own_host = &self.engine.parts.identity.host_id;
        let request = sync_request(own_host, self.task.id(), interested);
        let joined = self.parents.follow_v2(
            host_id,
            channel,
            request,
            self.events_tx.clone(),
            &self.engine.tasks,
            &self.cancel,
        );
        if let Some(neighbour) = joined {
            let kind = NeighbourKind::V2;
            self.pick(PickerEvent::Joined { neighbour, kind });
        }
    }

    fn hear_v2(&mut self, event: V2Event) {
        let neighbour = event.neighbour;
        match event.news {
            V2News::Held(piece, addr) => {
                self.parents.v2_serves_at(neighbour, addr);
                let what = Shown::Held(piece);
                self.pick(PickerEvent::Shown { neighbour, what });
            }
            // It still serves what it has shown.
            V2News::Ended(Ok(())) => {}
            V2News::Ended(Err(status)) => {
                self.last_trouble = format!("SyncPieces: {}", crate::dial::reason(&status));
                if let Some(neighbour) = self.parents.neighbour_gone(neighbour) {
                    self.left(neighbour);
                }
            }
        }
    }

    fn hear_fetched(&mut self, fetched: Fetched) -> Result<(), DownloadError> {
        let Some(fetch) = self.fetches.remove(&fetched.request) else {
            return Ok(());
        };
        if fetched.received > 0 {
            self.last_byte = Instant::now();
        }
        let piece = fetch.piece();
        match fetched.failure {
            None => {
                self.pick(PickerEvent::Finished {
                    request: fetched.request,
                });
                let trust = if fetched.digest_missing {
                    Trust::AsSent
                } else {
                    Trust::OnlyKnownDigests
                };
                let settled = self
                    .pieces
                    .received(piece, fetched.digest, fetch.parent(), trust);
                self.settle(piece, settled);
            }
            Some(failure) => {
                if let Some(reason) = fetched.reason {
                    debug!(task_id = %self.task.id(), piece = piece.0, reason, "fetch failed");
                    self.last_trouble = reason;
                }
                if let (Some(parent), Some(conversation)) = (fetch.parent(), self.conversation())
                    && !matches!(failure, swarm::Failure::Refused | swarm::Failure::NotAhead)
                {
                    conversation.piece_failed(piece.0, parent);
                }
                self.pick(PickerEvent::Failed {
                    request: fetched.request,
                    failure,
                    received: fetched.received,
                });
            }
        }
        Ok(())
    }

    /// What became of a piece of which bytes or the digest arrived.
    fn settle(&mut self, piece: PieceNumber, settled: Settled) {
        match settled {
            Settled::Open => {}
            Settled::Held(record) => {
                self.report(&record);
                self.pick(PickerEvent::PieceHeld { piece });
            }
            Settled::Dropped(reason) => {
                warn!(task_id = %self.task.id(), piece = piece.0, reason, "piece dropped");
                self.last_trouble = reason;
                self.pick(PickerEvent::PieceDropped { piece });
            }
        }
    }

    fn report(&self, record: &PieceRecord) {
        self.engine.parts.metrics.piece_downloaded(
            record.origin.traffic,
            record.length,
            record.origin.cost,
        );
        let Some(conversation) = self.conversation() else {
            return;
        };
        let piece = convert::piece(record);
        match record.origin.traffic {
            TrafficType::BackToSource => conversation.piece_from_source(piece),
            _ => conversation.piece_finished(piece),
        }
    }

    fn hear_origin(&mut self, event: OriginEvent) -> Result<(), DownloadError> {
        match event {
            OriginEvent::Piece { piece, written } => {
                self.origin.piece_done(piece);
                self.last_byte = Instant::now();
                let settled = match written {
                    Ok(()) => self.pieces.from_origin(piece),
                    Err(reason) => {
                        self.pieces.abandon(piece);
                        Settled::Dropped(reason)
                    }
                };
                let segments = self.pieces.segments(piece);
                self.pick(PickerEvent::OriginReleased { segments });
                self.settle(piece, settled);
            }
            OriginEvent::Failed { piece, error } => {
                self.origin.piece_done(piece);
                self.pieces.abandon(piece);
                let segments = self.pieces.segments(piece);
                self.pick(PickerEvent::OriginReleased { segments });
                self.pick(PickerEvent::PieceDropped { piece });
                return self.origin_failed(error);
            }
        }
        Ok(())
    }

    // ---- the ladder

    fn reading_origin(&self) -> bool {
        self.origin.is_reading()
    }

    fn back_to_source(&mut self, reason: &str) -> Result<(), DownloadError> {
        if self.reading_origin() {
            return Ok(());
        }
        if self.spec.disable_back_to_source {
            return Err(DownloadError::NoParents {
                task_id: self.task.id().clone(),
                reason: format!("{reason}; {}", self.last_trouble),
            });
        }
        info!(task_id = %self.task.id(), reason, "back to source");
        if let Some(conversation) = self.conversation() {
            conversation.back_to_source_started(reason);
        }
        self.read_origin = true;
        self.last_byte = Instant::now();
        self.origin
            .start(self.engine.parts.limits.concurrent_source_pieces);
        // What waits for a digest that nobody may be left to tell is read again.
        for piece in self.pieces.drop_unverified() {
            self.pick(PickerEvent::PieceDropped { piece });
        }
        Ok(())
    }

    fn origin_failed(&mut self, error: Arc<source::SourceError>) -> Result<(), DownloadError> {
        if !self.origin.is_reading() || self.origin.may_retry(&error) {
            return Ok(());
        }
        warn!(task_id = %self.task.id(), %error, "origin failed");
        self.origin.stop();
        if let Some(conversation) = self.conversation() {
            conversation.source_failed(convert::backend_error(&error), &error.to_string());
        }
        Err(DownloadError::Source(error))
    }

    /// Asks the scheduler for other parents, if it can be asked now.
    fn ask_for_others(&mut self, reason: &str) -> Result<(), DownloadError> {
        let useless = self.parents.useless();
        if let Scheduling::Talking {
            conversation,
            rescheduled_at,
            ..
        } = &mut self.scheduling
        {
            let may = rescheduled_at.is_none_or(|at| at.elapsed() >= RESCHEDULE_MIN);
            if may {
                *rescheduled_at = Some(Instant::now());
                conversation.reschedule(useless, reason);
            }
        }
        Ok(())
    }

    /// Nothing is in flight and no neighbour has what is wanted.
    fn starved(&mut self, for_long: Duration) -> Result<(), DownloadError> {
        if self.reading_origin() {
            return Ok(());
        }
        match &self.scheduling {
            Scheduling::None if self.parents.live() == 0 || for_long > Duration::from_secs(2) => {
                let reason = self.last_trouble.clone();
                self.back_to_source(&reason)
            }
            Scheduling::Talking { .. }
                if self.parents.live() == 0 || for_long > Duration::from_millis(1500) =>
            {
                self.ask_for_others("not all pieces are downloaded from parent")
            }
            _ => Ok(()),
        }
    }

    fn tick(&mut self) -> Result<(), DownloadError> {
        let now = self.now();
        for (&request, fetch) in &mut self.fetches {
            if let Some(received) = fetch.progress() {
                self.last_byte = Instant::now();
                self.picker
                    .handle(now, PickerEvent::Progress { request, received });
            }
        }
        if self.origin.progressed() {
            self.last_byte = Instant::now();
        }
        if let Scheduling::Asked(_, since) = &self.scheduling
            && since.elapsed() > ANSWER_MAX
        {
            self.scheduler_lost("the scheduler did not answer the registration".to_owned())?;
        }
        let silent = self.last_byte.elapsed();
        if silent > STARVED_MAX && !self.reading_origin() && !self.spec.disable_back_to_source {
            let reason = format!("no byte for {} s: {}", silent.as_secs(), self.last_trouble);
            self.back_to_source(&reason)?;
        }
        if silent > HOPELESS_MAX && !self.reading_origin() {
            return Err(DownloadError::Stalled {
                task_id: self.task.id().clone(),
                seconds: silent.as_secs(),
                reason: self.last_trouble.clone(),
            });
        }
        if self.fetches.is_empty() && self.pieces.awaits_digest(DIGEST_MAX) {
            self.last_trouble = "nobody has told the digest of a piece".to_owned();
            self.starved(silent)?;
        }
        self.mind_callers()
    }

    /// A session that nobody waits for ends after a while; a seed's goes on for its children.
    fn mind_callers(&mut self) -> Result<(), DownloadError> {
        let seed = self.engine.parts.identity.role == protocol::HostRole::Seed;
        if seed || self.interest.strong_count() > 1 {
            self.callers_gone_at = None;
            return Ok(());
        }
        let since = *self.callers_gone_at.get_or_insert_with(Instant::now);
        if since.elapsed() > GRACE {
            return Err(DownloadError::Invalid(
                "nobody waits for it any more".to_owned(),
            ));
        }
        Ok(())
    }

    // ---- the end

    async fn finish(mut self, outcome: Result<(), DownloadError>) {
        for (_, fetch) in self.fetches.drain() {
            fetch.cancel();
        }
        self.parents.close();
        self.links.detach();
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
        self.outcome.send_replace(Some(outcome));
        match self.scheduling {
            Scheduling::Asked(conversation, _) | Scheduling::Talking { conversation, .. } => {
                conversation.finish(ending).await;
            }
            Scheduling::None => {}
        }
    }
}
