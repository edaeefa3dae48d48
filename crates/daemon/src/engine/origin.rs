//! Reading a task from its origin into the store.
//!
//! The unit of work is a run: neighbouring pieces read by one request. An origin that serves ranges is read as several
//! runs of one piece each, in order; one that does not is read as a single run from the front. Bytes go to the store as
//! they come, in batches on the blocking pool, so children can be served from a piece that is still arriving.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use protocol::{Bitmap, ByteRange, PieceNumber, SegmentIndex};
use source::{Facts, Get, RangeSupport, Retry, SourceError, Version};
use storage::PieceWriter;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pieces::Pieces;
use super::session::Event;
use super::{DownloadSpec, Inner};
use crate::link::{HeraldEvent, TaskLinks};

/// Bytes gathered before they are written; also how coarsely children see a piece grow.
const BATCH_LEN: usize = 128 << 10;
/// So few bytes are in the page cache sooner than a thread has been woken for them.
const INLINE_MAX: u64 = 32 << 10;
/// Runs that may fail one after the other before the origin is given up.
const FAILURES_MAX: u32 = 3;
/// Pause after a failed run, doubled with each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// A longer wait than this, asked for by the origin, is a failure.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the origin brought.
#[derive(Debug)]
pub enum OriginEvent {
    /// All bytes of a piece are in the store, or could not be put there.
    Piece {
        /// The piece.
        piece: PieceNumber,
        /// A text that says why not.
        written: Result<(), String>,
    },
    /// A piece was not read.
    Failed {
        /// The piece.
        piece: PieceNumber,
        /// Why.
        error: Arc<SourceError>,
    },
}

/// Decides what is read next and counts what is being read.
pub(super) struct OriginReader {
    version: Version,
    ranges: RangeSupport,
    stage: Stage,
    pace: Pace,
    received: Arc<AtomicU64>,
    received_seen: u64,
}

/// How many runs go on at once. Few keep the pieces in order and the first one soon whole; more are only worth it where
/// one connection cannot fill the link. So their number doubles for as long as that makes the whole clearly faster.
struct Pace {
    runs: usize,
    best: u64,
    since: Instant,
    received_then: u64,
    settled: bool,
}

impl Pace {
    /// Runs at the beginning, and the least there are.
    const RUNS_MIN: usize = 2;
    /// How long a number of runs is tried.
    const TRIAL: Duration = Duration::from_millis(400);

    fn new() -> Self {
        Self {
            runs: Self::RUNS_MIN,
            best: 0,
            since: Instant::now(),
            received_then: 0,
            settled: false,
        }
    }

    fn adjust(&mut self, received: u64, runs_max: usize) {
        let elapsed = self.since.elapsed();
        if self.settled || elapsed < Self::TRIAL {
            return;
        }
        let millis = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let rate = (received - self.received_then).saturating_mul(1000) / millis;
        if rate > self.best + self.best / 6 {
            self.best = rate;
            self.settled = self.runs >= runs_max;
            self.runs *= 2;
        } else {
            self.runs /= 2;
            self.settled = true;
        }
        self.runs = self.runs.max(Self::RUNS_MIN).min(runs_max.max(1));
        self.since = Instant::now();
        self.received_then = received;
    }
}

enum Stage {
    Idle,
    Reading {
        runs_max: usize,
        in_progress: HashSet<PieceNumber>,
        failures: u32,
        not_before: Instant,
    },
    Stopped,
}

/// What reading needs of its session.
pub(super) struct Reach<'a> {
    pub(super) engine: &'a Arc<Inner>,
    pub(super) links: &'a Arc<TaskLinks>,
    pub(super) spec: &'a DownloadSpec,
    pub(super) events: &'a mpsc::Sender<Event>,
    pub(super) cancel: &'a CancellationToken,
}

/// What is wanted, and in which order.
pub(super) struct Wishes<'a> {
    pub(super) wanted: &'a Bitmap,
    /// Those that somebody waits for; they come first, without the limit for what is read ahead of need.
    pub(super) hurried: &'a Bitmap,
    /// Where somebody reads in order: what lies before it comes first.
    pub(super) from: Option<PieceNumber>,
}

