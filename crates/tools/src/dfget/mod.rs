//! `dfget`: one file, through the daemon of this host.
//!
//! The steps, one module each: read the [`Arguments`]; decide where the bytes go (`destination`); ask the daemon (`connection`,
//! `request`); take its answers (`receive`), and with them the bytes if the daemon cannot put them there itself (`sink`); tell how it went (`report`, [`Failure`]).
//!
//! Whoever starts `dfget` for a small file waits for the process as much as for the file: one thread, nothing initialised that is not used.

mod arguments;
mod connection;
mod destination;
mod failure;
mod receive;
mod report;
mod request;
mod sink;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use protocol::{Digest, DigestHasher};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

pub use arguments::{Arguments, DEFAULT_ENDPOINT};
pub use failure::Failure;
pub use report::{BytesFrom, Summary};

use destination::{Destination, Leftover};
use receive::Received;
use report::Progress;
use sink::Sink;

/// Parses `arguments` (the first is the program's name), downloads, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => run_to_end(&arguments),
        Err(usage) => {
            // The terminal may be gone; the exit code tells the same.
            let _ = usage.print();
            ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2))
        }
    }
}

/// Downloads as `arguments` say, reports the outcome on the terminal, and tells the exit code.
pub fn run_to_end(arguments: &Arguments) -> ExitCode {
    let outcome = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let outcome = runtime.block_on(until_signalled(run(arguments)));
            // A write to a pipe that nobody reads may never come back; the process ends all the same.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Here {
            reason: format!("no event loop: {error}"),
        }),
    };
    report::print(arguments, &outcome);
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit_code()),
    }
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
        let channel = connection::connect(&arguments.endpoint).await?;
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

/// Runs `work` until it ends or the user wants it to end.
async fn until_signalled(
    work: impl Future<Output = Result<Summary, Failure>>,
) -> Result<Summary, Failure> {
    let handlers = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = handlers else {
        return work.await;
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => Err(Failure::Interrupted { signal: 2 }),
        _ = terminate.recv() => Err(Failure::Interrupted { signal: 15 }),
        outcome = work => outcome,
    }
}

/// The longest wait for the daemon's socket to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
