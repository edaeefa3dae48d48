//! The manager: it knows the clusters, their schedulers and seed peers, and tells everybody whom to ask.
//!
//! Daemons ask [`ListSchedulers`](dragonfly_api::manager::v2::ListSchedulersRequest) which schedulers serve them;
//! schedulers register, keep themselves alive and read their cluster's configuration. All of it lives in one SQL
//! database: an embedded SQLite file by default, PostgreSQL or MySQL/MariaDB when several managers share the work.
//! The process itself keeps no state that a second manager would need.
//!
//! Start from [`Config`] (what to run) and [`run`] (runs it until told to stop):
//!
//! ```no_run
//! # async fn example() -> Result<(), manager::RunError> {
//! use runtime::shutdown::Shutdown;
//!
//! let mut config = manager::Config::default();
//! config.database = "sqlite:///tmp/manager.db".parse().expect("a valid database URL");
//! let shutdown = Shutdown::new();
//! manager::run(config, shutdown.child(), |at| println!("gRPC at {}", at.grpc)).await
//! # }
//! ```
//!
//! In reading order: the domain ([`model`]), its database (`db`), who is where (`directory`), which cluster suits a
//! daemon best ([`searcher`]), who is alive (`keepalive`), the edges (`rpc`, `rest`), and the assembly (`service`).
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod model;
pub mod searcher;

mod args;
mod config;
mod db;
mod directory;
mod keepalive;
mod metrics;
mod rest;
mod rpc;
mod service;
#[cfg(test)]
mod tests;

pub use args::Args;
pub use config::Config;
pub use db::{DatabaseUrl, DbError, InvalidDatabaseUrl};
pub use service::{Addresses, RunError, execute, run, start};
