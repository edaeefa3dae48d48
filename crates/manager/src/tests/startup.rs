//! Starting under circumstances.

use std::time::{Duration, Instant};

use runtime::shutdown::Shutdown;
use tonic::Code;

use super::clients::{TestManager, config, list_schedulers};
use super::servers::Backend;
use crate::db::DbError;
use crate::{Config, DatabaseUrl, RunError};

async fn refused(config: Config) -> RunError {
    let shutdown = Shutdown::new();
    let error = crate::start(config, &shutdown).await.unwrap_err();
    let drained = shutdown.drain(Duration::from_secs(5)).await;
    assert_eq!(
        drained.aborted,
        Vec::<String>::new(),
        "nothing keeps running after a start that failed"
    );
    error
}

pub(super) async fn a_start_waits_for_its_database(backend: &Backend, url: DatabaseUrl) {
    TestManager::start(&url).await.stop().await;
    backend.go_down(&url).await;
    // Not longer than it is told to ...
    let hurried = Config {
        database_start_timeout: Duration::ZERO,
        ..config(&url)
    };
    let error = refused(hurried).await;
    assert!(
        matches!(
            error,
            RunError::Database {
                error: DbError::Unavailable { .. },
                ..
            }
        ),
        "{error}"
    );
    // ... nor after it is told to stop ...
    let shutdown = Shutdown::new();
    let (started, ()) = tokio::join!(crate::start(config(&url), &shutdown), async {
        tokio::task::yield_now().await;
        shutdown.begin();
    });
    assert!(matches!(started, Err(RunError::Stopped)), "{started:?}");
    // ... but until the database is there.
    let starting = TestManager::start(&url);
    let (manager, ()) = tokio::join!(starting, async {
        tokio::task::yield_now().await;
        backend.go_up().await;
    });
    assert!(
        manager
            .client()
            .await
            .list_schedulers(list_schedulers())
            .await
            .is_ok()
    );
    manager.stop().await;
}

pub(super) async fn a_database_that_lets_nobody_in_is_told_at_once(
    backend: &Backend,
    _: DatabaseUrl,
) {
    let begun_at = Instant::now();
    let error = refused(config(&backend.no_database())).await;
    assert!(
        matches!(
            error,
            RunError::Database {
                error: DbError::Unusable { .. },
                ..
            }
        ),
        "{error}"
    );
    assert!(
        begun_at.elapsed() < Duration::from_secs(10),
        "no waiting helps here"
    );
}

#[tokio::test]
async fn a_port_in_use_is_told_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(folder.path().join("manager.db"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let error = refused(Config {
        grpc: at,
        ..config(&url)
    })
    .await
    .to_string();
    assert!(
        error.contains("server.grpc.port.start") && error.contains(&at.to_string()),
        "{error}"
    );
    let error = refused(Config {
        rest: at,
        ..config(&url)
    })
    .await
    .to_string();
    assert!(error.contains("server.rest.addr"), "{error}");
}

#[tokio::test]
async fn calls_beyond_the_rate_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(folder.path().join("manager.db"));
    let shutdown = Shutdown::new();
    // One call, and the next one in a thousand seconds.
    let at = crate::start(
        Config {
            request_rate_limit: 0.001,
            ..config(&url)
        },
        &shutdown,
    )
    .await
    .unwrap();
    let channel = runtime::grpc::channel(&at.grpc.to_string(), &Default::default()).unwrap();
    let mut client = dragonfly_api::manager::v2::manager_client::ManagerClient::new(channel);
    client.list_schedulers(list_schedulers()).await.unwrap();
    let error = client.list_schedulers(list_schedulers()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    shutdown.drain(Duration::from_secs(5)).await;
}

/// The goal is 100 ms in a release build; a debug build on a busy machine gets ten times that.
#[tokio::test]
async fn a_cold_start_on_sqlite_is_quick() {
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let begun_at = Instant::now();
        let manager =
            TestManager::start(&DatabaseUrl::sqlite(folder.path().join("manager.db"))).await;
        quickest = quickest.min(begun_at.elapsed());
        manager.stop().await;
    }
    eprintln!("cold start: {quickest:?}");
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}

#[tokio::test]
async fn the_database_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("below/manager.db");
    let manager = TestManager::start(&DatabaseUrl::sqlite(&file)).await;
    for name in ["manager.db", "manager.db-wal"] {
        let mode = std::fs::metadata(file.with_file_name(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    manager.stop().await;
}
