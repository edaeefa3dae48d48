//! Files as people have them.

use super::*;

fn read(text: &str) -> Result<Loaded<Config>, ConfigError> {
    Config::read(Document::parse("manager.yaml", text).unwrap())
}

fn good(text: &str) -> Config {
    let loaded = read(text).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    loaded.value
}

/// Every mistake is told at once, each naming its key.
fn check_mistakes(text: &str, keys: &[&str]) {
    match read(text) {
        Err(ConfigError::Mistakes(mistakes)) => {
            let found: Vec<&str> = mistakes
                .iter()
                .map(|mistake| mistake.key.as_str())
                .collect();
            assert_eq!(found, keys);
            let shown = format!("{mistakes:?}");
            assert!(!shown.contains("hunter2"), "a secret is shown: {shown}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_said_is_the_default_on_sqlite() {
    let config = good("");
    assert_eq!(
        (config.grpc.port(), config.rest.port(), config.metrics),
        (65003, 8080, None)
    );
    assert_eq!(
        config.database.to_string(),
        "sqlite:///var/lib/dragonfly/manager/manager.db"
    );
    assert!(config.migrate && config.grpc_tls.is_none());
    assert!(
        matches!(config.log.target, LogTarget::Files { ref directory, .. } if directory.ends_with("dragonfly/manager"))
    );
}

#[test]
fn a_file_of_dragonfly_v2_works_as_it_is() {
    let config = good(
        "
server:
  name: d7y/manager
  logLevel: warn
  logDir: /tmp/logs
  grpc:
    advertiseIP: 127.0.0.1
    listenIP: 127.0.0.1
    port: {start: 7003, end: 7003}
    requestRateLimit: 100
    tls: {caCert: /ca.crt, cert: /m.crt, key: /m.key}
  rest: {addr: ':7080'}
auth: {jwt: {realm: Dragonfly, key: 'ZHJhZ29uZmx5Cg==', timeout: 48h, maxRefresh: 48h}}
database:
  type: mysql
  mysql: {user: dragonfly, password: hunter2, host: dragonfly-mysql, port: 3307, dbname: manager, migrate: false}
  redis: {addrs: ['dragonfly-redis:6379'], db: 0, brokerDB: 1, backendDB: 2}
cache: {redis: {ttl: 5m}, local: {size: 30000, ttl: 5m}}
job: {syncPeers: {interval: 24h, timeout: 10m}}
objectStorage: {enable: false}
metrics: {enable: true, addr: ':7000'}
network: {enableIPv6: false}
console: false
pprofPort: -1
tracing: {protocol: '', endpoint: ''}
",
    );
    assert_eq!(config.grpc.to_string(), "127.0.0.1:7003");
    assert_eq!(config.rest.to_string(), "0.0.0.0:7080");
    assert_eq!(config.metrics.map(|at| at.port()), Some(7000));
    assert_eq!(
        config.grpc_tls.as_ref().map(|tls| tls.key.as_path()),
        Some(Path::new("/m.key"))
    );
    assert_eq!(
        config.database.to_string(),
        "mysql://dragonfly-mysql:3307/manager"
    );
    assert!(!config.migrate);
    assert_eq!(
        (config.request_rate_limit, config.log.level.as_str()),
        (100.0, "warn")
    );
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn each_way_to_name_a_database() {
    let database = |text: &str| good(text).database.to_string();
    assert_eq!(
        database("database: {url: 'sqlite:///data/m.db'}"),
        "sqlite:///data/m.db"
    );
    assert_eq!(
        database("database: {url: 'postgres://u:hunter2@db/x'}"),
        "postgres://db:5432/x"
    );
    assert_eq!(
        database("database: {type: sqlite}"),
        "sqlite:///var/lib/dragonfly/manager/manager.db"
    );
    let postgres = "{user: u, password: p, host: db, port: 5433, timezone: UTC, sslMode: require}";
    assert_eq!(
        database(&format!(
            "database: {{type: postgres, postgres: {postgres}}}"
        )),
        "postgres://db:5433/manager"
    );
    let mysql = "{user: u, password: p, host: db, tlsConfig: preferred}";
    assert_eq!(
        database(&format!("database: {{type: mariadb, mysql: {mysql}}}")),
        "mysql://db:3306/manager"
    );
    assert_eq!(
        database(&format!("database: {{mysql: {mysql}}}")),
        "mysql://db:3306/manager",
        "v2's default type"
    );
    let polardb = "{user: u, password: p, addrList: 'a:3406,b:3406', dbname: x}";
    assert_eq!(
        database(&format!("database: {{type: polardb, polardb: {polardb}}}")),
        "mysql://a:3406/x"
    );
}

#[test]
fn ipv6_moves_the_default_addresses() {
    let config = good("network: {enableIPv6: true}\nmetrics: {enable: true}");
    assert_eq!(config.grpc.to_string(), "[::]:65003");
    assert_eq!(
        config.metrics.map(|at| at.to_string()).as_deref(),
        Some("[::]:8000")
    );
}

#[test]
fn mistakes_are_told_all_at_once_and_without_secrets() {
    check_mistakes(
        "server:\n  grpc:\n    requestRateLimit: 0\n    port:\n      start: 700000\n    tls:\n      cert: /m.crt\n",
        &[
            "server.grpc.requestRateLimit",
            "server.grpc.port.start",
            "server.grpc.tls.caCert",
            "server.grpc.tls.key",
        ],
    );
    check_mistakes("database:\n  url: redis://u:hunter2@x\n", &["database.url"]);
    check_mistakes(
        "database:\n  type: mysql\n  url: 'sqlite:///x'\n",
        &["database.type"],
    );
    check_mistakes("database:\n  type: oracle\n", &["database.type"]);
    check_mistakes("database:\n  type: postgres\n", &["database.postgres"]);
    check_mistakes(
        "database:\n  type: postgres\n  postgres:\n    password: hunter2\n    sslMode: maybe\n",
        &[
            "database.postgres.user",
            "database.postgres.host",
            "database.postgres.sslMode",
        ],
    );
    check_mistakes(
        "database:\n  type: polardb\n  polardb:\n    user: u\n    password: hunter2\n    addrList: here\n",
        &["database.polardb.addrList"],
    );
    check_mistakes(
        "server:\n  rest:\n    tls:\n      cert: /x\n",
        &["server.rest.tls"],
    );
}

#[test]
fn an_unknown_key_is_told_by_name() {
    let loaded = read("server: {grcp: {}}\n").unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(
        (
            loaded.warnings[0].key.as_str(),
            loaded.warnings[0].suggestion.as_deref()
        ),
        ("server.grcp", Some("grpc"))
    );
}
