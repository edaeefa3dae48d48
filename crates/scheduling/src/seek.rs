//! What to answer a peer that wants the content: parents, the origin, or nothing yet.

use crate::core::Core;
use crate::message::{Answer, BackToSourceReason, Priority, Refusal};
use crate::model::{PeerKey, TaskKey, Time};
use crate::parents::Wanted;

/// What made a peer seek.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// It registered.
    Registered(Priority),
    /// Its parents do not suffice.
    Rescheduled,
    /// It waits, and something changed.
    Woken,
    /// It has waited as long as the limits allow.
    Deadline,
}

impl<H, T> Core<H, T> {
    /// Decides about a peer that wants parents. It is answered, sent to the origin, refused, or waits.
    pub(crate) fn seek(&mut self, now: Time, key: PeerKey, occasion: Occasion) {
        if self.peers[key].need_back_to_source
            && self.may_read(key)
            && (self.outranks(key) || !self.has_hope(key))
        {
            return self.appoint(now, key, BackToSourceReason::Asked);
        }
        let mesh = self.peers[key].mesh;
        let offered = if mesh {
            self.mesh_offer(now, key, occasion)
        } else {
            self.v2_offer(key)
        };
        let answered = !offered.is_empty();
        if answered {
            self.answer(key, Answer::Parents(offered));
        }
        if answered && !mesh {
            return;
        }
        if self.peers[key].waiting_since.is_none()
            && self.tasks[self.peers[key].task].is_reader(key)
        {
            return;
        }
        let connected =
            mesh && (self.giving_neighbour_count(key) > 0 || !self.peers[key].parents.is_empty());
        if connected && self.has_holder(key) {
            self.peers[key].waiting_since = None;
        } else if self.has_hope(key) {
            // Whoever may read is appointed when hope fails; whoever must not has to be refused some time.
            if connected && !self.peers[key].origin_forbidden {
                self.peers[key].waiting_since = None;
            } else {
                self.wait(now, key);
            }
        } else {
            self.obtain_source(now, key, occasion);
        }
    }

    /// Nobody serves `key` or is about to: a seed peer, the peer itself, or a refusal.
    fn obtain_source(&mut self, now: Time, key: PeerKey, occasion: Occasion) {
        if let Some(failure) = self.verdict_for(key) {
            return self.refuse(now, key, Refusal::Origin(failure));
        }
        let since = self.peers[key].waiting_since.unwrap_or(now);
        let overdue = since + self.policy.wait_max() <= now;
        let forbidden = self.peers[key].origin_forbidden;
        if !self.is_seed(key) && self.seed_ring.is_available() {
            let seed_first = match occasion {
                Occasion::Registered(Priority::Forbidden) => {
                    return self.refuse(now, key, Refusal::Forbidden);
                }
                Occasion::Registered(Priority::PeersOnly) => {
                    return self.refuse(now, key, Refusal::PeersOnly);
                }
                Occasion::Registered(Priority::OriginFirst) => false,
                Occasion::Registered(Priority::SeedFirst) => true,
                // A peer that must not read has seeds asked for it, within its bound.
                _ => forbidden && !overdue,
            };
            if seed_first && self.trigger_seed(now, key) {
                return self.wait(now, key);
            }
        }
        if self.may_read(key) {
            let reason = match occasion {
                Occasion::Registered(Priority::OriginFirst) => BackToSourceReason::Asked,
                Occasion::Registered(_) => BackToSourceReason::FirstReader,
                Occasion::Rescheduled | Occasion::Woken => BackToSourceReason::NextReader,
                Occasion::Deadline => BackToSourceReason::NoParents,
            };
            return self.appoint(now, key, reason);
        }
        if since + self.policy.refuse_after() <= now {
            return self.refuse(now, key, Refusal::NoParents);
        }
        self.wait(now, key);
    }

    /// Whether `key` is sent to the origin at its word although somebody else reads it: a seed is, unless it was asked,
    /// took too long, and another reader was found.
    fn outranks(&self, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        self.is_seed(key) && !self.tasks[peer.task].given_up_seeds.contains(&peer.host)
    }

    fn v2_offer(&mut self, key: PeerKey) -> Vec<PeerKey> {
        self.drop_in_edges(key);
        let parents = self.find_parents(key, Wanted::Any);
        self.add_edges(key, &parents)
    }

    fn mesh_offer(&mut self, now: Time, key: PeerKey, occasion: Occasion) -> Vec<PeerKey> {
        let known = match occasion {
            // Whoever complains is short of something, whatever it has.
            Occasion::Rescheduled => 0,
            _ => self.giving_neighbour_count(key),
        };
        let count = self.policy.mesh_offer_count.saturating_sub(known);
        self.offer_neighbours(now, key, count)
    }

    /// Lets a peer wait for an answer, from now on if it did not before.
    pub(crate) fn wait(&mut self, now: Time, key: PeerKey) {
        let peer = &mut self.peers[key];
        if peer.stream.is_none() {
            return;
        }
        let since = *peer.waiting_since.get_or_insert(now);
        let task = peer.task;
        let queued = std::mem::replace(&mut peer.queued, true);
        let bounds = [
            since + self.policy.wait_max(),
            since + self.policy.refuse_after(),
        ];
        let record = &mut self.tasks[task];
        if !queued {
            record.waiting.push(key);
        }
        // Past both, only events decide: there is hope, and hope is watched.
        if let Some(due) = bounds.into_iter().find(|bound| now < *bound) {
            record.waiting_due = Some(record.waiting_due.map_or(due, |other| other.min(due)));
            self.arm(task, due);
        }
    }

    /// Decides again about all waiting peers of a task.
    pub(crate) fn wake(&mut self, now: Time, task: TaskKey) {
        let Some(record) = self.tasks.get_mut(task) else {
            return;
        };
        record.waiting_due = None;
        let mut waiting = std::mem::take(&mut record.waiting);
        // If one of them must read the origin, let it be one that serves the others.
        waiting.retain(|key| self.peers.get(*key).is_some());
        waiting.sort_by_key(|key| !self.shares(*key));
        for key in waiting {
            let Some(peer) = self.peers.get_mut(key) else {
                continue;
            };
            peer.queued = false;
            let Some(since) = peer.waiting_since else {
                continue;
            };
            let overdue = since + self.policy.wait_max() <= now;
            self.seek(
                now,
                key,
                if overdue {
                    Occasion::Deadline
                } else {
                    Occasion::Woken
                },
            );
        }
    }
}
