//! How a content is cut: pieces for the wire and for storage, segments for our own swarm.
//!
//! Piece `n` covers `[n * L, min((n + 1) * L, C))` of a content of `C` bytes with piece length `L`. A segment is a part of
//! one piece: the segments of a piece start at multiples of the segment length **within the piece**, the last may be
//! short. Segment indices count over the whole task with the same number of places for every piece, so that piece and
//! segment convert without a table; the last piece may leave places unused (see [`Geometry::segment_slots`]).

use crate::{ByteRange, PieceNumber, RangeError};

const MIB: u64 = 1 << 20;
/// Bounds of a computed piece length.
const PIECE_LENGTH_MIN: u64 = 4 * MIB;
const PIECE_LENGTH_MAX: u64 = 64 * MIB;
/// A computed piece length aims at no more than about this many pieces.
const PIECES_WANTED: u64 = 500;
/// The segment length aims at about this many segments.
const SEGMENTS_WANTED: u64 = 256;
const SEGMENT_LENGTH_MIN: u64 = 256 << 10;

/// The piece length that every Dragonfly v2 daemon computes when none was requested: about a 500th of the content, as a
/// power of two from 4 to 64 MiB.
pub fn standard_piece_length(content_length: u64) -> u64 {
    let wanted = content_length / PIECES_WANTED;
    // The clamp comes first because the next power of two of a huge wish does not fit.
    wanted
        .clamp(PIECE_LENGTH_MIN, PIECE_LENGTH_MAX)
        .next_power_of_two()
}

/// The cut of one content. Exists only for lengths that can be numbered, so that no later arithmetic overflows:
/// at most [`Geometry::PIECES_MAX`] pieces of at most [`Geometry::PIECE_LENGTH_MAX`] bytes, so every offset also fits an
/// `i64`, as files need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    content_length: u64,
    piece_length: u64,
    segment_length: u64,
    piece_count: u32,
    segments_per_piece: u32,
}

impl Geometry {
    /// Most pieces a task may have: 16 TiB at the smallest ordinary piece length. Bounds the memory of maps and tables.
    pub const PIECES_MAX: u32 = 1 << 22;
    /// Longest piece that is accepted, in bytes (1 GiB, the limit that the Vortex protocol text states).
    pub const PIECE_LENGTH_MAX: u64 = 1 << 30;

    /// The cut of `content_length` bytes into pieces of `piece_length` bytes.
    ///
    /// # Errors
    /// [`GeometryError`] when the piece length is 0 or over 1 GiB, or makes more than [`Geometry::PIECES_MAX`] pieces.
    pub fn new(content_length: u64, piece_length: u64) -> Result<Self, GeometryError> {
        if piece_length == 0 || piece_length > Self::PIECE_LENGTH_MAX {
            return Err(GeometryError::PieceLength { piece_length });
        }
        let piece_count = content_length.div_ceil(piece_length);
        let too_many = GeometryError::TooManyPieces {
            content_length,
            piece_length,
        };
        let piece_count = match u32::try_from(piece_count) {
            Ok(count) if count <= Self::PIECES_MAX => count,
            _ => return Err(too_many),
        };
        let segment_length = segment_length(content_length, piece_length);
        let longest_piece = piece_length.min(content_length);
        let segments_per_piece =
            u32::try_from(longest_piece.div_ceil(segment_length)).map_err(|_| too_many)?;
        Ok(Self {
            content_length,
            piece_length,
            segment_length,
            piece_count,
            segments_per_piece: segments_per_piece.max(1),
        })
    }

    /// The cut with the piece length of [`standard_piece_length`].
    ///
    /// # Errors
    /// [`GeometryError::TooManyPieces`] when the content is too long (256 TiB).
    pub fn standard(content_length: u64) -> Result<Self, GeometryError> {
        Self::new(content_length, standard_piece_length(content_length))
    }

    /// Length of the content, in bytes.
    pub fn content_length(&self) -> u64 {
        self.content_length
    }

    /// Length of every piece but the last, in bytes.
    pub fn piece_length(&self) -> u64 {
        self.piece_length
    }

