//! Undo restores what was, whatever happened in between.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::dfinit::plan;

struct Host {
    root: TempDir,
}

impl Host {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Self { root };
        for (name, text) in files {
            fs::create_dir_all(host.path(name).parent().unwrap()).unwrap();
            fs::write(host.path(name), text).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn own() -> HostRoot {
        HostRoot::new("/")
    }

    fn journal(&self) -> Journal {
        Journal::open(&Self::own(), &self.path("state")).unwrap()
    }

    fn write(&self, name: &str, after: &str) {
        let path = self.path(name);
        let edit = Edit {
            before: plan::read(&Self::own(), &path).unwrap(),
            path,
            after: after.into(),
            needs_restart: name.ends_with(".toml"),
        };
        self.journal().apply(&[("containerd", &edit)]).unwrap();
    }

    /// Every file and folder, but for the journal's.
    fn all(&self) -> BTreeMap<PathBuf, Option<String>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Option<String>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("state") {
                    continue;
                }
                if path.is_dir() {
                    walk(&path, found);
                    found.insert(path, None);
                } else {
                    found.insert(path.clone(), Some(fs::read_to_string(path).unwrap()));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.root.path(), &mut found);
        found
    }
}

#[test]
fn files_and_folders_are_as_before() {
    let host = Host::new(&[("etc/c.toml", "a"), ("etc/keep/x", "x")]);
    fs::set_permissions(host.path("etc/c.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = host.all();
    host.write("etc/c.toml", "b");
    host.write("etc/certs.d/ghcr.io/hosts.toml", "h");
    host.write("etc/c.toml", "c");
    assert_eq!(
        fs::metadata(host.path("etc/c.toml")).unwrap().mode() & 0o777,
        0o600
    );
    let restored = host.journal().undo(false).unwrap();
    assert_eq!(restored.len(), 2);
    assert_eq!(host.all(), before);
    assert_eq!(
        fs::metadata(host.path("etc/c.toml")).unwrap().mode() & 0o777,
        0o600
    );
    // It was never restarted: it has not seen any of this.
    assert!(host.journal().content.restart_due.is_empty());
    assert!(!host.path("state").exists(), "an empty journal stays");
    assert_eq!(host.journal().undo(false).unwrap(), [] as [PathBuf; 0]);
}

#[test]
fn who_was_restarted_has_to_be_again_after_undo() {
    let host = Host::new(&[("c.toml", "a")]);
    host.write("c.toml", "b");
    assert!(host.journal().is_restart_due("containerd"));
    host.journal().restarted("containerd").unwrap();
    assert!(host.journal().content.restart_due.is_empty());
    host.journal().undo(false).unwrap();
    assert!(host.journal().is_restart_due("containerd"));
    host.journal().restarted("containerd").unwrap();
    assert!(!host.path("state").exists());
}

#[test]
fn a_restart_by_somebody_else_is_not_asked_for_again() {
    let host = Host::new(&[("c.toml", "a")]);
    let long_ago = SystemTime::UNIX_EPOCH;
    host.write("c.toml", "b");
    host.journal().hear_started("containerd", long_ago).unwrap();
    assert!(host.journal().is_restart_due("containerd"));
    let later = SystemTime::now() + Duration::from_secs(1);
    host.journal().hear_started("containerd", later).unwrap();
    assert!(!host.journal().is_restart_due("containerd"));
}

#[test]
fn a_symbolic_link_stays_one() {
    let host = Host::new(&[("real.toml", "a")]);
    symlink(host.path("real.toml"), host.path("link.toml")).unwrap();
    host.write("link.toml", "b");
    assert_eq!(fs::read_to_string(host.path("real.toml")).unwrap(), "b");
    host.journal().undo(false).unwrap();
    assert!(host.path("link.toml").is_symlink());
    assert_eq!(fs::read_to_string(host.path("real.toml")).unwrap(), "a");
}

#[test]
fn a_link_to_a_file_that_is_not_there_stays_one() {
    let host = Host::new(&[]);
    symlink("made/real.toml", host.path("link.toml")).unwrap();
    host.write("link.toml", "b");
    assert_eq!(
        fs::read_to_string(host.path("made/real.toml")).unwrap(),
        "b"
    );
    host.journal().undo(false).unwrap();
    assert!(host.path("link.toml").is_symlink() && !host.path("made").exists());
}

#[test]
fn changes_of_others_are_not_lost_without_force() {
    let host = Host::new(&[("c.toml", "a"), ("d.toml", "a")]);
    host.write("c.toml", "b");
    host.write("d.toml", "b");
    fs::write(host.path("c.toml"), "theirs").unwrap();
    let told = host.journal().undo(false).unwrap_err().to_string();
    assert!(
        told.contains("c.toml") && told.contains("--force") && !told.contains("d.toml"),
        "{told}"
    );
    assert_eq!(
        fs::read_to_string(host.path("d.toml")).unwrap(),
        "b",
        "half of it was restored"
    );
    // Also if dfinit has written over it since.
    host.write("c.toml", "theirs and ours");
    assert!(host.journal().undo(false).is_err());
    host.journal().undo(true).unwrap();
    assert_eq!(fs::read_to_string(host.path("c.toml")).unwrap(), "a");
}

#[test]
fn a_run_that_was_cut_off_before_its_files_can_be_undone() {
    let host = Host::new(&[("c.toml", "a")]);
    let edit = Edit {
        path: host.path("c.toml"),
        before: Some("a".into()),
        after: "b".into(),
        needs_restart: true,
    };
    let mut journal = host.journal();
    fs::create_dir_all(host.path("state")).unwrap();
    journal.remember("containerd", &edit).unwrap();
    journal.save().unwrap();
    assert_eq!(host.journal().undo(false).unwrap(), [] as [PathBuf; 0]);
    assert_eq!(fs::read_to_string(host.path("c.toml")).unwrap(), "a");
}

#[test]
fn an_undo_that_was_cut_off_still_knows_of_the_restart() {
    let host = Host::new(&[("c.toml", "a"), ("d.json", "a")]);
    host.write("c.toml", "b");
    host.write("d.json", "b");
    host.journal().restarted("containerd").unwrap();
    let mut journal = host.journal();
    journal.announce_restarts().unwrap();
    let folder = host.path("state");
    let first = &journal.content.files[0];
    assert!(first.restore(&Host::own(), &folder).unwrap());
    drop(journal);
    host.journal().undo(false).unwrap();
    assert!(host.journal().is_restart_due("containerd"));
    assert_eq!(fs::read_to_string(host.path("d.json")).unwrap(), "a");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().collect();
    assert_eq!(left.len(), 1, "copies stay: {left:?}");
}

#[test]
fn what_could_not_be_written_does_not_count_as_ours() {
    let host = Host::new(&[("a.json", "a"), ("c.toml", "a"), ("d/b.json", "theirs")]);
    host.write("c.toml", "b");
    host.journal().restarted("containerd").unwrap();
    let before = host.all();
    // A folder in the place of the draft: as good as a disk that takes no more.
    fs::create_dir_all(host.path("d/b.json.dfinit-new/x")).unwrap();
    let edit = |name: &str, before: &str| {
        let before = Some(before.to_owned());
        Edit::new(host.path(name), before, "ours".into(), true)
    };
    let (written, not) = (edit("a.json", "a"), edit("d/b.json", "theirs"));
    let told = host.journal().apply(&[("docker", &not)]).unwrap_err();
    assert!(!told.to_string().contains("undo"), "{told}");
    assert!(!host.journal().wrote(&not.path));
    assert!(!host.journal().is_restart_due("docker"));
    let both = [("docker", &written), ("docker", &not)];
    let told = host.journal().apply(&both).unwrap_err().to_string();
    assert!(
        told.contains("b.json") && told.contains("dfinit undo"),
        "{told}"
    );
    assert!(host.journal().wrote(&written.path) && !host.journal().wrote(&not.path));
    assert!(host.journal().is_restart_due("docker"));
    fs::remove_dir_all(host.path("d/b.json.dfinit-new")).unwrap();
    host.journal().undo(false).unwrap();
    let mut after = host.all();
    assert_eq!(
        after.insert(host.path("c.toml"), Some("b".into())),
        Some(Some("a".into()))
    );
    assert_eq!(after, before);
}

#[test]
fn a_copy_never_replaces_another() {
    let host = Host::new(&[
        ("a/hosts.toml", "a"),
        ("b/hosts.toml", "b"),
        ("c/hosts.toml", "c"),
    ]);
    host.write("a/hosts.toml", "x");
    host.write("b/hosts.toml", "x");
    // The first is as it was, and forgotten.
    fs::write(host.path("a/hosts.toml"), "a").unwrap();
    host.journal().forget_unwritten().unwrap();
    host.write("c/hosts.toml", "x");
    host.write("a/hosts.toml", "x");
    host.journal().undo(false).unwrap();
    for name in ["a", "b", "c"] {
        let path = host.path(&format!("{name}/hosts.toml"));
        assert_eq!(fs::read_to_string(path).unwrap(), name);
    }
}

#[test]
fn a_change_between_plan_and_write_is_not_lost() {
    let host = Host::new(&[("c.toml", "theirs, just now")]);
    for before in [Some("a".to_owned()), None] {
        let edit = Edit::new(host.path("c.toml"), before, "b".into(), true);
        let told = host.journal().apply(&[("containerd", &edit)]).unwrap_err();
        assert!(told.to_string().contains("run dfinit again"), "{told}");
    }
    assert_eq!(
        fs::read_to_string(host.path("c.toml")).unwrap(),
        "theirs, just now"
    );
    assert!(!host.path("state").exists());
}

#[test]
fn no_draft_of_a_secret_file_can_be_read_by_others() {
    let host = Host::new(&[("c.toml", "a"), ("old", "left behind")]);
    let [secret, draft] = ["c.toml", "old"].map(|name| host.path(name));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).unwrap();
    // Who has opened what was left behind must not see what is written now.
    let watcher = fs::File::open(&draft).unwrap();
    let like = fs::metadata(&secret).unwrap();
    write_new(&draft, b"secret", Some(&like)).unwrap();
    assert_eq!(io::read_to_string(watcher).unwrap(), "left behind");
    assert_eq!(fs::metadata(&draft).unwrap().mode() & 0o777, 0o600);
    // Nor is it written where a link leads to.
    fs::remove_file(&draft).unwrap();
    symlink(&secret, &draft).unwrap();
    write_new(&draft, b"new", Some(&like)).unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "a");
}

#[test]
fn nothing_to_write_makes_no_journal() {
    let host = Host::new(&[("c.toml", "a")]);
    host.write("c.toml", "a");
    assert!(!host.path("state").exists());
    assert!(host.journal().content.restart_due.is_empty());
}

#[test]
fn a_damaged_journal_says_where_the_copies_are() {
    let host = Host::new(&[("state/journal.json", "{")]);
    let told = Journal::open(&Host::own(), &host.path("state"))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("journal.json") && told.contains("damaged"),
        "{told}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_number_of_runs_is_undone(runs in proptest::collection::vec((0_usize..4, ".{0,8}"), 0..8), there in any::<[bool; 4]>()) {
        let names = ["a.toml", "b/hosts.toml", "b/c/hosts.toml", "d.json"];
        let files: Vec<_> = names.iter().zip(there).filter(|(_, there)| *there).map(|(name, _)| (*name, "original")).collect();
        let host = Host::new(&files);
        let before = host.all();
        for (file, text) in &runs {
            host.write(names[*file], text);
        }
        host.journal().undo(false).unwrap();
        prop_assert_eq!(host.all(), before);
    }
}
