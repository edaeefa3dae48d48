//! The manager and the local file: registering, staying alive, limits, and doing without.

use std::net::SocketAddr;
use std::sync::Arc;

use dragonfly_api::common::v2::{Download, Priority};
use dragonfly_api::manager::v2::manager_server::{Manager, ManagerServer};
use dragonfly_api::manager::v2::*;
use parking_lot::Mutex;
use runtime::shutdown::Shutdown;
use tonic::{Code, Request, Response, Status, Streaming};

use super::fake::{Running, download, eventually, seed_host};
use crate::{Config, ManagerConfig};

/// A manager of one scheduler, and what it heard.
#[derive(Default)]
struct Heard {
    updates: Vec<UpdateSchedulerRequest>,
    keep_alive_count: usize,
    /// How many keepalive calls are cut off after their first message.
    cut: usize,
}

#[derive(Clone, Default)]
struct SmallManager(Arc<Mutex<Heard>>);

fn refuse<R>() -> Result<Response<R>, Status> {
    Err(Status::unimplemented("not needed by a scheduler"))
}

#[tonic::async_trait]
impl Manager for SmallManager {
    async fn get_seed_peer(
        &self,
        _: Request<GetSeedPeerRequest>,
    ) -> Result<Response<SeedPeer>, Status> {
        refuse()
    }

    async fn list_seed_peers(
        &self,
        _: Request<ListSeedPeersRequest>,
    ) -> Result<Response<ListSeedPeersResponse>, Status> {
        refuse()
    }

    async fn update_seed_peer(
        &self,
        _: Request<UpdateSeedPeerRequest>,
    ) -> Result<Response<SeedPeer>, Status> {
        refuse()
    }

    async fn delete_seed_peer(
        &self,
        _: Request<DeleteSeedPeerRequest>,
    ) -> Result<Response<()>, Status> {
        refuse()
    }

    async fn get_scheduler(
        &self,
        request: Request<GetSchedulerRequest>,
    ) -> Result<Response<Scheduler>, Status> {
        let request = request.into_inner();
        let config =
            br#"{"candidate_parent_limit":1,"filter_parent_limit":9,"job_rate_limit":10}"#.to_vec();
        let cluster = SchedulerCluster {
            id: request.scheduler_cluster_id,
            config,
            ..Default::default()
        };
        Ok(Response::new(Scheduler {
            scheduler_cluster: Some(cluster),
            ..Default::default()
        }))
    }

    async fn update_scheduler(
        &self,
        request: Request<UpdateSchedulerRequest>,
    ) -> Result<Response<Scheduler>, Status> {
        self.0.lock().updates.push(request.into_inner());
        Ok(Response::new(Scheduler::default()))
    }

    async fn list_schedulers(
        &self,
        _: Request<ListSchedulersRequest>,
    ) -> Result<Response<ListSchedulersResponse>, Status> {
        refuse()
    }

    async fn list_applications(
        &self,
        _: Request<ListApplicationsRequest>,
    ) -> Result<Response<ListApplicationsResponse>, Status> {
        let forbidden = ApplicationPriority {
            value: Priority::Level1.into(),
            urls: Vec::new(),
        };
        let application = Application {
            name: "blocked".to_owned(),
            priority: Some(forbidden),
            ..Default::default()
        };
        Ok(Response::new(ListApplicationsResponse {
            applications: vec![application],
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<()>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            assert_eq!(message.cluster_id, 3);
            let mut heard = self.0.lock();
            heard.keep_alive_count += 1;
            if heard.cut > 0 {
                heard.cut -= 1;
                return Err(Status::unavailable("the manager restarts"));
            }
        }
        Ok(Response::new(()))
    }
}

fn serve(manager: &SmallManager, shutdown: &Shutdown) -> SocketAddr {
    let listener =
        runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "server.grpc.port").unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::new(ManagerServer::new(manager.clone()));
    let server = runtime::grpc::server(&Default::default()).unwrap();
    runtime::grpc::spawn_tcp("manager", server, routes, listener, shutdown);
    addr
}

fn managed(config: &mut Config, addr: SocketAddr) {
    config.cluster_id = 3;
    config.server.hostname = "scheduler-0".to_owned();
    config.host.idc = Some("east".to_owned());
    let keep_alive_interval = std::time::Duration::from_millis(20);
    config.manager = Some(ManagerConfig {
        addr: addr.to_string(),
        tls: None,
        keep_alive_interval,
    });
}

/// The scheduler follows the manager's limits: of two that have the content, one is named.
async fn names_one_parent(running: &Running) {
    running.register("a", download()).await.read_origin().await;
    let mut b = running.register("b", download()).await;
    b.parents().await;
    b.started().await;
    let mut c = running.register("c", download()).await;
    assert_eq!(c.parents().await.len(), 1);
}

#[tokio::test]
async fn it_registers_stays_alive_and_follows_the_managers_limits() {
    let shutdown = Shutdown::new();
    let manager = SmallManager::default();
    manager.0.lock().cut = 1;
    let addr = serve(&manager, &shutdown);
    let running = Running::with(|config| managed(config, addr)).await;
    eventually(
        "the keepalive is opened again after it was cut off",
        async || manager.0.lock().keep_alive_count > 4,
    )
    .await;
    let update = manager.0.lock().updates[0].clone();
    assert_eq!(
        (update.hostname.as_str(), update.scheduler_cluster_id),
        ("scheduler-0", 3)
    );
    assert_eq!(
        (update.ip.as_str(), update.port),
        ("127.0.0.1", i32::from(running.scheduler.grpc_addr().port()))
    );
    assert_eq!(
        (update.idc.as_deref(), update.features),
        (Some("east"), vec!["schedule".to_owned()])
    );
    assert_eq!(
        update.config,
        br#"{"manager_keep_alive_interval":20000000}"#
    );
    let stored = running.folder.path().join("data/scheduler-dynconfig.json");
    eventually("the configuration is stored", async || stored.exists()).await;
    names_one_parent(&running).await;
    shutdown.begin();
}

#[tokio::test]
async fn it_serves_without_the_manager_and_remembers_over_a_restart() {
    let shutdown = Shutdown::new();
    let manager = SmallManager::default();
    let addr = serve(&manager, &shutdown);
    let first = Running::with(|config| managed(config, addr)).await;
    let stored = first.folder.path().join("data/scheduler-dynconfig.json");
    eventually("the configuration is stored", async || stored.exists()).await;
    // The manager is gone, in the middle of its calls.
    shutdown.drain(std::time::Duration::ZERO).await;
    let data_dir = first.folder.path().join("data");
    let second = Running::with(|config| {
        managed(config, addr);
        config.server.data_dir = data_dir;
    })
    .await;
    names_one_parent(&second).await;
}

#[tokio::test]
async fn applications_of_the_local_file_decide_about_priorities() {
    let running = Running::with(|config| {
        let text = "applications:\n- name: blocked\n  priority: {value: 1}\n";
        std::fs::write(&config.dynconfig_file, text).unwrap();
    })
    .await;
    let (addr, _orders) = super::seeds::upload_port(&running.shutdown, None);
    running.announce(seed_host("s", addr)).await;
    eventually("the seed is available", async || {
        running.scheduler.available_seeds() > 0
    })
    .await;
    let mut blocked = running
        .register(
            "a",
            Download {
                application: Some("blocked".to_owned()),
                ..download()
            },
        )
        .await;
    let status = blocked.refused().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "LEVEL1 peer is forbidden")
    );
}
