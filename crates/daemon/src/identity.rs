//! Who this daemon is towards schedulers and other peers.

use std::net::IpAddr;

use protocol::{HostId, HostRole, PeerId};

/// The names and addresses under which others know this host. Fixed once the listeners are bound.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `<ip>-<hostname>`, with `-seed` behind it on a seed peer.
    pub host_id: HostId,
    /// `host.hostname`.
    pub hostname: String,
    /// `host.ip`: the address that others dial.
    pub ip: IpAddr,
    /// Whether `seedPeer.enable` is set.
    pub role: HostRole,
    /// Where this host listens.
    pub ports: Ports,
}

/// The advertised ports. The real ones, also where the configuration says 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// DfdaemonUpload and Swarm gRPC.
    pub upload: u16,
    /// Pieces over TCP.
    pub piece_tcp: u16,
    /// Pieces over QUIC.
    pub piece_quic: u16,
    /// HTTP proxy.
    pub proxy: u16,
}

impl Identity {
    /// The identity of the host `hostname` at `ip`.
    pub fn new(ip: IpAddr, hostname: &str, role: HostRole, ports: Ports) -> Self {
        Self {
            host_id: HostId::new(ip, hostname, role),
            hostname: hostname.to_owned(),
            ip,
            role,
            ports,
        }
    }

    /// A fresh peer id: every download attempt is a peer of its own.
    pub fn new_peer_id(&self) -> PeerId {
        PeerId::new(
            self.ip,
            &self.hostname,
            self.role,
            uuid::Uuid::new_v4().as_u128(),
        )
    }
}
