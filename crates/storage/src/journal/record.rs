//! The records of a task's journal, and their form in bytes.
//!
//! All numbers are little-endian; a text is its length (`u32`) and its bytes; an optional value is a byte (0 or 1) and the
//! value. The first byte of a record is its tag. Unknown tags and records that do not end where their last field
//! ends are damage: a reader stops there.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use protocol::{Crc32, Digest, Geometry, PeerId, TaskId, TaskKind, TrafficType};

use crate::meta::{Mark, NewTask, OriginUse, PieceOrigin, Retention};

/// Longest record, in bytes. Bounds what a reader allocates for a damaged length.
pub(crate) const RECORD_LEN_MAX: usize = 256 << 10;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// The first record: which task this is.
    Task {
        task: Box<NewTask>,
        created_at: SystemTime,
    },
    /// Something happened to the task.
    Mark { mark: Mark, at: SystemTime },
    /// A piece became whole.
    Piece { number: u32, piece: PieceEntry },
    /// A piece proved corrupt and was dropped.
    Dropped { number: u32 },
    /// Every recorded piece was verified when the content file looked like this.
    Stamp(EpochStamp),
    /// Retention and lifetime were set anew.
    Retention {
        retention: Retention,
        ttl: Option<Duration>,
    },
    /// The origin is read; the last of these counts.
    OriginUse(OriginUse),
    /// The whole content was read and has this digest.
    Confirmed { digest: Digest },
}

/// A whole piece, without what the geometry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PieceEntry {
    pub(crate) crc32: Crc32,
    pub(crate) origin: PieceOrigin,
}

/// How a content file looks from outside: changes whenever anybody writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) len: u64,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
}

/// A stamp and the life of the store in which it was taken: it says nothing after a power loss, which starts another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochStamp {
    pub(crate) epoch: u64,
    pub(crate) stamp: Stamp,
}

const TAG_TASK: u8 = 1;
const TAG_MARK: u8 = 2;
const TAG_PIECE: u8 = 3;
const TAG_DROPPED: u8 = 4;
const TAG_STAMP: u8 = 5;
const TAG_RETENTION: u8 = 6;
const TAG_ORIGIN_USE: u8 = 7;
const TAG_CONFIRMED: u8 = 8;

impl Record {
    /// Appends the record's bytes, without framing.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Task { task, created_at } => {
                out.push(TAG_TASK);
                encode_task(out, task, *created_at);
            }
            Self::Mark { mark, at } => {
                out.extend([TAG_MARK, mark_number(*mark)]);
                put_time(out, *at);
            }
            Self::Piece { number, piece } => {
                out.push(TAG_PIECE);
                put_u32(out, *number);
                put_u32(out, piece.crc32.0);
                out.push(piece.origin.traffic.number());
                put_time(out, piece.origin.created_at);
                put_u64(out, micros(piece.origin.cost));
                put_option(out, piece.origin.parent.as_ref(), |out, parent| {
                    put_text(out, parent.as_str())
                });
            }
            Self::Dropped { number } => {
                out.push(TAG_DROPPED);
                put_u32(out, *number);
            }
            Self::Stamp(EpochStamp { epoch, stamp }) => {
                out.push(TAG_STAMP);
                put_u64(out, *epoch);
                put_u64(out, stamp.len);
                out.extend(stamp.mtime_s.to_le_bytes());
                put_u32(out, stamp.mtime_ns);
            }
            Self::Retention { retention, ttl } => {
                out.push(TAG_RETENTION);
                put_retention(out, *retention, *ttl);
            }
            Self::OriginUse(OriginUse { reason, at }) => {
                out.push(TAG_ORIGIN_USE);
                put_time(out, *at);
                put_text(out, reason);
            }
            Self::Confirmed { digest } => {
                out.push(TAG_CONFIRMED);
                put_text(out, &digest.to_string());
            }
        }
    }

    /// The record that these bytes are, or nothing when they are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let record = match fields.u8()? {
            TAG_TASK => decode_task(&mut fields)?,
            TAG_MARK => Self::Mark {
                mark: mark_from(fields.u8()?)?,
                at: fields.time()?,
            },
            TAG_PIECE => decode_piece(&mut fields)?,
            TAG_DROPPED => Self::Dropped {
                number: fields.u32()?,
            },
            TAG_STAMP => Self::Stamp(EpochStamp {
                epoch: fields.u64()?,
                stamp: Stamp {
                    len: fields.u64()?,
                    mtime_s: fields.i64()?,
                    mtime_ns: fields.u32()?,
                },
            }),
            TAG_RETENTION => {
                let (retention, ttl) = fields.retention()?;
                Self::Retention { retention, ttl }
            }
            TAG_ORIGIN_USE => {
                let at = fields.time()?;
                let reason = fields.text()?.to_owned();
                Self::OriginUse(OriginUse { reason, at })
            }
            TAG_CONFIRMED => Self::Confirmed {
                digest: fields.text()?.parse().ok()?,
            },
            _ => return None,
        };
        fields.0.is_empty().then_some(record)
    }
}

