//! The gRPC edge: `manager.v2.Manager`, health and reflection.

mod convert;
mod status;

use std::sync::Arc;

use dragonfly_api::manager::v2 as wire;
use futures::StreamExt;
use runtime::grpc::{CallCounter, RateLimit};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};
use wire::manager_server::{Manager, ManagerServer};

use crate::db::Database;
use crate::directory::Directory;
use crate::keepalive::KeepAlive;
use crate::metrics::Metrics;
use crate::searcher::Place;
use convert::{Checked, Flat};

/// What the service needs.
pub(crate) struct Parts {
    pub(crate) database: Database,
    pub(crate) directory: Arc<Directory>,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) metrics: Arc<Metrics>,
}

/// The services of the gRPC port, behind counters of their calls and a rate limit of `rate` calls per second. The limit comes
/// first and counts health and reflection calls too, as in Dragonfly v2.
///
/// # Errors
/// The descriptors do not parse.
pub(crate) fn routes(parts: Parts, rate: f64) -> Result<Routes, String> {
    let (_, health) = runtime::grpc::health();
    let descriptors = [
        dragonfly_api::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
    ];
    let services = ["manager.v2.Manager", "grpc.health.v1.Health"];
    let counter = CallCounter::new(parts.metrics.registry(), &descriptors, &services)
        .map_err(|error| error.to_string())?;
    let reflection = runtime::grpc::reflection(&descriptors).map_err(|error| error.to_string())?;
    let routes = Routes::new(ManagerServer::new(Service(parts)))
        .add_service(health)
        .add_service(reflection);
    // What is added last is met first.
    Ok(Routes::from(
        routes
            .into_axum_router()
            .layer(counter)
            .layer(RateLimit::new(rate, 0)),
    ))
}

struct Service(Parts);

#[tonic::async_trait]
impl Manager for Service {
    async fn get_seed_peer(
        &self,
        request: Request<wire::GetSeedPeerRequest>,
    ) -> Result<Response<wire::SeedPeer>, Status> {
        let key = request.into_inner().checked()?;
        let snapshot = self.0.directory.snapshot().await.map_err(status::of_db)?;
        let seed = snapshot
            .seed_peer(&key.hostname, &key.ip, key.cluster_id)
            .ok_or_else(|| status::unknown_host("seed peer", &key.hostname, key.cluster_id))?;
        let cluster = snapshot.seed_peer_cluster(seed.cluster_id);
        let schedulers = snapshot
            .schedulers_for(seed.cluster_id)
            .into_iter()
            .map(|it| it.flat())
            .collect();
        Ok(Response::new(wire::SeedPeer {
            seed_peer_cluster: Some(convert::seed_peer_cluster(cluster)),
            schedulers,
            ..seed.flat()
        }))
    }

    async fn list_seed_peers(
        &self,
        request: Request<wire::ListSeedPeersRequest>,
    ) -> Result<Response<wire::ListSeedPeersResponse>, Status> {
        let asking = request.into_inner().checked()?;
        let snapshot = self.0.directory.snapshot().await.map_err(status::of_db)?;
        let companions = snapshot
            .companions(&asking.hostname, &asking.ip)
            .ok_or_else(|| {
                Status::internal(format!(
                    "record not found: seed peer {:?} is not registered",
                    asking.hostname
                ))
            })?;
        if companions.is_empty() {
            return Err(Status::not_found("no seed peer of the cluster is active"));
        }
        // The nested cluster is there and empty, as Dragonfly v2 sends it.
        let listed = |seed: &crate::model::SeedPeer| wire::SeedPeer {
            seed_peer_cluster: Some(wire::SeedPeerCluster::default()),
            ..seed.flat()
        };
        Ok(Response::new(wire::ListSeedPeersResponse {
            seed_peers: companions.into_iter().map(listed).collect(),
        }))
    }

    async fn update_seed_peer(
        &self,
        request: Request<wire::UpdateSeedPeerRequest>,
    ) -> Result<Response<wire::SeedPeer>, Status> {
        let told = request.into_inner().checked()?;
        let row = self
            .0
            .database
            .register_seed_peer(&told)
            .await
            .map_err(status::of_db)?;
        self.0.directory.changed();
        let row = row.ok_or_else(|| {
            status::unknown_host("seed peer", &told.key.hostname, told.key.cluster_id)
        })?;
        Ok(Response::new(row.flat()))
    }

    async fn delete_seed_peer(
        &self,
        request: Request<wire::DeleteSeedPeerRequest>,
    ) -> Result<Response<()>, Status> {
        let key = request.into_inner().checked()?;
        self.0
            .database
            .delete_seed_peer(&key)
            .await
            .map_err(status::of_db)?;
        self.0.directory.changed();
        Ok(Response::new(()))
    }

