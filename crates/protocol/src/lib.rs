//! What the Dragonfly v2 wire means: identifiers, piece geometry, digests, ranges, the piece port's packets and the
//! ring that assigns a task to a scheduler.
//!
//! Everything here is a pure function of its arguments. There is no I/O, no clock, no randomness and no async in this
//! crate, so every rule can be checked by a property test and every parser by a fuzzer. Start with [`TaskId`] (which
//! content) and [`Geometry`] (how the content is cut into pieces and segments).
//!
//! ```
//! use protocol::{ByteRange, Geometry, PieceNumber, StandardTask};
//!
//! let task = StandardTask { url: "https://example.com", tag: Some("foo"), application: Some("bar"), ..Default::default() };
//! assert!(task.task_id()?.as_str().starts_with("06408fbf"));
//!
//! let geometry = Geometry::new(10_000_000, 4 << 20)?;
//! let range = ByteRange { start: 4_194_303, length: 2 };
//! let pieces: Vec<PieceNumber> = geometry.pieces_of(range)?.map(|span| span.number).collect();
//! assert_eq!(pieces, [PieceNumber(0), PieceNumber(1)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bitmap;
mod canonical_url;
mod digest;
mod entries;
mod geometry;
mod id;
mod kind;
mod range;
mod ring;
mod task_id;
pub mod vortex;

pub use bitmap::{Bitmap, BitmapError};
pub use canonical_url::{CanonicalUrlError, DEFAULT_FILTERED_QUERY_PARAMS, canonical_url};
pub use digest::{Crc32, Crc32Hasher, Digest, DigestAlgorithm, DigestError, DigestHasher};
pub use entries::{
    EntryFilter, EntryFilterError, EntryPath, EntryPathError, EntryPlan, EntryPlanError,
};
pub use geometry::{
    Geometry, GeometryError, PieceSpan, SegmentIndex, SegmentSpan, standard_piece_length,
};
pub use id::{HostId, HostRole, IdError, PeerId, PieceNumber, TaskId};
pub use kind::{TaskKind, TrafficType};
pub use range::{ByteRange, RangeError};
pub use ring::HashRing;
pub use task_id::{
    PersistentCacheTaskHasher, StandardTask, TaskIdError, content_task_id, persistent_task_id,
};
