//! The content of a generated file: a function of seed and offset, so that no disk space is needed to serve it.

use sha2::{Digest, Sha256};

/// Pseudo-random bytes of a given length. The same seed gives the same bytes; they do not compress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub(super) seed: u64,
    pub(super) len: u64,
}

impl Content {
    /// Writes the bytes from `offset` on into `buffer`, which must not reach beyond the end.
    pub(super) fn fill(self, offset: u64, buffer: &mut [u8]) {
        let head = usize::try_from((8 - offset % 8) % 8)
            .unwrap_or(0)
            .min(buffer.len());
        let (unaligned, aligned) = buffer.split_at_mut(head);
        if !unaligned.is_empty() {
            let word = self.word(offset / 8).to_le_bytes();
            let from = word.len() - usize::try_from(8 - offset % 8).unwrap_or(0);
            unaligned.copy_from_slice(&word[from..from + unaligned.len()]);
        }
        let first = (offset + head as u64) / 8;
        for (index, chunk) in (first..).zip(aligned.chunks_mut(8)) {
            chunk.copy_from_slice(&self.word(index).to_le_bytes()[..chunk.len()]);
        }
    }

    /// SHA-256 of the whole, in hex. Takes about a second per GiB: call it off the reactor.
    pub(super) fn sha256(self) -> String {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut offset = 0;
        while offset < self.len {
            let len = usize::try_from(self.len - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            self.fill(offset, &mut buffer[..len]);
            hasher.update(&buffer[..len]);
            offset += len as u64;
        }
        hex::encode(hasher.finalize())
    }

    /// The eight bytes at `8 * index`: splitmix64 (Steele, Lea, Flood 2014), whose state is its own index.
    fn word(self, index: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTENT: Content = Content { seed: 7, len: 1000 };

    fn whole() -> Vec<u8> {
        let mut bytes = vec![0; 1000];
        CONTENT.fill(0, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn every_part_is_the_same_part_of_the_whole(offset in 0_usize..1000, len in 0_usize..1000) {
            let len = len.min(1000 - offset);
            let mut part = vec![0; len];
            CONTENT.fill(offset as u64, &mut part);
            prop_assert_eq!(&part, &whole()[offset..offset + len]);
        }
    }

    #[test]
    fn the_digest_is_that_of_the_bytes() {
        assert_eq!(CONTENT.sha256(), hex::encode(Sha256::digest(whole())));
    }
}
