//! Exports: the cheapest way that works, never a part of a file, never through a symbolic link.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::*;
use protocol::{ByteRange, PieceNumber};
use storage::{Existing, Export, ExportError, HardLink, Method, TaskError};

const KIB: u64 = 1 << 10;

fn copy() -> Export {
    Export {
        hard_link: HardLink::Never,
        ..Export::default()
    }
}

#[test]
fn a_hard_link_comes_first() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100 * KIB, 16 * KIB);
    fill(&task);
    let out = store.temporary_dir().join("out");
    assert_eq!(
        task.export(&out, &Export::default()).unwrap().method,
        Method::HardLink
    );
    assert_eq!(
        task.export(&out, &Export::default()).unwrap().method,
        Method::AlreadyLinked
    );
    assert_eq!(read(&out), bytes(task.id(), 0, 100 * KIB));
    // Evicting the task leaves the export alone.
    let id = task.id().clone();
    drop(task);
    assert_eq!(store.delete(&id).unwrap().unwrap().freed_bytes, 0);
    assert_eq!(read(&out), bytes(&id, 0, 100 * KIB));
}

#[test]
fn writing_to_a_linked_export_is_noticed_and_the_file_left_to_its_owner() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100 * KIB, 16 * KIB);
    fill(&task);
    let out = store.temporary_dir().join("out");
    task.export(&out, &Export::default()).unwrap();
    flip(&out, 20 * KIB);
    let edited = read(&out);
    assert!(matches!(
        task.export(&dir.path().join("tmp/again"), &Export::default()),
        Err(ExportError::Incomplete { missing: 7, .. })
    ));
    // Whoever uses it goes on with what is good, and cannot repair the rest in place.
    task.verify_all().unwrap();
    assert_eq!(held(&task), [0, 2, 3, 4, 5, 6]);
    assert!(matches!(
        task.claim(PieceNumber(1)),
        Err(TaskError::Deleted { .. })
    ));
    assert!(store.task(task.id()).unwrap().is_none());
    let anew = create(&store, "a", 100 * KIB, 16 * KIB);
    fill(&anew);
    assert_eq!(read(&out), edited);
    assert_eq!(std::fs::metadata(&out).unwrap().nlink(), 1);
}

#[test]
fn an_export_that_its_owner_cuts_or_writes_to_is_never_given_its_old_bytes_back() {
    for (restart, change) in [(false, 0), (true, 0), (false, 7), (true, 7)] {
        let dir = folder();
        let store = open(dir.path());
        let task = create(&store, "a", 100 * KIB, 16 * KIB);
        let id = task.id().clone();
        fill(&task);
        let out = store.temporary_dir().join("out");
        task.export(&out, &Export::default()).unwrap();
        drop(task);
        let other = store.temporary_dir().join("other");
        std::fs::hard_link(&out, &other).unwrap();
        let write = || std::fs::write(&out, &b"my notes"[..change]).unwrap();
        let store = if restart {
            drop(store);
            write();
            open(dir.path())
        } else {
            write();
            store
        };
        assert!(store.task(&id).unwrap().is_none(), "{restart} {change}");
        let anew = create(&store, "a", 100 * KIB, 16 * KIB);
        fill(&anew);
        assert_eq!(held(&anew), [0, 1, 2, 3, 4, 5, 6]);
        for file in [&out, &other] {
            assert_eq!(read(file), &b"my notes"[..change]);
        }
    }
}

#[test]
fn a_copy_is_a_file_of_its_own() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100 * KIB, 16 * KIB);
    fill(&task);
    let out = store.temporary_dir().join("out");
    let how = Export {
        mode: 0o600,
        ..copy()
    };
    let exported = task.export(&out, &how).unwrap();
    assert!(
        matches!(
            exported.method,
            Method::Reflink | Method::CopyFileRange | Method::Copy
        ),
        "{exported:?}"
    );
    assert_eq!(exported.bytes, 100 * KIB);
    let metadata = std::fs::metadata(&out).unwrap();
    assert_eq!(
        (metadata.nlink(), metadata.permissions().mode() & 0o777),
        (1, 0o600)
    );
    assert_eq!(read(&out), bytes(task.id(), 0, 100 * KIB));
    assert!(matches!(
        task.export(&out, &how),
        Err(ExportError::Exists { .. })
    ));
    assert_only_entry(&store.temporary_dir(), "out");
}

#[test]
fn across_filesystems_it_is_a_copy() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 3_000_001, 1 << 20);
    fill(&task);
    let other = Mount::new(Filesystem::Tmpfs, 16);
    let out = other.path().join("out");
    let exported = task.export(&out, &Export::default()).unwrap();
    assert!(
        matches!(exported.method, Method::CopyFileRange | Method::Copy),
        "{exported:?}"
    );
    assert_eq!(read(&out), bytes(task.id(), 0, 3_000_001));
    let forced = Export {
        hard_link: HardLink::Require,
        ..Export::default()
    };
    let refused = task
        .export(&other.path().join("forced"), &forced)
        .unwrap_err();
    assert!(
        matches!(refused, ExportError::NoHardLink { .. }),
        "{refused:?}"
    );
    assert_only_entry(&other.path(), "out");
}

