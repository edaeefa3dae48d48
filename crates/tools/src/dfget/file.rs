//! One file: asked for, received, checked, and given its name.

use std::path::Path;
use std::time::Instant;

use protocol::{Digest, DigestHasher};
use tonic::transport::Channel;
use url::Url;

use super::arguments::Arguments;
use super::destination::{Destination, Leftover};
use super::progress::Progress;
use super::receive::{self, Received};
use super::report::Summary;
use super::request;
use super::sink::Sink;
use crate::failure::Failure;

/// What is downloaded to where, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) url: &'a Url,
    pub(super) output: &'a Path,
    /// As a listing said.
    pub(super) length: Option<u64>,
    pub(super) deadline: Instant,
}

impl File<'_> {
    /// Downloads it. Dropping the future cancels the download and removes what it had begun to write.
    pub(super) async fn download(
        self,
        arguments: &Arguments,
        channel: &Channel,
        destination: &Destination,
        progress: &Progress<'_>,
    ) -> Result<Summary, Failure> {
        let begin = Instant::now();
        let attempts = async {
            let outcome = self.attempt(arguments, channel, destination, progress);
            match (outcome.await, destination.without_daemon()) {
                (Err(failure), Some(own))
                    if failure.daemon_cannot_write() && !arguments.force_hard_link =>
                {
                    eprintln!("dfget: {failure}; taking the bytes over the socket instead");
                    self.attempt(arguments, channel, &own, progress).await
                }
                (outcome, _) => outcome,
            }
        };
        let received = match tokio::time::timeout_at(self.deadline.into(), attempts).await {
            Ok(received) => received?,
            Err(_) => {
                return Err(Failure::Timeout {
                    limit: arguments.timeout,
                });
            }
        };
        Ok(Summary::new(received, destination, begin.elapsed()))
    }

    async fn attempt(
        self,
        arguments: &Arguments,
        channel: &Channel,
        destination: &Destination,
        progress: &Progress<'_>,
    ) -> Result<Received, Failure> {
        let timeout = self.deadline.saturating_duration_since(Instant::now());
        let request = request::download(arguments, self.url, destination, timeout)?;
        let mut request = tonic::Request::new(request);
        if let Some(length) = self.length {
            let length = length.into();
            request.metadata_mut().insert(api::EXPECTED_LENGTH, length);
        }
        let sink = Sink::new(
            destination,
            arguments.digest.as_ref().map(Digest::algorithm),
        )?;
        let mut leftover = destination.leftover();
        let received = receive::receive(
            channel,
            request,
            timeout,
            sink,
            self.output,
            progress,
            &arguments.logs,
        );
        let mut received = received.await?;
        progress.end();
        match destination {
            Destination::Stream(_) => {}
            Destination::Daemon { path } => check_length(path, received.length)?,
            Destination::Staged { staged, .. } | Destination::Own { staged, .. } => {
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

/// Checks the digest where the daemon did not: a v2 daemon verifies neither what it hands over the socket nor what it copied over an existing
/// file, and no daemon a range.
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
        Destination::Staged { staged, .. } | Destination::Own { staged, .. } => {
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
