//! Writing the bytes that come over the socket.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use protocol::{Digest, DigestAlgorithm, DigestHasher};

use super::destination::Destination;
use crate::failure::Failure;

/// Pieces that came before their turn are kept in memory up to this many bytes, then in an unnamed file in the temporary directory: the
/// daemon sends pieces in any order, and waiting for the right one without taking the others would wait for ever.
const AHEAD_BYTES_MAX: usize = 32 << 20;

/// Takes pieces in any order. Its methods block.
#[derive(Debug)]
pub(super) enum Sink {
    /// The daemon writes the output; nothing comes here.
    None,
    /// A file, written at each piece's place.
    File(File),
    /// Something that takes bytes in order only.
    Ordered(Box<Ordered>),
}

impl Sink {
    /// The sink for `destination`; `algorithm` is what to compute on the way if the bytes pass in order.
    pub(super) fn new(
        destination: &Destination,
        algorithm: Option<DigestAlgorithm>,
    ) -> Result<Self, Failure> {
        match destination {
            Destination::Daemon { .. } | Destination::Staged { .. } => Ok(Self::None),
            Destination::Own { staged, .. } => {
                let mut options = OpenOptions::new();
                let file = options
                    .write(true)
                    .create_new(true)
                    .mode(0o644)
                    .open(staged);
                file.map(Self::File)
                    .map_err(|error| Failure::output(staged, &error))
            }
            Destination::Stream(stream) => {
                let failure = |error| Failure::output(destination.shown().as_ref(), &error);
                Ok(Self::Ordered(Box::new(Ordered::new(
                    stream.open().map_err(failure)?,
                    algorithm,
                ))))
            }
        }
    }

    /// Whether pieces must bring their content.
    pub(super) fn wants_content(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Told the length before the first piece.
    pub(super) fn begin(&mut self, content_length: u64) -> io::Result<()> {
        let Self::File(file) = self else {
            return Ok(());
        };
        // Reserves the room now, so that a full disk is known before the download and not at its end.
        match rustix::fs::fallocate(
            &*file,
            rustix::fs::FallocateFlags::empty(),
            0,
            content_length.max(1),
        ) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                file.set_len(content_length)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the bytes from `offset`.
    pub(super) fn write(&mut self, offset: u64, content: Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::File(file) => file.write_all_at(&content, offset),
            Self::Ordered(ordered) => ordered.write(offset, content),
        }
    }

    /// Everything came; the digest, if one was computed on the way.
    pub(super) fn finish(self) -> Option<Digest> {
        match self {
            Self::None | Self::File(_) => None,
            Self::Ordered(ordered) => ordered.hasher.map(DigestHasher::finish),
        }
    }
}

/// Passes pieces on in order, keeping those that came too early.
#[derive(Debug)]
pub(super) struct Ordered {
    output: File,
    next: u64,
    early: BTreeMap<u64, Early>,
    early_bytes: usize,
    spill: Option<File>,
    hasher: Option<DigestHasher>,
    memory_max: usize,
}

#[derive(Debug)]
enum Early {
    InMemory(Vec<u8>),
    /// In the spill file at the same offset as in the content.
    Spilled {
        length: usize,
    },
}

impl Ordered {
    fn new(output: File, algorithm: Option<DigestAlgorithm>) -> Self {
        Self {
            output,
            next: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            spill: None,
            hasher: algorithm.map(DigestHasher::new),
            memory_max: AHEAD_BYTES_MAX,
        }
    }

    fn write(&mut self, offset: u64, content: Vec<u8>) -> io::Result<()> {
        if offset != self.next {
            return self.keep(offset, content);
        }
        self.pass_on(&content)?;
        drop(content);
        while let Some(early) = self.early.remove(&self.next) {
            let content = match early {
                Early::InMemory(content) => {
                    self.early_bytes -= content.len();
                    content
                }
                Early::Spilled { length } => {
                    let mut content = vec![0; length];
                    let at = self.next;
                    self.spill_file()?.read_exact_at(&mut content, at)?;
                    content
                }
            };
            self.pass_on(&content)?;
        }
        Ok(())
    }

    fn keep(&mut self, offset: u64, content: Vec<u8>) -> io::Result<()> {
        let early = if self.early_bytes + content.len() <= self.memory_max {
            self.early_bytes += content.len();
            Early::InMemory(content)
        } else {
            self.spill_file()?.write_all_at(&content, offset)?;
            Early::Spilled {
                length: content.len(),
            }
        };
        self.early.insert(offset, early);
        Ok(())
    }

    fn spill_file(&mut self) -> io::Result<&File> {
        match &mut self.spill {
            Some(file) => Ok(file),
            none => Ok(none.insert(tempfile::tempfile()?)),
        }
    }

    fn pass_on(&mut self, content: &[u8]) -> io::Result<()> {
        self.output.write_all(content)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(content);
        }
        self.next += content.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_come_out_in_order_however_they_come_in(
            lengths in prop::collection::vec(1_usize..50, 1..30),
            shuffle in any::<u64>(),
            memory_max in 0_usize..300,
        ) {
            let whole: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|index| u8::try_from(index % 251).unwrap()).collect();
            let mut pieces = Vec::new();
            let mut offset = 0;
            for length in lengths {
                pieces.push((offset, whole[offset..offset + length].to_vec()));
                offset += length;
            }
            pieces.sort_by_key(|(offset, _)| (*offset as u64).wrapping_mul(shuffle | 1));
            let output = tempfile::NamedTempFile::new().unwrap();
            let mut ordered = Ordered::new(output.reopen().unwrap(), Some(DigestAlgorithm::Crc32));
            ordered.memory_max = memory_max;
            for (offset, content) in pieces {
                ordered.write(offset as u64, content).unwrap();
                prop_assert!(ordered.early_bytes <= memory_max);
            }
            prop_assert!(ordered.early.is_empty() && ordered.early_bytes == 0);
            prop_assert_eq!(Sink::Ordered(Box::new(ordered)).finish(), Some(Digest::of(DigestAlgorithm::Crc32, &whole)));
            prop_assert_eq!(std::fs::read(output.path()).unwrap(), whole);
        }
    }
}
