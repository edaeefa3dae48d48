//! What a registered peer reports, row by row of the scheduler sheet, section 2.1.

use protocol::PeerId;

use crate::core::Core;
use crate::message::{Refusal, Report, StreamId};
use crate::model::{PeerKey, PieceRecord, Time};
use crate::seek::Occasion;
use crate::states::{PeerEvent, PeerState, TaskEvent};

/// Pieces recorded per task at most, if their number is not known: a 4 TiB file in 4 MiB pieces.
const RECORDED_PIECES_MAX: u32 = 1 << 20;

/// Parents that one peer may have given up at most; further ones are offered again some time.
const BLOCKED_MAX: usize = 4096;

impl<H, T> Core<H, T> {
    pub(crate) fn report(&mut self, now: Time, stream: StreamId, peer_id: &PeerId, report: Report) {
        let known = self.peer_keys.get(peer_id).copied();
        let Some(key) = known.filter(|key| self.peers[*key].stream == Some(stream)) else {
            // Reports about pieces never end a stream (scheduler sheet, trap T2).
            if !report.is_about_a_piece() {
                let outcome = Err(Refusal::PeerUnknown(peer_id.clone()));
                self.actions.push(crate::Action::Close { stream, outcome });
            }
            return;
        };
        match report {
            Report::Started => self.started(now, key),
            Report::BackToSourceStarted => self.back_to_source_started(now, key),
            Report::Rescheduled { parents } => self.rescheduled(now, key, &parents),
            Report::Finished => self.finished(now, key),
            Report::BackToSourceFinished => self.back_to_source_finished(now, key),
            Report::Failed => self.failed(now, key),
            Report::BackToSourceFailed => self.back_to_source_failed(now, key),
            Report::PieceFinished { parent, cost } => {
                self.note_piece(now, key, cost);
                if let Some(parent) = parent {
                    self.touch_parent(now, &parent);
                }
            }
            Report::SourcePieceFinished(piece) => {
                self.note_piece(now, key, piece.cost);
                self.note_source_piece(now, key);
                self.record_piece(key, piece);
            }
            Report::PieceFailed { parent } => self.piece_failed(now, key, &parent),
            Report::SourcePieceFailed(failure) => {
                self.peers[key].updated_at = now;
                self.peers[key].source_failure = Some(Box::new(failure));
            }
        }
    }

    fn started(&mut self, now: Time, key: PeerKey) {
        match self.peers[key].state {
            PeerState::Running => self.peers[key].updated_at = now,
            // A mesh peer that reads the origin may also fetch from neighbours.
            PeerState::BackToSource if self.peers[key].mesh => self.peers[key].updated_at = now,
            _ => {
                if let Err(refusal) = self.advance(now, key, PeerEvent::Download) {
                    self.refuse(now, key, refusal);
                }
            }
        }
    }

    fn back_to_source_started(&mut self, now: Time, key: PeerKey) {
        if self.peers[key].state != PeerState::BackToSource {
            if let Err(refusal) = self.advance(now, key, PeerEvent::DownloadBackToSource) {
                return self.refuse(now, key, refusal);
            }
            self.peers[key].waiting_since = None;
        }
        let task = self.peers[key].task;
        let first = !self.tasks[task].is_reading(key);
        self.note_reading(now, key);
        if first {
            self.wake_later(task);
            if !self.peers[key].mesh {
                self.announce_root(now, key);
            }
        }
    }

    fn rescheduled(&mut self, now: Time, key: PeerKey, parents: &[PeerId]) {
        let state = self.peers[key].state;
        if !state.wants_parents() && state != PeerState::BackToSource {
            let refusal = Refusal::Transition {
                event: PeerEvent::Download,
                state,
            };
            return self.refuse(now, key, refusal);
        }
        self.peers[key].updated_at = now;
        for id in parents {
            if let Some(parent) = self.peer_keys.get(id).copied() {
                self.give_up_parent(now, key, parent);
            }
        }
        if state == PeerState::BackToSource {
            // It has its lease; whoever else there is may help.
            let mesh = self.peers[key].mesh;
            let offered = if mesh {
                self.offer_neighbours(now, key, self.policy.mesh_offer_count)
            } else {
                Vec::new()
            };
            if !mesh {
                self.appoint_again(key);
            } else if !offered.is_empty() {
                self.answer(key, crate::Answer::Parents(offered));
            }
            return;
        }
        // Whoever was told to read and asks for parents instead did not take the lease.
        self.end_reading(key);
        self.seek(now, key, Occasion::Rescheduled);
    }

