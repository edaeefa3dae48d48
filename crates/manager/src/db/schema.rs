//! The tables, their versions, and the rows that exist from the start.
//!
//! Names of tables, columns and keys are those of Dragonfly v2 (shown in docs and consoles); column types are not:
//! times are milliseconds since the epoch and flags are 0 or 1, so that one SQL text fits all databases. A database
//! that Dragonfly v2 itself made is therefore refused with a clear word instead of being misread.
//!
//! A migration is a list of statements, written once; `{id}`, `{json}` and `{options}` are what the databases spell
//! differently. Managers that start at the same time take turns: SQLite and PostgreSQL migrate inside one
//! transaction that holds a lock, MySQL (where every `CREATE TABLE` commits) under a named lock, with statements that
//! can be repeated after a crash half way.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::clusters::seed_default_clusters;
use super::{Database, DbError, Pool, Row, Statement, row, sql};

/// Steps from an empty database to today's schema. Only ever append: databases out there have run the earlier ones.
const MIGRATIONS: &[&[&str]] = &[&[
    "CREATE TABLE IF NOT EXISTS scheduler_cluster (
        id {id}, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, is_del BIGINT NOT NULL DEFAULT 0,
        name VARCHAR(256) NOT NULL, bio VARCHAR(1024) NOT NULL DEFAULT '',
        config {json} NOT NULL, client_config {json} NOT NULL, seed_client_config {json} NOT NULL, scopes {json},
        is_default BIGINT NOT NULL DEFAULT 0,
        CONSTRAINT uk_scheduler_cluster_name UNIQUE (name)
    ) {options}",
    "CREATE TABLE IF NOT EXISTS seed_peer_cluster (
        id {id}, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, is_del BIGINT NOT NULL DEFAULT 0,
        name VARCHAR(256) NOT NULL, bio VARCHAR(1024) NOT NULL DEFAULT '', config {json} NOT NULL,
        CONSTRAINT uk_seed_peer_cluster_name UNIQUE (name)
    ) {options}",
    "CREATE TABLE IF NOT EXISTS seed_peer_cluster_scheduler_cluster (
        seed_peer_cluster_id BIGINT NOT NULL, scheduler_cluster_id BIGINT NOT NULL,
        PRIMARY KEY (seed_peer_cluster_id, scheduler_cluster_id)
    ) {options}",
    // is_del = 1: forgotten after long silence, back as soon as it is heard from (see db/schedulers.rs).
    // keep_alive_session: which keepalive stream vouches for the state (see keepalive.rs).
    "CREATE TABLE IF NOT EXISTS scheduler (
        id {id}, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, is_del BIGINT NOT NULL DEFAULT 0,
        host_name VARCHAR(256) NOT NULL, ip VARCHAR(256) NOT NULL, port BIGINT NOT NULL,
        idc VARCHAR(1024) NOT NULL DEFAULT '', location VARCHAR(1024) NOT NULL DEFAULT '',
        state VARCHAR(256) NOT NULL DEFAULT 'inactive', features {json}, config {json},
        keep_alive_interval_ms BIGINT, last_keep_alive_at BIGINT, keep_alive_session VARCHAR(64),
        scheduler_cluster_id BIGINT NOT NULL,
        CONSTRAINT uk_scheduler UNIQUE (host_name, ip, scheduler_cluster_id)
    ) {options}",
    "CREATE TABLE IF NOT EXISTS seed_peer (
        id {id}, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, is_del BIGINT NOT NULL DEFAULT 0,
        host_name VARCHAR(256) NOT NULL, ip VARCHAR(256) NOT NULL, port BIGINT NOT NULL, download_port BIGINT NOT NULL,
        type VARCHAR(256) NOT NULL DEFAULT 'super',
        idc VARCHAR(1024) NOT NULL DEFAULT '', location VARCHAR(1024) NOT NULL DEFAULT '',
        state VARCHAR(256) NOT NULL DEFAULT 'inactive',
        keep_alive_interval_ms BIGINT, last_keep_alive_at BIGINT, keep_alive_session VARCHAR(64),
        seed_peer_cluster_id BIGINT NOT NULL,
        CONSTRAINT uk_seed_peer UNIQUE (host_name, ip, seed_peer_cluster_id)
    ) {options}",
    "CREATE TABLE IF NOT EXISTS application (
        id {id}, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, is_del BIGINT NOT NULL DEFAULT 0,
        name VARCHAR(256) NOT NULL, url {json} NOT NULL, bio VARCHAR(1024) NOT NULL DEFAULT '',
        priority {json} NOT NULL, user_id BIGINT NOT NULL DEFAULT 0,
        CONSTRAINT uk_application_name UNIQUE (name)
    ) {options}",
]];

