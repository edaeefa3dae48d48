//! Lists of peers in no particular order, from which a member is removed, or picked at random, at no cost.
//!
//! Each peer remembers its place in each list it stands in.

use fastrand::Rng;

use crate::arena::Arena;
use crate::model::{Peer, PeerKey, PeerMark};

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roster {
    /// `Host::peers`.
    Host,
    /// `Task::peers`.
    Task,
    /// `Task::serving`.
    Serving,
    /// `Task::holders`.
    Holders,
    /// `Task::mesh`.
    Mesh,
}

/// Where a peer stands in each list.
#[derive(Debug)]
pub(crate) struct Places([u32; 5]);

const NOWHERE: u32 = u32::MAX;

impl Default for Places {
    fn default() -> Self {
        Self([NOWHERE; 5])
    }
}

impl Places {
    pub(crate) fn is_in(&self, roster: Roster) -> bool {
        self.0[roster as usize] != NOWHERE
    }
}

type Peers = Arena<PeerMark, Peer>;

/// Adds a peer that is not in the list.
pub(crate) fn add(roster: Roster, list: &mut Vec<PeerKey>, peers: &mut Peers, key: PeerKey) {
    debug_assert!(!peers[key].places.is_in(roster));
    set_place(roster, peers, key, list.len());
    list.push(key);
}

/// Removes a peer, if it is in the list. Gives whether it was.
pub(crate) fn remove(
    roster: Roster,
    list: &mut Vec<PeerKey>,
    peers: &mut Peers,
    key: PeerKey,
) -> bool {
    let place = peers[key].places.0[roster as usize];
    if place == NOWHERE {
        return false;
    }
    let place = place as usize;
    list.swap_remove(place);
    if let Some(moved) = list.get(place) {
        set_place(roster, peers, *moved, place);
    }
    peers[key].places.0[roster as usize] = NOWHERE;
    true
}

/// Moves a random one of the members from `place` on to `place`, and gives it: calls with `place` = 0, 1, 2 ... walk
/// through the list in random order.
pub(crate) fn draw(
    roster: Roster,
    list: &mut [PeerKey],
    peers: &mut Peers,
    rng: &mut Rng,
    place: usize,
) -> PeerKey {
    let other = rng.usize(place..list.len());
    if other != place {
        list.swap(place, other);
        set_place(roster, peers, list[place], place);
        set_place(roster, peers, list[other], other);
    }
    list[place]
}

fn set_place(roster: Roster, peers: &mut Peers, key: PeerKey, place: usize) {
    peers[key].places.0[roster as usize] =
        u32::try_from(place).expect("an arena holds fewer than 2^32 peers");
}
