//! Who gets space, who has to go for it, and who never goes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, SystemTime};

use common::*;
use storage::{CreateError, EvictionReason, Mark, OpenError, Options, Retention, Start, Store};

const KIB: u64 = 1 << 10;

/// Room for three tasks of 40 KiB and their records.
const CAPACITY: u64 = 150 * KIB;

fn small_store(dir: &std::path::Path) -> Store {
    Store::open(
        dir,
        Options {
            capacity: Some(CAPACITY),
            ..options()
        },
    )
    .unwrap()
}

fn ids(store: &Store) -> Vec<String> {
    let mut ids: Vec<String> = store
        .tasks()
        .into_iter()
        .map(|task| task.id.as_str()[5..].to_owned())
        .collect();
    ids.sort();
    ids
}

/// The order of use is kept to the millisecond: wait until it is another one.
fn next_millisecond() {
    let now = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis()
    };
    let start = now();
    while now() == start {
        std::hint::spin_loop();
    }
}

fn fill_three(store: &Store) {
    for name in ["a", "b", "c"] {
        fill(&create(store, name, 40 * KIB, 16 * KIB));
        next_millisecond();
    }
}

#[test]
fn a_new_task_takes_the_place_of_the_one_unused_for_longest() {
    let dir = folder();
    let store = small_store(dir.path());
    fill_three(&store);
    // Used again: now `b` is the oldest.
    drop(store.task(&task_id("a")).unwrap());
    next_millisecond();
    let admitted = store
        .create_task(new_task("d", 40 * KIB, 16 * KIB))
        .unwrap();
    let gone: Vec<_> = admitted
        .evicted
        .iter()
        .map(|gone| (gone.id.clone(), gone.reason))
        .collect();
    assert_eq!(gone, [(task_id("b"), EvictionReason::Admission)]);
    assert_eq!(ids(&store), ["a", "c", "d"]);
    assert!(!content_path(dir.path(), &task_id("b")).exists());
    assert!(!journal_path(dir.path(), &task_id("b")).exists());
}

#[test]
fn what_is_in_use_or_kept_never_goes() {
    let dir = folder();
    let store = small_store(dir.path());
    fill_three(&store);
    let used = store.task(&task_id("a")).unwrap().unwrap();
    store
        .task(&task_id("b"))
        .unwrap()
        .unwrap()
        .set_retention(Retention::Kept, None)
        .unwrap();
    let too_much = store.create_task(new_task("d", 80 * KIB, 16 * KIB));
    let Err(CreateError::NoSpace {
        needed,
        free,
        evicted,
        ..
    }) = too_much
    else {
        panic!("{too_much:?}")
    };
    assert!(needed > free && evicted.is_empty());
    assert_eq!(
        ids(&store),
        ["a", "b", "c"],
        "nothing goes for a task that does not fit anyway"
    );
    let admitted = store
        .create_task(new_task("d", 40 * KIB, 16 * KIB))
        .unwrap();
    assert_eq!(admitted.evicted.len(), 1);
    assert_eq!(ids(&store), ["a", "b", "d"]);
    let refused = store.create_task(new_task("e", 40 * KIB, 16 * KIB));
    assert!(
        matches!(refused, Err(CreateError::NoSpace { .. })),
        "{refused:?}"
    );
    assert!(used.is_complete().unwrap());
    // A view or writer alone keeps a task as well.
    let view = admitted.task.claim(protocol::PieceNumber(0)).unwrap();
    drop((admitted.task, used));
    let admitted = store
        .create_task(new_task("e", 40 * KIB, 16 * KIB))
        .unwrap();
    assert_eq!(admitted.evicted[0].id, task_id("a"));
    drop(view);
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let dir = folder();
    let store = small_store(dir.path());
    fill_three(&store);
    // Only the journal's time tells. Set apart by seconds, as real uses are.
    for (name, seconds) in [("a", 30), ("b", 10), ("c", 20)] {
        let file = std::fs::File::open(journal_path(dir.path(), &task_id(name))).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100 - seconds))
            .unwrap();
    }
    drop(store);
    let store = small_store(dir.path());
    let admitted = store
        .create_task(new_task("d", 40 * KIB, 16 * KIB))
        .unwrap();
    assert_eq!(admitted.evicted[0].id, task_id("b"));
}

#[test]
fn the_high_watermark_brings_the_store_down_to_the_low_one() {
    let dir = folder();
    let store = small_store(dir.path());
    fill_three(&store);
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.total, usage.tasks, usage.percent()),
        (CAPACITY, 3, 96)
    );
    assert!(store.evict_to_watermark(97, 50).unwrap().is_empty());
    let gone = store.evict_to_watermark(90, 50).unwrap();
    assert_eq!(
        gone.iter().map(|gone| gone.id.clone()).collect::<Vec<_>>(),
        [task_id("a"), task_id("b")]
    );
    assert!(
        gone.iter()
            .all(|gone| gone.reason == EvictionReason::Watermark && gone.freed_bytes >= 40 * KIB)
    );
    assert!(store.usage().unwrap().percent() <= 50);
}

