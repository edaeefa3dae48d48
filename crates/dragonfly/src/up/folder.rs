//! The data folder of `dragonfly up`: the services' configuration files and everything that they keep.

use std::io;
use std::path::{Path, PathBuf};

use runtime::config::{ByteSize, ConfigError, Loaded};
use runtime::log::{LogOptions, LogTarget};

use super::Options;

/// The configuration file of the manager.
pub(super) const MANAGER: &str = "manager.yaml";
/// The configuration file of the scheduler.
pub(super) const SCHEDULER: &str = "scheduler.yaml";
/// The configuration file of the daemon.
pub(super) const DAEMON: &str = "dfdaemon.yaml";

/// The data folder of a system service.
const SYSTEM: &str = "/var/lib/dragonfly";
/// Files of log that are kept.
const LOG_COUNT: usize = 6;
/// Size at which a log file is closed.
const LOG_LEN: ByteSize = ByteSize::mib(64);

/// A folder that can be written to and has a configuration file for each service.
pub(super) struct Folder {
    path: PathBuf,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error("no data folder: HOME is not set; name one with --data-dir")]
    Nameless,
    #[error("data folder: {}: {error}: name another with --data-dir, or make it writable for this user", .path.display())]
    Unusable { path: PathBuf, error: io::Error },
}

impl Folder {
    /// Opens the folder that the options name; makes it and the files that are missing.
    pub(super) fn open(options: &Options) -> Result<Self, FolderError> {
        let path = match &options.data_dir {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let unusable = |path: &Path, error| FolderError::Unusable {
            path: path.to_owned(),
            error,
        };
        std::fs::create_dir_all(&path).map_err(|error| unusable(&path, error))?;
        // The files hold absolute paths, so that they mean the same wherever the next start is made from.
        let path = path
            .canonicalize()
            .map_err(|error| unusable(&path, error))?;
        let folder = Self { path };
        for (name, text) in [
            (MANAGER, folder.manager_yaml()),
            (SCHEDULER, folder.scheduler_yaml()),
            (DAEMON, folder.dfdaemon_yaml()),
        ] {
            let file = folder.file(name);
            write_if_missing(&file, &text).map_err(|error| unusable(&file, error))?;
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of the files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads one of the files; keys without effect are logged.
    pub(super) fn load<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Path) -> Result<Loaded<T>, ConfigError>,
    ) -> Result<T, ConfigError> {
        let loaded = read(&self.file(name))?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(loaded.value)
    }

    /// One log for all services, in the folder or on standard error.
    pub(super) fn log_options(&self, options: &Options) -> LogOptions {
        let files = LogTarget::Files {
            directory: self.file("logs"),
            name: "dragonfly".to_owned(),
            file_count_max: LOG_COUNT,
            file_len_max: LOG_LEN,
        };
        LogOptions {
            level: options.log_level.clone(),
            target: if options.console {
                LogTarget::Stderr
            } else {
                files
            },
        }
    }

    fn manager_yaml(&self) -> String {
        format!(
            "{HEADER}database:\n  url: sqlite://{}/manager.db\n",
            self.path.display()
        )
    }

    fn scheduler_yaml(&self) -> String {
        format!(
            "{HEADER}server:\n  dataDir: {}/scheduler\nmanager:\n  addr: 127.0.0.1:65003\n",
            self.path.display()
        )
    }

    fn dfdaemon_yaml(&self) -> String {
        let path = self.path.display();
        // The system service serves the socket where dfget looks for it.
        let socket = if self.path == Path::new(SYSTEM) {
            "/var/run/dragonfly/dfdaemon.sock".to_owned()
        } else {
            format!("{path}/dfdaemon.sock")
        };
        format!(
            "{HEADER}manager:\n  addr: http://127.0.0.1:65003\nseedPeer:\n  enable: true\n\
             storage:\n  dir: {path}/pieces\nserver:\n  cacheDir: {path}/cache\n  pluginDir: {path}/plugins\n\
             download:\n  server:\n    socketPath: {socket}\n"
        )
    }
}

/// What stands at the head of each file.
const HEADER: &str =
    "# Written by the first `dragonfly up`; yours to change. The keys are those of Dragonfly v2.\n";

fn default_path() -> Result<PathBuf, FolderError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(SYSTEM));
    }
    std::env::home_dir()
        .map(|home| home.join(".dragonfly"))
        .ok_or(FolderError::Nameless)
}

fn write_if_missing(file: &Path, text: &str) -> io::Result<()> {
    match std::fs::File::create_new(file) {
        Ok(mut created) => io::Write::write_all(&mut created, text.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: &Path) -> Options {
        Options {
            data_dir: Some(path.to_owned()),
            log_level: "info".to_owned(),
            console: true,
        }
    }

    #[test]
    fn the_files_are_written_once_and_are_without_mistakes() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(&options(&parent.path().join("data"))).unwrap();
        let read = |path: &Path| manager::Config::read(runtime::config::Document::load(path)?);
        for warnings in [
            read(&folder.file(MANAGER)).unwrap().warnings,
            scheduler::Config::load(&folder.file(SCHEDULER))
                .unwrap()
                .warnings,
            daemon::config::Config::load(&folder.file(DAEMON))
                .unwrap()
                .warnings,
        ] {
            assert_eq!(warnings, []);
        }
        std::fs::write(folder.file(MANAGER), "# mine\n").unwrap();
        Folder::open(&options(folder.path())).unwrap();
        assert_eq!(
            std::fs::read_to_string(folder.file(MANAGER)).unwrap(),
            "# mine\n"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_is_told() {
        let error = Folder::open(&options(Path::new("/proc/none")))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("/proc/none") && error.contains("--data-dir"),
            "{error}"
        );
    }
}
