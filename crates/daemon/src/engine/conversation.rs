//! One peer's AnnouncePeer stream with its scheduler.
//!
//! The session talks through [`Conversation`] and hears through [`SchedulerEvent`]s; the stream itself lives in a task
//! of its own. Every wait is bounded: a scheduler that does not answer is reported as lost, never waited for.
//!
//! Wire facts: `scheduler.v2.Scheduler/AnnouncePeer`. The server ends the stream after a terminal message. A scheduler
//! of this project is recognised by the `dragonfly-mesh` key in its response headers, which it only sends to a peer that
//! sent the same key; it may then push parents at any time.

use std::time::Duration;

use dragonfly_api::common::v2::{Download, Peer, Piece};
use dragonfly_api::errordetails::v2::{Backend, Unknown};
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Kind;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Reply;
use dragonfly_api::scheduler::v2::download_piece_back_to_source_failed_request::Response as SourceFailure;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, DownloadPeerBackToSourceFailedRequest,
    DownloadPeerBackToSourceFinishedRequest, DownloadPeerBackToSourceStartedRequest,
    DownloadPeerFailedRequest, DownloadPeerFinishedRequest, DownloadPeerStartedRequest,
    DownloadPieceBackToSourceFailedRequest, DownloadPieceBackToSourceFinishedRequest,
    DownloadPieceFailedRequest, DownloadPieceFinishedRequest, RegisterPeerRequest,
    ReschedulePeerRequest,
};
use protocol::{HostId, PeerId, TaskId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::session::Event;

/// The gRPC metadata key by which a daemon and a scheduler of this project recognise each other.
pub const MESH_KEY: &str = "dragonfly-mesh";

/// Messages towards the scheduler that may wait; piece reports beyond it are dropped, since they only inform.
const QUEUE_LEN: usize = 1024;

/// How long a scheduler may take to accept the stream and answer the registration for the first time.
///
/// A Dragonfly v2 scheduler sends its headers with its first decision, which takes it up to about 4 s.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long a message that must not be lost may wait for room in the queue.
const SEND_MAX: Duration = Duration::from_secs(5);

/// How long the server may take to end the stream after the terminal message.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// What the scheduler said, or what became of it.
#[derive(Debug)]
pub enum SchedulerEvent {
    /// The stream is open.
    Opened {
        /// The scheduler is one of ours: it pushes parents as they appear.
        mesh: bool,
    },
    /// Fetch from these.
    Parents(Vec<Peer>),
    /// Fetch from the origin.
    BackToSource {
        /// The scheduler's reason.
        reason: String,
    },
    /// The content is empty.
    Empty,
    /// The registration of a peer that already holds everything was noted.
    MetadataOnly,
    /// The stream ended, by the scheduler or by a failure.
    Closed(Option<Status>),
}

/// Who speaks, about what: repeated in every message.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// The host.
    pub host_id: HostId,
    /// The task.
    pub task_id: TaskId,
    /// This download of the task.
    pub peer_id: PeerId,
}

/// The session's end of the stream.
#[derive(Debug)]
pub struct Conversation {
    speaker: Speaker,
    queue: mpsc::Sender<AnnouncePeerRequest>,
}

