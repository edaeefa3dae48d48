//! Forgetting: peers, tasks and hosts that are gone or were not heard of (scheduler sheet, section 5).

use protocol::{HostId, PeerId, TaskId};

use crate::core::Core;
use crate::graph::remove_one;
use crate::message::Refusal;
use crate::model::{HostKey, PeerKey, TaskKey, Time};
use crate::roster::{self, Roster};
use crate::states::{PeerEvent, PeerState};

/// A task with more peers than this drops those that have ended and serve nobody.
const PEERS_PER_TASK_MAX: usize = 300;

impl<H, T> Core<H, T> {
    pub(crate) fn delete_by_id(&mut self, now: Time, id: &PeerId) {
        if let Some(key) = self.peer_keys.get(id).copied() {
            self.delete_peer(now, key, Refusal::Deleted(id.clone()));
        }
    }

    pub(crate) fn delete_task_of_host(&mut self, now: Time, host: &HostId, task: &TaskId) {
        let (Some(host), Some(task)) = (
            self.host_keys.get(host).copied(),
            self.task_keys.get(task).copied(),
        ) else {
            return;
        };
        let peers = self.hosts[host]
            .peers
            .iter()
            .copied()
            .filter(|key| self.peers[*key].task == task);
        let peers: Vec<PeerKey> = peers.collect();
        for key in peers {
            let id = self.peers[key].id.clone();
            self.delete_peer(now, key, Refusal::Deleted(id));
        }
    }

    /// Forgets a peer; its stream, if it has one, ends with `reason`.
    pub(crate) fn delete_peer(&mut self, now: Time, key: PeerKey, reason: Refusal) {
        let stream = self.peers[key].stream;
        self.close(key, stream, Err(reason));
        // A peer that has left already has nothing more to leave.
        let _ = self.advance(now, key, PeerEvent::Leave);
        let (host, task) = (self.peers[key].host, self.peers[key].task);
        roster::remove(
            Roster::Host,
            &mut self.hosts[host].peers,
            &mut self.peers,
            key,
        );
        let record = &mut self.tasks[task];
        roster::remove(Roster::Task, &mut record.peers, &mut self.peers, key);
        remove_one(&mut record.seeds, key);
        record.short.remove(&key);
        if let Some(peer) = self.peers.remove(key) {
            self.peer_keys.remove(&peer.id);
        }
    }

    /// One look over all peers; the first rule that fits wins.
    pub(crate) fn sweep_peers(&mut self, now: Time) {
        let keys: Vec<PeerKey> = self.peers.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(peer) = self.peers.get(key) else {
                continue;
            };
            let id = peer.id.clone();
            if peer.state == PeerState::Leave {
                self.delete_peer(now, key, Refusal::Deleted(id));
            } else if self.is_given_up(now, key) {
                let stream = self.peers[key].stream;
                self.close(key, stream, Err(Refusal::Deleted(id)));
                let _ = self.advance(now, key, PeerEvent::Leave);
            } else if self.is_surplus(key) {
                self.delete_peer(now, key, Refusal::Deleted(id));
            }
        }
    }

    fn is_given_up(&self, now: Time, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        let host = &self.hosts[peer.host];
        let silent_for = |since: Time| now.saturating_sub(since);
        let fetches = matches!(peer.state, PeerState::Running | PeerState::BackToSource);
        host.disable_shared && !peer.state.is_active()
            || fetches && silent_for(peer.piece_updated_at) > self.policy.piece_download_timeout
            || silent_for(peer.updated_at) > self.policy.peer_ttl
            || silent_for(host.updated_at) > self.policy.host_ttl
            || peer.state == PeerState::Failed
    }

    fn is_surplus(&self, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        self.tasks[peer.task].peers.len() > PEERS_PER_TASK_MAX
            && peer.state == PeerState::Succeeded
            && peer.parents.is_empty()
            && peer.children.is_empty()
    }

    /// Drops tasks that nobody has.
    pub(crate) fn sweep_tasks(&mut self) {
        let empty = self
            .tasks
            .iter()
            .filter(|(_, task)| task.peers.is_empty() && task.trigger.is_none());
        let empty: Vec<TaskKey> = empty.map(|(key, _)| key).collect();
        for key in empty {
            if let Some(task) = self.tasks.remove(key) {
                self.task_keys.remove(&task.id);
            }
        }
    }

    /// Drops hosts that announced how often they would announce themselves and did not for twice as long.
    pub(crate) fn sweep_hosts(&mut self, now: Time) {
        let silent = self.hosts.iter().filter(|(_, host)| {
            !host.announce_interval.is_zero()
                && now.saturating_sub(host.updated_at) > 2 * host.announce_interval
        });
        let silent: Vec<HostKey> = silent.map(|(key, _)| key).collect();
        for key in silent {
            self.remove_host(now, key);
        }
    }
}
