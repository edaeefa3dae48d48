//! What a manager runs with: from Dragonfly v2's `manager.yaml` keys to [`Config`].
//!
//! Keys that Dragonfly v2 knows and this manager has no use for (Redis, caches, the job queue) are accepted in silence, so
//! that an existing file works; others are warned about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use runtime::config::{ByteSize, ConfigError, Document, Loaded, Scalar, Section};
use runtime::log::{LogOptions, LogTarget};
use runtime::secret::Secret;
use runtime::tls::TlsFiles;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::db::DatabaseUrl;

/// Where the embedded database is kept unless told otherwise.
const DATABASE_FILE: &str = "/var/lib/dragonfly/manager/manager.db";
/// Where logs go unless told otherwise; the manager's are in a folder of their own below.
const LOG_DIRECTORY: &str = "/var/log/dragonfly";

/// What one manager runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where gRPC listens. Port 0 takes a free one. Keys `server.grpc.listenIP`, `server.grpc.port.start`; 0.0.0.0:65003.
    pub grpc: SocketAddr,
    /// Mutual TLS for gRPC; `None` is plaintext. Keys `server.grpc.tls.{caCert,cert,key}`.
    pub grpc_tls: Option<TlsFiles>,
    /// gRPC calls that are begun per second, with a burst of as many; more are refused. Key `server.grpc.requestRateLimit`; 4000.
    pub request_rate_limit: f64,
    /// Where REST listens. Key `server.rest.addr`; 0.0.0.0:8080.
    pub rest: SocketAddr,
    /// Where metrics are served, if anywhere. Keys `metrics.enable`, `metrics.addr`; off.
    pub metrics: Option<SocketAddr>,
    /// The database. Key `database.url`, or Dragonfly v2's `database.type` with its block; an SQLite file under /var/lib/dragonfly.
    pub database: DatabaseUrl,
    /// Whether to create and extend tables at start. Key `database.{mysql,postgres,polardb}.migrate`; true.
    pub migrate: bool,
    /// How long one statement may take, waiting for a connection included; then its caller hears that the database is not
    /// available. Key `database.timeout`; 10 s. Too short makes a busy database look dead, too long holds callers up.
    pub database_timeout: Duration,
    /// How long a start waits for a database that is not reachable yet. Key `database.startTimeout`; 60 s.
    pub database_start_timeout: Duration,
    /// Logging, for a process that runs this manager alone. Keys `server.{logDir,logLevel,logMaxSize,logMaxBackups}`, `console`.
    pub log: LogOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 65003)),
            grpc_tls: None,
            request_rate_limit: 4000.0,
            rest: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            metrics: None,
            database: DatabaseUrl::sqlite(DATABASE_FILE),
            migrate: true,
            database_timeout: Duration::from_secs(10),
            database_start_timeout: Duration::from_secs(60),
            log: LogOptions {
                level: "info".to_owned(),
                target: LogTarget::Files {
                    directory: Path::new(LOG_DIRECTORY).join("manager"),
                    name: "core".to_owned(),
                    file_count_max: 20,
                    file_len_max: ByteSize::mib(1024),
                },
            },
        }
    }
}

impl Config {
    /// Reads a configuration file's document.
    ///
    /// # Errors
    /// Every mistake in it, each with line, key and what is expected.
    pub fn read(document: Document) -> Result<Loaded<Self>, ConfigError> {
        let config = Self::from_root(&document.root());
        document.finish(config)
    }

    fn from_root(root: &Section<'_>) -> Self {
        let defaults = Self::default();
        accept_foreign_blocks(root);
        let server = root.section("server");
        let grpc = server.section("grpc");
        let unspecified: IpAddr = match root.section("network").get_or("enableIPv6", false) {
            true => Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        };
        let grpc_port = grpc.section("port");
        grpc_port.accept_unused(&["end"]);
        let metrics = root.section("metrics");
        let metrics_addr = metrics.get_or("addr", SocketAddr::from((unspecified, 8000)));
        let database = root.section("database");
        let (url, migrate) = database_of(&database);
        let positive = |duration: &Duration| !duration.is_zero();
        Self {
            grpc: SocketAddr::new(
                grpc.get_or("listenIP", unspecified),
                grpc_port.get_or("start", 65003),
            ),
            grpc_tls: grpc
                .optional_section("tls")
                .and_then(|tls| TlsFiles::from_section(&tls)),
            request_rate_limit: grpc.checked(
                "requestRateLimit",
                defaults.request_rate_limit,
                "a number of requests per second above 0",
                |rate| *rate > 0.0,
            ),
            rest: server.section("rest").get_or("addr", defaults.rest),
            metrics: metrics.get_or("enable", false).then_some(metrics_addr),
            database: url,
            migrate,
            database_timeout: database.checked(
                "timeout",
                defaults.database_timeout,
                "a duration above 0",
                positive,
            ),
            database_start_timeout: database
                .get_or("startTimeout", defaults.database_start_timeout),
            log: log_of(root, &server),
        }
    }
}