/// Neighbouring pieces with a writer for each that is wanted.
struct Run {
    range: ByteRange,
    pieces: Vec<RunPiece>,
}

struct RunPiece {
    number: PieceNumber,
    /// In the content.
    bytes: Range<u64>,
    /// Absent for a piece that is here already: its bytes are passed over.
    writer: Option<Arc<PieceWriter>>,
}

impl OriginReader {
    /// A reader of an origin that has just told these facts.
    pub(super) fn idle(facts: Facts) -> Self {
        Self {
            version: facts.version,
            ranges: facts.ranges,
            stage: Stage::Idle,
            pace: Pace::new(),
            received: Arc::default(),
            received_seen: 0,
        }
    }

    /// A reader of an origin of which only the stored validators are known.
    pub(super) fn stored(version: Version, ranges: RangeSupport) -> Self {
        Self {
            version,
            ranges,
            stage: Stage::Idle,
            pace: Pace::new(),
            received: Arc::default(),
            received_seen: 0,
        }
    }

    /// Begins; at most so many runs at once.
    pub(super) fn start(&mut self, runs_max: usize) {
        if matches!(self.stage, Stage::Idle) {
            self.pace = Pace::new();
            self.stage = Stage::Reading {
                runs_max,
                in_progress: HashSet::new(),
                failures: 0,
                not_before: Instant::now(),
            };
        }
    }

    /// Gives up for good.
    pub(super) fn stop(&mut self) {
        self.stage = Stage::Stopped;
    }

    /// Whether the origin is being read.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Reading { .. })
    }

    /// Whether bytes came since the last call, which also adapts the number of runs.
    pub(super) fn progressed(&mut self) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        if let Stage::Reading { runs_max, .. } = &self.stage {
            self.pace.adjust(received, *runs_max);
        }
        std::mem::replace(&mut self.received_seen, received) != received
    }

    /// A piece is no longer being read.
    pub(super) fn piece_done(&mut self, piece: PieceNumber) {
        if let Stage::Reading { in_progress, .. } = &mut self.stage {
            in_progress.remove(&piece);
        }
    }

    /// Whether the origin is worth another try after this error; the pause before it is kept here.
    pub(super) fn may_retry(&mut self, error: &SourceError) -> bool {
        let Stage::Reading {
            failures,
            not_before,
            ..
        } = &mut self.stage
        else {
            return false;
        };
        *failures += 1;
        let pause = match error.retry() {
            Retry::After(pause) => pause,
            Retry::Never => return false,
            _ => PAUSE * 2u32.pow((*failures).min(6)),
        };
        *not_before = Instant::now() + pause;
        *failures <= FAILURES_MAX && pause <= PAUSE_MAX
    }

    /// Starts the next run, if there is one and room for it; returns its pieces. `busy` are pieces that come from parents.
    pub(super) fn next_run(
        &mut self,
        reach: &Reach<'_>,
        wishes: &Wishes<'_>,
        busy: &HashSet<PieceNumber>,
        pieces: &mut Pieces,
    ) -> Vec<PieceNumber> {
        let ordered = self.ranges != RangeSupport::Yes;
        let Stage::Reading {
            in_progress,
            not_before,
            ..
        } = &mut self.stage
        else {
            return Vec::new();
        };
        let room = if ordered { 1 } else { self.pace.runs };
        if in_progress.len() >= room || Instant::now() < *not_before {
            return Vec::new();
        }
        let free = |piece: &PieceNumber| {
            !pieces.is_held(*piece) && !in_progress.contains(piece) && !busy.contains(piece)
        };
        let missing = |of: &'_ Bitmap, from: u32| {
            let mut ahead = of.ones().map(PieceNumber).filter(|piece| piece.0 >= from);
            ahead.find(free)
        };
        let numbers: Vec<PieceNumber> = if ordered {
            let wanted = wishes.wanted.ones().map(PieceNumber);
            wanted.filter(free).collect()
        } else {
            let from = wishes.from.map_or(0, |piece| piece.0);
            let next = missing(wishes.hurried, from)
                .or_else(|| missing(wishes.hurried, 0))
                .or_else(|| missing(wishes.wanted, from))
                .or_else(|| missing(wishes.wanted, 0));
            next.into_iter().collect()
        };
        let ahead = !numbers.iter().any(|piece| wishes.hurried.get(piece.0));
        let Some(run) = Run::new(&numbers, ordered, pieces) else {
            return Vec::new();
        };
        in_progress.extend(&numbers);
        let reader = RunReader {
            engine: reach.engine.clone(),
            request: request(reach.spec),
            version: self.version.clone(),
            received: self.received.clone(),
            events: reach.events.clone(),
            links: reach.links.clone(),
            limit: ahead.then(|| reach.engine.parts.limits.prefetch.clone()),
        };
        let cancel = reach.cancel.clone();
        reach.engine.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = reader.read(run, ordered) => {}
            }
        });
        numbers
    }
}

