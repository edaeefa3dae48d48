//! Reading the content of a download in order while its pieces arrive out of order.
//!
//! A [`Reader`] hands out bytes as soon as they are in the store, also those of a piece that is still arriving (cut-through). What
//! it handed out early is compared with the piece when that is whole; a difference ends the reading with an error. So that nobody
//! takes a torso, or wrong bytes, for the whole, the end is kept back until everything before it has been checked:
//!
//! - the last piece, if the content has to have a digest, until it was found to have it;
//! - else the last [`KEPT_BACK`] bytes, until every piece is whole.
//!
//! Only a short part of a content ([`SMALL_MAX`]) goes out as it comes, since who reads parts (a lazily loading snapshotter) waits
//! for each and checks what it gets by itself.
//!
//! A reader holds no buffer; it says which bytes of the content file may be read ([`Run`]). While it waits, the session knows where
//! it stands and fetches what lies before it first. A short part may also come past the pieces: see [`super::express`].

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use protocol::{ByteRange, Crc32, Crc32Hasher, PieceNumber, SegmentIndex};
use storage::{Lookup, PieceView};

use super::session::Event;
use super::waiting::Download;
use super::{DownloadError, verify::Verification};

/// Bytes at the end of an answer that are kept back until every piece of it was checked.
const KEPT_BACK: u64 = 64 << 10;
/// A part of at most so many bytes is handed out without keeping anything back.
const SMALL_MAX: u64 = 1 << 20;
/// Pieces handed out before they were checked, at most: then the reader waits for the first of them.
const EARLY_MAX: usize = 64;

/// Bytes that may be handed out now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// Bytes of the content file.
    Stored {
        /// First byte, in the content and in its file.
        offset: u64,
        /// How many.
        length: u64,
        /// They are of whole pieces: nobody writes to them any more.
        checked: bool,
    },
    /// All bytes that are still wanted. They are not in the file.
    Express(Bytes),
}

/// See the module.
pub struct Reader {
    download: Download,
    wanted: ByteRange,
    at: u64,
    keep: Keep,
    early: Vec<Early>,
    told: Option<SegmentIndex>,
    to_the_end: bool,
    /// All wanted bytes, once they came past the pieces.
    express: Option<Bytes>,
}

/// What is kept back at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Bytes,
    LastPiece,
}

/// Bytes that were handed out before their piece was checked.
struct Early {
    view: PieceView,
    /// Within the piece.
    from: u64,
    hasher: Crc32Hasher,
    length: u64,
}

/// What a reader waits for.
enum Wait {
    Change,
    Growth(PieceView, u64),
}

impl Reader {
    pub(super) fn new(download: Download) -> Self {
        let started = &download.started;
        let whole = ByteRange::whole(started.content_length);
        let wanted = started.range.unwrap_or(whole);
        let keep = if !download.checks.is_empty() {
            Keep::LastPiece
        } else if wanted.length <= SMALL_MAX && wanted != whole {
            Keep::Nothing
        } else {
            Keep::Bytes
        };
        Self {
            at: wanted.start,
            to_the_end: false,
            early: Vec::new(),
            told: None,
            express: None,
            wanted,
            keep,
            download,
        }
    }

    /// What is known of the download.
    pub fn started(&self) -> &super::Started {
        &self.download.started
    }

    /// The bytes that are read.
    pub fn wanted(&self) -> ByteRange {
        self.wanted
    }

    /// The next bytes, once there are any; `None` behind the last. They count as handed out when [`Reader::took`] says so.
    ///
    /// Cancel-safe. Waits as long as the session works; the session bounds its own waits.
    ///
    /// # Errors
    /// Why there will be no more; also [`DownloadError::Digest`], and bytes that were handed out and proved wrong.
    pub async fn ready(&mut self) -> Result<Option<Run>, DownloadError> {
        loop {
            let verified = self.verified()?;
            if self.at >= self.wanted.end() {
                if verified {
                    return Ok(None);
                }
                // Only an empty content comes here: the rest keeps something back.
                self.wait(Wait::Change).await?;
                continue;
            }
            if self.to_the_end {
                return Ok(Some(self.run(self.wanted.end(), true)));
            }
            if let Some(bytes) = &self.express {
                let at = usize::try_from(self.at - self.wanted.start).unwrap_or(usize::MAX);
                return Ok(Some(Run::Express(bytes.slice(at.min(bytes.len())..))));
            }
            self.download.changes.borrow_and_update();
            self.settle_early().await?;
            let (limit, checked) = self.limit()?;
            let (reached, growing) = self.reached(limit).await?;
            if reached > self.at {
                self.to_the_end = checked && reached == self.wanted.end() && growing.is_none();
                return Ok(Some(self.run(reached, growing.is_none())));
            }
            if self.download.express.is_none() {
                self.tell_position();
            }
            let wait = match growing {
                Some(view) if self.at < limit => {
                    let from = self.at - view.offset();
                    Wait::Growth(view, from)
                }
                _ => Wait::Change,
            };
            self.wait(wait).await?;
        }
    }

