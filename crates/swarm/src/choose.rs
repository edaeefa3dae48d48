//! Which segment, which piece: rarest first near the front, random among equals.

use std::ops::Range;

use protocol::Bitmap;

/// The first set bit at `from` or behind it.
pub(crate) fn first_one(map: &Bitmap, from: u32) -> Option<u32> {
    ones_within(map.words(), |word| word, from..map.len()).next()
}

/// Whether the two maps share a set bit.
pub(crate) fn intersects(a: &Bitmap, b: &Bitmap) -> bool {
    a.words().iter().zip(b.words()).any(|(a, b)| a & b != 0)
}

/// The segments in `range` that are set in `open` and in one of `offers`, in rising order.
pub(crate) fn candidates<'a>(
    open: &'a Bitmap,
    offers: &'a [&'a Bitmap],
    range: Range<u32>,
) -> impl Iterator<Item = u32> + 'a {
    let start = first_word(&range);
    let mut at = start;
    let offered = move |word: u64| {
        let any = offers.iter().fold(0, |any, offer| any | offer.words()[at]);
        at += 1;
        word & any
    };
    ones_within(open.words(), offered, range)
}

/// Of `from`, the one with the smallest `cost`; each of several equals with the same chance.
pub(crate) fn cheapest<T: Copy, C: Ord>(
    from: impl Iterator<Item = T>,
    mut cost: impl FnMut(T) -> C,
    chance: &mut fastrand::Rng,
) -> Option<T> {
    let mut best: Option<(C, T)> = None;
    let mut equals = 0u32;
    for item in from {
        let price = cost(item);
        match &best {
            Some((lowest, _)) if price > *lowest => continue,
            Some((lowest, _)) if price == *lowest => {
                equals += 1;
                if chance.u32(0..equals) != 0 {
                    continue;
                }
            }
            _ => equals = 1,
        }
        best = Some((price, item));
    }
    best.map(|(_, item)| item)
}

fn first_word(range: &Range<u32>) -> usize {
    (range.start / u64::BITS) as usize
}

/// Set bits of `select(word)` for the words that touch `range`, cut to the range.
fn ones_within<'a>(
    words: &'a [u64],
    mut select: impl FnMut(u64) -> u64 + 'a,
    range: Range<u32>,
) -> impl Iterator<Item = u32> + 'a {
    let first = first_word(&range);
    let end = (range.end.div_ceil(u64::BITS) as usize).min(words.len());
    let words = words.get(first..end).unwrap_or(&[]);
    let base = range.start / u64::BITS * u64::BITS;
    (0u32..)
        .zip(words)
        .flat_map(move |(at, word)| {
            let mut left = select(*word);
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (bit < u64::BITS).then(|| {
                    left &= left - 1;
                    base + at * u64::BITS + bit
                })
            })
        })
        .skip_while(move |index| *index < range.start)
        .take_while(move |index| *index < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(len: u32, ones: &[u32]) -> Bitmap {
        let mut map = Bitmap::new(len);
        ones.iter().for_each(|one| assert!(map.set(*one)));
        map
    }

    #[test]
    fn candidates_are_open_and_offered_and_in_range() {
        let open = map(200, &[0, 1, 63, 64, 65, 130, 199]);
        let (a, b) = (map(200, &[1, 64, 130]), map(200, &[63, 130, 199]));
        let all = |range| candidates(&open, &[&a, &b], range).collect::<Vec<_>>();
        assert_eq!(all(0..200), [1, 63, 64, 130, 199]);
        assert_eq!(all(2..131), [63, 64, 130]);
        assert_eq!(all(64..64), []);
        assert_eq!(all(150..900), [199]);
        assert_eq!(first_one(&open, 66), Some(130));
        assert_eq!(first_one(&a, 131), None);
        assert!(intersects(&a, &b));
        assert!(!intersects(&map(3, &[0]), &map(3, &[1])));
    }

    #[test]
    fn ties_are_broken_by_chance_alone() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut seen = [0u32; 4];
        for _ in 0..400 {
            let pick = cheapest(0..4usize, |item| item == 2, &mut chance).unwrap();
            seen[pick] += 1;
        }
        assert_eq!(seen[2], 0);
        assert!(
            seen.iter().filter(|count| **count > 90).count() == 3,
            "{seen:?}"
        );
    }
}
