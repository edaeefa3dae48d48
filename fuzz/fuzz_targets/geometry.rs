//! Any two lengths are refused, or make pieces and segments that tile the content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{Bitmap, ByteRange, Geometry, PieceNumber, SegmentIndex};

fuzz_target!(|input: (u64, u64, u64, u32, Vec<u8>)| {
    let (content_length, piece_length, offset, index, bytes) = input;
    if let Ok(geometry) = Geometry::new(content_length, piece_length) {
        let number = PieceNumber(index);
        if let Some(piece) = geometry.piece(number) {
            assert!(piece.length > 0 && piece.range().end() <= content_length);
            assert_eq!(geometry.piece_at(piece.offset), Some(number));
            assert!(geometry.segments_of(number).len() > 0);
        }
        if let Some(segment) = geometry.segment(SegmentIndex(index)) {
            assert_eq!(
                geometry.segment_at(segment.piece, segment.offset),
                Some(segment.index)
            );
            assert!(segment.index.0 < geometry.segment_slots());
        }
        let range = ByteRange {
            start: offset,
            length: content_length,
        };
        if let Ok(pieces) = geometry.pieces_of(range) {
            assert!(pieces.len() <= geometry.piece_count() as usize);
        }
    }
    if let Ok(map) = Bitmap::from_bytes(index, &bytes) {
        assert_eq!(map.to_bytes(), bytes);
        assert_eq!(map.ones().count(), map.count() as usize);
    }
});
