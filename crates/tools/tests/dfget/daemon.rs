//! A daemon made for the tests: real gRPC over a unix socket, with the two methods that `dfget` calls.
//!
//! What it does is chosen by the last part of the path of the requested URL, see [`answers`] and [`entries`].

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use dragonfly_api::common::v2::{Download, Piece, TrafficType};
use dragonfly_api::dfdaemon::v2::download_task_response::Response as Answer;
use dragonfly_api::dfdaemon::v2::{
    DownloadPieceFinishedResponse, DownloadTaskRequest, DownloadTaskResponse,
    DownloadTaskStartedResponse, Entry, ListTaskEntriesRequest, ListTaskEntriesResponse,
};
use futures::stream::{self, BoxStream, StreamExt};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

/// Length of the pieces it hands out.
pub(crate) const PIECE_LENGTH: usize = 100_000;
/// Length of its file: three pieces and a bit.
pub(crate) const LENGTH: usize = 3 * PIECE_LENGTH + 17;

/// What it gives of the file when asked for "ranged": the end of the first piece to the beginning of the third.
pub(crate) const RANGE: std::ops::Range<usize> = PIECE_LENGTH - 5..2 * PIECE_LENGTH + 1;

/// The file it has.
pub(crate) fn content() -> Vec<u8> {
    (0..LENGTH)
        .map(|index| u8::try_from(index * 7 % 251).unwrap())
        .collect()
}

/// The daemon; stops when dropped.
pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    pub(crate) socket: PathBuf,
    asked: Arc<Mutex<Vec<Download>>>,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("d.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let edge = Edge {
            asked: Arc::clone(&asked),
        };
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let incoming = UnixListenerStream::new(listener).inspect(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let serving = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(edge);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            folder,
            socket,
            asked,
            connections,
            serving,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How many connections were made to it so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The downloads it was asked for so far.
    pub(crate) fn asked(&self) -> Vec<Download> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Answers = BoxStream<'static, Result<DownloadTaskResponse, Status>>;

/// Plays the part that the path names.
fn answers(download: &Download) -> Result<Answers, Status> {
    let part = download
        .url
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut content = content();
    match part.as_str() {
        "missing" => {
            let details =
                br#"{"message":"no such file","header":{"server":"nginx"},"status_code":404}"#;
            return Err(Status::with_details(
                Code::Internal,
                "backend failed",
                details.to_vec().into(),
            ));
        }
        "blocked" => return Err(Status::permission_denied("task is in the block list")),
        "empty" => content.clear(),
        "damaged" => content[LENGTH / 2] ^= 1,
        _ => {}
    }
    let mut pieces = pieces_of(&content, download.need_piece_content);
    let mut started = started(&content, &pieces);
    if part == "reverse" {
        pieces.reverse();
    }
    if part == "short" {
        pieces.pop();
    }
    if part == "ranged"
        && let Some(Answer::DownloadTaskStartedResponse(started)) = &mut started.response
    {
        let (start, length) = (RANGE.start as u64, RANGE.len() as u64);
        started.range = Some(dragonfly_api::common::v2::Range { start, length });
        content = content[RANGE].to_vec();
    }
    let output = download.output_path.clone();
    let output = output.filter(|_| !["elsewhere", "short"].contains(&part.as_str()));
    let overwrite = download.overwrite;
    // The end of the stream: nothing, or why there is no output.
    let placed = stream::once(async move {
        output.and_then(|path| write_output(Path::new(&path), &content, overwrite).err())
    });
    let placed = placed.filter_map(|refused| ready(refused.map(Err)));
    let finished = pieces.into_iter().map(|piece| {
        response(Answer::DownloadPieceFinishedResponse(
            DownloadPieceFinishedResponse { piece: Some(piece) },
        ))
    });
    let finished = finished.collect::<Vec<_>>();
    let all = stream::iter(std::iter::once(started).chain(finished).map(Ok)).chain(placed);
    Ok(match part.as_str() {
        "hang" => all.take(2).chain(stream::pending()).boxed(),
        "breaks" => all
            .take(2)
            .chain(stream::iter([Err(Status::internal("disk is gone"))]))
            .boxed(),
        // Time for others to put something at the output.
        "slow" => all
            .then(|answer| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                answer
            })
            .boxed(),
        _ => all.boxed(),
    })
}

fn write_output(path: &Path, content: &[u8], overwrite: bool) -> Result<(), Status> {
    if path.exists() && !overwrite {
        return Err(Status::already_exists(format!(
            "output path {path:?} exists already: choose another path, remove it, or allow overwriting"
        )));
    }
    std::fs::write(path, content).map_err(|error| Status::internal(error.to_string()))
}

fn started(content: &[u8], pieces: &[Piece]) -> DownloadTaskResponse {
    let pieces = pieces
        .iter()
        .map(|piece| Piece {
            content: None,
            ..piece.clone()
        })
        .collect();
    response(Answer::DownloadTaskStartedResponse(
        DownloadTaskStartedResponse {
            content_length: content.len() as u64,
            pieces,
            ..DownloadTaskStartedResponse::default()
        },
    ))
}

