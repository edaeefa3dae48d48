//! Two managers on one database.

use tonic::Code;

use super::clients::{Beating, TestManager, is_active, update_scheduler};
use super::data::open;
use super::eventually;
use super::servers::Backend;
use crate::DatabaseUrl;
use crate::db::sql;
use crate::model::State;

pub(super) async fn two_managers_share_a_database(_: &Backend, url: DatabaseUrl) {
    let (one, two) = tokio::join!(TestManager::start(&url), TestManager::start(&url));
    let (mut at_one, at_two) = (one.client().await, two.client().await);
    // Registered at one, alive at the other, found at both.
    at_one
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    let beating = Beating::scheduler(at_two.clone(), "s");
    beating.beat().await;
    for client in [&at_one, &at_two] {
        eventually("active at both", || async {
            is_active(client, "s").await.then_some(())
        })
        .await;
    }
    // Many at once, at both: every one gets a row of its own, nobody fails.
    let calls = (0..40).map(|call| {
        let mut client = if call % 2 == 0 {
            at_one.clone()
        } else {
            at_two.clone()
        };
        let told = update_scheduler(&format!("many-{}", call / 4));
        tokio::spawn(async move { client.update_scheduler(told).await.unwrap().into_inner().id })
    });
    let mut ids = std::collections::HashSet::new();
    for call in calls.collect::<Vec<_>>() {
        ids.insert(call.await.unwrap());
    }
    assert_eq!(ids.len(), 10);
    // A manager that stops leaves the state of its schedulers alone: they are about to reconnect.
    two.stop().await;
    let status = beating.ended().await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let rows = open(&url).await.schedulers().await.unwrap();
    assert_eq!(
        (rows[0].hostname.as_str(), rows[0].state),
        ("s", State::Active)
    );
    one.stop().await;
}

pub(super) async fn a_late_end_on_one_manager_does_not_undo_the_other(
    _: &Backend,
    url: DatabaseUrl,
) {
    let (one, two) = (
        TestManager::start(&url).await,
        TestManager::start(&url).await,
    );
    let (mut at_one, at_two) = (one.client().await, two.client().await);
    at_one
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    let old = Beating::scheduler(at_one.clone(), "s");
    old.beat().await;
    eventually("active by the old stream", || async {
        is_active(&at_one, "s").await.then_some(())
    })
    .await;
    let session = async || {
        let rows = open(&url)
            .await
            .fetch(sql("SELECT keep_alive_session FROM scheduler"))
            .await
            .unwrap();
        rows[0].text("keep_alive_session").unwrap()
    };
    let old_session = session().await;
    let new = Beating::scheduler(at_two.clone(), "s");
    new.beat().await;
    eventually("the new stream took over", || async {
        (session().await != old_session).then_some(())
    })
    .await;
    old.finish().await.unwrap();
    assert!(
        is_active(&at_one, "s").await,
        "asked where the old stream ended, so nothing here is stale"
    );
    new.finish().await.unwrap();
    assert!(!is_active(&at_two, "s").await);
    one.stop().await;
    two.stop().await;
}
