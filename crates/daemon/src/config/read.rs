//! From the document to the typed configuration: names, defaults and limits of every key, once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use runtime::config::{ByteSize, Section};
use url::Url;

use super::*;
use crate::host;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const PIECE_TIMEOUT: Duration = Duration::from_secs(360);
const UNLIMITED: ByteSize = ByteSize::gb(50);
const BUFFER: ByteSize = ByteSize::mib(2);

/// Requests a second of the tools of this host. A directory of a thousand small files is a thousand requests, and each
/// takes less than a millisecond. (Dragonfly v2 allows 400.)
const SOCKET_RATE: u32 = 4000;

/// Requests a second of schedulers and other hosts, as in Dragonfly v2.
const UPLOAD_RATE: u32 = 400;

pub(super) fn config(root: &Section<'_>) -> Config {
    // Accepted by v2 without effect, so that its files pass without warnings.
    root.accept_unused(&["console", "log", "verbose"]);
    root.section("security").accept_unused(&["enable"]);
    let network = root.section("network");
    let enable_ipv6 = network.get_or("enableIPv6", false);
    let listen = Listen { enable_ipv6 };
    Config {
        host: host_section(&root.section("host"), enable_ipv6),
        server: server(root),
        download: download(&root.section("download")),
        upload: upload(&root.section("upload"), listen),
        manager: manager(&root.section("manager")),
        scheduler: scheduler(&root.section("scheduler")),
        seed_peer: seed_peer(root),
        dynconfig: Dynconfig {
            refresh_interval: positive(&root.section("dynconfig"), "refreshInterval", MINUTE),
            local_file: PathBuf::from(DEFAULT_DYNCONFIG_FILE),
        },
        storage: storage(&root.section("storage"), listen),
        backend: backend(&root.section("backend")),
        gc: gc(&root.section("gc")),
        proxy: proxy(&root.section("proxy"), listen),
        health: listen.at(&root.section("health").section("server"), "port", 4003),
        metrics: listen.at(&root.section("metrics").section("server"), "port", 4002),
        stats: listen.at(&root.section("stats").section("server"), "port", 4004),
        tracing: tracing(&root.section("tracing")),
        enable_ipv6,
    }
}

/// Where to listen when no `ip` is given.
#[derive(Clone, Copy)]
struct Listen {
    enable_ipv6: bool,
}

impl Listen {
    fn at(self, section: &Section<'_>, port_key: &'static str, port: u16) -> SocketAddr {
        let any = if self.enable_ipv6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        SocketAddr::new(section.get_or("ip", any), section.get_or(port_key, port))
    }
}

fn host_section(section: &Section<'_>, enable_ipv6: bool) -> Host {
    let hostname = section.checked(
        "hostname",
        String::new(),
        "a host name of 1 to 253 characters without spaces or slashes",
        |name: &String| is_hostname(name),
    );
    Host {
        idc: text(section, "idc"),
        location: text(section, "location"),
        hostname: if hostname.is_empty() {
            host::system_hostname()
        } else {
            hostname
        },
        ip: section
            .get("ip")
            .unwrap_or_else(|| host::default_ip(enable_ipv6)),
        scheduler_cluster_id: section.get_or("schedulerClusterID", 0),
    }
}

fn is_hostname(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '/')
}

fn server(root: &Section<'_>) -> Server {
    let section = root.section("server");
    Server {
        plugin_dir: section.get_or(
            "pluginDir",
            PathBuf::from("/usr/local/lib/dragonfly/plugins/dfdaemon"),
        ),
        cache_dir: section.get_or("cacheDir", PathBuf::from("/var/cache/dragonfly/dfdaemon")),
        adaptive_rate_limit: adaptive(&section),
        shutdown_timeout: section.get_or("shutdownTimeout", Duration::from_secs(5)),
    }
}

fn adaptive(server: &Section<'_>) -> Option<AdaptiveRateLimit> {
    if server.is_null("adaptiveRateLimit") {
        return None;
    }
    let section = server.section("adaptiveRateLimit");
    let percent = |key, default| {
        section.checked(key, default, "a percentage from 1 to 100", |value: &u8| {
            (1..=100).contains(value)
        })
    };
    Some(AdaptiveRateLimit {
        bucket_count: at_least_one(&section, "bucketCount", 50),
        bucket_interval: positive(&section, "bucketInterval", Duration::from_millis(200)),
        cpu_threshold: percent("cpuThreshold", 100),
        memory_threshold: percent("memoryThreshold", 90),
        shed_cooldown: section.get_or("shedCooldown", Duration::from_secs(5)),
        collect_interval: positive(&section, "collectInterval", Duration::from_secs(3)),
    })
}

