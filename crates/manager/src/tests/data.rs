//! The data layer on its own.

use std::time::Duration;

use serde_json::json;

use super::servers::Backend;
use crate::DatabaseUrl;
use crate::db::{Database, DbError, Migrate, now_ms, sql};
use crate::model::{
    HostKey, SchedulerClusterId, SchedulerRegistration, SeedPeerClusterId, SeedPeerRegistration,
    State,
};

const LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn open(url: &DatabaseUrl) -> Database {
    Database::open(url, LIMIT, Migrate::Yes).await.unwrap()
}

pub(super) fn cluster_1() -> SchedulerClusterId {
    SchedulerClusterId::new(1).unwrap()
}

pub(super) fn scheduler(hostname: &str, ip: &str, port: u16) -> SchedulerRegistration {
    SchedulerRegistration {
        key: HostKey {
            hostname: hostname.to_owned(),
            ip: ip.to_owned(),
            cluster_id: cluster_1(),
        },
        port,
        idc: "idc-1".to_owned(),
        location: "l|m".to_owned(),
        features: vec!["schedule".to_owned()],
        config: Some(
            [(
                "manager_keep_alive_interval".to_owned(),
                json!(5_000_000_000_i64),
            )]
            .into(),
        ),
    }
}

pub(super) fn seed_peer(hostname: &str, ip: &str) -> SeedPeerRegistration {
    SeedPeerRegistration {
        key: HostKey {
            hostname: hostname.to_owned(),
            ip: ip.to_owned(),
            cluster_id: SeedPeerClusterId::new(1).unwrap(),
        },
        port: 4000,
        download_port: 4001,
        idc: String::new(),
        location: String::new(),
    }
}

/// Makes a scheduler cluster and returns its id.
pub(super) async fn insert_cluster(
    database: &Database,
    name: &str,
    scopes: serde_json::Value,
) -> u64 {
    let insert = sql("INSERT INTO scheduler_cluster
        (created_at, updated_at, name, bio, config, client_config, seed_client_config, scopes)
        VALUES (?, ?, ?, '', '{}', '{\"load_limit\":7}', '{}', ?)");
    let now = now_ms();
    database
        .execute(
            insert
                .bind(now)
                .bind(now)
                .bind(name)
                .bind(scopes.to_string()),
        )
        .await
        .unwrap();
    let clusters = database.scheduler_clusters().await.unwrap();
    clusters
        .iter()
        .find(|cluster| cluster.name == name)
        .unwrap()
        .id
        .get()
}

pub(super) async fn insert_application(database: &Database, name: &str, priority: &str) {
    let insert = sql(
        "INSERT INTO application (created_at, updated_at, name, url, bio, priority)
        VALUES (?, ?, ?, 'https://example.com', 'about', ?)",
    );
    database
        .execute(
            insert
                .bind(now_ms())
                .bind(now_ms())
                .bind(name)
                .bind(priority),
        )
        .await
        .unwrap();
}

pub(super) async fn an_empty_database_is_migrated_and_seeded_once(_: &Backend, url: DatabaseUrl) {
    open(&url).await.close().await;
    let database = open(&url).await;
    let clusters = database.scheduler_clusters().await.unwrap();
    assert_eq!(clusters.len(), 1);
    let cluster = &clusters[0];
    assert_eq!(
        (cluster.id, cluster.name.as_str(), cluster.is_default),
        (cluster_1(), "cluster-1", true)
    );
    let config =
        json!({"candidate_parent_limit": 3, "filter_parent_limit": 15, "job_rate_limit": 10});
    assert_eq!(serde_json::to_value(&cluster.config).unwrap(), config);
    assert_eq!(
        serde_json::to_value(&cluster.client_config).unwrap(),
        json!({"load_limit": 200})
    );
    assert!(cluster.seed_client_config.is_empty() && cluster.scopes.is_empty());
    let seeds = database.seed_peer_clusters().await.unwrap();
    assert_eq!(
        (seeds.len(), seeds[0].id.get(), seeds[0].name.as_str()),
        (1, 1, "cluster-1")
    );
    assert_eq!(
        serde_json::to_value(&seeds[0].config).unwrap(),
        json!({"load_limit": 2000})
    );
    assert_eq!(
        database.cluster_links().await.unwrap(),
        [(seeds[0].id, cluster.id)]
    );
    assert!(database.applications().await.unwrap().is_empty());
    // Nobody migrated: fine, as it is all there.
    Database::open(&url, LIMIT, Migrate::No).await.unwrap();
}

pub(super) async fn managers_that_start_together_take_turns(_: &Backend, url: DatabaseUrl) {
    let starts = (0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { open(&url).await })
    });
    for start in starts.collect::<Vec<_>>() {
        let database = start.await.unwrap();
        assert_eq!(database.scheduler_clusters().await.unwrap().len(), 1);
        assert_eq!(database.seed_peer_clusters().await.unwrap().len(), 1);
        assert_eq!(database.cluster_links().await.unwrap().len(), 1);
    }
}

