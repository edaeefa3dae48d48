//! A manager in this process and the clients that talk to it.

use std::net::SocketAddr;
use std::time::Duration;

use dragonfly_api::manager::v2 as wire;
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use wire::manager_client::ManagerClient;

use crate::{Addresses, Config, DatabaseUrl};

/// Free ports, and time limits that do not hold a test up.
pub(super) fn config(url: &DatabaseUrl) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        grpc: any,
        rest: any,
        metrics: Some(any),
        database: url.clone(),
        database_timeout: Duration::from_secs(4),
        ..Config::default()
    }
}

/// A manager on free ports; ended by [`TestManager::stop`].
pub(super) struct TestManager {
    pub(super) at: Addresses,
    shutdown: Shutdown,
}

impl TestManager {
    pub(super) async fn start(url: &DatabaseUrl) -> Self {
        let shutdown = Shutdown::new();
        let at = crate::start(config(url), &shutdown).await.unwrap();
        Self { at, shutdown }
    }

    pub(super) async fn client(&self) -> ManagerClient<Channel> {
        ManagerClient::connect(format!("http://{}", self.at.grpc))
            .await
            .unwrap()
    }

    pub(super) async fn stop(self) {
        let drained = self.shutdown.drain(Duration::from_secs(10)).await;
        assert_eq!(drained.aborted, Vec::<String>::new());
        assert_eq!(drained.failure, None);
    }
}

pub(super) fn update_scheduler(hostname: &str) -> wire::UpdateSchedulerRequest {
    wire::UpdateSchedulerRequest {
        source_type: 0,
        hostname: hostname.to_owned(),
        scheduler_cluster_id: 1,
        idc: None,
        location: None,
        ip: "10.0.0.7".to_owned(),
        port: 8002,
        features: vec!["schedule".to_owned()],
        config: br#"{"manager_keep_alive_interval":5000000000}"#.to_vec(),
    }
}

pub(super) fn get_scheduler(hostname: &str) -> wire::GetSchedulerRequest {
    wire::GetSchedulerRequest {
        source_type: 0,
        hostname: hostname.to_owned(),
        scheduler_cluster_id: 1,
        ip: "10.0.0.7".to_owned(),
    }
}

/// As the public client 1.5.10 asks, as a normal peer.
pub(super) fn list_schedulers() -> wire::ListSchedulersRequest {
    wire::ListSchedulersRequest {
        source_type: 1,
        hostname: "node-3".to_owned(),
        ip: "10.0.0.9".to_owned(),
        idc: None,
        location: None,
        version: "1.5.10".to_owned(),
        commit: "abcdef".to_owned(),
        scheduler_cluster_id: 0,
    }
}

/// A keepalive stream as a scheduler holds it; the test decides when a heartbeat goes.
pub(super) struct Beating {
    beats: mpsc::Sender<wire::KeepAliveRequest>,
    message: wire::KeepAliveRequest,
    answer: tokio::task::JoinHandle<Result<tonic::Response<()>, Status>>,
}

impl Beating {
    fn with(mut client: ManagerClient<Channel>, message: wire::KeepAliveRequest) -> Self {
        let (beats, outgoing) = mpsc::channel(4);
        let answer =
            tokio::spawn(async move { client.keep_alive(ReceiverStream::new(outgoing)).await });
        Self {
            beats,
            message,
            answer,
        }
    }

    pub(super) fn open(
        client: ManagerClient<Channel>,
        source: wire::SourceType,
        hostname: &str,
        ip: &str,
    ) -> Self {
        let (hostname, ip) = (hostname.to_owned(), ip.to_owned());
        let message = wire::KeepAliveRequest {
            source_type: source.into(),
            hostname,
            cluster_id: 1,
            ip,
        };
        Self::with(client, message)
    }

    pub(super) fn in_cluster(
        client: ManagerClient<Channel>,
        hostname: &str,
        cluster_id: u64,
    ) -> Self {
        let (hostname, ip) = (hostname.to_owned(), "10.0.0.7".to_owned());
        Self::with(
            client,
            wire::KeepAliveRequest {
                source_type: 0,
                hostname,
                cluster_id,
                ip,
            },
        )
    }

    pub(super) fn scheduler(client: ManagerClient<Channel>, hostname: &str) -> Self {
        Self::open(
            client,
            wire::SourceType::SchedulerSource,
            hostname,
            "10.0.0.7",
        )
    }

    pub(super) async fn beat(&self) {
        self.beats.send(self.message.clone()).await.unwrap();
    }

    /// Half-closes, as a scheduler that stops does, and waits for the answer.
    pub(super) async fn finish(self) -> Result<(), Status> {
        drop(self.beats);
        self.answer.await.unwrap().map(|_| ())
    }

    /// Waits for the manager to end the stream.
    pub(super) async fn ended(self) -> Status {
        self.answer.await.unwrap().unwrap_err()
    }

    /// Vanishes without a word, as a scheduler that is killed does.
    pub(super) async fn abort(self) {
        self.answer.abort();
        let _ = self.answer.await;
    }
}

/// Whether the scheduler is listed as active.
pub(super) async fn is_active(client: &ManagerClient<Channel>, hostname: &str) -> bool {
    let mut client = client.clone();
    client
        .get_scheduler(get_scheduler(hostname))
        .await
        .is_ok_and(|found| found.into_inner().state == "active")
}
