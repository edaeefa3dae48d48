//! Neighbours for a mesh peer: whom a newcomer is offered, and who is told of it.
//!
//! The shape that the swarm study recommends: each newcomer gets some members of the task at random, whether they hold
//! pieces already or not, and the roots of the swarm (seeds, readers of the origin) as long as these have few children.
//! Links work both ways, so a newcomer's neighbours need not be told. Who has few neighbours when arrivals pause is
//! given more.

use crate::core::Core;
use crate::graph::remove_one;
use crate::message::Answer;
use crate::model::{PeerKey, TaskKey, Time};
use crate::parents::Wanted;
use crate::roster::{self, Roster};
use crate::states::PeerState;
use protocol::HostRole;

/// Members that are looked at, at most, to find neighbours for one peer.
const EXAMINED_MAX: usize = 32;

/// How often a further arrival may put off the top-up.
const TOP_UP_POSTPONED_MAX: u32 = 10;

impl<H, T> Core<H, T> {
    /// Enters a registered peer among the members of the mesh.
    pub(crate) fn join_mesh(&mut self, now: Time, key: PeerKey) {
        let task = self.peers[key].task;
        roster::add(
            Roster::Mesh,
            &mut self.tasks[task].mesh,
            &mut self.peers,
            key,
        );
        self.postpone_top_up(now, task);
    }

    /// Offers `key` up to `count` members that it does not know, and the roots. The edges are recorded.
    pub(crate) fn offer_neighbours(
        &mut self,
        now: Time,
        key: PeerKey,
        count: usize,
    ) -> Vec<PeerKey> {
        let mut offered = self.draw_neighbours(key, count);
        let missing = self.missing_roots(key, &offered);
        offered.extend(missing);
        let few = offered.len() + self.giving_neighbour_count(key) < self.policy.mesh_offer_count;
        if few || !self.holds_data(&offered) {
            let wanted = if offered.is_empty() {
                Wanted::Any
            } else {
                Wanted::V2
            };
            let parents = self.find_parents(key, wanted);
            offered.extend(
                parents
                    .into_iter()
                    .filter(|parent| !offered.contains(parent))
                    .collect::<Vec<_>>(),
            );
        }
        self.connect(now, key, &offered);
        offered
    }

    /// Records that `key` was offered `others`, and tells those of them that wait for anybody.
    fn connect(&mut self, now: Time, key: PeerKey, others: &[PeerKey]) {
        self.add_edges(key, others);
        let shares = self.shares(key);
        for other in others.iter().copied() {
            if !self.peers[other].mesh {
                continue;
            }
            self.peers[key].neighbours.push(other);
            self.peers[other].neighbours.push(key);
            if shares && self.peers[other].waiting_since.is_some() {
                self.answer(other, Answer::Parents(vec![key]));
            }
        }
        let task = self.peers[key].task;
        if self.is_short(key) {
            self.tasks[task].short.insert(key);
            self.postpone_top_up(now, task);
        }
    }

    /// Up to `count` random members that `key` does not know yet, those of its own data centre first.
    fn draw_neighbours(&mut self, key: PeerKey, count: usize) -> Vec<PeerKey> {
        let task = self.peers[key].task;
        let mut members = std::mem::take(&mut self.tasks[task].mesh);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for place in 0..members.len().min(EXAMINED_MAX) {
            let other = roster::draw(
                Roster::Mesh,
                &mut members,
                &mut self.peers,
                &mut self.rng,
                place,
            );
            if !self.may_be_neighbour(other, key) || self.is_seed(other) {
                continue;
            }
            let list = if self.is_near(other, key) {
                &mut near
            } else {
                &mut far
            };
            list.push(other);
            if near.len() >= count {
                break;
            }
        }
        self.tasks[task].mesh = members;
        near.extend(far);
        near.truncate(count);
        near
    }

    /// Seeds and readers of the origin that have room and are not among `offered`.
    fn missing_roots(&self, key: PeerKey, offered: &[PeerKey]) -> Vec<PeerKey> {
        let task = &self.tasks[self.peers[key].task];
        let readers = task.readers.iter().map(|reader| reader.peer);
        let mut roots: Vec<PeerKey> = Vec::new();
        for root in task.seeds.iter().copied().chain(readers) {
            let Some(peer) = self.peers.get(root) else {
                continue;
            };
            let known =
                offered.contains(&root) || roots.contains(&root) || peer.children.contains(&key);
            let reachable = if peer.mesh {
                self.may_be_neighbour(root, key)
            } else {
                peer.places.is_in(Roster::Serving) && self.may_meet(root, key)
            };
            let has_room = peer.children.len() < self.policy.root_child_limit;
            if root != key && reachable && has_room && !known && !task.is_silent(root) {
                roots.push(root);
            }
        }
        roots
    }