fn download(section: &Section<'_>) -> Download {
    let server = section.section("server");
    Download {
        socket_path: server.get_or(
            "socketPath",
            PathBuf::from("/var/run/dragonfly/dfdaemon.sock"),
        ),
        socket_mode: socket_mode(&server),
        socket_group: text(&server, "socketGroup"),
        output_roots: section.list("outputRoots").unwrap_or_default(),
        requests: requests(&server, SOCKET_RATE),
        protocol: section.one_of(
            "protocol",
            PieceProtocol::Tcp,
            &[("tcp", PieceProtocol::Tcp), ("quic", PieceProtocol::Quic)],
        ),
        bandwidth_limit: rate(section, "bandwidthLimit", UNLIMITED),
        back_to_source_bandwidth_limit: rate(section, "backToSourceBandwidthLimit", UNLIMITED),
        piece_timeout: positive(section, "pieceTimeout", PIECE_TIMEOUT),
        collected_piece_timeout: positive(section, "collectedPieceTimeout", PIECE_TIMEOUT),
        concurrent_piece_count: at_least_one(section, "concurrentPieceCount", 8),
        back_to_source_concurrent_piece_count: at_least_one(
            section,
            "backToSourceConcurrentPieceCount",
            8,
        ),
    }
}

/// `"0660"`, `660` and YAML's `0o660` all mean the same here: nobody writes permission bits in decimal.
fn socket_mode(server: &Section<'_>) -> u32 {
    const DEFAULT: u32 = 0o660;
    let Some(text) = server.get::<String>("socketMode") else {
        return DEFAULT;
    };
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o777 => mode,
        _ => {
            server.mistake("socketMode", "octal permission bits, such as 0660");
            DEFAULT
        }
    }
}

fn requests(server: &Section<'_>, rate: u32) -> RequestLimit {
    RequestLimit {
        rate: at_least_one(server, "requestRateLimit", rate),
        waiting: server.get_or("requestBufferSize", 50),
    }
}

fn upload(section: &Section<'_>, listen: Listen) -> Upload {
    let server = section.section("server");
    Upload {
        listen: listen.at(&server, "port", 4000),
        server_tls: TlsFiles::from_section(&server),
        requests: requests(&server, UPLOAD_RATE),
        client_tls: TlsFiles::from_section(&section.section("client")),
        disable_shared: section.get_or("disableShared", false),
        bandwidth_limit: rate(section, "bandwidthLimit", UNLIMITED),
    }
}

fn manager(section: &Section<'_>) -> Option<Manager> {
    let tls = TlsFiles::from_section(section);
    let addr = section
        .get::<String>("addr")
        .filter(|addr| !addr.is_empty())?;
    let is_http = |uri: &http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
    };
    if !addr.parse::<http::Uri>().is_ok_and(|uri| is_http(&uri)) {
        section.mistake(
            "addr",
            "a URL with http:// or https://, such as http://manager:65003",
        );
    }
    Some(Manager { addr, tls })
}

fn scheduler(section: &Section<'_>) -> Scheduler {
    section.accept_unused(&["enableBackToSource"]);
    Scheduler {
        announce_interval: positive(section, "announceInterval", Duration::from_secs(300)),
        schedule_timeout: positive(section, "scheduleTimeout", 3 * HOUR),
        max_schedule_count: at_least_one(section, "maxScheduleCount", 5),
        tls: TlsFiles::from_section(section),
    }
}

fn seed_peer(root: &Section<'_>) -> SeedPeer {
    let Some(section) = root.optional_section("seedPeer") else {
        return SeedPeer {
            enable: false,
            kind: SeedKind::Normal,
        };
    };
    section.accept_unused(&["clusterID", "keepaliveInterval"]);
    SeedPeer {
        enable: section.get_or("enable", false),
        kind: section.one_of(
            "type",
            SeedKind::Super,
            &[
                ("super", SeedKind::Super),
                ("normal", SeedKind::Normal),
                // Older files of v2 name three strengths; all of them are seeds.
                ("strong", SeedKind::Super),
                ("weak", SeedKind::Super),
            ],
        ),
    }
}