fn encode_task(out: &mut Vec<u8>, task: &NewTask, created_at: SystemTime) {
    put_text(out, task.id.as_str());
    out.push(task.kind.number());
    put_u64(out, task.geometry.content_length());
    put_u64(out, task.geometry.piece_length());
    put_time(out, created_at);
    put_retention(out, task.retention, task.ttl);
    put_text(out, &task.url);
    put_option(out, task.etag.as_ref(), |out, text| put_text(out, text));
    put_option(out, task.last_modified.as_ref(), |out, text| {
        put_text(out, text)
    });
    put_u32(out, len_u32(task.response_header.len()));
    for (name, value) in &task.response_header {
        put_text(out, name);
        put_text(out, value);
    }
}

fn decode_task(fields: &mut Fields<'_>) -> Option<Record> {
    let id = TaskId::try_from(fields.text()?).ok()?;
    let kind = TaskKind::from_number(fields.u8()?)?;
    let geometry = Geometry::new(fields.u64()?, fields.u64()?).ok()?;
    let created_at = fields.time()?;
    let (retention, ttl) = fields.retention()?;
    let url = fields.text()?.to_owned();
    let etag = fields.option(|fields| fields.text().map(str::to_owned))?;
    let last_modified = fields.option(|fields| fields.text().map(str::to_owned))?;
    let mut response_header = BTreeMap::new();
    for _ in 0..fields.u32()? {
        response_header.insert(fields.text()?.to_owned(), fields.text()?.to_owned());
    }
    let task = NewTask {
        id,
        kind,
        url,
        geometry,
        response_header,
        etag,
        last_modified,
        retention,
        ttl,
    };
    Some(Record::Task {
        task: Box::new(task),
        created_at,
    })
}

fn decode_piece(fields: &mut Fields<'_>) -> Option<Record> {
    let number = fields.u32()?;
    let crc32 = Crc32(fields.u32()?);
    let traffic = TrafficType::from_number(fields.u8()?)?;
    let created_at = fields.time()?;
    let cost = Duration::from_micros(fields.u64()?);
    let parent = fields.option(|fields| PeerId::try_from(fields.text()?).ok())?;
    let origin = PieceOrigin {
        parent,
        traffic,
        created_at,
        cost,
    };
    Some(Record::Piece {
        number,
        piece: PieceEntry { crc32, origin },
    })
}

const MARKS: [Mark; 6] = [
    Mark::Started,
    Mark::Finished,
    Mark::Failed,
    Mark::Prefetched,
    Mark::PrefetchCancelled,
    Mark::Public,
];

fn mark_number(mark: Mark) -> u8 {
    match mark {
        Mark::Started => 0,
        Mark::Finished => 1,
        Mark::Failed => 2,
        Mark::Prefetched => 3,
        Mark::PrefetchCancelled => 4,
        Mark::Public => 5,
    }
}

fn mark_from(number: u8) -> Option<Mark> {
    MARKS.into_iter().find(|mark| mark_number(*mark) == number)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, len_u32(text.len()));
    out.extend(text.as_bytes());
}

