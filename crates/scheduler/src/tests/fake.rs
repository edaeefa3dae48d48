//! A scheduler on loopback, and peers that speak to it.

use std::net::SocketAddr;
use std::time::Duration;

use dragonfly_api::common::v2::{Download, Host, Network, Peer, Piece, TrafficType};
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Kind;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Reply;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::*;
use prost_wkt_types::{Duration as WireDuration, Timestamp};
use runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::rpc::MESH_KEY;
use crate::{Config, Scheduler};

/// The one task that most tests are about.
pub(super) const TASK: &str = "5844f27a257287e9b734256bb25603d8005422ced8c0377f15063ec11963b25f";

/// Longest wait for anything that must come.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// A running scheduler; the tree it runs in ends with it.
pub(super) struct Running {
    pub(super) scheduler: Scheduler,
    pub(super) shutdown: Shutdown,
    pub(super) client: SchedulerClient<Channel>,
    /// Its files.
    pub(super) folder: tempfile::TempDir,
}

impl Running {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(adapt: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".parse().unwrap();
        config.server.data_dir = folder.path().join("data");
        config.dynconfig_file = folder.path().join("dynconfig.yaml");
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
        adapt(&mut config);
        let shutdown = Shutdown::new();
        let scheduler = Scheduler::start(config, &shutdown).await.unwrap();
        let uri = format!("http://{}", scheduler.grpc_addr());
        let client = SchedulerClient::connect(uri).await.unwrap();
        Self {
            scheduler,
            shutdown,
            client,
            folder,
        }
    }

    /// Announces a host of this name.
    pub(super) async fn announce(&self, host: Host) {
        let request = AnnounceHostRequest {
            host: Some(host),
            interval: None,
        };
        self.client.clone().announce_host(request).await.unwrap();
    }

    /// Opens the stream of peer `name` on host `name`, which is announced, and registers.
    pub(super) async fn register(&self, name: &str, download: Download) -> FakePeer {
        self.announce(host(name)).await;
        FakePeer::open(&self.client, name, Speaks::V2, Some(download))
            .await
            .unwrap()
    }

    /// As [`Running::register`], for a daemon of ours.
    pub(super) async fn register_mesh(&self, name: &str) -> FakePeer {
        self.announce(host(name)).await;
        FakePeer::open(&self.client, name, Speaks::Mesh, Some(download()))
            .await
            .unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    V2,
    Mesh,
}

/// One peer with its stream.
pub(super) struct FakePeer {
    pub(super) name: String,
    requests: mpsc::Sender<AnnouncePeerRequest>,
    replies: Streaming<AnnouncePeerResponse>,
    /// The scheduler said that it is one of ours.
    pub(super) mesh: bool,
}

impl FakePeer {
    /// Opens a stream; a registration is queued before, as the v2 client does.
    pub(super) async fn open(
        client: &SchedulerClient<Channel>,
        name: &str,
        speaks: Speaks,
        download: Option<Download>,
    ) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(1024);
        if let Some(download) = download {
            let kind = Kind::RegisterPeerRequest(RegisterPeerRequest {
                download: Some(download),
            });
            requests.send(message(name, kind)).await.unwrap();
        }
        let mut request = Request::new(ReceiverStream::new(queue));
        if speaks == Speaks::Mesh {
            request
                .metadata_mut()
                .insert(MESH_KEY, "1".parse().unwrap());
        }
        let opened = tokio::time::timeout(SOON, client.clone().announce_peer(request)).await;
        let response = opened.expect("headers come at once")?;
        let mesh = response.metadata().get(MESH_KEY).is_some();
        Ok(Self {
            name: name.to_owned(),
            requests,
            replies: response.into_inner(),
            mesh,
        })
    }

    pub(super) async fn say(&self, kind: Kind) {
        self.requests.send(message(&self.name, kind)).await.unwrap();
    }

