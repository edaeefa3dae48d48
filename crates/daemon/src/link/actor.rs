//! The life of one link: Hello both ways, then frames until either side has no more use for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use protocol::{HostId, HostRole, PeerId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::debug;

use super::herald::{HeraldEvent, pieces_of};
use super::proto::{Alive, Decline, Frame, Grant, Have, Hello, Want, frame::Kind};
use super::{FRAMES_LEN, Known, Link, LinkNews, TaskLinks};

/// Version of the link protocol that we speak.
const VERSION: u32 = 1;
/// A link without any use for either side is closed after this long.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How often that is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(5);

/// Who made the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialler {
    /// This host.
    Us,
    /// The other host.
    Other,
}

/// Our half of a link that is being opened: the Hello is on its way.
pub(super) struct Opening {
    frames: mpsc::Sender<Frame>,
    its_token: u64,
    cancel: CancellationToken,
}

impl Opening {
    /// Our half, and the frames to send; they end when the link does.
    pub(super) fn new(links: &TaskLinks) -> (Self, impl Stream<Item = Frame> + Send + use<>) {
        let (frames, outbound) = mpsc::channel(FRAMES_LEN);
        let opening = Self {
            frames,
            its_token: fastrand::u64(..),
            cancel: links.cancel.child_token(),
        };
        let identity = &links.hub.identity;
        let description = links.task.description();
        let hello = Hello {
            version: VERSION,
            task_id: links.task.id().to_string(),
            host_id: identity.host_id.to_string(),
            peer_id: links.peer_id().to_string(),
            ip: identity.ip.to_string(),
            piece_port: u32::from(identity.ports.piece_tcp),
            content_length: links.geometry.content_length(),
            piece_length: links.geometry.piece_length(),
            token: opening.its_token,
            seed: identity.role == HostRole::Seed,
            public: links.task.summary().times.public_at.is_some(),
            etag: description.etag.clone().unwrap_or_default(),
            last_modified: description.last_modified.clone().unwrap_or_default(),
        };
        let first = Frame {
            kind: Some(Kind::Hello(hello)),
        };
        opening
            .frames
            .try_send(first)
            .expect("a new queue has room");
        let ended = opening.cancel.clone().cancelled_owned();
        let outbound = ReceiverStream::new(outbound).take_until(ended);
        (opening, outbound)
    }

    /// The established link, once the other side has said Hello.
    ///
    /// # Errors
    /// INVALID_ARGUMENT or FAILED_PRECONDITION when its Hello makes no sense here; ALREADY_EXISTS when a link with
    /// that host is kept instead.
    pub(super) fn answered(
        self,
        links: &TaskLinks,
        hello: &Hello,
        remote_ip: IpAddr,
        dialler: Dialler,
    ) -> Result<Arc<Link>, Status> {
        let link = Arc::new(Link {
            host_id: valid_host(links, hello)?,
            peer_id: parse::<PeerId>("peer id", &hello.peer_id)?,
            piece_addr: piece_addr(hello, remote_ip)?,
            seed: hello.seed,
            our_token: hello.token,
            its_token: self.its_token,
            known: Mutex::new(Known::new(&links.geometry)),
            cancel: self.cancel,
            frames: self.frames,
        });
        links.add(link.clone(), dialler)?;
        // Believed of hosts that the scheduler named only, not of whoever calls.
        if hello.public
            && dialler == Dialler::Us
            && links.task.summary().times.public_at.is_none()
            && let Err(error) = links.task.mark(storage::Mark::Public)
        {
            debug!(task_id = %links.task.id(), %error, "task not marked as public");
        }
        Ok(link)
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &str,
    text: &str,
) -> Result<T, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{what}: {error}")))
}

fn valid_host(links: &TaskLinks, hello: &Hello) -> Result<HostId, Status> {
    if hello.version != VERSION {
        return Err(Status::failed_precondition(format!(
            "link version {} is not spoken here, version {VERSION} is",
            hello.version
        )));
    }
    if hello.task_id != links.task.id().as_str() {
        return Err(Status::invalid_argument("Hello names another task"));
    }
    let geometry = &links.geometry;
    let same = hello.content_length == geometry.content_length()
        && hello.piece_length == geometry.piece_length();
    if !same {
        return Err(Status::failed_precondition(format!(
            "content of {} bytes in pieces of {} there, {} in pieces of {} here",
            hello.content_length,
            hello.piece_length,
            geometry.content_length(),
            geometry.piece_length()
        )));
    }
    if is_another_version(links, hello) {
        return Err(Status::failed_precondition(
            "the origin has told another version of the content there than here",
        ));
    }
    let host_id: HostId = parse("host id", &hello.host_id)?;
    if host_id == links.hub.identity.host_id {
        return Err(Status::invalid_argument("a host does not link with itself"));
    }
    Ok(host_id)
}

