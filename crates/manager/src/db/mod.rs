//! The data layer: one SQL text for three databases.
//!
//! Statements are written once, with `?` for each value, in the common subset of SQLite, PostgreSQL and MySQL; this
//! module runs them on whichever it was opened on. What really differs stays here: the connection pool, the form of
//! a placeholder, how a row is read, and the few words of [`schema`] that have no common spelling.
//!
//! `sqlx::Any` was not taken: it leaves placeholders as they are written (PostgreSQL wants `$1`), knows no connect
//! options but a URL, and maps MySQL's columns through a lossy type table.
//!
//! To stay in that subset: no booleans or timestamps as column types (`0`/`1` and milliseconds since the epoch as
//! 64-bit integers), no `RETURNING`, no dialect's own upsert ([`Database::upsert`] works by unique keys instead).
//!
//! Every statement has a time limit, and an answer that does not come in time counts as [`DbError::Unavailable`]:
//! a frozen database server must not freeze its callers.

mod applications;
mod clusters;
mod liveness;
mod row;
mod schedulers;
mod schema;
mod seed_peers;
mod statement;
mod target;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use sqlx::pool::PoolOptions;

pub(crate) use liveness::{Member, MemberKey, MemberKind};
pub(crate) use row::Row;
pub(crate) use statement::{Statement, sql};
use target::Target;
pub use target::{DatabaseUrl, InvalidDatabaseUrl};

/// Connections kept to a database server. Two managers with this many stay far below PostgreSQL's default of 100.
const SERVER_CONNECTIONS_MAX: u32 = 16;
/// Connections to an SQLite file: it has one writer at a time, so more would only queue inside SQLite.
const SQLITE_CONNECTIONS_MAX: u32 = 4;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The database cannot be reached, is locked, or did not answer in time. Retrying later may help.
    #[error("the database is not available ({reason}): it is asked again with the next request")]
    Unavailable {
        /// What the driver said.
        reason: String,
    },
    /// A unique key is taken.
    #[error("a row with this {what} exists already")]
    Conflict {
        /// The constraint or columns, as the database names them.
        what: String,
    },
    /// The database refused the statement or sent something unreadable. Retrying does not help.
    #[error("the database refused ({reason}): please report this as a bug of the manager")]
    Refused {
        /// What the driver said.
        reason: String,
    },
    /// The database cannot be used as it is: it lets us not in, or holds something that is not ours.
    #[error("{reason}")]
    Unusable {
        /// What was found and what to do.
        reason: String,
    },
}

/// An open database with its connection pool. Clones share the pool.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    limit: Duration,
}

#[derive(Clone)]
enum Pool {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
    MySql(sqlx::MySqlPool),
}

impl Database {
    /// Connects, brings the schema up to date and seeds the default clusters. `limit` bounds every later statement.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when it cannot be reached (the caller may retry), else why it cannot be used.
    pub(crate) async fn open(
        url: &DatabaseUrl,
        limit: Duration,
        migrate: Migrate,
    ) -> Result<Self, DbError> {
        let pool = match &url.0 {
            Target::Sqlite(path) => {
                make_file(path).await?;
                // Below `limit`, so that "locked" is SQLite's own answer and not a cut-off statement.
                let options = target::sqlite_options(path, limit / 2);
                Pool::Sqlite(pool_options(SQLITE_CONNECTIONS_MAX, limit).connect_lazy_with(options))
            }
            Target::Postgres(options) => Pool::Postgres(
                pool_options(SERVER_CONNECTIONS_MAX, limit).connect_lazy_with((**options).clone()),
            ),
            Target::MySql(options) => Pool::MySql(
                pool_options(SERVER_CONNECTIONS_MAX, limit).connect_lazy_with((**options).clone()),
            ),
        };
        let database = Self { pool, limit };
        let prepared = match migrate {
            Migrate::Yes => schema::migrate(&database).await,
            Migrate::No => schema::check(&database).await,
        };
        match prepared {
            Ok(()) => Ok(database),
            Err(error) => {
                database.close().await;
                Err(error)
            }
        }
    }

    /// Runs a statement that returns rows.
    pub(crate) async fn fetch(&self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.timed(async {
            match &self.pool {
                Pool::Sqlite(pool) => statement.fetch(pool).await.map(row::wrap),
                Pool::Postgres(pool) => statement.fetch(pool).await.map(row::wrap),
                Pool::MySql(pool) => statement.fetch(pool).await.map(row::wrap),
            }
        })
        .await
    }

