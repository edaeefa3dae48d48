//! Who is where: the membership tables as one snapshot in memory.
//!
//! Daemons ask for schedulers far more often than membership changes, and every answer needs most of five small tables. So
//! they are read together, kept for a second, and all answers are computed from them. A change made through this
//! manager is visible at once ([`Directory::changed`]); one made through another manager, within a second. That is sharper
//! than Dragonfly v2, whose caches may lag five minutes.
//!
//! While the database is away the last snapshot goes on serving, up to five minutes: old knowledge beats none, and
//! daemons check each scheduler's health themselves.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::db::{Database, DbError};
use crate::model::{
    Application, Scheduler, SchedulerCluster, SchedulerClusterId, SeedPeer, SeedPeerCluster,
    SeedPeerClusterId, State,
};
use crate::searcher::{Place, Scopes, rank};

/// How long a snapshot serves.
#[derive(Debug, Clone)]
struct Ages {
    /// How long it answers without asking the database. It bounds the load (a handful of queries per second however many
    /// daemons ask) and the delay of what other managers change.
    fresh_for: Duration,
    /// How long the last one may stand in for a database that is away: as long as Dragonfly v2's cache would.
    stale_max: Duration,
    /// How long callers wait for the database while there is a snapshot that can stand in. Daemons give up after 10 s.
    patience: Duration,
    /// How long a snapshot that stands in is not questioned again.
    stand_in_for: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            fresh_for: Duration::from_secs(1),
            stale_max: Duration::from_secs(300),
            patience: Duration::from_secs(3),
            stand_in_for: Duration::from_secs(5),
        }
    }
}

/// Keeps the snapshot.
pub(crate) struct Directory {
    database: Database,
    ages: Ages,
    kept: Mutex<Option<Kept>>,
    /// Counts changes made through this manager; a snapshot that was begun before the last change is not fresh.
    changes: AtomicU64,
    /// Lets one caller at a time read the database; the others wait for what it brings.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    snapshot: Arc<Snapshot>,
    fresh_until: Instant,
    changes: u64,
}

impl Directory {
    pub(crate) fn new(database: Database) -> Self {
        Self {
            database,
            ages: Ages::default(),
            kept: Mutex::default(),
            changes: AtomicU64::new(0),
            reading: tokio::sync::Mutex::new(()),
        }
    }

    /// To be called after every write to the membership tables.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The membership as it is now, or was a moment ago. Cancel-safe.
    ///
    /// # Errors
    /// The database's, when there is no snapshot young enough to stand in.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, DbError> {
        if let Some(kept) = self.fresh() {
            return Ok(kept);
        }
        let _reading = self.reading.lock().await;
        if let Some(kept) = self.fresh() {
            return Ok(kept);
        }
        let (begun_at, changes) = (Instant::now(), self.changes.load(Ordering::Acquire));
        let last = self
            .kept()
            .map(|kept| kept.snapshot)
            .filter(|it| it.taken_at.elapsed() < self.ages.stale_max);
        let reading = Snapshot::read(&self.database);
        let read = match last {
            None => reading.await,
            Some(_) => tokio::time::timeout(self.ages.patience, reading)
                .await
                .unwrap_or_else(|_| {
                    Err(DbError::Unavailable {
                        reason: format!("no answer within {:?}", self.ages.patience),
                    })
                }),
        };
        let (snapshot, fresh_until) = match (read, last) {
            (Ok(snapshot), _) => (Arc::new(snapshot), begun_at + self.ages.fresh_for),
            (Err(error @ DbError::Unavailable { .. }), Some(last)) => {
                warn!(%error, age = ?last.taken_at.elapsed(), "answering from the last known membership");
                (last, Instant::now() + self.ages.stand_in_for)
            }
            (Err(error), _) => return Err(error),
        };
        self.keep(Kept {
            snapshot: snapshot.clone(),
            fresh_until,
            changes,
        });
        Ok(snapshot)
    }

    fn fresh(&self) -> Option<Arc<Snapshot>> {
        let changes = self.changes.load(Ordering::Acquire);
        let is_fresh = |kept: &Kept| kept.changes == changes && Instant::now() < kept.fresh_until;
        self.kept().filter(is_fresh).map(|kept| kept.snapshot)
    }

    fn kept(&self) -> Option<Kept> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn keep(&self, kept: Kept) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }
}

