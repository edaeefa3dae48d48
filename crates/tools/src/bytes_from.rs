//! Bytes by where a daemon had them from.

use dragonfly_api::common::v2::{Piece, TrafficType};
use serde::Serialize;

/// Bytes by where the daemon had them from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BytesFrom {
    /// Fetched from the origin by the daemon of this host.
    pub origin: u64,
    /// From seed peers.
    pub seed: u64,
    /// From other peers.
    pub peers: u64,
    /// The daemon had them already.
    pub local: u64,
}

impl BytesFrom {
    /// Counts a finished piece. The traffic type tells peers from the origin; whether a peer is a seed stands at the end of its id.
    pub(crate) fn add(&mut self, piece: &Piece) {
        let kind = piece
            .traffic_type
            .and_then(|kind| TrafficType::try_from(kind).ok());
        let is_seed = piece
            .parent_id
            .as_deref()
            .is_some_and(|parent| parent.ends_with("-seed"));
        let count = match kind {
            Some(TrafficType::BackToSource) => &mut self.origin,
            Some(TrafficType::LocalPeer) => &mut self.local,
            Some(TrafficType::RemotePeer) if is_seed => &mut self.seed,
            Some(TrafficType::RemotePeer) => &mut self.peers,
            None => return,
        };
        *count += piece.length;
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            origin: self.origin + other.origin,
            seed: self.seed + other.seed,
            peers: self.peers + other.peers,
            local: self.local + other.local,
        }
    }

    /// As `peers 75 %, origin 25 %`, the largest first; empty if nothing is known.
    pub(crate) fn shares(self) -> String {
        let total = self.origin + self.seed + self.peers + self.local;
        let mut shares = [
            ("origin", self.origin),
            ("seed", self.seed),
            ("peers", self.peers),
            ("local", self.local),
        ];
        shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let shares = shares.iter().filter(|&&(_, bytes)| bytes > 0);
        let texts: Vec<String> = shares
            .map(|(name, bytes)| format!("{name} {} %", rounded_percent(*bytes, total)))
            .collect();
        texts.join(", ")
    }
}

fn rounded_percent(part: u64, total: u64) -> u128 {
    (u128::from(part) * 100 + u128::from(total) / 2) / u128::from(total.max(1))
}
