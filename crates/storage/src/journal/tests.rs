use super::record::tests::any_record;
use super::*;
use crate::meta::Mark;
use crate::meta::OriginUse;
use proptest::prelude::*;
use protocol::{Geometry, PieceNumber, TaskId, TaskKind};

fn task() -> NewTask {
    let geometry = Geometry::new(100_000, 1000).unwrap();
    NewTask::new(
        TaskId::try_from("abcdef").unwrap(),
        TaskKind::Standard,
        "http://origin/",
        geometry,
    )
}

fn piece(number: u32) -> Record {
    let origin = crate::meta::PieceOrigin {
        parent: None,
        traffic: protocol::TrafficType::BackToSource,
        created_at: from_millis(5),
        cost: Duration::from_micros(7),
    };
    Record::Piece {
        number,
        piece: PieceEntry {
            crc32: protocol::Crc32(number),
            origin,
        },
    }
}

fn journal_of(records: &[Record]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    frame(
        &Record::Task {
            task: Box::new(task()),
            created_at: from_millis(1),
        },
        &mut bytes,
    );
    for record in records {
        frame(record, &mut bytes);
    }
    bytes
}

fn numbers(bytes: &[u8]) -> Option<Vec<u32>> {
    Some(replay(bytes).unwrap()?.pieces.into_keys().collect())
}

#[test]
fn a_journal_cut_anywhere_keeps_the_records_before_the_cut() {
    let records: Vec<Record> = (0..4).map(piece).collect();
    let ends: Vec<usize> = (0..=records.len())
        .map(|count| journal_of(&records[..count]).len())
        .collect();
    let bytes = journal_of(&records);
    for cut in 0..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let expected = whole
            .checked_sub(1)
            .map(|count| (0..u32::try_from(count).unwrap()).collect::<Vec<_>>());
        assert_eq!(numbers(&bytes[..cut]), expected, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_ends_the_journal_there_or_earlier() {
    let records: Vec<Record> = (0..4).map(piece).collect();
    let bytes = journal_of(&records);
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        let found = numbers(&damaged).unwrap_or_default();
        assert!(
            found.len() < 4
                && found
                    .iter()
                    .copied()
                    .eq(0..u32::try_from(found.len()).unwrap()),
            "bit {at}"
        );
    }
}

#[test]
fn zeros_behind_the_records_are_damage_and_no_records() {
    let mut bytes = journal_of(&[piece(3)]);
    let good_len = bytes.len() as u64;
    bytes.extend([0; 4096]);
    let replayed = replay(&bytes[..]).unwrap().unwrap();
    assert!(replayed.damaged);
    assert_eq!((replayed.good_len, replayed.pieces.len()), (good_len, 1));
}

#[test]
fn pieces_outside_of_the_content_are_damage() {
    let replayed = replay(&journal_of(&[piece(1), piece(100)])[..])
        .unwrap()
        .unwrap();
    assert!(replayed.damaged && replayed.pieces.len() == 1);
}

/// Found by the fuzzer: a record that ends the journal was counted as one of it.
#[test]
fn a_senseless_record_is_not_counted() {
    let first = Record::Task {
        task: Box::new(task()),
        created_at: SystemTime::UNIX_EPOCH,
    };
    let replayed = replay(&journal_of(&[first.clone(), first])[..])
        .unwrap()
        .unwrap();
    assert!(replayed.damaged);
    assert_eq!(replayed.record_count, 1);
}

#[test]
fn a_stamp_counts_until_a_piece_changes() {
    let stamp = EpochStamp {
        epoch: 3,
        stamp: Stamp {
            len: 1,
            mtime_s: 2,
            mtime_ns: 3,
        },
    };
    let last = |records: &[Record]| replay(&journal_of(records)[..]).unwrap().unwrap().stamp;
    let mark = Record::Mark {
        mark: Mark::Finished,
        at: from_millis(9),
    };
    assert_eq!(last(&[piece(1), Record::Stamp(stamp), mark]), Some(stamp));
    assert_eq!(last(&[Record::Stamp(stamp), piece(1)]), None);
    assert_eq!(
        last(&[
            piece(1),
            Record::Stamp(stamp),
            Record::Dropped { number: 1 }
        ]),
        None
    );
}

#[test]
fn the_last_reason_for_reading_the_origin_survives_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut journal = Journal::create(&path, &task(), from_millis(1)).unwrap();
    let used = |reason: &str| OriginUse {
        reason: reason.to_owned(),
        at: from_millis(7),
    };
    for reason in ["first", "last"] {
        journal.append(&Record::OriginUse(used(reason))).unwrap();
    }
    let (mut journal, replayed) = Journal::open(&path).unwrap().unwrap();
    assert_eq!(replayed.origin_use, Some(used("last")));
    journal
        .compact(&replayed, &dir.path().join("staging"))
        .unwrap();
    let (_, replayed) = Journal::open(&path).unwrap().unwrap();
    assert_eq!(replayed.origin_use, Some(used("last")));
}