/// Blocks of Dragonfly v2 that mean nothing here, and keys that later parts of the manager will read.
fn accept_foreign_blocks(root: &Section<'_>) {
    root.accept_unused(&[
        "auth",
        "cache",
        "job",
        "pprofPort",
        "tracing",
        "objectStorage",
        "security",
        "verbose",
    ]);
    let server = root.section("server");
    server.accept_unused(&["name", "cacheDir", "dataDir", "logMaxAge", "pluginDir"]);
    server.section("grpc").accept_unused(&["advertiseIP"]);
    root.section("database").accept_unused(&["redis"]);
    root.section("metrics").accept_unused(&["enablePeerGauge"]);
    if server.section("rest").has("tls") {
        server.section("rest").mistake(
            "tls",
            "no such block: REST serves nothing but /healthy yet, in plaintext",
        );
    }
}

fn log_of(root: &Section<'_>, server: &Section<'_>) -> LogOptions {
    let directory = server
        .get::<String>("logDir")
        .filter(|directory| !directory.is_empty());
    let directory =
        PathBuf::from(directory.unwrap_or_else(|| LOG_DIRECTORY.to_owned())).join("manager");
    let len_mib = server.checked("logMaxSize", 1024, "a number of MiB from 1", |mib: &u32| {
        *mib > 0
    });
    let count = server.checked(
        "logMaxBackups",
        20,
        "a number of files from 1",
        |count: &u32| *count > 0,
    );
    let files = LogTarget::Files {
        directory,
        name: "core".to_owned(),
        file_count_max: usize::try_from(count).unwrap_or(usize::MAX),
        file_len_max: ByteSize::mib(u64::from(len_mib)),
    };
    let target = if root.get_or("console", false) {
        LogTarget::Stderr
    } else {
        files
    };
    LogOptions {
        level: server.get_or("logLevel", "info".to_owned()),
        target,
    }
}

impl Scalar for DatabaseUrl {
    const EXPECTED: &'static str = "a database URL, such as sqlite:///var/lib/dragonfly/manager.db, \
        postgres://user:password@host:5432/name or mysql://user:password@host:3306/name";
    const SECRET: bool = true;

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DatabaseType {
    Sqlite,
    MySql,
    Postgres,
    PolarDb,
}

/// The database and whether to migrate it. `database.url` alone decides if it is there; without it and without a type, a
/// block named `mysql` means MySQL, which is Dragonfly v2's default type.
fn database_of(section: &Section<'_>) -> (DatabaseUrl, bool) {
    let default = DatabaseUrl::sqlite(DATABASE_FILE);
    let blocks = [
        DatabaseType::MySql,
        DatabaseType::Postgres,
        DatabaseType::PolarDb,
    ]
    .map(|kind| (kind, kind.block()));
    section.accept_unused(&blocks.map(|(_, block)| block));
    if section.has("url") {
        if section.has("type") {
            section.mistake("type", "no type beside database.url, whose scheme tells it");
        }
        return (section.get("url").unwrap_or(default), true);
    }
    let assumed = if section.has("mysql") {
        DatabaseType::MySql
    } else {
        DatabaseType::Sqlite
    };
    let choices = [
        ("sqlite", DatabaseType::Sqlite),
        ("mysql", DatabaseType::MySql),
        ("mariadb", DatabaseType::MySql),
        ("postgres", DatabaseType::Postgres),
        ("polardb", DatabaseType::PolarDb),
    ];
    let kind = section.one_of("type", assumed, &choices);
    if kind == DatabaseType::Sqlite {
        return (default, true);
    }
    let Some(block) = section.optional_section(kind.block()) else {
        if !section.has(kind.block()) {
            section.mistake(
                kind.block(),
                "a section with user, password and host, as database.type asks for it",
            );
        }
        return (default, true);
    };
    let url = match kind {
        DatabaseType::Postgres => postgres_of(&block),
        DatabaseType::MySql | DatabaseType::PolarDb => mysql_of(&block, kind),
        DatabaseType::Sqlite => None,
    };
    (url.unwrap_or(default), block.get_or("migrate", true))
}

impl DatabaseType {
    fn block(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::MySql => "mysql",
            Self::Postgres => "postgres",
            Self::PolarDb => "polardb",
        }
    }
}

