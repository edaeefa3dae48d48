//! Databases for the tests: an SQLite folder, a PostgreSQL and a MariaDB of the system's packages.
//!
//! A server runs on a unix socket in a temporary folder, as `nobody` when the test is root (PostgreSQL refuses root), and
//! ends with its [`Backend`]; should the test process be killed, the kernel ends it (`setpriv --pdeathsig`).

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use sqlx::{AssertSqlSafe, Connection, Executor};

use super::eventually;
use crate::DatabaseUrl;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One database product, running.
pub(super) struct Backend {
    kind: Kind,
    folder: tempfile::TempDir,
    process: Mutex<Option<Server>>,
    /// SQLite has no process to stop; holding its file's lock has the same effect.
    blocker: tokio::sync::Mutex<Option<sqlx::SqliteConnection>>,
    database_count: AtomicU32,
}

impl Backend {
    pub(super) async fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let backend = Self {
            kind,
            folder,
            process: Mutex::default(),
            blocker: tokio::sync::Mutex::default(),
            database_count: AtomicU32::new(0),
        };
        match kind {
            Kind::Sqlite => {}
            Kind::Postgres => init_postgres(&backend.server_folder()),
            Kind::MariaDb => init_mariadb(&backend.server_folder()),
        }
        backend.go_up().await;
        backend
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// An empty database that no other case uses.
    pub(super) async fn new_database(&self) -> DatabaseUrl {
        let name = format!(
            "case_{}",
            self.database_count.fetch_add(1, Ordering::Relaxed)
        );
        let url = match self.kind {
            Kind::Sqlite => format!(
                "sqlite://{}/{name}/manager.db",
                self.folder.path().display()
            ),
            Kind::Postgres | Kind::MariaDb => {
                self.execute("", &format!("CREATE DATABASE {name}"))
                    .await
                    .unwrap();
                self.server_url(&name)
            }
        };
        url.parse().unwrap()
    }

    /// A database that does not exist and that nobody can make.
    pub(super) fn no_database(&self) -> DatabaseUrl {
        let url = match self.kind {
            Kind::Sqlite => "sqlite:///dev/null/manager.db".to_owned(),
            Kind::Postgres | Kind::MariaDb => self.server_url("nowhere"),
        };
        url.parse().unwrap()
    }

    /// Takes the database away: the server is stopped at once, the SQLite file is locked for writing.
    pub(super) async fn go_down(&self, url: &DatabaseUrl) {
        match self.kind {
            Kind::Sqlite => {
                let path = url.to_string();
                let mut connection = sqlx::SqliteConnection::connect(&path).await.unwrap();
                // In WAL mode readers pass a writer, so this takes away writing only.
                connection
                    .execute("PRAGMA busy_timeout = 10000")
                    .await
                    .unwrap();
                connection.execute("BEGIN IMMEDIATE").await.unwrap();
                *self.blocker.lock().await = Some(connection);
            }
            Kind::Postgres | Kind::MariaDb => drop(self.server().take()),
        }
    }

    /// Gives it back.
    pub(super) async fn go_up(&self) {
        if self.kind == Kind::Sqlite {
            if let Some(connection) = self.blocker.lock().await.take() {
                connection.close().await.unwrap();
            }
            return;
        }
        let folder = self.server_folder();
        let server = match self.kind {
            Kind::MariaDb => start_mariadb(&folder),
            _ => start_postgres(&folder),
        };
        *self.server() = Some(server);
        eventually("the database server answers", || async {
            if let Some(server) = self.server().as_mut() {
                let ended = server.0.try_wait().unwrap();
                assert!(
                    ended.is_none(),
                    "{} ended: {ended:?}, see {}",
                    self.kind,
                    folder.display()
                );
            }
            self.execute("", "SELECT 1").await.ok()
        })
        .await;
    }

    /// Stops the server's processes without ending them; its connections stay open and silent. No such thing for SQLite.
    pub(super) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(super) fn thaw(&self) {
        self.signal("CONT");
    }

