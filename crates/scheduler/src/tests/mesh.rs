//! Daemons of ours: recognised by a header, given neighbours at once, told of further ones.

use super::fake::{Running, download, eventually};

#[tokio::test]
async fn neighbours_at_once_and_pushed_ones_later() {
    let running = Running::start().await;
    let mut a = running.register_mesh("a").await;
    assert!(a.mesh, "the scheduler says that it is one of ours");
    a.origin().await;
    let mut b = running.register_mesh("b").await;
    assert_eq!(
        b.parent_names().await,
        ["a"],
        "although a holds nothing yet"
    );
    let mut peers = Vec::new();
    for n in 0..9 {
        let mut peer = running.register_mesh(&format!("m{n}")).await;
        assert!(peer.parent_names().await.len() >= 2);
        peers.push(peer);
    }
    // The first ones knew few when they came; they are given more once arrivals pause. (Who else is depends on how soon the
    // others came: two that are told of each other both have more.)
    let pushed = peers.iter_mut().map(|peer| Box::pin(peer.parent_names()));
    let (names, ..) = futures::future::select_all(pushed).await;
    assert!(!names.is_empty());
}

#[tokio::test]
async fn the_next_reader_is_told_without_asking() {
    let running = Running::start().await;
    let mut a = running.register_mesh("a").await;
    a.origin().await;
    a.back_to_source_started().await;
    let mut b = running.register_mesh("b").await;
    b.parents().await;
    b.started().await;
    drop(a);
    assert_eq!(b.origin().await, "next reader of the origin");
}

#[tokio::test]
async fn a_v2_child_among_ours_gets_only_those_that_serve() {
    let running = Running::start().await;
    let mut a = running.register_mesh("a").await;
    a.origin().await;
    let mut v = running.register("v", download()).await;
    v.heard_nothing(&running).await;
    a.back_to_source_started().await;
    assert_eq!(v.parent_names().await, ["a"]);
    v.started().await;
    eventually("v runs", async || {
        let stat = dragonfly_api::scheduler::v2::StatPeerRequest {
            peer_id: "v".to_owned(),
            ..Default::default()
        };
        running
            .client
            .clone()
            .stat_peer(stat)
            .await
            .is_ok_and(|peer| peer.into_inner().state == "Running")
    })
    .await;
    let mut b = running.register_mesh("b").await;
    let names = b.parent_names().await;
    assert!(names.contains(&"a".to_owned()), "{names:?}");
}
