//! The daemon's configuration, as meant: every key of a Dragonfly v2 `dfdaemon.yaml`, typed, with its default.
//!
//! [`Config::load`] reads the file through `runtime::config`, which reports every mistake with file, line, key and what
//! was expected. The defaults stand once, in `read.rs`. Each part of the daemon receives its own section.
//!
//! Keys of ours that v2 does not have are marked as such; a v2 daemon ignores them.
//!
//! Read and checked, but without effect so far, because the part that they steer is not built yet or needs no such number:
//! `server.{cacheDir, adaptiveRateLimit}`, `download.{protocol, backToSourceBandwidthLimit,
//! collectedPieceTimeout}`, `upload.client` (a warning is logged), `scheduler.scheduleTimeout`, `storage.{writebackMode,
//! writePieceTimeout, writeBufferSize, readBufferSize, cacheCapacity}`, `storage.server.quicPort` (told to v2 children),
//! `backend.{enableCacheTemporaryRedirect, cacheTemporaryRedirectTTL, put*, enableHickoryDNS}`,
//! `gc.policy.{persistentTaskTTL, persistentCacheTaskTTL, pageCacheIdleTimeout}`, `tracing`.

mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Authority;
use protocol::HostRole;
use runtime::config::{ByteSize, ConfigError, Document, Loaded};
use runtime::secret::Secret;
use runtime::tls::TlsFiles;
use source::EgressPolicy;
use source::http::{HostPattern, UpstreamProxy};
use url::Url;

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dragonfly/dfdaemon.yaml";

/// Where the local dynamic configuration is looked for unless `--dynconfig` says otherwise.
pub const DEFAULT_DYNCONFIG_FILE: &str = "/etc/dragonfly/dynconfig.yaml";

/// Everything that `dfdaemon.yaml` says.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host`: who this host is.
    pub host: Host,
    /// `server`: directories, overload protection, shutdown.
    pub server: Server,
    /// `download`: the unix socket and how pieces are fetched.
    pub download: Download,
    /// `upload`: the gRPC service for others and how pieces are served.
    pub upload: Upload,
    /// `manager`; `None` without `manager.addr`: the local dynconfig file is used instead.
    pub manager: Option<Manager>,
    /// `scheduler`: announcing and scheduling limits.
    pub scheduler: Scheduler,
    /// `seedPeer`: whether this is a seed peer, and of which type it announces itself.
    pub seed_peer: SeedPeer,
    /// `dynconfig`: refreshing of the scheduler list.
    pub dynconfig: Dynconfig,
    /// `storage`: the piece store and its data servers.
    pub storage: Storage,
    /// `backend`: reading from origins.
    pub backend: Backend,
    /// `gc`: what is evicted, and when.
    pub gc: Gc,
    /// `proxy`: the HTTP proxy and registry mirror.
    pub proxy: Proxy,
    /// `health`: where `/healthy` is served.
    pub health: SocketAddr,
    /// `metrics`: where `/metrics` is served.
    pub metrics: SocketAddr,
    /// `stats`: where the profiling endpoints of v2 answer.
    pub stats: SocketAddr,
    /// `tracing`: where spans are exported; `None` unless protocol and endpoint are given.
    pub tracing: Option<Tracing>,
    /// `network.enableIPv6`: listen on `::` and prefer an IPv6 host address. Default false.
    pub enable_ipv6: bool,
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, or has wrong values: all of them are listed.
    pub fn load(file: &Path) -> Result<Loaded<Self>, ConfigError> {
        let document = Document::load(file)?;
        let config = read::config(&document.root());
        document.finish(config)
    }

    /// As [`Config::load`], from text; `file` is the name used in messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &str, text: &str) -> Result<Loaded<Self>, ConfigError> {
        let document = Document::parse(file, text)?;
        let config = read::config(&document.root());
        document.finish(config)
    }

    /// Seed or ordinary peer, as `seedPeer.enable` says.
    pub fn role(&self) -> HostRole {
        if self.seed_peer.enable {
            HostRole::Seed
        } else {
            HostRole::Normal
        }
    }
}