#[test]
fn time_is_counted_from_the_update_or_by_the_task_s_own_lifetime() {
    let dir = folder();
    let store = open(dir.path());
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let mut replica = new_task("replica", 10, 16 * KIB);
    replica.retention = Retention::Kept;
    replica.ttl = Some(minutes(5));
    store.create_task(replica).unwrap();
    create(&store, "cached", 10, 16 * KIB)
        .mark(Mark::Finished)
        .unwrap();
    let used = create(&store, "used", 10, 16 * KIB);
    let at = |after: Duration| {
        let gone = store.evict_expired(SystemTime::now() + after, minutes(30));
        assert!(
            gone.iter()
                .all(|gone| gone.reason == EvictionReason::Expired)
        );
        gone.into_iter().map(|gone| gone.id).collect::<Vec<_>>()
    };
    assert_eq!(at(minutes(4)), []);
    assert_eq!(at(minutes(6)), [task_id("replica")]);
    assert_eq!(at(minutes(31)), [task_id("cached")]);
    drop(used);
    assert_eq!(at(minutes(31)), [task_id("used")]);
}

#[test]
fn ids_are_taken_once() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 10, 16 * KIB);
    assert!(matches!(
        store.create_task(new_task("a", 10, 16 * KIB)),
        Err(CreateError::Exists { .. })
    ));
    drop(task);
    assert!(matches!(
        store.create_task(new_task("a", 10, 16 * KIB)),
        Err(CreateError::Exists { .. })
    ));
}

#[test]
fn absurd_tasks_are_refused() {
    let dir = folder();
    let store = open(dir.path());
    let pieces = store.create_task(new_task("a", 1 << 20, 1));
    assert!(
        matches!(pieces, Err(CreateError::TooManyPieces { .. })),
        "{pieces:?}"
    );
    let mut long = new_task("a", 10, 10);
    long.response_header.insert("x".into(), "y".repeat(1 << 20));
    assert!(matches!(
        store.create_task(long),
        Err(CreateError::DescriptionTooLong { .. })
    ));
    let huge = store.create_task(new_task("a", 1 << 47, 1 << 30));
    assert!(matches!(huge, Err(CreateError::NoSpace { .. })), "{huge:?}");
    assert!(store.tasks().is_empty() && !content_path(dir.path(), &task_id("a")).exists());
}

#[test]
fn a_store_may_start_empty_and_touches_only_its_own() {
    let dir = folder();
    let store = open(dir.path());
    fill(&create(&store, "a", 10, 16 * KIB));
    drop(store);
    let foreign = [
        dir.path().join("tasks/notes"),
        dir.path().join("tasks/a.b.datax"),
        dir.path().join("tmp/mine"),
    ];
    for path in &foreign {
        std::fs::write(path, "mine").unwrap();
    }
    let store = Store::open(
        dir.path(),
        Options {
            start: Start::Empty,
            ..options()
        },
    )
    .unwrap();
    assert!(store.tasks().is_empty() && store.task(&task_id("a")).unwrap().is_none());
    assert!(!content_path(dir.path(), &task_id("a")).exists());
    assert!(foreign.iter().all(|path| path.exists()));
    create(&store, "a", 10, 16 * KIB);
}

#[test]
fn a_folder_has_one_owner() {
    let dir = folder();
    let store = open(dir.path());
    let refused = Store::open(dir.path(), options()).unwrap_err();
    let OpenError::InUse { pid, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(*pid, Some(std::process::id()));
    assert!(
        refused
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
    let task = create(&store, "a", 10, 16 * KIB);
    drop(store);
    assert!(
        matches!(
            Store::open(dir.path(), options()),
            Err(OpenError::InUse { .. })
        ),
        "a task is still held"
    );
    drop(task);
    open(dir.path());
}

#[test]
fn a_folder_of_another_format_is_left_alone() {
    let dir = folder();
    std::fs::write(dir.path().join("FORMAT"), "dragonfly-store 99\n").unwrap();
    let refused = Store::open(dir.path(), options()).unwrap_err();
    assert!(matches!(refused, OpenError::Format { .. }), "{refused:?}");
    let file = folder();
    std::fs::write(file.path().join("file"), "").unwrap();
    let refused = Store::open(&file.path().join("file"), options()).unwrap_err();
    assert!(
        matches!(refused, OpenError::NotAFolder { .. }),
        "{refused:?}"
    );
}

#[test]
fn many_idle_tasks_keep_no_files_open() {
    let dir = folder();
    let store = open(dir.path());
    for number in 0..500 {
        fill(&create(&store, &number.to_string(), 100, 16 * KIB));
    }
    let open_files = std::fs::read_dir("/proc/self/fd").unwrap();
    let prefix = store.dir().join("tasks");
    let ours = open_files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    assert_eq!(ours.filter(|path| path.starts_with(&prefix)).count(), 0);
    drop(store);
    assert_eq!(open(dir.path()).tasks().len(), 500);
}