    pub(super) async fn send_raw(&self, request: AnnouncePeerRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(super) async fn started(&self) {
        self.say(Kind::DownloadPeerStartedRequest(
            DownloadPeerStartedRequest {},
        ))
        .await;
    }

    pub(super) async fn back_to_source_started(&self) {
        let started = DownloadPeerBackToSourceStartedRequest { description: None };
        self.say(Kind::DownloadPeerBackToSourceStartedRequest(started))
            .await;
    }

    pub(super) async fn source_piece(&self, number: u32) {
        let piece = Some(piece(number, None));
        self.say(Kind::DownloadPieceBackToSourceFinishedRequest(
            DownloadPieceBackToSourceFinishedRequest { piece },
        ))
        .await;
    }

    pub(super) async fn piece(&self, number: u32, parent: &str) {
        let piece = Some(piece(number, Some(parent.to_owned())));
        self.say(Kind::DownloadPieceFinishedRequest(
            DownloadPieceFinishedRequest { piece },
        ))
        .await;
    }

    pub(super) async fn reschedule(&self, candidate_parents: Vec<Peer>) {
        let description = Some("not all pieces are downloaded from parent".to_owned());
        self.say(Kind::ReschedulePeerRequest(ReschedulePeerRequest {
            candidate_parents,
            description,
        }))
        .await;
    }

    pub(super) async fn finished(&self) {
        self.say(Kind::DownloadPeerFinishedRequest(
            DownloadPeerFinishedRequest {},
        ))
        .await;
    }

    pub(super) async fn back_to_source_finished(&self) {
        let finished = DownloadPeerBackToSourceFinishedRequest {};
        self.say(Kind::DownloadPeerBackToSourceFinishedRequest(finished))
            .await;
    }

    /// The next reply, which must come.
    pub(super) async fn reply(&mut self) -> Result<Option<Reply>, Status> {
        let reply = tokio::time::timeout(SOON, self.replies.message())
            .await
            .expect("an answer comes within the bound")?;
        Ok(reply.map(|reply| reply.response.expect("a reply says something")))
    }

    /// The parents that are named next.
    pub(super) async fn parents(&mut self) -> Vec<Peer> {
        match self.reply().await {
            Ok(Some(Reply::NormalTaskResponse(it))) => it.candidate_parents,
            other => panic!("{} expects parents and hears {other:?}", self.name),
        }
    }

    pub(super) async fn parent_names(&mut self) -> Vec<String> {
        let mut names: Vec<String> = self
            .parents()
            .await
            .into_iter()
            .map(|parent| parent.id)
            .collect();
        names.sort();
        names
    }

    /// It is sent to the origin; gives the reason.
    pub(super) async fn origin(&mut self) -> String {
        match self.reply().await {
            Ok(Some(Reply::NeedBackToSourceResponse(it))) => it.description.unwrap_or_default(),
            other => panic!("{} expects the origin and hears {other:?}", self.name),
        }
    }

    /// The server ends the stream well.
    pub(super) async fn closed(&mut self) {
        match self.reply().await {
            Ok(None) => {}
            other => panic!("{} expects the end and hears {other:?}", self.name),
        }
    }

    /// The server ends the stream with an error.
    pub(super) async fn refused(&mut self) -> Status {
        match self.reply().await {
            Err(status) => status,
            other => panic!("{} expects a refusal and hears {other:?}", self.name),
        }
    }

    /// Nothing has come so far: a question that is answered on the same connection afterwards would have come later.
    pub(super) async fn heard_nothing(&mut self, running: &Running) {
        running
            .client
            .clone()
            .list_hosts(ListHostsRequest { r#type: None })
            .await
            .unwrap();
        let next = tokio::time::timeout(Duration::from_millis(50), self.replies.message()).await;
        assert!(next.is_err(), "{} hears {next:?}", self.name);
    }

    /// Reads the origin from beginning to end.
    pub(super) async fn read_origin(mut self) {
        self.origin().await;
        self.back_to_source_started().await;
        self.source_piece(0).await;
        self.back_to_source_finished().await;
        self.closed().await;
    }
}

pub(super) fn message(name: &str, kind: Kind) -> AnnouncePeerRequest {
    AnnouncePeerRequest {
        host_id: host(name).id,
        task_id: TASK.to_owned(),
        peer_id: name.to_owned(),
        request: Some(kind),
    }
}

/// An order for 100 MiB, with the lengths that a daemon finds out before it registers.
pub(super) fn download() -> Download {
    Download {
        url: "https://example.com/file".to_owned(),
        actual_content_length: Some(100 << 20),
        actual_piece_length: Some(4 << 20),
        actual_piece_count: Some(25),
        concurrent_piece_count: Some(8),
        ..Download::default()
    }
}

pub(super) fn host(name: &str) -> Host {
    Host {
        id: format!("host-{name}"),
        hostname: name.to_owned(),
        name: name.to_owned(),
        ip: "127.0.0.1".to_owned(),
        port: 4000,
        download_port: 4000,
        network: Some(Network {
            max_tx_bandwidth: 10_000_000_000,
            ..Network::default()
        }),
        ..Host::default()
    }
}

pub(super) fn seed_host(name: &str, addr: SocketAddr) -> Host {
    Host {
        r#type: 1,
        port: addr.port().into(),
        download_port: addr.port().into(),
        ..host(name)
    }
}

fn piece(number: u32, parent_id: Option<String>) -> Piece {
    let traffic = if parent_id.is_some() {
        TrafficType::RemotePeer
    } else {
        TrafficType::BackToSource
    };
    Piece {
        number,
        parent_id,
        offset: u64::from(number) << 22,
        length: 4 << 20,
        digest: "crc32:3735928559".to_owned(),
        traffic_type: Some(traffic.into()),
        cost: Some(WireDuration {
            seconds: 0,
            nanos: 1_000_000,
        }),
        created_at: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        ..Piece::default()
    }
}

/// Waits until `condition` holds.
pub(super) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
