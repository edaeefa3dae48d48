//! `dragonfly.local.v1.Local`: what this daemon tells the tools of its host about itself, on the unix socket only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use api::local as proto;
use api::local::giver::Kind as GiverKind;
use api::local::local_server::{Local, LocalServer};
use api::local::neighbour::Kind as NeighbourKind;
use futures::future::join_all;
use protocol::{PeerId, TaskId, TrafficType};
use storage::{PieceRecord, Task};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::errors;
use super::tasks::{Tasks, blocking};
use crate::config::Gc;
use crate::dial::{self, Health};
use crate::dynconfig::Dynconfig;

/// Most givers of a task that are told, the greatest first: a task of a million pieces may have had many.
const GIVERS_MAX: usize = 4096;

/// What is fixed once the daemon serves.
#[derive(Debug)]
pub struct Place {
    /// Names and addresses of what is served.
    pub listeners: Vec<(&'static str, String)>,
    /// `storage.dir`.
    pub storage_dir: PathBuf,
    /// The watermarks.
    pub gc: Gc,
    /// Where the schedulers are known from.
    pub dynconfig: Arc<Dynconfig>,
}

/// The service.
#[derive(Clone)]
pub struct LocalService {
    tasks: Tasks,
    place: Arc<Place>,
}

impl LocalService {
    /// The service as tonic serves it.
    pub fn server(tasks: Tasks, place: Place) -> LocalServer<Self> {
        LocalServer::new(Self {
            tasks,
            place: Arc::new(place),
        })
    }

    async fn store(&self) -> Result<proto::Store, Status> {
        let store = self.tasks.parts.engine.store().clone();
        let usage = blocking(move || store.usage())
            .await?
            .map_err(errors::internal)?;
        Ok(proto::Store {
            dir: self.place.storage_dir.display().to_string(),
            tasks: u64::try_from(usage.tasks).unwrap_or(u64::MAX),
            used_by_tasks: usage.used_by_tasks,
            available: usage.available,
            total: usage.total,
            high_percent: self.place.gc.disk_high_threshold_percent.into(),
            low_percent: self.place.gc.disk_low_threshold_percent.into(),
        })
    }

    /// The manager first, then the schedulers; asked all at once if `check`.
    async fn neighbours(&self, check: bool) -> Vec<proto::Neighbour> {
        let manager = self.place.dynconfig.manager().map(|channel| {
            let address = self.place.dynconfig.source();
            (NeighbourKind::Manager, String::new(), address, channel)
        });
        let schedulers = self.tasks.parts.schedulers.members().into_iter();
        let schedulers = schedulers.map(|(member, handle)| {
            let address = member.addr.to_string();
            (
                NeighbourKind::Scheduler,
                member.name,
                address,
                handle.channel,
            )
        });
        let asked = manager.into_iter().chain(schedulers).map(
            |(kind, name, address, channel)| async move {
                let neighbour = proto::Neighbour {
                    kind: kind.into(),
                    name,
                    address,
                    ..proto::Neighbour::default()
                };
                match check {
                    true => checked(neighbour, channel).await,
                    false => neighbour,
                }
            },
        );
        join_all(asked).await
    }
}

async fn checked(neighbour: proto::Neighbour, channel: Channel) -> proto::Neighbour {
    let found = dial::check_up(channel).await;
    let (serving, trouble) = match found.health {
        Health::Serving => (true, String::new()),
        Health::Silent(reason) => (false, reason),
    };
    proto::Neighbour {
        serving: Some(serving),
        trouble,
        round_trip_us: u64::try_from(found.round_trip.as_micros()).unwrap_or(u64::MAX),
        its_time: found.date.map(millis),
        asked_at: millis(SystemTime::now()),
        ..neighbour
    }
}

#[tonic::async_trait]
impl Local for LocalService {
    async fn explain_task(
        &self,
        request: Request<proto::ExplainTaskRequest>,
    ) -> Result<Response<proto::ExplainTaskResponse>, Status> {
        let id: TaskId = request
            .into_inner()
            .task_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("task id: {error}")))?;
        let engine = self.tasks.parts.engine.clone();
        let wanted = id.clone();
        let mut explained = blocking(move || {
            let task = engine.store().task(&wanted).map_err(errors::internal)?;
            task.map(|task| explain(&task)).ok_or_else(|| {
                Status::not_found(format!(
                    "task {wanted} is not on this host: `dfctl task ls` lists those that are"
                ))
            })
        })
        .await??;
        let parts = &self.tasks.parts;
        explained.in_progress = parts.engine.is_in_progress(&id);
        explained.host_id = parts.identity.host_id.to_string();
        if let Some(scheduler) = parts.schedulers.for_task(&id) {
            explained.scheduler = scheduler.addr.to_string();
        }
        Ok(Response::new(explained))
    }

    async fn describe_daemon(
        &self,
        request: Request<proto::DescribeDaemonRequest>,
    ) -> Result<Response<proto::DescribeDaemonResponse>, Status> {
        let check = request.into_inner().check;
        let (store, neighbours) = tokio::join!(self.store(), self.neighbours(check));
        let identity = &self.tasks.parts.identity;
        let listeners = self.place.listeners.iter();
        Ok(Response::new(proto::DescribeDaemonResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: crate::GIT_COMMIT.to_owned(),
            host_id: identity.host_id.to_string(),
            seed: identity.role == protocol::HostRole::Seed,
            now: millis(SystemTime::now()),
            listeners: listeners
                .map(|(name, address)| proto::Listener {
                    name: (*name).to_owned(),
                    address: address.clone(),
                })
                .collect(),
            store: Some(store?),
            neighbours,
            dynconfig: self.place.dynconfig.source(),
        }))
    }
}

