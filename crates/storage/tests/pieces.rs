//! The life of a piece: claimed, written, relayed, committed, given up, verified, dropped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::*;
use protocol::{Crc32, Digest, PieceNumber};
use storage::{
    Claim, CommitError, Lookup, Mark, ReadError, Retention, TaskError, Verdict, WriteError,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[test]
fn a_piece_is_whole_only_after_its_commit() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 10_000, 4096);
    assert!(matches!(
        task.piece(PieceNumber(1)).unwrap(),
        Lookup::Missing
    ));

    let writer = claim(&task, 1);
    let data = piece_bytes(&task, 1);
    assert_eq!(writer.write(0, &data).unwrap(), 4096);
    assert_eq!(held(&task), [] as [u32; 0]);
    assert!(matches!(
        task.claim(PieceNumber(1)).unwrap(),
        Claim::Busy(_)
    ));
    let record = writer.commit(Some(Crc32::of(&data)), origin()).unwrap();
    assert_eq!(
        (record.offset, record.length, record.crc32),
        (4096, 4096, Crc32::of(&data))
    );
    assert_eq!(held(&task), [1]);
    assert_eq!(task.piece_record(PieceNumber(1)), Some(record));
    assert!(matches!(
        writer.commit(None, origin()),
        Err(CommitError::Ended { .. })
    ));
    assert!(matches!(
        writer.write(0, &data),
        Err(WriteError::Ended { .. })
    ));
    drop(writer);
    assert_eq!(held(&task), [1]);
    assert!(matches!(
        task.claim(PieceNumber(1)).unwrap(),
        Claim::Whole(_)
    ));
    assert!(matches!(
        task.piece(PieceNumber(3)),
        Err(TaskError::NoSuchPiece { count: 3, .. })
    ));
    assert_held_bytes_are_right(&task);
}

#[test]
fn segments_arrive_in_any_order_from_several_threads() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 3 * MIB + 12_345, 2 * MIB);
    for piece in [1, 0] {
        let data = Arc::new(piece_bytes(&task, piece));
        let writer = Arc::new(claim(&task, piece));
        let segment = usize::try_from(task.geometry().segment_length()).unwrap();
        let segments: Vec<usize> = (0..data.len().div_ceil(segment)).rev().collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (data, writer, segments) = (&data, &writer, &segments);
                scope.spawn(move || {
                    // Every segment comes from two threads, so half of the bytes are passed over.
                    for at in segments.iter().filter(|at| *at % 2 == thread % 2) {
                        let end = data.len().min((at + 1) * segment);
                        let mut offset = at * segment;
                        while offset < end {
                            let next = end.min(offset + 10_007);
                            writer.write(offset as u64, &data[offset..next]).unwrap();
                            offset = next;
                        }
                    }
                });
            }
        });
        assert_eq!(writer.received(), data.len() as u64);
        writer.commit(Some(Crc32::of(&data)), origin()).unwrap();
    }
    assert!(task.is_complete().unwrap());
    assert_held_bytes_are_right(&task);
}

#[test]
fn bytes_that_are_there_are_passed_over_and_gaps_refused() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 600 * KIB, 600 * KIB);
    let data = piece_bytes(&task, 0);
    let writer = claim(&task, 0);
    assert_eq!(writer.write(0, &data[..1000]).unwrap(), 1000);
    assert_eq!(writer.write(500, &data[500..1500]).unwrap(), 500);
    assert_eq!(writer.write(0, &data[..10]).unwrap(), 0);
    assert!(matches!(
        writer.write(1501, b"x"),
        Err(WriteError::Gap { expected: 1500, .. })
    ));
    let second = 256 * KIB;
    let second_at = usize::try_from(second).unwrap();
    assert!(
        matches!(writer.write(second + 1, b"x"), Err(WriteError::Gap { expected, .. }) if expected == second)
    );
    assert!(matches!(
        writer.write(600 * KIB, b"x"),
        Err(WriteError::OutOfBounds { .. })
    ));
    assert!(matches!(
        writer.write(u64::MAX, b"x"),
        Err(WriteError::OutOfBounds { .. })
    ));
    assert!(matches!(
        writer.commit(None, origin()),
        Err(CommitError::Incomplete { received: 1500, length, .. }) if length == 600 * KIB
    ));
    writer.write(second, &data[second_at..]).unwrap();
    assert_eq!(writer.available(0), 1500);
    assert_eq!(writer.available(1500), 0);
    assert_eq!(writer.available(second), 600 * KIB - second);
    writer.write(1500, &data[1500..second_at]).unwrap();
    assert_eq!(writer.available(0), 600 * KIB);
    writer.commit(Some(Crc32::of(&data)), origin()).unwrap();
    assert_held_bytes_are_right(&task);
}