    /// The next bytes, those at the front of the last run, were handed out.
    pub fn took(&mut self, bytes: &[u8]) {
        if !self.to_the_end && self.express.is_none() {
            self.remember(bytes);
        }
        self.at += bytes.len() as u64;
    }

    fn run(&self, end: u64, checked: bool) -> Run {
        Run::Stored {
            offset: self.at,
            length: end - self.at,
            checked,
        }
    }

    /// Up to where bytes may be handed out, and whether all of it was checked.
    fn limit(&self) -> Result<(u64, bool), DownloadError> {
        let end = self.wanted.end();
        let started = &self.download.started;
        let verified = self.verified()?;
        let held = started.task.held()?;
        let whole = started.pieces.iter().all(|span| held.get(span.number.0));
        if verified && whole && self.early.is_empty() {
            return Ok((end, true));
        }
        let limit = match self.keep {
            Keep::Nothing => end,
            Keep::Bytes => end - KEPT_BACK.min(self.wanted.length),
            Keep::LastPiece => started.pieces.last().map_or(end, |span| span.offset),
        };
        let limit = if self.early.len() >= EARLY_MAX {
            self.at
        } else {
            limit
        };
        Ok((limit, false))
    }

    fn verified(&self) -> Result<bool, DownloadError> {
        let mut verified = true;
        for check in &self.download.checks {
            match check.verdict() {
                Some(verdict) => verdict?,
                None => verified = false,
            }
        }
        Ok(verified)
    }

    /// How far bytes are there without a gap, and the arriving piece that they end in.
    async fn reached(&self, limit: u64) -> Result<(u64, Option<PieceView>), DownloadError> {
        let task = &self.download.started.task;
        let geometry = task.geometry();
        let mut reached = self.at;
        while reached < limit {
            let Some(piece) = geometry.piece_at(reached) else {
                break;
            };
            match task.piece(piece)? {
                Lookup::Missing => break,
                Lookup::Unverified => verify_piece(task.clone(), piece).await,
                Lookup::Whole(view) => reached = limit.min(view.offset() + view.length()),
                Lookup::Arriving(view) => {
                    // One piece at a time: what is handed out of it has to be remembered.
                    if reached == self.at {
                        let ready = view.ready(reached - view.offset()).unwrap_or(0);
                        reached = limit.min(reached + ready);
                        return Ok((reached, Some(view)));
                    }
                    break;
                }
            }
        }
        Ok((reached, None))
    }

    /// Remembers what was handed out of pieces that are not whole.
    fn remember(&mut self, mut bytes: &[u8]) {
        let task = self.download.started.task.clone();
        let mut at = self.at;
        while !bytes.is_empty() {
            let Some(span) = task
                .geometry()
                .piece_at(at)
                .and_then(|piece| task.geometry().piece(piece))
            else {
                return;
            };
            let room = usize::try_from(span.offset + span.length - at).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            if let Some(early) = self
                .early
                .last_mut()
                .filter(|early| early.view.number() == span.number)
            {
                early.hasher.update(part);
                early.length += part.len() as u64;
            } else if let Ok(Lookup::Arriving(view)) = task.piece(span.number) {
                let mut hasher = Crc32Hasher::new();
                hasher.update(part);
                self.early.push(Early {
                    view,
                    from: at - span.offset,
                    hasher,
                    length: part.len() as u64,
                });
            }
            at += part.len() as u64;
            bytes = rest;
        }
    }

