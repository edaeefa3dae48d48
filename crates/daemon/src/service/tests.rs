//! The daemon as a whole: started by its own assembly, spoken to over its real socket and ports, with a real HTTP origin
//! and a scheduler that notes what it is told.

use std::collections::HashMap;
use std::path::Path;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use dragonfly_api::common::v2;
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use dragonfly_api::dfdaemon::v2::download_task_response::Response as Kind;
use dragonfly_api::dfdaemon::v2::{
    DeleteLocalTaskRequest, DeleteTaskRequest, DownloadCacheTaskRequest, DownloadTaskRequest,
    DownloadTaskResponse, ListLocalTasksRequest, ListTaskEntriesRequest, StatLocalTaskRequest,
    StatPersistentTaskRequest, StatTaskRequest, SyncHostRequest, SyncPiecesRequest,
};
use protocol::{ByteRange, Digest, DigestAlgorithm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::testing::{DEADLINE, Heard, TestScheduler};

/// More than two pieces.
const CONTENT_LEN: usize = 9_000_000;

fn content() -> Vec<u8> {
    (0..CONTENT_LEN)
        .map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap())
        .collect()
}

/// An HTTP origin with ranges: `/f`, `/hangs` (headers, then nothing), and 404 for the rest.
async fn origin(shutdown: &Shutdown) -> String {
    let bytes = Arc::new(content());
    let file = move |headers: HeaderMap| {
        let bytes = bytes.clone();
        async move {
            let range = headers
                .get(header::RANGE)
                .and_then(|value| value.to_str().ok());
            match range.and_then(|range| ByteRange::parse_header(range, CONTENT_LEN as u64).ok()) {
                None => ([(header::ACCEPT_RANGES, "bytes")], bytes.to_vec()).into_response(),
                Some(range) => {
                    let part = usize::try_from(range.start).unwrap()
                        ..usize::try_from(range.end()).unwrap();
                    let told = range.content_range_header(CONTENT_LEN as u64);
                    let headers = [
                        (header::CONTENT_RANGE, told),
                        (header::ACCEPT_RANGES, "bytes".to_owned()),
                    ];
                    (StatusCode::PARTIAL_CONTENT, headers, bytes[part].to_vec()).into_response()
                }
            }
        }
    };
    let hangs = || async {
        let nothing = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        (
            [(header::CONTENT_LENGTH, "9000000")],
            axum::body::Body::from_stream(nothing),
        )
    };
    let router = Router::new()
        .route("/f", get(file))
        .route("/hangs", get(hangs));
    let listener = listen::tcp("127.0.0.1:0".parse().unwrap(), "origin").unwrap();
    let addr = listener.local_addr().unwrap();
    runtime::http::spawn("origin", listener, router, shutdown);
    format!("http://{addr}")
}

