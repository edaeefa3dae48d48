//! A task's geometry in the plain numbers that the decisions count with.

use std::ops::Range;

use protocol::{Geometry, PieceNumber, SegmentIndex};

/// [`Geometry`] for numbers that are known to be inside it: what does not exist has length 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    geometry: Geometry,
    segments: u32,
    per_piece: u32,
}

impl Layout {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let full = geometry.segments_of(PieceNumber(0)).len().max(1);
        let per_piece = u32::try_from(full).expect("a geometry has fewer than 2^32 segments");
        let last = PieceNumber(geometry.piece_count().saturating_sub(1));
        let segments = geometry
            .segments_of(last)
            .last()
            .map_or(0, |span| span.index.0 + 1);
        Self {
            geometry: *geometry,
            segments,
            per_piece,
        }
    }

    pub(crate) fn pieces(&self) -> u32 {
        self.geometry.piece_count()
    }

    /// One more than the last segment.
    pub(crate) fn segments(&self) -> u32 {
        self.segments
    }

    pub(crate) fn segment_length(&self) -> u64 {
        self.geometry.segment_length()
    }

    pub(crate) fn piece_len(&self, piece: u32) -> u64 {
        self.geometry
            .piece(PieceNumber(piece))
            .map_or(0, |span| span.length)
    }

    pub(crate) fn piece_of(&self, segment: u32) -> u32 {
        segment / self.per_piece
    }

    pub(crate) fn segments_of(&self, piece: u32) -> Range<u32> {
        let end = piece
            .saturating_add(1)
            .saturating_mul(self.per_piece)
            .min(self.segments);
        piece.saturating_mul(self.per_piece).min(end)..end
    }

    /// First byte of a segment, counted within its piece.
    pub(crate) fn offset_in_piece(&self, segment: u32) -> u64 {
        u64::from(segment % self.per_piece) * self.segment_length()
    }

    pub(crate) fn segment_len(&self, segment: u32) -> u64 {
        self.geometry
            .segment(SegmentIndex(segment))
            .map_or(0, |span| span.length)
    }

    /// The segment with this byte of a piece.
    pub(crate) fn segment_at(&self, piece: PieceNumber, offset: u64) -> Option<u32> {
        self.geometry.segment_at(piece, offset).map(|index| index.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_lengths_add_up() {
        let layout = Layout::new(&Geometry::new(2300 << 10, 1000 << 10).unwrap());
        assert_eq!(
            (layout.pieces(), layout.segments(), layout.segment_length()),
            (3, 10, 256 << 10)
        );
        let sum: u64 = (0..layout.segments())
            .map(|segment| layout.segment_len(segment))
            .sum();
        assert_eq!(sum, 2300 << 10);
        assert_eq!(
            (
                layout.segments_of(1),
                layout.segments_of(2),
                layout.segments_of(9)
            ),
            (4..8, 8..10, 10..10)
        );
        assert_eq!(
            (
                layout.piece_of(9),
                layout.offset_in_piece(9),
                layout.segment_len(10)
            ),
            (2, 256 << 10, 0)
        );
    }

    #[test]
    fn an_empty_task_has_nothing() {
        let layout = Layout::new(&Geometry::new(0, 4 << 20).unwrap());
        assert_eq!((layout.pieces(), layout.segments()), (0, 0));
    }
}
