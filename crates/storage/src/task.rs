//! A handle on a task: what the engine, the upload side and the exporter work with.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use protocol::{Bitmap, ByteRange, Crc32, Digest, Geometry, PieceNumber, TaskId};
use tokio::sync::watch;

use crate::arrival::{End, SharedArrival};
use crate::entry::Entry;
use crate::error::{CommitError, ExportError, TaskError, WriteError};
use crate::export::{self, Export, Exported};
use crate::live::{Found, Live, Which};
use crate::meta::{Mark, NewTask, OriginUse, PieceOrigin, PieceRecord, Retention, TaskSummary};
use crate::piece::PieceView;
use crate::store::Inner;

/// Longest reason for reading the origin that is kept, in bytes.
const ORIGIN_REASON_LEN_MAX: usize = 1 << 10;

/// A task in use. Cheap to clone. As long as a handle, or a writer or view made from one, is held, the task's files are
/// open and nothing evicts it.
///
/// Every method is synchronous and short (memory, at most one small write to the page cache) unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Task {
    handle: Arc<Handle>,
}

/// What all clones of a [`Task`] share; its end parks the task.
#[derive(Debug)]
pub(crate) struct Handle {
    store: Arc<Inner>,
    entry: Arc<Entry>,
    live: Arc<Live>,
}

/// What [`Task::claim`] found.
#[derive(Debug)]
#[must_use]
pub enum Claim {
    /// The piece was missing; it is the caller's now.
    Yours(PieceWriter),
    /// Someone else is receiving it: wait for it, or read behind its writer.
    Busy(PieceView),
    /// It is there.
    Whole(PieceView),
    /// It was there when the store was closed, or before the content was touched: [`Task::verify`] it, then claim again.
    Unverified,
}

/// What [`Task::piece`] found.
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// Not here.
    Missing,
    /// Being received: what has arrived can be read, and the rest waited for. Its bytes are not verified yet.
    Arriving(PieceView),
    /// It was there when the store was closed, or before the content was touched: [`Task::verify`] it, then look again.
    Unverified,
    /// All there, and verified.
    Whole(PieceView),
}

/// What [`Task::verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The bytes are those that were recorded.
    Good,
    /// They were not; the piece is missing now.
    Dropped,
    /// There is no whole piece to verify.
    NotWhole,
}

impl Task {
    pub(crate) fn new(
        store: Arc<Inner>,
        entry: Arc<Entry>,
        live: Arc<Live>,
    ) -> (Self, Weak<Handle>) {
        let handle = Arc::new(Handle { store, entry, live });
        let weak = Arc::downgrade(&handle);
        (Self { handle }, weak)
    }

    pub(crate) fn from_handle(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.handle.live
    }

    /// Its id.
    pub fn id(&self) -> &TaskId {
        &self.handle.live.task.id
    }

    /// What was known when it was created. Retention and lifetime may have been set anew since: see [`Task::summary`].
    pub fn description(&self) -> &NewTask {
        &self.handle.live.task
    }

    /// How its content is cut.
    pub fn geometry(&self) -> &Geometry {
        self.handle.live.geometry()
    }

    /// Its numbers and times as of now.
    pub fn summary(&self) -> TaskSummary {
        self.handle.entry.summary()
    }

    /// The content file, at its full length from the beginning. Only bytes that [`Task::piece`] or [`Task::available`]
    /// call readable mean anything.
    pub fn content_file(&self) -> Arc<File> {
        Arc::clone(&self.handle.live.content)
    }