/// `host`.
#[derive(Debug, Clone)]
pub struct Host {
    /// `host.idc`: data centre, for scheduling affinity.
    pub idc: Option<String>,
    /// `host.location`: `|`-separated path such as `eu|de|rack3`, for scheduling affinity.
    pub location: Option<String>,
    /// `host.hostname`; default the system's. Part of the host id.
    pub hostname: String,
    /// `host.ip`: the address that others dial. Default the address of the default route, else loopback.
    pub ip: IpAddr,
    /// `host.schedulerClusterID`: pins the scheduler cluster; 0 lets the manager choose.
    pub scheduler_cluster_id: u64,
}

/// `server`.
#[derive(Debug, Clone)]
pub struct Server {
    /// `server.pluginDir`: origin plugins. Default `/usr/local/lib/dragonfly/plugins/dfdaemon`.
    pub plugin_dir: PathBuf,
    /// `server.cacheDir`. Default `/var/cache/dragonfly/dfdaemon`.
    pub cache_dir: PathBuf,
    /// `server.adaptiveRateLimit`; `None` when it is `null`: requests are never shed for load.
    pub adaptive_rate_limit: Option<AdaptiveRateLimit>,
    /// `server.shutdownTimeout` (ours): how long running downloads and uploads may go on after a stop signal.
    /// Default 5s.
    pub shutdown_timeout: Duration,
}

/// `server.adaptiveRateLimit`: when requests are shed because the process is overloaded.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptiveRateLimit {
    /// Closed buckets that are remembered. Default 50.
    pub bucket_count: u32,
    /// Length of a bucket. Default 200ms.
    pub bucket_interval: Duration,
    /// Overloaded from this CPU use on, in percent; 100 ignores the CPU. Default 100.
    pub cpu_threshold: u8,
    /// Overloaded from this memory use on, in percent of the limit. Default 90.
    pub memory_threshold: u8,
    /// Shedding goes on for this long after a shed request. Default 5s.
    pub shed_cooldown: Duration,
    /// How often CPU and memory are sampled. Default 3s.
    pub collect_interval: Duration,
}

/// Requests per second of one gRPC service, and how many beyond it may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimit {
    /// `requestRateLimit`: requests a second. Default 400, and 4000 on the unix socket.
    pub rate: u32,
    /// `requestBufferSize`: requests that wait for their turn; more are refused with RESOURCE_EXHAUSTED. Default 50.
    pub waiting: u32,
}

/// `download`.
#[derive(Debug, Clone)]
pub struct Download {
    /// `download.server.socketPath`. Default `/var/run/dragonfly/dfdaemon.sock`.
    pub socket_path: PathBuf,
    /// `download.server.socketMode` (ours): permission bits of the socket file, octal. Default `0660`; v2 uses 0777,
    /// which lets every user of the machine have the daemon fetch and delete.
    pub socket_mode: u32,
    /// `download.server.socketGroup` (ours): name or number of the group that owns the socket file; its members may
    /// use the daemon. Default the daemon's own group.
    pub socket_group: Option<String>,
    /// `download.outputRoots` (ours): output paths must lie below one of these; empty allows every place where the
    /// caller may write. Default empty.
    pub output_roots: Vec<PathBuf>,
    /// `download.server.{requestRateLimit, requestBufferSize}`.
    pub requests: RequestLimit,
    /// `download.protocol`: how pieces are fetched. Default `tcp`.
    pub protocol: PieceProtocol,
    /// `download.bandwidthLimit`: bytes a second from parents and origins together. Default 50GB.
    pub bandwidth_limit: ByteSize,
    /// `download.backToSourceBandwidthLimit`: bytes a second from origins. Default 50GB.
    pub back_to_source_bandwidth_limit: ByteSize,
    /// `download.pieceTimeout`: longest wait for an origin's answer. Default 360s.
    pub piece_timeout: Duration,
    /// `download.collectedPieceTimeout`: longest silence on SyncPieces. Default 360s.
    pub collected_piece_timeout: Duration,
    /// `download.concurrentPieceCount`: pieces fetched at once per task. At least 1, default 8.
    pub concurrent_piece_count: u32,
    /// `download.backToSourceConcurrentPieceCount`: ranges read at once from an origin per task. At least 1, default 8.
    pub back_to_source_concurrent_piece_count: u32,
}

