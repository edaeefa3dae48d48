//! The pieces of one session: what is held, what is being written, which digest each must have.
//!
//! Bytes of one piece may come from several parents at once, segment by segment; the piece is committed when all bytes
//! are there and its digest is known. A v2 parent sends the digest with the bytes; among hosts of this project it comes
//! over the links, from whoever has committed the piece; what the origin sends defines it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use protocol::{Bitmap, Crc32, Geometry, PeerId, PieceNumber, TrafficType};
use storage::{Claim, CommitError, PieceOrigin, PieceRecord, PieceWriter, Task};
use tokio::time::Instant;

/// What became of a piece when bytes or its digest arrived.
#[derive(Debug)]
pub(super) enum Settled {
    /// Something is still missing.
    Open,
    /// It is whole, checked and recorded.
    Held(Box<PieceRecord>),
    /// Its bytes were wrong or could not be recorded: it is missing again. The text says why.
    Dropped(String),
}

/// Why a piece cannot be written.
#[derive(Debug)]
pub(super) enum NoWriter {
    /// It is here already: an earlier session of the task finished it meanwhile.
    Held,
    /// The text says why.
    Failed(String),
}

/// See the module.
pub(super) struct Pieces {
    task: Task,
    held: Bitmap,
    open: HashMap<PieceNumber, Open>,
    digests: HashMap<PieceNumber, Votes>,
}

/// A piece that is being written.
struct Open {
    writer: Arc<PieceWriter>,
    created_at: SystemTime,
    since: Instant,
    /// Who gave the last segment.
    parent: Option<PeerId>,
    /// When the last byte came, if all are there and only the digest is awaited.
    complete_since: Option<Instant>,
}

/// What neighbours say about the digest of a piece. Nearly always one value.
#[derive(Default)]
struct Votes(Vec<Vote>);

struct Vote {
    digest: Crc32,
    count: u32,
    /// Bytes that others gave did not match it.
    failed: bool,
}

/// Different digests that are remembered for one piece.
const VOTES_MAX: usize = 8;

impl Votes {
    fn add(&mut self, digest: Crc32) {
        if let Some(vote) = self.0.iter_mut().find(|vote| vote.digest == digest) {
            vote.count += 1;
        } else if self.0.len() < VOTES_MAX {
            self.0.push(Vote {
                digest,
                count: 1,
                failed: false,
            });
        }
    }

    /// The digest most say, among those that have not failed yet.
    fn best(&self) -> Option<Crc32> {
        let open = self.0.iter().filter(|vote| !vote.failed);
        open.max_by_key(|vote| vote.count).map(|vote| vote.digest)
    }

    fn failed(&mut self, digest: Crc32) {
        for vote in &mut self.0 {
            vote.failed |= vote.digest == digest;
        }
        // The bytes may have been wrong instead: begin anew rather than accept nothing ever.
        if self.0.iter().all(|vote| vote.failed) {
            for vote in &mut self.0 {
                vote.failed = false;
            }
        }
    }
}

