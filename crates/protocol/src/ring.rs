//! Which node of a set is responsible for a key: the ring that clients use to choose a scheduler by hostname and
//! schedulers use to choose a seed by host name.
//!
//! It is the ring of the published crate `dragonfly-hashring` 0.2.0, so that every client, old or new, maps a task to the
//! same scheduler. Point `i` of a node is SipHash-2-4 (zero key) over `i` as 8 little-endian bytes, the name and a byte
//! `0xff`; a key's position is the hash of the key and `0xff`; the owner is the first point at or behind the key's
//! position, wrapping around.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// Points on the ring per node.
const POINTS_PER_NODE: u64 = 512;

/// A consistent-hash ring over node names. Building costs 512 hashes per node and a sort; a look-up is a binary search.
#[derive(Debug, Clone, Default)]
pub struct HashRing {
    nodes: Vec<String>,
    /// Position and index into `nodes`, sorted.
    points: Vec<(u64, usize)>,
}

impl HashRing {
    /// The ring of these nodes; names given twice count once.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut nodes: Vec<String> = names.into_iter().map(Into::into).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut points: Vec<(u64, usize)> = nodes
            .iter()
            .enumerate()
            .flat_map(|(node, name)| {
                (0..POINTS_PER_NODE).map(move |point| (point_position(point, name), node))
            })
            .collect();
        points.sort_unstable();
        Self { nodes, points }
    }

    /// The node names in alphabetical order.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The node responsible for `key`, or nothing when the ring is empty.
    pub fn owner(&self, key: &str) -> Option<&str> {
        self.successors(key).next()
    }

    /// The responsible node, then each other node in the order in which it would take over.
    pub fn successors(&self, key: &str) -> impl Iterator<Item = &str> {
        let position = key_position(key);
        let first = self.points.partition_point(|(point, _)| *point < position);
        let (before, behind) = self.points.split_at(first);
        let mut seen = vec![false; self.nodes.len()];
        behind
            .iter()
            .chain(before)
            .filter(move |(_, node)| !std::mem::replace(&mut seen[*node], true))
            .map(|(_, node)| self.nodes[*node].as_str())
    }
}

fn point_position(point: u64, name: &str) -> u64 {
    hash([&point.to_le_bytes(), name.as_bytes()])
}

fn key_position(key: &str) -> u64 {
    hash([key.as_bytes()])
}

fn hash<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    for part in parts {
        hasher.write(part);
    }
    hasher.write_u8(0xff);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_are_those_of_the_published_ring() {
        assert_eq!(point_position(0, "seed-peer-1"), 0x1e5a582b8d945969);
        assert_eq!(point_position(511, "seed-peer-3"), 0xf0eda07426c5cac1);
        assert_eq!(key_position("test-task"), 0xa78dd821b4023714);
        assert_eq!(key_position(""), 0x20dd4eb33d9590f2);
    }

    #[test]
    fn owners_are_those_of_the_published_ring() {
        let schedulers = HashRing::new(["scheduler-0", "scheduler-1", "scheduler-2"]);
        let task = "457b4328cde278e422c9e243f7bfd1e97f511fec43a80f535cf6b0ef6b086776";
        assert_eq!(key_position(task), 0x04a6b1066b456333);
        for (key, owner, point) in [
            (task, "scheduler-2", 41),
            (
                "06408fbf247ddaca478f8cb9565fe5591c28efd0994b8fea80a6a87d3203c5ca",
                "scheduler-2",
                44,
            ),
            (
                "b51f4f44921bb585277a5cbac13e7f6e2858238e98546f3ee6bfeb56369979c0",
                "scheduler-1",
                362,
            ),
            (
                "980ee327518ccc5a7c30703e1a2232e8ba9047b39431f940636c85b6146f8b9a",
                "scheduler-1",
                356,
            ),
        ] {
            assert_eq!(schedulers.owner(key), Some(owner), "{key}");
            let next = schedulers
                .points
                .iter()
                .find(|(position, _)| *position >= key_position(key))
                .unwrap();
            assert_eq!(next.0, point_position(point, owner), "{key}");
        }
        let addresses = HashRing::new(["10.0.0.1:8002", "10.0.0.2:8002"]);
        assert_eq!(addresses.owner(task), Some("10.0.0.2:8002"));
        let seeds = HashRing::new((0..3).map(|number| format!("default-seed-client-{number}")));
        let task = "5844f27a257287e9b734256bb25603d8005422ced8c0377f15063ec11963b25f";
        assert_eq!(key_position(task), 0x845097f8ba91f3ec);
        assert_eq!(seeds.owner(task), Some("default-seed-client-2"));
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        assert_eq!(HashRing::new([] as [String; 0]).owner("key"), None);
    }

    proptest! {
        #[test]
        fn leaving_moves_only_the_keys_of_the_node_that_left(names in prop::collection::btree_set("[a-c]{1,3}", 1..6), key: String) {
            let ring = HashRing::new(names.iter().cloned());
            let order: Vec<&str> = ring.successors(&key).collect();
            prop_assert_eq!(order.len(), names.len());
            prop_assert_eq!(ring.owner(&key), Some(order[0]));
            let rest = HashRing::new(order[1..].iter().copied());
            prop_assert!(rest.successors(&key).eq(order[1..].iter().copied()));
        }
    }
}