/// What the store knows of a task.
fn explain(task: &Task) -> proto::ExplainTaskResponse {
    let summary = task.summary();
    let times = summary.times;
    let records = task
        .geometry()
        .pieces()
        .filter_map(|span| task.piece_record(span.number));
    proto::ExplainTaskResponse {
        task_id: summary.id.to_string(),
        url: source::Redacted::text(&task.description().url).to_string(),
        content_length: summary.content_length,
        piece_length: summary.piece_length,
        piece_count: task.geometry().piece_count(),
        held_pieces: summary.recorded_pieces,
        held_bytes: summary.recorded_bytes,
        created_at: millis(times.created_at),
        finished_at: times.finished_at.map(millis),
        failed_at: times.failed_at.map(millis),
        prefetched_at: times.prefetched_at.map(millis),
        givers: givers(records),
        origin_use: task.origin_use().map(|used| proto::OriginUse {
            reason: used.reason,
            at: millis(used.at),
        }),
        ..proto::ExplainTaskResponse::default()
    }
}

/// Adds up the pieces by who gave them.
fn givers(records: impl Iterator<Item = PieceRecord>) -> Vec<proto::Giver> {
    let mut givers: BTreeMap<(i32, String), proto::Giver> = BTreeMap::new();
    for record in records {
        let origin = record.origin;
        let kind = match (origin.traffic, &origin.parent) {
            (TrafficType::BackToSource, _) => GiverKind::Origin,
            (TrafficType::LocalPeer, _) => GiverKind::Local,
            (TrafficType::RemotePeer, Some(parent)) if parent.as_str().ends_with("-seed") => {
                GiverKind::Seed
            }
            (TrafficType::RemotePeer, _) => GiverKind::Peer,
        };
        let peer_id = match kind {
            GiverKind::Seed | GiverKind::Peer => origin.parent.as_ref().map(PeerId::to_string),
            _ => None,
        };
        let peer_id = peer_id.unwrap_or_default();
        let began_at = millis(origin.created_at);
        let ended_at = millis(origin.created_at + origin.cost);
        let giver = givers
            .entry((kind.into(), peer_id.clone()))
            .or_insert_with(|| proto::Giver {
                kind: kind.into(),
                host_id: host_of(&peer_id),
                peer_id,
                began_at,
                ..proto::Giver::default()
            });
        giver.pieces += 1;
        giver.bytes += record.length;
        giver.began_at = giver.began_at.min(began_at);
        giver.ended_at = giver.ended_at.max(ended_at);
        giver.cost_ms += u64::try_from(origin.cost.as_millis()).unwrap_or(0);
    }
    let mut givers: Vec<proto::Giver> = givers.into_values().collect();
    givers.sort_by_key(|giver| std::cmp::Reverse(giver.bytes));
    givers.truncate(GIVERS_MAX);
    givers
}

/// The host that a peer id names: `<ip>-<hostname>-<uuid>`, with `-seed` behind it of a seed; empty for an id of another form.
fn host_of(peer_id: &str) -> String {
    const UUID_LEN: usize = 36;
    let (rest, seed) = match peer_id.strip_suffix("-seed") {
        Some(rest) => (rest, "-seed"),
        None => (peer_id, ""),
    };
    let host = rest
        .len()
        .checked_sub(UUID_LEN)
        .and_then(|at| rest.get(..at))
        .and_then(|host| host.strip_suffix('-'));
    host.map(|host| format!("{host}{seed}")).unwrap_or_default()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::{Crc32, HostRole, PieceNumber};
    use storage::PieceOrigin;

    use super::*;

    #[test]
    fn the_host_stands_in_the_peer_id() {
        let ip = "10.0.0.1".parse().unwrap();
        let peer = PeerId::new(ip, "node-1", HostRole::Normal, 7);
        assert_eq!(host_of(peer.as_str()), "10.0.0.1-node-1");
        let seed = PeerId::new(ip, "node-1", HostRole::Seed, 7);
        assert_eq!(host_of(seed.as_str()), "10.0.0.1-node-1-seed");
        for odd in ["", "-seed", "short", "ä".repeat(40).as_str()] {
            assert_eq!(host_of(odd), "", "{odd}");
        }
    }

    #[test]
    fn bytes_are_added_up_by_giver_the_greatest_first() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let record = |number, traffic, parent: Option<&str>, begin, cost| PieceRecord {
            number: PieceNumber(number),
            offset: 0,
            length: 10,
            crc32: Crc32(0),
            origin: PieceOrigin {
                parent: parent.map(|id| PeerId::try_from(id.to_owned()).unwrap()),
                traffic,
                created_at: at(begin),
                cost: Duration::from_millis(cost),
            },
        };
        let givers = givers(
            [
                record(0, TrafficType::BackToSource, None, 100, 50),
                record(1, TrafficType::RemotePeer, Some("a-b-c"), 120, 30),
                record(2, TrafficType::RemotePeer, Some("a-b-c"), 110, 80),
                record(3, TrafficType::RemotePeer, Some("a-b-c-seed"), 1, 2),
            ]
            .into_iter(),
        );
        let told: Vec<_> = givers
            .iter()
            .map(|giver| (giver.kind(), giver.pieces, giver.bytes))
            .collect();
        assert_eq!(
            told,
            [
                (GiverKind::Peer, 2, 20),
                (GiverKind::Origin, 1, 10),
                (GiverKind::Seed, 1, 10)
            ]
        );
        assert_eq!(
            (givers[0].began_at, givers[0].ended_at, givers[0].cost_ms),
            (110, 190, 110)
        );
    }
}
