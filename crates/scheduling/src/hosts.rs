//! Hosts: announcing, leaving, and which of them are asked to fetch first.

use protocol::{HashRing, HostId, HostRole, TaskId};

use crate::core::Core;
use crate::message::{HostAnnouncement, Refusal};
use crate::model::{Host, HostKey, Time, Uploads};

/// The seed hosts that can be asked, placed by name on the ring that daemons and clients use too, so that all of them
/// agree about the seed that holds a task (scheduler sheet, section 2.9.2, successor ring).
#[derive(Debug, Default)]
pub(crate) struct SeedRing {
    /// Sorted by name, each once.
    hosts: Vec<(String, HostKey)>,
    ring: Option<HashRing>,
}

impl SeedRing {
    fn new(hosts: Vec<(String, HostKey)>) -> Self {
        let ring =
            (!hosts.is_empty()).then(|| HashRing::new(hosts.iter().map(|(name, _)| name.as_str())));
        Self { hosts, ring }
    }

    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn is_available(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// The host for `task`, or the first of those that would take over from it, that `accept` takes.
    pub(crate) fn owner(&self, task: &TaskId, accept: impl Fn(HostKey) -> bool) -> Option<HostKey> {
        let mut names = self.ring.as_ref()?.successors(task.as_str());
        names.find_map(|name| {
            let place = self
                .hosts
                .binary_search_by(|(known, _)| known.as_str().cmp(name))
                .ok()?;
            let host = self.hosts[place].1;
            accept(host).then_some(host)
        })
    }
}

impl<H, T> Core<H, T> {
    pub(crate) fn announce_host(&mut self, now: Time, announcement: HostAnnouncement<H>) {
        let HostAnnouncement {
            id,
            name,
            role,
            disable_shared,
            idc,
            location,
            max_tx_bandwidth,
            announce_interval,
            data,
        } = announcement;
        if let Some(host) = self
            .host_keys
            .get(&id)
            .and_then(|key| self.hosts.get_mut(*key))
        {
            host.name = name;
            host.role = role;
            host.disable_shared = disable_shared;
            (host.idc, host.location) = (idc, location);
            host.max_tx_bandwidth = max_tx_bandwidth;
            host.announce_interval = announce_interval;
            host.updated_at = now;
            host.data = data;
            return;
        }
        let key = self.hosts.insert(Host {
            id: id.clone(),
            name,
            role,
            disable_shared,
            idc,
            location,
            max_tx_bandwidth,
            announce_interval,
            created_at: now,
            updated_at: now,
            uploads: Uploads::default(),
            data,
            peers: Vec::new(),
        });
        self.host_keys.insert(id, key);
    }

    pub(crate) fn leave_host(&mut self, now: Time, id: &HostId) {
        let Some(key) = self.host_keys.get(id).copied() else {
            return;
        };
        self.remove_host(now, key);
    }

    pub(crate) fn remove_host(&mut self, now: Time, key: HostKey) {
        while let Some(peer) = self.hosts[key].peers.last().copied() {
            let id = self.peers[peer].id.clone();
            self.delete_peer(now, peer, Refusal::Deleted(id));
        }
        self.forget_seed_host(now, key);
        if let Some(host) = self.hosts.remove(key) {
            self.host_keys.remove(&host.id);
        }
    }

    pub(crate) fn set_seeds(&mut self, ids: &[HostId]) {
        let hosts = ids.iter().filter_map(|id| {
            let key = *self.host_keys.get(id)?;
            let host = &self.hosts[key];
            (host.role == HostRole::Seed && !host.disable_shared)
                .then(|| (host.name.to_string(), key))
        });
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort();
        // Two hosts of one name would shadow each other on the ring in an order that nobody sees.
        hosts.dedup_by(|one, other| one.0 == other.0);
        self.seed_ring = SeedRing::new(hosts);
    }

    fn forget_seed_host(&mut self, now: Time, key: HostKey) {
        if self.seed_ring.hosts.iter().any(|(_, host)| *host == key) {
            let left = self
                .seed_ring
                .hosts
                .iter()
                .filter(|(_, host)| *host != key)
                .cloned()
                .collect();
            self.seed_ring = SeedRing::new(left);
            self.forget_triggers_of(now, key);
        }
    }
}
