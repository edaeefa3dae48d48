//! `dfget`: files, through the daemon of this host.
//!
//! The steps for one file, one module each: read the [`Arguments`]; decide where the bytes go (`destination`); ask the daemon
//! (`request`); take its answers (`receive`), and with them the bytes if the daemon cannot put them there itself (`sink`); check them and
//! give the file its name (`file`). Many files are planned first (`plan`, from URLs and the listings of directories) and then downloaded
//! several at a time over one connection (`many`). `progress` tells how it goes, `report` how it went.
//!
//! Whoever starts `dfget` for a small file waits for the process as much as for the file: one thread, nothing initialised that is not used.

mod arguments;
mod destination;
mod file;
mod listing;
mod many;
mod plan;
mod progress;
mod receive;
mod report;
mod request;
mod sink;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};

use crate::failure::Failure;
use crate::program::{self, Format, Streams, Told};
use destination::Destination;
use file::File;
use progress::Progress;

pub use arguments::Arguments;
pub(crate) use arguments::{header, piece_length, timeout};
pub use report::{FileOutcome, FolderSummary, Summary};

/// The whole command line.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses `arguments` (the first is the program's name), downloads, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(error) => {
            let to_stdout = [
                &["-O", "-"][..],
                &["--output", "-"],
                &["-O-"],
                &["--output=-"],
            ]
            .iter()
            .any(|output| program::has(&words, output));
            let is_json = program::has(&words, &["--json"])
                || std::env::var_os("DFGET_JSON")
                    .is_some_and(|value| value == "true" || value == "1");
            let format = Format::json_if(is_json);
            return program::usage(&error, format, streams_of(to_stdout));
        }
    };
    let format = Format::json_if(arguments.json);
    let streams = streams_of(arguments.output == Path::new("-"));
    program::run("dfget", format, streams, run(&arguments))
}

fn streams_of(content_to_stdout: bool) -> Streams {
    match content_to_stdout {
        true => Streams::ContentOnStdout,
        false => Streams::Beside,
    }
}

/// Downloads as `arguments` say. Dropping the future cancels the download and removes what it had begun to write.
///
/// # Errors
///
/// [`Failure`], with an exit code for each kind. That some files of many failed is no failure, but told in the outcome.
pub async fn run(arguments: &Arguments) -> Result<Told, Failure> {
    arguments.check_range()?;
    let deadline = Instant::now() + arguments.timeout;
    if arguments.wants_folder() {
        return many::run(arguments, deadline).await;
    }
    let url = &arguments.urls[0];
    let output = &arguments.output;
    let destination = Destination::plan(arguments, output)?;
    let channel = arguments.daemon.connect().await?;
    let file = File {
        url,
        output,
        length: None,
        deadline,
    };
    let progress = Progress::alone(arguments, url.path());
    let summary = file
        .download(arguments, &channel, &destination, &progress)
        .await?;
    Ok(Told::new(&summary))
}
