//! Who counts as alive.

use serde_json::json;

use super::data::{open, scheduler, seed_peer};
use super::servers::Backend;
use crate::DatabaseUrl;
use crate::db::{Database, Member, MemberKey, MemberKind, now_ms, sql};
use crate::model::State;

const MINUTE_MS: i64 = 60_000;

async fn member(database: &Database, kind: MemberKind, hostname: &str) -> Option<Member> {
    let key = MemberKey {
        kind,
        hostname: hostname.to_owned(),
        ip: String::new(),
        cluster_id: 1,
    };
    database.find_member(&key).await.unwrap()
}

async fn registered(database: &Database, hostname: &str) -> Member {
    database
        .register_scheduler(&scheduler(hostname, "10.0.0.7", 8002))
        .await
        .unwrap();
    member(database, MemberKind::Scheduler, hostname)
        .await
        .unwrap()
}

/// The state of a scheduler that answers show; `None` if they show none.
async fn state(database: &Database, hostname: &str) -> Option<State> {
    let schedulers = database.schedulers().await.unwrap();
    schedulers
        .iter()
        .find(|it| it.hostname == hostname)
        .map(|it| it.state)
}

pub(super) async fn only_the_last_session_switches_off(_: &Backend, url: DatabaseUrl) {
    let (one, two) = (open(&url).await, open(&url).await);
    let it = registered(&one, "s").await;
    assert_eq!(it.interval, Some(std::time::Duration::from_secs(5)));
    assert!(one.member_heard(it, "old").await.unwrap());
    assert_eq!(state(&two, "s").await, Some(State::Active));
    // It reconnects, to the other manager; then the first notices that the old connection is dead.
    assert!(two.member_heard(it, "new").await.unwrap());
    assert!(!one.member_ended(it, "old").await.unwrap());
    assert_eq!(state(&one, "s").await, Some(State::Active));
    assert!(two.member_ended(it, "new").await.unwrap());
    assert_eq!(state(&one, "s").await, Some(State::Inactive));
    // A wrong state lasts until the next heartbeat; one whose row is gone hears it.
    assert!(two.member_heard(it, "new").await.unwrap());
    assert_eq!(state(&one, "s").await, Some(State::Active));
    one.execute(sql("DELETE FROM scheduler")).await.unwrap();
    assert!(!two.member_heard(it, "new").await.unwrap());
    assert!(member(&one, MemberKind::Scheduler, "s").await.is_none());
}

pub(super) async fn sessions_race_and_the_last_one_wins(_: &Backend, url: DatabaseUrl) {
    let databases = [open(&url).await, open(&url).await];
    let it = registered(&databases[0], "s").await;
    let sessions = (0..12_usize).map(|number| {
        let database = databases[number % 2].clone();
        tokio::spawn(async move {
            let session = format!("session-{number}");
            for _ in 0..5 {
                assert!(database.member_heard(it, &session).await.unwrap());
            }
            database.member_ended(it, &session).await.unwrap()
        })
    });
    let mut ended = 0;
    for session in sessions.collect::<Vec<_>>() {
        ended += u32::from(session.await.unwrap());
    }
    // Whichever was last in the row at its end switched it off, and nobody is alive now.
    assert!(ended >= 1);
    assert_eq!(state(&databases[0], "s").await, Some(State::Inactive));
    assert!(databases[1].member_heard(it, "survivor").await.unwrap());
    assert!(!databases[0].member_ended(it, "session-3").await.unwrap());
    assert_eq!(state(&databases[0], "s").await, Some(State::Active));
}

pub(super) async fn silence_expires_those_who_promised_to_be_heard(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let known = registered(&database, "known").await;
    let mut vague = scheduler("vague", "10.0.0.7", 8002);
    vague.config = Some([("other".to_owned(), json!(1))].into());
    database.register_scheduler(&vague).await.unwrap();
    let vague = member(&database, MemberKind::Scheduler, "vague")
        .await
        .unwrap();
    assert_eq!(vague.interval, None);
    for it in [known, vague] {
        database.member_heard(it, "session").await.unwrap();
    }
    // Seeds of old clients: one without a stream, one with.
    for name in ["mute", "seed"] {
        database
            .register_seed_peer(&seed_peer(name, "10.0.0.1"))
            .await
            .unwrap();
    }
    let seed = member(&database, MemberKind::SeedPeer, "seed")
        .await
        .unwrap();
    database.member_heard(seed, "session").await.unwrap();
    let now = now_ms();
    assert_eq!(
        database
            .expire_members(MemberKind::Scheduler, now + 25_000)
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        database
            .expire_members(MemberKind::Scheduler, now + 31_000)
            .await
            .unwrap(),
        1
    );
    assert_eq!(state(&database, "known").await, Some(State::Inactive));
    assert_eq!(state(&database, "vague").await, Some(State::Active));
    assert_eq!(
        database
            .expire_members(MemberKind::Scheduler, now + 7 * MINUTE_MS)
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        database
            .expire_members(MemberKind::SeedPeer, now + 7 * MINUTE_MS)
            .await
            .unwrap(),
        1
    );
    let seeds = database.seed_peers().await.unwrap();
    let states: Vec<_> = seeds
        .iter()
        .map(|it| (it.hostname.as_str(), it.state))
        .collect();
    assert_eq!(states, [("mute", State::Active), ("seed", State::Inactive)]);
}

pub(super) async fn the_long_silent_are_forgotten_come_back_or_are_deleted(
    _: &Backend,
    url: DatabaseUrl,
) {
    let database = open(&url).await;
    let it = registered(&database, "s").await;
    let other = registered(&database, "other").await;
    let now = now_ms();
    database.member_heard(other, "session").await.unwrap();
    let sweep = async |at| {
        database
            .sweep_members(MemberKind::Scheduler, at)
            .await
            .unwrap()
    };
    assert_eq!(sweep(now + 29 * MINUTE_MS).await, (0, 0));
    assert_eq!(
        sweep(now + 31 * MINUTE_MS).await,
        (1, 0),
        "the active one stays"
    );
    assert_eq!(state(&database, "s").await, None);
    // A heartbeat after a long network cut brings it back, and so does a registration.
    assert_eq!(
        member(&database, MemberKind::Scheduler, "s").await,
        Some(it)
    );
    assert!(database.member_heard(it, "session").await.unwrap());
    assert_eq!(state(&database, "s").await, Some(State::Active));
    database.member_ended(it, "session").await.unwrap();
    assert_eq!(sweep(now + 32 * MINUTE_MS).await, (1, 0));
    assert_eq!(registered(&database, "s").await, it);
    assert_eq!(state(&database, "s").await, Some(State::Inactive));
    assert_eq!(sweep(now + 8 * 24 * 60 * MINUTE_MS).await, (1, 1));
    assert!(
        member(&database, MemberKind::Scheduler, "s")
            .await
            .is_none()
    );
}
