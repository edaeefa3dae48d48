//! The journal of one task: which pieces are whole, and what happened to the task.
//!
//! Each task has an append-only file of its own: deleting a task is an unlink, damage stays with one task, and an
//! idle task costs neither memory nor a descriptor. The file starts with [`MAGIC`]; then come frames of
//! `u32 length, u32 CRC-32 of length and payload, payload`, little-endian.
//!
//! **What may be on disk after a crash.** A record is one positional write at the end of what is known to be good. A kill in the
//! middle of it leaves a torn frame behind the good ones: its checksum fails, a reader stops before it, and the next
//! open cuts it off. A piece record is written only after all bytes of the piece went to the content file, so
//! under a kill of the process, whose writes stay in the page cache, a record implies the bytes. Nothing is
//! flushed: after a power loss a record proves nothing by itself, see the trust rules of [`crate::Options`].

mod record;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(crate) use record::{
    EpochStamp, PieceEntry, RECORD_LEN_MAX, Record, Stamp, from_millis, millis,
};

use protocol::Digest;

use crate::error::{DiskContext, DiskError};
use crate::meta::{NewTask, OriginUse, Retention, TaskTimes};

/// Names the file type and, in its last byte, the version of the format.
const MAGIC: [u8; 8] = *b"DFTASKJ\x01";
const FRAME_LEN: usize = 8;
/// What a piece record usually takes on disk: used to reserve space for it.
pub(crate) const PIECE_RECORD_LEN: u64 = 128;

/// A journal open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    /// Length of the good part: where the next record goes, over whatever a failed append left behind.
    len: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Starts the journal of a new task with its first record. A file of this name must not exist.
    pub(crate) fn create(
        path: &Path,
        task: &NewTask,
        created_at: SystemTime,
    ) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .doing("create the journal", path)?;
        let mut journal = Self {
            file,
            path: path.to_owned(),
            len: 0,
            buffer: MAGIC.to_vec(),
        };
        journal.append(&Record::Task {
            task: Box::new(task.clone()),
            created_at,
        })?;
        Ok(journal)
    }

    /// Opens the journal of a task, cuts off what is torn or damaged, and says what it holds. Nothing when not even its first record is good.
    pub(crate) fn open(path: &Path) -> Result<Option<(Self, Replay)>, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .doing("open the journal", path)?;
        let Some(replay) =
            replay(BufReader::with_capacity(64 << 10, &file)).doing("read the journal", path)?
        else {
            return Ok(None);
        };
        if replay.damaged {
            file.set_len(replay.good_len)
                .doing("cut the damaged end off the journal", path)?;
        }
        let journal = Self {
            file,
            path: path.to_owned(),
            len: replay.good_len,
            buffer: Vec::new(),
        };
        Ok(Some((journal, replay)))
    }

    /// Adds a record. When the disk refuses, nothing was added, and the next append writes over the same place.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), DiskError> {
        frame(record, &mut self.buffer);
        let written = self.file.write_all_at(&self.buffer, self.len);
        let added = self.buffer.len() as u64;
        self.buffer.clear();
        if let Err(error) = written {
            // Best effort: a reader stops at the torn frame anyway.
            let _ = self.file.set_len(self.len);
            return Err(DiskError::new("append to the journal", &self.path, error));
        }
        self.len += added;
        Ok(())
    }

    /// The file, for its times and for reserving space.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes a journal without what has been superseded beside this one and puts it in its place by a rename: a kill
    /// leaves either the one or the other.
    pub(crate) fn compact(&mut self, replay: &Replay, staging: &Path) -> Result<(), DiskError> {
        match std::fs::remove_file(staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DiskError::new("remove", staging, error));
            }
            _ => {}
        }
        let mut fresh = Self::create(staging, &replay.task, replay.times.created_at)?;
        for record in replay.records() {
            frame(&record, &mut fresh.buffer);
        }
        fresh
            .file
            .write_all_at(&fresh.buffer, fresh.len)
            .doing("write the journal", staging)?;
        fresh.len += fresh.buffer.len() as u64;
        fresh.buffer = Vec::new();
        std::fs::rename(staging, &self.path).doing("replace the journal", &self.path)?;
        fresh.path = std::mem::take(&mut self.path);
        *self = fresh;
        Ok(())
    }
}

