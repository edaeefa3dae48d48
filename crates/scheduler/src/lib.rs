//! The scheduler service: the gRPC edge around the decisions of the `scheduling` crate.
//!
//! It answers `scheduler.v2.Scheduler` as a Dragonfly v2 scheduler does, triggers seed peers, keeps itself registered
//! with the manager (if there is one) and follows its dynamic configuration. Everything about tasks, peers and hosts
//! lives in memory: after a restart the hosts announce themselves again.
//!
//! Start with [`Config`] and [`Scheduler::start`]; one registration is followed through `rpc/announce_peer.rs`,
//! [`scheduling::Core::handle`] and `brain.rs`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let shutdown = runtime::shutdown::Shutdown::new();
//! let mut config = scheduler::Config::default();
//! config.server.listen.set_port(0);
//! let scheduler = scheduler::Scheduler::start(config, &shutdown).await?;
//! println!("gRPC on {}", scheduler.grpc_addr());
//! shutdown.drain(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod brain;
mod cli;
mod config;
mod daemons;
mod dynconfig;
mod machine;
mod membership;
mod metrics;
mod parts;
mod preheat;
mod rpc;
mod seeds;
mod service;
#[cfg(test)]
mod tests;

pub use cli::{Args, main};
pub use config::{Config, HostConfig, LogConfig, ManagerConfig, ServerConfig};
pub use service::{Scheduler, StartError, run};
