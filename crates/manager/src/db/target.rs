//! Which database: one URL, or the parts that Dragonfly v2's configuration spells out.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// The database to keep the data in.
///
/// Parsed from `sqlite:///absolute/path.db`, `postgres://user:password@host:5432/name` or
/// `mysql://user:password@host:3306/name` (`mariadb://` means the same). Shown without its password.
#[derive(Clone)]
pub struct DatabaseUrl(pub(super) Target);

#[derive(Clone)]
pub(super) enum Target {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
    MySql(Box<MySqlConnectOptions>),
}

/// A database URL that names no database we can use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{reason}: give sqlite:///absolute/path.db, postgres://user:password@host:5432/name or mysql://user:password@host:3306/name"
)]
pub struct InvalidDatabaseUrl {
    reason: String,
}

impl DatabaseUrl {
    /// An SQLite file; it and its folder are made when missing.
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Self(Target::Sqlite(path.into()))
    }

    /// A PostgreSQL server, from parts.
    pub(crate) fn postgres(options: PgConnectOptions) -> Self {
        Self(Target::Postgres(Box::new(
            options.application_name("dragonfly-manager"),
        )))
    }

    /// A MySQL or MariaDB server, from parts.
    pub(crate) fn mysql(options: MySqlConnectOptions) -> Self {
        Self(Target::MySql(Box::new(options)))
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The reason never repeats the URL: it may hold a password.
        let invalid = |reason: String| InvalidDatabaseUrl { reason };
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(invalid("the database URL has no scheme".to_owned()));
        };
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() || path.starts_with(':') || path.contains('?') {
                    return Err(invalid(
                        "the SQLite URL must hold the path of a file and nothing else".to_owned(),
                    ));
                }
                Ok(Self::sqlite(path))
            }
            "postgres" | "postgresql" => PgConnectOptions::from_str(text)
                .map(Self::postgres)
                .map_err(|error| invalid(format!("the PostgreSQL URL cannot be read ({error})"))),
            "mysql" | "mariadb" => MySqlConnectOptions::from_str(text)
                .map(Self::mysql)
                .map_err(|error| invalid(format!("the MySQL URL cannot be read ({error})"))),
            other => Err(invalid(format!(
                "no database is reached by the scheme {other:?}"
            ))),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Target::Postgres(at) => {
                let name = at.get_database().unwrap_or_else(|| at.get_username());
                match at.get_socket() {
                    Some(socket) => write!(f, "postgres://{}/{name}", socket.display()),
                    None => write!(f, "postgres://{}:{}/{name}", at.get_host(), at.get_port()),
                }
            }
            Target::MySql(at) => {
                let name = at.get_database().unwrap_or_default();
                match at.get_socket() {
                    Some(socket) => write!(f, "mysql://{}/{name}", socket.display()),
                    None => write!(f, "mysql://{}:{}/{name}", at.get_host(), at.get_port()),
                }
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Write-ahead logging with `synchronous = NORMAL`: a commit appends to the log without an fsync, and the log is
/// synced at checkpoints. A power cut may take back the last commits but never corrupts; what it can take back here
/// (keepalive times, a registration) is said again by its owner within seconds.
pub(super) fn sqlite_options(path: &std::path::Path, busy: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str) {
        let url: DatabaseUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), shown);
        assert_eq!(
            format!("{url:?}"),
            shown,
            "the debug form must not reveal the password either"
        );
    }

    #[test]
    fn urls_of_the_three_databases_are_read_and_shown_without_password() {
        check("sqlite:///var/lib/m.db", "sqlite:///var/lib/m.db");
        check("sqlite:m.db", "sqlite://m.db");
        check(
            "postgres://u:secret@db:5433/dragonfly",
            "postgres://db:5433/dragonfly",
        );
        check("postgresql://u:secret@db/x", "postgres://db:5432/x");
        check(
            "mysql://u:secret@db:3307/dragonfly",
            "mysql://db:3307/dragonfly",
        );
        check(
            "mariadb://u:secret@db/dragonfly",
            "mysql://db:3306/dragonfly",
        );
    }

    #[test]
    fn a_wrong_url_names_the_choices_and_no_secret() {
        for text in [
            "",
            "manager.db",
            "redis://x:secret@y",
            "sqlite://",
            "sqlite::memory:",
            "postgres://u:secret@:bad/x",
        ] {
            let error = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(error.contains("sqlite:///"), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{text:?}: {error}");
        }
    }
}