#[test]
fn a_refused_append_leaves_the_journal_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut journal = Journal::create(&path, &task(), from_millis(1)).unwrap();
    let read_only = File::open(&path).unwrap();
    let file = std::mem::replace(&mut journal.file, read_only);
    assert!(journal.append(&piece(1)).is_err());
    journal.file = file;
    journal.append(&piece(2)).unwrap();
    let (_, replayed) = Journal::open(&path).unwrap().unwrap();
    assert!(!replayed.damaged);
    assert_eq!(replayed.pieces.into_keys().collect::<Vec<_>>(), [2]);
}

/// The vectors that the format is held to: a change here needs a new version in [`MAGIC`] and a reader for this one.
#[test]
fn the_format_is_what_it_was() {
    let bytes = journal_of(&[piece(2), Record::Dropped { number: 2 }]);
    let expected = concat!(
        // Magic and version.
        "44465441534b4a01",
        // Length and checksum; tag, id, kind, content and piece length, creation, retention, lifetime.
        "3e000000d08bb033",
        "01",
        "06000000616263646566",
        "00",
        "a086010000000000",
        "e803000000000000",
        "0100000000000000",
        "00",
        "00",
        // URL, validators, count of headers.
        "0e000000687474703a2f2f6f726967696e2f",
        "00",
        "00",
        "00000000",
        // A piece: number, digest, traffic type, creation, cost, parent.
        "1b000000327021fb",
        "03",
        "02000000",
        "02000000",
        "00",
        "0500000000000000",
        "0700000000000000",
        "00",
        // A dropped piece.
        "05000000aa3f17f3",
        "0402000000",
    );
    assert_eq!(hex(&bytes), expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn compacting_changes_nothing_that_is_known(records in proptest::collection::vec(any_record(), 0..40)) {
        let before = replay(&journal_of(&records)[..]).unwrap().unwrap();
        let mut bytes = MAGIC.to_vec();
        frame(&Record::Task { task: Box::new(before.task.clone()), created_at: before.times.created_at }, &mut bytes);
        for record in before.records() {
            frame(&record, &mut bytes);
        }
        let after = replay(&bytes[..]).unwrap().unwrap();
        prop_assert_eq!((&after.task, &after.pieces, after.stamp), (&before.task, &before.pieces, before.stamp));
        prop_assert!(!after.damaged);
    }

    #[test]
    fn any_bytes_behind_the_magic_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = replay(&[&MAGIC[..], &bytes].concat()[..]).unwrap();
        let replayed = replay(&[journal_of(&[piece(0)]), bytes].concat()[..]).unwrap().unwrap();
        prop_assert!(replayed.pieces.contains_key(&0));
    }

    #[test]
    fn the_fuzzed_entry_holds_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
        fuzz(&[&journal_of(&[piece(0)])[MAGIC.len() + FRAME_LEN - 4..], &bytes].concat());
    }

    #[test]
    fn recorded_bytes_count_short_last_pieces(numbers in proptest::collection::btree_set(0u32..100, 0..100)) {
        let records: Vec<Record> = numbers.iter().map(|number| piece(*number)).collect();
        let replayed = replay(&journal_of(&records)[..]).unwrap().unwrap();
        let lengths = numbers.iter().map(|number| task().geometry.piece(PieceNumber(*number)).unwrap().length);
        prop_assert_eq!(replayed.recorded_bytes(), lengths.sum::<u64>());
    }
}