impl Pieces {
    /// The books of a task as the store has it.
    pub(super) fn new(task: Task) -> Self {
        let held = task
            .held()
            .unwrap_or_else(|_| Bitmap::new(task.geometry().piece_count()));
        Self {
            task,
            held,
            open: HashMap::new(),
            digests: HashMap::new(),
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        self.task.geometry()
    }

    pub(super) fn held(&self) -> &Bitmap {
        &self.held
    }

    pub(super) fn is_held(&self, piece: PieceNumber) -> bool {
        self.held.get(piece.0)
    }

    pub(super) fn all_held(&self, wanted: &Bitmap) -> bool {
        wanted.ones().all(|piece| self.held.get(piece))
    }

    /// The wanted pieces that are not held.
    pub(super) fn missing(&self, wanted: &Bitmap) -> Vec<u32> {
        wanted
            .ones()
            .filter(|&piece| !self.held.get(piece))
            .collect()
    }

    /// The segments of a piece.
    pub(super) fn segments(&self, piece: PieceNumber) -> Range<u32> {
        let mut segments = self.geometry().segments_of(piece);
        let count = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        let start = segments.next().map_or(0, |segment| segment.index.0);
        start..start.saturating_add(count)
    }

    /// The writer of a piece, claimed when there is none yet.
    ///
    /// # Errors
    /// [`NoWriter`].
    pub(super) fn writer(&mut self, piece: PieceNumber) -> Result<Arc<PieceWriter>, NoWriter> {
        match self.open.entry(piece) {
            Entry::Occupied(open) => Ok(open.get().writer.clone()),
            Entry::Vacant(vacant) => match self.task.claim(piece) {
                Ok(Claim::Yours(writer)) => {
                    let open = Open {
                        writer: Arc::new(writer),
                        created_at: SystemTime::now(),
                        since: Instant::now(),
                        parent: None,
                        complete_since: None,
                    };
                    Ok(vacant.insert(open).writer.clone())
                }
                Ok(Claim::Whole(_)) => {
                    self.held.set(piece.0);
                    Err(NoWriter::Held)
                }
                Ok(Claim::Busy(_)) => Err(NoWriter::Failed(format!(
                    "piece {piece} is still being written by an earlier download"
                ))),
                Ok(Claim::Unverified) => Err(NoWriter::Failed(format!(
                    "piece {piece} awaits verification"
                ))),
                Err(error) => Err(NoWriter::Failed(error.to_string())),
            },
        }
    }

    /// Bytes of a piece came from a parent, with the digest if the parent told it.
    pub(super) fn received(
        &mut self,
        piece: PieceNumber,
        digest: Option<Crc32>,
        parent: Option<&PeerId>,
        trust: Trust,
    ) -> Settled {
        if let Some(digest) = digest {
            self.digests.entry(piece).or_default().add(digest);
        }
        let length = self.length(piece);
        let Some(open) = self.open.get_mut(&piece) else {
            return Settled::Open;
        };
        open.parent = parent.cloned();
        if open.writer.received() < length {
            return Settled::Open;
        }
        open.complete_since.get_or_insert_with(Instant::now);
        let expected = self.digests.get(&piece).and_then(Votes::best);
        if expected.is_none() && trust == Trust::OnlyKnownDigests {
            return Settled::Open;
        }
        self.commit(piece, expected, TrafficType::RemotePeer)
    }

    /// A neighbour told the digest of a piece.
    pub(super) fn digest_known(&mut self, piece: PieceNumber, digest: Crc32) -> Settled {
        if self.is_held(piece) {
            return Settled::Open;
        }
        self.digests.entry(piece).or_default().add(digest);
        let complete = self
            .open
            .get(&piece)
            .is_some_and(|open| open.complete_since.is_some());
        if complete {
            self.commit(piece, Some(digest), TrafficType::RemotePeer)
        } else {
            Settled::Open
        }
    }

    /// All bytes of a piece came from the origin: they are right by definition.
    pub(super) fn read_from_origin(&mut self, piece: PieceNumber) -> Settled {
        if let Some(open) = self.open.get_mut(&piece) {
            open.parent = None;
        }
        self.commit(piece, None, TrafficType::BackToSource)
    }

    fn commit(
        &mut self,
        piece: PieceNumber,
        expected: Option<Crc32>,
        traffic: TrafficType,
    ) -> Settled {
        let Some(open) = self.open.remove(&piece) else {
            return Settled::Open;
        };
        let origin = PieceOrigin {
            parent: open.parent.clone(),
            traffic,
            created_at: open.created_at,
            cost: open.since.elapsed(),
        };
        match open.writer.commit(expected, origin) {
            Ok(record) => {
                self.held.set(piece.0);
                self.digests.remove(&piece);
                Settled::Held(Box::new(record))
            }
            Err(CommitError::Incomplete { .. }) => {
                self.open.insert(piece, open);
                Settled::Open
            }
            Err(error) => {
                if let (CommitError::DigestMismatch { .. }, Some(expected)) = (&error, expected) {
                    self.digests.entry(piece).or_default().failed(expected);
                }
                Settled::Dropped(error.to_string())
            }
        }
    }

    fn length(&self, piece: PieceNumber) -> u64 {
        self.geometry().piece(piece).map_or(0, |span| span.length)
    }

    /// Forgets the bytes of a piece.
    pub(super) fn abandon(&mut self, piece: PieceNumber) {
        self.open.remove(&piece);
    }

    /// Whether a piece has all of its bytes but nobody has told its digest for this long.
    pub(super) fn awaits_digest(&self, longer_than: std::time::Duration) -> bool {
        self.open.values().any(|open| {
            open.complete_since
                .is_some_and(|since| since.elapsed() > longer_than)
        })
    }

    /// Forgets pieces that have all of their bytes but no digest; returns them.
    pub(super) fn drop_unverified(&mut self) -> Vec<PieceNumber> {
        let waiting = self
            .open
            .extract_if(|_, open| open.complete_since.is_some());
        waiting.map(|(piece, _)| piece).collect()
    }
}

/// Whether bytes are accepted when nobody has told their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Wait for the digest.
    OnlyKnownDigests,
    /// A v2 parent that has none (an imported piece): accept, as v2 does.
    AsSent,
}
