//! What a caller of the engine holds: the beginning of a download, then its pieces one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use protocol::{Bitmap, ByteRange, Crc32, PeerId, PieceNumber, PieceSpan, TrafficType};
use storage::{Mark, PieceRecord, Task};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::DownloadError;
use super::express::Express;
use super::reader::{Checks, Reader};
use super::session::{Event, Outcome, SessionHandle};

/// What is known when a download begins.
#[derive(Debug, Clone)]
pub struct Started {
    /// Bytes in the whole content.
    pub content_length: u64,
    /// Bytes in every piece but the last.
    pub piece_length: u64,
    /// The part that was asked for, resolved; absent when everything was.
    pub range: Option<ByteRange>,
    /// Response headers of the origin.
    pub response_header: HashMap<String, String>,
    /// The pieces that will come, in order.
    pub pieces: Vec<PieceSpan>,
    /// Everything wanted is here already.
    pub is_finished: bool,
    /// The task in the store.
    pub task: Task,
    /// This host's part in the task.
    pub peer_id: PeerId,
}

/// One wanted piece that is here.
#[derive(Debug, Clone)]
pub struct PieceDone {
    /// Its number.
    pub number: PieceNumber,
    /// First byte in the content.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Its digest.
    pub digest: Crc32,
    /// Who gave it; absent when the origin did.
    pub parent_id: Option<PeerId>,
    /// Which way it came.
    pub traffic: TrafficType,
    /// From its beginning to its end.
    pub cost: Duration,
    /// When its download began.
    pub created_at: SystemTime,
}

/// A download in progress, as one caller sees it. Dropping it ends the caller's interest.
pub struct Download {
    /// What is known already.
    pub started: Started,
    /// Wanted and not handed out yet.
    left: Bitmap,
    /// Here before this download began.
    local: Bitmap,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) session: Option<Waiting>,
    pub(super) checks: Checks,
    /// What was wanted, on its way past the pieces.
    pub(super) express: Option<Express>,
}

/// The session that works for a download.
pub(super) struct Waiting {
    pub(super) outcome: watch::Receiver<Outcome>,
    pub(super) events: mpsc::Sender<Event>,
    _interest: Arc<()>,
}

impl Download {
    pub(super) fn new(
        started: Started,
        wanted: Bitmap,
        local: Bitmap,
        session: Option<SessionHandle>,
        checks: Checks,
    ) -> Self {
        Self {
            changes: started.task.changes(),
            started,
            left: wanted,
            local,
            checks,
            express: None,
            session: session.map(|session| Waiting {
                outcome: session.outcome,
                events: session.events,
                _interest: session.interest,
            }),
        }
    }

    /// The same download, to be read in order instead of piece by piece.
    pub fn into_reader(self) -> Reader {
        Reader::new(self)
    }

    /// The next wanted piece that is here, in no particular order; `None` when all were handed out. Of a content that must have
    /// a digest the last one is only handed out when it was found to have it.
    ///
    /// Cancel-safe. Waits as long as the session works; the session bounds its own waits.
    ///
    /// # Errors
    /// The error that ended the session; all pieces that arrived before it are handed out first.
    pub async fn next(&mut self) -> Option<Result<PieceDone, DownloadError>> {
        loop {
            self.changes.borrow_and_update();
            if let Some(done) = self.ready() {
                return Some(Ok(done));
            }
            if self.left.count() == 0 {
                self.finished();
                return None;
            }
            if self.left.count() == 1
                && let Some(check) = self
                    .checks
                    .iter_mut()
                    .find(|check| check.verdict().is_none())
                && self
                    .started
                    .task
                    .held()
                    .is_ok_and(|held| self.left.ones().all(|piece| held.get(piece)))
            {
                // Everything is here: only the verdict is missing.
                if let Err(error) = check.wait().await {
                    self.left = Bitmap::new(0);
                    return Some(Err(error));
                }
                continue;
            }
            let ended = match &mut self.session {
                None => Some(Err(self.deleted())),
                Some(session) => {
                    let current = session.outcome.borrow_and_update().clone();
                    match current {
                        Some(ended) => Some(ended),
                        None => {
                            tokio::select! {
                                _ = self.changes.changed() => {}
                                changed = session.outcome.changed() => if changed.is_err() {
                                    return Some(Err(DownloadError::Stopping));
                                },
                            }
                            continue;
                        }
                    }
                }
            };
            // A piece may have become whole between looking and the end of the session.
            if let Some(done) = self.ready() {
                return Some(Ok(done));
            }
            if let Some(ended) = ended {
                let refuted = self.checks.iter().find_map(|check| check.verdict()?.err());
                let error = refuted.or(ended.err()).unwrap_or_else(|| self.deleted());
                self.left = Bitmap::new(0);
                return Some(Err(error));
            }
        }
    }

    /// Whoever is told that all is here may ask at once whether it is: the session, which has other things to end, need not
    /// have said so yet.
    fn finished(&self) {
        let task = &self.started.task;
        if self
            .checks
            .iter()
            .all(|check| matches!(check.verdict(), Some(Ok(()))))
            && task.summary().times.finished_at.is_none()
            && task.is_complete().unwrap_or(false)
            && let Err(error) = task.mark(Mark::Finished)
        {
            debug!(task_id = %task.id(), %error, "task not marked");
        }
    }

    pub(super) fn deleted(&self) -> DownloadError {
        DownloadError::Invalid(format!(
            "task {} was deleted while it was downloaded: start the download again",
            self.started.task.id()
        ))
    }

    fn ready(&mut self) -> Option<PieceDone> {
        let task = &self.started.task;
        let held = task.held().ok()?;
        let number = self.left.ones().find(|&piece| held.get(piece))?;
        if self.left.count() == 1
            && !self
                .checks
                .iter()
                .all(|check| matches!(check.verdict(), Some(Ok(()))))
        {
            return None;
        }
        let record = task.piece_record(PieceNumber(number))?;
        self.left.clear(number);
        Some(self.done(record))
    }

    fn done(&self, record: PieceRecord) -> PieceDone {
        let local = self.local.get(record.number.0);
        PieceDone {
            number: record.number,
            offset: record.offset,
            length: record.length,
            digest: record.crc32,
            parent_id: record.origin.parent,
            traffic: if local {
                TrafficType::LocalPeer
            } else {
                record.origin.traffic
            },
            cost: record.origin.cost,
            created_at: record.origin.created_at,
        }
    }
}