/// The first piece comes from the origin, the second from a seed, the others from a peer.
fn pieces_of(content: &[u8], with_content: bool) -> Vec<Piece> {
    let piece = |(index, bytes): (usize, &[u8])| {
        let (traffic_type, parent_id) = match index {
            0 => (TrafficType::BackToSource, None),
            1 => (
                TrafficType::RemotePeer,
                Some("10.0.0.1-seed0-3f0c1f1e-seed".to_owned()),
            ),
            _ => (
                TrafficType::RemotePeer,
                Some("10.0.0.2-node-3f0c1f1e".to_owned()),
            ),
        };
        Piece {
            number: u32::try_from(index).unwrap(),
            offset: (index * PIECE_LENGTH) as u64,
            length: bytes.len() as u64,
            content: with_content.then(|| bytes.to_vec()),
            traffic_type: Some(traffic_type.into()),
            parent_id,
            ..Piece::default()
        }
    };
    content
        .chunks(PIECE_LENGTH)
        .enumerate()
        .map(piece)
        .collect()
}

fn response(answer: Answer) -> DownloadTaskResponse {
    DownloadTaskResponse {
        host_id: "10.0.0.9-here".to_owned(),
        task_id: "a-task".to_owned(),
        peer_id: "a-peer".to_owned(),
        response: Some(answer),
    }
}

/// The gRPC edge: `dfdaemon.v2.DfdaemonDownload` with `DownloadTask` and `ListTaskEntries`.
#[derive(Clone)]
struct Edge {
    asked: Arc<Mutex<Vec<Download>>>,
}

impl NamedService for Edge {
    const NAME: &'static str = "dfdaemon.v2.DfdaemonDownload";
}

impl Service<http::Request<Body>> for Edge {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method {
            asked: Arc::clone(&self.asked),
        };
        Box::pin(async move {
            match request.uri().path() {
                "/dfdaemon.v2.DfdaemonDownload/DownloadTask" => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    Ok(grpc.server_streaming(method, request).await)
                }
                "/dfdaemon.v2.DfdaemonDownload/ListTaskEntries" => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    Ok(grpc.unary(List, request).await)
                }
                _ => Ok(Status::unimplemented("not in this test").into_http()),
            }
        })
    }
}

struct Method {
    asked: Arc<Mutex<Vec<Download>>>,
}

impl ServerStreamingService<DownloadTaskRequest> for Method {
    type Response = DownloadTaskResponse;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<DownloadTaskRequest>) -> Self::Future {
        let Some(download) = request.into_inner().download else {
            return ready(Err(Status::invalid_argument("no download")));
        };
        self.asked.lock().unwrap().push(download.clone());
        ready(answers(&download).map(Response::new))
    }
}

struct List;

impl UnaryService<ListTaskEntriesRequest> for List {
    type Response = ListTaskEntriesResponse;
    type Future = Ready<Result<Response<ListTaskEntriesResponse>, Status>>;

    fn call(&mut self, request: Request<ListTaskEntriesRequest>) -> Self::Future {
        ready(entries(&request.into_inner().url).map(Response::new))
    }
}

/// The listing of a directory, by the last part of its path.
fn entries(url: &str) -> Result<ListTaskEntriesResponse, Status> {
    let part = url.trim_end_matches('/').rsplit('/').next().unwrap();
    let below: Vec<String> = match part {
        "tree" => [
            "a.json",
            "empty/",
            "sub/",
            "sub/odd%20n%C3%A4me%0A%25.bin",
            "sub/deep/b.json",
        ]
        .map(str::to_owned)
        .to_vec(),
        "many" => (0..1000).map(|number| format!("{number:04}")).collect(),
        "partly" => ["a", "missing", "z"].map(str::to_owned).to_vec(),
        "climbs" => vec!["ok".to_owned(), "../../escaped".to_owned()],
        "odd" => ["ok", "double//slash", "%FF"].map(str::to_owned).to_vec(),
        "hidden" => vec!["ok".to_owned(), "%2e%2e%2f%2e%2e%2fescaped".to_owned()],
        "refused" => return Err(Status::internal("the origin lists no directories")),
        "nothing" | "elsewhere" | "prefix" => Vec::new(),
        "folder" => ["a", "b"].map(str::to_owned).to_vec(),
        _ => return Err(Status::internal("there is no such directory")),
    };
    let mut entries: Vec<Entry> = below
        .into_iter()
        .map(|below| Entry {
            is_dir: below.ends_with('/'),
            url: format!("{url}{below}"),
            content_length: 0,
        })
        .collect();
    if part == "elsewhere" {
        entries.push(Entry {
            url: "file:///etc/passwd".to_owned(),
            ..Entry::default()
        });
    }
    Ok(ListTaskEntriesResponse {
        entries,
        ..ListTaskEntriesResponse::default()
    })
}