    /// How many pieces there are; 0 for an empty content.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// Where piece `number` lies, or nothing when the content has no such piece.
    pub fn piece(&self, number: PieceNumber) -> Option<PieceSpan> {
        (number.0 < self.piece_count).then(|| self.piece_unchecked(number.0))
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = PieceSpan> + DoubleEndedIterator + use<> {
        let this = *self;
        (0..this.piece_count).map(move |number| this.piece_unchecked(number))
    }

    /// The whole pieces that a range touches, in order. A range that reaches behind the content is cut.
    ///
    /// # Errors
    /// [`RangeError::Unsatisfiable`] when the range is empty or starts behind the content.
    pub fn pieces_of(
        &self,
        range: ByteRange,
    ) -> Result<impl ExactSizeIterator<Item = PieceSpan> + DoubleEndedIterator + use<>, RangeError>
    {
        let range = range.clip(self.content_length)?;
        let this = *self;
        let numbers = self.number_at(range.start)..self.number_at(range.end() - 1) + 1;
        Ok(numbers.map(move |number| this.piece_unchecked(number)))
    }

    /// The piece that holds the byte at `offset` of the content, or nothing behind the end.
    pub fn piece_at(&self, offset: u64) -> Option<PieceNumber> {
        (offset < self.content_length).then(|| PieceNumber(self.number_at(offset)))
    }

    /// Length of every segment but the last of a piece, in bytes: the power of two nearest to a 256th of the content,
    /// at least 256 KiB, at most a piece.
    pub fn segment_length(&self) -> u64 {
        self.segment_length
    }

    /// How many places segment indices need: every index of this task is smaller.
    pub fn segment_slots(&self) -> u32 {
        // At most 2^22 pieces: either short ones, with few segments each, or few long ones; `new` keeps both in bounds.
        self.piece_count * self.segments_per_piece
    }

    /// The segments of a piece in order; none when there is no such piece.
    pub fn segments_of(
        &self,
        number: PieceNumber,
    ) -> impl ExactSizeIterator<Item = SegmentSpan> + use<> {
        let this = *self;
        let count = match this.piece(number) {
            Some(piece) => this.segments_in(piece.length),
            None => 0,
        };
        (0..count).map(move |at| this.segment_unchecked(this.piece_unchecked(number.0), at))
    }

    /// Where a segment lies, or nothing when there is no such segment.
    pub fn segment(&self, index: SegmentIndex) -> Option<SegmentSpan> {
        let piece = self.piece(PieceNumber(index.0 / self.segments_per_piece))?;
        let at = index.0 % self.segments_per_piece;
        (at < self.segments_in(piece.length)).then(|| self.segment_unchecked(piece, at))
    }

    /// The segment that holds the byte at `offset` of piece `number`.
    pub fn segment_at(&self, number: PieceNumber, offset: u64) -> Option<SegmentIndex> {
        let piece = self.piece(number).filter(|piece| offset < piece.length)?;
        let within = self.segments_in(offset + 1) - 1;
        Some(SegmentIndex(
            piece.number.0 * self.segments_per_piece + within,
        ))
    }

    fn piece_unchecked(&self, number: u32) -> PieceSpan {
        let offset = u64::from(number) * self.piece_length;
        PieceSpan {
            number: PieceNumber(number),
            offset,
            length: self.piece_length.min(self.content_length - offset),
        }
    }

    fn segment_unchecked(&self, piece: PieceSpan, at: u32) -> SegmentSpan {
        let offset = u64::from(at) * self.segment_length;
        SegmentSpan {
            index: SegmentIndex(piece.number.0 * self.segments_per_piece + at),
            piece: piece.number,
            offset,
            length: self.segment_length.min(piece.length - offset),
        }
    }

    /// For offsets inside the content only: there the quotient is below the piece count, which fits.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the quotient is below piece_count, a u32"
    )]
    fn number_at(&self, offset: u64) -> u32 {
        debug_assert!(
            offset < self.content_length,
            "offset {offset} of {}",
            self.content_length
        );
        (offset / self.piece_length) as u32
    }

    /// How many segments the first `length` bytes of a piece touch.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most segments_per_piece, a u32"
    )]
    fn segments_in(&self, length: u64) -> u32 {
        debug_assert!(
            length <= self.piece_length,
            "{length} bytes of a piece of {}",
            self.piece_length
        );
        length.div_ceil(self.segment_length) as u32
    }
}