/// How long one start may take to migrate, waiting for another manager that does so included.
const MIGRATION_LIMIT: Duration = Duration::from_secs(60);

/// Creates or extends the tables and seeds the default clusters.
pub(super) async fn migrate(database: &Database) -> Result<(), DbError> {
    let work = async {
        let mut session = Session::open(&database.pool).await?;
        let outcome = match migrate_in(&mut session).await {
            Ok(()) => seed_default_clusters(&mut session).await,
            Err(error) => Err(error),
        };
        session.close(outcome).await
    };
    within_limit(work).await
}

/// Refuses a database that somebody else was to migrate (`migrate: false`) and did not; seeds the default clusters.
pub(super) async fn check(database: &Database) -> Result<(), DbError> {
    let work = async {
        let mut session = Session::open(&database.pool).await?;
        let outcome = match version_in(&mut session).await {
            Ok(version) if version == latest() => seed_default_clusters(&mut session).await,
            Ok(version) => Err(DbError::Unusable {
                reason: format!(
                    "the database schema has version {version}, this manager needs {}: let it migrate (migrate: true)",
                    latest()
                ),
            }),
            Err(error) => Err(error),
        };
        session.close(outcome).await
    };
    within_limit(work).await
}

async fn within_limit(work: impl Future<Output = Result<(), DbError>>) -> Result<(), DbError> {
    tokio::time::timeout(MIGRATION_LIMIT, work)
        .await
        .unwrap_or_else(|_| {
            Err(DbError::Unavailable {
                reason: format!("the schema was not ready within {MIGRATION_LIMIT:?}"),
            })
        })
}

fn latest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

async fn migrate_in(session: &mut Session) -> Result<(), DbError> {
    let version = version_in(session).await?;
    if version > latest() {
        return Err(DbError::Unusable {
            reason: format!(
                "the database schema has version {version}, this manager knows only {}: start a newer manager",
                latest()
            ),
        });
    }
    if version == 0 {
        session.define("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY) {options}").await?;
    }
    for (step, statements) in (1_i64..)
        .zip(MIGRATIONS)
        .filter(|(step, _)| *step > version)
    {
        for statement in *statements {
            session.define(statement).await?;
        }
        session
            .execute(sql("INSERT INTO schema_version (version) VALUES (?)").bind(step))
            .await?;
        tracing::info!(version = step, "database schema migrated");
    }
    Ok(())
}

/// The version of the schema, 0 for an empty database.
async fn version_in(session: &mut Session) -> Result<i64, DbError> {
    let tables = session.tables().await?;
    if !tables.iter().any(|table| table == "schema_version") {
        // MySQL may have crashed between making `schema_version` (first) and the rest, so ours is always among them.
        if tables.iter().any(|table| table == "scheduler_cluster") {
            return Err(DbError::Unusable {
                reason:
                    "the database holds tables of Dragonfly v2, which this manager does not read: \
                         name an empty database in database.url"
                        .to_owned(),
            });
        }
        return Ok(0);
    }
    let rows = session
        .fetch(sql(
            "SELECT COALESCE(MAX(version), 0) AS version FROM schema_version",
        ))
        .await?;
    rows.first().map_or(Ok(0), |row| row.get("version"))
}

/// One connection that alone may change the schema.
pub(super) enum Session {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    MySql(sqlx::pool::PoolConnection<sqlx::MySql>),
}

const MYSQL_LOCK: &str = "SELECT GET_LOCK(CONCAT('dragonfly.', MD5(DATABASE())), 50) AS taken";
const MYSQL_UNLOCK: &str = "SELECT RELEASE_LOCK(CONCAT('dragonfly.', MD5(DATABASE()))) AS released";

