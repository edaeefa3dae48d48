//! What a session does when something is missing: the scheduler, the origin, and finally an error.

use super::*;

impl Session {
    pub(super) fn reading_origin(&self) -> bool {
        self.origin.is_reading()
    }

    pub(super) fn back_to_source(&mut self, reason: &str) -> Result<(), DownloadError> {
        if self.reading_origin() {
            return Ok(());
        }
        if self.spec.disable_back_to_source {
            return Err(DownloadError::NoParents {
                task_id: self.task.id().clone(),
                reason: format!("{reason}; {}", self.last_trouble),
            });
        }
        if self.is_small() {
            debug!(task_id = %self.task.id(), reason, "back to source");
        } else {
            info!(task_id = %self.task.id(), reason, "back to source");
        }
        if let Err(error) = self.task.note_origin_use(reason) {
            debug!(task_id = %self.task.id(), %error, "reason not kept");
        }
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

    pub(super) fn origin_failed(
        &mut self,
        error: Arc<source::SourceError>,
    ) -> Result<(), DownloadError> {
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
    pub(super) fn ask_for_others(&mut self, reason: &str) -> Result<(), DownloadError> {
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
    pub(super) fn starved(&mut self, for_long: Duration) -> Result<(), DownloadError> {
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
                self.parents.suspect_partial(self.task.geometry());
                self.ask_for_others("not all pieces are downloaded from parent")
            }
            _ => Ok(()),
        }
    }

    pub(super) fn tick(&mut self) -> Result<(), DownloadError> {
        if self.pieces.all_held(&self.wanted) {
            // Only the verdict is missing.
            self.last_byte = Instant::now();
            return self.mind_callers();
        }
        let now = self.now();
        for (&request, fetch) in &mut self.fetches {
            if let Some(received) = fetch.progress() {
                self.last_byte = Instant::now();
                self.parents.delivered(fetch.neighbour());
                self.picker
                    .handle(now, PickerEvent::Progress { request, received });
            }
        }
        if self.origin.progressed() {
            self.last_byte = Instant::now();
        }
        if self.last_byte.elapsed() < PAUSE_MAX {
            self.heartbeat();
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

    /// Tells the neighbours that this download goes on, and a scheduler of this project that the origin is being read.
    fn heartbeat(&mut self) {
        if self.heartbeat_at.elapsed() < HEARTBEAT {
            return;
        }
        self.heartbeat_at = Instant::now();
        self.parents.links().for_each(|link| link.alive());
        if self.mesh_scheduler
            && self.reading_origin()
            && let Some(conversation) = self.conversation()
        {
            conversation.back_to_source_started("");
        }
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
}