#[test]
fn a_full_destination_is_an_error_and_leaves_nothing() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 3_000_001, 1 << 20);
    fill(&task);
    let other = Mount::new(Filesystem::Tmpfs, 1);
    std::fs::write(other.path().join("out"), "mine").unwrap();
    let how = Export {
        existing: Existing::Replace,
        ..Export::default()
    };
    let refused = task.export(&other.path().join("out"), &how).unwrap_err();
    let ExportError::Disk(error) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.cause(), storage::DiskCause::Full, "{refused}");
    assert_eq!(read(&other.path().join("out")), b"mine");
    assert_only_entry(&other.path(), "out");
}

#[test]
fn a_symbolic_link_is_never_followed() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100, 16 * KIB);
    fill(&task);
    let out = folder();
    let (precious, link) = (out.path().join("precious"), out.path().join("link"));
    std::fs::write(&precious, "precious").unwrap();
    for target in [precious.clone(), out.path().join("nothing")] {
        for how in [Export::default(), copy()] {
            symlink(&target, &link).unwrap();
            assert!(matches!(
                task.export(&link, &how),
                Err(ExportError::Exists { .. })
            ));
            task.export(
                &link,
                &Export {
                    existing: Existing::Replace,
                    ..how
                },
            )
            .unwrap();
            assert!(std::fs::symlink_metadata(&link).unwrap().is_file());
            assert_eq!(read(&link), bytes(task.id(), 0, 100));
            std::fs::remove_file(&link).unwrap();
        }
    }
    assert_eq!(read(&precious), b"precious");
    assert_only_entry(out.path(), "precious");
    let folder = out.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for bad in [
        folder.as_path(),
        std::path::Path::new("/"),
        &out.path().join("x/"),
    ] {
        assert!(
            matches!(
                task.export(bad, &Export::default()),
                Err(ExportError::NotAFile { .. })
            ),
            "{bad:?}"
        );
    }
}

#[test]
fn replacing_is_one_step_and_can_be_a_hard_link() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100, 16 * KIB);
    fill(&task);
    let out = store.temporary_dir().join("out");
    std::fs::write(&out, "old").unwrap();
    assert!(matches!(
        task.export(&out, &Export::default()),
        Err(ExportError::Exists { .. })
    ));
    let replace = Export {
        existing: Existing::Replace,
        ..Export::default()
    };
    assert_eq!(
        task.export(&out, &replace).unwrap().method,
        Method::HardLink
    );
    // A copy in place of the link: the content itself must not be written to.
    let replaced = task
        .export(
            &out,
            &Export {
                existing: Existing::Replace,
                ..copy()
            },
        )
        .unwrap();
    assert!(!matches!(
        replaced.method,
        Method::HardLink | Method::AlreadyLinked
    ));
    assert_eq!(std::fs::metadata(&out).unwrap().nlink(), 1);
    assert!(task.is_complete().unwrap());
    assert_only_entry(&store.temporary_dir(), "out");
}

#[test]
fn ranges_need_only_their_pieces() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100 * KIB, 16 * KIB);
    fill_piece(&task, 1);
    fill_piece(&task, 2);
    let out = store.temporary_dir().join("out");
    let range = ByteRange {
        start: 17 * KIB,
        length: 20 * KIB,
    };
    assert_eq!(
        task.export_range(range, &out, &Export::default())
            .unwrap()
            .bytes,
        20 * KIB
    );
    assert_eq!(read(&out), bytes(task.id(), range.start, range.length));
    let touching = ByteRange {
        start: 17 * KIB,
        length: 40 * KIB,
    };
    assert!(matches!(
        task.export_range(
            touching,
            &store.temporary_dir().join("b"),
            &Export::default()
        ),
        Err(ExportError::Incomplete { missing: 1, .. })
    ));
    for bad in [
        ByteRange {
            start: 99 * KIB,
            length: 2 * KIB,
        },
        ByteRange {
            start: u64::MAX,
            length: 2,
        },
    ] {
        let refused = task.export_range(bad, &store.temporary_dir().join("b"), &Export::default());
        assert!(
            matches!(refused, Err(ExportError::OutOfBounds { .. })),
            "{refused:?}"
        );
    }
    let empty = ByteRange {
        start: 5,
        length: 0,
    };
    task.export_range(
        empty,
        &store.temporary_dir().join("empty"),
        &Export::default(),
    )
    .unwrap();
    assert_eq!(read(&store.temporary_dir().join("empty")), b"");
}

#[test]
fn an_incomplete_task_is_not_exported() {
    let dir = folder();
    let store = open(dir.path());
    let task = create(&store, "a", 100 * KIB, 16 * KIB);
    fill_piece(&task, 1);
    let out = store.temporary_dir().join("out");
    assert!(matches!(
        task.export(&out, &Export::default()),
        Err(ExportError::Incomplete { missing: 6, .. })
    ));
    assert!(!out.exists());
}

fn assert_only_entry(folder: &std::path::Path, name: &str) {
    let names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [name]);
}