    /// The pieces that are whole and verified: what may be announced and served.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn held(&self) -> Result<Bitmap, TaskError> {
        self.handle.live.whole(Which::Verified)
    }

    /// The pieces that have a record, verified or not.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn recorded(&self) -> Result<Bitmap, TaskError> {
        self.handle.live.whole(Which::Recorded)
    }

    /// Whether every piece is whole and verified.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn is_complete(&self) -> Result<bool, TaskError> {
        Ok(self.held()?.is_full())
    }

    /// Looks a piece up.
    ///
    /// # Errors
    /// [`TaskError`], of which [`TaskError::NoSuchPiece`] is the caller's mistake.
    pub fn piece(&self, piece: PieceNumber) -> Result<Lookup, TaskError> {
        Ok(match self.handle.live.find(piece)? {
            Found::Missing => Lookup::Missing,
            Found::Arriving(arrival) => Lookup::Arriving(self.arriving_view(piece, arrival)?),
            Found::Unverified => Lookup::Unverified,
            Found::Whole(crc32) => Lookup::Whole(self.whole_view(piece, crc32)?),
        })
    }

    /// How many bytes can be read from `offset` of a piece on: all the rest if it is whole and verified, what has arrived without
    /// a gap if it is arriving, else 0.
    ///
    /// # Errors
    /// As [`Task::piece`].
    pub fn available(&self, piece: PieceNumber, offset: u64) -> Result<u64, TaskError> {
        let length = self.handle.live.span(piece)?.length;
        Ok(match self.handle.live.find(piece)? {
            Found::Missing | Found::Unverified => 0,
            Found::Arriving(arrival) => arrival.available(offset),
            Found::Whole(_) => length.saturating_sub(offset),
        })
    }

    /// Takes a missing piece for writing, or says who has it. At most one writer of a piece exists at a time.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn claim(&self, piece: PieceNumber) -> Result<Claim, TaskError> {
        Ok(match self.handle.live.claim(piece)? {
            Ok(arrival) => Claim::Yours(PieceWriter {
                task: self.clone(),
                arrival,
            }),
            Err(Found::Arriving(arrival)) => Claim::Busy(self.arriving_view(piece, arrival)?),
            Err(Found::Whole(crc32)) => Claim::Whole(self.whole_view(piece, crc32)?),
            Err(Found::Missing | Found::Unverified) => Claim::Unverified,
        })
    }

    /// Reads a whole piece and compares its digest with the recorded one; a corrupt piece is dropped and can be claimed
    /// anew. Reads up to a piece length from the disk: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`TaskError`]. A sector that cannot be read is a dropped piece, not an error.
    pub fn verify(&self, piece: PieceNumber) -> Result<Verdict, TaskError> {
        Ok(match self.handle.live.verify(piece)? {
            Some(true) => Verdict::Good,
            Some(false) => Verdict::Dropped,
            None => Verdict::NotWhole,
        })
    }

    /// Verifies every piece that needs it, in order. Afterwards [`Task::held`] says what is left. Reads up to the
    /// whole content: call it where blocking is allowed, or piece by piece with [`Task::verify`].
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn verify_all(&self) -> Result<(), TaskError> {
        let held = self.held()?;
        for number in self.recorded()?.ones().filter(|number| !held.get(*number)) {
            self.verify(PieceNumber(number))?;
        }
        Ok(())
    }

    /// What is recorded of a whole piece.
    pub fn piece_record(&self, piece: PieceNumber) -> Option<PieceRecord> {
        self.handle.live.piece_record(piece)
    }

    /// Writes down what happened to the task. Needs no flush: after a power loss the mark may be missing.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn mark(&self, mark: Mark) -> Result<(), TaskError> {
        self.handle.live.mark(mark, SystemTime::now())
    }

    /// Writes down that the origin is read now, and why; the last reason is kept. A long one is cut to 1 KiB.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn note_origin_use(&self, reason: &str) -> Result<(), TaskError> {
        let end = reason.floor_char_boundary(ORIGIN_REASON_LEN_MAX);
        self.handle.live.note_origin_use(OriginUse {
            reason: reason[..end].to_owned(),
            at: crate::journal::from_millis(crate::journal::millis(SystemTime::now())),
        })
    }

    /// Why the origin was read last, if it was.
    pub fn origin_use(&self) -> Option<OriginUse> {
        self.handle.live.origin_use()
    }

    /// Writes down that the whole content was read and has this digest. Whoever needs to know later does not have to read it again.
    /// Forgotten when a piece proves corrupt and is dropped.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn confirm(&self, digest: Digest) -> Result<(), TaskError> {
        self.handle.live.confirm(digest)
    }

    /// Whether the whole content is known to have this digest.
    pub fn is_confirmed(&self, digest: &Digest) -> bool {
        self.handle.live.is_confirmed(digest)
    }

    /// Sets anew whether a full disk may take the task, and how long it lives, counted from its creation.
    ///
    /// # Errors
    /// [`TaskError::Deleted`], [`TaskError::Disk`].
    pub fn set_retention(
        &self,
        retention: Retention,
        ttl: Option<Duration>,
    ) -> Result<(), TaskError> {
        self.handle.live.set_retention(retention, ttl)
    }

    /// Counts the changes of the task: a piece became whole, was given up or dropped, a mark was set, the task was deleted. For
    /// the growth of an arriving piece see [`PieceView::wait`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.handle.live.changes()
    }

    /// Whether the task was deleted while this handle was held.
    pub fn is_deleted(&self) -> bool {
        self.handle.live.is_deleted()
    }

    /// Gives the complete content a second name or a copy at `destination`, by the cheapest way that works: hard link,
    /// reflink, copy within the kernel, copy. May copy the whole content: call it where blocking is allowed.
    ///
    /// A symbolic link at `destination` is never followed: it counts as something that exists, and is itself replaced
    /// when overwriting is allowed. The destination changes in one step: nobody sees a part of a copy.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, destination: &Path, how: &Export) -> Result<Exported, ExportError> {
        export::whole(self, destination, how)
    }

    /// Copies a part of the content to a file of its own; the pieces that the range touches have to be whole. Otherwise as [`Task::export`], but
    /// never a hard link.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export_range(
        &self,
        range: ByteRange,
        destination: &Path,
        how: &Export,
    ) -> Result<Exported, ExportError> {
        export::range(self, range, destination, how)
    }

    fn arriving_view(
        &self,
        piece: PieceNumber,
        arrival: SharedArrival,
    ) -> Result<PieceView, TaskError> {
        Ok(PieceView::arriving(
            self.clone(),
            self.handle.live.span(piece)?,
            arrival,
        ))
    }

    fn whole_view(&self, piece: PieceNumber, crc32: Crc32) -> Result<PieceView, TaskError> {
        Ok(PieceView::whole(
            self.clone(),
            self.handle.live.span(piece)?,
            crc32,
        ))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.store.let_go(&self.entry, &self.live);
    }
}