/// How piece bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceProtocol {
    /// `tcp`.
    Tcp,
    /// `quic`: accepted for compatibility; pieces are fetched over TCP, which every peer serves.
    Quic,
}

/// `upload`.
#[derive(Debug, Clone)]
pub struct Upload {
    /// `upload.server.{ip, port}`. Default port 4000.
    pub listen: SocketAddr,
    /// `upload.server.{caCert, cert, key}`: mutual TLS for those who call us.
    pub server_tls: Option<TlsFiles>,
    /// `upload.server.{requestRateLimit, requestBufferSize}`.
    pub requests: RequestLimit,
    /// `upload.client.{caCert, cert, key}`: mutual TLS towards other peers.
    pub client_tls: Option<TlsFiles>,
    /// `upload.disableShared`: announce this host as no parent for others. Default false.
    pub disable_shared: bool,
    /// `upload.bandwidthLimit`: bytes a second to other peers. Default 50GB.
    pub bandwidth_limit: ByteSize,
}

/// `manager`.
#[derive(Debug, Clone)]
pub struct Manager {
    /// `manager.addr`: `http://host:port` or `https://host:port`.
    pub addr: String,
    /// `manager.{caCert, cert, key}`; used when the address says https.
    pub tls: Option<TlsFiles>,
}

/// `scheduler`.
#[derive(Debug, Clone)]
pub struct Scheduler {
    /// `scheduler.announceInterval`. Default 300s.
    pub announce_interval: Duration,
    /// `scheduler.scheduleTimeout`: longest gap between two answers of a scheduler. Default 3h.
    pub schedule_timeout: Duration,
    /// `scheduler.maxScheduleCount`: answers after which the origin is read instead. At least 1, default 5.
    pub max_schedule_count: u32,
    /// `scheduler.{caCert, cert, key}`.
    pub tls: Option<TlsFiles>,
}

/// `seedPeer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedPeer {
    /// `seedPeer.enable`. Default false.
    pub enable: bool,
    /// `seedPeer.type`: what is announced. Default `super` when the block is there, `normal` when it is not.
    pub kind: SeedKind,
}

/// `seedPeer.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedKind {
    /// Announced as host type 0.
    Normal,
    /// Announced as host type 1.
    Super,
}

/// `dynconfig`.
#[derive(Debug, Clone)]
pub struct Dynconfig {
    /// `dynconfig.refreshInterval`. Default 60s.
    pub refresh_interval: Duration,
    /// The local file, used without a manager; from `--dynconfig`.
    pub local_file: PathBuf,
}

/// `storage`.
#[derive(Debug, Clone)]
pub struct Storage {
    /// `storage.server.{ip, tcpPort}`: pieces over TCP. Default port 4005.
    pub tcp_listen: SocketAddr,
    /// `storage.server.tcpFastopen`. Default false.
    pub tcp_fastopen: bool,
    /// `storage.server.{ip, quicPort}`: pieces over QUIC. Default port 4006.
    pub quic_listen: SocketAddr,
    /// `storage.writebackMode`: how soon written pieces are pushed to disk. Default `async`.
    pub writeback_mode: WritebackMode,
    /// `storage.dir`. Default `/var/lib/dragonfly/`.
    pub dir: PathBuf,
    /// `storage.keep`: whether content outlives a restart. Default true: what was fetched is served again. (The
    /// built-in default of v2 is false, that of its packages is true.)
    pub keep: bool,
    /// `storage.writePieceTimeout`: longest time for the bytes of one piece. Default 360s.
    pub write_piece_timeout: Duration,
    /// `storage.writeBufferSize`: bytes. Default 2097152.
    pub write_buffer_size: ByteSize,
    /// `storage.readBufferSize`: bytes. Default 2097152.
    pub read_buffer_size: ByteSize,
    /// `storage.cacheCapacity`: memory for cache tasks. Default 64MiB.
    pub cache_capacity: ByteSize,
}

/// `storage.writebackMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WritebackMode {
    /// Each piece is on disk before it counts.
    Sync,
    /// Writing to disk is begun after each piece and not waited for.
    Async,
    /// Left to the kernel.
    Off,
}

