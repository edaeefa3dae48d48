//! The limits of keepalive streams.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use runtime::shutdown::Shutdown;
use serde_json::json;

use super::data::{open, scheduler};
use super::eventually;
use super::servers::Backend;
use crate::DatabaseUrl;
use crate::db::{Database, MemberKey, MemberKind, sql};
use crate::directory::Directory;
use crate::keepalive::{Heartbeat, KeepAlive, Limits, StreamEnd};
use crate::model::State;

fn keep_alive(database: &Database, limits: Limits) -> KeepAlive {
    let directory = Arc::new(Directory::new(database.clone()));
    KeepAlive::new(database.clone(), directory, Shutdown::new(), limits)
}

fn beat() -> Result<Heartbeat, String> {
    let (hostname, ip) = ("s".to_owned(), "10.0.0.7".to_owned());
    Ok(Heartbeat::Member(MemberKey {
        kind: MemberKind::Scheduler,
        hostname,
        ip,
        cluster_id: 1,
    }))
}

/// Registers with the shortest interval there is, 1 s.
async fn register(database: &Database) {
    let mut told = scheduler("s", "10.0.0.7", 8002);
    told.config = Some([("manager_keep_alive_interval".to_owned(), json!(1))].into());
    database.register_scheduler(&told).await.unwrap();
}

async fn state(database: &Database) -> State {
    database.schedulers().await.unwrap()[0].state
}

pub(super) async fn a_silent_stream_ends_and_its_member_is_inactive(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    register(&database).await;
    let limits = Limits {
        silence_intervals: 1,
        silence_min: Duration::ZERO,
        ..Limits::default()
    };
    let keep_alive = keep_alive(&database, limits);
    let silent_after_one = stream::iter([beat()]).chain(stream::pending());
    let serving = tokio::spawn(async move { keep_alive.serve(silent_after_one).await });
    eventually("it is active", || async {
        (state(&database).await == State::Active).then_some(())
    })
    .await;
    let end = serving.await.unwrap();
    assert!(
        matches!(end, Err(StreamEnd::Silent { limit }) if limit == Duration::from_secs(1)),
        "{end:?}"
    );
    assert_eq!(state(&database).await, State::Inactive);
    // One that breaks is inactive too, and the caller of a stream that is dropped half way need not care.
    let broken = stream::iter([beat(), Err("reset".to_owned())]);
    let end = self::keep_alive(&database, Limits::default())
        .serve(broken)
        .await;
    assert!(matches!(end, Err(StreamEnd::Broken(_))), "{end:?}");
    assert_eq!(state(&database).await, State::Inactive);
}

pub(super) async fn a_deleted_member_hears_of_it(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    register(&database).await;
    let keep_alive = keep_alive(
        &database,
        Limits {
            write_pace: Duration::ZERO,
            ..Limits::default()
        },
    );
    let (beats, incoming) = tokio::sync::mpsc::channel(1);
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let serving = tokio::spawn(async move { keep_alive.serve(incoming).await });
    beats.send(beat()).await.unwrap();
    eventually("it is active", || async {
        (state(&database).await == State::Active).then_some(())
    })
    .await;
    database
        .execute(sql("DELETE FROM scheduler"))
        .await
        .unwrap();
    beats.send(beat()).await.unwrap();
    let end = serving.await.unwrap();
    assert!(matches!(end, Err(StreamEnd::Vanished)), "{end:?}");
}

pub(super) async fn places_for_streams_are_limited_and_given_back(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let keep_alive = keep_alive(
        &database,
        Limits {
            streams_max: 1,
            ..Limits::default()
        },
    );
    let (peer, incoming) = tokio::sync::mpsc::channel::<Result<Heartbeat, String>>(1);
    let holding = {
        let keep_alive = keep_alive.clone();
        let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
        tokio::spawn(async move { keep_alive.serve(incoming).await })
    };
    // The second message has room only once the first was taken, so the stream is being served by then.
    for _ in 0..2 {
        peer.send(Ok(Heartbeat::Peer)).await.unwrap();
    }
    let another = || keep_alive.serve(stream::iter(Vec::<Result<Heartbeat, String>>::new()));
    let end = another().await;
    assert!(matches!(end, Err(StreamEnd::TooMany)), "{end:?}");
    drop(peer);
    holding.await.unwrap().unwrap();
    assert!(another().await.is_ok(), "the place is free again");
}
