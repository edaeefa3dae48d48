//! What the other side of a link says that it has.

use std::time::{Duration, Instant};

use protocol::{Bitmap, Crc32, Geometry, PieceNumber, SegmentIndex};

/// How long it holds what the other side said of its own download: several times as long as it takes to say it again.
const GOES_ON: Duration = Duration::from_millis(1500);

/// Grows with every Have, shrinks with every Drop. Bounded by the geometry of the task.
#[derive(Debug)]
pub struct Known {
    arriving: Bitmap,
    held: Bitmap,
    digests: Vec<Option<Crc32>>,
    alive_at: Option<Instant>,
}

impl Known {
    /// Nothing yet, of a task with this geometry.
    pub fn new(geometry: &Geometry) -> Self {
        let pieces = geometry.piece_count();
        Self {
            arriving: Bitmap::new(geometry.segment_slots()),
            held: Bitmap::new(pieces),
            digests: vec![None; pieces as usize],
            alive_at: None,
        }
    }

    /// Notes that its own download goes on.
    pub fn note_alive(&mut self) {
        self.alive_at = Some(Instant::now());
    }

    /// Whether its own download goes on: it may have no bytes for us at the moment, but more will come.
    pub fn goes_on(&self) -> bool {
        self.alive_at.is_some_and(|at| at.elapsed() < GOES_ON)
    }

    /// Notes that first bytes of these are there; returns the valid new ones.
    pub fn note_arriving(&mut self, segments: &[u32]) -> Vec<SegmentIndex> {
        let fresh = |&segment: &u32| segment < self.arriving.len() && self.arriving.set(segment);
        segments
            .iter()
            .copied()
            .filter(fresh)
            .map(SegmentIndex)
            .collect()
    }

    /// Notes that these pieces are held; returns the valid new ones.
    pub fn note_held(&mut self, pieces: &[u32], digests: &[u32]) -> Vec<(PieceNumber, Crc32)> {
        let mut fresh = Vec::new();
        for (&piece, &digest) in pieces.iter().zip(digests) {
            if piece < self.held.len() && self.held.set(piece) {
                self.digests[piece as usize] = Some(Crc32(digest));
                fresh.push((PieceNumber(piece), Crc32(digest)));
            }
        }
        fresh
    }

    /// Notes the digests of these pieces, wherever their bytes are; returns the valid ones.
    pub fn note_digests(&mut self, pieces: &[u32], digests: &[u32]) -> Vec<(PieceNumber, Crc32)> {
        let mut valid = Vec::new();
        for (&piece, &digest) in pieces.iter().zip(digests) {
            if let Some(known) = self.digests.get_mut(piece as usize) {
                *known = Some(Crc32(digest));
                valid.push((PieceNumber(piece), Crc32(digest)));
            }
        }
        valid
    }

    /// Notes that these pieces are gone; returns the ones that it had.
    pub fn note_gone(&mut self, pieces: &[u32]) -> Vec<PieceNumber> {
        let had = |&piece: &u32| piece < self.held.len() && self.held.clear(piece);
        pieces
            .iter()
            .copied()
            .filter(had)
            .map(PieceNumber)
            .collect()
    }

    /// Whether it holds this piece.
    pub fn is_held(&self, piece: PieceNumber) -> bool {
        self.held.get(piece.0)
    }

    /// Whether it told the digest of this piece.
    pub fn has_digest(&self, piece: PieceNumber) -> bool {
        self.digests.get(piece.index()).is_some_and(Option::is_some)
    }

    /// Every held piece.
    pub fn held(&self) -> Vec<PieceNumber> {
        self.held.ones().map(PieceNumber).collect()
    }

    /// Every digest that it told.
    pub fn digests(&self) -> Vec<(PieceNumber, Crc32)> {
        let known = (0..).zip(&self.digests);
        known
            .filter_map(|(piece, digest)| digest.map(|digest| (PieceNumber(piece), digest)))
            .collect()
    }

    /// Every segment that was announced as arriving.
    pub fn arriving(&self) -> Vec<SegmentIndex> {
        self.arriving.ones().map(SegmentIndex).collect()
    }

    /// Whether it holds something and nothing more arrives there: it has all that it wanted.
    pub fn is_at_rest(&self, geometry: &Geometry) -> bool {
        let landed = |segment| {
            let span = geometry.segment(SegmentIndex(segment));
            span.is_none_or(|span| self.held.get(span.piece.0))
        };
        !self.goes_on() && self.held.ones().next().is_some() && self.arriving.ones().all(landed)
    }

    /// Whether it holds every piece.
    pub fn is_whole(&self) -> bool {
        self.held.is_full()
    }

    /// Share of the task that it holds, in millionths.
    pub fn millionths(&self) -> u32 {
        match self.held.len() {
            0 => 1_000_000,
            len => u32::try_from(u64::from(self.held.count()) * 1_000_000 / u64::from(len))
                .expect("a share is at most a million"),
        }
    }
}
