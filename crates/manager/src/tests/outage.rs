//! A database that goes away, and one that hangs.

use std::time::{Duration, Instant};

use tonic::Code;

use super::clients::{Beating, TestManager, is_active, list_schedulers, update_scheduler};
use super::eventually;
use super::servers::{Backend, Kind};
use crate::DatabaseUrl;

pub(super) async fn the_database_goes_away_and_comes_back(backend: &Backend, url: DatabaseUrl) {
    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    client
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    let beating = Beating::scheduler(client.clone(), "s");
    beating.beat().await;
    eventually("it is active", || async {
        is_active(&client, "s").await.then_some(())
    })
    .await;

    backend.go_down(&url).await;
    // Daemons go on with what was known; who wants to write hears that it is worth trying again.
    let found = client
        .list_schedulers(list_schedulers())
        .await
        .unwrap()
        .into_inner()
        .schedulers;
    assert_eq!(found.len(), 1);
    let refused = client
        .update_scheduler(update_scheduler("new"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let found = client
        .list_schedulers(list_schedulers())
        .await
        .unwrap()
        .into_inner()
        .schedulers;
    assert_eq!(found.len(), 1);
    // The stream outlives it.
    beating.beat().await;

    backend.go_up().await;
    eventually("it writes again", || async {
        client
            .clone()
            .update_scheduler(update_scheduler("new"))
            .await
            .ok()
    })
    .await;
    beating.beat().await;
    assert!(is_active(&client, "s").await);
    beating.finish().await.unwrap();
    assert!(!is_active(&client, "s").await);
    manager.stop().await;
}

pub(super) async fn a_frozen_database_holds_nobody_up(backend: &Backend, url: DatabaseUrl) {
    if backend.kind() == Kind::Sqlite {
        // It has no process of its own that could freeze.
        return;
    }
    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    client
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    assert!(client.list_schedulers(list_schedulers()).await.is_ok());
    backend.freeze();
    let asked_at = Instant::now();
    let (listed, refused) = {
        let (mut lister, mut writer) = (client.clone(), client.clone());
        let list = lister.list_schedulers(list_schedulers());
        tokio::join!(list, writer.update_scheduler(update_scheduler("new")))
    };
    assert!(listed.is_ok(), "{listed:?}");
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    // The limit of a statement is 4 s here.
    assert!(
        asked_at.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked_at.elapsed()
    );
    backend.thaw();
    eventually("it writes again", || async {
        client
            .clone()
            .update_scheduler(update_scheduler("new"))
            .await
            .ok()
    })
    .await;
    manager.stop().await;
}