/// A running daemon with its surroundings.
struct Daemon {
    dir: tempfile::TempDir,
    addresses: Addresses,
    scheduler: TestScheduler,
    origin: String,
    shutdown: Shutdown,
    /// Of the origin, which must outlive the daemon.
    around: Shutdown,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more` is added to the configuration.
    async fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scheduler = TestScheduler::start().await;
        let around = Shutdown::new();
        let origin = origin(&around).await;
        let text = format!(
            "scheduler: {{addrs: [\"{}\"]}}\nclientConfig: {{blockList: {{task: {{download: {{urls: [], tags: [forbidden]}}}}}}}}\n",
            scheduler.addr()
        );
        std::fs::write(dir.path().join("dynconfig.yaml"), text).unwrap();
        let shutdown = Shutdown::new();
        let config = config(dir.path(), more);
        let addresses = super::start(config, &shutdown)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            dir,
            addresses,
            scheduler,
            origin,
            shutdown,
            around,
        }
    }

    fn socket(&self) -> DfdaemonDownloadClient<Channel> {
        let channel =
            grpc::channel_unix(&self.addresses.socket, &grpc::ClientOptions::default()).unwrap();
        DfdaemonDownloadClient::new(channel).max_decoding_message_size(64 << 20)
    }

    fn network(&self) -> DfdaemonUploadClient<Channel> {
        let addr = self.addresses.upload.to_string();
        let channel = grpc::channel(&addr, &grpc::ClientOptions::default()).unwrap();
        DfdaemonUploadClient::new(channel).max_decoding_message_size(64 << 20)
    }

    fn download(&self, path: &str) -> v2::Download {
        v2::Download {
            url: format!("{}{path}", self.origin),
            ..Default::default()
        }
    }

    fn out(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn get(&self, download: v2::Download) -> Result<Vec<DownloadTaskResponse>, Status> {
        let request = DownloadTaskRequest {
            download: Some(download),
        };
        collect(self.socket().download_task(request).await?.into_inner()).await
    }

    async fn end(self) {
        let drained = self.shutdown.drain(DEADLINE).await;
        assert_eq!((drained.aborted, drained.failure), (vec![], None));
        self.around.drain(DEADLINE).await;
    }
}

fn config(dir: &Path, more: &str) -> Config {
    let dir = dir.display();
    let text = format!(
        "host: {{ip: 127.0.0.1, hostname: test}}\n\
         storage: {{dir: {dir}/data, server: {{ip: 127.0.0.1, tcpPort: 0}}}}\n\
         health: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
         metrics: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
         stats: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
         upload: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
         proxy: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
         {more}\n"
    );
    let mut config = Config::parse("test.yaml", &text)
        .unwrap_or_else(|error| panic!("{error}"))
        .value;
    config.download.socket_path = format!("{dir}/d.sock").into();
    // However full the disk of the machine is that the tests run on.
    config.gc.disk_high_threshold_percent = 100;
    config.dynconfig.local_file = format!("{dir}/dynconfig.yaml").into();
    config
}

async fn collect(
    mut stream: Streaming<DownloadTaskResponse>,
) -> Result<Vec<DownloadTaskResponse>, Status> {
    let mut messages = Vec::new();
    let all = async {
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Ok::<(), Status>(())
    };
    tokio::time::timeout(DEADLINE, all)
        .await
        .expect("the download ends in time")?;
    Ok(messages)
}

/// The content out of the pieces' messages.
fn assembled(messages: &[DownloadTaskResponse]) -> Vec<u8> {
    let mut bytes = vec![0; CONTENT_LEN];
    for message in messages {
        if let Some(Kind::DownloadPieceFinishedResponse(done)) = &message.response {
            let piece = done.piece.as_ref().unwrap();
            let from = usize::try_from(piece.offset).unwrap();
            bytes[from..][..usize::try_from(piece.length).unwrap()]
                .copy_from_slice(piece.content.as_ref().unwrap());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_over_the_socket_ends_in_a_file() {
    let daemon = Daemon::start().await;
    let digest = Digest::of(DigestAlgorithm::Sha256, &content());
    let download = v2::Download {
        output_path: Some(daemon.out("f")),
        digest: Some(digest.to_string()),
        ..daemon.download("/f")
    };
    let messages = daemon.get(download.clone()).await.unwrap();
    assert_eq!(std::fs::read(daemon.out("f")).unwrap(), content());

    let Some(Kind::DownloadTaskStartedResponse(started)) = &messages[0].response else {
        panic!("the start comes first: {:?}", messages[0]);
    };
    assert_eq!(
        (
            started.content_length,
            started.pieces.len(),
            started.is_finished
        ),
        (CONTENT_LEN as u64, 3, false)
    );
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[0].host_id, "127.0.0.1-test");
    let task_id = messages[0].task_id.clone();

    // A second time everything is here, and the same file is in its place.
    let again = daemon.get(download).await.unwrap();
    let Some(Kind::DownloadTaskStartedResponse(started)) = &again[0].response else {
        panic!("{again:?}")
    };
    assert!(started.is_finished);

    let mut socket = daemon.socket();
    let request = StatLocalTaskRequest {
        task_id: task_id.clone(),
        ..Default::default()
    };
    let local = socket
        .stat_local_task(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (local.content_length, local.piece_length),
        (Some(CONTENT_LEN as u64), Some(4 << 20))
    );
    assert!(
        local.finished_at.is_some() && local.response_header.contains_key("accept-ranges"),
        "{local:?}"
    );
    let list = socket
        .list_local_tasks(ListLocalTasksRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.tasks.len(), 1);
    let delete = DeleteLocalTaskRequest {
        task_id,
        ..Default::default()
    };
    socket.delete_local_task(delete.clone()).await.unwrap();
    assert_eq!(
        socket.stat_local_task(request).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        socket.delete_local_task(delete).await.unwrap_err().code(),
        Code::Internal
    );
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_and_piece_contents_arrive() {
    let daemon = Daemon::start().await;
    let whole = v2::Download {
        need_piece_content: true,
        ..daemon.download("/f")
    };
    assert_eq!(assembled(&daemon.get(whole).await.unwrap()), content());
    let range = Some(v2::Range {
        start: 4_194_303,
        length: 2,
    });
    let part = v2::Download {
        range,
        output_path: Some(daemon.out("part")),
        ..daemon.download("/f")
    };
    let messages = daemon.get(part).await.unwrap();
    assert_eq!(messages.len(), 3, "the start and two pieces");
    assert_eq!(
        std::fs::read(daemon.out("part")).unwrap(),
        content()[4_194_303..4_194_305]
    );
    let beyond = HashMap::from([("range".to_owned(), "bytes=9000000-".to_owned())]);
    let refused = daemon
        .get(v2::Download {
            request_header: beyond,
            ..daemon.download("/f")
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_never_writes_to_a_path() {
    let daemon = Daemon::start().await;
    let victim = daemon.out("victim");
    std::fs::write(&victim, "precious").unwrap();
    let download = v2::Download {
        output_path: Some(victim.clone()),
        overwrite: true,
        need_piece_content: true,
        tag: Some("forbidden".into()),
        ..daemon.download("/f")
    };
    let request = DownloadTaskRequest {
        download: Some(download.clone()),
    };
    let stream = daemon
        .network()
        .download_task(request)
        .await
        .unwrap()
        .into_inner();
    let messages = collect(stream).await.unwrap();
    assert_eq!(
        assembled(&messages),
        content(),
        "the block list is for users of this host"
    );
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    // On the socket the same request meets the block list first.
    assert_eq!(
        daemon.get(download).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_as_v2_tells_them() {
    let daemon = Daemon::start().await;
    let refused = daemon.get(daemon.download("/missing")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    let details: serde_json::Value = serde_json::from_slice(refused.details()).unwrap();
    assert_eq!(details["status_code"], 404);

    let wrong = Digest::of(DigestAlgorithm::Sha256, b"other");
    let download = v2::Download {
        output_path: Some(daemon.out("f")),
        digest: Some(wrong.to_string()),
        ..daemon.download("/f")
    };
    assert_eq!(
        daemon.get(download).await.unwrap_err().code(),
        Code::Internal
    );
    assert!(!Path::new(&daemon.out("f")).exists());

    std::fs::write(daemon.out("there"), "mine").unwrap();
    let download = v2::Download {
        output_path: Some(daemon.out("there")),
        ..daemon.download("/f")
    };
    assert_eq!(
        daemon.get(download).await.unwrap_err().code(),
        Code::AlreadyExists
    );

    let mut socket = daemon.socket();
    let nothing = socket
        .download_task(DownloadTaskRequest { download: None })
        .await
        .unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let cache = socket
        .download_cache_task(DownloadCacheTaskRequest::default())
        .await
        .unwrap_err();
    assert_eq!(cache.code(), Code::Unimplemented);
    assert!(cache.message().contains("download_cache_task"), "{cache}");
    let persistent = daemon
        .network()
        .stat_persistent_task(StatPersistentTaskRequest::default())
        .await
        .unwrap_err();
    assert_eq!(persistent.code(), Code::Unimplemented);
    let request = ListTaskEntriesRequest {
        url: format!("{}/missing", daemon.origin),
        ..Default::default()
    };
    let listing = socket.list_task_entries(request).await.unwrap_err();
    assert!(!listing.details().is_empty(), "{listing}");
    let request = StatLocalTaskRequest {
        task_id: "../../etc/passwd".into(),
        ..Default::default()
    };
    assert_eq!(
        daemon
            .network()
            .stat_local_task(request)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_hear_of_pieces_and_figures() {
    let daemon = Daemon::start().await;
    let task_id = daemon.get(daemon.download("/f")).await.unwrap()[0]
        .task_id
        .clone();
    let mut network = daemon.network();
    let request = SyncPiecesRequest {
        host_id: "child".into(),
        task_id,
        interested_piece_numbers: vec![0, 2, 7],
    };
    let mut pieces = network.sync_pieces(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    for _ in 0..2 {
        let piece = tokio::time::timeout(DEADLINE, pieces.message())
            .await
            .expect("in time")
            .unwrap()
            .unwrap();
        assert_eq!(
            (piece.ip.as_str(), piece.tcp_port),
            ("127.0.0.1", Some(daemon.addresses.pieces.port().into()))
        );
        told.push(piece.number);
    }
    told.sort_unstable();
    assert_eq!(told, [0, 2]);
    let request = SyncPiecesRequest {
        task_id: "unknown".into(),
        ..Default::default()
    };
    assert_eq!(
        network.sync_pieces(request).await.unwrap_err().code(),
        Code::Internal
    );

    let mut hosts = network
        .sync_host(SyncHostRequest::default())
        .await
        .unwrap()
        .into_inner();
    let host = tokio::time::timeout(DEADLINE, hosts.message())
        .await
        .expect("at once")
        .unwrap()
        .unwrap();
    assert!(host.network.unwrap().max_tx_bandwidth > 0);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_hears_of_a_host_that_answers_and_of_its_end() {
    let mut daemon = Daemon::start().await;
    let Heard::AnnounceHost(announced) = daemon.scheduler.hears().await else {
        panic!("an announcement first")
    };
    let host = announced.host.unwrap();
    assert_eq!(
        (host.id.as_str(), host.port),
        ("127.0.0.1-test", i32::from(daemon.addresses.upload.port()))
    );
    // What was announced answers.
    let channel = grpc::channel(
        &format!("{}:{}", host.ip, host.port),
        &grpc::ClientOptions::default(),
    )
    .unwrap();
    for service in [
        "",
        "dfdaemon.v2.DfdaemonDownload",
        "dfdaemon.v2.DfdaemonUpload",
    ] {
        assert!(
            grpc::is_serving(channel.clone(), service, DEADLINE).await,
            "{service}"
        );
    }
    let task = daemon.get(daemon.download("/f")).await.unwrap()[0]
        .task_id
        .clone();
    let stat = StatTaskRequest {
        task_id: task.clone(),
        ..Default::default()
    };
    assert_eq!(
        daemon
            .socket()
            .stat_task(stat)
            .await
            .unwrap()
            .into_inner()
            .id,
        task
    );
    daemon
        .socket()
        .delete_task(DeleteTaskRequest {
            task_id: task.clone(),
            ..Default::default()
        })
        .await
        .unwrap();
    let mut heard = Vec::new();
    while let Some(one) = daemon.scheduler.try_hears() {
        heard.push(one);
    }
    let deleted = heard
        .iter()
        .any(|one| matches!(one, Heard::DeleteTask(request) if request.task_id == task));
    assert!(deleted, "{heard:?}");

    assert!(daemon.shutdown.drain(DEADLINE).await.aborted.is_empty());
    assert!(
        matches!(daemon.scheduler.hears().await, Heard::DeleteHost(request) if request.host_id == "127.0.0.1-test")
    );
    assert!(!daemon.addresses.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_no_scheduler_hears_of_says_what_was_done() {
    let mut daemon = Daemon::start().await;
    let task_id = daemon.get(daemon.download("/f")).await.unwrap()[0]
        .task_id
        .clone();
    let elsewhere = TestScheduler::start().await;
    std::mem::replace(&mut daemon.scheduler, elsewhere)
        .stop()
        .await;
    let request = DeleteTaskRequest {
        task_id,
        ..Default::default()
    };
    let status = daemon.socket().delete_task(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    assert!(
        status
            .message()
            .starts_with("the task is gone from this host"),
        "{}",
        status.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_downloads_only_so_long() {
    let daemon = Daemon::start_with("server: {shutdownTimeout: 200ms}").await;
    let mut socket = daemon.socket();
    let request = DownloadTaskRequest {
        download: Some(daemon.download("/hangs")),
    };
    let mut stream = socket.download_task(request).await.unwrap().into_inner();
    assert!(matches!(
        stream.message().await.unwrap().unwrap().response,
        Some(Kind::DownloadTaskStartedResponse(_))
    ));
    let begin = tokio::time::Instant::now();
    let (drained, ended) = tokio::join!(daemon.shutdown.drain(DEADLINE), stream.message());
    assert!(drained.aborted.is_empty(), "{drained:?}");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    assert!(begin.elapsed() < END_MAX, "{:?}", begin.elapsed());
}

/// Waits until the former daemon of this process has let go of the store: the last task of a gRPC connection may end a
/// moment after its server.
async fn released(dir: &Path) {
    let opened = async {
        while let Err(OpenError::InUse { .. }) = Store::open(dir, storage::Options::default()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, opened)
        .await
        .expect("the store comes free");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_outlives_a_restart() {
    let daemon = Daemon::start().await;
    daemon.get(daemon.download("/f")).await.unwrap();
    let Daemon {
        dir,
        shutdown,
        around,
        origin,
        ..
    } = daemon;
    assert!(shutdown.drain(DEADLINE).await.aborted.is_empty());
    // Nobody but the store can have it: the origin is gone.
    around.drain(DEADLINE).await;
    let shutdown = Shutdown::new();
    released(&dir.path().join("data")).await;
    let addresses = super::start(config(dir.path(), ""), &shutdown)
        .await
        .unwrap();
    let options = grpc::ClientOptions::default();
    let mut socket =
        DfdaemonDownloadClient::new(grpc::channel_unix(&addresses.socket, &options).unwrap());
    let out = dir.path().join("again");
    let download = v2::Download {
        url: format!("{origin}/f"),
        output_path: Some(out.to_str().unwrap().to_owned()),
        ..Default::default()
    };
    let request = DownloadTaskRequest {
        download: Some(download),
    };
    collect(socket.download_task(request).await.unwrap().into_inner())
        .await
        .unwrap();
    assert_eq!(std::fs::read(out).unwrap(), content());
    shutdown.drain(DEADLINE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_rate_are_refused() {
    let more = "download: {server: {requestRateLimit: 1, requestBufferSize: 0}}";
    let daemon = Daemon::start_with(more).await;
    let mut socket = daemon.socket();
    let calls = [
        socket
            .list_local_tasks(ListLocalTasksRequest::default())
            .await,
        socket
            .list_local_tasks(ListLocalTasksRequest::default())
            .await,
    ];
    let codes: Vec<Option<Code>> = calls
        .iter()
        .map(|call| call.as_ref().err().map(Status::code))
        .collect();
    assert_eq!(codes, [None, Some(Code::ResourceExhausted)]);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_time_is_over_go_and_the_scheduler_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut scheduler = TestScheduler::start().await;
    let dynconfig = format!("scheduler: {{addrs: [\"{}\"]}}", scheduler.addr());
    std::fs::write(dir.path().join("dynconfig.yaml"), dynconfig).unwrap();
    let task: protocol::TaskId = "left-over".parse().unwrap();
    {
        let store = Store::open(&dir.path().join("data"), storage::Options::default()).unwrap();
        let geometry = protocol::Geometry::standard(10).unwrap();
        let new = storage::NewTask::new(
            task.clone(),
            protocol::TaskKind::Standard,
            "http://x/",
            geometry,
        );
        drop(store.create_task(new).unwrap());
    }
    let config = config(dir.path(), "gc: {interval: 50ms, policy: {taskTTL: 1ms}}");
    let shutdown = Shutdown::new();
    let addresses = super::start(config, &shutdown).await.unwrap();
    while !matches!(scheduler.hears().await, Heard::DeleteTask(request) if request.task_id == task.as_str())
    {
    }
    let channel = grpc::channel_unix(&addresses.socket, &grpc::ClientOptions::default()).unwrap();
    let request = StatLocalTaskRequest {
        task_id: task.to_string(),
        ..Default::default()
    };
    let gone = DfdaemonDownloadClient::new(channel)
        .stat_local_task(request)
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(shutdown.drain(DEADLINE).await.aborted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_answered() {
    let daemon = Daemon::start().await;
    daemon.get(daemon.download("/f")).await.unwrap();
    for (addr, path, expected) in [
        (daemon.addresses.health, "/healthy", "200 OK"),
        (
            daemon.addresses.metrics,
            "/metrics",
            "dragonfly_client_download_traffic{type=\"BACK_TO_SOURCE\"} 9000000",
        ),
        (
            daemon.addresses.stats,
            "/debug/stats",
            "\"host_id\":\"127.0.0.1-test\"",
        ),
        (
            daemon.addresses.stats,
            "/debug/pprof/profile",
            "404 Not Found",
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(expected), "{path}: {answer}");
    }
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_a_start_is_told_with_its_key() {
    let daemon = Daemon::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        daemon.dir.path().join("dynconfig.yaml"),
        dir.path().join("dynconfig.yaml"),
    )
    .unwrap();
    let try_with = async |change: fn(&mut Config, &Daemon)| {
        let mut config = config(dir.path(), "");
        change(&mut config, &daemon);
        let shutdown = Shutdown::new();
        let error = super::start(config, &shutdown)
            .await
            .expect_err("it cannot start")
            .to_string();
        assert!(shutdown.has_begun(), "what had started ends");
        error
    };
    let taken = try_with(|config, daemon| config.upload.listen = daemon.addresses.upload).await;
    assert!(
        taken.contains("upload.server.port") && taken.contains("in use"),
        "{taken}"
    );
    let taken =
        try_with(|config, daemon| config.storage.tcp_listen = daemon.addresses.pieces).await;
    assert!(taken.contains("storage.server.tcpPort"), "{taken}");
    let taken =
        try_with(|config, daemon| config.download.socket_path = daemon.addresses.socket.clone())
            .await;
    assert!(taken.contains("download.server.socketPath"), "{taken}");
    let group =
        try_with(|config, _| config.download.socket_group = Some("no-such-group".into())).await;
    assert!(group.contains("no-such-group"), "{group}");
    let dir = try_with(|config, _| config.storage.dir = "/proc/no".into()).await;
    assert!(dir.contains("/proc/no"), "{dir}");
    let tls = try_with(|config, _| {
        let file = std::path::PathBuf::from("/no/such.pem");
        config.upload.server_tls = Some(TlsFiles {
            ca_cert: file.clone(),
            cert: file.clone(),
            key: file,
        });
    })
    .await;
    assert!(
        tls.contains("upload.server") && tls.contains("/no/such.pem"),
        "{tls}"
    );
    daemon.end().await;
}
