//! The command line of one scheduler process: `dragonfly scheduler`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use runtime::config::Loaded;
use runtime::log::{self, LogOptions, LogTarget};
use runtime::shutdown::Shutdown;
use tracing::{info, warn};

use crate::config::{Config, DYNCONFIG_FILE};

/// Where the configuration of a scheduler lies unless `--config` says otherwise.
const CONFIG_FILE: &str = "/etc/dragonfly/scheduler.yaml";

/// The options of a scheduler, as in Dragonfly v2.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file; a missing one at the default place means the defaults.
    #[arg(long, short = 'c', value_name = "FILE", env = "SCHEDULER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Dynamic configuration file, used only when no manager is configured; made with defaults if it is missing.
    #[arg(long, value_name = "FILE", default_value = DYNCONFIG_FILE)]
    pub dynconfig: PathBuf,
    /// Log to the terminal instead of files.
    #[arg(long)]
    pub console: bool,
    /// Log level or filter; wins over `server.logLevel`.
    #[arg(long, short = 'l', value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Directory of the log files; wins over `server.logDir`.
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

impl Args {
    /// Reads the configuration that these options name.
    ///
    /// # Errors
    /// The file cannot be read or has mistakes.
    pub fn load(&self) -> Result<Loaded<Config>, runtime::config::ConfigError> {
        let mut loaded = match &self.config {
            Some(file) => Config::load(file)?,
            None => Config::load_if_present(Path::new(CONFIG_FILE))?,
        };
        loaded.value.dynconfig_file.clone_from(&self.dynconfig);
        Ok(loaded)
    }

    fn log_options(&self, config: &Config) -> LogOptions {
        let level = self
            .log_level
            .clone()
            .unwrap_or_else(|| config.log.level.clone());
        let target = if self.console || config.log.console {
            LogTarget::Stderr
        } else {
            LogTarget::Files {
                directory: self
                    .log_dir
                    .clone()
                    .unwrap_or_else(|| config.log.dir.clone())
                    .join("scheduler"),
                name: "core".to_owned(),
                file_count_max: config.log.file_count_max,
                file_len_max: config.log.file_len_max,
            }
        };
        LogOptions { level, target }
    }
}

/// Runs a scheduler process from its options to its end; mistakes go to standard error.
pub fn main(args: &Args) -> ExitCode {
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &Args) -> anyhow::Result<()> {
    let loaded = args.load()?;
    let _log = log::init(&args.log_options(&loaded.value))?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start worker threads")?;
    runtime.block_on(async {
        crate::run(loaded.value, Shutdown::new()).await?;
        info!("scheduler stopped");
        Ok(())
    })
}
