//! The command line tools, as functions: arguments in, exit code out.
//!
//! Each tool has a module, and a binary that only calls its `main`. A tool talks to the daemon on this host over its unix
//! socket and never starts one. What they share stands beside them: running and telling ([`program`]), what went wrong
//! ([`Failure`]), the way to the daemon (`connection`), options that more than one has (`origin`, `logging`).
//!
//! - [`dfget`] downloads files.
//! - [`dfctl`] looks after a daemon and a cluster: tasks, checks.
//! - [`dfinit`] makes the container runtime of this host pull through the daemon.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bytes_from;
mod connection;
pub mod dfctl;
pub mod dfget;
pub mod dfinit;
mod failure;
mod local;
mod logging;
mod origin;
pub mod program;
mod table;

pub use bytes_from::BytesFrom;
pub use connection::{DEFAULT_ENDPOINT, DaemonArguments};
pub use failure::Failure;
pub use logging::{LogArguments, LogLevel};
pub use origin::OriginArguments;