impl Conversation {
    /// Opens the stream in the background and registers; what follows arrives as [`Event::Scheduler`].
    pub fn open(
        channel: Channel,
        speaker: Speaker,
        download: Download,
        events: mpsc::Sender<Event>,
        tasks: &tokio_util::task::TaskTracker,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_LEN);
        let conversation = Self { speaker, queue };
        conversation.report(Kind::RegisterPeerRequest(RegisterPeerRequest {
            download: Some(download),
        }));
        tasks.spawn(listen(channel, requests, events));
        conversation
    }

    /// Sends a message that only informs; dropped when the scheduler does not keep up.
    fn report(&self, kind: Kind) {
        // A full or closed queue is seen by the listener; a lost piece report costs nothing but a statistic.
        let _ = self.queue.try_send(self.message(kind));
    }

    fn message(&self, kind: Kind) -> AnnouncePeerRequest {
        AnnouncePeerRequest {
            host_id: self.speaker.host_id.to_string(),
            task_id: self.speaker.task_id.to_string(),
            peer_id: self.speaker.peer_id.to_string(),
            request: Some(kind),
        }
    }

    /// Fetching from parents has begun.
    pub fn started(&self) {
        self.report(Kind::DownloadPeerStartedRequest(
            DownloadPeerStartedRequest {},
        ));
    }

    /// Fetching from the origin has begun.
    pub fn back_to_source_started(&self, reason: &str) {
        self.report(Kind::DownloadPeerBackToSourceStartedRequest(
            DownloadPeerBackToSourceStartedRequest {
                description: non_empty(reason),
            },
        ));
    }

    /// A piece came from a parent.
    pub fn piece_finished(&self, piece: Piece) {
        self.report(Kind::DownloadPieceFinishedRequest(
            DownloadPieceFinishedRequest { piece: Some(piece) },
        ));
    }

    /// A piece came from the origin.
    pub fn piece_from_source(&self, piece: Piece) {
        self.report(Kind::DownloadPieceBackToSourceFinishedRequest(
            DownloadPieceBackToSourceFinishedRequest { piece: Some(piece) },
        ));
    }

    /// A parent failed for a piece; the scheduler will not offer that parent again.
    pub fn piece_failed(&self, piece: u32, parent: &PeerId) {
        self.report(Kind::DownloadPieceFailedRequest(
            DownloadPieceFailedRequest {
                piece_number: Some(piece),
                parent_id: parent.to_string(),
                temporary: true,
            },
        ));
    }

    /// The origin answered with an error.
    pub fn source_failed(&self, backend: Option<Backend>, message: &str) {
        let response = match backend {
            Some(backend) => SourceFailure::Backend(backend),
            None => SourceFailure::Unknown(Unknown {
                message: non_empty(message),
            }),
        };
        self.report(Kind::DownloadPieceBackToSourceFailedRequest(
            DownloadPieceBackToSourceFailedRequest {
                piece_number: None,
                response: Some(response),
            },
        ));
    }

    /// These parents did not suffice.
    pub fn reschedule(&self, candidate_parents: Vec<Peer>, reason: &str) {
        self.report(Kind::ReschedulePeerRequest(ReschedulePeerRequest {
            candidate_parents,
            description: non_empty(reason),
        }));
    }

    /// Says how the download ended and leaves the stream to end in the background, within a bound.
    pub async fn finish(self, ending: Ending) {
        let kind = match ending {
            Ending::Finished => Kind::DownloadPeerFinishedRequest(DownloadPeerFinishedRequest {}),
            Ending::FinishedFromSource => Kind::DownloadPeerBackToSourceFinishedRequest(
                DownloadPeerBackToSourceFinishedRequest {},
            ),
            Ending::Failed(reason) => Kind::DownloadPeerFailedRequest(DownloadPeerFailedRequest {
                description: non_empty(&reason),
            }),
            Ending::SourceFailed(reason) => {
                Kind::DownloadPeerBackToSourceFailedRequest(DownloadPeerBackToSourceFailedRequest {
                    description: non_empty(&reason),
                })
            }
        };
        let message = self.message(kind);
        let _ = self.queue.send_timeout(message, SEND_MAX).await;
    }
}

/// How a download ended, in the scheduler's words.
#[derive(Debug)]
pub enum Ending {
    /// Everything wanted is here.
    Finished,
    /// Everything wanted is here, and this peer was reading the origin.
    FinishedFromSource,
    /// It failed.
    Failed(String),
    /// It failed at the origin.
    SourceFailed(String),
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Runs the stream until either side ends it.
async fn listen(
    channel: Channel,
    requests: mpsc::Receiver<AnnouncePeerRequest>,
    events: mpsc::Sender<Event>,
) {
    let ended = converse(channel, requests, &events).await.err();
    // The session may be gone already; then nobody needs to know.
    let _ = events
        .send(Event::Scheduler(SchedulerEvent::Closed(ended)))
        .await;
}

async fn converse(
    channel: Channel,
    requests: mpsc::Receiver<AnnouncePeerRequest>,
    events: &mpsc::Sender<Event>,
) -> Result<(), Status> {
    let mut client = SchedulerClient::new(channel);
    let mut request = Request::new(ReceiverStream::new(requests));
    request
        .metadata_mut()
        .insert(MESH_KEY, tonic::metadata::MetadataValue::from_static("1"));
    let response = tokio::time::timeout(FIRST_ANSWER_MAX, client.announce_peer(request))
        .await
        .map_err(|_| Status::deadline_exceeded("the scheduler did not accept the stream"))??;
    let mesh = response.metadata().contains_key(MESH_KEY);
    let mut replies = response.into_inner();
    let _ = events
        .send(Event::Scheduler(SchedulerEvent::Opened { mesh }))
        .await;
    loop {
        // Once the session has let go, the server has a bounded time to end the stream.
        let reply = if events.is_closed() {
            match tokio::time::timeout(CLOSE_MAX, replies.message()).await {
                Ok(reply) => reply?,
                Err(_) => return Ok(()),
            }
        } else {
            tokio::select! {
                reply = replies.message() => reply?,
                () = events.closed() => continue,
            }
        };
        let Some(reply) = reply else { return Ok(()) };
        if let Some(event) = understand(reply) {
            let _ = events.send(Event::Scheduler(event)).await;
        }
    }
}

fn understand(reply: AnnouncePeerResponse) -> Option<SchedulerEvent> {
    Some(match reply.response? {
        Reply::EmptyTaskResponse(_) => SchedulerEvent::Empty,
        Reply::NormalTaskResponse(normal) => SchedulerEvent::Parents(normal.candidate_parents),
        Reply::NeedBackToSourceResponse(need) => SchedulerEvent::BackToSource {
            reason: need.description.unwrap_or_default(),
        },
        Reply::MetadataOnlyResponse(_) => SchedulerEvent::MetadataOnly,
    })
}
