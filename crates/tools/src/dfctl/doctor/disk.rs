//! The disk of the store: room, and what its filesystem is able to do.

use std::fs::File;
use std::path::Path;

use api::local::{DescribeDaemonResponse, Store};
use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone, statvfs};

use super::finding::Finding;
use crate::table;

/// With less room than this most files of interest do not fit.
const ROOM_MIN: u64 = 1 << 30;
/// With fewer free inodes than this share, small files will soon have no place, in percent.
const INODES_PERCENT_MIN: u64 = 5;

pub(super) fn check(daemon: &DescribeDaemonResponse) -> Vec<Finding> {
    let Some(store) = &daemon.store else {
        return Vec::new();
    };
    let dir = Path::new(&store.dir);
    let mut findings = vec![room(store)];
    findings.extend(filesystem(dir));
    findings.push(features(dir));
    findings
}

fn room(store: &Store) -> Finding {
    let used = store.total.saturating_sub(store.available);
    let percent = (u128::from(used) * 100)
        .checked_div(u128::from(store.total))
        .unwrap_or(100);
    let detail = format!(
        "{} of {} free, {} used by {} tasks; evicting from {} % down to {} %",
        table::bytes(store.available),
        table::bytes(store.total),
        table::bytes(store.used_by_tasks),
        store.tasks,
        store.high_percent,
        store.low_percent
    );
    let subject = &store.dir;
    if store.available < ROOM_MIN {
        return Finding::failure(
            "disk",
            subject,
            detail,
            "make room, move storage.dir, or raise gc.policy.diskThreshold",
        );
    }
    if percent >= u128::from(store.high_percent) {
        // What is evicted may be missed at once when others than Dragonfly fill the disk.
        return Finding::warning(
            "disk",
            subject,
            format!("{percent} % full: {detail}"),
            "contents are being evicted: make room, or give the store a disk of its own",
        );
    }
    Finding::ok("disk", subject, detail)
}

/// What the system tells of the filesystem.
fn filesystem(dir: &Path) -> Vec<Finding> {
    let shown = dir.display().to_string();
    let Ok(facts) = statvfs(dir) else {
        return vec![Finding::skipped(
            "disk",
            shown,
            "this user may not look at it",
        )];
    };
    let mut findings = Vec::new();
    if facts.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        findings.push(Finding::failure(
            "disk",
            shown.clone(),
            "the filesystem is read-only",
            "mount it writable: the kernel makes it read-only after disk errors, see dmesg",
        ));
    }
    let enough = facts.f_files == 0
        || facts.f_favail.saturating_mul(100) / facts.f_files >= INODES_PERCENT_MIN;
    if !enough {
        findings.push(Finding::warning(
            "disk",
            shown,
            format!("{} of {} inodes are free", facts.f_favail, facts.f_files),
            "remove many small files, or give the store a filesystem with more inodes",
        ));
    }
    findings
}

/// Tries what the store would like to use, with files that are gone afterwards.
fn features(dir: &Path) -> Finding {
    let shown = dir.display().to_string();
    let folder = match tempfile::tempdir_in(dir) {
        Ok(folder) => folder,
        Err(error) => {
            let why = format!("this user cannot try what the filesystem is able to do ({error})");
            return Finding::skipped("disk", shown, why);
        }
    };
    let path = folder.path().join("a");
    let Ok(file) = File::create(&path) else {
        return Finding::skipped("disk", shown, "no file can be made there");
    };
    let reserves = fallocate(&file, FallocateFlags::empty(), 0, 4096).is_ok();
    let links = std::fs::hard_link(&path, folder.path().join("b")).is_ok();
    let clones =
        File::create(folder.path().join("c")).is_ok_and(|copy| ioctl_ficlone(&copy, &file).is_ok());
    let word = |able, what| if able { what } else { "" };
    let able: Vec<&str> = [
        word(links, "hard links"),
        word(clones, "reflinks"),
        word(reserves, "reserved space"),
    ]
    .into_iter()
    .filter(|what| !what.is_empty())
    .collect();
    let detail = format!("filesystem with {}", able.join(", "));
    match (links, reserves) {
        (true, true) => Finding::ok("disk", shown, detail),
        (false, _) => Finding::warning(
            "disk",
            shown,
            "the filesystem has no hard links, so that every output is a copy",
            "use a local filesystem such as ext4 or XFS for storage.dir",
        ),
        (_, false) => Finding::warning(
            "disk",
            shown,
            "the filesystem cannot reserve space, so that a full disk shows late",
            "use a local filesystem such as ext4 or XFS for storage.dir",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn store(available: u64) -> Store {
        Store {
            dir: "/x".into(),
            available,
            total: 100 << 30,
            high_percent: 80,
            low_percent: 60,
            ..Store::default()
        }
    }

    #[test]
    fn a_disk_that_fills_up_is_told_before_it_is_full() {
        assert_eq!(room(&store(50 << 30)).state, State::Ok);
        assert_eq!(room(&store(10 << 30)).state, State::Warning);
        assert_eq!(room(&store(100 << 20)).state, State::Failure);
    }

    #[test]
    fn a_folder_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let finding = features(dir.path());
        assert_ne!(finding.state, State::Skipped, "{finding:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(features(Path::new("/no/such/folder")).state, State::Skipped);
    }
}