/// Whether the two contents differ by all that is known of both. Servers behind one name often disagree about ETags, or about times, of
/// one and the same content.
fn is_another_version(links: &TaskLinks, hello: &Hello) -> bool {
    let description = links.task.description();
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let same = |ours: &Option<String>, theirs: &str| match ours.as_deref() {
        Some(ours) if !ours.is_empty() && !theirs.is_empty() => {
            Some(opaque(ours) == opaque(theirs))
        }
        _ => None,
    };
    let told = [
        same(&description.etag, &hello.etag),
        same(&description.last_modified, &hello.last_modified),
    ];
    let mut told = told.into_iter().flatten().peekable();
    told.peek().is_some() && told.all(|same| !same)
}

fn piece_addr(hello: &Hello, remote_ip: IpAddr) -> Result<SocketAddr, Status> {
    let port = u16::try_from(hello.piece_port)
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| Status::invalid_argument("piece port out of range"))?;
    let ip = match hello.ip.as_str() {
        "" => remote_ip,
        ip => parse("ip", ip)?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// Runs a link until it is cut, closed by the other side, or idle.
pub(super) async fn run(links: Arc<TaskLinks>, link: Arc<Link>, mut inbound: Streaming<Frame>) {
    debug!(task_id = %links.task.id(), host_id = %link.host_id, "link up");
    links.tell_surely(HeraldEvent::LinkUp(link.clone())).await;
    links
        .notify(&link.host_id, LinkNews::Up(link.clone()))
        .await;
    let mut last_use = Instant::now();
    let mut check = tokio::time::interval(IDLE_CHECK);
    loop {
        tokio::select! {
            biased;
            () = link.cancel.cancelled() => break,
            frame = inbound.message() => match frame {
                Ok(Some(Frame { kind: Some(kind) })) => {
                    last_use = Instant::now();
                    understand(&links, &link, kind).await;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            },
            _ = check.tick() => {
                if needed(&links, &link) {
                    last_use = Instant::now();
                } else if last_use.elapsed() > IDLE_MAX {
                    break;
                }
            }
        }
    }
    debug!(task_id = %links.task.id(), host_id = %link.host_id, "link down");
    link.cancel.cancel();
    links.hub.uploads.left(link.its_token);
    links
        .tell_surely(HeraldEvent::LinkDown(link.its_token))
        .await;
    if links.remove(&link) {
        links.notify(&link.host_id, LinkNews::Down).await;
    }
}

/// Whether either side may still want bytes of the other.
fn needed(links: &TaskLinks, link: &Link) -> bool {
    links.has_session() || !link.known.lock().is_whole()
}

async fn understand(links: &TaskLinks, link: &Link, kind: Kind) {
    match kind {
        // A second Hello says nothing new.
        Kind::Hello(_) => {}
        Kind::Have(have) => note(links, link, &have).await,
        Kind::Grant(Grant {}) => {
            if links.has_session() {
                links.notify(&link.host_id, LinkNews::Granted).await;
            } else {
                link.send(Kind::Decline(Decline {}));
            }
        }
        Kind::Alive(Alive {}) => {
            link.known.lock().note_alive();
            links.notify(&link.host_id, LinkNews::Alive).await;
        }
        Kind::Decline(Decline {}) => links.hub.uploads.declined(link.its_token),
        Kind::Want(Want { pieces, part }) => {
            let event = HeraldEvent::Wants {
                token: link.its_token,
                pieces: pieces_of(&links.geometry, &pieces),
                part,
            };
            links.tell_surely(event).await;
        }
        Kind::Drop(drop) => {
            let gone = link.known.lock().note_gone(&drop.pieces);
            links.notify(&link.host_id, LinkNews::Gone(gone)).await;
        }
    }
}

async fn note(links: &TaskLinks, link: &Link, have: &Have) {
    let (arriving, held, digests, millionths) = {
        let mut known = link.known.lock();
        let arriving = known.note_arriving(&have.arriving);
        let held = known.note_held(&have.held, &have.held_crc32);
        let digests = known.note_digests(&have.known, &have.known_crc32);
        (arriving, held, digests, known.millionths())
    };
    links.hub.uploads.holds(link.its_token, millionths);
    links.tell(HeraldEvent::ChildShows {
        token: link.its_token,
        arriving: arriving.clone(),
        held: held.iter().map(|(piece, _)| *piece).collect(),
    });
    if !digests.is_empty() {
        links
            .notify(&link.host_id, LinkNews::Digests(digests))
            .await;
    }
    if !arriving.is_empty() {
        links
            .notify(&link.host_id, LinkNews::Arriving(arriving))
            .await;
    }
    if !held.is_empty() {
        links.notify(&link.host_id, LinkNews::Held(held)).await;
    }
}
