//! What every tool does around its work: the event loop, signals, telling the outcome as text or JSON, the exit code.
//!
//! A command is an async function that returns `Result<Told, Failure>`. A command with something to tell has a struct that
//! is its JSON and that knows its text: a [`Report`].

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// How an outcome is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on one line; also for failures.
    Json,
}

impl Format {
    pub(crate) fn json_if(wanted: bool) -> Self {
        match wanted {
            true => Self::Json,
            false => Self::Text,
        }
    }
}

/// Which streams carry what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// The outcome is what was asked for: standard output.
    Result,
    /// The outcome is about something else that was asked for, such as a file: text on standard error, JSON on standard output.
    Beside,
    /// Standard output carries content: everything on standard error.
    ContentOnStdout,
}

/// The outcome of a command: its fields are the JSON, `text` is the same for people.
pub trait Report: Serialize {
    /// Without a line break at its end; empty to print nothing.
    fn text(&self) -> String;
}

/// An outcome that is ready to be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    text: String,
    json: String,
    exit_code: u8,
}

impl Told {
    /// A success.
    pub fn new(report: &impl Report) -> Self {
        Self::with_exit_code(report, 0)
    }

    /// A report that is not good news, such as some files of many that failed: `ok` in its JSON is false unless `exit_code` is 0.
    pub fn with_exit_code(report: &impl Report, exit_code: u8) -> Self {
        #[derive(Serialize)]
        struct Envelope<'a, R> {
            ok: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            exit_code: Option<u8>,
            #[serde(flatten)]
            report: &'a R,
        }
        let ok = exit_code == 0;
        let envelope = Envelope {
            ok,
            exit_code: (!ok).then_some(exit_code),
            report,
        };
        Self {
            text: report.text(),
            json: to_json(&envelope),
            exit_code,
        }
    }

    /// The JSON object.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The text for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The stable fields of a failure.
#[derive(Serialize)]
struct FailureJson {
    ok: bool,
    exit_code: u8,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<i32>,
}

impl From<&Failure> for FailureJson {
    fn from(failure: &Failure) -> Self {
        Self {
            ok: false,
            exit_code: failure.exit_code(),
            error: failure.to_string(),
            status_code: failure.status_code(),
        }
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        serde_json::json!({ "ok": false, "exit_code": 1, "error": error.to_string() }).to_string()
    })
}

/// Runs the work of the tool `name` to its end or to a signal, prints the outcome, and tells the exit code.
///
/// One thread: whoever starts a tool for a small thing waits for the process as much as for the thing. Work that is dropped
/// by a signal removes what it had begun to write.
pub fn run(
    name: &str,
    format: Format,
    streams: Streams,
    work: impl Future<Output = Result<Told, Failure>>,
) -> ExitCode {
    let outcome = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let outcome = runtime.block_on(until_signalled(work));
            // A write to a pipe that nobody reads may never come back; the process ends all the same.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Here {
            reason: format!("no event loop: {error}"),
        }),
    };
    print(name, format, streams, &outcome);
    ExitCode::from(match &outcome {
        Ok(told) => told.exit_code,
        Err(failure) => failure.exit_code(),
    })
}

/// Prints an outcome. A closed terminal is no reason to fail.
fn print(name: &str, format: Format, streams: Streams, outcome: &Result<Told, Failure>) {
    let (text, json, is_failure) = match outcome {
        Ok(told) => (told.text.clone(), told.json.clone(), false),
        Err(failure) => (
            format!("{name}: {}", harmless(&failure.to_string())),
            to_json(&FailureJson::from(failure)),
            true,
        ),
    };
    let beside = is_failure || streams != Streams::Result;
    if !text.is_empty() && (beside || format == Format::Text) {
        let _ = match beside {
            true => writeln!(std::io::stderr(), "{text}"),
            false => writeln!(std::io::stdout(), "{text}"),
        };
    }
    if format == Format::Json {
        print_json(streams, &json);
    }
}

fn print_json(streams: Streams, json: &str) {
    let _ = match streams {
        Streams::ContentOnStdout => writeln!(std::io::stderr(), "{json}"),
        _ => writeln!(std::io::stdout(), "{json}"),
    };
}