/// The right to write one missing piece. Share it in an `Arc` between the threads that write its segments.
///
/// Dropped without [`PieceWriter::commit`], the piece is given up: its bytes are forgotten, and readers behind it are
/// told.
#[derive(Debug)]
pub struct PieceWriter {
    task: Task,
    arrival: SharedArrival,
}

impl PieceWriter {
    /// Which piece it is.
    pub fn number(&self) -> PieceNumber {
        self.arrival.number()
    }

    /// The task that the piece belongs to.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Takes the bytes that start at `offset` of the piece, digests them and shows them to readers. They may span several segments.
    /// In each segment they must not start behind what it has; bytes that it has already are passed over, so two sources may send the
    /// same. Returns how many bytes were new.
    ///
    /// Blocks for the write, and for another writer of the same segment.
    ///
    /// # Errors
    /// [`WriteError`]. What was taken before the error stays.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<u64, WriteError> {
        let live = self.task.live();
        self.arrival
            .write(&live.content, &live.content_path, offset, data)
    }

    /// Bytes that are there from `offset` of the piece on, without a gap: where a source has to continue.
    pub fn available(&self, offset: u64) -> u64 {
        self.arrival.available(offset)
    }

    /// How many bytes of the piece are there, in all its segments.
    pub fn received(&self) -> u64 {
        self.arrival.received()
    }

    /// A view that reads behind this writer.
    ///
    /// # Errors
    /// [`TaskError`], never in practice: the piece exists.
    pub fn view(&self) -> Result<PieceView, TaskError> {
        self.task
            .arriving_view(self.number(), Arc::clone(&self.arrival))
    }

    /// Makes the piece whole, if all bytes are there and have the expected digest. Only now it is recorded, and survives
    /// the end of the process.
    ///
    /// # Errors
    /// [`CommitError`]: it says for each case whether the writer stays usable.
    pub fn commit(
        &self,
        expected: Option<Crc32>,
        origin: PieceOrigin,
    ) -> Result<PieceRecord, CommitError> {
        self.task.live().commit(&self.arrival, expected, origin)
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if self.arrival.end() == End::Open {
            self.task.live().abandon(&self.arrival);
        }
    }
}
