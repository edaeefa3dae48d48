//! Assembly: binds the listeners, starts every part and ties them into one shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use runtime::grpc::{ClientOptions, DialError, ServerOptions};
use runtime::listen::{self, BindError};
use runtime::shutdown::{Shutdown, Signals};
use runtime::tls::{TlsError, TlsFiles, TlsMaterial};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing::info;

use crate::brain::{self, Brain, TriggerOrder};
use crate::config::Config;
use crate::daemons::Daemons;
use crate::dynconfig::{Follower, ManagerSource, Source};
use crate::membership::Member;
use crate::metrics::{Metrics, PerHost};
use crate::parts::Parts;
use crate::preheat::Preheats;
use crate::rpc;
use crate::seeds::Seeds;

/// How often a silent connection is pinged, and how long the answer may take: a frozen or vanished host is noticed within
/// their sum, where TCP alone would take minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A scheduler that serves. Its parts are tasks of the shutdown tree it was started with and end with it.
#[derive(Debug)]
pub struct Scheduler {
    grpc_addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    parts: Arc<Parts>,
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
    /// The manager's address or certificates cannot be used.
    #[error("manager.addr: {0}")]
    Manager(#[from] DialError),
    /// The system does not tell the address that was bound.
    #[error("the bound address cannot be read: {0}")]
    Address(#[source] std::io::Error),
    /// What was built into the program does not fit together.
    #[error("internal: {0}")]
    Internal(String),
    /// The process cannot hear signals.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
    /// A part ended although nobody asked it to.
    #[error("{0}")]
    Failed(runtime::shutdown::Failure),
}

impl Scheduler {
    /// Binds and serves until `shutdown` begins. When this returns, clients are answered; the manager need not be there.
    ///
    /// # Errors
    /// A listener or a certificate cannot be used.
    pub async fn start(config: Config, shutdown: &Shutdown) -> Result<Self, StartError> {
        let grpc = listen::tcp(config.server.listen, "server.port")?;
        let grpc_addr = grpc.local_addr().map_err(StartError::Address)?;
        let metrics_listener = config
            .metrics
            .map(|addr| listen::tcp(addr, "metrics.addr"))
            .transpose()?;
        let metrics_addr = metrics_listener
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()
            .map_err(StartError::Address)?;
        let server = runtime::grpc::server(&ServerOptions {
            tls: read_tls(config.server.tls.as_ref())?,
            // A daemon that is frozen or cut off is noticed by its unanswered ping, and its peers leave.
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            ..ServerOptions::default()
        })?;
        let per_host = if config.metrics_per_host {
            PerHost::Counted
        } else {
            PerHost::Not
        };
        let (brain, orders) = Brain::new(config.policy.clone(), fastrand::u64(..));
        let daemons = Arc::new(Daemons::new(read_tls(config.seed_peer_tls.as_ref())?));
        let registries = registry::Client::new(config.http_options())
            .map_err(|error| StartError::Internal(error.to_string()))?;
        let preheats = Preheats::new(
            daemons.clone(),
            Arc::new(registries),
            config.server.advertise_ip.to_string(),
        );
        let parts = Arc::new(Parts {
            preheats,
            brain: brain.clone(),
            dynconfig: Arc::default(),
            metrics: Arc::new(
                Metrics::new(per_host).map_err(|error| StartError::Internal(error.to_string()))?,
            ),
            probe: Arc::default(),
            cluster_id: config.cluster_id,
        });
        let routes = rpc::routes(parts.clone(), config.server.request_rate_limit, shutdown)
            .map_err(StartError::Internal)?;
        spawn_seeds(daemons, &parts, orders, shutdown);
        spawn_configuration(&config, &parts, grpc_addr, shutdown)?;
        shutdown.spawn("scheduler timer", brain::keep_time(brain, shutdown.clone()));
        if let Some(listener) = metrics_listener {
            let router = runtime::metrics::router(parts.metrics.registry().clone());
            runtime::http::spawn("scheduler metrics", listener, router, shutdown);
        }
        runtime::grpc::spawn_tcp("scheduler grpc", server, routes, grpc, shutdown);
        info!(grpc = %grpc_addr, metrics = ?metrics_addr, "scheduler serves");
        Ok(Self {
            grpc_addr,
            metrics_addr,
            parts,
        })
    }

    /// Where gRPC is served: the bound address, also when port 0 was asked for.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// How many seed peers said that they serve when they were last looked at.
    pub fn available_seeds(&self) -> usize {
        self.parts
            .brain
            .read(scheduling::Core::available_seed_count)
    }

    /// Where metrics are served, if they are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }
}

/// Starts what looks at seeds and asks them.
fn spawn_seeds(
    daemons: Arc<Daemons>,
    parts: &Arc<Parts>,
    orders: mpsc::Receiver<TriggerOrder>,
    shutdown: &Shutdown,
) {
    let seeds = Arc::new(Seeds::new(
        parts.brain.clone(),
        parts.probe.clone(),
        daemons,
    ));
    shutdown.spawn_until_begun("seed probes", seeds.clone().watch());
    shutdown.spawn_until_begun("seed triggers", seeds.trigger(orders, shutdown.clone()));
}

/// Starts what follows the dynamic configuration, and the membership with the manager, if there is one.
fn spawn_configuration(
    config: &Config,
    parts: &Arc<Parts>,
    grpc_addr: SocketAddr,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let source = match &config.manager {
        None => Source::Local(config.dynconfig_file.clone()),
        Some(manager) => {
            let tls = read_tls(manager.tls.as_ref())?;
            // KeepAlive lasts as long as the process; the other calls carry their own limit.
            let options = ClientOptions {
                request_timeout: None,
                tls,
                ..ClientOptions::default()
            };
            let channel = runtime::grpc::channel(&manager.addr, &options)?;
            let ip = config.server.advertise_ip.to_string();
            let port = match config.server.advertise_port {
                0 => grpc_addr.port(),
                port => port,
            };
            let member = Member {
                channel: channel.clone(),
                hostname: config.server.hostname.clone(),
                ip: ip.clone(),
                port,
                cluster_id: config.cluster_id,
                idc: config.host.idc.clone(),
                location: config.host.location.clone(),
                keep_alive_interval: manager.keep_alive_interval,
            };
            shutdown.spawn("manager membership", member.run(shutdown.clone()));
            let source = ManagerSource {
                addr: manager.addr.clone(),
                channel,
                hostname: config.server.hostname.clone(),
                ip,
                cluster_id: config.cluster_id,
            };
            Source::Manager {
                source: Box::new(source),
                data_dir: config.server.data_dir.clone(),
            }
        }
    };
    let follower = Follower {
        source,
        interval: config.dynconfig_interval,
        brain: parts.brain.clone(),
        current: parts.dynconfig.clone(),
    };
    shutdown.spawn("dynamic configuration", follower.run(shutdown.clone()));
    Ok(())
}

fn read_tls(files: Option<&TlsFiles>) -> Result<Option<TlsMaterial>, TlsError> {
    files.map(TlsFiles::read).transpose()
}

/// Runs a scheduler as the whole of a process: until a signal, or until a part fails.
///
/// # Errors
/// It cannot start, or a part of it failed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), StartError> {
    let grace = config.server.grace;
    // Signals are heard from the first moment on, so that one during the start ends it in order too.
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let drained = tokio::select! {
        started = Scheduler::start(config, &shutdown) => {
            started?;
            shutdown.run_in_order(&mut signals, &[], grace).await
        }
        signal = signals.next() => {
            info!(signal, "stopping before the start was complete");
            shutdown.drain(grace).await
        }
    };
    drained
        .failure
        .map_or(Ok(()), |failure| Err(StartError::Failed(failure)))
}
