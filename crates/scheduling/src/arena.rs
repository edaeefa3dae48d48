//! Storage with stable handles: hosts, tasks and peers refer to each other by [`Key`], which cannot dangle unnoticed.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// Names a value of an arena. A key whose value was removed finds nothing, also after its place was used again.
pub struct Key<M> {
    index: u32,
    generation: u32,
    mark: PhantomData<fn() -> M>,
}

impl<M> Clone for Key<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Key<M> {}

impl<M> PartialEq for Key<M> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<M> Eq for Key<M> {}

impl<M> PartialOrd for Key<M> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<M> Ord for Key<M> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}

impl<M> Hash for Key<M> {
    fn hash<S: Hasher>(&self, state: &mut S) {
        (self.index, self.generation).hash(state);
    }
}

impl<M> fmt::Debug for Key<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}

/// Values found by [`Key`]. At most 2^32 at once.
#[derive(Debug)]
pub(crate) struct Arena<M, V> {
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    mark: PhantomData<fn() -> M>,
}

#[derive(Debug)]
struct Slot<V> {
    generation: u32,
    value: Option<V>,
}

impl<M, V> Arena<M, V> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            mark: PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: V) -> Key<M> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Key {
                index,
                generation: slot.generation,
                mark: PhantomData,
            };
        }
        let index = u32::try_from(self.slots.len()).expect("memory ends before 2^32 slots do");
        self.slots.push(Slot {
            generation: 0,
            value: Some(value),
        });
        Key {
            index,
            generation: 0,
            mark: PhantomData,
        }
    }

    pub(crate) fn remove(&mut self, key: Key<M>) -> Option<V> {
        let slot = self
            .slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    pub(crate) fn get(&self, key: Key<M>) -> Option<&V> {
        self.slots
            .get(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?
            .value
            .as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: Key<M>) -> Option<&mut V> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?
            .value
            .as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<M>, &V)> {
        (0_u32..).zip(&self.slots).filter_map(|(index, slot)| {
            let key = Key {
                index,
                generation: slot.generation,
                mark: PhantomData,
            };
            slot.value.as_ref().map(|value| (key, value))
        })
    }
}

impl<M, V> std::ops::Index<Key<M>> for Arena<M, V> {
    type Output = V;

    /// # Panics
    /// The value was removed: the core keeps no key to a removed value where it indexes.
    fn index(&self, key: Key<M>) -> &V {
        self.get(key)
            .expect("keys held by the core are removed together with their values")
    }
}

impl<M, V> std::ops::IndexMut<Key<M>> for Arena<M, V> {
    fn index_mut(&mut self, key: Key<M>) -> &mut V {
        self.get_mut(key)
            .expect("keys held by the core are removed together with their values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_stays_removed() {
        enum Mark {}
        let mut arena: Arena<Mark, &str> = Arena::new();
        let first = arena.insert("first");
        assert_eq!(arena.remove(first), Some("first"));
        let second = arena.insert("second");
        assert_eq!(
            (arena.get(first), arena.get(second)),
            (None, Some(&"second"))
        );
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.iter().count(), arena.len());
    }
}
