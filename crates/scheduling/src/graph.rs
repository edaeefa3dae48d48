//! Who was offered whom: the edges of a task's graph, without a cycle, and what they cost the parents' hosts.

use crate::core::Core;
use crate::model::{PeerKey, Uploads};

/// What one edge puts on the parent's host (scheduler sheet, section 3.4).
#[derive(Debug, Clone, Copy)]
struct Weight {
    tx_bandwidth: u64,
    piece_count: u64,
    content_length: u64,
}

impl Weight {
    fn put_on(self, uploads: &mut Uploads) {
        uploads.count += 1;
        uploads.concurrent_count += 1;
        uploads.tx_bandwidth = uploads.tx_bandwidth.saturating_add(self.tx_bandwidth);
        uploads.concurrent_piece_count = uploads
            .concurrent_piece_count
            .saturating_add(self.piece_count);
        uploads.content_length = uploads.content_length.saturating_add(self.content_length);
    }

    fn take_off(self, uploads: &mut Uploads) {
        uploads.concurrent_count = uploads.concurrent_count.saturating_sub(1);
        uploads.tx_bandwidth = uploads.tx_bandwidth.saturating_sub(self.tx_bandwidth);
        uploads.concurrent_piece_count = uploads
            .concurrent_piece_count
            .saturating_sub(self.piece_count);
        uploads.content_length = uploads.content_length.saturating_sub(self.content_length);
    }
}

impl<H, T> Core<H, T> {
    /// Adds an edge from each of `parents` to `child` unless it would close a cycle or is there already. Gives those that
    /// were added.
    pub(crate) fn add_edges(&mut self, child: PeerKey, parents: &[PeerKey]) -> Vec<PeerKey> {
        let search = self.mark_descendants(child);
        let weight = self.weight(child);
        let mut added = Vec::with_capacity(parents.len());
        for parent in parents.iter().copied() {
            // The child itself carries the mark too.
            if self.peers[parent].visited == search || self.peers[child].parents.contains(&parent) {
                continue;
            }
            self.peers[child].parents.push(parent);
            let parent_peer = &mut self.peers[parent];
            parent_peer.children.push(child);
            weight.put_on(&mut self.hosts[parent_peer.host].uploads);
            added.push(parent);
        }
        if !added.is_empty() {
            self.refresh_serving(child);
        }
        added
    }

    /// Marks `child` and everybody below it with the number that is returned: whoever has it must not become its parent.
    pub(crate) fn mark_descendants(&mut self, child: PeerKey) -> u64 {
        self.search += 1;
        let search = self.search;
        let mut open = vec![child];
        while let Some(key) = open.pop() {
            let peer = &mut self.peers[key];
            if peer.visited != search {
                peer.visited = search;
                open.extend_from_slice(&peer.children);
            }
        }
        search
    }

    pub(crate) fn drop_in_edges(&mut self, child: PeerKey) {
        let parents = std::mem::take(&mut self.peers[child].parents);
        if parents.is_empty() {
            return;
        }
        let weight = self.weight(child);
        for parent in parents {
            let parent_peer = &mut self.peers[parent];
            remove_one(&mut parent_peer.children, child);
            weight.take_off(&mut self.hosts[parent_peer.host].uploads);
        }
        self.refresh_serving(child);
    }

    pub(crate) fn drop_out_edges(&mut self, parent: PeerKey) {
        let children = std::mem::take(&mut self.peers[parent].children);
        let host = self.peers[parent].host;
        for child in children {
            let weight = self.weight(child);
            weight.take_off(&mut self.hosts[host].uploads);
            remove_one(&mut self.peers[child].parents, parent);
            self.refresh_serving(child);
        }
    }

    pub(crate) fn drop_edge(&mut self, parent: PeerKey, child: PeerKey) {
        if !remove_one(&mut self.peers[child].parents, parent) {
            return;
        }
        let weight = self.weight(child);
        let parent_peer = &mut self.peers[parent];
        remove_one(&mut parent_peer.children, child);
        weight.take_off(&mut self.hosts[parent_peer.host].uploads);
        self.refresh_serving(child);
    }

    fn weight(&self, child: PeerKey) -> Weight {
        let peer = &self.peers[child];
        let task = &self.tasks[peer.task];
        let piece_count = u64::from(peer.concurrent_piece_count);
        Weight {
            tx_bandwidth: task
                .piece_length
                .saturating_mul(piece_count)
                .saturating_mul(8),
            piece_count,
            content_length: task.content_length.unwrap_or(0),
        }
    }
}

/// Removes `key` from a list in no particular order. Gives whether it was there.
pub(crate) fn remove_one(list: &mut Vec<PeerKey>, key: PeerKey) -> bool {
    let place = list.iter().position(|other| *other == key);
    place.map(|place| list.swap_remove(place)).is_some()
}