/// The membership at one moment, oldest rows first everywhere.
pub(crate) struct Snapshot {
    taken_at: Instant,
    clusters: Vec<ClusterEntry>,
    schedulers: Vec<Scheduler>,
    seed_peer_clusters: HashMap<SeedPeerClusterId, SeedPeerCluster>,
    seed_peers: Vec<SeedPeer>,
    links: HashSet<(SeedPeerClusterId, SchedulerClusterId)>,
    applications: Vec<Application>,
}

struct ClusterEntry {
    cluster: SchedulerCluster,
    scopes: Scopes,
}

/// A scheduler cluster with those of its schedulers that an answer offers.
pub(crate) struct Offer<'s> {
    pub(crate) cluster: &'s SchedulerCluster,
    pub(crate) schedulers: Vec<&'s Scheduler>,
}

impl Snapshot {
    async fn read(database: &Database) -> Result<Self, DbError> {
        let taken_at = Instant::now();
        let clusters = database.scheduler_clusters().await?;
        let entry = |cluster: SchedulerCluster| ClusterEntry {
            scopes: Scopes::from_json(&cluster.scopes),
            cluster,
        };
        Ok(Self {
            taken_at,
            clusters: clusters.into_iter().map(entry).collect(),
            schedulers: database.schedulers().await?,
            seed_peer_clusters: database
                .seed_peer_clusters()
                .await?
                .into_iter()
                .map(|it| (it.id, it))
                .collect(),
            seed_peers: database.seed_peers().await?,
            links: database.cluster_links().await?.into_iter().collect(),
            applications: database.applications().await?,
        })
    }

    pub(crate) fn applications(&self) -> &[Application] {
        &self.applications
    }

    pub(crate) fn cluster(&self, id: SchedulerClusterId) -> Option<&SchedulerCluster> {
        self.clusters
            .iter()
            .map(|entry| &entry.cluster)
            .find(|cluster| cluster.id == id)
    }

    pub(crate) fn seed_peer_cluster(&self, id: SeedPeerClusterId) -> Option<&SeedPeerCluster> {
        self.seed_peer_clusters.get(&id)
    }

