//! Which container runtimes this host has, of which version, and where their files are.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::process::Command;

use super::root::HostRoot;
use super::version::Version;

/// Longest wait for a runtime to print its version. It does so at once; a disk that hangs should not hang us.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// Folders in which programs are looked for, without regard to `PATH`: a service manager has another one than a shell.
const PROGRAM_FOLDERS: [&str; 4] = ["usr/local/bin", "usr/bin", "usr/local/sbin", "usr/sbin"];

/// A kind of container runtime that can pull through the daemon's proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// containerd, also inside k3s and RKE2.
    Containerd,
    /// The Docker engine.
    Docker,
    /// CRI-O.
    Crio,
    /// podman, and all that reads `registries.conf`: skopeo, buildah.
    Podman,
}

impl Kind {
    /// The name in configuration files and in what is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Crio => "crio",
            Self::Podman => "podman",
        }
    }
}

/// A container runtime of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Which one.
    pub kind: Kind,
    /// Who ships it and writes its configuration, such as `k3s`; `None` for a runtime on its own.
    pub shipped_by: Option<&'static str>,
    /// `None` if its program is not here or did not say.
    pub version: Option<Version>,
    /// The file that dfinit edits, whether it is there or not.
    pub config: PathBuf,
    /// Where it answers to the CRI or to its own API.
    pub socket: PathBuf,
    /// The systemd units that run it; the one that is active is meant.
    pub units: &'static [&'static str],
    /// A file that it makes when it starts: its socket, unless systemd makes that.
    pub started_file: PathBuf,
    /// Whether something listens on the socket.
    pub running: bool,
}

impl Runtime {
    /// When it started last; `None` if it does not run or nobody knows.
    pub(super) fn started(&self) -> Option<SystemTime> {
        let file = std::fs::metadata(&self.started_file).ok()?;
        file.modified().ok().filter(|_| self.running)
    }
}

/// Where one way to install a runtime puts things, relative to the root of the file system.
struct Layout {
    kind: Kind,
    shipped_by: Option<&'static str>,
    /// Programs; the first that is found tells the version. Names without a slash are looked for in [`PROGRAM_FOLDERS`].
    programs: &'static [&'static str],
    config: &'static str,
    /// Whether the configuration file alone proves that the runtime is here.
    config_is_proof: bool,
    socket: &'static str,
    /// `None`: the socket.
    started_file: Option<&'static str>,
    units: &'static [&'static str],
}

const LAYOUTS: [Layout; 6] = [
    Layout {
        kind: Kind::Containerd,
        shipped_by: Some("k3s"),
        programs: &["var/lib/rancher/k3s/data/current/bin/containerd"],
        config: "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        config_is_proof: true,
        socket: "run/k3s/containerd/containerd.sock",
        started_file: None,
        units: &["k3s.service", "k3s-agent.service"],
    },
    Layout {
        kind: Kind::Containerd,
        shipped_by: Some("RKE2"),
        programs: &["var/lib/rancher/rke2/bin/containerd"],
        config: "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        config_is_proof: true,
        socket: "run/k3s/containerd/containerd.sock",
        started_file: None,
        units: &["rke2-server.service", "rke2-agent.service"],
    },
    Layout {
        kind: Kind::Containerd,
        shipped_by: None,
        programs: &["containerd"],
        config: "etc/containerd/config.toml",
        config_is_proof: true,
        socket: "run/containerd/containerd.sock",
        started_file: None,
        units: &["containerd.service"],
    },
    Layout {
        kind: Kind::Docker,
        shipped_by: None,
        programs: &["dockerd"],
        config: "etc/docker/daemon.json",
        config_is_proof: false,
        socket: "run/docker.sock",
        started_file: Some("run/docker.pid"),
        units: &["docker.service"],
    },
    Layout {
        kind: Kind::Crio,
        shipped_by: None,
        programs: &["crio"],
        config: "etc/containers/registries.conf",
        config_is_proof: false,
        socket: "run/crio/crio.sock",
        started_file: None,
        units: &["crio.service"],
    },
    Layout {
        kind: Kind::Podman,
        shipped_by: None,
        programs: &["podman"],
        config: "etc/containers/registries.conf",
        config_is_proof: false,
        socket: "run/podman/podman.sock",
        started_file: None,
        units: &["podman.service"],
    },
];

