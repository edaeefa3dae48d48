//! Hosts whose file system is mounted in ours: nothing outside of it is read or written, and undo works from anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use clap::Parser;
use tempfile::TempDir;

use super::*;

/// A machine with the file system of a host in a folder of its own.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        machine.write("dfinit.yaml", "containerRuntime:\n  containerd:\n");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The same path inside the file system of the host.
    fn on_host(&self, path: &Path) -> String {
        format!("host{}", path.display())
    }

    async fn run(&self, root: &str, words: &[&str]) {
        self.try_run(root, words).await.unwrap();
    }

    async fn try_run(&self, root: &str, words: &[&str]) -> Result<Told, Failure> {
        let (root, config) = (self.path(root), self.path("dfinit.yaml"));
        let line = ["dfinit", "--root", root.to_str().unwrap()]
            .into_iter()
            .chain(["--config", config.to_str().unwrap()])
            .chain(words.iter().copied());
        run(Arguments::parse_from(line)).await
    }

    /// Every file and link below `folder`, and what it says.
    fn all(&self, folder: &str) -> BTreeMap<PathBuf, String> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let told = match (path.is_symlink(), path.is_dir()) {
                    (true, _) => fs::read_link(&path).unwrap().display().to_string(),
                    (_, true) => {
                        walk(&path, found);
                        continue;
                    }
                    _ => fs::read_to_string(&path).unwrap(),
                };
                found.insert(path, told);
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.path(folder), &mut found);
        found
    }
}

#[tokio::test]
async fn absolute_links_stay_on_the_host() {
    let machine = Machine::new();
    let own = machine.write("own/x/c.toml", "version = 2 # the machine's\n");
    let theirs = machine.write(&machine.on_host(&own), "version = 2 # the host's\n");
    let certs = machine.path("own/certs.d");
    fs::create_dir_all(machine.path("host/etc/containerd")).unwrap();
    fs::create_dir_all(&certs).unwrap();
    symlink(&own, machine.path("host/etc/containerd/config.toml")).unwrap();
    symlink(&certs, machine.path("host/etc/containerd/certs.d")).unwrap();
    let (before, host_before) = (machine.all("own"), machine.all("host"));
    machine.run("host", &[]).await;
    assert_eq!(machine.all("own"), before);
    let edited = fs::read_to_string(&theirs).unwrap();
    assert!(
        edited.contains("config_path") && edited.contains("# the host's"),
        "{edited}"
    );
    let hosts = machine.on_host(&certs.join("_default/hosts.toml"));
    assert!(machine.path(&hosts).exists());
    machine.run("host", &["undo"]).await;
    assert_eq!(machine.all("own"), before);
    assert_eq!(machine.all("host"), host_before);
}

#[tokio::test]
async fn a_folder_that_is_a_link_is_the_hosts() {
    let machine = Machine::new();
    let own = machine.path("own/opt");
    machine.write("own/opt/config.toml", "version = 2\n");
    let theirs = machine.write(&machine.on_host(&own.join("config.toml")), "version = 2\n");
    fs::create_dir_all(machine.path("host/etc")).unwrap();
    symlink(&own, machine.path("host/etc/containerd")).unwrap();
    let before = machine.all("own");
    machine.run("host", &[]).await;
    assert_eq!(machine.all("own"), before);
    assert!(fs::read_to_string(theirs).unwrap().contains("config_path"));
}

#[tokio::test]
async fn what_a_container_changed_is_undone_on_the_host() {
    let machine = Machine::new();
    machine.write("host/etc/containerd/config.toml", "version = 2\n");
    fs::create_dir_all(machine.path("host/run")).unwrap();
    fs::create_dir_all(machine.path("host/var")).unwrap();
    // As every distribution has it; it must not lead to the /run of this process.
    symlink("/run", machine.path("host/var/run")).unwrap();
    let before = machine.all("host");
    machine.run("host", &[]).await;
    assert!(
        machine
            .path("host/var/lib/dragonfly/dfinit/journal.json")
            .exists()
    );
    let sentinel = machine.path("host/run/dragonfly/dfinit/restart-required");
    assert!(sentinel.exists());
    // The host sees its file system elsewhere than the container did.
    fs::rename(machine.path("host"), machine.path("moved")).unwrap();
    machine.run("moved", &["undo"]).await;
    fs::rename(machine.path("moved"), machine.path("host")).unwrap();
    assert!(!sentinel.exists());
    assert_eq!(machine.all("host"), before);
}

#[tokio::test]
async fn each_root_has_a_journal_of_its_own() {
    let machine = Machine::new();
    for host in ["one", "two"] {
        machine.write(
            &format!("{host}/etc/containerd/config.toml"),
            "version = 2\n",
        );
        machine.run(host, &[]).await;
    }
    let two = machine.all("two");
    machine.run("one", &["undo"]).await;
    assert_eq!(machine.all("two"), two);
    machine.run("two", &["undo"]).await;
    for host in ["one", "two"] {
        let config = machine.path(&format!("{host}/etc/containerd/config.toml"));
        assert_eq!(fs::read_to_string(config).unwrap(), "version = 2\n");
    }
}

#[tokio::test]
async fn the_runtime_of_this_machine_is_not_restarted_for_another_host() {
    let machine = Machine::new();
    machine.write("host/etc/containerd/config.toml", "version = 2\n");
    let before = machine.all("host");
    for words in [&["--restart"][..], &["undo", "--restart"]] {
        let refused = machine.try_run("host", words).await;
        let Err(Failure::Usage { reason }) = refused else {
            panic!("{words:?}");
        };
        assert!(reason.contains("--restart-command"), "{reason}");
    }
    assert_eq!(machine.all("host"), before);
    let ran = machine.path("ran");
    let command = format!("touch {}", ran.display());
    machine
        .run("host", &["--restart", "--restart-command", &command])
        .await;
    assert!(ran.exists());
}