#[test]
fn wrong_bytes_are_never_whole() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 4096, 4096);
    let writer = claim(&task, 0);
    let view = writer.view().unwrap();
    writer.write(0, &[0; 4096]).unwrap();
    let wrong = writer.commit(Some(Crc32::of(&piece_bytes(&task, 0))), origin());
    assert!(
        matches!(wrong, Err(CommitError::DigestMismatch { .. })),
        "{wrong:?}"
    );
    assert_eq!(
        view.ready(0).unwrap_err().to_string(),
        ReadError::Abandoned {
            piece: PieceNumber(0)
        }
        .to_string()
    );
    // A late thread that still has the writer cannot spoil what is fetched next.
    let next = claim(&task, 0);
    assert!(matches!(
        writer.write(0, b"late"),
        Err(WriteError::Ended { .. })
    ));
    drop(writer);
    next.write(0, &piece_bytes(&task, 0)).unwrap();
    next.commit(None, origin()).unwrap();
    assert_held_bytes_are_right(&task);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 4096, 4096);
    let writer = claim(&task, 0);
    writer.write(0, &piece_bytes(&task, 0)).unwrap();
    let mut changes = task.changes();
    changes.mark_unchanged();
    drop(writer);
    assert!(changes.has_changed().unwrap());
    assert!(matches!(
        task.piece(PieceNumber(0)).unwrap(),
        Lookup::Missing
    ));
    assert_eq!(claim(&task, 0).received(), 0);
}

#[tokio::test]
async fn readers_follow_behind_a_writer() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", MIB, MIB);
    let data = Arc::new(piece_bytes(&task, 0));
    let writer = claim(&task, 0);
    let Lookup::Arriving(view) = task.piece(PieceNumber(0)).unwrap() else {
        panic!("it arrives")
    };
    let reader = tokio::spawn(async move {
        let mut got: Vec<u8> = Vec::new();
        while (got.len() as u64) < view.length() {
            let ready = view.wait(got.len() as u64).await.unwrap();
            let mut buffer = vec![0; usize::try_from(ready).unwrap()];
            let read = view.read_at(got.len() as u64, &mut buffer).unwrap();
            got.extend(&buffer[..read]);
        }
        assert_eq!(view.wait(view.length()).await.unwrap(), 0);
        (got, view)
    });
    let sent = Arc::clone(&data);
    let writing = std::thread::spawn(move || {
        for at in (0..sent.len()).step_by(33_333) {
            writer
                .write(at as u64, &sent[at..sent.len().min(at + 33_333)])
                .unwrap();
        }
        writer.commit(None, origin()).unwrap();
    });
    let (got, view) = tokio::time::timeout(std::time::Duration::from_secs(20), reader)
        .await
        .unwrap()
        .unwrap();
    writing.join().unwrap();
    assert!(got == *data);
    assert_eq!(view.crc32(), Some(Crc32::of(&data)));
}

#[tokio::test]
async fn readers_learn_that_a_piece_was_given_up() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 4096, 4096);
    let writer = claim(&task, 0);
    let view = writer.view().unwrap();
    let waiting = tokio::spawn(async move { view.wait(0).await });
    tokio::task::yield_now().await;
    drop(writer);
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(told, Err(ReadError::Abandoned { .. })));
}