    /// Compares what was handed out early with the pieces that are whole by now.
    async fn settle_early(&mut self) -> Result<(), DownloadError> {
        let mut left = Vec::new();
        for early in std::mem::take(&mut self.early) {
            // Committed by the writer whose bytes went out: they were the right ones.
            if early.view.crc32().is_some() {
                continue;
            }
            let task = early.view.task();
            if early.view.ready(0).is_ok() || !task.held()?.get(early.view.number().0) {
                left.push(early);
                continue;
            }
            // Given up and fetched anew: perhaps with other bytes.
            if early.differs().await? {
                return Err(DownloadError::Retracted {
                    task_id: task.id().clone(),
                    piece: early.view.number(),
                });
            }
        }
        self.early = left;
        Ok(())
    }

    /// Lets the session know where bytes are waited for.
    fn tell_position(&mut self) {
        let geometry = self.download.started.task.geometry();
        let segment = geometry.piece_at(self.at).and_then(|piece| {
            let span = geometry.piece(piece)?;
            geometry.segment_at(piece, self.at - span.offset)
        });
        if segment != self.told
            && let Some(session) = &self.download.session
            && session.events.try_send(Event::ReaderAt(segment)).is_ok()
        {
            self.told = segment;
        }
    }

    async fn wait(&mut self, wait: Wait) -> Result<(), DownloadError> {
        let download = &mut self.download;
        if download.session.is_none() {
            let held = download.started.task.held()?;
            let pieces = &download.started.pieces;
            if !pieces.iter().all(|span| held.get(span.number.0)) {
                // It was here when this began, and proved corrupt since.
                return Err(download.deleted());
            }
        }
        let growth = async {
            match wait {
                Wait::Growth(view, from) => drop(view.wait(from).await),
                Wait::Change => std::future::pending().await,
            }
        };
        let checks = download
            .checks
            .iter_mut()
            .find(|check| check.verdict().is_none());
        let verdict = async {
            match checks {
                Some(check) => drop(check.wait().await),
                None => std::future::pending().await,
            }
        };
        let express = async {
            match &mut download.express {
                Some(express) => express.bytes().await,
                None => std::future::pending().await,
            }
        };
        let Some(session) = &mut download.session else {
            tokio::select! {
                _ = download.changes.changed() => {}
                () = verdict => {}
            }
            return Ok(());
        };
        let ended = session.outcome.borrow_and_update().clone();
        match ended {
            Some(Err(error)) => Err(error),
            // Everything that was wanted is here, or was deleted since; only a verdict may be missing.
            Some(Ok(())) => {
                tokio::select! {
                    () = verdict => Ok(()),
                    changed = download.changes.changed() => {
                        changed.map_err(|_| DownloadError::Stopping)
                    }
                }
            }
            None => {
                tokio::select! {
                    bytes = express => {
                        download.express = None;
                        self.express = bytes;
                        Ok(())
                    }
                    _ = download.changes.changed() => Ok(()),
                    () = growth => Ok(()),
                    () = verdict => Ok(()),
                    changed = session.outcome.changed() => {
                        changed.map_err(|_| DownloadError::Stopping)
                    }
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.told.is_some()
            && let Some(session) = &self.download.session
        {
            let _ = session.events.try_send(Event::ReaderAt(None));
        }
    }
}

impl Early {
    /// Whether the piece, whole by now, has other bytes than were handed out.
    async fn differs(&self) -> Result<bool, DownloadError> {
        let (file, from) = (self.view.file(), self.view.offset() + self.from);
        let (length, sent) = (self.length, self.hasher.finish());
        let now = tokio::task::spawn_blocking(move || crc_of(&file, from, length)).await;
        let now =
            now.map_err(|_| DownloadError::Stopping)?
                .map_err(|error| DownloadError::Write {
                    reason: format!("the content cannot be read back: {error}"),
                })?;
        Ok(now != sent)
    }
}

fn crc_of(file: &std::fs::File, mut at: u64, length: u64) -> std::io::Result<Crc32> {
    let mut hasher = Crc32Hasher::new();
    let end = at + length;
    let mut buffer = vec![0; 64 << 10];
    while at < end {
        let wanted = usize::try_from(end - at)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        file.read_exact_at(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hasher.finish())
}

async fn verify_piece(task: storage::Task, piece: PieceNumber) {
    let verified = tokio::task::spawn_blocking(move || {
        if let Err(error) = task.verify(piece) {
            tracing::warn!(task_id = %task.id(), piece = piece.0, %error, "piece not verified");
        }
    });
    let _ = verified.await;
}

/// Checks that must have ended well before the end of a content is handed out.
pub(super) type Checks = Vec<Verification>;
