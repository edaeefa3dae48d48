//! One request to one parent, from the picker's wish to bytes in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::vortex::ErrorCode;
use protocol::{Crc32, Digest, PeerId, PieceNumber, SegmentIndex, TaskKind};
use storage::PieceWriter;
use swarm::{Failure, NeighbourId, RequestId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use transfer::{
    CancelHandle, ContentHead, Fault, FetchError, FetchOutcome, FetchRequest, Limits, Sink,
    SinkError, Wanted,
};

use super::Inner;
use super::parents::Route;
use super::session::Event;
use crate::link::{HeraldEvent, TaskLinks};

/// Longest silence of a v2 parent before the first byte: it may be waiting for the piece itself.
const V2_HEAD_MAX: Duration = Duration::from_secs(20);
/// Longest silence of one of ours before it answers: it refuses at once or serves at once.
const MESH_HEAD_MAX: Duration = Duration::from_secs(5);
/// Longest silence between two bytes. The picker moves a request elsewhere long before.
const STALL_MAX: Duration = Duration::from_secs(5);

/// A fetch without a byte for this long keeps nobody from reading its piece from the origin.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How a fetch ended.
#[derive(Debug)]
pub struct Fetched {
    /// The picker's number of it.
    pub request: RequestId,
    /// Bytes in the store, from the request's own offset on.
    pub received: u64,
    /// The digest of the piece, if the parent told it with the bytes.
    pub digest: Option<Crc32>,
    /// The parent had no digest to tell (an imported piece of a v2 host).
    pub digest_missing: bool,
    /// What went wrong, for the picker; absent when all bytes came.
    pub failure: Option<Failure>,
    /// What went wrong, for people.
    pub reason: Option<String>,
    /// Whether the scheduler should hear of it.
    pub blame: Blame,
}

/// Whether a failed fetch is told to the scheduler, which then never offers that parent to us again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It is the parent's fault, and it will not pass: bad content, or any failure of a v2 parent.
    Parent,
    /// Ours, nobody's, or the daily life of a mesh: a relay that broke off, a slot that was taken.
    Nobody,
}

/// A fetch in progress.
pub(super) struct Fetch {
    neighbour: NeighbourId,
    piece: PieceNumber,
    parent: Option<PeerId>,
    received: Arc<AtomicU64>,
    seen: u64,
    last_byte: Instant,
    cancel: CancelHandle,
}

/// What a fetch needs of its session.
pub(super) struct FetchParts<'a> {
    pub(super) engine: &'a Arc<Inner>,
    pub(super) links: &'a Arc<TaskLinks>,
    pub(super) events: &'a mpsc::Sender<Event>,
    pub(super) kind: TaskKind,
}

impl Fetch {
    /// Starts it; [`Event::Fetched`] follows unless it is cancelled.
    pub(super) fn start(
        parts: &FetchParts<'_>,
        route: &Route,
        request: &swarm::Request,
        writer: Arc<PieceWriter>,
        parent: Option<PeerId>,
    ) -> Option<Self> {
        let task_id = parts.links.task.id().clone();
        let (addr, head, wanted) = match route {
            Route::Mesh { addr, token } => (
                *addr,
                MESH_HEAD_MAX,
                Wanted::Segment {
                    link_token: *token,
                    task_id,
                    piece: request.piece,
                    offset: request.offset,
                    length: request.length,
                },
            ),
            Route::V2 { addr } => (
                *addr,
                V2_HEAD_MAX,
                Wanted::Piece {
                    kind: parts.kind,
                    task_id,
                    span: parts.links.geometry.piece(request.piece)?,
                },
            ),
        };
        let received = Arc::new(AtomicU64::new(0));
        let cancel = CancelHandle::new();
        let sink = PieceSink {
            writer,
            links: parts.links.clone(),
            from: request.offset,
            received: received.clone(),
            digest: None,
            digest_missing: false,
            told: None,
        };
        let content = parts.engine.parts.limits.piece_timeout;
        let fetch = FetchRequest {
            parent: addr,
            wanted,
            limits: Limits {
                head,
                stall: STALL_MAX,
                content,
            },
        };
        let client = parts.engine.parts.client.clone();
        let is_v2 = matches!(route, Route::V2 { .. });
        let (events, id, handle) = (parts.events.clone(), request.id, cancel.clone());
        parts.engine.tasks.spawn(async move {
            let outcome = client.fetch(fetch, sink, handle).await;
            // What a v2 host reports about a parent, as v2 does; a neighbour of ours is only accused of bad content.
            if !matches!(outcome.result, Err(FetchError::Cancelled)) {
                let _ = events
                    .send(Event::Fetched(understand(id, outcome, is_v2)))
                    .await;
            }
        });
        let (neighbour, piece) = (request.neighbour, request.piece);
        Some(Self {
            neighbour,
            piece,
            parent,
            received,
            seen: 0,
            last_byte: Instant::now(),
            cancel,
        })
    }

    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(super) fn neighbour(&self) -> NeighbourId {
        self.neighbour
    }

