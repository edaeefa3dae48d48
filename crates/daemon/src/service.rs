//! Assembly: binds the listeners, starts every part, and ends them in order.
//!
//! Start: read certificates, open the store, bind every listener (a port in use is told at once), get the scheduler list,
//! serve, and only then announce the host: a scheduler never knows of a host that does not answer yet. A scheduler that is
//! away is no reason not to start.
//!
//! End: listeners close and announcements stop; downloads that are being answered may finish within
//! `server.shutdownTimeout` while pieces are served on; then the schedulers are told that the host leaves; then links,
//! sessions and the piece server end; then the store is flushed. Each step has a bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::grpc::{self, RateLimit, ServerOptions};
use runtime::listen::{self, BindError};
use runtime::shutdown::{Shutdown, Signals};
use runtime::tls::{TlsError, TlsFiles, TlsMaterial};
use storage::{OpenError, Start, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::announce::Announcer;
use crate::config::{Config, RequestLimit, SeedKind};
use crate::dial::{Dialer, DialerError};
use crate::dynconfig::{Asker, Dynconfig, DynconfigError, LocalSource, ManagerSource, Source};
use crate::engine::{Engine, EngineParts, Limits};
use crate::gc;
use crate::host::{self, HostMonitor, HostOptions};
use crate::identity::{Identity, Ports};
use crate::link::proto::swarm_server::SwarmServer;
use crate::link::{Hub, LinkService};
use crate::metrics::Metrics;
use crate::proxy::intercept::{CaError, Interception};
use crate::proxy::p2p::{P2p, P2pParts};
use crate::proxy::{self, Proxy, ProxyParts};
use crate::rpc::download::DownloadService;
use crate::rpc::local::{LocalService, Place};
use crate::rpc::socket::{Socket, SocketError};
use crate::rpc::upload::UploadService;
use crate::rpc::{Tasks, TasksParts};
use crate::schedulers::Schedulers;
use crate::serve::{PieceServer, Uploads};
use crate::stats;
use crate::upstreams::{self, UpstreamError};

/// How long links and sessions may take to tell their other sides that they end.
const ENGINE_END_MAX: Duration = Duration::from_secs(1);

/// How long pieces that are being sent may take after that.
const PIECES_END_MAX: Duration = Duration::from_secs(1);

/// How long flushing the store may take; without it, the next start verifies what it serves.
const STORE_END_MAX: Duration = Duration::from_secs(1);

/// What the steps after `server.shutdownTimeout` may take together, and some slack.
const END_MAX: Duration = Duration::from_secs(6);

/// Calls that one connection may have open at once.
const STREAMS_PER_CONNECTION_MAX: u32 = 4096;

/// Where a daemon listens: the bound addresses, also where the configuration says port 0.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// gRPC for schedulers and other hosts.
    pub upload: SocketAddr,
    /// Pieces over TCP.
    pub pieces: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
    /// `/healthy`.
    pub health: SocketAddr,
    /// `/debug/stats`.
    pub stats: SocketAddr,
    /// HTTP proxy and registry mirror.
    pub proxy: SocketAddr,
    /// gRPC for the tools of this host.
    pub socket: PathBuf,
}

impl Addresses {
    /// What is served where, in words.
    fn named(&self) -> Vec<(&'static str, String)> {
        vec![
            ("socket", self.socket.display().to_string()),
            ("upload", self.upload.to_string()),
            ("pieces", self.pieces.to_string()),
            ("metrics", self.metrics.to_string()),
            ("health", self.health.to_string()),
            ("stats", self.stats.to_string()),
            ("proxy", self.proxy.to_string()),
        ]
    }
}

