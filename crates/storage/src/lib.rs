//! Pieces on disk, whole after any crash.
//!
//! A [`Store`] owns one data folder. In it each task has a content file, at its full length from the beginning, and a journal
//! of the pieces that are whole. A [`Task`] is a handle on one of them: it hands out each missing piece to one
//! [`PieceWriter`], shows arriving bytes to readers behind it ([`PieceView`]), and lets nothing evict the task
//! meanwhile. A piece is visible as whole only after all its bytes are in the file, its digest was checked and its record
//! was written; after a kill at any instruction what was recorded is there and nothing else.
//!
//! The store is synchronous and knows neither network nor scheduler. Waits are futures of `tokio::sync`, which need no
//! runtime of a certain kind.
//!
//! ```
//! use protocol::{Crc32, Geometry, PieceNumber, TaskId, TaskKind, TrafficType};
//! use storage::{Claim, NewTask, Options, PieceOrigin, Store};
//!
//! let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path(), Options::default())?;
//! let id = TaskId::try_from("6f0c")?;
//! let new = NewTask::new(id.clone(), TaskKind::Standard, "https://example.com/a", Geometry::standard(5)?);
//! let task = store.create_task(new)?.task;
//!
//! let Claim::Yours(piece) = task.claim(PieceNumber(0))? else { unreachable!("it is missing") };
//! piece.write(0, b"he")?;
//! assert_eq!(task.available(PieceNumber(0), 0)?, 2);
//! piece.write(2, b"llo")?;
//! let origin = PieceOrigin {
//!     parent: None,
//!     traffic: TrafficType::BackToSource,
//!     created_at: std::time::SystemTime::now(),
//!     cost: std::time::Duration::ZERO,
//! };
//! piece.commit(Some(Crc32::of(b"hello")), origin)?;
//! assert!(task.is_complete()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arrival;
mod digest;
mod entry;
mod error;
mod export;
mod journal;
mod layout;
mod live;
mod meta;
mod options;
mod piece;
mod recovery;
mod space;
mod store;
mod sys;
mod task;

pub use error::{
    CommitError, CreateError, DiskCause, DiskError, ExportError, OpenError, ReadError, TaskError,
    WriteError,
};
pub use export::{Existing, Export, Exported, HardLink, Method};
pub use meta::{
    Mark, NewTask, OriginUse, PieceOrigin, PieceRecord, Retention, TaskSummary, TaskTimes,
};
pub use options::{Options, Start, Verify};
pub use piece::PieceView;
pub use space::{Evicted, EvictionReason, Usage};
pub use store::{Admitted, Store};
pub use task::{Claim, Lookup, PieceWriter, Task, Verdict};

/// Entry for the fuzzer, which has no other way to the journal's reader.
#[doc(hidden)]
pub fn fuzz_journal(bytes: &[u8]) {
    journal::fuzz(bytes);
}