    pub(super) fn piece(&self) -> PieceNumber {
        self.piece
    }

    pub(super) fn parent(&self) -> Option<&PeerId> {
        self.parent.as_ref()
    }

    /// Bytes so far, if that is news.
    pub(super) fn progress(&mut self) -> Option<u64> {
        let received = self.received.load(Ordering::Relaxed);
        let news = std::mem::replace(&mut self.seen, received) != received;
        if news {
            self.last_byte = Instant::now();
        }
        news.then_some(received)
    }

    /// Whether its parent sends nothing: what it was to bring is not waited for where it can be had otherwise.
    pub(super) fn is_stalled(&self) -> bool {
        self.last_byte.elapsed() >= SILENT_MAX
    }

    /// Bytes so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

fn understand(request: RequestId, outcome: FetchOutcome<PieceSink>, is_v2: bool) -> Fetched {
    let error = outcome.result.err();
    let blame = match error.as_ref().map(FetchError::fault) {
        Some(Fault::Parent) => Blame::Parent,
        Some(Fault::Path) if is_v2 => Blame::Parent,
        _ => Blame::Nobody,
    };
    Fetched {
        request,
        received: outcome.received,
        digest: outcome.sink.digest,
        digest_missing: outcome.sink.digest_missing,
        blame,
        failure: error.as_ref().map(failure),
        reason: error.map(|error| error.to_string()),
    }
}

fn failure(error: &FetchError) -> Failure {
    match error {
        FetchError::Refused(reply) => match reply.code {
            ErrorCode::Refused => Failure::Refused,
            ErrorCode::NotAhead => Failure::NotAhead,
            _ => Failure::NotFound,
        },
        FetchError::Stalled(_) => Failure::Stalled,
        error if error.fault() == Fault::Parent => Failure::BadData,
        _ => Failure::Lost,
    }
}

/// Puts what arrives where it belongs and lets children know that it is arriving.
struct PieceSink {
    writer: Arc<PieceWriter>,
    links: Arc<TaskLinks>,
    /// First byte wanted, within the piece.
    from: u64,
    received: Arc<AtomicU64>,
    digest: Option<Crc32>,
    digest_missing: bool,
    /// The segment that the children were told of last.
    told: Option<SegmentIndex>,
}

impl Sink for PieceSink {
    fn head(&mut self, head: &ContentHead) -> Result<(), SinkError> {
        let ContentHead::Piece(head) = head else {
            return Ok(());
        };
        if head.digest.is_empty() {
            self.digest_missing = true;
            return Ok(());
        }
        match head.digest.parse() {
            Ok(Digest::Crc32(digest)) => self.digest = Some(digest),
            Ok(_) => {
                return Err(SinkError::Parent(
                    "the digest of a piece must be a crc32".into(),
                ));
            }
            Err(error) => return Err(SinkError::Parent(Box::new(error))),
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let at = self.from + offset;
        self.writer
            .write(at, bytes)
            .map_err(|error| SinkError::Here(Box::new(error)))?;
        self.received
            .store(offset + bytes.len() as u64, Ordering::Relaxed);
        let segment = self.links.geometry.segment_at(self.writer.number(), at);
        if segment != self.told {
            self.told = segment;
            if let Some(segment) = segment {
                self.links.tell(HeraldEvent::Arriving(segment));
            }
        }
        Ok(())
    }
}
