//! What a tool tells while it works: nothing, unless `--console` is given.

use clap::{Args, ValueEnum};

/// What is told on the way.
#[derive(Debug, Clone, Args)]
pub struct LogArguments {
    /// What --console prints; debug and trace tell every step.
    #[arg(short, long, env = "DFGET_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,

    /// Print what happens on standard error.
    #[arg(long, env = "DFGET_CONSOLE")]
    pub console: bool,
}

/// How much `--console` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// Errors, which are printed anyway.
    Error,
    /// The same.
    Warn,
    /// The steps.
    Info,
    /// Every piece or call.
    Debug,
    /// The same.
    Trace,
}

impl LogArguments {
    /// Prints a line of `level` if the user wants it.
    pub(crate) fn say(&self, level: LogLevel, line: impl FnOnce() -> String) {
        if self.console && level <= self.log_level {
            eprintln!("{}", line());
        }
    }
}