    /// Runs a statement that changes rows; returns how many it matched.
    pub(crate) async fn execute(&self, statement: Statement) -> Result<u64, DbError> {
        self.timed(async {
            match &self.pool {
                Pool::Sqlite(pool) => statement
                    .execute(pool)
                    .await
                    .map(|done| done.rows_affected()),
                Pool::Postgres(pool) => statement
                    .execute(pool)
                    .await
                    .map(|done| done.rows_affected()),
                Pool::MySql(pool) => statement
                    .execute(pool)
                    .await
                    .map(|done| done.rows_affected()),
            }
        })
        .await
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<(), DbError> {
        self.fetch(sql("SELECT 1 AS one")).await.map(drop)
    }

    /// Updates the row that a unique key names, or inserts it; safe against others who do the same at once.
    ///
    /// The two statements race only in the gap between them: then the insert meets the other's row as a conflict and
    /// the update is tried again. A row that is deleted and made over and over could keep that up, hence the cap.
    pub(crate) async fn upsert(
        &self,
        update: Statement,
        insert: Statement,
    ) -> Result<Upserted, DbError> {
        const ROUNDS_MAX: u32 = 4;
        let mut round = 1;
        loop {
            if self.execute(update.clone()).await? > 0 {
                return Ok(Upserted::Updated);
            }
            match self.execute(insert.clone()).await {
                Ok(_) => return Ok(Upserted::Inserted),
                Err(DbError::Conflict { .. }) if round < ROUNDS_MAX => round += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes every connection; statements after that fail.
    pub(crate) async fn close(&self) {
        let closing = async {
            match &self.pool {
                Pool::Sqlite(pool) => pool.close().await,
                Pool::Postgres(pool) => pool.close().await,
                Pool::MySql(pool) => pool.close().await,
            }
        };
        // A server that hangs must not keep us from leaving.
        let _ = tokio::time::timeout(self.limit, closing).await;
    }

    async fn timed<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DbError> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(done) => done.map_err(DbError::from),
            Err(_) => Err(DbError::Unavailable {
                reason: format!("no answer within {:?}", self.limit),
            }),
        }
    }
}

/// Whether to create and extend tables at start (`database.*.migrate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Migrate {
    Yes,
    /// Somebody else does; refuse a schema that is too old.
    No,
}

/// What [`Database::upsert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upserted {
    Updated,
    Inserted,
}

/// Milliseconds since the epoch: how every time is stored.
pub(crate) fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

fn pool_options<DB: sqlx::Database>(connections_max: u32, limit: Duration) -> PoolOptions<DB> {
    // A pooled connection is pinged before use (sqlx's default), so a restarted server costs a reconnect, not an error.
    PoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(limit)
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(1800))
}

/// Makes the database file and its folder where they are missing, for this user alone: it will hold users and tokens. SQLite
/// gives its log files the permissions of the database file.
async fn make_file(file: &Path) -> Result<(), DbError> {
    let cannot = |what: &str, at: &Path, error: std::io::Error| DbError::Unusable {
        reason: format!(
            "the {what} {} for the database cannot be made ({error}): create it, grant access to it, or change database.url",
            at.display()
        ),
    };
    if let Some(folder) = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|error| cannot("folder", folder, error))?;
    }
    match tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .await
    {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(cannot("file", file, error))
        }
        _ => Ok(()),
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let reason = error.to_string();
        match &error {
            sqlx::Error::Database(refusal) if refusal.is_unique_violation() => {
                let what = refusal
                    .constraint()
                    .map_or_else(|| refusal.message().to_owned(), str::to_owned);
                Self::Conflict { what }
            }
            sqlx::Error::Database(refusal) => match nature(refusal.as_ref()) {
                Nature::Passing => Self::Unavailable { reason },
                Nature::Access => Self::Unusable {
                    reason: format!(
                        "the database lets the manager not in ({reason}): check user, password, database name and, \
                         for SQLite, the file and the permissions of its folder"
                    ),
                },
                Nature::Other => Self::Refused { reason },
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable { reason },
            _ => Self::Refused { reason },
        }
    }
}

/// What kind of refusal a database's error is.
enum Nature {
    /// It will pass by itself.
    Passing,
    /// Somebody has to grant access or name another database.
    Access,
    Other,
}

/// Reads the error codes.
///
/// SQLite (low byte of the extended code): 5 busy, 6 locked, 13 disk full; 8 read-only, 14 cannot open, 23 not
/// authorised, 26 not a database. PostgreSQL: classes 08 (connection), 40 (serialisation, deadlock), 53 (resources), 57
/// (shutting down, starting up), 55P03 (lock timeout); 28 (authorisation), 3D (no such database), 42501 (privilege).
/// MySQL: 1040, 1203 (too many connections), 1053 (shutdown), 1205, 1213 (lock wait, deadlock), 1927 (killed); 1044, 1045,
/// 1698 (access), 1049 (no such database), 1142 (privilege).
fn nature(refusal: &dyn sqlx::error::DatabaseError) -> Nature {
    use sqlx::mysql::MySqlDatabaseError;
    use sqlx::postgres::PgDatabaseError;
    use sqlx::sqlite::SqliteError;

    if let Some(mysql) = refusal.try_downcast_ref::<MySqlDatabaseError>() {
        return match mysql.number() {
            1040 | 1053 | 1203 | 1205 | 1213 | 1927 => Nature::Passing,
            1044 | 1045 | 1049 | 1142 | 1698 => Nature::Access,
            _ => Nature::Other,
        };
    }
    let code = refusal.code().unwrap_or_default();
    let is_of = |classes: &[&str]| classes.iter().any(|class| code.starts_with(class));
    if refusal.try_downcast_ref::<PgDatabaseError>().is_some() {
        return match () {
            () if is_of(&["08", "40", "53", "57", "55P03"]) => Nature::Passing,
            () if is_of(&["28", "3D", "42501"]) => Nature::Access,
            () => Nature::Other,
        };
    }
    if refusal.try_downcast_ref::<SqliteError>().is_some() {
        return match code.parse::<u32>().unwrap_or(0) & 0xff {
            5 | 6 | 13 => Nature::Passing,
            8 | 14 | 23 | 26 => Nature::Access,
            _ => Nature::Other,
        };
    }
    Nature::Other
}