    pub(super) fn stop(self) {
        drop(self.server().take());
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Server>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server_folder(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    fn signal(&self, signal: &str) {
        if let Some(server) = self.server().as_ref() {
            server.signal(signal);
        }
    }

    fn server_url(&self, database: &str) -> String {
        let socket = self.server_folder();
        let socket = socket.display();
        match self.kind {
            Kind::MariaDb => format!("mysql://root@localhost/{database}?socket={socket}/sock"),
            _ => format!("postgres://tester@localhost/{database}?host={socket}"),
        }
    }

    /// Runs a statement on a connection of its own; an empty `database` is the server's own.
    async fn execute(&self, database: &str, statement: &str) -> Result<(), sqlx::Error> {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        match self.kind {
            Kind::MariaDb => {
                let database = if database.is_empty() {
                    "mysql"
                } else {
                    database
                };
                let mut connection =
                    sqlx::MySqlConnection::connect(&self.server_url(database)).await?;
                statement.execute(&mut connection).await?;
                connection.close().await
            }
            _ => {
                let database = if database.is_empty() {
                    "postgres"
                } else {
                    database
                };
                let mut connection =
                    sqlx::PgConnection::connect(&self.server_url(database)).await?;
                statement.execute(&mut connection).await?;
                connection.close().await
            }
        }
    }
}

/// A running server; ended on drop, with everything it started.
struct Server(Child);

impl Server {
    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let children = Command::new("ps")
            .args(["-o", "pid=", "--ppid", &pid])
            .output()
            .expect("procps is installed");
        let children = String::from_utf8(children.stdout).unwrap();
        for pid in children.split_whitespace().chain([pid.as_str()]) {
            // A child may have ended by itself meanwhile.
            let _ = Command::new("kill")
                .args([&format!("-{signal}"), pid])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        // QUIT is PostgreSQL's and MariaDB's quickest end that takes their children along.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.0.id().to_string()])
            .stderr(Stdio::null())
            .status();
        for _ in 0..500 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.signal("KILL");
        let _ = self.0.wait();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .map(|own| std::os::unix::fs::MetadataExt::uid(&own))
        .unwrap()
        == 0
}

/// `program` as somebody who is not root, who ends when this process does.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if is_root() {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    command.arg("--").arg(program);
    command
}

fn run(mut command: Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{text}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
}

fn spawn(mut command: Command, folder: &Path) -> Server {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("test.log"))
        .unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Server(
        command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}")),
    )
}

fn make_folder(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    if is_root() {
        std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    }
}

/// Debian keeps PostgreSQL's programs out of the path, in a folder per version; the newest is taken.
fn postgres_program(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| {
            Some(version.ok()?.path().join("bin").join(name)).filter(|program| program.exists())
        })
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

fn init_postgres(folder: &Path) {
    make_folder(folder);
    let mut init = unprivileged(&postgres_program("initdb"));
    init.arg("--pgdata").arg(folder.join("data"));
    run({
        init.args([
            "--username",
            "tester",
            "--auth",
            "trust",
            "--no-sync",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
        ]);
        init
    });
}

fn start_postgres(folder: &Path) -> Server {
    let mut postgres = unprivileged(&postgres_program("postgres"));
    postgres
        .arg("-D")
        .arg(folder.join("data"))
        .arg("-k")
        .arg(folder);
    postgres.args(["-h", "", "-c", "fsync=off", "-c", "shared_buffers=16MB"]);
    spawn(postgres, folder)
}

fn init_mariadb(folder: &Path) {
    make_folder(folder);
    let mut init = unprivileged(Path::new("mariadb-install-db"));
    init.args([
        "--no-defaults",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ]);
    init.arg(format!("--datadir={}", folder.join("data").display()));
    run(init);
}

fn start_mariadb(folder: &Path) -> Server {
    let mut mariadbd = unprivileged(Path::new("/usr/sbin/mariadbd"));
    mariadbd.args([
        "--no-defaults",
        "--skip-networking",
        "--innodb-flush-log-at-trx-commit=0",
    ]);
    mariadbd.args([
        "--innodb-buffer-pool-size=32M",
        "--performance-schema=OFF",
        "--skip-log-bin",
    ]);
    mariadbd.arg(format!("--datadir={}", folder.join("data").display()));
    mariadbd.arg(format!("--socket={}", folder.join("sock").display()));
    mariadbd.arg(format!("--pid-file={}", folder.join("pid").display()));
    spawn(mariadbd, folder)
}