    /// Offers a new root of the swarm to the members that are at it, as far as its room goes.
    pub(crate) fn announce_root(&mut self, now: Time, root: PeerKey) {
        let task = self.peers[root].task;
        let limit = if self.peers[root].mesh {
            self.policy.root_child_limit
        } else {
            self.policy.mesh_offer_count
        };
        let mut members = std::mem::take(&mut self.tasks[task].mesh);
        let mut told = Vec::new();
        for place in 0..members.len() {
            if self.peers[root].children.len() + told.len() >= limit {
                break;
            }
            let member = roster::draw(
                Roster::Mesh,
                &mut members,
                &mut self.peers,
                &mut self.rng,
                place,
            );
            let peer = &self.peers[member];
            let known = peer.neighbours.contains(&root) || peer.parents.contains(&root);
            if member != root && peer.state.wants_parents() && !known && self.may_meet(root, member)
            {
                told.push(member);
            }
        }
        self.tasks[task].mesh = members;
        for member in told {
            self.connect(now, member, &[root]);
            self.answer(member, Answer::Parents(vec![root]));
        }
    }

    /// Takes a peer out of its neighbours' lists; who has few left will be given others.
    pub(crate) fn unlink(&mut self, now: Time, key: PeerKey) {
        let neighbours = std::mem::take(&mut self.peers[key].neighbours);
        if neighbours.is_empty() {
            return;
        }
        let task = self.peers[key].task;
        for other in neighbours {
            remove_one(&mut self.peers[other].neighbours, key);
            if self.is_short(other) {
                self.tasks[task].short.insert(other);
            }
        }
        self.postpone_top_up(now, task);
    }

    /// Forgets that two peers are neighbours.
    pub(crate) fn separate(&mut self, one: PeerKey, other: PeerKey) {
        remove_one(&mut self.peers[one].neighbours, other);
        remove_one(&mut self.peers[other].neighbours, one);
    }

    /// Gives more neighbours to those that have few, once arrivals have paused.
    pub(crate) fn top_up(&mut self, now: Time, task: TaskKey) {
        let record = &mut self.tasks[task];
        record.top_up_due = None;
        let mut short: Vec<PeerKey> = std::mem::take(&mut record.short).into_iter().collect();
        // A set has no order that could be repeated.
        short.sort_unstable();
        for key in short {
            if !self
                .peers
                .get(key)
                .is_some_and(|peer| peer.state.wants_parents())
            {
                continue;
            }
            let count = self
                .policy
                .mesh_neighbour_min
                .saturating_sub(self.giving_neighbour_count(key));
            let mut others = self.draw_neighbours(key, count);
            let roots = self.missing_roots(key, &others);
            others.extend(roots.into_iter().filter(|root| self.peers[*root].mesh));
            if !others.is_empty() {
                self.connect(now, key, &others);
                self.answer(key, Answer::Parents(others));
            } else if self.is_short(key) {
                self.tasks[task].short.insert(key);
            }
        }
        // Nobody is left to be offered until somebody joins or leaves.
        self.tasks[task].top_up_due = None;
    }

    fn postpone_top_up(&mut self, now: Time, task: TaskKey) {
        let delay = self.policy.mesh_top_up_delay;
        let record = &mut self.tasks[task];
        if record.short.is_empty() {
            return;
        }
        let first = match record.top_up_due {
            Some(_) => record.top_up_first,
            None => now,
        };
        record.top_up_first = first;
        let due = (now + delay).min(first + delay * TOP_UP_POSTPONED_MAX);
        record.top_up_due = Some(due);
        self.arm(task, due);
    }

    fn is_short(&self, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        peer.mesh
            && peer.state.wants_parents()
            && self.giving_neighbour_count(key) < self.policy.mesh_neighbour_min
    }

    /// Neighbours from which `key` may fetch.
    pub(crate) fn giving_neighbour_count(&self, key: PeerKey) -> usize {
        let neighbours = self.peers[key].neighbours.iter();
        neighbours.filter(|other| self.shares(**other)).count()
    }

    /// Whether the host of `key` gives to others.
    pub(crate) fn shares(&self, key: PeerKey) -> bool {
        !self.hosts[self.peers[key].host].disable_shared
    }

    fn may_be_neighbour(&self, other: PeerKey, key: PeerKey) -> bool {
        other != key
            && self.peers[other].state.is_joined()
            && self.may_meet(other, key)
            && !self.peers[other].blocked.contains(&key)
            && !self.peers[key].neighbours.contains(&other)
    }

    fn is_near(&self, other: PeerKey, key: PeerKey) -> bool {
        let idc = |key: PeerKey| {
            self.hosts[self.peers[key].host]
                .idc
                .as_deref()
                .filter(|idc| !idc.is_empty())
        };
        match (idc(key), idc(other)) {
            (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    pub(crate) fn is_seed(&self, key: PeerKey) -> bool {
        self.hosts[self.peers[key].host].role == HostRole::Seed
    }

    /// Whether one of them has pieces or fetches them.
    fn holds_data(&self, keys: &[PeerKey]) -> bool {
        keys.iter().any(|key| {
            matches!(
                self.peers[*key].state,
                PeerState::BackToSource | PeerState::Succeeded
            ) || self.peers[*key].finished_piece_count > 0
        })
    }
}