#[test]
fn everything_committed_is_there_after_a_restart_and_nothing_else() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 20_000, 4096);
    fill_piece(&task, 0);
    fill_piece(&task, 4);
    task.mark(Mark::Started).unwrap();
    task.mark(Mark::Finished).unwrap();
    task.set_retention(Retention::Kept, Some(std::time::Duration::from_secs(60)))
        .unwrap();
    let half = claim(&task, 1);
    half.write(0, &piece_bytes(&task, 1)).unwrap();
    let (summary, record, description) = (
        task.summary(),
        task.piece_record(PieceNumber(4)),
        task.description().clone(),
    );
    drop((half, task, store));

    let store = open(dir.path());
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert_eq!(held(&task), [0, 4]);
    assert_held_bytes_are_right(&task);
    assert_eq!(task.piece_record(PieceNumber(4)), record);
    let expected = storage::NewTask {
        retention: Retention::Kept,
        ttl: Some(std::time::Duration::from_secs(60)),
        ..description
    };
    assert_eq!(*task.description(), expected);
    let again = task.summary();
    assert_eq!(
        (again.times, again.retention, again.ttl),
        (summary.times, summary.retention, summary.ttl)
    );
    assert_eq!(
        (again.recorded_pieces, again.recorded_bytes),
        (2, 4096 + 20_000 - 4 * 4096)
    );
    assert!(store.task(&task_id("b")).unwrap().is_none());
}

#[test]
fn a_task_that_was_not_let_go_in_peace_is_verified_first() {
    let dir = folder();
    let copy = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 20_000, 4096);
    fill_piece(&task, 2);
    // A copy of the folder at this instant is what a kill would leave.
    copy_folder(dir.path(), copy.path());
    let recovered = open(copy.path());
    let task = recovered.task(&task_id("a")).unwrap().unwrap();
    assert_eq!((held(&task), recorded(&task)), (vec![], vec![2]));
    assert!(matches!(
        task.piece(PieceNumber(2)).unwrap(),
        Lookup::Unverified
    ));
    assert!(matches!(
        task.claim(PieceNumber(2)).unwrap(),
        Claim::Unverified
    ));
    assert_eq!(task.available(PieceNumber(2), 0).unwrap(), 0);
    assert_eq!(task.verify(PieceNumber(2)).unwrap(), Verdict::Good);
    assert_eq!(task.verify(PieceNumber(3)).unwrap(), Verdict::NotWhole);
    assert_eq!(held(&task), [2]);
    assert_held_bytes_are_right(&task);
}

#[test]
fn a_stamp_of_another_boot_is_not_believed() {
    let dir = folder();
    let fill_and_close = |close: bool| {
        let store = open(dir.path());
        let task = match store.task(&task_id("a")).unwrap() {
            Some(task) => task,
            None => create(&store, "a", 4096, 4096),
        };
        task.verify_all().unwrap();
        if held(&task).is_empty() {
            fill(&task);
        }
        drop(task);
        if close {
            store.close().unwrap();
        }
    };
    let held_after = || held(&open(dir.path()).task(&task_id("a")).unwrap().unwrap());
    fill_and_close(false);
    assert_eq!(
        held_after(),
        [0],
        "the same boot: what was written is in the page cache"
    );
    let epoch = std::fs::read_to_string(dir.path().join("EPOCH")).unwrap();
    let other_boot = |text: &str| format!("{} some-other-boot\n", text.split_once(' ').unwrap().0);
    std::fs::write(dir.path().join("EPOCH"), other_boot(&epoch)).unwrap();
    assert_eq!(
        held_after(),
        [] as [u32; 0],
        "a new boot: nothing says that the bytes reached the disk"
    );
    assert_eq!(
        held_after(),
        [] as [u32; 0],
        "and opening it once more does not help"
    );
    fill_and_close(true);
    assert!(
        std::fs::read_to_string(dir.path().join("EPOCH"))
            .unwrap()
            .ends_with("closed\n")
    );
    assert_eq!(held_after(), [0], "flushed and closed: no boot matters");
}

#[test]
fn verify_always_trusts_nothing_that_was_on_disk() {
    let dir = folder();
    fill(&create(&open(dir.path()), "a", 4096, 4096));
    let options = storage::Options {
        verify: storage::Verify::Always,
        ..options()
    };
    let store = storage::Store::open(dir.path(), options).unwrap();
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert_eq!(held(&task), [] as [u32; 0]);
    task.verify_all().unwrap();
    assert!(task.is_complete().unwrap());
}

