//! Parents for a peer by the rules of Dragonfly v2: filter, then evaluate (scheduler sheet, sections 4.2 to 4.5).
//!
//! One thing differs. Dragonfly v2 draws its sample from all peers of a task and may find none that can serve although
//! there is one; here it is drawn from those that can serve, and goes on until one fits.

use std::cmp::Ordering;

use crate::core::Core;
use crate::evaluator::{ParentFacts, score};
use crate::model::{PeerKey, TaskKey};
use crate::roster::{self, Roster};

/// Which parents are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Any.
    Any,
    /// Only those that do not speak our extension.
    V2,
}

impl<H, T> Core<H, T> {
    /// The best parents for `child`, best first. Edges to them can all be added.
    pub(crate) fn find_parents(&mut self, child: PeerKey, wanted: Wanted) -> Vec<PeerKey> {
        let task = self.peers[child].task;
        if self.tasks[task].serving.is_empty() {
            return Vec::new();
        }
        let search = self.mark_descendants(child);
        let mut serving = std::mem::take(&mut self.tasks[task].serving);
        let mut found: Vec<(f64, PeerKey)> = Vec::new();
        for place in 0..serving.len() {
            let enough = match wanted {
                Wanted::Any => !found.is_empty(),
                // They come on top of others; it is not worth looking through thousands for one.
                Wanted::V2 => true,
            };
            if place >= self.policy.filter_parent_limit && enough {
                break;
            }
            let candidate = roster::draw(
                Roster::Serving,
                &mut serving,
                &mut self.peers,
                &mut self.rng,
                place,
            );
            if self.can_be_parent(task, candidate, child, wanted)
                && self.peers[candidate].visited != search
            {
                found.push((self.score_of(candidate, child), candidate));
            }
        }
        self.tasks[task].serving = serving;
        found.sort_by(|(one, _), (other, _)| other.partial_cmp(one).unwrap_or(Ordering::Equal));
        found
            .into_iter()
            .map(|(_, key)| key)
            .take(self.policy.candidate_parent_limit)
            .collect()
    }

    /// The filter. That `candidate` is in a state to serve is known by the list it was drawn from.
    fn can_be_parent(
        &self,
        task: TaskKey,
        candidate: PeerKey,
        child: PeerKey,
        wanted: Wanted,
    ) -> bool {
        let parent = &self.peers[candidate];
        let wanted_kind = wanted == Wanted::Any || !parent.mesh;
        wanted_kind
            && self.may_meet(candidate, child)
            && !self.peers[child].parents.contains(&candidate)
            // A reader of the origin is judged by its silence: a second one would not be better off.
            && (!parent.costs.is_bad() || self.tasks[task].is_reader(candidate))
            && !self.tasks[task].is_silent(candidate)
    }

    /// Whether `child` may be told of `candidate` at all: another host, that shares, and has not failed it.
    pub(crate) fn may_meet(&self, candidate: PeerKey, child: PeerKey) -> bool {
        let (parent, child_peer) = (&self.peers[candidate], &self.peers[child]);
        parent.host != child_peer.host
            && !self.hosts[parent.host].disable_shared
            && !child_peer.blocked.contains(&candidate)
    }

    fn score_of(&self, candidate: PeerKey, child: PeerKey) -> f64 {
        let parent = &self.peers[candidate];
        let host = &self.hosts[parent.host];
        let facts = ParentFacts {
            site: host.site(),
            role: host.role,
            state: parent.state,
            max_tx_bandwidth: host.max_tx_bandwidth,
            uploads: host.uploads,
        };
        score(self.hosts[self.peers[child].host].site(), &facts)
    }
}