    /// `key` gives `parent` up, for good.
    fn give_up_parent(&mut self, now: Time, key: PeerKey, parent: PeerKey) {
        let peer = &mut self.peers[key];
        if parent == key || peer.blocked.contains(&parent) {
            return;
        }
        if peer.blocked.len() < BLOCKED_MAX {
            peer.blocked.push(parent);
        }
        self.drop_edge(parent, key);
        self.separate(parent, key);
        if self.peers[parent].task == self.peers[key].task {
            self.complain(now, parent);
        }
    }

    fn finished(&mut self, now: Time, key: PeerKey) {
        let stream = self.peers[key].stream;
        match self.advance(now, key, PeerEvent::DownloadSucceeded) {
            Ok(()) => self.close(key, stream, Ok(())),
            Err(refusal) => self.close(key, stream, Err(refusal)),
        }
    }

    fn back_to_source_finished(&mut self, now: Time, key: PeerKey) {
        self.finished(now, key);
        let peer = &self.peers[key];
        if peer.state == PeerState::Succeeded && peer.range.is_none() {
            let record = &mut self.tasks[peer.task];
            record.updated_at = now;
            record.verdict = None;
            if let Some(state) = record.state.after(TaskEvent::DownloadSucceeded) {
                record.state = state;
            }
        }
    }

    fn failed(&mut self, now: Time, key: PeerKey) {
        let stream = self.peers[key].stream;
        let moved = self.advance(now, key, PeerEvent::DownloadFailed);
        self.close(key, stream, moved);
    }

    fn back_to_source_failed(&mut self, now: Time, key: PeerKey) {
        let failure = self.peers[key].source_failure.take();
        self.failed(now, key);
        self.reader_failed(now, key, failure.map(|failure| *failure));
    }

    fn note_piece(&mut self, now: Time, key: PeerKey, cost: std::time::Duration) {
        let peer = &mut self.peers[key];
        peer.piece_updated_at = now;
        peer.updated_at = now;
        peer.finished_piece_count = peer.finished_piece_count.saturating_add(1);
        if peer.state.is_active() {
            peer.costs.push(cost);
        }
        let task = peer.task;
        self.tasks[task].updated_at = now;
    }

    fn touch_parent(&mut self, now: Time, parent: &PeerId) {
        if let Some(parent) = self
            .peer_keys
            .get(parent)
            .and_then(|key| self.peers.get_mut(*key))
        {
            parent.updated_at = now;
            self.hosts[parent.host].updated_at = now;
        }
    }

    fn record_piece(&mut self, key: PeerKey, piece: PieceRecord) {
        let record = &mut self.tasks[self.peers[key].task];
        if piece.number
            < record
                .piece_count
                .unwrap_or(RECORDED_PIECES_MAX)
                .min(RECORDED_PIECES_MAX)
        {
            record.pieces.insert(piece.number, piece);
        }
    }

    fn piece_failed(&mut self, now: Time, key: PeerKey, parent: &PeerId) {
        self.peers[key].updated_at = now;
        if let Some(parent) = self.peer_keys.get(parent).copied() {
            let host = self.peers[parent].host;
            self.hosts[host].uploads.failed_count += 1;
            let peer = &mut self.peers[key];
            if parent != key && !peer.blocked.contains(&parent) && peer.blocked.len() < BLOCKED_MAX
            {
                peer.blocked.push(parent);
            }
            self.complain(now, parent);
        }
    }

    /// The stream of a peer is gone: whoever had not ended leaves at once, so that nobody waits for it.
    pub(crate) fn end_stream(&mut self, now: Time, stream: StreamId, peer_id: &PeerId) {
        let Some(key) = self.peer_keys.get(peer_id).copied() else {
            return;
        };
        let peer = &mut self.peers[key];
        if peer.stream != Some(stream) {
            return;
        }
        peer.stream = None;
        if peer.state.is_active() {
            // Every active state allows it.
            let _ = self.advance(now, key, PeerEvent::Leave);
        }
    }
}

impl Report {
    fn is_about_a_piece(&self) -> bool {
        matches!(
            self,
            Self::PieceFinished { .. }
                | Self::SourcePieceFinished(_)
                | Self::PieceFailed { .. }
                | Self::SourcePieceFailed(_)
        )
    }
}