/// The power of two nearest to a 256th of the content (ties go up), at least 256 KiB, at most a piece.
fn segment_length(content_length: u64, piece_length: u64) -> u64 {
    let wanted =
        (content_length / SEGMENTS_WANTED).clamp(SEGMENT_LENGTH_MIN, Geometry::PIECE_LENGTH_MAX);
    let above = wanted.next_power_of_two();
    let below = if above == wanted { above } else { above / 2 };
    let nearest = if wanted - below < above - wanted {
        below
    } else {
        above
    };
    nearest.min(piece_length)
}

/// Where a piece lies in the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceSpan {
    /// Which piece.
    pub number: PieceNumber,
    /// Offset of its first byte in the content.
    pub offset: u64,
    /// How many bytes it has; only the last piece may be shorter than the piece length.
    pub length: u64,
}

impl PieceSpan {
    /// The same bytes as a range of the content.
    pub fn range(self) -> ByteRange {
        ByteRange {
            start: self.offset,
            length: self.length,
        }
    }
}

/// The position of a segment among the segment places of its task, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentIndex(pub u32);

/// Where a segment lies in its piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSpan {
    /// Which segment.
    pub index: SegmentIndex,
    /// The piece that it is a part of.
    pub piece: PieceNumber,
    /// Offset of its first byte in the **piece**.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl SegmentSpan {
    /// Offset behind its last byte in the piece.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// Why a content cannot be cut as asked. Whoever stated the lengths must state others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// A piece length that makes no pieces or huge ones.
    #[error("a piece length of {piece_length} bytes: use 4 MiB to 64 MiB, at most 1 GiB")]
    PieceLength {
        /// The length asked for, in bytes.
        piece_length: u64,
    },
    /// More pieces than a task may have.
    #[error(
        "{content_length} bytes in pieces of {piece_length} are more than 4194304 pieces: use longer pieces"
    )]
    TooManyPieces {
        /// Length of the content, in bytes.
        content_length: u64,
        /// The piece length, in bytes.
        piece_length: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn piece_lengths_are_those_of_the_v2_daemon() {
        let table = [
            (0, 4 * MIB, 0),
            (1, 4 * MIB, 1),
            (2_097_152_499, 4 * MIB, 501),
            (2_097_152_500, 8 * MIB, 251),
            (3 * GIB, 8 * MIB, 384),
            (5 * GIB, 16 * MIB, 320),
            (10 * GIB, 32 * MIB, 320),
            (20 * GIB, 64 * MIB, 320),
            (100 * GIB, 64 * MIB, 1600),
        ];
        for (content_length, piece_length, pieces) in table {
            let geometry = Geometry::standard(content_length).unwrap();
            assert_eq!(
                (geometry.piece_length(), geometry.piece_count()),
                (piece_length, pieces),
                "{content_length}"
            );
        }
        assert_eq!(standard_piece_length(u64::MAX), 64 * MIB);
    }

    #[test]
    fn ranges_select_whole_pieces() {
        let geometry = Geometry::new(10_000_000, 4 * MIB).unwrap();
        let numbers = |start, length| {
            let pieces = geometry.pieces_of(ByteRange { start, length });
            pieces.map(|spans| spans.map(|span| span.number.0).collect::<Vec<_>>())
        };
        assert_eq!(numbers(4_194_303, 2), Ok(vec![0, 1]));
        assert_eq!(numbers(0, u64::MAX), Ok(vec![0, 1, 2]));
        assert!(numbers(5, 0).is_err() && numbers(10_000_000, 1).is_err());
    }

    #[test]
    fn lengths_out_of_bounds_are_refused() {
        assert!(Geometry::new(1, 0).is_err() && Geometry::new(1, GIB + 1).is_err());
        assert!(Geometry::new(u64::MAX, GIB).is_err() && Geometry::standard(u64::MAX).is_err());
        assert!(Geometry::new(u64::from(Geometry::PIECES_MAX) + 1, 1).is_err());
        let most = Geometry::new(u64::from(Geometry::PIECES_MAX) * GIB, GIB).unwrap();
        assert_eq!(most.segment_length(), GIB);
    }

    #[test]
    fn segments_are_a_256th_of_the_content() {
        let lengths = |content_length, piece_length| {
            Geometry::new(content_length, piece_length)
                .unwrap()
                .segment_length()
        };
        assert_eq!(lengths(MIB, 4 * MIB), 256 << 10);
        assert_eq!(lengths(GIB, 4 * MIB), 4 * MIB);
        assert_eq!(lengths(300 * MIB, 4 * MIB), MIB);
        assert_eq!(lengths(400 * MIB, 4 * MIB), 2 * MIB);
        assert_eq!(lengths(100 * GIB, 64 * MIB), 64 * MIB);
        assert_eq!(lengths(1 << 20, 1024), 1024);
        let short = Geometry::new(MIB + 1, 4 * MIB).unwrap();
        assert_eq!(
            (
                short.segment_slots(),
                short.segments_of(PieceNumber(0)).len()
            ),
            (5, 5)
        );
    }

    proptest! {
        #[test]
        fn pieces_tile_the_content(content_length in 0u64..100_000, piece_length in 1u64..5_000) {
            let geometry = Geometry::new(content_length, piece_length).unwrap();
            let mut end = 0;
            for (number, span) in (0u32..).zip(geometry.pieces()) {
                prop_assert_eq!((span.number, span.offset), (PieceNumber(number), end));
                prop_assert!(span.length > 0 && span.length <= piece_length);
                prop_assert_eq!(geometry.piece(span.number), Some(span));
                prop_assert_eq!(geometry.piece_at(span.offset + span.length - 1), Some(span.number));
                end += span.length;
            }
            prop_assert_eq!(end, content_length);
            prop_assert_eq!(geometry.piece_at(end), None);
            prop_assert_eq!(geometry.piece(PieceNumber(geometry.piece_count())), None);
        }

        #[test]
        fn pieces_of_a_range_are_those_that_touch_it(content_length in 1u64..3_000, piece_length in 1u64..500, start in 0u64..3_000, length in 0u64..3_000) {
            let geometry = Geometry::new(content_length, piece_length).unwrap();
            let range = ByteRange { start, length };
            let touching: Vec<_> = geometry.pieces().filter(|span| span.range().intersection(range).is_some()).collect();
            match geometry.pieces_of(range) {
                Ok(spans) => prop_assert_eq!(spans.collect::<Vec<_>>(), touching),
                Err(_) => prop_assert!(touching.is_empty()),
            }
        }

        #[test]
        fn segments_tile_every_piece(content_length in 1u64..(3 * GIB), piece_length in (256u64 << 10)..(64 * MIB)) {
            let geometry = Geometry::new(content_length, piece_length).unwrap();
            let mut last = None;
            for piece in geometry.pieces().take(3).chain(geometry.pieces().next_back()) {
                let mut end = 0;
                for segment in geometry.segments_of(piece.number) {
                    prop_assert_eq!((segment.piece, segment.offset), (piece.number, end));
                    prop_assert!(segment.length > 0 && segment.index.0 < geometry.segment_slots());
                    prop_assert_eq!(geometry.segment(segment.index), Some(segment));
                    prop_assert_eq!(geometry.segment_at(piece.number, segment.offset), Some(segment.index));
                    prop_assert_eq!(geometry.segment_at(piece.number, segment.end() - 1), Some(segment.index));
                    end = segment.end();
                    last = Some(segment.index);
                }
                prop_assert_eq!(end, piece.length);
                prop_assert_eq!(geometry.segment_at(piece.number, end), None);
            }
            let behind = last.unwrap().0 + 1;
            prop_assert!((behind..geometry.segment_slots() + 2).all(|index| geometry.segment(SegmentIndex(index)).is_none()));
        }

        #[test]
        fn any_lengths_are_refused_or_sound(content_length: u64, piece_length: u64, offset: u64, index: u32) {
            if let Ok(geometry) = Geometry::new(content_length, piece_length).or(Geometry::standard(content_length)) {
                let _ = geometry.piece_at(offset).map(|number| geometry.segment_at(number, offset));
                let _ = (geometry.segment(SegmentIndex(index)), geometry.segments_of(PieceNumber(index)).len());
                let _ = geometry.pieces_of(ByteRange { start: offset, length: content_length }).map(|spans| spans.len());
            }
        }
    }
}
