//! The command line of `dragonfly manager`.

use std::path::{Path, PathBuf};

use runtime::config::{ConfigError, Document, Loaded};
use runtime::log::LogTarget;

use crate::config::Config;
use crate::db::DatabaseUrl;

/// Used when no `--config` names another file; it may be missing.
const CONFIG_FILE: &str = "/etc/dragonfly/manager.yaml";

/// Run the manager: clusters, membership and their configuration.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file [default: /etc/dragonfly/manager.yaml, if it is there].
    #[arg(long, env = "MANAGER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Database to keep the data in; wins over the file. As a variable it keeps the password out of files.
    #[arg(
        long,
        env = "MANAGER_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<DatabaseUrl>,

    /// Log to standard error instead of files.
    #[arg(long)]
    pub console: bool,
}

impl Args {
    /// Reads the configuration that these arguments name.
    ///
    /// # Errors
    /// The file is missing although it was named, is unreadable, or has mistakes.
    pub fn load(&self) -> Result<Loaded<Config>, ConfigError> {
        let document = match &self.config {
            Some(file) => Document::load(file)?,
            None => Document::load_if_present(Path::new(CONFIG_FILE))?,
        };
        let mut loaded = Config::read(document)?;
        if let Some(url) = &self.database_url {
            loaded.value.database = url.clone();
        }
        if self.console {
            loaded.value.log.target = LogTarget::Stderr;
        }
        Ok(loaded)
    }
}
