//! One AnnouncePeer stream: messages in order into the brain, answers out, until either side ends it.
//!
//! The stream is driven by whoever reads the response, so that no task of its own is needed and a peer that does not read
//! is not listened to either. Response headers are sent as soon as the call arrives. After a terminal message the server
//! ends the stream and drops the client's half, which a v2 client waits for (scheduler sheet, traps T1 to T3).

use std::sync::Arc;
use std::time::Instant;

use dragonfly_api::common::v2::Download;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Reply;
use dragonfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, EmptyTaskResponse, MetadataOnlyResponse,
    NeedBackToSourceResponse, NormalTaskResponse,
};
use futures::Stream;
use protocol::{HostId, PeerId};
use runtime::shutdown::Shutdown;
use scheduling::{Event, Report, StreamId};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::debug;

use super::convert::{Message, Order, Said, SaidReport};
use super::present::{self, Headers};
use super::status;
use crate::brain::{HostRecord, Outgoing};
use crate::metrics::{Direction, PeerLabels};
use crate::parts::Parts;

/// The gRPC metadata key by which a daemon and a scheduler of this project recognise each other.
pub(crate) const MESH_KEY: &str = "dragonfly-mesh";

/// Peers that one stream may register; clients register one.
const PEERS_PER_STREAM_MAX: usize = 16;

/// An open stream. Dropping it, as happens when the connection is lost, lets its peers leave.
struct Conversation {
    parts: Arc<Parts>,
    shutdown: Shutdown,
    stream: StreamId,
    mesh: bool,
    inbound: Streaming<AnnouncePeerRequest>,
    answers: mpsc::Receiver<Outgoing>,
    peers: Vec<(PeerId, PeerLabels)>,
    /// When the question came that was not answered yet.
    asked: Option<Instant>,
    ended: bool,
}

/// What happens next on a stream.
enum Turn {
    Send(AnnouncePeerResponse),
    End(Result<(), Status>),
}

/// Serves one stream.
pub(crate) fn serve(
    parts: Arc<Parts>,
    shutdown: Shutdown,
    mesh: bool,
    inbound: Streaming<AnnouncePeerRequest>,
) -> impl Stream<Item = Result<AnnouncePeerResponse, Status>> + Send + 'static {
    let (stream, answers) = parts.brain.open_stream();
    parts.metrics.stream_opened();
    let conversation = Conversation {
        parts,
        shutdown,
        stream,
        mesh,
        inbound,
        answers,
        peers: Vec::new(),
        asked: None,
        ended: false,
    };
    futures::stream::unfold(conversation, |mut conversation| async move {
        if conversation.ended {
            return None;
        }
        match conversation.turn().await {
            Turn::Send(reply) => Some((Ok(reply), conversation)),
            Turn::End(Ok(())) => None,
            Turn::End(Err(status)) => {
                conversation.ended = true;
                conversation.parts.metrics.stream_failed();
                debug!(stream = conversation.stream.0, %status, "AnnouncePeer ends");
                Some((Err(status), conversation))
            }
        }
    })
}

