//! Who is where: the membership tables as one snapshot in memory.
//!
//! Daemons ask for schedulers far more often than membership changes, and every answer needs most of five small tables. So
//! they are read together, kept for [`FRESH_FOR`], and all answers are computed from them. A change made through this
//! manager is visible at once ([`Directory::changed`]); one made through another manager, within a second. That is sharper
//! than Dragonfly v2, whose caches may lag five minutes.
//!
//! While the database is away the last snapshot goes on serving, up to [`STALE_MAX`]: old knowledge beats none, and
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

/// How long a snapshot answers without asking the database. It bounds the load (a handful of queries per second however
/// many daemons ask) and the delay of what other managers change.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// How long the last snapshot may stand in for a database that is away: as long as Dragonfly v2's cache would.
const STALE_MAX: Duration = Duration::from_secs(300);

/// Keeps the snapshot.
pub(crate) struct Directory {
    database: Database,
    kept: Mutex<Option<Kept>>,
    /// Counts changes made through this manager; a snapshot that was begun before the last change is not fresh.
    changes: AtomicU64,
    /// Lets one caller at a time read the database; the others wait for what it brings.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    snapshot: Arc<Snapshot>,
    read_at: Instant,
    changes: u64,
}

impl Directory {
    pub(crate) fn new(database: Database) -> Self {
        Self {
            database,
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
        let (read_at, changes) = (Instant::now(), self.changes.load(Ordering::Acquire));
        match Snapshot::read(&self.database).await {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                self.keep(Kept {
                    snapshot: snapshot.clone(),
                    read_at,
                    changes,
                });
                Ok(snapshot)
            }
            Err(error @ DbError::Unavailable { .. }) => self.stand_in(error),
            Err(error) => Err(error),
        }
    }

    fn fresh(&self) -> Option<Arc<Snapshot>> {
        let kept = self.kept();
        let changes = self.changes.load(Ordering::Acquire);
        kept.filter(|kept| kept.changes == changes && kept.read_at.elapsed() < FRESH_FOR)
            .map(|kept| kept.snapshot)
    }

    /// The last snapshot instead of `error`; kept as if fresh, so that not every caller waits for the database's time limit.
    fn stand_in(&self, error: DbError) -> Result<Arc<Snapshot>, DbError> {
        let Some(kept) = self
            .kept()
            .filter(|kept| kept.snapshot.taken_at.elapsed() < STALE_MAX)
        else {
            return Err(error);
        };
        warn!(%error, age = ?kept.snapshot.taken_at.elapsed(), "answering from the last known membership");
        let changes = self.changes.load(Ordering::Acquire);
        self.keep(Kept {
            read_at: Instant::now(),
            changes,
            snapshot: kept.snapshot.clone(),
        });
        Ok(kept.snapshot)
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
