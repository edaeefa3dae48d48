use super::*;

fn parse(text: &str) -> Config {
    let loaded = Config::parse("dfdaemon.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    loaded.value
}

/// Every key of Dragonfly v2 (and ours), each with a value that is not its default.
const EVERY_KEY: &str = "
host: {idc: idc-1, location: eu|de, hostname: node7, ip: 10.0.0.7, schedulerClusterID: 3}
server:
  pluginDir: /p
  cacheDir: /c
  adaptiveRateLimit: {bucketCount: 5, bucketInterval: 1s, cpuThreshold: 80, memoryThreshold: 70, shedCooldown: 1s, collectInterval: 1s}
  shutdownTimeout: 3s
download:
  server: {socketPath: /tmp/s.sock, socketMode: \"0600\", socketGroup: dragonfly, requestRateLimit: 10, requestBufferSize: 11}
  outputRoots: [/data, /srv]
  protocol: quic
  bandwidthLimit: 1GB
  backToSourceBandwidthLimit: 2GiB
  pieceTimeout: 1s
  collectedPieceTimeout: 2s
  concurrentPieceCount: 3
  backToSourceConcurrentPieceCount: 4
upload:
  server: {ip: 10.0.0.7, port: 1, caCert: /a, cert: /b, key: /c, requestRateLimit: 12, requestBufferSize: 13}
  client: {caCert: /d, cert: /e, key: /f}
  disableShared: true
  bandwidthLimit: 3MB
manager: {addr: \"https://m:65003\", caCert: /a, cert: /b, key: /c}
scheduler: {announceInterval: 1m, scheduleTimeout: 1h, maxScheduleCount: 9, caCert: /a, cert: /b, key: /c, enableBackToSource: true}
seedPeer: {enable: true, type: normal, clusterID: 1}
dynconfig: {refreshInterval: 5s}
storage:
  server: {ip: 10.0.0.7, tcpPort: 2, tcpFastopen: true, quicPort: 3}
  writebackMode: \"off\"
  dir: /data
  keep: false
  writePieceTimeout: 4s
  writeBufferSize: 4096
  readBufferSize: 8192
  cacheCapacity: 1MiB
backend:
  requestHeader: {X-Token: hidden-value}
  maxRetries: 5
  enableCacheTemporaryRedirect: false
  cacheTemporaryRedirectTTL: 1s
  putConcurrentChunkCount: 2
  putChunkSize: 1MiB
  putTimeout: 1s
  enableHickoryDNS: false
gc:
  interval: 1s
  policy:
    taskTTL: 2h
    persistentTaskTTL: 3h
    persistentCacheTaskTTL: 4h
    pageCacheIdleTimeout: 5m
    diskThreshold: 1TiB
    diskHighThresholdPercent: 90
    diskLowThresholdPercent: 70
proxy:
  server: {ip: 10.0.0.7, port: 4, requestRateLimit: 5, caCert: /ca, caKey: /ck, basicAuth: {username: u, password: p}}
  rules: [{regex: \"a.*\", useTLS: true, redirect: \"r:1\", filteredQueryParams: [q], schedulingPolicy: always}]
  registryMirror: {addr: \"https://r\", cert: /rc, enableTaskIDBasedBlobDigest: false}
  disableBackToSource: true
  prefetch: true
  prefetchBandwidthLimit: 1KB
  readBufferSize: 16384
security: {enable: true}
health: {server: {ip: 10.0.0.7, port: 5}}
metrics: {server: {ip: 10.0.0.7, port: 6}}
stats: {server: {ip: 10.0.0.7, port: 7}}
tracing: {protocol: grpc, endpoint: \"o:4317\", path: /x, headers: {k: v}}
network: {enableIPv6: true}
console: true
log: {level: info}
";

#[test]
fn every_key_is_read() {
    let config = parse(EVERY_KEY);
    assert_eq!(config.host.hostname, "node7");
    assert_eq!(config.host.ip.to_string(), "10.0.0.7");
    assert_eq!(
        (config.host.idc.as_deref(), config.host.scheduler_cluster_id),
        (Some("idc-1"), 3)
    );
    assert_eq!(
        config
            .server
            .adaptive_rate_limit
            .as_ref()
            .unwrap()
            .memory_threshold,
        70
    );
    assert_eq!(config.server.shutdown_timeout, Duration::from_secs(3));
    assert_eq!(
        (
            config.download.socket_mode,
            config.download.socket_group.as_deref()
        ),
        (0o600, Some("dragonfly"))
    );
    assert_eq!(
        config.download.requests,
        RequestLimit {
            rate: 10,
            waiting: 11
        }
    );
    assert_eq!(
        config.download.output_roots,
        [PathBuf::from("/data"), PathBuf::from("/srv")]
    );
    assert_eq!(config.download.protocol, PieceProtocol::Quic);
    assert_eq!(
        config.download.back_to_source_bandwidth_limit,
        ByteSize::gib(2)
    );
    assert_eq!(
        (
            config.download.concurrent_piece_count,
            config.download.back_to_source_concurrent_piece_count
        ),
        (3, 4)
    );
    assert_eq!(config.upload.listen.to_string(), "10.0.0.7:1");
    assert!(
        config.upload.server_tls.is_some()
            && config.upload.client_tls.is_some()
            && config.upload.disable_shared
    );
    assert_eq!(config.manager.as_ref().unwrap().addr, "https://m:65003");
    assert_eq!(
        (
            config.scheduler.max_schedule_count,
            config.scheduler.announce_interval.as_secs()
        ),
        (9, 60)
    );
    assert_eq!(
        config.seed_peer,
        SeedPeer {
            enable: true,
            kind: SeedKind::Normal
        }
    );
    assert_eq!(config.role(), HostRole::Seed);
    assert_eq!(config.dynconfig.refresh_interval, Duration::from_secs(5));
    assert_eq!(config.storage.tcp_listen.to_string(), "10.0.0.7:2");
    assert_eq!(config.storage.quic_listen.port(), 3);
    assert_eq!(
        (config.storage.writeback_mode, config.storage.keep),
        (WritebackMode::Off, false)
    );
    assert_eq!(config.storage.write_buffer_size.as_u64(), 4096);
    assert_eq!(
        config.backend.request_header["X-Token"].expose(),
        "hidden-value"
    );
    assert!(!config.backend.cache_temporary_redirect && !config.backend.enable_hickory_dns);
    assert_eq!(
        (
            config.gc.disk_high_threshold_percent,
            config.gc.disk_low_threshold_percent
        ),
        (90, 70)
    );
    assert_eq!(config.gc.disk_threshold, ByteSize::tib(1));
    assert_eq!(config.proxy.rules[0].redirect.as_deref(), Some("r:1"));
    assert!(config.proxy.rules[0].always_schedule && config.proxy.ca.is_some());
    assert_eq!(config.proxy.basic_auth.as_ref().unwrap().0, "u");
    assert_eq!(
        (
            config.health.port(),
            config.metrics.port(),
            config.stats.port()
        ),
        (5, 6, 7)
    );
    assert_eq!(config.tracing.as_ref().unwrap().path, "/x");
    assert!(config.enable_ipv6);
    let debug = format!("{config:?}");
    assert!(!debug.contains("hidden-value"), "secrets stay out of logs");
}

#[test]
fn an_empty_file_gives_the_defaults_of_v2() {
    let config = parse("");
    assert_eq!(config.upload.listen.to_string(), "0.0.0.0:4000");
    assert_eq!(config.storage.tcp_listen.port(), 4005);
    assert_eq!(
        (
            config.metrics.port(),
            config.health.port(),
            config.stats.port()
        ),
        (4002, 4003, 4004)
    );
    assert_eq!(config.download.bandwidth_limit, ByteSize::gb(50));
    assert_eq!(config.download.socket_mode, 0o660);
    assert_eq!(
        config.download.requests,
        RequestLimit {
            rate: 4000,
            waiting: 50
        }
    );
    assert_eq!(config.gc.task_ttl, Duration::from_secs(720 * 3600));
    assert_eq!(
        (
            config.gc.disk_high_threshold_percent,
            config.gc.disk_low_threshold_percent
        ),
        (80, 60)
    );
    assert_eq!(
        config.seed_peer,
        SeedPeer {
            enable: false,
            kind: SeedKind::Normal
        }
    );
    assert_eq!(config.scheduler.announce_interval, Duration::from_secs(300));
    assert!(config.manager.is_none() && config.tracing.is_none());
    assert!(config.server.adaptive_rate_limit.is_some());
    assert!(!config.host.hostname.is_empty());
}

#[test]
fn spellings_of_v2_are_accepted() {
    let config = parse(
        "gc: {policy: {distThreshold: 1GB, distHighThresholdPercent: 50, distLowThresholdPercent: 40}}",
    );
    assert_eq!(
        (
            config.gc.disk_high_threshold_percent,
            config.gc.disk_low_threshold_percent
        ),
        (50, 40)
    );
    assert_eq!(config.gc.disk_threshold, ByteSize::gb(1));
    assert_eq!(
        parse("seedPeer: {enable: true}").seed_peer.kind,
        SeedKind::Super
    );
    assert!(
        parse("server: {adaptiveRateLimit: null}")
            .server
            .adaptive_rate_limit
            .is_none()
    );
    assert_eq!(
        parse("network: {enableIPv6: true}")
            .upload
            .listen
            .to_string(),
        "[::]:4000"
    );
    assert_eq!(
        parse("download: {server: {socketMode: 0o777}}")
            .download
            .socket_mode,
        0o777
    );
}

#[test]
fn every_mistake_is_told_with_line_and_expectation() {
    let text = "\
download:
  concurrentPieceCount: 0
  protocol: udp
  pieceTimeout: 30
  server: {socketMode: \"0999\"}
upload:
  server: {port: 70000, caCert: /a}
manager:
  addr: manager:65003
gc:
  policy:
    diskHighThresholdPercent: 50
    diskLowThresholdPercent: 60
host:
  hostname: a/b
storage:
  keep: perhaps
";
    let error = Config::parse("f.yaml", text).unwrap_err().to_string();
    for (line, key, expected) in [
        (2, "download.concurrentPieceCount", "from 1"),
        (3, "download.protocol", "tcp, quic"),
        (4, "download.pieceTimeout", "duration"),
        (5, "download.server.socketMode", "octal"),
        (7, "upload.server.port", "65535"),
        (7, "upload.server.cert", "together"),
        (9, "manager.addr", "http://"),
        (13, "gc.policy.diskLowThresholdPercent", "not above"),
        (15, "host.hostname", "host name"),
        (17, "storage.keep", "true or false"),
    ] {
        let found = error.lines().any(|told| {
            told.contains(&format!("f.yaml:{line}"))
                && told.contains(key)
                && told.contains(expected)
        });
        assert!(found, "line {line}, {key}, {expected} in\n{error}");
    }
}

#[test]
fn a_misspelt_key_is_told_with_a_suggestion() {
    let loaded = Config::parse("f.yaml", "download:\n  pieceTimeuot: 1s\n").unwrap();
    let warning = loaded.warnings[0].to_string();
    assert!(
        warning.contains("pieceTimeuot") && warning.contains("pieceTimeout"),
        "{warning}"
    );
}