/// Appends the record in its frame to `out`.
fn frame(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; FRAME_LEN]);
    record.encode(out);
    let len = u32::try_from(out.len() - start - FRAME_LEN)
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    out[start..start + 4].copy_from_slice(&len);
    let crc = checksum(len, &out[start + FRAME_LEN..]);
    out[start + 4..start + FRAME_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// Covers the length too, so that a run of zeros is no frame.
fn checksum(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(payload);
    hasher.finalize()
}

/// How many bytes the first record of a task takes: it must stay under [`RECORD_LEN_MAX`].
pub(crate) fn description_len(task: &NewTask) -> usize {
    let mut bytes = Vec::new();
    Record::Task {
        task: Box::new(task.clone()),
        created_at: SystemTime::UNIX_EPOCH,
    }
    .encode(&mut bytes);
    bytes.len()
}

/// What a journal says, after all its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) task: NewTask,
    pub(crate) times: TaskTimes,
    pub(crate) pieces: BTreeMap<u32, PieceEntry>,
    /// The last stamp, if no piece was recorded or dropped behind it.
    pub(crate) stamp: Option<EpochStamp>,
    /// Why the origin was read, if it was.
    pub(crate) origin_use: Option<OriginUse>,
    /// What the whole content was found to hash to, if no piece was dropped since.
    pub(crate) confirmed: Vec<Digest>,
    /// How many bytes are good.
    pub(crate) good_len: u64,
    /// Whether anything stands behind the good part.
    pub(crate) damaged: bool,
    /// How many records were read; more than needed is worth a compaction.
    pub(crate) record_count: u64,
}

impl Replay {
    fn new(task: NewTask, created_at: SystemTime) -> Self {
        let times = TaskTimes::new(created_at);
        Self {
            task,
            times,
            pieces: BTreeMap::new(),
            stamp: None,
            origin_use: None,
            confirmed: Vec::new(),
            good_len: 0,
            damaged: false,
            record_count: 1,
        }
    }

    /// Applies a record that follows the first. Says whether it made sense.
    fn apply(&mut self, record: Record) -> bool {
        match record {
            Record::Task { .. } => return false,
            Record::Mark { mark, at } => self.times.apply(mark, at),
            Record::Piece { number, .. } if number >= self.task.geometry.piece_count() => {
                return false;
            }
            Record::Piece { number, piece } => {
                self.stamp = None;
                self.pieces.insert(number, piece);
            }
            Record::Dropped { number } => {
                self.stamp = None;
                self.confirmed.clear();
                self.pieces.remove(&number);
            }
            Record::Stamp(stamp) => self.stamp = Some(stamp),
            Record::Retention { retention, ttl } => self.set_retention(retention, ttl),
            Record::OriginUse(origin_use) => self.origin_use = Some(origin_use),
            Record::Confirmed { digest } => confirm(&mut self.confirmed, digest),
        }
        self.record_count += 1;
        true
    }

    fn set_retention(&mut self, retention: Retention, ttl: Option<Duration>) {
        self.task.retention = retention;
        self.task.ttl = ttl;
    }

    /// Bytes of the recorded pieces.
    pub(crate) fn recorded_bytes(&self) -> u64 {
        let spans = self
            .pieces
            .keys()
            .filter_map(|number| self.task.geometry.piece(protocol::PieceNumber(*number)));
        spans.map(|span| span.length).sum()
    }

    /// Whether most of the records are superseded.
    pub(crate) fn is_worth_compacting(&self) -> bool {
        self.record_count > 2 * self.pieces.len() as u64 + 1024
    }

    /// The records that say the same, without the first.
    fn records(&self) -> impl Iterator<Item = Record> {
        use crate::meta::Mark;
        let times = self.times;
        // In an order that leaves the same times behind: `updated_at` is that of the last of the first three.
        let mut marks = vec![
            (Mark::Started, Some(times.updated_at)),
            (Mark::Finished, times.finished_at),
        ];
        marks.push((Mark::Failed, times.failed_at));
        marks.sort_by_key(|(_, at)| *at);
        marks.push((Mark::Prefetched, times.prefetched_at));
        marks.push((Mark::Public, times.public_at));
        let marks = marks
            .into_iter()
            .filter_map(|(mark, at)| at.map(|at| Record::Mark { mark, at }));
        let pieces = self.pieces.iter().map(|(&number, piece)| Record::Piece {
            number,
            piece: piece.clone(),
        });
        let origin_use = self.origin_use.clone().map(Record::OriginUse);
        let confirmed = self.confirmed.iter().cloned();
        marks
            .chain(origin_use)
            .chain(pieces)
            .chain(confirmed.map(|digest| Record::Confirmed { digest }))
            .chain(self.stamp.map(Record::Stamp))
    }
}