fn put_time(out: &mut Vec<u8>, time: SystemTime) {
    put_u64(out, millis(time));
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_retention(out: &mut Vec<u8>, retention: Retention, ttl: Option<Duration>) {
    out.push(u8::from(retention == Retention::Kept));
    put_option(out, ttl, |out, ttl| {
        put_u64(out, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
    });
}

/// A length as it is written; one that does not fit makes a record that is refused for its length.
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970; times before that become it.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time so many milliseconds after 1970.
pub(crate) fn from_millis(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(millis))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What is left of a record; each read takes from the front, or says that nothing fits.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn i64(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    fn time(&mut self) -> Option<SystemTime> {
        self.u64().map(from_millis)
    }

    /// The outer option: whether it could be read. The inner: whether there is a value.
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    fn retention(&mut self) -> Option<(Retention, Option<Duration>)> {
        let retention = match self.u8()? {
            0 => Retention::Evictable,
            1 => Retention::Kept,
            _ => return None,
        };
        Some((
            retention,
            self.option(|fields| fields.u64().map(Duration::from_millis))?,
        ))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let ms = || any::<u32>().prop_map(|ms| from_millis(u64::from(ms)));
        let retention = || prop_oneof![Just(Retention::Evictable), Just(Retention::Kept)];
        let ttl = || {
            proptest::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(u64::from(ms))))
        };
        let parent =
            proptest::option::of("[a-z0-9.-]{1,80}".prop_map(|id| PeerId::try_from(id).unwrap()));
        let piece = (
            any::<u32>(),
            any::<u32>(),
            0u8..3,
            ms(),
            any::<u32>(),
            parent,
        )
            .prop_map(
                |(number, crc, traffic, created_at, cost, parent)| Record::Piece {
                    number,
                    piece: PieceEntry {
                        crc32: Crc32(crc),
                        origin: PieceOrigin {
                            parent,
                            traffic: TrafficType::from_number(traffic).unwrap(),
                            created_at,
                            cost: Duration::from_micros(u64::from(cost)),
                        },
                    },
                },
            );
        let header = proptest::collection::btree_map("[a-z-]{1,20}", ".{0,40}", 0..5);
        let task = (
            "[a-zA-Z0-9._-]{3,128}",
            ".{0,100}",
            0u64..1 << 40,
            ms(),
            header,
            proptest::option::of(".{0,20}"),
            ttl(),
        )
            .prop_map(
                |(id, url, length, created_at, response_header, etag, ttl)| {
                    let id = TaskId::try_from(id).unwrap();
                    let mut task = NewTask::new(
                        id,
                        TaskKind::Persistent,
                        url,
                        Geometry::standard(length).unwrap(),
                    );
                    task.response_header = response_header;
                    task.last_modified = etag.clone();
                    task.etag = etag;
                    task.ttl = ttl;
                    Record::Task {
                        task: Box::new(task),
                        created_at,
                    }
                },
            );
        prop_oneof![
            task,
            piece,
            (0usize..6, ms()).prop_map(|(mark, at)| Record::Mark {
                mark: MARKS[mark],
                at
            }),
            any::<u32>().prop_map(|number| Record::Dropped { number }),
            (retention(), ttl()).prop_map(|(retention, ttl)| Record::Retention { retention, ttl }),
            (".{0,80}", ms()).prop_map(|(reason, at)| Record::OriginUse(OriginUse { reason, at })),
            any::<[u8; 32]>().prop_map(|bytes| Record::Confirmed {
                digest: Digest::Sha256(bytes)
            }),
            (any::<u64>(), any::<u64>(), any::<i64>(), any::<u32>()).prop_map(
                |(epoch, len, mtime_s, mtime_ns)| {
                    Record::Stamp(EpochStamp {
                        epoch,
                        stamp: Stamp {
                            len,
                            mtime_s,
                            mtime_ns,
                        },
                    })
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_encoding(record in any_record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(Record::decode(&bytes), Some(record));
        }

        #[test]
        fn a_cut_record_is_none(record in any_record(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(Record::decode(&bytes[..cut.index(bytes.len())]), None);
        }

        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(record) = Record::decode(&bytes) {
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(Record::decode(&again), Some(record));
            }
        }
    }
}