impl Run {
    /// The bytes that cover these pieces; from the front when the origin can only be read in order.
    fn new(numbers: &[PieceNumber], ordered: bool, pieces: &mut Pieces) -> Option<Self> {
        let geometry = *pieces.geometry();
        let last = geometry.piece(*numbers.last()?)?;
        let first = geometry.piece(if ordered { PieceNumber(0) } else { numbers[0] })?;
        let wanted: HashSet<PieceNumber> = numbers.iter().copied().collect();
        let mut run = Vec::new();
        for number in first.number.0..=last.number.0 {
            let span = geometry.piece(PieceNumber(number))?;
            let writer = if wanted.contains(&span.number) {
                Some(pieces.writer(span.number).ok()?)
            } else {
                None
            };
            run.push(RunPiece {
                number: span.number,
                bytes: span.offset..span.offset + span.length,
                writer,
            });
        }
        let end = last.offset + last.length;
        Some(Self {
            range: ByteRange {
                start: first.offset,
                length: end - first.offset,
            },
            pieces: run,
        })
    }
}

/// The request for this task, without a range.
pub(super) fn request(spec: &DownloadSpec) -> Result<source::Request, SourceError> {
    Ok(source::Request::new(&spec.url)?
        .with_headers(spec.request_header.clone())
        .with_trust_roots(spec.certificate_chain.clone())
        .with_options(spec.origin.clone()))
}

/// Carries out one run.
struct RunReader {
    engine: Arc<Inner>,
    request: Result<source::Request, SourceError>,
    version: Version,
    received: Arc<AtomicU64>,
    events: mpsc::Sender<Event>,
    links: Arc<TaskLinks>,
    /// Of a run that is read ahead of need.
    limit: Option<Arc<transfer::RateLimit>>,
}

impl RunReader {
    async fn read(self, run: Run, ordered: bool) {
        let mut done = 0;
        if let Err(error) = self.read_all(&run, ordered, &mut done).await {
            let error = Arc::new(error);
            for piece in run.pieces[done..]
                .iter()
                .filter(|piece| piece.writer.is_some())
            {
                let failed = OriginEvent::Failed {
                    piece: piece.number,
                    error: error.clone(),
                };
                let _ = self.events.send(Event::Origin(failed)).await;
            }
        }
    }

