//! The hosts that a session may fetch from, and how each is spoken to.
//!
//! A parent that the scheduler offers is dialled for a link; if it turns out to be a Dragonfly v2 daemon, its pieces
//! are learnt from its SyncPieces stream instead. A host that dialled us is a parent like any other.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Peer;
use dragonfly_api::dfdaemon::v2::SyncPiecesRequest;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use protocol::{Geometry, HostId, PeerId, PieceNumber, TaskId};
use swarm::NeighbourId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use super::session::Event;
use crate::link::{Link, Target, TaskLinks};

/// Hosts that one session speaks with; further offers are ignored.
const PARENTS_MAX: usize = 128;
/// How long a v2 parent may take to accept SyncPieces.
const SYNC_OPEN_MAX: Duration = Duration::from_secs(3);
/// `download.collectedPieceTimeout`: silence on SyncPieces after which the stream is given up.
const SYNC_SILENCE_MAX: Duration = Duration::from_secs(360);

/// What a v2 parent's SyncPieces stream brought.
#[derive(Debug)]
pub struct V2Event {
    /// The parent.
    pub neighbour: NeighbourId,
    /// What happened.
    pub news: V2News,
}

/// See [`V2Event`].
#[derive(Debug)]
pub enum V2News {
    /// It holds this piece, to be fetched from this address.
    Held(PieceNumber, SocketAddr),
    /// The stream ended; well, or not.
    Ended(Result<(), Status>),
}

/// How a parent is spoken to.
#[derive(Debug)]
enum Way {
    Dialling,
    Mesh(NeighbourId, Arc<Link>),
    V2 {
        neighbour: NeighbourId,
        piece_addr: Option<SocketAddr>,
        sync: CancellationToken,
    },
    Gone,
}

/// One host that was offered or that dialled us.
#[derive(Debug)]
struct Parent {
    /// As the scheduler offered it; absent for a host that dialled us.
    offered: Option<Peer>,
    peer_id: PeerId,
    way: Way,
    doubt: Doubt,
}

/// What speaks against a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// Nothing.
    None,
    /// It sent nothing, or little, for a while. Over with its next bytes, and no reason to do without it while its own
    /// download goes on.
    Quiet,
    /// It does not have what it showed, or sent something else.
    Wrong,
}

/// Where to fetch a piece from.
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// Segments, naming ourselves by this token.
    Mesh { addr: SocketAddr, token: u64 },
    /// Whole pieces.
    V2 { addr: SocketAddr },
}

/// All parents of a session.
#[derive(Debug, Default)]
pub(super) struct Parents {
    hosts: HashMap<HostId, Parent>,
    neighbours: HashMap<NeighbourId, HostId>,
    next: u32,
}

impl Parents {
    /// Notes an offer and dials the host if that is news.
    ///
    /// # Errors
    /// A text that says what is wrong with the offer.
    pub(super) fn offer(&mut self, links: &Arc<TaskLinks>, peer: Peer) -> Result<(), String> {
        let host = peer.host.as_ref().ok_or("a parent without a host")?;
        let target = Target {
            host_id: host.id.parse().map_err(|error| format!("{error}"))?,
            peer_id: peer.id.parse().map_err(|error| format!("{error}"))?,
            addr: upload_addr(&host.ip, host.port)?,
        };
        if target.host_id == links.hub.identity.host_id {
            return Err("the scheduler offered ourselves".to_owned());
        }
        let full = self.hosts.len() >= PARENTS_MAX;
        match self.hosts.get_mut(&target.host_id) {
            Some(parent) if !matches!(parent.way, Way::Gone) => {
                parent.offered = Some(peer);
                return Ok(());
            }
            None if full => return Err("enough parents already".to_owned()),
            _ => {}
        }
        let parent = Parent {
            peer_id: target.peer_id.clone(),
            offered: Some(peer),
            way: Way::Dialling,
            doubt: Doubt::None,
        };
        self.hosts.insert(target.host_id.clone(), parent);
        links.dial(target);
        Ok(())
    }

