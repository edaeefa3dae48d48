//! The assembly: database, listeners and background work of one manager, started and stopped together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use runtime::config::ConfigError;
use runtime::listen::{self, BindError};
use runtime::log::LogError;
use runtime::shutdown::{Failure, Shutdown};
use runtime::tls::TlsError;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::args::Args;
use crate::config::Config;
use crate::db::{Database, DbError, Migrate};
use crate::directory::Directory;
use crate::keepalive::KeepAlive;
use crate::metrics::Metrics;
use crate::{keepalive, rest, rpc};

/// How long open calls may take to end once the process was told to.
const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts to reach the database at start.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Where a running manager listens; real ports where the configuration said 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC: `manager.v2.Manager`, health, reflection.
    pub grpc: SocketAddr,
    /// REST.
    pub rest: SocketAddr,
    /// Prometheus metrics, if enabled.
    pub metrics: Option<SocketAddr>,
}

/// Why a manager did not start or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// TLS files.
    #[error("server.grpc.tls: {0}")]
    Tls(#[from] TlsError),
    /// The database.
    #[error("{database}: {error}")]
    Database {
        /// The database's URL, without password.
        database: String,
        /// What is wrong.
        #[source]
        error: DbError,
    },
    /// The descriptors of our own services do not parse.
    #[error("gRPC descriptors: {0}")]
    Descriptors(String),
    /// The system refused a signal handler.
    #[error("signal handlers: {0}")]
    Signals(#[from] std::io::Error),
    /// A part failed while running.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The end began before the start was done.
    #[error("stopped while starting")]
    Stopped,
}

/// Starts a manager; its tasks belong to `shutdown` and end when that begins. Returns once everything listens.
///
/// Listeners are bound before the database is opened, so that a port in use is told at once, and accept after it.
///
/// # Errors
/// See [`RunError`]; nothing keeps running then.
pub async fn start(config: Config, shutdown: &Shutdown) -> Result<Addresses, RunError> {
    let listeners = Listeners::bind(&config)?;
    let addresses = listeners.addresses()?;
    let server_options = runtime::grpc::ServerOptions {
        tls: config
            .grpc_tls
            .as_ref()
            .map(|files| files.read())
            .transpose()?,
        // A scheduler that is frozen or cut off is noticed by its unanswered ping, at the latest.
        keepalive_interval: Duration::from_secs(20),
        keepalive_timeout: Duration::from_secs(10),
        ..Default::default()
    };
    let server = runtime::grpc::server(&server_options)?;
    let database = open_database(&config, shutdown).await?;
    let metrics = Arc::new(Metrics::new());
    let directory = Arc::new(Directory::new(database.clone()));
    let keep_alive = KeepAlive::new(
        database.clone(),
        directory.clone(),
        shutdown.clone(),
        keepalive::Limits::default(),
    );

    let parts = rpc::Parts {
        database: database.clone(),
        directory: directory.clone(),
        keep_alive,
        metrics: metrics.clone(),
    };
    let routes = rpc::routes(parts, config.request_rate_limit).map_err(RunError::Descriptors)?;
    keepalive::spawn_upkeep(database.clone(), directory, shutdown);
    runtime::grpc::spawn_tcp("manager grpc", server, routes, listeners.grpc, shutdown);
    runtime::http::spawn("manager rest", listeners.rest, rest::router(), shutdown);
    if let Some(listener) = listeners.metrics {
        let router = runtime::metrics::router(metrics.registry().clone());
        runtime::http::spawn("manager metrics", listener, router, shutdown);
    }
    let ending = shutdown.clone();
    shutdown.spawn("manager database", async move {
        ending.begun().await;
        database.close().await;
    });
    info!(grpc = %addresses.grpc, rest = %addresses.rest, database = %config.database, "manager serves");
    Ok(addresses)
}

/// Runs a manager until `shutdown` begins; `ready` hears the addresses once everything listens.
///
/// The owner of the shutdown tree drains it (see [`Shutdown::drain`]): that is when the last calls are done and the
/// database is closed.
///
/// # Errors
/// It could not start; see [`RunError`].
pub async fn run(
    config: Config,
    shutdown: Shutdown,
    ready: impl FnOnce(Addresses),
) -> Result<(), RunError> {
    ready(start(config, &shutdown).await?);
    shutdown.begun().await;
    Ok(())
}

/// The whole life of `dragonfly manager`: reads the configuration, starts logging, runs until a signal, drains.
///
/// # Errors
/// See [`RunError`].
pub async fn execute(args: Args) -> Result<(), RunError> {
    let loaded = args.load()?;
    let _log = runtime::log::init(&loaded.value.log)?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let shutdown = Shutdown::new();
    let starting = async {
        match start(loaded.value, &shutdown).await {
            // Told to stop while starting is no failure.
            Ok(_) | Err(RunError::Stopped) => Ok(()),
            Err(error) => {
                shutdown.begin();
                Err(error)
            }
        }
    };
    // Signals are heard from the first moment on: a start may wait long for its database.
    let (started, drained) = tokio::join!(starting, shutdown.run(DRAIN_GRACE));
    started?;
    drained?
        .failure
        .map_or(Ok(()), |failure| Err(failure.into()))
}

struct Listeners {
    grpc: TcpListener,
    rest: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, RunError> {
        Ok(Self {
            grpc: listen::tcp(config.grpc, "server.grpc.port.start")?,
            rest: listen::tcp(config.rest, "server.rest.addr")?,
            metrics: config
                .metrics
                .map(|address| listen::tcp(address, "metrics.addr"))
                .transpose()?,
        })
    }

    fn addresses(&self) -> Result<Addresses, RunError> {
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            rest: self.rest.local_addr()?,
            metrics: self
                .metrics
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()?,
        })
    }
}

/// Opens the database, waiting for it as long as the configuration allows: in a cluster that is switched on as a whole, the
/// database may be the last to come up.
async fn open_database(config: &Config, shutdown: &Shutdown) -> Result<Database, RunError> {
    let migrate = if config.migrate {
        Migrate::Yes
    } else {
        Migrate::No
    };
    let deadline = tokio::time::Instant::now() + config.database_start_timeout;
    let [mut pause, pause_max] = RETRY_PAUSE;
    loop {
        let opening = Database::open(&config.database, config.database_timeout, migrate);
        let opened = tokio::select! {
            biased;
            () = shutdown.begun() => return Err(RunError::Stopped),
            opened = opening => opened,
        };
        match opened {
            Ok(database) => return Ok(database),
            Err(DbError::Unavailable { reason })
                if tokio::time::Instant::now() + pause < deadline =>
            {
                warn!(database = %config.database, %reason, retry_in = ?pause, "database not available yet");
            }
            Err(error) => {
                return Err(RunError::Database {
                    database: config.database.to_string(),
                    error,
                });
            }
        }
        tokio::select! {
            biased;
            () = shutdown.begun() => return Err(RunError::Stopped),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(pause_max),
        }
    }
}
