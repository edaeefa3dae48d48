//! Why a tool failed, what to try, and the exit code for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tonic::{Code, Status};

/// A tool failed. The text says what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The options cannot be obeyed.
    #[error("{reason}")]
    Usage {
        /// Which and why.
        reason: String,
    },
    /// No daemon at the socket.
    #[error("no daemon answers at {} ({reason}): start one with `dfdaemon`, or name its socket with --endpoint", endpoint.display())]
    Unreachable {
        /// The socket.
        endpoint: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The origin refused or failed.
    #[error("the file cannot be had from its origin: {message}")]
    Origin {
        /// Its status, if it answered.
        status_code: Option<i32>,
        /// What the daemon tells about it.
        message: String,
    },
    /// What is asked for cannot be had as it is there: too many files, a listing that no folder can hold.
    #[error("{reason}")]
    Refused {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The output cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The daemon says that it is done, but the file is not where we look.
    #[error("the daemon finished, but not at {} as seen from here: {reason} (does it share this file system? else use --transfer-from-dfdaemon)", path.display())]
    NotThere {
        /// The output.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// The bytes are not those that were expected.
    #[error(
        "the digest does not match: {detail}: the file at the origin is another one, or it was damaged; nothing was kept"
    )]
    Digest {
        /// Both digests, or what the daemon tells.
        detail: String,
    },
    /// The time is over.
    #[error("not done within {}: allow more with --timeout", humantime::format_duration(rounded(*limit)))]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The user ended it.
    #[error("interrupted: nothing that was not whole was kept")]
    Interrupted {
        /// The signal's number.
        signal: u8,
    },
    /// The other side could not do it.
    #[error("{whose} could not do it ({code:?}): {message}")]
    Daemon {
        /// Who was asked: "the daemon" or "the scheduler".
        whose: &'static str,
        /// The gRPC status code.
        code: Code,
        /// What it told.
        message: String,
    },
    /// The daemon's answers contradict each other or end too early.
    #[error("the daemon's answer is broken: {reason}: look into its log")]
    Broken {
        /// In what.
        reason: String,
    },
    /// This process cannot work.
    #[error("cannot run here: {reason}")]
    Here {
        /// Why.
        reason: String,
    },
}

/// What is left of a limit by the time it is sent, as the limit it was.
fn rounded(limit: Duration) -> Duration {
    match limit.as_secs() {
        0 => limit - Duration::from_nanos(u64::from(limit.subsec_nanos() % 1_000_000)),
        seconds => Duration::from_secs(seconds + u64::from(limit.subsec_millis() >= 500)),
    }
}

/// The details of a status that tells of an origin's failure: `errordetails.v2.Backend` as JSON.
#[derive(Deserialize)]
struct Backend {
    message: String,
    status_code: Option<i32>,
}

/// How every text of our daemon about an output begins; the path follows in quotes.
const OUTPUT_PATH: &str = "output path \"";