/// Adds a digest of the content; one per function, the latest counts.
pub(crate) fn confirm(confirmed: &mut Vec<Digest>, digest: Digest) {
    confirmed.retain(|known| known.algorithm() != digest.algorithm());
    confirmed.push(digest);
}

/// Reads a journal up to its end or to the first damage. Nothing when its first record is not good. Allocates no more
/// than a record's greatest length at once, whatever the bytes claim.
pub(crate) fn replay(mut reader: impl Read) -> io::Result<Option<Replay>> {
    let mut magic = [0; MAGIC.len()];
    if !read_whole(&mut reader, &mut magic)? || magic != MAGIC {
        return Ok(None);
    }
    let mut good_len = MAGIC.len() as u64;
    let mut payload = Vec::new();
    let mut replay: Option<Replay> = None;
    let damaged = loop {
        let record = match next_record(&mut reader, &mut payload)? {
            Next::Record(record) => record,
            Next::End => break false,
            Next::Damage => break true,
        };
        let sensible = match (&mut replay, record) {
            (Some(replay), record) => replay.apply(record),
            (None, Record::Task { task, created_at }) => {
                replay = Some(Replay::new(*task, created_at));
                true
            }
            (None, _) => false,
        };
        if !sensible {
            break true;
        }
        good_len += (FRAME_LEN + payload.len()) as u64;
    };
    Ok(replay.map(|replay| Replay {
        good_len,
        damaged,
        ..replay
    }))
}

enum Next {
    Record(Record),
    End,
    Damage,
}

fn next_record(reader: &mut impl Read, payload: &mut Vec<u8>) -> io::Result<Next> {
    let mut head = [0; FRAME_LEN];
    let got = read_up_to(reader, &mut head)?;
    if got < FRAME_LEN {
        return Ok(if got == 0 { Next::End } else { Next::Damage });
    }
    let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let len = [l0, l1, l2, l3];
    let Some(wanted) = usize::try_from(u32::from_le_bytes(len))
        .ok()
        .filter(|len| *len <= RECORD_LEN_MAX)
    else {
        return Ok(Next::Damage);
    };
    payload.resize(wanted, 0);
    if !read_whole(reader, payload)?
        || checksum(len, payload) != u32::from_le_bytes([c0, c1, c2, c3])
    {
        return Ok(Next::Damage);
    }
    Ok(Record::decode(payload).map_or(Next::Damage, Next::Record))
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    Ok(read_up_to(reader, buffer)? == buffer.len())
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// Reads the bytes as a journal, as a record, and as the payloads of a journal with good checksums, which a fuzzer would not hit by
/// chance. Panics when a record or a journal does not mean the same after it was written again.
pub(crate) fn fuzz(bytes: &[u8]) {
    let read = |bytes: &[u8]| replay(bytes).expect("reading from memory does not fail");
    read(bytes);
    if let Some(record) = Record::decode(bytes) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(Record::decode(&again), Some(record));
    }
    let (mut journal, mut rest) = (MAGIC.to_vec(), bytes);
    while let [len, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(*len)));
        let len = u32::from(*len).to_le_bytes();
        journal.extend(len);
        journal.extend(checksum(len, payload).to_le_bytes());
        journal.extend(payload);
        rest = tail;
    }
    if let Some(replayed) = read(&journal) {
        let good_len =
            usize::try_from(replayed.good_len).expect("it is a part of what is in memory");
        let good = read(&journal[..good_len]).expect("the first record is good");
        assert_eq!(
            Replay {
                damaged: replayed.damaged,
                ..good
            },
            replayed
        );
    }
}

#[cfg(test)]
mod tests;