fn storage(section: &Section<'_>, listen: Listen) -> Storage {
    let server = section.section("server");
    Storage {
        tcp_listen: listen.at(&server, "tcpPort", 4005),
        tcp_fastopen: server.get_or("tcpFastopen", false),
        quic_listen: listen.at(&server, "quicPort", 4006),
        writeback_mode: section.one_of(
            "writebackMode",
            WritebackMode::Async,
            &[
                ("sync", WritebackMode::Sync),
                ("async", WritebackMode::Async),
                ("off", WritebackMode::Off),
            ],
        ),
        dir: section.get_or("dir", PathBuf::from("/var/lib/dragonfly/")),
        keep: section.get_or("keep", true),
        write_piece_timeout: positive(section, "writePieceTimeout", PIECE_TIMEOUT),
        write_buffer_size: buffer(section, "writeBufferSize"),
        read_buffer_size: buffer(section, "readBufferSize"),
        cache_capacity: section.get_or("cacheCapacity", ByteSize::mib(64)),
    }
}

fn backend(section: &Section<'_>) -> Backend {
    Backend {
        request_header: section.map("requestHeader"),
        max_retries: section.get_or("maxRetries", 1),
        cache_temporary_redirect: section.get_or("enableCacheTemporaryRedirect", true),
        cache_temporary_redirect_ttl: section
            .get_or("cacheTemporaryRedirectTTL", Duration::from_secs(600)),
        put_concurrent_chunk_count: at_least_one(section, "putConcurrentChunkCount", 16),
        put_chunk_size: section.get_or("putChunkSize", ByteSize::mib(8)),
        put_timeout: positive(section, "putTimeout", Duration::from_secs(900)),
        enable_hickory_dns: section.get_or("enableHickoryDNS", true),
        egress: egress(&section.section("egress")),
        upstreams: section
            .sections("upstreams")
            .iter()
            .filter_map(upstream)
            .collect(),
    }
}

fn egress(section: &Section<'_>) -> EgressPolicy {
    const BLOCKS: &str = "address blocks, such as 10.0.0.0/8";
    let mut policy = EgressPolicy::standard();
    for text in section.list::<String>("allow").unwrap_or_default() {
        match text.parse() {
            Ok(block) => policy = policy.allow(block),
            Err(_) => section.mistake("allow", BLOCKS),
        }
    }
    for text in section.list::<String>("deny").unwrap_or_default() {
        let is_name = |text: &str| {
            text.parse::<HostPattern>()
                .is_ok_and(|host| host.name() == Some(&text.to_ascii_lowercase()))
        };
        match text.parse() {
            Ok(block) => policy = policy.deny(block),
            Err(_) if is_name(&text) => policy = policy.deny_host(&text),
            Err(_) => section.mistake("deny", "address blocks or host names"),
        }
    }
    policy
}

fn upstream(section: &Section<'_>) -> Option<Upstream> {
    let upstream = Upstream {
        hosts: parsed(
            section,
            "host",
            "a host, such as registry.example.com:5000, *.example.com or *",
        )
        .or_else(|| {
            if !section.has("host") {
                section.mistake("host", "the host that this entry is for");
            }
            None
        })?,
        ca_cert: section.get("caCert"),
        identity: match (section.get("cert"), section.get("key")) {
            (Some(_), None) => {
                section.mistake("key", "the key of `cert`");
                None
            }
            (None, Some(_)) => {
                section.mistake("cert", "the certificate of `key`");
                None
            }
            (cert, key) => cert.zip(key),
        },
        plain_http: section.get_or("plainHTTP", false),
        skip_verify: section.get_or("skipVerify", false),
        proxy: upstream_proxy(section),
        credentials: upstream_credentials(section),
        rewrite: authority(section, "rewrite"),
    };
    Some(upstream)
}

fn upstream_proxy(section: &Section<'_>) -> Option<UpstreamProxy> {
    // May hold a password, so a wrong one is not shown.
    let text: Secret = section.get("proxy")?;
    match text.expose().parse::<UpstreamProxy>() {
        Ok(proxy) if !text.expose().starts_with("https://") => Some(proxy),
        _ => {
            section.mistake_in_secret(
                "proxy",
                "http://user:password@host:3128, socks5://host:1080 or socks5h://host:1080",
            );
            None
        }
    }
}

