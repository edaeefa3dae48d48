//! Logging: `tracing` events to standard error, or to files that are rotated by size.
//!
//! The writer runs on its own thread behind a bounded queue, so that a slow disk never holds a service up; when the queue
//! is full, lines are dropped and counted rather than waited for.

mod rolling;

use std::path::PathBuf;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::ByteSize;

/// Lines that may wait for the writer: about 4 MiB at usual lengths. Further ones are dropped.
const QUEUED_LINE_COUNT: usize = 16 * 1024;

/// Where logs go and how much of them is kept.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// A level (`info`) or a filter in the form of `RUST_LOG` (`info,h2=warn`). The variable `RUST_LOG` wins over it.
    pub level: String,
    /// Where the lines go.
    pub target: LogTarget,
}

/// Where log lines go.
#[derive(Debug, Clone)]
pub enum LogTarget {
    /// Standard error, with colours on a terminal.
    Stderr,
    /// `DIRECTORY/NAME.log`, then `NAME.log.1` (the newest of the old ones) and so on.
    Files {
        /// The directory; made if it is missing.
        directory: PathBuf,
        /// The file's name without `.log`.
        name: String,
        /// How many files there are at most, the current one included; at least 1.
        file_count_max: usize,
        /// A file is closed before it grows beyond this.
        file_len_max: ByteSize,
    },
}

/// Keeps the writer running; what is queued is written when it is dropped. Hold it until the end of `main`.
#[must_use = "logging stops when the guard is dropped"]
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The level is not one.
    #[error(
        "log level {level:?}: {error}: expected trace, debug, info, warn, error, or a filter such as info,h2=warn"
    )]
    Level {
        /// The level as given.
        level: String,
        /// What is wrong with it.
        error: tracing_subscriber::filter::ParseError,
    },
    /// The directory or the file cannot be made.
    #[error("log file {}: {error}: use --log-dir with a directory that this user may write to, or --console", .file.display())]
    File {
        /// The file or directory.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Logging was started before in this process.
    #[error("logging is already started")]
    Started,
}

/// Starts logging for the whole process. Panics are logged too.
///
/// # Errors
/// The level does not parse, the log file cannot be written, or logging was started before.
pub fn init(options: &LogOptions) -> Result<LogGuard, LogError> {
    let filter = filter(&options.level)?;
    let builder = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINE_COUNT);
    let (writer, ansi, worker) = match &options.target {
        LogTarget::Stderr => {
            use std::io::IsTerminal;
            let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let (writer, worker) = builder.finish(std::io::stderr());
            (writer, ansi, worker)
        }
        LogTarget::Files {
            directory,
            name,
            file_count_max,
            file_len_max,
        } => {
            let file =
                rolling::RollingFile::open(directory, name, *file_count_max, file_len_max.as_u64())
                    .map_err(|(file, error)| LogError::File { file, error })?;
            let (writer, worker) = builder.finish(file);
            (writer, false, worker)
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(writer)
        .try_init()
        .map_err(|_| LogError::Started)?;
    log_panics();
    Ok(LogGuard { _worker: worker })
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|wanted| !wanted.is_empty());
    let level = wanted.as_deref().unwrap_or(level);
    EnvFilter::try_new(level).map_err(|error| LogError::Level {
        level: level.to_owned(),
        error,
    })
}

/// Puts panics into the log before the usual report on standard error.
fn log_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(
            place,
            reason = panic.payload_as_str().unwrap_or("unknown"),
            "panic, a bug in this program"
        );
        usual(panic);
    }));
}
