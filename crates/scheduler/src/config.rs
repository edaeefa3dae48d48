//! The scheduler's configuration: the keys of Dragonfly v2's `scheduler.yaml`, as meant.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::config::{ByteSize, ConfigError, Document, Loaded, Section};
use runtime::tls::TlsFiles;
use scheduling::Policy;
use source::EgressPolicy;
use source::http::HttpOptions;

use crate::machine;

/// Everything the scheduler needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens and what it calls itself.
    pub server: ServerConfig,
    /// What a scheduler process logs.
    pub log: LogConfig,
    /// The numbers of the scheduling rules (`scheduler.*`).
    pub policy: Policy,
    /// Where it stands, as told to the manager.
    pub host: HostConfig,
    /// The manager; without one, [`Config::dynconfig_file`] is followed.
    pub manager: Option<ManagerConfig>,
    /// The scheduler cluster this scheduler belongs to (`manager.schedulerClusterID`), also without a manager.
    pub cluster_id: u64,
    /// Mutual TLS towards seed peers (`seedPeer.tls`).
    pub seed_peer_tls: Option<TlsFiles>,
    /// Which addresses registries may have, to which the scheduler connects for a preheat (`egress.{allow, deny}`, not keys of
    /// Dragonfly v2): lists of address blocks; `deny` also takes host names. Always denied, unless `allow` names them:
    /// link-local addresses and the metadata services of clouds.
    pub egress: EgressPolicy,
    /// How often the dynamic configuration is read again (`dynConfig.refreshInterval`).
    pub dynconfig_interval: Duration,
    /// The local dynamic configuration, used only without a manager; made with defaults if it is missing.
    pub dynconfig_file: PathBuf,
    /// Where `GET /metrics` is answered (`metrics.addr`); `None` switches it off.
    pub metrics: Option<SocketAddr>,
    /// Whether traffic is also counted per host (`metrics.enableHost`): one time series per host and direction.
    pub metrics_per_host: bool,
}

/// Where the scheduler listens and what it calls itself.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where gRPC is served (`server.listenIP`, `server.port`). Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that others are told (`server.advertiseIP`).
    pub advertise_ip: IpAddr,
    /// The port that others are told (`server.advertisePort`); 0 stands for the port that is bound.
    pub advertise_port: u16,
    /// The name registered with the manager, by which daemons assign tasks to schedulers (`server.host`).
    pub hostname: String,
    /// Mutual TLS for whoever connects (`server.tls`).
    pub tls: Option<TlsFiles>,
    /// Calls a second, and as many at once; opening a stream counts as one (`server.requestRateLimit`).
    pub request_rate_limit: f64,
    /// Where the last configuration from the manager is kept (`server.dataDir`, not a key of Dragonfly v2).
    pub data_dir: PathBuf,
    /// How long open streams may take to end at shutdown.
    pub grace: Duration,
}

/// What a scheduler process logs (`console`, `server.log*`). A process that runs the scheduler among others ignores it.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Log to standard error instead of files (`console`).
    pub console: bool,
    /// The parent of the log folder `scheduler` (`server.logDir`).
    pub dir: PathBuf,
    /// The level or filter (`server.logLevel`).
    pub level: String,
    /// Size at which a log file is closed (`server.logMaxSize`, in MB).
    pub file_len_max: ByteSize,
    /// How many log files there are at most (`server.logMaxBackups` and the current one).
    pub file_count_max: usize,
}

/// Where the scheduler stands.
#[derive(Debug, Clone, Default)]
pub struct HostConfig {
    /// Its data centre (`host.idc`).
    pub idc: Option<String>,
    /// Its place, broad to narrow, parts separated by `|` (`host.location`).
    pub location: Option<String>,
}

/// How the manager is reached.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// `host:port`, also with a scheme before it (`manager.addr`).
    pub addr: String,
    /// Mutual TLS towards it (`manager.tls`).
    pub tls: Option<TlsFiles>,
    /// How often it is told that this scheduler is alive (`manager.keepAlive.interval`).
    pub keep_alive_interval: Duration,
}

/// What a dynamic configuration file of Dragonfly v2 is called by default.
pub(crate) const DYNCONFIG_FILE: &str = "/etc/dragonfly/dynconfig.yaml";