    async fn get_scheduler(
        &self,
        request: Request<wire::GetSchedulerRequest>,
    ) -> Result<Response<wire::Scheduler>, Status> {
        let key = request.into_inner().checked()?;
        let snapshot = self.0.directory.snapshot().await.map_err(status::of_db)?;
        let scheduler = snapshot
            .scheduler(&key.hostname, &key.ip, key.cluster_id)
            .ok_or_else(|| status::unknown_host("scheduler", &key.hostname, key.cluster_id))?;
        let with_cluster = |seed: &crate::model::SeedPeer| wire::SeedPeer {
            seed_peer_cluster: Some(convert::seed_peer_cluster(
                snapshot.seed_peer_cluster(seed.cluster_id),
            )),
            ..seed.flat()
        };
        // The seeds' own configuration is not for schedulers: Dragonfly v2 leaves it out here.
        let cluster = convert::scheduler_cluster(snapshot.cluster(scheduler.cluster_id));
        Ok(Response::new(wire::Scheduler {
            scheduler_cluster: Some(wire::SchedulerCluster {
                seed_client_config: Vec::new(),
                ..cluster
            }),
            seed_peers: snapshot
                .seed_peers_for(scheduler.cluster_id)
                .into_iter()
                .map(with_cluster)
                .collect(),
            ..scheduler.flat()
        }))
    }

    async fn update_scheduler(
        &self,
        request: Request<wire::UpdateSchedulerRequest>,
    ) -> Result<Response<wire::Scheduler>, Status> {
        let told = request.into_inner().checked()?;
        let row = self
            .0
            .database
            .register_scheduler(&told)
            .await
            .map_err(status::of_db)?;
        self.0.directory.changed();
        let row = row.ok_or_else(|| {
            status::unknown_host("scheduler", &told.key.hostname, told.key.cluster_id)
        })?;
        Ok(Response::new(row.flat()))
    }

    async fn list_schedulers(
        &self,
        request: Request<wire::ListSchedulersRequest>,
    ) -> Result<Response<wire::ListSchedulersResponse>, Status> {
        let asked = request.into_inner().checked()?;
        self.0.metrics.search(&asked.version, &asked.commit);
        let snapshot = self.0.directory.snapshot().await.map_err(status::of_db)?;
        if let Some(cluster_id) = asked.cluster_id {
            // Dragonfly v2 lets this error leave without a code of its own.
            let offer = snapshot.offer_of(cluster_id).ok_or_else(|| {
                Status::unknown(format!("record not found: scheduler cluster {cluster_id}"))
            })?;
            return Ok(Response::new(convert::schedulers(&[offer], |_| Vec::new())));
        }
        let place = Place {
            ip: &asked.ip,
            hostname: &asked.hostname,
            idc: &asked.idc,
            location: &asked.location,
        };
        let offers = snapshot.search(&place).unwrap_or_else(|_| {
            self.0.metrics.search_failed(&asked.version, &asked.commit);
            debug!(
                hostname = asked.hostname,
                "no cluster has an active scheduler that schedules"
            );
            snapshot.all_active()
        });
        let seeds = |id| {
            snapshot
                .seed_peers_for(id)
                .into_iter()
                .map(Flat::flat)
                .collect()
        };
        Ok(Response::new(convert::schedulers(&offers, seeds)))
    }

    async fn list_applications(
        &self,
        request: Request<wire::ListApplicationsRequest>,
    ) -> Result<Response<wire::ListApplicationsResponse>, Status> {
        request.into_inner().checked()?;
        let snapshot = self.0.directory.snapshot().await.map_err(status::of_db)?;
        if snapshot.applications().is_empty() {
            // Schedulers read this as "none".
            return Err(Status::not_found("there are no applications"));
        }
        let applications = snapshot
            .applications()
            .iter()
            .map(convert::application)
            .collect();
        Ok(Response::new(wire::ListApplicationsResponse {
            applications,
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<wire::KeepAliveRequest>>,
    ) -> Result<Response<()>, Status> {
        let beats = request
            .into_inner()
            .map(|message| message.and_then(Checked::checked));
        match self.0.keep_alive.serve(beats).await {
            Ok(()) => Ok(Response::new(())),
            Err(end) => {
                let status = status::of_stream_end(end);
                if status.code() == tonic::Code::Internal {
                    warn!(reason = status.message(), "keepalive refused");
                }
                Err(status)
            }
        }
    }
}