impl Conversation {
    /// Listens until there is something to send. Not cancel-safe in the middle of a message, and never cancelled but by the
    /// end of the stream.
    async fn turn(&mut self) -> Turn {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.begun() => {
                    return Turn::End(Err(Status::unavailable("the scheduler is stopping: ask another one")));
                }
                answer = self.answers.recv() => return match answer {
                    Some(outgoing) => self.say(outgoing),
                    None => Turn::End(Ok(())),
                },
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(status) = self.hear(message) {
                            return Turn::End(Err(status));
                        }
                    }
                    Ok(None) => return Turn::End(Ok(())),
                    Err(status) => return Turn::End(Err(status)),
                },
            }
        }
    }

    fn say(&mut self, outgoing: Outgoing) -> Turn {
        if let Some(asked) = self.asked.take() {
            self.parts.metrics.answered(asked.elapsed());
        }
        let reply = match outgoing {
            Outgoing::Empty => Reply::EmptyTaskResponse(EmptyTaskResponse {}),
            Outgoing::MetadataOnly => Reply::MetadataOnlyResponse(MetadataOnlyResponse {}),
            Outgoing::BackToSource(reason) => {
                Reply::NeedBackToSourceResponse(NeedBackToSourceResponse {
                    description: Some(reason.text().to_owned()),
                })
            }
            Outgoing::Parents(drafts) => {
                let brain = &self.parts.brain;
                let candidate_parents = drafts
                    .iter()
                    .map(|draft| present::peer(brain, draft, Headers::Withheld))
                    .collect();
                Reply::NormalTaskResponse(NormalTaskResponse { candidate_parents })
            }
            Outgoing::Refuse(refusal) => return Turn::End(Err(status::of_refusal(&refusal))),
        };
        Turn::Send(AnnouncePeerResponse {
            response: Some(reply),
        })
    }

    fn hear(&mut self, message: AnnouncePeerRequest) -> Result<(), Status> {
        let Message {
            host_id,
            task_id,
            peer_id,
            said,
        } = Message::try_from(message)?;
        match said {
            Said::Register(download) => {
                let order = Order {
                    stream: self.stream,
                    mesh: self.mesh,
                    host_id,
                    task_id,
                    peer_id,
                };
                self.register(order, *download)?;
            }
            Said::Report(said) => {
                if matches!(said.report, Report::Rescheduled { .. }) {
                    self.asked = Some(Instant::now());
                }
                let labels = self
                    .peers
                    .iter()
                    .find(|(known, _)| *known == peer_id)
                    .map(|(_, labels)| *labels);
                self.parts
                    .metrics
                    .reported(&labels.unwrap_or_default(), &said);
                if self.parts.metrics.counts_hosts() {
                    self.count_hosts(&host_id, labels.unwrap_or_default(), &said);
                }
                self.parts.brain.handle(Event::PeerReported {
                    stream: self.stream,
                    peer_id,
                    report: said.report,
                });
            }
            Said::Nonsense(what) => debug!(%peer_id, what, "report ignored"),
        }
        Ok(())
    }

    /// Counts a finished piece for the host that has it now and the one that gave it.
    fn count_hosts(&self, own: &HostId, labels: PeerLabels, said: &SaidReport) {
        let Some((_, bytes)) = said.traffic else {
            return;
        };
        let parent = match &said.report {
            Report::PieceFinished { parent, .. } => parent.as_ref(),
            _ => None,
        };
        let (own, parent) = self.parts.brain.read(|core| {
            let parent = parent.and_then(|parent| core.host(core.find_peer(parent)?.host));
            let record = |host: &scheduling::Host<HostRecord>| host.data.clone();
            (core.find_host(own).map(record), parent.map(record))
        });
        for (direction, host) in [(Direction::Download, own), (Direction::Upload, parent)] {
            if let Some(host) = host {
                self.parts.metrics.moved(direction, &labels, &host, bytes);
            }
        }
    }

    fn register(&mut self, order: Order, download: Download) -> Result<(), Status> {
        let known = self.peers.iter().any(|(known, _)| *known == order.peer_id);
        if !known && self.peers.len() >= PEERS_PER_STREAM_MAX {
            return Err(Status::invalid_argument(
                "too many peers on one stream: open a stream for each download",
            ));
        }
        let registration = order.registration(download, &self.parts.dynconfig.current())?;
        let role = self
            .parts
            .brain
            .read(|core| core.find_host(&registration.host_id).map(|host| host.role));
        let labels = PeerLabels::new(
            registration.priority,
            registration.kind,
            role,
            registration.lengths.content_length,
        );
        self.parts.metrics.registered(&labels);
        self.asked = Some(Instant::now());
        if !known {
            self.peers.push((registration.peer_id.clone(), labels));
        }
        self.parts.brain.handle(Event::PeerRegistered(registration));
        Ok(())
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.parts.metrics.stream_closed();
        let peers = self.peers.iter().map(|(peer_id, _)| peer_id.clone());
        self.parts.brain.end_stream(self.stream, peers);
    }
}