    /// A link stands. Returns the neighbour's number and the one that it replaces.
    pub(super) fn linked(&mut self, link: Arc<Link>) -> (NeighbourId, Option<NeighbourId>) {
        let neighbour = self.number(&link.host_id);
        let parent = self
            .hosts
            .entry(link.host_id.clone())
            .or_insert_with(|| Parent {
                offered: None,
                peer_id: link.peer_id.clone(),
                way: Way::Gone,
                doubt: Doubt::None,
            });
        parent.peer_id = link.peer_id.clone();
        let before = std::mem::replace(&mut parent.way, Way::Mesh(neighbour, link));
        let replaced = self.release(&before);
        (neighbour, replaced)
    }

    /// The host is a v2 daemon: follows its pieces. Returns the neighbour's number.
    pub(super) fn follow_v2(
        &mut self,
        host_id: &HostId,
        channel: Channel,
        request: SyncPiecesRequest,
        events: mpsc::Sender<Event>,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Option<NeighbourId> {
        let neighbour = self.number(host_id);
        let parent = self.hosts.get_mut(host_id)?;
        let sync = cancel.child_token();
        parent.way = Way::V2 {
            neighbour,
            piece_addr: None,
            sync: sync.clone(),
        };
        tasks.spawn(async move {
            let stopped = sync.cancelled_owned();
            let follow = follow(channel, request, neighbour, &events);
            tokio::select! {
                biased;
                () = stopped => {}
                ended = follow => {
                    let news = V2News::Ended(ended);
                    let _ = events.send(Event::V2(V2Event { neighbour, news })).await;
                }
            }
        });
        Some(neighbour)
    }

    /// Notes where a v2 parent serves pieces.
    pub(super) fn v2_serves_at(&mut self, neighbour: NeighbourId, addr: SocketAddr) {
        if let Some(Way::V2 { piece_addr, .. }) = self.way_mut(neighbour) {
            *piece_addr = Some(addr);
        }
    }

    /// The host is gone. Returns the neighbour that left with it.
    pub(super) fn gone(&mut self, host_id: &HostId) -> Option<NeighbourId> {
        let parent = self.hosts.get_mut(host_id)?;
        let before = std::mem::replace(&mut parent.way, Way::Gone);
        self.release(&before)
    }

    /// As [`Parents::gone`], by number.
    pub(super) fn neighbour_gone(&mut self, neighbour: NeighbourId) -> Option<NeighbourId> {
        let host_id = self.neighbours.get(&neighbour)?.clone();
        self.gone(&host_id)
    }

    fn release(&mut self, way: &Way) -> Option<NeighbourId> {
        let neighbour = match way {
            Way::Mesh(neighbour, _) => *neighbour,
            Way::V2 {
                neighbour, sync, ..
            } => {
                sync.cancel();
                *neighbour
            }
            Way::Dialling | Way::Gone => return None,
        };
        self.neighbours.remove(&neighbour);
        Some(neighbour)
    }

    fn number(&mut self, host_id: &HostId) -> NeighbourId {
        let neighbour = NeighbourId(self.next);
        self.next += 1;
        self.neighbours.insert(neighbour, host_id.clone());
        neighbour
    }

    fn parent(&self, neighbour: NeighbourId) -> Option<&Parent> {
        self.hosts.get(self.neighbours.get(&neighbour)?)
    }

    fn way_mut(&mut self, neighbour: NeighbourId) -> Option<&mut Way> {
        let host_id = self.neighbours.get(&neighbour)?;
        Some(&mut self.hosts.get_mut(host_id)?.way)
    }

    /// The number under which the picker knows a host.
    pub(super) fn neighbour_of(&self, host_id: &HostId) -> Option<NeighbourId> {
        match &self.hosts.get(host_id)?.way {
            Way::Mesh(neighbour, _) | Way::V2 { neighbour, .. } => Some(*neighbour),
            Way::Dialling | Way::Gone => None,
        }
    }

    /// Where to fetch from this neighbour.
    pub(super) fn route(&self, neighbour: NeighbourId) -> Option<Route> {
        match &self.parent(neighbour)?.way {
            Way::Mesh(_, link) => Some(Route::Mesh {
                addr: link.piece_addr,
                token: link.our_token,
            }),
            Way::V2 { piece_addr, .. } => piece_addr.map(|addr| Route::V2 { addr }),
            Way::Dialling | Way::Gone => None,
        }
    }

    /// The link with this neighbour, if it is one of ours.
    pub(super) fn link(&self, neighbour: NeighbourId) -> Option<&Arc<Link>> {
        match &self.parent(neighbour)?.way {
            Way::Mesh(_, link) => Some(link),
            _ => None,
        }
    }

    /// All links with hosts of this project.
    pub(super) fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.hosts.values().filter_map(|parent| match &parent.way {
            Way::Mesh(_, link) => Some(link),
            _ => None,
        })
    }