fn upstream_credentials(section: &Section<'_>) -> Option<UpstreamCredentials> {
    let secret = |inline, file| {
        let inline = section.get::<Secret>(inline).map(SecretSource::Inline);
        inline.or_else(|| section.get(file).map(SecretSource::File))
    };
    let password = secret("password", "passwordFile");
    let token = secret("token", "tokenFile");
    match (text(section, "username"), password, token) {
        (None, None, token) => token.map(UpstreamCredentials::Bearer),
        (Some(username), Some(password), None) => {
            Some(UpstreamCredentials::Basic { username, password })
        }
        (Some(_), None, _) => {
            section.mistake("password", "the password of `username`, or `passwordFile`");
            None
        }
        (None, Some(_), _) => {
            section.mistake("username", "the user whose password is given");
            None
        }
        (Some(_), Some(_), Some(_)) => {
            section.mistake("username", "either a user with a password or a token");
            None
        }
    }
}

/// A `host` or `host:port`.
fn authority(section: &Section<'_>, key: &'static str) -> Option<Authority> {
    let written = text(section, key)?;
    let is_plain = |authority: &Authority| {
        let written = authority.as_str();
        !written.contains('@') && (authority.port().is_none() || authority.port_u16().is_some())
    };
    match written.parse::<Authority>() {
        Ok(authority) if is_plain(&authority) => Some(authority),
        _ => {
            section.mistake(
                key,
                "host or host:port without a scheme, such as mirror.example.com:5000",
            );
            None
        }
    }
}

/// The value of `key` in its own grammar, of which `expected` speaks.
fn parsed<T: std::str::FromStr>(
    section: &Section<'_>,
    key: &'static str,
    expected: &str,
) -> Option<T> {
    let value = text(section, key)?.parse().ok();
    if value.is_none() {
        section.mistake(key, expected);
    }
    value
}

fn gc(section: &Section<'_>) -> Gc {
    let policy = section.section("policy");
    let high = percent_of(
        &policy,
        ["diskHighThresholdPercent", "distHighThresholdPercent"],
        80,
    );
    let low_keys = ["diskLowThresholdPercent", "distLowThresholdPercent"];
    let low = percent_of(&policy, low_keys, 60.min(high));
    if low > high {
        let key = low_keys
            .into_iter()
            .find(|key| policy.has(key))
            .unwrap_or(low_keys[0]);
        policy.mistake(key, "a percentage not above diskHighThresholdPercent");
    }
    Gc {
        interval: positive(section, "interval", 15 * MINUTE),
        task_ttl: positive(&policy, "taskTTL", 720 * HOUR),
        persistent_task_ttl: positive(&policy, "persistentTaskTTL", 24 * HOUR),
        persistent_cache_task_ttl: positive(&policy, "persistentCacheTaskTTL", 24 * HOUR),
        page_cache_idle_timeout: positive(&policy, "pageCacheIdleTimeout", 40 * MINUTE),
        disk_threshold: policy
            .get("diskThreshold")
            .or_else(|| policy.get("distThreshold"))
            .unwrap_or_default(),
        disk_high_threshold_percent: high,
        disk_low_threshold_percent: low,
    }
}

/// A percentage under its name or under the misspelling that v2 once had.
fn percent_of(policy: &Section<'_>, keys: [&'static str; 2], default: u8) -> u8 {
    let key = if policy.has(keys[0]) {
        keys[0]
    } else {
        keys[1]
    };
    policy.has(keys[1]);
    policy.checked(key, default, "a percentage from 1 to 100", |value| {
        (1..=100).contains(value)
    })
}

