//! A task that someone uses: its open files and the state of each piece.
//!
//! Lock order: journal before state. Whatever makes a piece whole or drops it holds the journal from before its record
//! is written until the state says the same, so that the journal tells the pieces' story in the order in which it
//! happened. The state lock is held for memory and a `fstat` only, never across a write.
//!
//! **Trust.** A whole piece is *verified* when its bytes were digested since anything could have changed them. The content file's
//! [`Stamp`] (length and modification time) is remembered whenever no piece is arriving; if it differs at the next look, someone
//! else wrote to the file, for example through a hard link of an export, and every piece has to be verified again.
//!
//! **Given away.** A content file that somebody has changed under another name is his: it is never written to again, and the store
//! forgets the task when it is looked up next. So is one of which pieces are missing while it has other names.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use protocol::{Bitmap, Crc32, Digest, Geometry, PieceNumber, PieceSpan};
use tokio::sync::watch;

use crate::arrival::{Arrival, End, SharedArrival};
use crate::digest;
use crate::error::{CommitError, DiskContext, DiskError, TaskError};
use crate::journal::{EpochStamp, Journal, PieceEntry, Record, Replay, Stamp};
use crate::meta::{Mark, NewTask, OriginUse, PieceOrigin, PieceRecord, Retention, TaskTimes};
use crate::sys;

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) task: NewTask,
    pub(crate) content: Arc<File>,
    pub(crate) content_path: PathBuf,
    journal: Mutex<Journal>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    /// Bytes of whole pieces, for admission to read without a lock.
    recorded_bytes: Arc<AtomicU64>,
    epoch: u64,
    /// Held while bytes are written to the content file.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    times: TaskTimes,
    retention: (Retention, Option<Duration>),
    origin_use: Option<OriginUse>,
    recorded_pieces: u32,
    arriving: u32,
    /// How the content file looked when it was last known to be ours; unknown while pieces arrive.
    stamp: Option<Stamp>,
    journaled_stamp: Option<Stamp>,
    /// What the whole content hashes to, as far as anybody has looked.
    confirmed: Vec<Digest>,
    /// Somebody has changed the content file, which he has under another name.
    given_away: bool,
    deleted: bool,
}

/// Sixteen bytes for each piece of a task in use; what a whole piece adds is on the heap.
#[derive(Debug)]
enum Slot {
    Missing,
    Arriving(SharedArrival),
    Whole(Box<Held>),
}

#[derive(Debug)]
struct Held {
    entry: PieceEntry,
    verified: bool,
}

/// A piece as a caller may find it.
#[derive(Debug)]
pub(crate) enum Found {
    Missing,
    Arriving(SharedArrival),
    Unverified,
    Whole(Crc32),
}

/// What the summary of an idle task takes from a task in use.
#[derive(Debug, Clone)]
pub(crate) struct Parked {
    pub(crate) times: TaskTimes,
    pub(crate) retention: (Retention, Option<Duration>),
    pub(crate) recorded_pieces: u32,
}

impl Live {
    /// A task that was just created.
    pub(crate) fn fresh(
        task: NewTask,
        created_at: SystemTime,
        files: (File, PathBuf, Journal),
        recorded_bytes: Arc<AtomicU64>,
        epoch: u64,
    ) -> Self {
        let slots = std::iter::repeat_with(|| Slot::Missing)
            .take(task.geometry.piece_count() as usize)
            .collect();
        let (content, content_path, journal) = files;
        let stamp = sys::stamp(&content).ok();
        let state = State {
            slots,
            times: TaskTimes::new(created_at),
            retention: (task.retention, task.ttl),
            origin_use: None,
            recorded_pieces: 0,
            arriving: 0,
            stamp,
            journaled_stamp: None,
            confirmed: Vec::new(),
            given_away: false,
            deleted: false,
        };
        let (journal, state, changes) = (
            Mutex::new(journal),
            Mutex::new(state),
            watch::Sender::new(0),
        );
        Self {
            task,
            content: Arc::new(content),
            content_path,
            journal,
            state,
            changes,
            recorded_bytes,
            epoch,
            turn: Arc::default(),
        }
    }