/// A failure as a terminal may be told it: what an origin or a daemon said may hold anything.
fn harmless(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "")
}

/// Runs `work` until it ends, or the user or the end of the terminal wants it to end.
async fn until_signalled<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let handlers = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = handlers else {
        return work.await;
    };
    let hangup = async {
        // Started by `nohup`, a tool outlives its terminal; a handler would undo that.
        match is_ignored(SignalKind::hangup()) {
            false => signal(SignalKind::hangup()).ok()?.recv().await,
            true => None,
        }
    };
    let hangup = async {
        if hangup.await.is_none() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => Err(Failure::Interrupted { signal: 2 }),
        _ = terminate.recv() => Err(Failure::Interrupted { signal: 15 }),
        () = hangup => Err(Failure::Interrupted { signal: 1 }),
        outcome = work => outcome,
    }
}

/// Whether whoever started this process had it ignore the signal.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// Prints what the parser says (a mistake, the help, the version), a mistake also as JSON if the outcome was wanted so, and tells the exit code.
pub(crate) fn usage(error: &clap::Error, format: Format, streams: Streams) -> ExitCode {
    // The terminal may be gone; the exit code tells the same.
    let _ = error.print();
    if error.use_stderr() && format == Format::Json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let mistake = text.split("\n\nUsage:").next().unwrap_or_default();
        let words: Vec<&str> = mistake.split_whitespace().collect();
        let failure = Failure::Usage {
            reason: words.join(" "),
        };
        print_json(streams, &to_json(&FailureJson::from(&failure)));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Whether these words stand one after the other in a command line that could not be parsed.
pub(crate) fn has(line: &[OsString], words: &[&str]) -> bool {
    let end = line.iter().position(|word| word == "--");
    line[..end.unwrap_or(line.len())]
        .windows(words.len())
        .any(|found| found.iter().zip(words).all(|(found, word)| found == word))
}

/// Whether a command line that could not be parsed asks for JSON by `--output`.
pub(crate) fn has_json_output(line: &[OsString]) -> bool {
    has(line, &["--output", "json"]) || has(line, &["--output=json"])
}

/// Gives the arguments of a command that is shared between tools the environment variables of this one: `DFGET_X` becomes
/// `PREFIX_X`. The daemon's socket is the same for every command of a tool, so that its variable has no path of subcommands in it.
pub(crate) fn with_environment(command: clap::Command, tool: &str, prefix: &str) -> clap::Command {
    command.mut_args(|argument| {
        let named = argument
            .get_env()
            .and_then(|name| name.to_str())
            .map(str::to_owned);
        match named
            .as_deref()
            .and_then(|name| name.strip_prefix("DFGET_"))
        {
            Some("ENDPOINT") => argument.env(format!("{tool}_ENDPOINT")),
            Some(rest) => argument.env(format!("{prefix}_{rest}")),
            None => argument,
        }
    })
}

/// Compares a JSON with its file in `tests/golden`: scripts rely on its fields. `UPDATE_GOLDEN=1` writes the files anew.
#[cfg(test)]
pub(crate) fn assert_golden(name: &str, json: &str) {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let got: serde_json::Value = serde_json::from_str(json).unwrap();
    let got = format!("{got:#}\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return std::fs::write(path, got).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), got, "{name}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Two {
        a: u8,
    }

    impl Report for Two {
        fn text(&self) -> String {
            format!("a is {}", self.a)
        }
    }

    #[test]
    fn json_begins_with_whether_it_went_well() {
        assert_eq!(Told::new(&Two { a: 1 }).json(), r#"{"ok":true,"a":1}"#);
        assert_eq!(
            Told::with_exit_code(&Two { a: 1 }, 1).json(),
            r#"{"ok":false,"exit_code":1,"a":1}"#
        );
    }

    #[test]
    fn a_failure_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[2J\r\nb\tc"), "a[2J\nbc");
    }

    #[test]
    fn failures_have_the_fields_that_scripts_read() {
        let failure = Failure::Origin {
            status_code: Some(404),
            message: "gone".into(),
        };
        assert_golden("failure", &to_json(&FailureJson::from(&failure)));
    }
}
