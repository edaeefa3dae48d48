//! Registered seed peers. Clients newer than 1.0.10 do not register, so the table is usually empty.

use super::{Database, DbError, Row, now_ms, sql};
use crate::model::{HostKey, SeedPeer, SeedPeerClusterId, SeedPeerId, SeedPeerRegistration, State};

/// Most seed peers that a snapshot takes in.
const SEED_PEERS_MAX: i64 = 100_000;

impl Database {
    /// Every seed peer that is not forgotten, in whatever state, oldest first.
    pub(crate) async fn seed_peers(&self) -> Result<Vec<SeedPeer>, DbError> {
        let query = sql("SELECT id, host_name, ip, port, download_port, type, idc, location, state, seed_peer_cluster_id
            FROM seed_peer WHERE is_del = 0 ORDER BY id LIMIT ?");
        self.fetch(query.bind(SEED_PEERS_MAX))
            .await?
            .iter()
            .map(seed_peer)
            .collect()
    }

    /// Writes what a seed peer says of itself, makes it active and returns its row; `None` if somebody deleted it in
    /// the same instant.
    pub(crate) async fn register_seed_peer(
        &self,
        told: &SeedPeerRegistration,
    ) -> Result<Option<SeedPeer>, DbError> {
        let now = now_ms();
        let key = &told.key;
        let update = sql("UPDATE seed_peer SET updated_at = ?, is_del = 0, state = 'active', type = 'super', port = ?,
                download_port = ?, idc = COALESCE(NULLIF(?, ''), idc), location = COALESCE(NULLIF(?, ''), location)
            WHERE host_name = ? AND ip = ? AND seed_peer_cluster_id = ?")
        .bind(now)
        .bind(i64::from(told.port))
        .bind(i64::from(told.download_port))
        .bind(told.idc.as_str())
        .bind(told.location.as_str())
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        let insert = sql("INSERT INTO seed_peer (created_at, updated_at, state, type, port, download_port, idc, location,
                host_name, ip, seed_peer_cluster_id)
            VALUES (?, ?, 'active', 'super', ?, ?, ?, ?, ?, ?, ?)")
        .bind(now)
        .bind(now)
        .bind(i64::from(told.port))
        .bind(i64::from(told.download_port))
        .bind(told.idc.as_str())
        .bind(told.location.as_str())
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        self.upsert(update, insert).await?;
        let query = sql("SELECT id, host_name, ip, port, download_port, type, idc, location, state, seed_peer_cluster_id
            FROM seed_peer WHERE host_name = ? AND ip = ? AND seed_peer_cluster_id = ?")
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        self.fetch(query).await?.first().map(seed_peer).transpose()
    }

    /// Deletes every row that the key matches; an empty ip matches all of the host's. Nothing to delete is fine.
    pub(crate) async fn delete_seed_peer(
        &self,
        key: &HostKey<SeedPeerClusterId>,
    ) -> Result<u64, DbError> {
        let delete = sql("DELETE FROM seed_peer WHERE host_name = ? AND seed_peer_cluster_id = ? AND (ip = ? OR ? = '')")
            .bind(key.hostname.as_str())
            .bind(key.cluster_id.row())
            .bind(key.ip.as_str())
            .bind(key.ip.as_str());
        self.execute(delete).await
    }
}

fn seed_peer(row: &Row) -> Result<SeedPeer, DbError> {
    Ok(SeedPeer {
        id: SeedPeerId::from_row(row.get("id")?),
        cluster_id: SeedPeerClusterId::from_row(row.get("seed_peer_cluster_id")?),
        hostname: row.get("host_name")?,
        ip: row.get("ip")?,
        port: row.port("port")?,
        download_port: row.port("download_port")?,
        kind: row.text("type")?,
        idc: row.text("idc")?,
        location: row.text("location")?,
        state: State::from_column(&row.text("state")?),
    })
}