fn postgres_of(block: &Section<'_>) -> Option<DatabaseUrl> {
    block.accept_unused(&["timezone"]);
    let (user, password, host) = (
        block.required("user"),
        block.required::<Secret>("password"),
        block.required("host"),
    );
    let mode = block.get_or("sslMode", "disable".to_owned());
    let ssl = PgSslMode::from_str(&mode).unwrap_or_else(|_| {
        block.mistake(
            "sslMode",
            "one of disable, allow, prefer, require, verify-ca, verify-full",
        );
        PgSslMode::VerifyFull
    });
    let (user, password, host): (String, Secret, String) = (user?, password?, host?);
    let mut options = PgConnectOptions::new_without_pgpass()
        .username(&user)
        .password(password.expose())
        .host(&host)
        .port(block.get_or("port", 5432))
        .database(&block.get_or("dbname", "manager".to_owned()))
        .ssl_mode(ssl);
    if block.get_or("preferSimpleProtocol", false) {
        // For connection poolers: nothing is prepared that the next statement would have to find again.
        options = options.statement_cache_capacity(0);
    }
    Some(DatabaseUrl::postgres(options))
}

fn mysql_of(block: &Section<'_>, kind: DatabaseType) -> Option<DatabaseUrl> {
    let (user, password) = (block.required("user"), block.required::<Secret>("password"));
    let at = match kind {
        DatabaseType::PolarDb => first_address(block),
        _ => block
            .required("host")
            .map(|host: String| (host, block.get_or("port", 3306))),
    };
    let ssl = block.one_of(
        "tlsConfig",
        MySqlSslMode::Disabled,
        &[
            ("", MySqlSslMode::Disabled),
            ("false", MySqlSslMode::Disabled),
            ("true", MySqlSslMode::VerifyIdentity),
            ("skip-verify", MySqlSslMode::Required),
            ("preferred", MySqlSslMode::Preferred),
        ],
    );
    let tls = block.optional_section("tls").and_then(|tls| {
        let skip_verify = tls.get_or("insecureSkipVerify", false);
        TlsFiles::from_section(&tls).map(|files| (files, skip_verify))
    });
    let (user, password, (host, port)): (String, Secret, (String, u16)) = (user?, password?, at?);
    let mut options = MySqlConnectOptions::new()
        .username(&user)
        .password(password.expose())
        .host(&host)
        .port(port)
        .database(&block.get_or("dbname", "manager".to_owned()))
        .ssl_mode(ssl);
    if let Some((files, skip_verify)) = tls {
        let mode = if skip_verify {
            MySqlSslMode::Required
        } else {
            MySqlSslMode::VerifyIdentity
        };
        options = options
            .ssl_mode(mode)
            .ssl_ca(files.ca_cert)
            .ssl_client_cert(files.cert)
            .ssl_client_key(files.key);
    }
    Some(DatabaseUrl::mysql(options))
}

/// The first of PolarDB's `addrList`, `host:port[,host:port]`: the others are its replicas.
fn first_address(block: &Section<'_>) -> Option<(String, u16)> {
    let list: String = block.required("addrList")?;
    let parsed = list
        .split(',')
        .next()
        .and_then(|first| first.trim().rsplit_once(':'))
        .and_then(|(host, port)| {
            Some((host.to_owned(), port.parse().ok()?))
                .filter(|(host, _): &(String, u16)| !host.is_empty())
        });
    if parsed.is_none() {
        block.mistake("addrList", "addresses as host:port, separated by commas");
    }
    parsed
}

#[cfg(test)]
mod tests;