impl Session {
    async fn open(pool: &Pool) -> Result<Self, DbError> {
        match pool {
            Pool::Sqlite(pool) => Ok(Self::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?)),
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                sqlx::query("SET LOCAL lock_timeout = '50s'")
                    .execute(&mut *transaction)
                    .await?;
                // Any fixed number does; this one reads "dragonfl" in ASCII.
                sqlx::query("SELECT pg_advisory_xact_lock(7237954648016840300)")
                    .execute(&mut *transaction)
                    .await?;
                Ok(Self::Postgres(transaction))
            }
            Pool::MySql(pool) => {
                let mut session = Self::MySql(pool.acquire().await?);
                let taken: Option<i64> = match session.fetch(sql(MYSQL_LOCK)).await?.first() {
                    Some(row) => row.get("taken")?,
                    None => None,
                };
                if taken != Some(1) {
                    return Err(DbError::Unavailable {
                        reason: "another manager is migrating the schema".to_owned(),
                    });
                }
                Ok(session)
            }
        }
    }

    /// Keeps the work if it went well, else takes it back as far as the database can.
    async fn close(mut self, outcome: Result<(), DbError>) -> Result<(), DbError> {
        if let Self::MySql(_) = self {
            self.fetch(sql(MYSQL_UNLOCK)).await?;
        }
        match (self, &outcome) {
            (Self::Sqlite(transaction), Ok(())) => transaction.commit().await?,
            (Self::Sqlite(transaction), Err(_)) => transaction.rollback().await?,
            (Self::Postgres(transaction), Ok(())) => transaction.commit().await?,
            (Self::Postgres(transaction), Err(_)) => transaction.rollback().await?,
            (Self::MySql(_), _) => {}
        }
        outcome
    }

    pub(super) async fn fetch(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        let rows = match self {
            Self::Sqlite(on) => statement.fetch(&mut **on).await.map(row::wrap),
            Self::Postgres(on) => statement.fetch(&mut **on).await.map(row::wrap),
            Self::MySql(on) => statement.fetch(&mut **on).await.map(row::wrap),
        };
        rows.map_err(DbError::from)
    }

    pub(super) async fn execute(&mut self, statement: Statement) -> Result<(), DbError> {
        match self {
            Self::Sqlite(on) => statement.execute(&mut **on).await.map(drop)?,
            Self::Postgres(on) => statement.execute(&mut **on).await.map(drop)?,
            Self::MySql(on) => statement.execute(&mut **on).await.map(drop)?,
        }
        Ok(())
    }

    /// After a row was inserted with a chosen id: lets PostgreSQL's sequence go on behind it. The others do by themselves.
    pub(super) async fn skip_ids_in(&mut self, table: SequencedTable) -> Result<(), DbError> {
        if let Self::Postgres(_) = self {
            self.fetch(sql(match table {
                SequencedTable::SchedulerCluster => {
                    "SELECT setval(pg_get_serial_sequence('scheduler_cluster', 'id'), MAX(id)) FROM scheduler_cluster"
                }
                SequencedTable::SeedPeerCluster => {
                    "SELECT setval(pg_get_serial_sequence('seed_peer_cluster', 'id'), MAX(id)) FROM seed_peer_cluster"
                }
            }))
            .await?;
        }
        Ok(())
    }

    async fn tables(&mut self) -> Result<Vec<String>, DbError> {
        let query = match self {
            Self::Sqlite(_) => "SELECT name AS name FROM sqlite_master WHERE type = 'table'",
            Self::Postgres(_) => {
                "SELECT tablename::text AS name FROM pg_catalog.pg_tables WHERE schemaname = current_schema()"
            }
            Self::MySql(_) => {
                "SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()"
            }
        };
        self.fetch(sql(query))
            .await?
            .iter()
            .map(|row| row.get("name"))
            .collect()
    }

    async fn define(&mut self, template: &str) -> Result<(), DbError> {
        let [id, json, options] = match self {
            Self::Sqlite(_) => ["INTEGER PRIMARY KEY AUTOINCREMENT", "TEXT", ""],
            Self::Postgres(_) => ["BIGSERIAL PRIMARY KEY", "TEXT", ""],
            // Binary collation: names that differ in case are different names, as on the other two.
            Self::MySql(_) => [
                "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
                "LONGTEXT",
                "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
            ],
        };
        let text = template
            .replace("{id}", id)
            .replace("{json}", json)
            .replace("{options}", options);
        let query = sqlx::raw_sql(AssertSqlSafe(text));
        match self {
            Self::Sqlite(on) => query.execute(&mut **on).await.map(drop)?,
            Self::Postgres(on) => query.execute(&mut **on).await.map(drop)?,
            Self::MySql(on) => query.execute(&mut **on).await.map(drop)?,
        }
        Ok(())
    }
}

/// A table that is seeded with a row of a chosen id.
#[derive(Debug, Clone, Copy)]
pub(super) enum SequencedTable {
    SchedulerCluster,
    SeedPeerCluster,
}
