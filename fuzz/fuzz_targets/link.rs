//! Any frame of a link is refused or understood, and what it tells stays within the task.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use protocol::Geometry;

use known::Known;
use proto::{Frame, frame::Kind};

#[allow(dead_code, reason = "the daemon uses more of it")]
#[path = "../../crates/daemon/src/link/known.rs"]
mod known;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/dragonfly.swarm.v1.rs"));
}

/// Three pieces with segments of which the last piece has fewer.
static GEOMETRY: LazyLock<Geometry> =
    LazyLock::new(|| Geometry::new(9_000_000, 4 << 20).expect("a small content"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = Frame::decode(bytes) else {
        return;
    };
    assert_eq!(
        Frame::decode(&*frame.encode_to_vec()).expect("what was read can be written"),
        frame
    );
    let mut known = Known::new(&GEOMETRY);
    match frame.kind {
        Some(Kind::Have(have)) => {
            let arriving = known.note_arriving(&have.arriving);
            assert!(
                arriving
                    .iter()
                    .all(|segment| segment.0 < GEOMETRY.segment_slots())
            );
            let held = known.note_held(&have.held, &have.held_crc32);
            let digests = known.note_digests(&have.known, &have.known_crc32);
            assert!(
                held.iter()
                    .chain(&digests)
                    .all(|(piece, _)| piece.0 < GEOMETRY.piece_count())
            );
            assert!(known.millionths() <= 1_000_000);
            assert_eq!(known.note_gone(&have.held).len(), held.len());
        }
        Some(Kind::Drop(gone)) => assert!(known.note_gone(&gone.pieces).is_empty()),
        _ => {}
    }
});
