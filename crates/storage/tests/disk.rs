//! Full, read-only and forbidden disks, on ext4, on XFS with reflink and on tmpfs. Needs root, to mount them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use protocol::{Crc32, PieceNumber};
use storage::{
    Claim, CommitError, CreateError, DiskCause, Existing, Export, HardLink, Lookup, Mark, Method,
    OpenError, Options, Store, WriteError,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What every filesystem has to do.
fn check_everyday(filesystem: Filesystem, copied_by: &[Method]) {
    let disk = Mount::new(filesystem, 320);
    let dir = disk.path().join("data");
    let store = Store::open(&dir, Options::default()).unwrap();
    let task = create(&store, "a", 9 * MIB + 1, 4 * MIB);
    fill(&task);
    let partial = create(&store, "b", 9 * MIB, 4 * MIB);
    fill_piece(&partial, 1);
    partial.mark(Mark::Failed).unwrap();
    let out = |name: &str| store.temporary_dir().join(name);
    assert_eq!(
        task.export(&out("link"), &Export::default())
            .unwrap()
            .method,
        Method::HardLink
    );
    let how = Export {
        hard_link: HardLink::Never,
        existing: Existing::Replace,
        ..Export::default()
    };
    let method = task.export(&out("copy"), &how).unwrap().method;
    assert!(copied_by.contains(&method), "{filesystem:?}: {method:?}");
    assert_eq!(read(&out("copy")), bytes(task.id(), 0, 9 * MIB + 1));
    drop((task, partial));
    // What has another name is not repaired in place.
    std::fs::remove_file(out("link")).unwrap();
    drop(store);

    flip(&content_path(&dir, &task_id("a")), 5 * MIB);
    let store = Store::open(&dir, Options::default()).unwrap();
    let task = store.task(&task_id("a")).unwrap().unwrap();
    task.verify_all().unwrap();
    assert_eq!(held(&task), [0, 2], "{filesystem:?}");
    fill_piece(&task, 1);
    assert!(task.is_complete().unwrap());
    assert_held_bytes_are_right(&task);
    let partial = store.task(&task_id("b")).unwrap().unwrap();
    assert_eq!(held(&partial), [1]);
    assert!(partial.summary().times.failed_at.is_some());
    assert_eq!(
        read(&store.temporary_dir().join("copy")),
        bytes(task.id(), 0, 9 * MIB + 1)
    );
}

#[test]
fn everyday_on_ext4() {
    check_everyday(Filesystem::Ext4, &[Method::CopyFileRange]);
}

#[test]
fn everyday_on_xfs_with_reflink() {
    check_everyday(Filesystem::XfsWithReflink, &[Method::Reflink]);
}

#[test]
fn everyday_on_tmpfs() {
    check_everyday(Filesystem::Tmpfs, &[Method::CopyFileRange, Method::Copy]);
}

/// Takes all that is left, as another program would.
fn fill_disk(disk: &Mount) -> std::path::PathBuf {
    use std::io::Write;
    let path = disk.path().join("foreign");
    let mut file = std::fs::File::create(&path).unwrap();
    for len in [MIB, 4 * KIB] {
        let block = vec![7; usize::try_from(len).unwrap()];
        while file
            .write_all(&block)
            .and_then(|()| file.sync_all())
            .is_ok()
        {}
    }
    path
}

#[test]
fn an_admitted_download_has_its_space_on_ext4() {
    check_space_is_kept(&Mount::new(Filesystem::Ext4, 32));
}

#[test]
fn an_admitted_download_has_its_space_on_xfs() {
    check_space_is_kept(&Mount::new(Filesystem::XfsWithReflink, 320));
}

/// The disk fills up after a task was admitted: its download goes on, new tasks are refused.
fn check_space_is_kept(disk: &Mount) {
    let dir = disk.path().join("data");
    let store = open(&dir);
    let task = create(&store, "a", 8 * MIB, 64 * KIB);
    let foreign = fill_disk(disk);
    fill(&task);
    task.mark(Mark::Finished).unwrap();
    assert!(task.is_complete().unwrap());
    let refused = store.create_task(new_task("b", 4 * MIB, MIB)).unwrap_err();
    assert!(matches!(refused, CreateError::NoSpace { .. }), "{refused}");
    assert!(
        !content_path(&dir, &task_id("b")).exists() && !journal_path(&dir, &task_id("b")).exists()
    );
    assert_held_bytes_are_right(&task);
    // Unused, the first makes place for the second; and nothing is lost that should be there.
    drop(task);
    let admitted = store.create_task(new_task("b", 4 * MIB, MIB)).unwrap();
    assert_eq!(admitted.evicted.len(), 1);
    fill(&admitted.task);
    assert_held_bytes_are_right(&admitted.task);
    std::fs::remove_file(foreign).unwrap();
    drop((admitted, store));
    assert!(
        open(&dir)
            .task(&task_id("b"))
            .unwrap()
            .unwrap()
            .is_complete()
            .unwrap()
    );
}

#[test]
fn a_store_larger_than_its_disk_evicts_and_goes_on() {
    let disk = Mount::new(Filesystem::Ext4, 32);
    let store = open(&disk.path().join("data"));
    let mut evicted = 0;
    for number in 0..40 {
        let admitted = store
            .create_task(new_task(&number.to_string(), 3 * MIB, MIB))
            .unwrap();
        fill(&admitted.task);
        assert_held_bytes_are_right(&admitted.task);
        evicted += admitted.evicted.len();
    }
    assert!(evicted >= 30, "{evicted}");
    assert_eq!(store.tasks().len(), 40 - evicted);
}

#[test]
fn exports_with_a_second_name_are_not_evicted_in_vain() {
    let disk = Mount::new(Filesystem::Ext4, 32);
    let store = open(&disk.path().join("data"));
    let linked = create(&store, "linked", 10 * MIB, MIB);
    fill(&linked);
    linked
        .export(&store.temporary_dir().join("out"), &Export::default())
        .unwrap();
    drop(linked);
    let refused = store.create_task(new_task("a", 20 * MIB, MIB)).unwrap_err();
    assert!(
        matches!(&refused, CreateError::NoSpace { evicted, .. } if evicted.is_empty()),
        "{refused}"
    );
    assert!(store.task(&task_id("linked")).unwrap().is_some());
}

/// Where space is only accounted for, somebody else can take it: the error says so, and the download can go on later.
#[test]
fn a_disk_that_fills_up_under_a_download_stops_it_until_there_is_space() {
    let disk = Mount::new(Filesystem::Tmpfs, 16);
    let store = open(&disk.path().join("data"));
    let task = create(&store, "a", 8 * MIB, 4 * MIB);
    let refused = store.create_task(new_task("b", 10 * MIB, MIB)).unwrap_err();
    assert!(
        matches!(refused, CreateError::NoSpace { .. }),
        "what was promised is not free: {refused}"
    );
    fill_piece(&task, 0);
    let writer = claim(&task, 1);
    let data = piece_bytes(&task, 1);
    let foreign = fill_disk(&disk);
    let refused = writer.write(0, &data).unwrap_err();
    let WriteError::Disk(error) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(error.cause(), DiskCause::Full);
    assert!(refused.to_string().contains("free some space"), "{refused}");
    assert!(matches!(
        writer.commit(None, origin()),
        Err(CommitError::Incomplete { .. })
    ));
    assert!(matches!(
        task.piece(PieceNumber(1)).unwrap(),
        Lookup::Arriving(_)
    ));
    assert_eq!(held(&task), [0]);
    std::fs::remove_file(&foreign).unwrap();
    writer.write(0, &data).unwrap();
    writer.commit(Some(Crc32::of(&data)), origin()).unwrap();
    assert_held_bytes_are_right(&task);

    // The record of a piece may be what does not fit. Then the piece is not whole, and the commit can be repeated.
    drop(task);
    drop(writer);
    let task = create(&store, "many", 4 * KIB * 200, 4 * KIB);
    for piece in 0..199 {
        let writer = claim(&task, piece);
        writer.write(0, &piece_bytes(&task, piece)).unwrap();
        let foreign = (piece % 10 == 0).then(|| fill_disk(&disk));
        match writer.commit(None, origin()) {
            Ok(_) => assert!(matches!(
                task.claim(PieceNumber(piece)).unwrap(),
                Claim::Whole(_)
            )),
            Err(CommitError::Disk(error)) => {
                assert_eq!(error.cause(), DiskCause::Full);
                assert!(!held(&task).contains(&piece));
                std::fs::remove_file(foreign.as_ref().unwrap()).unwrap();
                writer.commit(None, origin()).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        if let Some(foreign) = foreign {
            let _ = std::fs::remove_file(foreign);
        }
    }
    let dir = store.dir().to_owned();
    drop((task, store));
    let store = open(&dir);
    assert_eq!(
        held(&store.task(&task_id("many")).unwrap().unwrap()).len(),
        199
    );
}

#[test]
fn a_read_only_disk_is_named() {
    let disk = Mount::new(Filesystem::Ext4, 32);
    let dir = disk.path().join("data");
    drop(open(&dir));
    disk.remount("ro");
    let refused = Store::open(&dir, Options::default()).unwrap_err();
    let OpenError::Disk(error) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(error.cause(), DiskCause::ReadOnly);
    assert!(
        refused.to_string().contains("mount it writable"),
        "{refused}"
    );
}

#[test]
fn a_forbidden_folder_is_named() {
    require_root();
    let dir = folder();
    drop(open(dir.path()));
    let path = dir.path().to_owned();
    // Credentials are a thread's own: only this one becomes nobody.
    let refused = std::thread::spawn(move || {
        let nobody = Some(rustix::process::Uid::from_raw(65_534));
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        Store::open(&path, Options::default()).unwrap_err()
    });
    let refused = refused.join().unwrap();
    let OpenError::Disk(error) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(error.cause(), DiskCause::Denied);
    assert!(
        refused.to_string().contains("read and write access"),
        "{refused}"
    );
}
