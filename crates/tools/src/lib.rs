//! The command line tools, as functions: arguments in, exit code out.
//!
//! Each tool has a module, and a binary that only calls its `main`; the all-in-one binary calls the same. A tool talks to the
//! daemon on this host over its unix socket and never starts one.
//!
//! - [`dfget`] downloads one file.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod dfget;