    /// The neighbour's peer id in this task.
    pub(super) fn peer_id(&self, neighbour: NeighbourId) -> Option<&PeerId> {
        Some(&self.parent(neighbour)?.peer_id)
    }

    /// The neighbour disappointed us.
    pub(super) fn suspect(&mut self, neighbour: NeighbourId, doubt: Doubt) {
        if let Some(parent) = self.parent_mut(neighbour) {
            parent.doubt = parent.doubt.max(doubt);
        }
    }

    /// Bytes came from it.
    pub(super) fn delivered(&mut self, neighbour: NeighbourId) {
        if let Some(parent) = self.parent_mut(neighbour)
            && parent.doubt == Doubt::Quiet
        {
            parent.doubt = Doubt::None;
        }
    }

    fn parent_mut(&mut self, neighbour: NeighbourId) -> Option<&mut Parent> {
        self.hosts.get_mut(self.neighbours.get(&neighbour)?)
    }

    /// Suspects the neighbours of this project that hold a part of the task and are getting no more: called when nobody has
    /// what is wanted. The scheduler takes them for complete.
    pub(super) fn suspect_partial(&mut self, geometry: &Geometry) {
        for parent in self.hosts.values_mut() {
            if let Way::Mesh(_, link) = &parent.way
                && link.known.lock().is_at_rest(geometry)
            {
                parent.doubt = Doubt::Wrong;
            }
        }
    }

    /// Offered parents that are of no use any more: they go back to the scheduler with a request for others.
    pub(super) fn useless(&self) -> Vec<Peer> {
        let useless = |parent: &&Parent| match (parent.doubt, &parent.way) {
            (_, Way::Gone) | (Doubt::Wrong, _) => true,
            (Doubt::Quiet, Way::Mesh(_, link)) => !link.known.lock().goes_on(),
            (Doubt::Quiet, _) => true,
            (Doubt::None, _) => false,
        };
        self.hosts
            .values()
            .filter(useless)
            .filter_map(|parent| parent.offered.clone())
            .collect()
    }

    /// Parents that can be asked now.
    pub(super) fn live(&self) -> usize {
        self.neighbours.len()
    }

    /// Ends what is followed.
    pub(super) fn close(&self) {
        for parent in self.hosts.values() {
            if let Way::V2 { sync, .. } = &parent.way {
                sync.cancel();
            }
        }
    }
}

fn upload_addr(ip: &str, port: i32) -> Result<SocketAddr, String> {
    let ip: IpAddr = ip
        .parse()
        .map_err(|_| format!("a parent whose ip is {ip:?}"))?;
    let port = u16::try_from(port).map_err(|_| format!("a parent whose port is {port}"))?;
    Ok(SocketAddr::new(ip, port))
}

/// The SyncPieces request for these pieces.
pub(super) fn sync_request(
    host_id: &HostId,
    task_id: &TaskId,
    interested: Vec<u32>,
) -> SyncPiecesRequest {
    SyncPiecesRequest {
        host_id: host_id.to_string(),
        task_id: task_id.to_string(),
        interested_piece_numbers: interested,
    }
}

async fn follow(
    channel: Channel,
    request: SyncPiecesRequest,
    neighbour: NeighbourId,
    events: &mpsc::Sender<Event>,
) -> Result<(), Status> {
    let mut client = DfdaemonUploadClient::new(channel);
    let opening = tokio::time::timeout(SYNC_OPEN_MAX, client.sync_pieces(request));
    let mut stream = opening
        .await
        .map_err(|_| Status::deadline_exceeded("the parent did not answer SyncPieces"))??
        .into_inner();
    loop {
        let next = tokio::time::timeout(SYNC_SILENCE_MAX, stream.message());
        let message = next
            .await
            .map_err(|_| Status::deadline_exceeded("the parent fell silent on SyncPieces"))??;
        let Some(piece) = message else { return Ok(()) };
        let addr = upload_addr(&piece.ip, piece.tcp_port.unwrap_or_default())
            .map_err(Status::invalid_argument)?;
        let news = V2News::Held(PieceNumber(piece.number), addr);
        if events
            .send(Event::V2(V2Event { neighbour, news }))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
}
