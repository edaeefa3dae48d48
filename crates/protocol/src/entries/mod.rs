//! From the entries of a listing to files below an output folder.
//!
//! A listing comes from an origin and is not to be trusted: an entry may name a parent folder, an absolute path or something
//! on another host. [`EntryPath::of`] is the only way from the URL of an entry to a path, and what it returns cannot leave the
//! folder it is joined to. [`EntryFilter`] holds the include and exclude patterns, [`EntryPlan`] puts both together for a whole listing.

mod filter;
mod path;
mod plan;

pub use filter::{EntryFilter, EntryFilterError};
pub use path::{EntryPath, EntryPathError};
pub use plan::{EntryPlan, EntryPlanError};