impl Default for Config {
    /// What an empty file means, except that nothing is looked up on the machine: the name is `localhost`.
    fn default() -> Self {
        let port = 8002;
        Self {
            server: ServerConfig {
                listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                advertise_ip: Ipv4Addr::LOCALHOST.into(),
                advertise_port: 0,
                hostname: "localhost".to_owned(),
                tls: None,
                request_rate_limit: 4000.0,
                data_dir: PathBuf::from("/var/lib/dragonfly/scheduler"),
                grace: Duration::from_secs(10),
            },
            log: LogConfig {
                console: false,
                dir: PathBuf::from("/var/log/dragonfly"),
                level: "info".to_owned(),
                file_len_max: ByteSize::mb(1024),
                file_count_max: 21,
            },
            policy: Policy::default(),
            host: HostConfig::default(),
            manager: None,
            cluster_id: 1,
            seed_peer_tls: None,
            egress: EgressPolicy::standard(),
            dynconfig_interval: Duration::from_secs(60),
            dynconfig_file: PathBuf::from(DYNCONFIG_FILE),
            metrics: None,
            metrics_per_host: false,
        }
    }
}

impl Config {
    /// How registries are spoken to.
    pub(crate) fn http_options(&self) -> HttpOptions {
        let mut http = HttpOptions::default();
        http.egress = self.egress.clone();
        http
    }

    /// Reads a `scheduler.yaml`.
    ///
    /// # Errors
    /// The file cannot be read or has mistakes: all of them, with their lines.
    pub fn load(file: &Path) -> Result<Loaded<Self>, ConfigError> {
        Self::read(Document::load(file)?)
    }

    /// As [`Config::load`], but a missing file means the defaults: for the default path that nobody named.
    ///
    /// # Errors
    /// As [`Config::load`], except for a missing file.
    pub fn load_if_present(file: &Path) -> Result<Loaded<Self>, ConfigError> {
        Self::read(Document::load_if_present(file)?)
    }

    /// Reads the configuration out of a parsed document.
    ///
    /// # Errors
    /// Every mistake that is found.
    pub fn read(document: Document) -> Result<Loaded<Self>, ConfigError> {
        let root = document.root();
        let ipv6 = root.section("network").get_or("enableIPv6", false);
        let manager_section = root.section("manager");
        let metrics = root.section("metrics");
        let defaults = Self::default();
        let config = Self {
            server: read_server(&root.section("server"), ipv6, defaults.server),
            log: read_log(&root, defaults.log),
            policy: read_policy(&root.section("scheduler"), defaults.policy),
            host: read_host(&root.section("host")),
            cluster_id: manager_section.checked(
                "schedulerClusterID",
                defaults.cluster_id,
                "a cluster id from 1",
                |id| *id > 0,
            ),
            manager: read_manager(&manager_section),
            seed_peer_tls: read_seed_peer(&root.section("seedPeer")),
            egress: read_egress(&root.section("egress")),
            dynconfig_interval: root.section("dynConfig").checked(
                "refreshInterval",
                defaults.dynconfig_interval,
                "a duration of at least 1s, such as 1m",
                |interval| *interval >= Duration::from_secs(1),
            ),
            dynconfig_file: defaults.dynconfig_file,
            metrics: read_metrics(&metrics),
            metrics_per_host: metrics.get_or("enableHost", false),
        };
        accept_unused(&root);
        drop((root, manager_section, metrics));
        document.finish(config)
    }
}

fn read_server(server: &Section<'_>, ipv6: bool, defaults: ServerConfig) -> ServerConfig {
    let any: IpAddr = if ipv6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let port = server.get_or("port", defaults.listen.port());
    server.accept_unused(&["logMaxAge", "pluginDir"]);
    ServerConfig {
        listen: SocketAddr::new(server.get_or("listenIP", any), port),
        advertise_ip: server
            .get("advertiseIP")
            .unwrap_or_else(|| machine::address(ipv6)),
        advertise_port: server.get_or("advertisePort", defaults.advertise_port),
        hostname: server.get("host").unwrap_or_else(machine::hostname),
        tls: TlsFiles::from_section(&server.section("tls")),
        request_rate_limit: server.checked(
            "requestRateLimit",
            defaults.request_rate_limit,
            "calls a second, more than 0",
            |rate| *rate > 0.0,
        ),
        data_dir: server.get_or("dataDir", defaults.data_dir),
        grace: defaults.grace,
    }
}