/// `backend`.
#[derive(Debug, Clone)]
pub struct Backend {
    /// `backend.requestHeader`: sent with every request to an origin. Values may be credentials.
    pub request_header: BTreeMap<String, Secret>,
    /// `backend.maxRetries`: retries of a failed request that may succeed later. Default 1.
    pub max_retries: u32,
    /// `backend.enableCacheTemporaryRedirect`. Default true.
    pub cache_temporary_redirect: bool,
    /// `backend.cacheTemporaryRedirectTTL`. Default 600s.
    pub cache_temporary_redirect_ttl: Duration,
    /// `backend.putConcurrentChunkCount`. At least 1, default 16.
    pub put_concurrent_chunk_count: u32,
    /// `backend.putChunkSize`. Default 8MiB.
    pub put_chunk_size: ByteSize,
    /// `backend.putTimeout`. Default 900s.
    pub put_timeout: Duration,
    /// `backend.enableHickoryDNS`: accepted; names are resolved by the system. Default true.
    pub enable_hickory_dns: bool,
    /// `backend.egress.{allow, deny}` (ours): which addresses origins may have. Both are lists of address blocks such as
    /// `10.0.0.0/8`; `deny` also takes host names, which mean everything below them too. Always denied, unless `allow` names
    /// them: link-local addresses and the metadata services of clouds. Default: nothing else.
    pub egress: EgressPolicy,
    /// `backend.upstreams` (ours): what single origins need; the first that means a host holds for it, for reads and for
    /// forwarded requests alike. Default empty.
    pub upstreams: Vec<Upstream>,
}

/// One of `backend.upstreams` (ours).
#[derive(Debug, Clone)]
pub struct Upstream {
    /// `host`: `registry.example.com`, with or without a port, `*.example.com` or `*`.
    pub hosts: HostPattern,
    /// `caCert`: PEM file of certificates to trust besides those of the system.
    pub ca_cert: Option<PathBuf>,
    /// `cert` and `key`: PEM files of the certificate that this host shows.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `plainHTTP`: ask over http also where a URL says https. Default false.
    pub plain_http: bool,
    /// `skipVerify`: do not verify the certificate. Whoever sits in between can then change every byte that has no digest.
    /// Default false.
    pub skip_verify: bool,
    /// `proxy`: `http://`, `socks5://` or `socks5h://`, with `user:password@` if need be; before that of the environment.
    pub proxy: Option<UpstreamProxy>,
    /// `username` with `password` or `passwordFile`, or `token` or `tokenFile`: shown when a request has no credentials of
    /// its own. Whoever may use the daemon can then read what they open.
    pub credentials: Option<UpstreamCredentials>,
    /// `rewrite`: the `host` or `host:port` that is asked instead.
    pub rewrite: Option<Authority>,
}

/// What an upstream is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamCredentials {
    /// HTTP Basic.
    Basic {
        /// Who.
        username: String,
        /// The proof.
        password: SecretSource,
    },
    /// A bearer token.
    Bearer(SecretSource),
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration.
    Inline(Secret),
    /// In a file of its own, read at the start; a line end behind it is no part of it.
    File(PathBuf),
}

/// `gc`.
#[derive(Debug, Clone)]
pub struct Gc {
    /// `gc.interval`. Default 900s.
    pub interval: Duration,
    /// `gc.policy.taskTTL`: a task is deleted when it was not used for this long. Default 720h.
    pub task_ttl: Duration,
    /// `gc.policy.persistentTaskTTL`. Default 24h.
    pub persistent_task_ttl: Duration,
    /// `gc.policy.persistentCacheTaskTTL`. Default 24h.
    pub persistent_cache_task_ttl: Duration,
    /// `gc.policy.pageCacheIdleTimeout`: cached pages of a task unused for this long are given back. Default 40m.
    pub page_cache_idle_timeout: Duration,
    /// `gc.policy.diskThreshold`: what the store may occupy; 0 means the whole filesystem. Default 0.
    pub disk_threshold: ByteSize,
    /// `gc.policy.diskHighThresholdPercent`: eviction begins here. 1 to 100, default 80.
    pub disk_high_threshold_percent: u8,
    /// `gc.policy.diskLowThresholdPercent`: and ends here. 0 to the upper threshold, default 60.
    pub disk_low_threshold_percent: u8,
}

