//! Links between daemons of this project: who has which bytes of a task, and who may fetch next.
//!
//! A link carries control only, both ways, whoever dialled it (`proto/swarm.proto`); bytes travel on the piece port.
//! [`Hub`] knows all links of this host. Per task with a link there is one [`Herald`] that tells the children what
//! arrives here, staged when this host is a seed. What the other side tells us goes to the task's session, if one runs.
//!
//! A Dragonfly v2 host answers the call with UNIMPLEMENTED; the session then uses SyncPieces with it.

mod actor;
mod herald;
mod hub;
mod known;
mod service;

/// The generated messages of `proto/swarm.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("dragonfly.swarm.v1");
}

pub use herald::{Herald, HeraldEvent, V2Child};
pub use hub::{Hub, Target, TaskLinks};
pub use known::Known;
pub use service::LinkService;

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use protocol::{Crc32, HostId, PeerId, PieceNumber, SegmentIndex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Frames that may wait for one link. A link that does not drain them is cut: the other side is frozen or gone.
pub(crate) const FRAMES_LEN: usize = 256;

/// Numbers in one list of a frame. With three lists and their digests it takes 3 MiB at most, and gRPC messages have 4; the
/// largest task that there can be ([`Geometry::PIECES_MAX`](protocol::Geometry::PIECES_MAX)) is told in 32 frames.
pub(crate) const NUMBERS_MAX: usize = 1 << 17;

/// One established link of one task.
#[derive(Debug)]
pub struct Link {
    /// The other host.
    pub host_id: HostId,
    /// Its part in this task.
    pub peer_id: PeerId,
    /// Where it serves pieces.
    pub piece_addr: SocketAddr,
    /// It is a seed peer.
    pub seed: bool,
    /// How we name ourselves in segment requests to it.
    pub our_token: u64,
    /// How it names itself in segment requests to us.
    pub its_token: u64,
    /// What it has told us so far.
    pub known: Mutex<Known>,
    /// Ends the link.
    pub cancel: CancellationToken,
    frames: mpsc::Sender<proto::Frame>,
}

impl Link {
    /// Answers a grant: nothing is wanted now.
    pub(crate) fn decline(&self) {
        self.send(proto::frame::Kind::Decline(proto::Decline {}));
    }

    /// Says that this host's own download goes on.
    pub(crate) fn alive(&self) {
        self.send(proto::frame::Kind::Alive(proto::Alive {}));
    }

    /// Says what is wanted of this host, if it is one that does not show everything to everybody. Of more pieces than a
    /// frame can list the rest is waited for like anything else that is dealt out.
    pub(crate) fn want(&self, mut pieces: Vec<u32>, part: bool) {
        if self.seed {
            let part = part && pieces.len() <= NUMBERS_MAX;
            pieces.truncate(NUMBERS_MAX);
            self.send(proto::frame::Kind::Want(proto::Want { pieces, part }));
        }
    }

    /// Sends a frame, or cuts the link when it does not drain.
    pub(crate) fn send(&self, kind: proto::frame::Kind) {
        if self
            .frames
            .try_send(proto::Frame { kind: Some(kind) })
            .is_err()
        {
            self.cancel.cancel();
        }
    }
}

/// What a session hears about a host that it asked the hub to link with, or that dialled us.
#[derive(Debug)]
pub struct LinkEvent {
    /// The other host.
    pub host_id: HostId,
    /// What happened.
    pub news: LinkNews,
}

/// See [`LinkEvent`].
#[derive(Debug)]
pub enum LinkNews {
    /// The link stands; what is known so far is in it.
    Up(Arc<Link>),
    /// First bytes of these segments are there.
    Arriving(Vec<SegmentIndex>),
    /// These pieces are held there.
    Held(Vec<(PieceNumber, Crc32)>),
    /// The digests of these pieces, wherever their bytes are.
    Digests(Vec<(PieceNumber, Crc32)>),
    /// These pieces are gone there.
    Gone(Vec<PieceNumber>),
    /// Its own download goes on.
    Alive,
    /// A slot is kept for us there.
    Granted,
    /// The link is gone.
    Down,
    /// The host is a Dragonfly v2 daemon.
    NotOurs(tonic::transport::Channel),
    /// The host could not be reached or refused the link.
    Failed(String),
}