    /// A task as its journal tells it. `trusted` says whether stamps of this epoch are believed.
    pub(crate) fn recovered(
        replay: Replay,
        files: (File, PathBuf, Journal),
        recorded_bytes: Arc<AtomicU64>,
        epoch: u64,
        trusted: bool,
    ) -> Result<Self, DiskError> {
        let (pieces, times, journaled) = (replay.pieces, replay.times, replay.stamp);
        let origin_use = replay.origin_use;
        let confirmed = replay.confirmed;
        let live = Self::fresh(replay.task, times.created_at, files, recorded_bytes, epoch);
        let now = sys::stamp(&live.content).doing("look at", &live.content_path)?;
        let verified = trusted && journaled == Some(EpochStamp { epoch, stamp: now });
        let mut state = live.state.lock();
        state.given_away =
            journaled.is_some_and(|at| at.stamp != now) && sys::has_other_names(&live.content);
        state.times = times;
        state.origin_use = origin_use;
        state.confirmed = confirmed;
        for (number, entry) in pieces {
            state.recorded_pieces += 1;
            state.slots[number as usize] = Slot::Whole(Box::new(Held { entry, verified }));
        }
        state.journaled_stamp = journaled.filter(|at| at.epoch == epoch).map(|at| at.stamp);
        live.repair_length(&mut state)?;
        drop(state);
        Ok(live)
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.task.geometry
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn span(&self, piece: PieceNumber) -> Result<PieceSpan, TaskError> {
        let no_such_piece = || TaskError::NoSuchPiece {
            task: self.task.id.clone(),
            piece,
            count: self.task.geometry.piece_count(),
        };
        self.task.geometry.piece(piece).ok_or_else(no_such_piece)
    }

    /// Looks at a piece, after making sure that nobody else has touched the content.
    pub(crate) fn find(&self, piece: PieceNumber) -> Result<Found, TaskError> {
        self.span(piece)?;
        let state = self.checked_state()?;
        Ok(match &state.slots[piece.index()] {
            Slot::Missing => Found::Missing,
            Slot::Arriving(arrival) => Found::Arriving(Arc::clone(arrival)),
            Slot::Whole(held) if held.verified => Found::Whole(held.entry.crc32),
            Slot::Whole(_) => Found::Unverified,
        })
    }

    /// As [`Live::find`], but a missing piece becomes an arriving one, which the caller has to end.
    pub(crate) fn claim(
        &self,
        piece: PieceNumber,
    ) -> Result<Result<SharedArrival, Found>, TaskError> {
        let span = self.span(piece)?;
        let mut state = self.checked_state()?;
        let found = match &state.slots[piece.index()] {
            Slot::Missing if state.arriving == 0 && sys::has_other_names(&self.content) => {
                drop(state);
                self.set_deleted();
                return Err(TaskError::Deleted {
                    task: self.task.id.clone(),
                });
            }
            Slot::Missing => {
                let turn = Arc::clone(&self.turn);
                let segment_length = self.task.geometry.segment_length();
                let arrival = Arc::new(Arrival::new(span, segment_length, turn));
                state.slots[piece.index()] = Slot::Arriving(Arc::clone(&arrival));
                state.arriving += 1;
                return Ok(Ok(arrival));
            }
            Slot::Arriving(arrival) => Found::Arriving(Arc::clone(arrival)),
            Slot::Whole(held) if held.verified => Found::Whole(held.entry.crc32),
            Slot::Whole(_) => Found::Unverified,
        };
        Ok(Err(found))
    }

    /// Makes an arrived piece whole: digest, then record, then state, then everybody learns of it.
    pub(crate) fn commit(
        &self,
        arrival: &SharedArrival,
        expected: Option<Crc32>,
        origin: PieceOrigin,
    ) -> Result<PieceRecord, CommitError> {
        let (task, piece) = (|| self.task.id.clone(), arrival.number());
        let (span, got) = self.digest_as_expected(arrival, expected)?;
        let mut journal = self.journal.lock();
        if self.state.lock().deleted {
            return Err(CommitError::Deleted { task: task() });
        }
        if arrival.end() != End::Open {
            return Err(CommitError::Ended {
                task: task(),
                piece,
            });
        }
        let entry = PieceEntry { crc32: got, origin };
        journal.append(&Record::Piece {
            number: piece.0,
            piece: entry.clone(),
        })?;
        let record = self.record(span, &entry);
        arrival.close(End::Committed);
        let mut state = self.state.lock();
        state.slots[piece.index()] = Slot::Whole(Box::new(Held {
            entry,
            verified: true,
        }));
        state.recorded_pieces += 1;
        state.journaled_stamp = None;
        self.one_arrived(&mut state);
        drop((state, journal));
        self.recorded_bytes
            .fetch_add(span.length, Ordering::Relaxed);
        self.changed();
        Ok(record)
    }

    /// Gives up an arriving piece: it is missing again. Does nothing when it has ended already.
    pub(crate) fn abandon(&self, arrival: &SharedArrival) {
        // Not in the middle of a commit by another thread.
        let _journal = self.journal.lock();
        if !arrival.close(End::Abandoned) {
            return;
        }
        let mut state = self.state.lock();
        let slot = &mut state.slots[arrival.number().index()];
        if matches!(slot, Slot::Arriving(current) if Arc::ptr_eq(current, arrival)) {
            *slot = Slot::Missing;
        }
        self.one_arrived(&mut state);
        drop(state);
        self.changed();
    }

    /// Digests a whole piece again. A piece with other bytes than were recorded is dropped.
    pub(crate) fn verify(&self, piece: PieceNumber) -> Result<Option<bool>, TaskError> {
        let span = self.span(piece)?;
        let entry = match &self.checked_state()?.slots[piece.index()] {
            Slot::Whole(held) => held.entry.clone(),
            _ => return Ok(None),
        };
        let good = digest::of_span(&self.content, &self.content_path, span)? == Some(entry.crc32);
        let mut journal = self.journal.lock();
        let mut state = self.state.lock();
        match &mut state.slots[piece.index()] {
            Slot::Whole(held) if held.entry == entry => held.verified = good,
            // It was dropped by someone else meanwhile; what is there now is another matter.
            _ => return Ok(None),
        }
        if good {
            return Ok(Some(true));
        }
        drop(state);
        journal.append(&Record::Dropped { number: piece.0 })?;
        let mut state = self.state.lock();
        state.slots[piece.index()] = Slot::Missing;
        state.recorded_pieces -= 1;
        state.journaled_stamp = None;
        state.confirmed.clear();
        drop((state, journal));
        self.recorded_bytes
            .fetch_sub(span.length, Ordering::Relaxed);
        tracing::warn!(task_id = %self.task.id, piece = piece.0, "piece is corrupt on disk, dropped");
        self.changed();
        Ok(Some(false))
    }

    /// The pieces that are whole; only those that are verified, or all that have a record.
    pub(crate) fn whole(&self, which: Which) -> Result<Bitmap, TaskError> {
        let state = self.checked_state()?;
        let mut whole = Bitmap::new(self.task.geometry.piece_count());
        for (number, slot) in (0..).zip(&state.slots) {
            if matches!(slot, Slot::Whole(held) if held.verified || which == Which::Recorded) {
                whole.set(number);
            }
        }
        Ok(whole)
    }

    pub(crate) fn piece_record(&self, piece: PieceNumber) -> Option<PieceRecord> {
        let span = self.task.geometry.piece(piece)?;
        match &self.state.lock().slots[piece.index()] {
            Slot::Whole(held) => Some(self.record(span, &held.entry)),
            _ => None,
        }
    }

    pub(crate) fn mark(&self, mark: Mark, at: SystemTime) -> Result<(), TaskError> {
        let mut journal = self.journal.lock();
        self.not_deleted()?;
        journal.append(&Record::Mark { mark, at })?;
        self.state.lock().times.apply(
            mark,
            crate::journal::from_millis(crate::journal::millis(at)),
        );
        drop(journal);
        self.changed();
        Ok(())
    }

    pub(crate) fn set_retention(
        &self,
        retention: Retention,
        ttl: Option<Duration>,
    ) -> Result<(), TaskError> {
        let mut journal = self.journal.lock();
        self.not_deleted()?;
        journal.append(&Record::Retention { retention, ttl })?;
        self.state.lock().retention = (retention, ttl);
        Ok(())
    }

    pub(crate) fn note_origin_use(&self, origin_use: OriginUse) -> Result<(), TaskError> {
        let mut journal = self.journal.lock();
        self.not_deleted()?;
        journal.append(&Record::OriginUse(origin_use.clone()))?;
        self.state.lock().origin_use = Some(origin_use);
        Ok(())
    }

    pub(crate) fn origin_use(&self) -> Option<OriginUse> {
        self.state.lock().origin_use.clone()
    }

    pub(crate) fn confirm(&self, digest: Digest) -> Result<(), TaskError> {
        let mut journal = self.journal.lock();
        self.not_deleted()?;
        journal.append(&Record::Confirmed {
            digest: digest.clone(),
        })?;
        crate::journal::confirm(&mut self.state.lock().confirmed, digest);
        drop(journal);
        self.changed();
        Ok(())
    }

    pub(crate) fn is_confirmed(&self, digest: &Digest) -> bool {
        self.state.lock().confirmed.contains(digest)
    }

    pub(crate) fn parked(&self) -> Parked {
        let state = self.state.lock();
        Parked {
            times: state.times,
            retention: state.retention,
            recorded_pieces: state.recorded_pieces,
        }
    }

    /// Whether the content file is somebody else's now. See the module.
    pub(crate) fn is_given_away(&self) -> bool {
        let state = self.state.lock();
        let is_whole = state.recorded_pieces == self.task.geometry.piece_count();
        let is_as_left =
            || is_whole && state.stamp.is_some() && state.stamp == sys::stamp(&self.content).ok();
        state.given_away
            || state.arriving == 0 && sys::has_other_names(&self.content) && !is_as_left()
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.state.lock().deleted
    }

    /// Its files are going: every operation fails from here on, every reader of an arriving piece learns it when its
    /// writer ends.
    pub(crate) fn set_deleted(&self) {
        self.state.lock().deleted = true;
        self.changed();
    }

    /// Nobody uses it any more: writes down that all its pieces are verified, if they are, and when it was used.
    pub(crate) fn park(&self) {
        let mut journal = self.journal.lock();
        let Ok(mut state) = self.checked_state() else {
            return;
        };
        let verified = state
            .slots
            .iter()
            .all(|slot| !matches!(slot, Slot::Whole(held) if !held.verified));
        let stamp = state
            .stamp
            .filter(|stamp| verified && state.journaled_stamp != Some(*stamp));
        if let Some(stamp) = stamp {
            state.journaled_stamp = Some(stamp);
            drop(state);
            if let Err(error) = journal.append(&Record::Stamp(EpochStamp {
                epoch: self.epoch,
                stamp,
            })) {
                tracing::debug!(task_id = %self.task.id, %error, "stamp not written, pieces will be verified again");
            }
        } else {
            drop(state);
            sys::touch(journal.file());
        }
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn not_deleted(&self) -> Result<(), TaskError> {
        match self.state.lock().deleted {
            true => Err(TaskError::Deleted {
                task: self.task.id.clone(),
            }),
            false => Ok(()),
        }
    }

    fn record(&self, span: PieceSpan, entry: &PieceEntry) -> PieceRecord {
        let PieceEntry { crc32, origin } = entry.clone();
        PieceRecord {
            number: span.number,
            offset: span.offset,
            length: span.length,
            crc32,
            origin,
        }
    }

    /// The digest of an arrived piece. One that is not as expected is given up at once.
    fn digest_as_expected(
        &self,
        arrival: &SharedArrival,
        expected: Option<Crc32>,
    ) -> Result<(PieceSpan, Crc32), CommitError> {
        let (task, span) = (|| self.task.id.clone(), arrival.span());
        let piece = span.number;
        let Some(got) = arrival.digest() else {
            let (received, length) = (arrival.received(), span.length);
            return Err(CommitError::Incomplete {
                task: task(),
                piece,
                received,
                length,
            });
        };
        match expected.filter(|expected| *expected != got) {
            None => Ok((span, got)),
            Some(expected) => {
                self.abandon(arrival);
                Err(CommitError::DigestMismatch {
                    task: task(),
                    piece,
                    got,
                    expected,
                })
            }
        }
    }

    /// The state, after every piece lost its verification if the content file is not as it was left.
    fn checked_state(&self) -> Result<MutexGuard<'_, State>, TaskError> {
        let mut state = self.state.lock();
        if state.deleted {
            return Err(TaskError::Deleted {
                task: self.task.id.clone(),
            });
        }
        if state.arriving == 0 {
            let now = sys::stamp(&self.content).doing("look at", &self.content_path)?;
            if state.stamp != Some(now) {
                self.distrust(&mut state)?;
            }
        }
        Ok(state)
    }

    fn distrust(&self, state: &mut State) -> Result<(), DiskError> {
        tracing::warn!(task_id = %self.task.id, "content file was changed by someone else, verifying its pieces again");
        for slot in &mut state.slots {
            if let Slot::Whole(held) = slot {
                held.verified = false;
            }
        }
        state.given_away |= sys::has_other_names(&self.content);
        self.repair_length(state)
    }

    /// A content file that was cut gets its length back: the lost bytes read as zeros, which no digest takes for the piece.
    fn repair_length(&self, state: &mut State) -> Result<(), DiskError> {
        let length = self.task.geometry.content_length();
        let now = sys::stamp(&self.content).doing("look at", &self.content_path)?;
        if now.len != length && !state.given_away {
            self.content
                .set_len(length)
                .doing("restore the length of", &self.content_path)?;
            // Its blocks went with the cut. Without them the writes themselves will tell whether there is space.
            let _ = sys::reserve(&self.content, length);
        }
        state.stamp = Some(sys::stamp(&self.content).doing("look at", &self.content_path)?);
        Ok(())
    }

    /// One arriving piece less. After the last one the file is ours as it is now.
    fn one_arrived(&self, state: &mut State) {
        state.arriving -= 1;
        if state.arriving == 0 {
            let length = self.task.geometry.content_length();
            state.stamp = sys::stamp(&self.content)
                .ok()
                .filter(|stamp| stamp.len == length);
        }
    }
}

/// Which whole pieces are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Verified,
    Recorded,
}

/// Opens a task's content file for reading and writing.
pub(crate) fn open_content(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .doing("open", path)
}
