//! The daemon of a host: it downloads tasks for its users, keeps their pieces, and serves them to other hosts. As a seed
//! peer it is the first to read an origin.
//!
//! [`engine`] is the heart: from a URL to whole pieces in the store. Around it stand the edges: [`rpc`] (gRPC for the
//! tools over a unix socket, and for other hosts and schedulers over TCP), [`output`] (files for the caller),
//! [`announce`] and [`dynconfig`] (this host and its schedulers), [`mod@gc`], and [`metrics`]. [`start`] puts them together.
//!
//! Start reading at [`start`], then follow one download: `rpc::download` -> `engine` -> `output`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = daemon::Config::load("/etc/dragonfly/dfdaemon.yaml".as_ref())?.value;
//! let shutdown = runtime::shutdown::Shutdown::new();
//! let addresses = daemon::start(config, &shutdown).await?;
//! println!("pieces on {}", addresses.pieces);
//! shutdown.drain(std::time::Duration::from_secs(15)).await;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod announce;
pub mod blocklist;
mod cli;
pub mod config;
pub mod dial;
pub mod dynconfig;
pub mod engine;
pub mod gc;
pub mod host;
pub mod identity;
pub mod link;
pub mod metrics;
pub mod output;
pub mod proxy;
pub mod rpc;
pub mod schedulers;
pub mod serve;
mod service;
mod stats;
#[cfg(test)]
mod testing;
pub mod upstreams;

pub use cli::{Args, main};
pub use config::Config;
pub use service::{Addresses, StartError, run, start};

/// The commit that this build was made from, as `--version` and the announcements tell it.
pub const GIT_COMMIT: &str = match option_env!("DRAGONFLY_GIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// When that commit was made.
pub const BUILD_TIME: &str = match option_env!("DRAGONFLY_BUILD_TIME") {
    Some(time) => time,
    None => "unknown",
};