pub(super) async fn foreign_and_newer_schemas_are_refused(backend: &Backend, url: DatabaseUrl) {
    // An empty database that was to be migrated by somebody else.
    let refused = |result: Result<Database, DbError>| match result {
        Err(DbError::Unusable { reason }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was taken"),
    };
    assert!(refused(Database::open(&url, LIMIT, Migrate::No).await).contains("migrate"));
    let database = open(&url).await;
    database
        .execute(sql("INSERT INTO schema_version (version) VALUES (999)"))
        .await
        .unwrap();
    assert!(refused(Database::open(&url, LIMIT, Migrate::Yes).await).contains("999"));
    // Without our mark, a table of that name is Dragonfly v2's.
    let url = backend.new_database().await;
    let database = open(&url).await;
    database
        .execute(sql("DROP TABLE schema_version"))
        .await
        .unwrap();
    assert!(refused(Database::open(&url, LIMIT, Migrate::Yes).await).contains("Dragonfly v2"));
}

pub(super) async fn clusters_get_ids_after_the_seeded_one(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    assert_eq!(insert_cluster(&database, "second", json!({})).await, 2);
    assert_eq!(insert_cluster(&database, "third", json!({})).await, 3);
}

pub(super) async fn a_scheduler_registers_and_registers_again(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let told = scheduler("s-0", "10.0.0.7", 8002);
    let first = database.register_scheduler(&told).await.unwrap().unwrap();
    assert_eq!(
        (first.state, first.port, first.idc.as_str()),
        (State::Inactive, 8002, "idc-1")
    );
    // It comes back on another port and says less: the port is new, what was not said stays.
    let again = SchedulerRegistration {
        port: 8003,
        idc: String::new(),
        location: "n".to_owned(),
        features: vec!["schedule".to_owned(), "preheat".to_owned()],
        config: None,
        ..told.clone()
    };
    let second = database.register_scheduler(&again).await.unwrap().unwrap();
    assert_eq!(
        (second.id, second.port, second.state),
        (first.id, 8003, State::Inactive)
    );
    assert_eq!(
        (second.idc.as_str(), second.location.as_str()),
        ("idc-1", "n")
    );
    assert_eq!(second.features, ["schedule", "preheat"]);
    let rows = database
        .fetch(sql("SELECT config, keep_alive_interval_ms FROM scheduler"))
        .await
        .unwrap();
    assert_eq!(
        rows[0].text("config").unwrap(),
        r#"{"manager_keep_alive_interval":5000000000}"#
    );
    assert_eq!(
        rows[0]
            .get::<Option<i64>>("keep_alive_interval_ms")
            .unwrap(),
        Some(5000)
    );
    // Another ip is another row, and a cluster that does not exist is allowed.
    let mut other = scheduler("s-0", "10.0.0.8", 8002);
    assert_ne!(
        database
            .register_scheduler(&other)
            .await
            .unwrap()
            .unwrap()
            .id,
        first.id
    );
    other.key.cluster_id = SchedulerClusterId::new(77).unwrap();
    assert_eq!(
        database
            .register_scheduler(&other)
            .await
            .unwrap()
            .unwrap()
            .cluster_id
            .get(),
        77
    );
    assert_eq!(database.schedulers().await.unwrap().len(), 3);
}

pub(super) async fn a_seed_peer_registers_and_leaves(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let first = database
        .register_seed_peer(&seed_peer("seed", "10.0.0.1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (first.state, first.kind.as_str(), first.download_port),
        (State::Active, "super", 4001)
    );
    let moved = SeedPeerRegistration {
        port: 5000,
        ..seed_peer("seed", "10.0.0.1")
    };
    let again = database.register_seed_peer(&moved).await.unwrap().unwrap();
    assert_eq!((again.id, again.port), (first.id, 5000));
    for ip in ["10.0.0.2", "10.0.0.3"] {
        database
            .register_seed_peer(&seed_peer("seed", ip))
            .await
            .unwrap();
    }
    let mut key = seed_peer("seed", "10.0.0.2").key;
    assert_eq!(database.delete_seed_peer(&key).await.unwrap(), 1);
    assert_eq!(database.delete_seed_peer(&key).await.unwrap(), 0);
    // An empty ip means every one of the host.
    key.ip.clear();
    assert_eq!(database.delete_seed_peer(&key).await.unwrap(), 2);
    assert!(database.seed_peers().await.unwrap().is_empty());
}

pub(super) async fn many_registrations_of_one_host_leave_one_row(_: &Backend, url: DatabaseUrl) {
    let databases = [open(&url).await, open(&url).await];
    for round in 0..5 {
        let host = format!("s-{round}");
        let calls = (0..16_u16).map(|call| {
            let (database, told) = (
                databases[usize::from(call % 2)].clone(),
                scheduler(&host, "10.0.0.7", 8000 + call),
            );
            tokio::spawn(async move {
                database
                    .register_scheduler(&told)
                    .await
                    .unwrap()
                    .unwrap()
                    .id
            })
        });
        let mut ids = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            ids.push(call.await.unwrap());
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "all of them got the same row");
    }
    assert_eq!(databases[0].schedulers().await.unwrap().len(), 5);
}

pub(super) async fn json_and_text_come_back_as_written(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let scopes =
        json!({"z": 1, "a": {"y": null, "b": [1, 2.5, "ü🦀"]}, "idc": "it's \"quoted\" ? $1"});
    insert_cluster(&database, "naïve 🦀 ? $1", scopes.clone()).await;
    let clusters = database.scheduler_clusters().await.unwrap();
    assert_eq!(clusters[1].name, "naïve 🦀 ? $1");
    assert_eq!(serde_json::to_value(&clusters[1].scopes).unwrap(), scopes);
    // NULL, the empty text and `null` all mean empty.
    for scopes in [None, Some(String::new()), Some("null".to_owned())] {
        database
            .execute(sql("UPDATE scheduler_cluster SET scopes = ? WHERE id = 1").bind(scopes))
            .await
            .unwrap();
        assert!(
            database.scheduler_clusters().await.unwrap()[0]
                .scopes
                .is_empty()
        );
    }
    database
        .execute(sql(
            "UPDATE scheduler_cluster SET scopes = '[' WHERE id = 1",
        ))
        .await
        .unwrap();
    assert!(matches!(
        database.scheduler_clusters().await,
        Err(DbError::Unusable { .. })
    ));

    insert_application(&database, "broken", "{").await;
    insert_application(&database, "empty", "{}").await;
    insert_application(
        &database,
        "full",
        r#"{"value":3,"urls":[{"regex":"a.*","value":5}]}"#,
    )
    .await;
    insert_application(&database, "go", r#"{"value":2,"urls":null}"#).await;
    let applications = database.applications().await.unwrap();
    let names: Vec<&str> = applications.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        ["empty", "full", "go"],
        "the unreadable one is left out"
    );
    assert_eq!(
        (
            applications[1].priority.value,
            applications[1].priority.urls[0].value
        ),
        (3, 5)
    );
}

pub(super) async fn names_are_unique_and_mind_their_case(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    insert_application(&database, "train", "{}").await;
    insert_application(&database, "Train", "{}").await;
    let again = sql(
        "INSERT INTO application (created_at, updated_at, name, url, priority) VALUES (0, 0, ?, '', '{}')",
    );
    let result = database.execute(again.bind("train")).await;
    assert!(
        matches!(result, Err(DbError::Conflict { .. })),
        "{result:?}"
    );
    let refused = database
        .execute(sql("INSERT INTO no_such_table (id) VALUES (1)"))
        .await;
    assert!(
        matches!(refused, Err(DbError::Refused { .. })),
        "{refused:?}"
    );
}
