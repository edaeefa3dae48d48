//! Clusters of both kinds and their links.

use serde_json::{Value, json};

use super::row::json_text;
use super::schema::{SequencedTable, Session};
use super::{Database, DbError, Row, now_ms, sql};
use crate::model::{
    JsonMap, SchedulerCluster, SchedulerClusterId, SeedPeerCluster, SeedPeerClusterId,
};

/// Most rows of one kind that a snapshot takes in: clusters are made by people, so more means that something is wrong.
const CLUSTERS_MAX: i64 = 10_000;

impl Database {
    /// Every scheduler cluster, oldest first.
    pub(crate) async fn scheduler_clusters(&self) -> Result<Vec<SchedulerCluster>, DbError> {
        let query = sql(
            "SELECT id, name, bio, config, client_config, seed_client_config, scopes, is_default
            FROM scheduler_cluster WHERE is_del = 0 ORDER BY id LIMIT ?",
        );
        self.fetch(query.bind(CLUSTERS_MAX))
            .await?
            .iter()
            .map(scheduler_cluster)
            .collect()
    }

    /// Every seed peer cluster, oldest first.
    pub(crate) async fn seed_peer_clusters(&self) -> Result<Vec<SeedPeerCluster>, DbError> {
        let query = sql(
            "SELECT id, name, bio, config FROM seed_peer_cluster WHERE is_del = 0 ORDER BY id LIMIT ?",
        );
        self.fetch(query.bind(CLUSTERS_MAX))
            .await?
            .iter()
            .map(seed_peer_cluster)
            .collect()
    }

    /// Which seed peers may be triggered by which schedulers.
    pub(crate) async fn cluster_links(
        &self,
    ) -> Result<Vec<(SeedPeerClusterId, SchedulerClusterId)>, DbError> {
        let query = sql("SELECT seed_peer_cluster_id, scheduler_cluster_id FROM seed_peer_cluster_scheduler_cluster
            ORDER BY seed_peer_cluster_id, scheduler_cluster_id LIMIT ?");
        let link = |row: &Row| {
            Ok((
                SeedPeerClusterId::from_row(row.get("seed_peer_cluster_id")?),
                SchedulerClusterId::from_row(row.get("scheduler_cluster_id")?),
            ))
        };
        self.fetch(query.bind(CLUSTERS_MAX))
            .await?
            .iter()
            .map(link)
            .collect()
    }
}

fn scheduler_cluster(row: &Row) -> Result<SchedulerCluster, DbError> {
    Ok(SchedulerCluster {
        id: SchedulerClusterId::from_row(row.get("id")?),
        name: row.get("name")?,
        bio: row.text("bio")?,
        config: row.json_map("config")?,
        client_config: row.json_map("client_config")?,
        seed_client_config: row.json_map("seed_client_config")?,
        scopes: row.json_map("scopes")?,
        is_default: row.get::<i64>("is_default")? != 0,
    })
}

fn seed_peer_cluster(row: &Row) -> Result<SeedPeerCluster, DbError> {
    Ok(SeedPeerCluster {
        id: SeedPeerClusterId::from_row(row.get("id")?),
        name: row.get("name")?,
        bio: row.text("bio")?,
        config: row.json_map("config")?,
    })
}

/// Makes cluster 1 of both kinds, linked, where there is none. Ids, names and values are those of Dragonfly v2:
/// schedulers and daemons name cluster 1 by default.
pub(super) async fn seed_default_clusters(session: &mut Session) -> Result<(), DbError> {
    let first = sql("SELECT id FROM scheduler_cluster ORDER BY id LIMIT 1");
    if session.fetch(first.clone()).await?.is_empty() {
        seed_scheduler_cluster(session).await?;
    }
    if !session
        .fetch(sql("SELECT id FROM seed_peer_cluster ORDER BY id LIMIT 1"))
        .await?
        .is_empty()
    {
        return Ok(());
    }
    let now = now_ms();
    let seed = sql(
        "INSERT INTO seed_peer_cluster (id, created_at, updated_at, name, bio, config)
        VALUES (1, ?, ?, 'cluster-1', '', ?)",
    );
    session
        .execute(
            seed.bind(now)
                .bind(now)
                .bind(json_text(&json!({"load_limit": 2000}))),
        )
        .await?;
    session.skip_ids_in(SequencedTable::SeedPeerCluster).await?;
    let Some(linked_to) = session
        .fetch(first)
        .await?
        .first()
        .map(|row| row.get::<i64>("id"))
        .transpose()?
    else {
        return Ok(());
    };
    session
        .execute(sql(
            "DELETE FROM seed_peer_cluster_scheduler_cluster WHERE seed_peer_cluster_id = 1",
        ))
        .await?;
    let link = sql("INSERT INTO seed_peer_cluster_scheduler_cluster (seed_peer_cluster_id, scheduler_cluster_id)
        VALUES (1, ?)");
    session.execute(link.bind(linked_to)).await
}

async fn seed_scheduler_cluster(session: &mut Session) -> Result<(), DbError> {
    let now = now_ms();
    let config = object(
        json!({"candidate_parent_limit": 3, "filter_parent_limit": 15, "job_rate_limit": 10}),
    );
    let client_config = object(json!({"load_limit": 200}));
    let seed = sql("INSERT INTO scheduler_cluster
        (id, created_at, updated_at, name, bio, config, client_config, seed_client_config, scopes, is_default)
        VALUES (1, ?, ?, 'cluster-1', '', ?, ?, '{}', '{}', 1)");
    session
        .execute(
            seed.bind(now)
                .bind(now)
                .bind(json_text(&config))
                .bind(json_text(&client_config)),
        )
        .await?;
    session.skip_ids_in(SequencedTable::SchedulerCluster).await
}

fn object(value: Value) -> JsonMap {
    match value {
        Value::Object(members) => members.into_iter().collect(),
        _ => JsonMap::new(),
    }
}