    /// Every scheduler of a cluster, in whatever state; `None` if there is no such cluster.
    pub(crate) fn offer_of(&self, id: SchedulerClusterId) -> Option<Offer<'_>> {
        let cluster = self.cluster(id)?;
        let schedulers = self
            .schedulers
            .iter()
            .filter(|scheduler| scheduler.cluster_id == id)
            .collect();
        Some(Offer {
            cluster,
            schedulers,
        })
    }

    /// The clusters with active schedulers that schedule, the fittest for `place` first.
    ///
    /// # Errors
    /// [`NothingToRank`] if there is none; [`Self::all_active`] is then the answer.
    pub(crate) fn search(&self, place: &Place<'_>) -> Result<Vec<Offer<'_>>, NothingToRank> {
        let active = self.active_by_cluster(Scheduler::schedules);
        let candidates = self
            .clusters
            .iter()
            .filter(|entry| active.contains_key(&entry.cluster.id));
        let ranked = rank(candidates, place, |entry| {
            (&entry.scopes, entry.cluster.is_default)
        });
        if ranked.is_empty() {
            return Err(NothingToRank);
        }
        Ok(ranked
            .into_iter()
            .map(|entry| offer(entry, &active))
            .collect())
    }

    /// Every cluster with its active schedulers, whatever their features.
    pub(crate) fn all_active(&self) -> Vec<Offer<'_>> {
        let active = self.active_by_cluster(|_| true);
        self.clusters
            .iter()
            .map(|entry| offer(entry, &active))
            .collect()
    }

    fn active_by_cluster(
        &self,
        wanted: impl Fn(&Scheduler) -> bool,
    ) -> HashMap<SchedulerClusterId, Vec<&Scheduler>> {
        let mut by_cluster: HashMap<_, Vec<&Scheduler>> = HashMap::new();
        for scheduler in self
            .schedulers
            .iter()
            .filter(|it| it.state == State::Active && wanted(it))
        {
            by_cluster
                .entry(scheduler.cluster_id)
                .or_default()
                .push(scheduler);
        }
        by_cluster
    }

    /// The active seed peers that a scheduler cluster may trigger.
    pub(crate) fn seed_peers_for(&self, id: SchedulerClusterId) -> Vec<&SeedPeer> {
        let linked = |seed: &&SeedPeer| {
            seed.state == State::Active && self.links.contains(&(seed.cluster_id, id))
        };
        self.seed_peers.iter().filter(linked).collect()
    }

    /// The active schedulers that may trigger a seed peer cluster.
    pub(crate) fn schedulers_for(&self, id: SeedPeerClusterId) -> Vec<&Scheduler> {
        let linked = |it: &&Scheduler| {
            it.state == State::Active && self.links.contains(&(id, it.cluster_id))
        };
        self.schedulers.iter().filter(linked).collect()
    }

    /// A scheduler by host name and cluster. Of several (a host that changed its ip leaves its old row behind) the one with
    /// this `ip`, else the oldest.
    pub(crate) fn scheduler(
        &self,
        hostname: &str,
        ip: &str,
        cluster_id: SchedulerClusterId,
    ) -> Option<&Scheduler> {
        let of_host = || {
            self.schedulers
                .iter()
                .filter(|it| it.cluster_id == cluster_id && it.hostname == hostname)
        };
        of_host()
            .find(|it| it.ip == ip)
            .or_else(|| of_host().next())
    }

    /// A seed peer by host name and cluster; as [`Self::scheduler`].
    pub(crate) fn seed_peer(
        &self,
        hostname: &str,
        ip: &str,
        cluster_id: SeedPeerClusterId,
    ) -> Option<&SeedPeer> {
        let of_host = || {
            self.seed_peers
                .iter()
                .filter(|it| it.cluster_id == cluster_id && it.hostname == hostname)
        };
        of_host()
            .find(|it| it.ip == ip)
            .or_else(|| of_host().next())
    }

    /// The active seed peers in the cluster of the seed peer that asks; `None` if it is not registered.
    pub(crate) fn companions(&self, hostname: &str, ip: &str) -> Option<Vec<&SeedPeer>> {
        let asking = self
            .seed_peers
            .iter()
            .find(|it| it.hostname == hostname && it.ip == ip)?;
        let companion =
            |it: &&SeedPeer| it.cluster_id == asking.cluster_id && it.state == State::Active;
        Some(self.seed_peers.iter().filter(companion).collect())
    }
}

/// No cluster has an active scheduler that schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NothingToRank;

fn offer<'s>(
    entry: &'s ClusterEntry,
    active: &HashMap<SchedulerClusterId, Vec<&'s Scheduler>>,
) -> Offer<'s> {
    Offer {
        cluster: &entry.cluster,
        schedulers: active.get(&entry.cluster.id).cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DatabaseUrl;
    use crate::db::Migrate;

    async fn directory(folder: &tempfile::TempDir) -> (Database, Directory) {
        let url = DatabaseUrl::sqlite(folder.path().join("manager.db"));
        let database = Database::open(&url, Duration::from_secs(10), Migrate::Yes)
            .await
            .unwrap();
        (database.clone(), Directory::new(database))
    }

    #[tokio::test]
    async fn an_own_change_is_seen_at_once_and_otherwise_the_snapshot_is_shared() {
        let folder = tempfile::tempdir().unwrap();
        let (_database, directory) = directory(&folder).await;
        let first = directory.snapshot().await.unwrap();
        assert!(Arc::ptr_eq(&first, &directory.snapshot().await.unwrap()));
        directory.changed();
        assert!(!Arc::ptr_eq(&first, &directory.snapshot().await.unwrap()));
    }

    #[tokio::test]
    async fn the_last_snapshot_stands_in_for_a_lost_database_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let (database, mut directory) = directory(&folder).await;
        let last = directory.snapshot().await.unwrap();
        database.close().await;
        directory.changed();
        assert!(Arc::ptr_eq(&last, &directory.snapshot().await.unwrap()));
        assert!(
            directory.fresh().is_some(),
            "not every caller tries the database"
        );
        directory.ages.stale_max = Duration::ZERO;
        directory.changed();
        let refused = directory.snapshot().await.err();
        assert!(
            matches!(refused, Some(DbError::Unavailable { .. })),
            "{refused:?}"
        );
    }
}