impl Failure {
    /// What the process returns to the shell; `--help` explains the codes.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. }
            | Self::Daemon { .. }
            | Self::Broken { .. }
            | Self::Here { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::Origin { .. } => 4,
            Self::Output { .. } | Self::NotThere { .. } => 5,
            Self::Digest { .. } => 6,
            Self::Timeout { .. } => 7,
            Self::Interrupted { signal } => 128 + signal,
        }
    }

    /// The output cannot be written, in the system's words.
    pub(crate) fn output(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::AlreadyExists => ": choose another name, or replace it with --overwrite",
            io::ErrorKind::PermissionDenied => ": choose a directory that you may write to",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ": make room or choose another disk"
            }
            io::ErrorKind::BrokenPipe => ": whoever reads it went away",
            _ => "",
        };
        Self::Output {
            path: path.to_owned(),
            reason: format!("{error}{advice}"),
        }
    }

    /// What a status of the daemon means. Details in JSON tell of the origin; for what v2 daemons only say in words, the words count.
    pub(crate) fn of_status(status: &Status, timeout: Duration, output: &str) -> Self {
        if let Ok(backend) = serde_json::from_slice::<Backend>(status.details()) {
            return Self::of_backend(backend);
        }
        let message = status.message().to_owned();
        let lower = message.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let not_there = [
            "permission denied (os error",
            "read-only file system",
            "no such file or directory (os error",
            "not a directory (os error",
        ];
        match status.code() {
            Code::DeadlineExceeded => Self::Timeout { limit: timeout },
            Code::Cancelled if lower.contains("timeout expired") => {
                Self::Timeout { limit: timeout }
            }
            Code::Unavailable => Self::ended(&message),
            // The library's words for a connection that broke between two messages.
            Code::Unknown | Code::Internal
                if has(&["h2 protocol error", "error reading a body from connection"]) =>
            {
                Self::ended(&message)
            }
            Code::Internal | Code::PermissionDenied | Code::FailedPrecondition
                if has(&not_there) =>
            {
                Self::NotThere {
                    path: output.into(),
                    reason: message,
                }
            }
            _ if message.starts_with(OUTPUT_PATH) => Self::of_output(&message, output),
            Code::DataLoss => Self::Digest { detail: message },
            Code::Internal | Code::FailedPrecondition if lower.contains("digest") => {
                Self::Digest { detail: message }
            }
            Code::Internal | Code::AlreadyExists if has(&["already exists", "exists already"]) => {
                Self::Output {
                    path: output.into(),
                    reason: format!("{message}: choose another name, or use --overwrite"),
                }
            }
            Code::Internal | Code::FailedPrecondition
                if has(&["hard link", "hard_link", "cross-device"]) =>
            {
                Self::Output {
                    path: output.into(),
                    reason: format!("{message}: leave out --force-hard-link"),
                }
            }
            code => Self::Daemon {
                whose: "the daemon",
                code,
                message,
            },
        }
    }

    fn ended(message: &str) -> Self {
        Self::Broken {
            reason: format!("the connection to it broke ({message}): it ended or was restarted"),
        }
    }

    /// Our daemon names the path that it was given, which may be a staged one; the caller knows the output.
    fn of_output(message: &str, output: &str) -> Self {
        let text = &message[OUTPUT_PATH.len()..];
        let reason = match (text.split_once("\": "), text.split_once("\" ")) {
            (Some((_, reason)), _) => reason.to_owned(),
            (None, Some((_, is))) => format!("it {is}"),
            (None, None) => message.to_owned(),
        };
        let lower = reason.to_ascii_lowercase();
        let advice = match () {
            () if lower.contains("exists already") => " (--overwrite)",
            () if lower.contains("hard link") => " (without --force-hard-link)",
            () if lower.contains("no space left") || lower.contains("quota exceeded") => {
                ": make room or choose another disk"
            }
            () => "",
        };
        Self::Output {
            path: output.into(),
            reason: format!("{reason}{advice}"),
        }
    }

    /// Daemons of v2 say little: the bare status line, or, if nothing was reached, an empty text and a status of success.
    fn of_backend(backend: Backend) -> Self {
        let status_code = backend.status_code.filter(|&code| code >= 300);
        let text = backend.message.trim();
        let message = match status_code.map(|code| code.to_string()) {
            _ if text.contains("the origin") => text.to_owned(),
            Some(code) if text.starts_with(&code) => format!("the origin answered {text}"),
            Some(code) => format!("the origin answered {code}: {text}"),
            None if text.is_empty() => {
                "it cannot be reached, or breaks the connection: check the address".to_owned()
            }
            None => text.to_owned(),
        };
        Self::Origin {
            status_code,
            message,
        }
    }

    /// What the origin answered, if it refused.
    pub(crate) fn status_code(&self) -> Option<i32> {
        match self {
            Self::Origin { status_code, .. } => *status_code,
            _ => None,
        }
    }

    /// Whether the daemon has too much to do at this moment.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Daemon {
                code: Code::ResourceExhausted,
                ..
            }
        )
    }

    /// Whether the download itself works and only the daemon's way to the output is barred.
    pub(crate) fn daemon_cannot_write(&self) -> bool {
        matches!(self, Self::NotThere { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str, details: &[u8]) -> Failure {
        let status = Status::with_details(code, message, details.to_vec().into());
        Failure::of_status(&status, Duration::from_secs(60), "/out")
    }

    #[test]
    fn statuses_become_exit_codes() {
        let missing = br#"{"message":"request failed","header":{"server":"x"},"status_code":404}"#;
        for (failure, code, told) in [
            (
                of(Code::Internal, "x", missing),
                4,
                "the origin answered 404: request failed",
            ),
            (
                of(
                    Code::Internal,
                    "x",
                    br#"{"message":"no route","header":{},"status_code":null}"#,
                ),
                4,
                "no route",
            ),
            (
                of(
                    Code::Internal,
                    "x",
                    br#"{"message":"","header":{},"status_code":200}"#,
                ),
                4,
                "cannot be reached",
            ),
            (
                of(Code::DeadlineExceeded, "", b""),
                7,
                "not done within 1m: allow more with --timeout",
            ),
            (
                of(Code::Internal, "digest mismatch: expected a", b""),
                6,
                "digest",
            ),
            (
                of(Code::Internal, "/out already exists", b""),
                5,
                "--overwrite",
            ),
            (
                of(
                    Code::AlreadyExists,
                    "output path \"/out\" exists already: choose another path",
                    b"",
                ),
                5,
                "--overwrite",
            ),
            (
                of(Code::Internal, "Permission denied (os error 13)", b""),
                5,
                "--transfer-from-dfdaemon",
            ),
            (
                of(Code::PermissionDenied, "blocked by the cluster", b""),
                1,
                "blocked by the cluster",
            ),
            (of(Code::Unavailable, "broken pipe", b""), 1, "restarted"),
            (
                of(
                    Code::Unknown,
                    "h2 protocol error: error reading a body from connection",
                    b"",
                ),
                1,
                "restarted",
            ),
            (
                of(
                    Code::FailedPrecondition,
                    "output path \"/a digest\": user 0 cannot create a file there: No such file or directory (os error 2)",
                    b"",
                ),
                5,
                "--transfer-from-dfdaemon",
            ),
            (
                of(
                    Code::Internal,
                    "output path \"/.dfget-1\": user 0 cannot create a file there: No space left on device (os error 28)",
                    b"",
                ),
                5,
                "cannot write /out: user 0 cannot create a file there: No space left on device (os error 28): make room",
            ),
            (
                of(
                    Code::FailedPrecondition,
                    "output path \"/digest\" is on another filesystem than storage.dir, so that no hard link can be made: choose a path on the same one or allow a copy",
                    b"",
                ),
                5,
                "cannot write /out: it is on another filesystem",
            ),
            (
                of(
                    Code::InvalidArgument,
                    "output path \"/x/\": it names a directory: give an absolute path that ends in a file name",
                    b"",
                ),
                5,
                "it names a directory",
            ),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
            assert!(failure.to_string().contains(told), "{failure}");
        }
    }

    #[test]
    fn limits_are_told_as_they_were_given() {
        let told = |limit| Failure::Timeout { limit }.to_string();
        let almost = Duration::new(2, 999_670_373);
        assert!(told(almost).contains("within 3s: "), "{}", told(almost));
        let short = Duration::new(0, 299_670_373);
        assert!(told(short).contains("within 299ms: "), "{}", told(short));
    }

    #[test]
    fn a_missing_socket_is_answered_with_the_command_to_run() {
        let failure = Failure::Unreachable {
            endpoint: "/run/d.sock".into(),
            reason: "No such file".into(),
        };
        assert_eq!(
            failure.to_string(),
            "no daemon answers at /run/d.sock (No such file): start one with `dfdaemon`, or name its socket with --endpoint"
        );
    }
}
