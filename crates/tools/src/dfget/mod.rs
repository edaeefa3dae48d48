//! `dfget`: one file, through the daemon of this host.
//!
//! The steps, one module each: read the [`Arguments`]; decide where the bytes go (`destination`); ask the daemon (`connection`,
//! `request`); take its answers (`receive`), and with them the bytes if the daemon cannot put them there itself (`sink`); tell how it went (`report`, [`Failure`]).
//!
//! Whoever starts `dfget` for a small file waits for the process as much as for the file: one thread, nothing initialised that is not used.

mod arguments;
mod destination;
mod receive;
mod report;
mod request;
mod sink;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use protocol::{Digest, DigestHasher};
use tonic::transport::Channel;

pub use arguments::Arguments;
pub use report::{BytesFrom, Summary};

use crate::failure::Failure;
use crate::program::{self, Format, Streams, Told};
use destination::{Destination, Leftover};
use receive::Received;
use report::Progress;
use sink::Sink;

/// Parses `arguments` (the first is the program's name), downloads, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return program::usage(&error),
    };
    let format = if arguments.json {
        Format::Json
    } else {
        Format::Text
    };
    let streams = match arguments.output == Path::new("-") {
        true => Streams::ContentOnStdout,
        false => Streams::Beside,
    };
    program::run("dfget", format, streams, async {
        run(&arguments).await.map(|summary| Told::new(&summary))
    })
}

/// Downloads as `arguments` say. Dropping the future cancels the download and removes what it had begun to write.
///
/// # Errors
///
/// [`Failure`], with an exit code for each kind.
pub async fn run(arguments: &Arguments) -> Result<Summary, Failure> {
    let begin = Instant::now();
    let destination = Destination::plan(arguments)?;
    let download = async {
        let channel = arguments.daemon.connect().await?;
        let outcome = download(arguments, &channel, &destination).await;
        match (outcome, destination.without_daemon()) {
            (Err(failure), Some(own))
                if failure.daemon_cannot_write() && !arguments.force_hard_link =>
            {
                eprintln!("dfget: {failure}; taking the bytes over the socket instead");
                download(arguments, &channel, &own).await
            }
            (outcome, _) => outcome,
        }
    };
    let received = match tokio::time::timeout(arguments.timeout, download).await {
        Ok(received) => received?,
        Err(_) => {
            return Err(Failure::Timeout {
                limit: arguments.timeout,
            });
        }
    };
    Ok(Summary::new(received, &destination, begin.elapsed()))
}

async fn download(
    arguments: &Arguments,
    channel: &Channel,
    destination: &Destination,
) -> Result<Received, Failure> {
    let request = request::download(arguments, destination)?;
    let mut leftover = destination.leftover();
    let sink = Sink::new(
        destination,
        arguments.digest.as_ref().map(Digest::algorithm),
    )?;
    let progress = Progress::new(arguments);
    let mut received = receive::receive(channel, request, sink, &progress, arguments).await?;
    progress.end();
    match destination {
        Destination::Stream(_) => {}
        Destination::Daemon { path } => check_length(path, received.length)?,
        Destination::Replace { staged, .. } | Destination::Own { staged, .. } => {
            check_length(staged, received.length)?;
        }
    }
    if let Some(expected) = &arguments.digest {
        verify(&mut received, destination, expected)?;
    }
    destination.publish(arguments.overwrite)?;
    leftover.iter_mut().for_each(Leftover::keep);
    Ok(received)
}

/// The daemon said that it is done; the file must be where we can see it.
fn check_length(path: &Path, expected: u64) -> Result<(), Failure> {
    match std::fs::metadata(path) {
        Ok(file) if file.len() == expected => Ok(()),
        Ok(file) => Err(Failure::NotThere {
            path: path.to_owned(),
            reason: format!("it has {} bytes there instead of {expected}", file.len()),
        }),
        Err(error) => Err(Failure::NotThere {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}

/// Checks the digest where the daemon did not: a v2 daemon verifies neither what it hands over the socket nor what it copied over an existing file.
fn verify(
    received: &mut Received,
    destination: &Destination,
    expected: &Digest,
) -> Result<(), Failure> {
    let got = match destination {
        Destination::Daemon { .. } => expected.clone(),
        Destination::Stream(_) => match received.digest.take() {
            Some(digest) => digest,
            None => return Ok(()),
        },
        Destination::Replace { staged, .. } | Destination::Own { staged, .. } => {
            digest_of(staged, expected).map_err(|error| Failure::output(staged, &error))?
        }
    };
    if got != *expected {
        return Err(Failure::Digest {
            detail: format!("got {got}, expected {expected}"),
        });
    }
    received.digest = Some(got);
    Ok(())
}

fn digest_of(path: &Path, like: &Digest) -> std::io::Result<Digest> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut hasher = DigestHasher::new(like.algorithm());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
