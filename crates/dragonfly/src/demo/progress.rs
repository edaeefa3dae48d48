//! What is known of a download while it runs: how much each host has, and where its bytes came from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dragonfly_api::common::v2::{Download, Piece, SchedulingPolicy, TaskType, TrafficType};
use dragonfly_api::dfdaemon::v2::DownloadTaskRequest;
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::download_task_response::Response;
use runtime::grpc::{self, ClientOptions};

use super::cluster::{Cluster, Host};
use super::scrape;

/// Pause between two looks at the seed.
const SEED_PAUSE: Duration = Duration::from_millis(100);

/// Who gave bytes to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Giver {
    /// The HTTP server that has the file.
    Origin,
    /// The seed peer.
    Seed,
    /// The peer with this index.
    Peer(usize),
}

/// How far one host is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Length of the file, once known.
    pub(super) file_bytes: Option<u64>,
    /// Bytes by giver.
    pub(super) from: BTreeMap<Giver, u64>,
}

impl Progress {
    /// Bytes received in all.
    pub(super) fn bytes(&self) -> u64 {
        self.from.values().sum()
    }

    /// Bytes from other peers than the seed.
    pub(super) fn bytes_from_peers(&self) -> u64 {
        self.from
            .iter()
            .filter(|(giver, _)| matches!(giver, Giver::Peer(_)))
            .map(|(_, bytes)| bytes)
            .sum()
    }

    /// Bytes from one giver.
    pub(super) fn bytes_from(&self, giver: Giver) -> u64 {
        self.from.get(&giver).copied().unwrap_or(0)
    }
}

/// The progress of the seed and of all peers, written by the watchers and read by the view.
#[derive(Clone)]
pub(super) struct Board(Arc<Mutex<Standing>>);

/// What a board says at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// Bytes that the seed has read from the origin.
    pub(super) seed_bytes: u64,
    pub(super) peers: Vec<Progress>,
}

impl Board {
    /// A board for so many peers.
    pub(super) fn new(peer_count: usize) -> Self {
        let peers = vec![Progress::default(); peer_count];
        Self(Arc::new(Mutex::new(Standing {
            seed_bytes: 0,
            peers,
        })))
    }

    /// What is known now.
    pub(super) fn read(&self) -> Standing {
        self.lock().clone()
    }

    /// Counters only: they are whole whatever happens to a thread that holds the lock.
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to the board, over and over, how much the seed has read from the origin.
pub(super) async fn watch_seed(cluster: Arc<Cluster>, board: Board) {
    loop {
        if let Some(bytes) = scrape::origin_bytes(cluster.seed.metrics).await {
            board.lock().seed_bytes = bytes;
        }
        tokio::time::sleep(SEED_PAUSE).await;
    }
}

/// Joins the download of `url` on peer `index`, as a second reader of what dfget downloads there, and writes to the board
/// which piece came from whom. Ends when the download does; a failure only leaves the board incomplete, as dfget tells
/// what went wrong.
pub(super) async fn watch(cluster: Arc<Cluster>, index: usize, url: String, board: Board) {
    let Err(error) = follow(&cluster, index, url, &board).await else {
        return;
    };
    tracing::debug!(peer = %cluster.peers[index].name, %error, "the watcher ended early");
}

async fn follow(cluster: &Cluster, index: usize, url: String, board: &Board) -> anyhow::Result<()> {
    /// Longest time until the answer begins: the daemon has to find out how long the file is.
    const START_WAIT: Duration = Duration::from_secs(60);
    let options = ClientOptions {
        request_timeout: Some(START_WAIT),
        ..ClientOptions::default()
    };
    let channel = grpc::channel_unix(&cluster.peers[index].socket, &options)?;
    let mut client =
        DfdaemonDownloadClient::new(channel).max_decoding_message_size(grpc::MESSAGE_LEN_MAX);
    let mut stream = client
        .download_task(DownloadTaskRequest {
            download: Some(as_dfget_asks(url)),
        })
        .await?
        .into_inner();
    while let Some(message) = stream.message().await? {
        match message.response {
            Some(Response::DownloadTaskStartedResponse(started)) => {
                board.lock().peers[index].file_bytes = Some(started.content_length);
            }
            Some(Response::DownloadPieceFinishedResponse(finished)) => {
                if let Some((giver, bytes)) = finished
                    .piece
                    .and_then(|piece| credit(cluster, index, &piece))
                {
                    *board.lock().peers[index].from.entry(giver).or_default() += bytes;
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// The request that `dfget --scheduling-policy always URL` makes (command line sheet, section B2), so that both name the
/// same task.
fn as_dfget_asks(url: String) -> Download {
    Download {
        url,
        r#type: TaskType::Standard.into(),
        tag: Some(String::new()),
        application: Some(String::new()),
        priority: 6,
        scheduling_policy: SchedulingPolicy::Always.into(),
        filtered_query_params: protocol::DEFAULT_FILTERED_QUERY_PARAMS
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
        ..Default::default()
    }
}

fn credit(cluster: &Cluster, receiver: usize, piece: &Piece) -> Option<(Giver, u64)> {
    if piece.traffic_type == Some(TrafficType::BackToSource.into()) {
        return Some((Giver::Origin, piece.length));
    }
    let parent = piece.parent_id.as_deref()?;
    if cluster.seed.owns_peer(parent) {
        return Some((Giver::Seed, piece.length));
    }
    let owner = |host: &Host| host.owns_peer(parent);
    let index = cluster
        .peers
        .iter()
        .position(owner)
        .filter(|index| *index != receiver)?;
    Some((Giver::Peer(index), piece.length))
}
