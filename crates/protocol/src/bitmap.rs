//! A set of pieces or segments.

use std::fmt;

/// A fixed number of bits with a running count of those that are set. One bit per piece or segment of a task.
///
/// Invariants: bits behind `len` in the last word are clear; `ones` is the number of set bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Box<[u64]>,
    len: u32,
    ones: u32,
}

const WORD_BITS: u32 = u64::BITS;

impl Bitmap {
    /// `len` bits, all clear. Takes an eighth of `len` bytes of memory: the caller bounds `len`, as
    /// [`Geometry`](crate::Geometry) does for pieces and segments.
    pub fn new(len: u32) -> Self {
        Self {
            words: vec![0; words_for(len)].into(),
            len,
            ones: 0,
        }
    }

    /// `len` bits, all set.
    pub fn full(len: u32) -> Self {
        let mut words: Box<[u64]> = vec![u64::MAX; words_for(len)].into();
        if let (Some(last), used @ 1..) = (words.last_mut(), len % WORD_BITS) {
            *last = (1 << used) - 1;
        }
        Self {
            words,
            len,
            ones: len,
        }
    }

    /// How many bits there are, set or not.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no bits at all (an empty content).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bits are set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every bit is set; true for a map without bits.
    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// Whether bit `index` is set. Bits behind the end are clear.
    pub fn get(&self, index: u32) -> bool {
        index < self.len && self.words[word_of(index)] & mask_of(index) != 0
    }

    /// Sets bit `index` and says whether that changed it. A bit behind the end changes nothing.
    pub fn set(&mut self, index: u32) -> bool {
        let changed = index < self.len && !self.get(index);
        if changed {
            self.words[word_of(index)] |= mask_of(index);
            self.ones += 1;
        }
        changed
    }

    /// Clears bit `index` and says whether that changed it.
    pub fn clear(&mut self, index: u32) -> bool {
        let changed = self.get(index);
        if changed {
            self.words[word_of(index)] &= !mask_of(index);
            self.ones -= 1;
        }
        changed
    }

    /// The bits in words of 64: bit `i` is bit `i % 64` (from the lowest) of word `i / 64`. Bits behind the end are clear.
    /// For those who combine maps word by word.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The set bits in rising order.
    pub fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits_of(|word| word)
    }

    /// The clear bits in rising order.
    pub fn zeros(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits_of(|word| !word)
    }

    /// The first clear bit at `from` or behind it.
    pub fn first_zero(&self, from: u32) -> Option<u32> {
        let mut index = from;
        while index < self.len {
            let clear = !self.words[word_of(index)] >> (index % WORD_BITS);
            if clear != 0 {
                return Some(index + clear.trailing_zeros()).filter(|found| *found < self.len);
            }
            index = index.checked_add(WORD_BITS - index % WORD_BITS)?;
        }
        None
    }

    /// Sets every bit that is set in `other`; both must have the same length, else bits behind the end are ignored.
    pub fn union_with(&mut self, other: &Self) {
        for index in other.ones() {
            self.set(index);
        }
    }

    /// The bits as bytes: bit `i` is bit `i % 8` (from the lowest) of byte `i / 8`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.truncate(bytes_for(self.len));
        bytes
    }

    /// Reads what [`Bitmap::to_bytes`] wrote for `len` bits.
    ///
    /// # Errors
    /// [`BitmapError`] when the number of bytes does not fit `len`, or a bit behind the end is set.
    pub fn from_bytes(len: u32, bytes: &[u8]) -> Result<Self, BitmapError> {
        if bytes.len() != bytes_for(len) {
            return Err(BitmapError::Length {
                len,
                bytes: bytes.len(),
            });
        }
        let mut map = Self::new(len);
        for (word, chunk) in map.words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(padded);
        }
        let used = len % WORD_BITS;
        if used > 0 && map.words.last().is_some_and(|last| last >> used != 0) {
            return Err(BitmapError::Excess { len });
        }
        map.ones = map.words.iter().map(|word| word.count_ones()).sum();
        Ok(map)
    }

    fn bits_of(&self, select: impl Fn(u64) -> u64 + 'static) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(self.words.iter())
            .flat_map(move |(at, word)| {
                let mut left = select(*word);
                std::iter::from_fn(move || {
                    let bit = left.trailing_zeros();
                    (bit < WORD_BITS).then(|| {
                        left &= left - 1;
                        at * WORD_BITS + bit
                    })
                })
            })
            .take_while(|index| *index < self.len)
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitmap({} of {})", self.ones, self.len)
    }
}

fn words_for(len: u32) -> usize {
    len.div_ceil(WORD_BITS) as usize
}

fn bytes_for(len: u32) -> usize {
    len.div_ceil(8) as usize
}

fn word_of(index: u32) -> usize {
    (index / WORD_BITS) as usize
}

fn mask_of(index: u32) -> u64 {
    1 << (index % WORD_BITS)
}

/// Why bytes are no bitmap of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// Too many or too few bytes.
    #[error("{bytes} bytes do not make a bitmap of {len} bits")]
    Length {
        /// Bits expected.
        len: u32,
        /// Bytes found.
        bytes: usize,
    },
    /// A bit that stands for nothing is set.
    #[error("a bit behind the last of {len} is set")]
    Excess {
        /// Bits expected.
        len: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn agree(map: &Bitmap, model: &BTreeSet<u32>) {
        assert_eq!(map.count() as usize, model.len());
        assert!(map.ones().eq(model.iter().copied()));
        assert!(
            map.zeros()
                .eq((0..map.len()).filter(|bit| !model.contains(bit)))
        );
        assert_eq!(map.is_full(), model.len() == map.len() as usize);
        for from in 0..=map.len() + 1 {
            assert_eq!(
                map.first_zero(from),
                (from..map.len()).find(|bit| !model.contains(bit)),
                "from {from}"
            );
        }
        assert_eq!(
            &Bitmap::from_bytes(map.len(), &map.to_bytes()).unwrap(),
            map
        );
    }

    #[test]
    fn full_maps_have_no_bit_too_many() {
        for len in [0, 1, 63, 64, 65, 127, 128, 200] {
            let map = Bitmap::full(len);
            assert!(map.is_full());
            agree(&map, &(0..len).collect());
        }
    }

    #[test]
    fn foreign_bytes_are_checked() {
        assert_eq!(
            Bitmap::from_bytes(9, &[0]),
            Err(BitmapError::Length { len: 9, bytes: 1 })
        );
        assert_eq!(
            Bitmap::from_bytes(9, &[0, 2]),
            Err(BitmapError::Excess { len: 9 })
        );
        assert_eq!(
            Bitmap::from_bytes(9, &[0, 1])
                .unwrap()
                .ones()
                .collect::<Vec<_>>(),
            [8]
        );
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(len in 0u32..200, ops in prop::collection::vec((any::<bool>(), 0u32..220), 0..80)) {
            let (mut map, mut model) = (Bitmap::new(len), BTreeSet::new());
            for (set, index) in ops {
                if set {
                    prop_assert_eq!(map.set(index), index < len && model.insert(index));
                } else {
                    prop_assert_eq!(map.clear(index), model.remove(&index));
                }
            }
            agree(&map, &model);
            let mut united = Bitmap::new(len);
            united.union_with(&map);
            prop_assert_eq!(united, map);
        }

        #[test]
        fn any_bytes_are_refused_or_kept(len in 0u32..100, bytes in prop::collection::vec(any::<u8>(), 0..14)) {
            if let Ok(map) = Bitmap::from_bytes(len, &bytes) {
                prop_assert_eq!(map.to_bytes(), bytes);
            }
        }
    }
}
