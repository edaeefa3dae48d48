//! What a session makes of what it hears.

use super::super::fetch::Blame;
use super::*;

impl Session {
    pub(super) fn hear(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Want(want) => self.want(want),
            Event::ReaderAt(segment) => self.reader_at(segment),
            Event::Scheduler(event) => self.hear_scheduler(event)?,
            Event::Link(event) => self.hear_link(event),
            Event::V2(event) => self.hear_v2(event),
            Event::Fetched(fetched) => self.hear_fetched(fetched)?,
            Event::Origin(event) => self.hear_origin(event)?,
        }
        Ok(())
    }

    pub(super) fn hear_scheduler(&mut self, event: SchedulerEvent) -> Result<(), DownloadError> {
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
                if let Some(refusal) = status.as_ref().and_then(convert::passed_on_refusal) {
                    return Err(refusal);
                }
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
    pub(super) fn answered(&mut self) -> Result<bool, DownloadError> {
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

    pub(super) fn conversation(&self) -> Option<&Conversation> {
        match &self.scheduling {
            Scheduling::Asked(conversation, _) | Scheduling::Talking { conversation, .. } => {
                Some(conversation)
            }
            Scheduling::None => None,
        }
    }

    pub(super) fn scheduler_lost(&mut self, reason: String) -> Result<(), DownloadError> {
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
            LinkNews::Alive => {
                if let Some(neighbour) = self.parents.neighbour_of(&host_id) {
                    self.pick(PickerEvent::Alive { neighbour });
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

    pub(super) fn link_up(&mut self, link: Arc<Link>) {
        let (arriving, held, digests) = {
            let known = link.known.lock();
            (known.arriving(), known.held(), known.digests())
        };
        self.tell_wants(&link);
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

    pub(super) fn parent_gone(&mut self, host_id: &protocol::HostId) {
        if let Some(neighbour) = self.parents.gone(host_id) {
            self.left(neighbour);
        }
    }

    pub(super) fn left(&mut self, neighbour: swarm::NeighbourId) {
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
            self.parents.delivered(fetch.neighbour());
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
                    && (fetched.blame == Blame::Parent)
                {
                    conversation.piece_failed(piece.0, parent);
                }
                if failure == swarm::Failure::NotFound {
                    // It lost what it showed: if that is missing later, the scheduler must not count on it.
                    self.parents.suspect(fetch.neighbour(), Doubt::Wrong);
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
    pub(super) fn settle(&mut self, piece: PieceNumber, settled: Settled) {
        match settled {
            Settled::Open => {}
            Settled::Held(record) => {
                self.writes_failed = 0;
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
                    Ok(()) => self.pieces.read_from_origin(piece),
                    // It came from a neighbour meanwhile.
                    Err(_) if self.pieces.is_held(piece) => Settled::Open,
                    Err(reason) => {
                        self.pieces.abandon(piece);
                        self.writes_failed += 1;
                        // Reading the origin again and again does not mend a disk.
                        if self.writes_failed > WRITES_FAILED_MAX {
                            return Err(DownloadError::Write { reason });
                        }
                        Settled::Dropped(reason)
                    }
                };
                self.origin_gave |= matches!(settled, Settled::Held(_));
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
}