/// Why a daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The piece port cannot be used.
    #[error("storage.server.tcpPort: cannot listen on {addr}: {error}: set it to a free port")]
    Pieces {
        /// As configured.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The socket for the tools cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A certificate of the server cannot be used.
    #[error("upload.server: {0}")]
    Tls(#[from] TlsError),
    /// A certificate of a client cannot be used.
    #[error("{section}: {error}")]
    ClientTls {
        /// Where it is configured.
        section: &'static str,
        /// What is wrong with it.
        #[source]
        error: DialerError,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// No dynamic configuration.
    #[error(transparent)]
    Dynconfig(#[from] DynconfigError),
    /// An origin plugin cannot be used.
    #[error("server.pluginDir: {0}")]
    Plugin(#[from] source::PluginError),
    /// Origins cannot be read.
    #[error("backend: {0}")]
    Sources(#[from] source::SourceError),
    /// A file of an upstream cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The CA for intercepted hosts cannot be used.
    #[error("proxy: {0}")]
    Interception(#[from] CaError),
    /// The registry refuses a metric, or the descriptors of the services do not parse: a mistake in this program.
    #[error("cannot set up {what}: {reason}")]
    Internal {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The process cannot hear signals.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] std::io::Error),
    /// A part ended although nobody asked it to.
    #[error(transparent)]
    Failed(#[from] runtime::shutdown::Failure),
}

/// Runs a daemon as the whole of a process: until a signal, or until a part fails.
///
/// # Errors
/// It cannot start, or a part of it failed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), StartError> {
    let grace = config.server.shutdown_timeout + END_MAX;
    // Signals are heard from the first moment on, so that one during the start ends it in order too.
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let drained = tokio::select! {
        started = start(config, &shutdown) => {
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
        .map_or(Ok(()), |failure| Err(failure.into()))
}

/// Starts a daemon whose parts are tasks of `shutdown` and end with it. When this returns, it serves.
///
/// To end it, drain `shutdown` with a grace time of `server.shutdownTimeout` and about six seconds.
///
/// # Errors
/// Something that the operator must mend; nothing keeps running then.
pub async fn start(config: Config, shutdown: &Shutdown) -> Result<Addresses, StartError> {
    let started = try_start(config, shutdown).await;
    if started.is_err() {
        shutdown.begin();
    }
    started
}

async fn try_start(config: Config, shutdown: &Shutdown) -> Result<Addresses, StartError> {
    let dialers = Dialers::new(&config)?;
    let server_tls = config
        .upload
        .server_tls
        .as_ref()
        .map(TlsFiles::read)
        .transpose()?;
    raise_open_files();
    let store = open_store(&config).await?;
    // Before anybody can connect: whoever finds the daemon finds its CA too.
    let interception = Interception::new(&config.proxy, &config.storage.dir)?;
    let listeners = Listeners::bind(&config)?;
    let addresses = listeners.addresses(&config)?;
    let identity = Arc::new(identity(&config, &addresses));
    let metrics = Arc::new(metrics()?);
    let schedulers = Schedulers::new(dialers.scheduler.clone(), shutdown);
    let dynconfig = Dynconfig::start(
        dynconfig_source(&config, &dialers)?,
        config.dynconfig.refresh_interval,
        &config.storage.dir,
        schedulers.clone(),
    )
    .await?;

    let own = proxy::own_addresses(addresses.proxy, config.host.ip);
    let http = upstreams::http_options(&config, own)?;
    let sources = Arc::new(sources(&config, http).await?);
    let core = Core::new(
        &config,
        &identity,
        store,
        sources.clone(),
        schedulers.clone(),
        metrics.clone(),
        dialers.peers.clone(),
    );
    let monitor = Arc::new(HostMonitor::new(identity.clone(), host_options(&config)));
    let announcer = Arc::new(Announcer::new(
        identity.clone(),
        monitor.clone(),
        schedulers.clone(),
        config.scheduler.announce_interval,
    ));
    let tasks = Tasks::new(TasksParts {
        identity: identity.clone(),
        engine: core.engine.clone(),
        sources: sources.clone(),
        schedulers: schedulers.clone(),
        dynconfig: dynconfig.clone(),
        announcer: announcer.clone(),
        monitor: monitor.clone(),
        metrics: metrics.clone(),
        output_roots: config.download.output_roots.clone(),
        shutdown: shutdown.clone(),
    });

    let place = Place {
        listeners: addresses.named(),
        storage_dir: config.storage.dir.clone(),
        gc: config.gc.clone(),
        dynconfig: dynconfig.clone(),
    };
    let p2p = P2p::new(P2pParts {
        engine: core.engine.clone(),
        identity: identity.clone(),
        metrics: metrics.clone(),
        config: &config.proxy,
        storage_dir: &config.storage.dir,
    });
    let proxy = proxy(
        &config,
        &addresses,
        &sources,
        &dynconfig,
        &metrics,
        p2p,
        interception,
    )?;
    let stats = stats::router(identity.clone(), core.engine.clone(), schedulers);
    listeners
        .serve(
            &config, server_tls, &core, &tasks, place, &metrics, &proxy, stats, shutdown,
        )
        .await?;
    shutdown.spawn_until_begun("network figures", {
        let monitor = monitor.clone();
        async move { monitor.run().await }
    });
    spawn(shutdown, "dynamic configuration", move |part| async move {
        dynconfig.run(&part).await
    });
    spawn(shutdown, "garbage collection", {
        let (config, store, tasks) = (config.gc.clone(), core.store.clone(), tasks.clone());
        move |part| async move { gc::run(config, store, tasks, &metrics, &part).await }
    });
    spawn(shutdown, "announcer", {
        let announcer = announcer.clone();
        move |part| async move { announcer.run(&part).await }
    });
    let patience = config.server.shutdown_timeout;
    spawn(shutdown, "orderly end", move |part| async move {
        part.begun().await;
        core.end(&tasks, &proxy, &announcer, patience).await;
    });
    info!(host_id = %identity.host_id, ?addresses, "daemon serves");
    Ok(addresses)
}

fn spawn<F>(shutdown: &Shutdown, name: &'static str, part: impl FnOnce(Shutdown) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    shutdown.spawn(name, part(shutdown.clone()));
}

/// Connecting to each kind of service.
struct Dialers {
    manager: Dialer,
    scheduler: Dialer,
    peers: Dialer,
}

impl Dialers {
    fn new(config: &Config) -> Result<Self, StartError> {
        let dialer = |section, tls: Option<&TlsFiles>| {
            Dialer::new(tls).map_err(|error| StartError::ClientTls { section, error })
        };
        Ok(Self {
            manager: dialer(
                "manager",
                config
                    .manager
                    .as_ref()
                    .and_then(|manager| manager.tls.as_ref()),
            )?,
            scheduler: dialer("scheduler", config.scheduler.tls.as_ref())?,
            peers: Dialer::for_peers(config.upload.client_tls.as_ref()).map_err(|error| {
                StartError::ClientTls {
                    section: "upload.client",
                    error,
                }
            })?,
        })
    }
}

/// Everything that is bound before anything is served.
struct Listeners {
    upload: TcpListener,
    pieces: transfer::Server,
    socket: Socket,
    metrics: TcpListener,
    health: TcpListener,
    stats: TcpListener,
    proxy: TcpListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let options = transfer::ServerOptions {
            fast_open: config.storage.tcp_fastopen,
            drain: PIECES_END_MAX,
            upload_limit: Some(Arc::new(transfer::RateLimit::new(
                config.upload.bandwidth_limit.as_u64(),
            ))),
            ..transfer::ServerOptions::default()
        };
        let addr = config.storage.tcp_listen;
        Ok(Self {
            upload: listen::tcp(config.upload.listen, "upload.server.port")?,
            pieces: transfer::Server::bind(addr, options)
                .map_err(|error| StartError::Pieces { addr, error })?,
            metrics: listen::tcp(config.metrics, "metrics.server.port")?,
            health: listen::tcp(config.health, "health.server.port")?,
            stats: listen::tcp(config.stats, "stats.server.port")?,
            proxy: listen::tcp(config.proxy.listen, "proxy.server.port")?,
            // Last, so that nobody finds a socket behind which nothing will ever be.
            socket: Socket::bind(
                &config.download.socket_path,
                config.download.socket_mode,
                config.download.socket_group.as_deref(),
            )?,
        })
    }

    fn addresses(&self, config: &Config) -> Result<Addresses, StartError> {
        let bound = |addr: std::io::Result<SocketAddr>| {
            addr.map_err(|error| StartError::Internal {
                what: "a listener",
                reason: error.to_string(),
            })
        };
        Ok(Addresses {
            upload: bound(self.upload.local_addr())?,
            pieces: bound(self.pieces.local_addr())?,
            metrics: bound(self.metrics.local_addr())?,
            health: bound(self.health.local_addr())?,
            stats: bound(self.stats.local_addr())?,
            proxy: bound(self.proxy.local_addr())?,
            socket: config.download.socket_path.clone(),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "called once, by the assembly")]
    async fn serve(
        self,
        config: &Config,
        tls: Option<TlsMaterial>,
        core: &Core,
        tasks: &Tasks,
        place: Place,
        metrics: &Metrics,
        proxy: &Proxy,
        stats: axum::Router,
        shutdown: &Shutdown,
    ) -> Result<(), StartError> {
        let server = |tls: Option<TlsMaterial>| {
            grpc::server(&ServerOptions {
                tls,
                concurrent_streams_max: STREAMS_PER_CONNECTION_MAX,
                ..ServerOptions::default()
            })
        };
        let upload = Routes::new(UploadService::server(tasks.clone()))
            .add_service(SwarmServer::new(LinkService::new(core.hub.clone())));
        let upload = with_health(limited(upload, config.upload.requests)).await?;
        grpc::spawn_tcp("upload gRPC", server(tls)?, upload, self.upload, shutdown);

        let download = Routes::new(DownloadService::server(tasks.clone()))
            .add_service(LocalService::server(tasks.clone(), place));
        let download = with_health(limited(download, config.download.requests)).await?;
        let connections = self.socket.connections();
        grpc::spawn_incoming(
            "download gRPC",
            server(None)?,
            download,
            connections,
            shutdown,
        );

        core.serve_pieces(self.pieces, shutdown);
        let registry = metrics.registry().clone();
        runtime::http::spawn(
            "metrics",
            self.metrics,
            runtime::metrics::router(registry),
            shutdown,
        );
        runtime::http::spawn("health", self.health, runtime::health::router(), shutdown);
        runtime::http::spawn("stats", self.stats, stats, shutdown);
        // Last, as in v2: what comes in there needs all the others.
        let grace = config.server.shutdown_timeout;
        let serving = proxy.clone().serve(self.proxy, grace, shutdown.clone());
        shutdown.spawn("proxy", serving);
        Ok(())
    }
}

/// The store and what moves pieces. It outlives the listeners: its end is a step of its own.
struct Core {
    engine: Engine,
    hub: Arc<Hub>,
    store: Store,
    uploads: Arc<Uploads>,
    /// Ends links and the piece server; the engine ends first, by itself.
    stop: CancellationToken,
}

impl Core {
    fn new(
        config: &Config,
        identity: &Arc<Identity>,
        store: Store,
        sources: Arc<source::Sources>,
        schedulers: Arc<Schedulers>,
        metrics: Arc<Metrics>,
        peers: Dialer,
    ) -> Self {
        let stop = CancellationToken::new();
        let uploads = Uploads::new(metrics.clone());
        let hub = Hub::new(
            identity.clone(),
            store.clone(),
            uploads.clone(),
            peers,
            stop.clone(),
        );
        let limit = transfer::RateLimit::new(config.download.bandwidth_limit.as_u64());
        let client = transfer::Client::new(transfer::ClientOptions {
            download_limit: Some(Arc::new(limit)),
            ..transfer::ClientOptions::default()
        });
        let parts = EngineParts {
            identity: identity.clone(),
            store: store.clone(),
            sources,
            schedulers,
            client,
            limits: limits(config),
            metrics,
        };
        let engine = Engine::new(parts, hub.clone(), stop.child_token());
        Self {
            engine,
            hub,
            store,
            uploads,
            stop,
        }
    }

    fn serve_pieces(&self, server: transfer::Server, shutdown: &Shutdown) {
        let pieces = PieceServer::new(self.hub.clone(), self.store.clone(), self.uploads.clone());
        shutdown.spawn("pieces over TCP", server.serve(pieces, self.stop.clone()));
        shutdown.spawn("upload slots", self.uploads.clone().run(self.stop.clone()));
    }

    /// The orderly end; see the head of this module.
    async fn end(self, tasks: &Tasks, proxy: &Proxy, announcer: &Announcer, patience: Duration) {
        let answered = async { tokio::join!(tasks.close(), proxy.ended()) };
        if tokio::time::timeout(patience, answered).await.is_err() {
            warn!(
                limit_s = patience.as_secs(),
                "downloads were still running, ending them: they can be resumed"
            );
        }
        if let Err(error) = announcer.leave().await {
            warn!(%error, "leaving");
        }
        let ended = async {
            self.engine.close().await;
            self.stop.cancel();
            self.hub.close().await;
        };
        if tokio::time::timeout(ENGINE_END_MAX, ended).await.is_err() {
            warn!(
                limit_s = ENGINE_END_MAX.as_secs(),
                "sessions and links did not end in time"
            );
            self.stop.cancel();
        }
        let Self { store, .. } = self;
        let closed = tokio::time::timeout(
            STORE_END_MAX,
            tokio::task::spawn_blocking(move || store.close()),
        );
        match closed.await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                warn!(%error, "store not flushed, the next start verifies its pieces")
            }
            _ => info!(
                "store not flushed in time, a power loss now would cost the next start some verifying"
            ),
        }
    }
}

fn identity(config: &Config, addresses: &Addresses) -> Identity {
    let ports = Ports {
        upload: addresses.upload.port(),
        piece_tcp: addresses.pieces.port(),
        // Told to v2 children, which need a number; children that insist on QUIC find nobody there.
        piece_quic: config.storage.quic_listen.port(),
        proxy: addresses.proxy.port(),
    };
    Identity::new(config.host.ip, &config.host.hostname, config.role(), ports)
}

fn proxy(
    config: &Config,
    addresses: &Addresses,
    sources: &source::Sources,
    dynconfig: &Arc<Dynconfig>,
    metrics: &Arc<Metrics>,
    p2p: P2p,
    interception: Option<Interception>,
) -> Result<Proxy, StartError> {
    let http = sources.http().ok_or_else(|| StartError::Internal {
        what: "the proxy",
        reason: "there is no backend for http".to_owned(),
    })?;
    Ok(Proxy::new(ProxyParts {
        config: &config.proxy,
        listen: addresses.proxy,
        ip: config.host.ip,
        http: http.clone(),
        p2p,
        dynconfig: dynconfig.clone(),
        metrics: metrics.clone(),
        interception,
    }))
}

fn host_options(config: &Config) -> HostOptions {
    HostOptions {
        idc: config.host.idc.clone(),
        location: config.host.location.clone(),
        scheduler_cluster_id: config.host.scheduler_cluster_id,
        disable_shared: config.upload.disable_shared,
        host_type: host::host_type(config.role(), config.seed_peer.kind == SeedKind::Super),
        bandwidth_limit_bits: config.upload.bandwidth_limit.as_u64().saturating_mul(8),
        storage_dir: config.storage.dir.clone(),
    }
}

fn dynconfig_source(config: &Config, dialers: &Dialers) -> Result<Source, StartError> {
    let role = config.role();
    let Some(manager) = &config.manager else {
        return Ok(Source::File(LocalSource::new(
            config.dynconfig.local_file.clone(),
            role,
        )));
    };
    let asker = Asker {
        role,
        hostname: config.host.hostname.clone(),
        ip: config.host.ip,
        idc: config.host.idc.clone(),
        location: config.host.location.clone(),
        scheduler_cluster_id: config.host.scheduler_cluster_id,
    };
    let source = ManagerSource::new(
        &manager.addr,
        asker,
        &dialers.manager,
        dialers.scheduler.clone(),
    )?;
    Ok(Source::Manager(Box::new(source)))
}

/// As many open files as the system lets this process have: every connection, content and journal takes one, and the limit that
/// is customary (1024) is meant for programs that use select(2).
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files cannot be raised: many connections may find it too low (LimitNOFILE, ulimit -n)");
    }
}

async fn open_store(config: &Config) -> Result<Store, StartError> {
    let dir = config.storage.dir.clone();
    let threshold = config.gc.disk_threshold.as_u64();
    let options = storage::Options {
        start: if config.storage.keep {
            Start::Resume
        } else {
            Start::Empty
        },
        capacity: (threshold > 0).then_some(threshold),
        ..storage::Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || Store::open(&dir, options)).await;
    let opened = opened.map_err(|error| StartError::Internal {
        what: "the store",
        reason: error.to_string(),
    })?;
    Ok(opened?)
}

async fn sources(
    config: &Config,
    http: source::http::HttpOptions,
) -> Result<source::Sources, StartError> {
    let mut sources = source::Sources::standard(source::SourcesOptions::default().with_http(http))?;
    let folder = config.server.plugin_dir.join("backend");
    for plugin in source::plugin::load(&folder, source::PluginLimits::default()).await? {
        info!(scheme = plugin.scheme(), file = %plugin.file().display(), "origin plugin is ready");
        sources.register(Arc::new(plugin));
    }
    Ok(sources)
}

fn limits(config: &Config) -> Limits {
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    Limits {
        concurrent_pieces: count(config.download.concurrent_piece_count),
        concurrent_source_pieces: count(config.download.back_to_source_concurrent_piece_count),
        piece_timeout: config.download.piece_timeout,
        schedule_count_max: config.scheduler.max_schedule_count,
        prefetch: Arc::new(transfer::RateLimit::new(
            config.proxy.prefetch_bandwidth_limit.as_u64(),
        )),
        origins_know_nobody: !config
            .backend
            .request_header
            .keys()
            .any(|name| source::is_secret_header(name))
            && config
                .backend
                .upstreams
                .iter()
                .all(|upstream| upstream.credentials.is_none()),
        ..Limits::default()
    }
}

fn metrics() -> Result<Metrics, StartError> {
    Metrics::new(runtime::metrics::registry()).map_err(|error| StartError::Internal {
        what: "metrics",
        reason: error.to_string(),
    })
}

fn limited(routes: Routes, requests: RequestLimit) -> Routes {
    RateLimit::new(f64::from(requests.rate), requests.waiting).around(routes)
}

/// Adds health and reflection, which are not rate limited.
async fn with_health(routes: Routes) -> Result<Routes, StartError> {
    let (reporter, health) = grpc::health();
    for service in ["dfdaemon.v2.DfdaemonDownload", "dfdaemon.v2.DfdaemonUpload"] {
        reporter
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
    let reflection = grpc::reflection(&[dragonfly_api::FILE_DESCRIPTOR_SET]).map_err(|error| {
        StartError::Internal {
            what: "reflection",
            reason: error.to_string(),
        }
    })?;
    Ok(routes.add_service(health).add_service(reflection))
}

#[cfg(test)]
mod tests;