/// `proxy`.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// `proxy.server.{ip, port}`. Default port 4001.
    pub listen: SocketAddr,
    /// `proxy.server.requestRateLimit`: requests a second. Default 4000.
    pub request_rate_limit: u32,
    /// `proxy.server.{caCert, caKey}`: PEM files of the CA that signs for intercepted hosts. Without them the daemon makes one of
    /// its own, valid for these hosts only, and keeps it in `storage.dir`.
    pub ca: Option<(PathBuf, PathBuf)>,
    /// `proxy.server.{maxConnections, maxRequests, maxTunnels, headerTimeout, idleTimeout}` (ours).
    pub limits: ProxyLimits,
    /// `proxy.interceptHosts` (ours): CONNECT to these hosts is answered by this daemon itself, which needs the client's trust
    /// in the CA; hosts that an expression of `proxy.rules` names are added. Every other CONNECT is a blind tunnel. (v2
    /// intercepts all of them.) Default empty.
    pub intercept_hosts: Vec<HostPattern>,
    /// `proxy.server.basicAuth.{username, password}`.
    pub basic_auth: Option<(String, Secret)>,
    /// `proxy.rules`, first match wins.
    pub rules: Vec<ProxyRule>,
    /// `proxy.registryMirror`.
    pub registry_mirror: RegistryMirror,
    /// `proxy.disableBackToSource`. Default false.
    pub disable_back_to_source: bool,
    /// `proxy.prefetch`: a ranged request also fetches the rest. Default false.
    pub prefetch: bool,
    /// `proxy.prefetchBandwidthLimit`: bytes a second. Default 10GB.
    pub prefetch_bandwidth_limit: ByteSize,
    /// `proxy.readBufferSize`: bytes. Default 2097152.
    pub read_buffer_size: ByteSize,
}

/// How much the proxy does at once, and how long it waits. All of it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyLimits {
    /// `proxy.server.maxConnections`: open connections of clients; more are answered 503. Idle ones that
    /// have asked for something cost about 10 KiB each.
    /// At least 1, default 16384.
    pub connections: u32,
    /// `proxy.server.maxRequests`: requests being answered at once; more are answered 503, so that a container runtime asks its
    /// registry instead. At least 1, default 4096.
    pub requests: u32,
    /// `proxy.server.maxTunnels`: open CONNECT tunnels; more are answered 503. At least 1, default 4096.
    pub tunnels: u32,
    /// `proxy.server.headerTimeout`: longest time from the first byte of a request to the end of its headers. Default 10s.
    pub header: Duration,
    /// `proxy.server.idleTimeout`: longest time without a byte: of a connection between requests, of a body in either
    /// direction, of a tunnel; and longest wait for an origin's answer to a forwarded request. Default 5m.
    pub idle: Duration,
}

/// One of `proxy.rules`.
#[derive(Debug, Clone)]
pub struct ProxyRule {
    /// `regex`: URLs that this rule is for. Default `.*`.
    pub regex: String,
    /// `useTLS`: ask the origin over https. Default false.
    pub use_tls: bool,
    /// `redirect`: ask this host instead.
    pub redirect: Option<String>,
    /// `filteredQueryParams`; default the common list.
    pub filtered_query_params: Vec<String>,
    /// `schedulingPolicy`: `auto` or `always`; true for always.
    pub always_schedule: bool,
}

/// `proxy.registryMirror`.
#[derive(Debug, Clone)]
pub struct RegistryMirror {
    /// `addr`: who is asked when a request to the mirror names no registry. Default `https://index.docker.io`.
    pub addr: Url,
    /// `cert`: PEM file of certificates to trust for that registry, besides those of the system.
    pub cert: Option<PathBuf>,
    /// `enableTaskIDBasedBlobDigest`. Default true.
    pub task_id_based_blob_digest: bool,
}

/// `tracing`.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// `tracing.protocol`: `grpc`, `http` or `https`.
    pub protocol: String,
    /// `tracing.endpoint`: `host:port`.
    pub endpoint: String,
    /// `tracing.path`. Default `/v1/traces`.
    pub path: String,
    /// `tracing.headers`.
    pub headers: BTreeMap<String, Secret>,
}