    /// Reads the run; `done` counts the pieces that were dealt with.
    async fn read_all(
        &self,
        run: &Run,
        ordered: bool,
        done: &mut usize,
    ) -> Result<(), SourceError> {
        let request = self.request.clone()?;
        let want = if ordered {
            Get::whole()
        } else {
            Get::range(run.range)
        };
        let get = want.of_version(self.version.clone());
        let mut body = self.engine.parts.sources.get(&request, get).await?.body;
        let mut pieces = run.pieces.iter();
        let mut filler = pieces
            .next()
            .map(|piece| PieceFiller::new(piece, &self.links));
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk?;
            if let Some(limit) = &self.limit {
                limit.acquire(chunk.len() as u64).await;
            }
            self.received
                .fetch_add(chunk.len() as u64, Ordering::Relaxed);
            while let Some(current) = filler.as_mut().filter(|_| !chunk.is_empty()) {
                current.take(&mut chunk).await;
                if current.is_full() {
                    self.report(filler.take().expect("it is the current one"))
                        .await;
                    *done += 1;
                    filler = pieces
                        .next()
                        .map(|piece| PieceFiller::new(piece, &self.links));
                }
            }
            if filler.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn report(&self, filler: PieceFiller<'_>) {
        let piece = filler.piece.number;
        if filler.piece.writer.is_some() {
            let written = filler.finish().await;
            let _ = self
                .events
                .send(Event::Origin(OriginEvent::Piece { piece, written }))
                .await;
        }
    }
}

/// Puts the bytes of one piece into the store, one batch being written while the next one is gathered.
struct PieceFiller<'a> {
    piece: &'a RunPiece,
    links: &'a Arc<TaskLinks>,
    /// The segment that the children were told of last.
    told: Option<SegmentIndex>,
    /// In the content: the next byte to come.
    offset: u64,
    batch: Vec<Bytes>,
    batch_len: usize,
    writing: Option<JoinHandle<Result<(), String>>>,
    outcome: Result<(), String>,
}

impl<'a> PieceFiller<'a> {
    fn new(piece: &'a RunPiece, links: &'a Arc<TaskLinks>) -> Self {
        Self {
            piece,
            links,
            told: None,
            offset: piece.bytes.start,
            batch: Vec::new(),
            batch_len: 0,
            writing: None,
            outcome: Ok(()),
        }
    }

    fn is_full(&self) -> bool {
        self.offset >= self.piece.bytes.end
    }

    /// Takes what belongs to the piece from the front of `chunk`.
    async fn take(&mut self, chunk: &mut Bytes) {
        let room = usize::try_from(self.piece.bytes.end - self.offset).unwrap_or(usize::MAX);
        let part = chunk.split_to(chunk.len().min(room));
        self.offset += part.len() as u64;
        self.batch_len += part.len();
        self.batch.push(part);
        if self.batch_len >= BATCH_LEN || self.is_full() {
            self.write_batch().await;
        }
    }

    async fn write_batch(&mut self) {
        self.settle().await;
        let batch = std::mem::take(&mut self.batch);
        let start = self.offset - std::mem::take(&mut self.batch_len) as u64;
        let Some(writer) = self.piece.writer.clone() else {
            return;
        };
        let mut at = start - self.piece.bytes.start;
        let length = self.offset - start;
        let write = move || {
            for part in batch {
                writer.write(at, &part).map_err(|error| error.to_string())?;
                at += part.len() as u64;
            }
            Ok(())
        };
        if length <= INLINE_MAX {
            let written = write();
            self.tell_arriving();
            self.outcome = std::mem::replace(&mut self.outcome, Ok(())).and(written);
        } else {
            self.writing = Some(tokio::task::spawn_blocking(write));
        }
    }

    /// Waits for the batch being written.
    async fn settle(&mut self) {
        if let Some(writing) = self.writing.take() {
            let written = writing.await.unwrap_or_else(|error| Err(error.to_string()));
            self.tell_arriving();
            self.outcome = std::mem::replace(&mut self.outcome, Ok(())).and(written);
        }
    }

    /// Tells the children of the segment that was begun last.
    fn tell_arriving(&mut self) {
        let at = (self.offset - self.batch_len as u64).saturating_sub(self.piece.bytes.start + 1);
        let segment = self.links.geometry.segment_at(self.piece.number, at);
        if segment != self.told {
            self.told = segment;
            if let Some(segment) = segment {
                self.links.tell(HeraldEvent::Arriving(segment));
            }
        }
    }

    async fn finish(mut self) -> Result<(), String> {
        self.settle().await;
        self.outcome
    }
}
