//! The options of `dfinit`: those of Dragonfly v2, and ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use url::Url;

use super::root::HostRoot;
use crate::logging::LogArguments;
use crate::program::Format;

/// Where the configuration lies unless `--config` says otherwise.
pub(super) const CONFIG_FILE: &str = "/etc/dragonfly/dfinit.yaml";

/// Where the files as they were are kept unless `--state-dir` says otherwise.
pub(super) const STATE_DIR: &str = "/var/lib/dragonfly/dfinit";

const EXAMPLES: &str = "\
Examples:
  dfinit --dry-run                       what would be changed on this host
  dfinit --restart --probe alpine:3      set up, restart the runtime if that is needed, and prove it
  dfinit undo --restart                  every file as it was before";

/// Makes the container runtime of this host pull images through the Dragonfly daemon.
#[derive(Debug, Clone, Parser)]
#[command(name = "dfinit", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Arguments {
    /// What to do other than setting up.
    #[command(subcommand)]
    pub command: Option<Action>,

    /// Configuration file; if it is missing at its usual place, all runtimes of this host are set up [default: /etc/dragonfly/dfinit.yaml].
    #[arg(short, long, global = true)]
    pub config: Option<PathBuf>,

    /// Show as a diff what would be changed, and change nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,

    /// Restart the runtime, once, if what was changed needs it.
    #[arg(long, global = true, conflicts_with = "dry_run")]
    pub restart: bool,

    /// The command that restarts it, for hosts without systemd and for containers [default: systemctl restart UNIT].
    #[arg(long, global = true, value_name = "COMMAND", requires = "restart")]
    pub restart_command: Option<String>,

    /// File that is made if a restart is needed and --restart was not given.
    #[arg(
        long,
        global = true,
        default_value = "/var/run/dragonfly/dfinit/restart-required"
    )]
    pub restart_sentinel: PathBuf,

    /// Pull this image at the end and check that its requests reach the daemon.
    #[arg(long, value_name = "IMAGE", conflicts_with = "dry_run")]
    pub probe: Option<String>,

    /// Where the daemon serves its metrics, for --probe [default: port 4002 of the proxy's host].
    #[arg(long, value_name = "URL")]
    pub metrics_addr: Option<Url>,

    /// Longest time for the pull of --probe.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    pub probe_timeout: Duration,

    /// Folder that keeps the files as they were, for `dfinit undo`.
    #[arg(long, global = true, default_value = STATE_DIR)]
    pub state_dir: PathBuf,

    /// The host's file system, if it is not this one: every path, but that of --config, and every symbolic link begins here.
    #[arg(long, global = true, default_value = "/")]
    pub root: PathBuf,

    /// How to tell what was done; json also tells failures so.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub output: Format,

    /// What is told on the way.
    #[command(flatten)]
    pub log: LogArguments,
}

/// What `dfinit` does besides setting up.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Restore every file that dfinit changed, byte by byte, and remove those that it made.
    Undo {
        /// Also restore files that somebody else has changed since.
        #[arg(long)]
        force: bool,
    },
}

impl Arguments {
    /// The configuration file, and whether the user named it.
    pub(super) fn config_file(&self) -> (&Path, bool) {
        match &self.config {
            Some(file) => (file, true),
            None => (Path::new(CONFIG_FILE), false),
        }
    }

    /// The file system of the host.
    pub(super) fn host_root(&self) -> HostRoot {
        HostRoot::new(&self.root)
    }

    /// The folder that keeps the files as they were, as this process names it.
    pub(super) fn state_folder(&self) -> PathBuf {
        self.on_host(&self.state_dir)
    }

    /// The file that tells that a restart is due, as this process names it.
    pub(super) fn sentinel(&self) -> PathBuf {
        self.on_host(&self.restart_sentinel)
    }

    /// A path of the command line: what does not begin with `/` is meant from the folder that we run in, unless the host is
    /// another one.
    fn on_host(&self, path: &Path) -> PathBuf {
        let root = self.host_root();
        match std::path::absolute(path) {
            Ok(path) if root.is_own() => path,
            _ => root.named(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::logging::LogLevel;

    #[test]
    fn the_options_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_v2() {
        let arguments = Arguments::try_parse_from(["dfinit"]).unwrap();
        assert_eq!(
            arguments.config_file(),
            (Path::new("/etc/dragonfly/dfinit.yaml"), false)
        );
        let sentinel = "/var/run/dragonfly/dfinit/restart-required";
        assert_eq!(arguments.restart_sentinel, Path::new(sentinel));
        assert!(!arguments.log.console && arguments.log.log_level == LogLevel::Info);
    }

    #[test]
    fn the_copies_and_the_sentinel_lie_on_the_host() {
        let arguments = Arguments::try_parse_from(["dfinit", "--root", "/host"]).unwrap();
        assert_eq!(
            arguments.state_folder(),
            Path::new("/host/var/lib/dragonfly/dfinit")
        );
        let sentinel = "/host/var/run/dragonfly/dfinit/restart-required";
        assert_eq!(arguments.sentinel(), Path::new(sentinel));
        let here = Arguments::try_parse_from(["dfinit", "--state-dir", "state"]).unwrap();
        assert_eq!(
            here.state_folder(),
            std::env::current_dir().unwrap().join("state")
        );
    }

    #[test]
    fn undo_takes_the_options_on_either_side() {
        for line in [
            "dfinit undo --force --restart",
            "dfinit --restart undo --force",
        ] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(arguments.restart, "{line}");
            assert!(matches!(
                arguments.command,
                Some(Action::Undo { force: true })
            ));
        }
    }
}