fn read_log(root: &Section<'_>, defaults: LogConfig) -> LogConfig {
    let server = root.section("server");
    LogConfig {
        console: root.get_or("console", defaults.console),
        dir: server.get_or("logDir", defaults.dir),
        level: server.get_or("logLevel", defaults.level),
        file_len_max: server
            .get("logMaxSize")
            .map_or(defaults.file_len_max, ByteSize::mb),
        file_count_max: server
            .get::<usize>("logMaxBackups")
            .map_or(defaults.file_count_max, |old| old.saturating_add(1)),
    }
}

fn read_policy(section: &Section<'_>, defaults: Policy) -> Policy {
    let algorithm: String = section.get_or("algorithm", "default".to_owned());
    if algorithm != "default" {
        section.mistake(
            "algorithm",
            "default: evaluator plugins are Go shared objects and cannot be loaded",
        );
    }
    let positive = "a whole number from 1";
    let some_time = "a duration longer than 0, such as 500ms";
    let gc = section.section("gc");
    let duration = |from: &Section<'_>, key, default| {
        from.checked(key, default, some_time, |value: &Duration| !value.is_zero())
    };
    Policy {
        back_to_source_limit: section.checked(
            "backToSourceCount",
            defaults.back_to_source_limit,
            positive,
            |n| *n > 0,
        ),
        retry_back_to_source_limit: section.checked(
            "retryBackToSourceLimit",
            defaults.retry_back_to_source_limit,
            positive,
            |n| *n > 0,
        ),
        retry_limit: section.checked("retryLimit", defaults.retry_limit, positive, |n| *n > 0),
        retry_interval: duration(section, "retryInterval", defaults.retry_interval),
        piece_download_timeout: duration(
            &gc,
            "pieceDownloadTimeout",
            defaults.piece_download_timeout,
        ),
        peer_gc_interval: duration(&gc, "peerGCInterval", defaults.peer_gc_interval),
        peer_ttl: duration(&gc, "peerTTL", defaults.peer_ttl),
        task_gc_interval: duration(&gc, "taskGCInterval", defaults.task_gc_interval),
        host_gc_interval: duration(&gc, "hostGCInterval", defaults.host_gc_interval),
        host_ttl: duration(&gc, "hostTTL", defaults.host_ttl),
        ..defaults
    }
}

fn read_host(section: &Section<'_>) -> HostConfig {
    HostConfig {
        idc: section.get("idc"),
        location: section.get("location"),
    }
}

fn read_manager(section: &Section<'_>) -> Option<ManagerConfig> {
    let keep_alive_interval = section.section("keepAlive").checked(
        "interval",
        Duration::from_secs(5),
        "a duration longer than 0, such as 5s",
        |interval: &Duration| !interval.is_zero(),
    );
    let tls = TlsFiles::from_section(&section.section("tls"));
    let addr = section.get::<String>("addr")?;
    let uri = if addr.contains("://") {
        addr.clone()
    } else {
        format!("http://{addr}")
    };
    if tonic::transport::Endpoint::from_shared(uri).is_err() {
        section.mistake("addr", "the manager's host:port, such as manager:65003");
    }
    Some(ManagerConfig {
        addr,
        tls,
        keep_alive_interval,
    })
}

fn read_seed_peer(section: &Section<'_>) -> Option<TlsFiles> {
    section.accept_unused(&["taskDownloadTimeout"]);
    TlsFiles::from_section(&section.section("tls"))
}

fn read_egress(section: &Section<'_>) -> EgressPolicy {
    let mut policy = EgressPolicy::standard();
    for text in section.list::<String>("allow").unwrap_or_default() {
        match text.parse() {
            Ok(block) => policy = policy.allow(block),
            Err(_) => section.mistake("allow", "address blocks, such as 10.0.0.0/8"),
        }
    }
    for text in section.list::<String>("deny").unwrap_or_default() {
        let is_name = !text.is_empty() && !text.contains(['/', ':', ' ']);
        match text.parse() {
            Ok(block) => policy = policy.deny(block),
            Err(_) if is_name => policy = policy.deny_host(&text),
            Err(_) => section.mistake("deny", "address blocks or host names"),
        }
    }
    policy
}

