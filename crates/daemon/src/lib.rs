//! The daemon of a host: it downloads tasks for its users, keeps their pieces, and serves them to other hosts. As a seed
//! peer it is the first to read an origin.
//!
//! [`engine`] is the heart: from a URL to whole pieces in the store. Around it stand the edges: [`rpc`] (gRPC for the
//! tools over a unix socket, and for other hosts and schedulers over TCP), [`output`] (files for the caller),
//! [`announce`] and [`dynconfig`] (this host and its schedulers), [`gc`], and [`metrics`]. [`run`] puts them together.
//!
//! Start reading at [`run`], then follow one download: `rpc::download` -> `engine` -> `output`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod announce;
pub mod blocklist;
pub mod config;
pub mod dial;
pub mod dynconfig;
pub mod engine;
pub mod host;
pub mod identity;
pub mod link;
pub mod metrics;
pub mod output;
pub mod rpc;
pub mod schedulers;
pub mod serve;
#[cfg(test)]
mod testing;

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
