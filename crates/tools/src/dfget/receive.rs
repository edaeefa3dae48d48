//! Taking the daemon's answers, up to the last piece.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use dragonfly_api::common::v2::{Piece, TrafficType};
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::download_task_response::Response;
use dragonfly_api::dfdaemon::v2::{
    DownloadTaskRequest, DownloadTaskResponse, DownloadTaskStartedResponse,
};
use protocol::Digest;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::progress::Progress;
use super::sink::Sink;
use crate::bytes_from::BytesFrom;
use crate::failure::Failure;
use crate::logging::{LogArguments, LogLevel};

/// The longest piece of Dragonfly v2 (64 MiB) and the fields around its content.
const MESSAGE_BYTES_MAX: usize = (64 << 20) + (1 << 20);

/// What came.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) task_id: String,
    pub(super) peer_id: String,
    /// Bytes of the output: of the range if one was asked for, else of the whole content.
    pub(super) length: u64,
    pub(super) bytes_from: BytesFrom,
    pub(super) digest: Option<Digest>,
}

/// Sends the request and takes every answer, within `timeout`.
pub(super) async fn receive(
    channel: &Channel,
    mut request: Request<DownloadTaskRequest>,
    timeout: Duration,
    sink: Sink,
    output: &Path,
    progress: &Progress<'_>,
    logs: &LogArguments,
) -> Result<Received, Failure> {
    let shown = output.display().to_string();
    let failed = |status: Status| Failure::of_status(&status, timeout, &shown);
    let mut client =
        DfdaemonDownloadClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    request.set_timeout(timeout);
    let mut answers = client
        .download_task(request)
        .await
        .map_err(failed)?
        .into_inner();
    let mut receiving = Receiving {
        received: Received::default(),
        missing: None,
        content_length: 0,
        window: 0..0,
        sink,
        progress,
        output,
        logs,
    };
    while let Some(answer) = answers.message().await.map_err(failed)? {
        receiving.take(answer).await?;
    }
    receiving.finish()
}

struct Receiving<'a> {
    received: Received,
    /// Pieces that were announced and did not come yet; `None` before the announcement.
    missing: Option<HashSet<u32>>,
    content_length: u64,
    /// The bytes of the content that are wanted. Pieces come whole.
    window: Range<u64>,
    sink: Sink,
    progress: &'a Progress<'a>,
    output: &'a Path,
    logs: &'a LogArguments,
}

impl Receiving<'_> {
    async fn take(&mut self, answer: DownloadTaskResponse) -> Result<(), Failure> {
        match answer.response {
            Some(Response::DownloadTaskStartedResponse(started)) => {
                self.received.task_id = answer.task_id;
                self.received.peer_id = answer.peer_id;
                self.start(&started)
            }
            Some(Response::DownloadPieceFinishedResponse(finished)) => match finished.piece {
                Some(piece) => self.take_piece(piece).await,
                None => Err(broken("it finished a piece without naming it")),
            },
            // A kind of answer that a later version may send.
            None => Ok(()),
        }
    }

    fn start(&mut self, started: &DownloadTaskStartedResponse) -> Result<(), Failure> {
        if self.missing.is_some() {
            return Err(broken("it started twice"));
        }
        self.content_length = started.content_length;
        self.window = match &started.range {
            None => 0..self.content_length,
            Some(range) => match range.start.checked_add(range.length) {
                Some(end) if end <= self.content_length => range.start..end,
                _ => return Err(broken("its range lies outside the file")),
            },
        };
        let length = self.window.end - self.window.start;
        self.received.length = length;
        self.missing = Some(started.pieces.iter().map(|piece| piece.number).collect());
        self.progress.begin(length);
        self.logs.say(LogLevel::Info, || {
            let pieces = started.pieces.len();
            format!(
                "task {} of {length} bytes in {pieces} pieces has started",
                self.received.task_id
            )
        });
        self.sink
            .begin(length)
            .map_err(|error| self.cannot_write(&error))
    }

    async fn take_piece(&mut self, piece: Piece) -> Result<(), Failure> {
        let Some(missing) = &mut self.missing else {
            return Err(broken("it finished a piece before it started"));
        };
        // A piece may be reported twice when it was fetched twice.
        if !missing.remove(&piece.number) {
            return Ok(());
        }
        let fits = piece
            .offset
            .checked_add(piece.length)
            .is_some_and(|end| end <= self.content_length);
        if !fits {
            return Err(broken(&format!(
                "piece {} lies outside the file",
                piece.number
            )));
        }
        self.logs.say(LogLevel::Debug, || {
            let parent = piece.parent_id.as_deref().unwrap_or("-");
            let traffic = piece
                .traffic_type
                .and_then(|kind| TrafficType::try_from(kind).ok());
            format!(
                "piece {} of {} bytes from {parent} ({traffic:?})",
                piece.number, piece.length
            )
        });
        self.received.bytes_from.add(&piece);
        let wanted = self.wanted(&piece);
        if self.sink.wants_content() {
            self.write(piece).await?;
        }
        self.progress.add(wanted.end - wanted.start);
        Ok(())
    }

    /// The part of a piece that is wanted, counted in the content; empty where none is.
    fn wanted(&self, piece: &Piece) -> Range<u64> {
        let start = piece.offset.max(self.window.start);
        let end = (piece.offset + piece.length).min(self.window.end);
        start..end.max(start)
    }

    /// Writes on a thread of its own: a slow disk or a full pipe must not keep us from hearing Ctrl-C.
    async fn write(&mut self, piece: Piece) -> Result<(), Failure> {
        let wanted = self.wanted(&piece);
        let mut content = piece.content.unwrap_or_default();
        if content.len() as u64 != piece.length {
            return Err(broken(&format!(
                "piece {} of {} bytes came with {}",
                piece.number,
                piece.length,
                content.len()
            )));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        // Neither fails: both lie within the piece, which is in memory.
        let within = |at: u64| usize::try_from(at - piece.offset).unwrap_or(usize::MAX);
        content.truncate(within(wanted.end));
        content.drain(..within(wanted.start));
        let offset = wanted.start - self.window.start;
        let mut sink = std::mem::replace(&mut self.sink, Sink::None);
        let written = tokio::task::spawn_blocking(move || {
            let outcome = sink.write(offset, content);
            (sink, outcome)
        });
        let (sink, outcome) = written.await.map_err(|error| Failure::Here {
            reason: format!("the writing thread ended: {error}"),
        })?;
        self.sink = sink;
        outcome.map_err(|error| self.cannot_write(&error))
    }

    fn finish(mut self) -> Result<Received, Failure> {
        match &self.missing {
            None => return Err(broken("it ended before it started")),
            Some(missing) if !missing.is_empty() => {
                return Err(broken(&format!(
                    "it ended with {} pieces missing",
                    missing.len()
                )));
            }
            Some(_) => {}
        }
        self.received.digest = self.sink.finish();
        Ok(self.received)
    }

    fn cannot_write(&self, error: &std::io::Error) -> Failure {
        Failure::output(self.output, error)
    }
}

fn broken(reason: &str) -> Failure {
    Failure::Broken {
        reason: reason.to_owned(),
    }
}