fn read_metrics(section: &Section<'_>) -> Option<SocketAddr> {
    let addr = section.get_or("addr", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000)));
    section.get_or("enable", false).then_some(addr)
}

/// Keys of Dragonfly v2 that mean nothing here: its Redis features, job queue, profiler and log output are absent or are
/// set elsewhere.
fn accept_unused(root: &Section<'_>) {
    root.accept_unused(&["database", "job", "peer", "pprofPort", "tracing"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Loaded<Config>, ConfigError> {
        Config::read(Document::parse("scheduler.yaml", text).unwrap())
    }

    #[test]
    fn the_keys_of_dragonfly_v2_are_read() {
        let text = "
server:
  advertiseIP: 10.0.0.7
  advertisePort: 18002
  listenIP: 127.0.0.1
  port: 8012
  host: scheduler-0
  requestRateLimit: 100
  logLevel: debug
  logMaxBackups: 3
scheduler:
  algorithm: default
  backToSourceCount: 3
  retryBackToSourceLimit: 2
  retryLimit: 3
  retryInterval: 100ms
  gc: {pieceDownloadTimeout: 1m, peerGCInterval: 2s, peerTTL: 1h, taskGCInterval: 3m, hostGCInterval: 4m, hostTTL: 5m}
database: {redis: {addrs: []}}
dynConfig: {refreshInterval: 10s}
manager:
  addr: manager:65003
  schedulerClusterID: 4
  keepAlive: {interval: 2s}
seedPeer: {taskDownloadTimeout: 10h}
host: {idc: east, location: a|b}
metrics: {enable: true, addr: ':9000', enableHost: true}
console: true
";
        let Loaded {
            value: config,
            warnings,
        } = read(text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.server.listen, "127.0.0.1:8012".parse().unwrap());
        assert_eq!(
            (
                config.server.advertise_port,
                config.server.hostname.as_str()
            ),
            (18002, "scheduler-0")
        );
        assert_eq!(config.policy.back_to_source_limit, 3);
        assert_eq!(config.policy.wait_max(), Duration::from_millis(200));
        assert_eq!(config.policy.host_ttl, Duration::from_secs(300));
        assert_eq!(
            (config.cluster_id, config.dynconfig_interval),
            (4, Duration::from_secs(10))
        );
        let manager = config.manager.unwrap();
        assert_eq!(
            (manager.addr.as_str(), manager.keep_alive_interval),
            ("manager:65003", Duration::from_secs(2))
        );
        assert_eq!(config.metrics, Some("0.0.0.0:9000".parse().unwrap()));
        assert!(config.log.console && config.metrics_per_host);
        assert_eq!(
            (config.log.level.as_str(), config.log.file_count_max),
            ("debug", 4)
        );
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = read("").unwrap().value;
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.server.listen, "0.0.0.0:8002".parse().unwrap());
        assert!(config.manager.is_none() && config.metrics.is_none());
        let ipv6 = read("network: {enableIPv6: true}").unwrap().value;
        assert_eq!(ipv6.server.listen, "[::]:8002".parse().unwrap());
    }

    #[test]
    fn registries_have_no_link_local_address_unless_allowed() {
        let metadata = "169.254.169.254".parse().unwrap();
        let policy = |text| read(text).unwrap().value.egress;
        assert!(!policy("").permits_ip(metadata) && policy("").permits_host("10.0.0.1"));
        let changed =
            policy("egress: {allow: [169.254.0.0/16], deny: [10.0.0.0/8, internal.example]}");
        assert!(changed.permits_ip(metadata) && !changed.permits_host("10.0.0.1"));
        assert!(!changed.permits_host("a.internal.example"));
        assert!(read("egress: {allow: [x], deny: ['y/z']}").is_err());
    }

    #[test]
    fn every_mistake_is_told_and_unknown_keys_warn() {
        let wrong = "scheduler: {algorithm: plugin, retryLimit: 0}\nmanager: {addr: 'a b', schedulerClusterID: 0}\n";
        let text = read(wrong).unwrap_err().to_string();
        for key in [
            "scheduler.algorithm",
            "scheduler.retryLimit",
            "manager.addr",
            "manager.schedulerClusterID",
        ] {
            assert!(text.contains(key), "{key} is not in {text}");
        }
        let warnings = read("schedular: {}\n").unwrap().warnings;
        assert_eq!(warnings.len(), 1);
    }
}