fn proxy(section: &Section<'_>, listen: Listen) -> Proxy {
    let server = section.section("server");
    let mirror = section.section("registryMirror");
    Proxy {
        listen: listen.at(&server, "port", 4001),
        request_rate_limit: at_least_one(&server, "requestRateLimit", 4000),
        ca: match (server.get("caCert"), server.get("caKey")) {
            (Some(_), None) => {
                server.mistake("caKey", "the key of `caCert`");
                None
            }
            (None, Some(_)) => {
                server.mistake("caCert", "the certificate of `caKey`");
                None
            }
            (cert, key) => cert.zip(key),
        },
        limits: ProxyLimits {
            connections: at_least_one(&server, "maxConnections", 16384),
            requests: at_least_one(&server, "maxRequests", 4096),
            tunnels: at_least_one(&server, "maxTunnels", 4096),
            header: positive(&server, "headerTimeout", Duration::from_secs(10)),
            idle: positive(&server, "idleTimeout", Duration::from_secs(300)),
        },
        intercept_hosts: intercept_hosts(section),
        basic_auth: basic_auth(&server),
        rules: section.sections("rules").iter().map(rule).collect(),
        registry_mirror: RegistryMirror {
            addr: mirror_addr(&mirror),
            cert: mirror.get("cert"),
            task_id_based_blob_digest: mirror.get_or("enableTaskIDBasedBlobDigest", true),
        },
        disable_back_to_source: section.get_or("disableBackToSource", false),
        prefetch: section.get_or("prefetch", false),
        prefetch_bandwidth_limit: rate(section, "prefetchBandwidthLimit", ByteSize::gb(10)),
        read_buffer_size: buffer(section, "readBufferSize"),
    }
}

fn intercept_hosts(section: &Section<'_>) -> Vec<HostPattern> {
    let written: Vec<String> = section.list("interceptHosts").unwrap_or_default();
    let hosts = written.iter().filter_map(|text| {
        let host = text.parse().ok();
        if host.is_none() {
            section.mistake(
                "interceptHosts",
                "hosts, such as huggingface.co or *.example.com",
            );
        }
        host
    });
    hosts.collect()
}

fn mirror_addr(mirror: &Section<'_>) -> Url {
    let written = mirror.get_or("addr", "https://index.docker.io".to_owned());
    match crate::proxy::target::registry(&written) {
        Ok(url) => url,
        Err(_) => {
            mirror.mistake(
                "addr",
                "the URL of a registry, such as https://registry.example.com",
            );
            crate::proxy::target::docker_registry()
        }
    }
}

fn basic_auth(server: &Section<'_>) -> Option<(String, Secret)> {
    let section = server.optional_section("basicAuth")?;
    section
        .required("username")
        .zip(section.required("password"))
}

fn rule(section: &Section<'_>) -> ProxyRule {
    ProxyRule {
        regex: section.checked(
            "regex",
            ".*".to_owned(),
            "a regular expression",
            |text: &String| regex::Regex::new(text).is_ok(),
        ),
        use_tls: section.get_or("useTLS", false),
        redirect: authority(section, "redirect").map(|to| to.to_string()),
        filtered_query_params: section.list("filteredQueryParams").unwrap_or_else(|| {
            protocol::DEFAULT_FILTERED_QUERY_PARAMS
                .map(str::to_owned)
                .to_vec()
        }),
        always_schedule: section.one_of(
            "schedulingPolicy",
            false,
            &[("auto", false), ("always", true)],
        ),
    }
}

fn tracing(section: &Section<'_>) -> Option<Tracing> {
    let protocol = section.get::<String>("protocol");
    if protocol
        .as_ref()
        .is_some_and(|name| !matches!(name.as_str(), "grpc" | "http" | "https"))
    {
        section.mistake("protocol", "one of grpc, http, https");
    }
    let path = section.get_or("path", "/v1/traces".to_owned());
    let headers = section.map("headers");
    let endpoint = text(section, "endpoint");
    Some(Tracing {
        protocol: protocol?,
        endpoint: endpoint?,
        path,
        headers,
    })
}

/// An optional text; empty counts as absent.
fn text(section: &Section<'_>, key: &'static str) -> Option<String> {
    section.get::<String>(key).filter(|text| !text.is_empty())
}

fn at_least_one(section: &Section<'_>, key: &'static str, default: u32) -> u32 {
    section.checked(key, default, "a whole number from 1", |count| *count >= 1)
}

fn positive(section: &Section<'_>, key: &'static str, default: Duration) -> Duration {
    section.checked(
        key,
        default,
        "a duration above zero, such as 30s",
        |duration| !duration.is_zero(),
    )
}

fn rate(section: &Section<'_>, key: &'static str, default: ByteSize) -> ByteSize {
    section.checked(
        key,
        default,
        "a size per second above zero, such as 100MB",
        |size| size.as_u64() > 0,
    )
}

fn buffer(section: &Section<'_>, key: &'static str) -> ByteSize {
    section.checked(
        key,
        BUFFER,
        "a number of bytes from 4096 to 268435456",
        |size| (4096..=268_435_456).contains(&size.as_u64()),
    )
}