#[test]
fn a_content_changed_behind_our_back_is_noticed_while_open() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 20_000, 4096);
    fill(&task);
    flip(&content_path(dir.path(), task.id()), 5000);
    assert_eq!(held(&task), [] as [u32; 0]);
    assert!(matches!(
        task.piece(PieceNumber(1)).unwrap(),
        Lookup::Unverified
    ));
    task.verify_all().unwrap();
    assert_eq!(held(&task), [0, 2, 3, 4]);
    fill_piece(&task, 1);
    assert!(task.is_complete().unwrap());

    truncate(&content_path(dir.path(), task.id()), 9000);
    task.verify_all().unwrap();
    assert_eq!(held(&task), [0, 1]);
    assert_eq!(task.content_file().metadata().unwrap().len(), 20_000);
    assert_held_bytes_are_right(&task);
}

#[test]
fn an_empty_content_is_complete_at_once() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 0, 4096);
    assert!(task.is_complete().unwrap());
    drop((task, store));
    assert!(
        open(dir.path())
            .task(&task_id("a"))
            .unwrap()
            .unwrap()
            .is_complete()
            .unwrap()
    );
}

#[test]
fn a_deleted_task_fails_for_whoever_holds_it() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 8192, 4096);
    fill_piece(&task, 0);
    let writer = claim(&task, 1);
    let mut changes = task.changes();
    changes.mark_unchanged();
    assert_eq!(store.delete(task.id()).unwrap().unwrap().id, *task.id());
    assert!(changes.has_changed().unwrap() && task.is_deleted());
    assert!(matches!(task.held(), Err(TaskError::Deleted { .. })));
    writer.write(0, &piece_bytes(&task, 1)).unwrap();
    assert!(matches!(
        writer.commit(None, origin()),
        Err(CommitError::Deleted { .. })
    ));
    assert!(store.task(task.id()).unwrap().is_none());
    assert!(store.delete(task.id()).unwrap().is_none());
    // The same id starts anew while the old handle is still there, and neither disturbs the other.
    let again = create(&store, "a", 8192, 4096);
    fill_piece(&again, 0);
    drop((writer, task));
    assert_eq!(held(&again), [0]);
    drop((again, store));
    assert_eq!(
        held(&open(dir.path()).task(&task_id("a")).unwrap().unwrap()),
        [0]
    );
}

#[test]
fn a_journal_with_much_superseded_is_compacted() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 20_000, 4096);
    fill(&task);
    for _ in 0..2000 {
        task.mark(Mark::Started).unwrap();
        task.mark(Mark::Finished).unwrap();
    }
    let times = task.summary().times;
    drop(task);
    let path = journal_path(dir.path(), &task_id("a"));
    let before = read(&path).len();
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert!(read(&path).len() * 20 < before);
    assert!(task.is_complete().unwrap());
    assert_eq!(task.summary().times, times);
    drop((task, store));
    let store = open(dir.path());
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert!(task.is_complete().unwrap());
    assert_eq!(task.summary().times, times);
}

#[test]
fn a_confirmed_digest_is_remembered_until_a_piece_proves_corrupt() {
    let dir = folder();
    let digest = |byte| Digest::Sha256([byte; 32]);
    {
        let store = open(dir.path());
        let task = create(&store, "a", 10, 4);
        for piece in 0..3 {
            fill_piece(&task, piece);
        }
        assert!(!task.is_confirmed(&digest(1)));
        let changes = task.changes();
        task.confirm(digest(2)).unwrap();
        task.confirm(digest(1)).unwrap();
        assert!(changes.has_changed().unwrap());
        assert!(task.is_confirmed(&digest(1)) && !task.is_confirmed(&digest(2)));
        assert!(task.summary().times.public_at.is_none());
        task.mark(Mark::Public).unwrap();
    }
    let store = open(dir.path());
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert!(task.is_confirmed(&digest(1)));
    assert!(task.summary().times.public_at.is_some());
    // Somebody writes into the content, and the piece is found out.
    flip(&content_path(dir.path(), task.id()), 5);
    assert_eq!(task.verify(PieceNumber(1)).unwrap(), Verdict::Dropped);
    assert!(!task.is_confirmed(&digest(1)));
    drop(task);
    drop(store);
    let store = open(dir.path());
    let task = store.task(&task_id("a")).unwrap().unwrap();
    assert!(!task.is_confirmed(&digest(1)));
}
