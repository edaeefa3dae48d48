//! The command line of one daemon process: `dfdaemon` and `dragonfly daemon`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use runtime::config::{ByteSize, ConfigError, Loaded};
use runtime::log::{self, LogOptions, LogTarget};
use runtime::shutdown::Shutdown;
use rustix::process::{Resource, Rlimit};
use tracing::{info, warn};

use crate::config::{Config, DEFAULT_DYNCONFIG_FILE, DEFAULT_FILE};

/// The options of a daemon, as in Dragonfly v2.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE", env = "DFDAEMON_CONFIG", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    /// Dynamic configuration file, used only when no manager is configured.
    #[arg(long, value_name = "FILE", env = "DFDAEMON_DYNCONFIG", default_value = DEFAULT_DYNCONFIG_FILE)]
    pub dynconfig: PathBuf,
    /// Log level or filter, such as info,h2=warn.
    #[arg(
        short,
        long,
        value_name = "LEVEL",
        env = "DFDAEMON_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
    /// Directory of the log files.
    #[arg(
        long,
        value_name = "DIR",
        env = "DFDAEMON_LOG_DIR",
        default_value = "/var/log/dragonfly/dfdaemon"
    )]
    pub log_dir: PathBuf,
    /// Log files that are kept.
    #[arg(long, value_name = "COUNT", default_value_t = 6)]
    pub log_max_files: usize,
    /// Size at which a log file is closed.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub log_max_file_size: ByteSize,
    /// Log to the terminal instead of files.
    #[arg(long)]
    pub console: bool,
}

impl Args {
    /// Reads the configuration that these options name.
    ///
    /// # Errors
    /// The file cannot be read or has mistakes.
    pub fn load(&self) -> Result<Loaded<Config>, ConfigError> {
        let mut loaded = Config::load(&self.config)?;
        loaded
            .value
            .dynconfig
            .local_file
            .clone_from(&self.dynconfig);
        Ok(loaded)
    }

    fn log_options(&self) -> LogOptions {
        let files = LogTarget::Files {
            directory: self.log_dir.clone(),
            name: "dfdaemon".to_owned(),
            file_count_max: self.log_max_files.max(1),
            file_len_max: self.log_max_file_size,
        };
        LogOptions {
            level: self.log_level.clone(),
            target: if self.console {
                LogTarget::Stderr
            } else {
                files
            },
        }
    }
}

/// Runs a daemon process from its options to its end; what went wrong is told on standard error.
pub fn main(args: &Args) -> ExitCode {
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dfdaemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &Args) -> anyhow::Result<()> {
    let loaded = args.load()?;
    let _log = log::init(&args.log_options())?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start worker threads")?;
    let ended = runtime.block_on(crate::run(loaded.value, Shutdown::new()));
    // A file operation that hangs must not keep the process: everything that matters has ended.
    runtime.shutdown_background();
    ended?;
    info!("daemon stopped");
    Ok(())
}

/// Connections and content files take one descriptor each; the usual soft limit of 1024 is meant for other programs.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        warn!(%error, "number of open files stays limited");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Args {
        CommandLine::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{error}"))
            .args
    }

    #[test]
    fn the_flags_of_v2_are_understood() {
        let args = parse(&[
            "dfdaemon",
            "-c",
            "/c.yaml",
            "--dynconfig",
            "/d.yaml",
            "-l",
            "debug",
            "--log-dir",
            "/logs",
            "--log-max-files",
            "3",
            "--log-max-file-size",
            "10MiB",
            "--console",
        ]);
        assert_eq!(
            (args.config, args.dynconfig),
            ("/c.yaml".into(), "/d.yaml".into())
        );
        assert_eq!(
            (args.log_max_files, args.log_max_file_size),
            (3, ByteSize::mib(10))
        );
        assert!(args.console);
        let args = parse(&["dfdaemon"]);
        assert_eq!(args.config, PathBuf::from(DEFAULT_FILE));
    }

    #[test]
    fn a_missing_file_is_told_by_name() {
        let error = parse(&["dfdaemon", "--config", "/no/such.yaml"])
            .load()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/no/such.yaml") && error.contains("--config"),
            "{error}"
        );
    }
}