/// Finds the runtimes of the host. The programs are asked for their version only if this process is
/// one of the host: those of another one may need other libraries.
pub(super) async fn detect(root: &HostRoot) -> Vec<Runtime> {
    let mut found = Vec::new();
    for layout in &LAYOUTS {
        let program = layout
            .programs
            .iter()
            .find_map(|name| find_program(root, name));
        let config = root.named(layout.config);
        if program.is_none() && !(layout.config_is_proof && root.has(&config)) {
            continue;
        }
        let version = match program {
            Some(program) if root.is_own() => ask_version(&program).await,
            _ => None,
        };
        found.push(Runtime {
            version,
            ..layout.runtime(root, config)
        });
    }
    found
}

/// The runtime of `kind` whose configuration is `config`: what is known of it if it is one of those that [`detect`] finds,
/// else the usual places.
pub(super) fn named(root: &HostRoot, found: &[Runtime], kind: Kind, config: &Path) -> Runtime {
    let same = |runtime: &&Runtime| runtime.kind == kind && runtime.config == config;
    if let Some(runtime) = found.iter().find(same) {
        return runtime.clone();
    }
    let usual = LAYOUTS
        .iter()
        .find(|layout| layout.kind == kind && layout.shipped_by.is_none())
        .expect("every kind has a layout of its own");
    let version = found
        .iter()
        .find(|runtime| runtime.kind == kind && runtime.shipped_by.is_none());
    Runtime {
        version: version.and_then(|runtime| runtime.version),
        ..usual.runtime(root, config.to_owned())
    }
}

impl Layout {
    fn runtime(&self, root: &HostRoot, config: PathBuf) -> Runtime {
        let found = |path: &str| {
            let named = root.named(path);
            root.find(&named).unwrap_or(named)
        };
        let socket = found(self.socket);
        Runtime {
            kind: self.kind,
            shipped_by: self.shipped_by,
            version: None,
            config,
            started_file: self.started_file.map_or_else(|| socket.clone(), found),
            running: UnixStream::connect(&socket).is_ok(),
            socket,
            units: self.units,
        }
    }
}

fn find_program(root: &HostRoot, name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(root.named(name)).filter(|path| root.has(path));
    }
    PROGRAM_FOLDERS
        .iter()
        .map(|folder| root.named(folder).join(name))
        .find(|path| root.has(path))
}

async fn ask_version(program: &Path) -> Option<Version> {
    let asked = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_LIMIT, asked)
        .await
        .ok()?
        .ok()?;
    Version::find(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    async fn check(files: &[&str], expected: &[(Kind, Option<&str>, &str)]) {
        let root = host(files);
        let found = detect(&HostRoot::new(root.path())).await;
        let told: Vec<_> = found
            .iter()
            .map(|runtime| {
                let config = runtime.config.strip_prefix(root.path()).unwrap();
                (runtime.kind, runtime.shipped_by, config.to_str().unwrap())
            })
            .collect();
        assert_eq!(told, expected, "{files:?}");
    }

    #[tokio::test]
    async fn every_way_to_install_is_found() {
        check(&[], &[]).await;
        let plain = "etc/containerd/config.toml";
        check(&["usr/bin/containerd"], &[(Kind::Containerd, None, plain)]).await;
        check(&[plain], &[(Kind::Containerd, None, plain)]).await;
        let k3s = "var/lib/rancher/k3s/agent/etc/containerd/config.toml";
        check(&[k3s], &[(Kind::Containerd, Some("k3s"), k3s)]).await;
        let rke2 = "var/lib/rancher/rke2/agent/etc/containerd/config.toml";
        check(&[rke2], &[(Kind::Containerd, Some("RKE2"), rke2)]).await;
        check(
            &["usr/bin/dockerd", "usr/local/bin/crio", "usr/bin/podman"],
            &[
                (Kind::Docker, None, "etc/docker/daemon.json"),
                (Kind::Crio, None, "etc/containers/registries.conf"),
                (Kind::Podman, None, "etc/containers/registries.conf"),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn files_that_others_bring_are_no_proof() {
        check(
            &["etc/containers/registries.conf", "etc/docker/daemon.json"],
            &[],
        )
        .await;
    }
}
