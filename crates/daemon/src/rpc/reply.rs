//! One DownloadTask call: the stream of messages that its caller gets.
//!
//! The messages are made as the caller takes them, so that a slow caller holds nothing but its place, and a caller that
//! goes away ends its interest in the download. The order is that of v2: what is known at the start, then each piece as it
//! is there, in any order; then the output file is put in its place, and the stream ends. Its end is the success.

use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::time::Instant;

use dragonfly_api::dfdaemon::v2::download_task_response::Response as Kind;
use dragonfly_api::dfdaemon::v2::{DownloadPieceFinishedResponse, DownloadTaskResponse};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tracing::{Instrument, Span, debug, info, info_span, warn};

use super::tasks::{Tasks, blocking};
use super::{convert, errors};
use crate::engine::{Download, DownloadSpec, PieceDone};
use crate::metrics::{InProgress, TaskLabels};
use crate::output::{Caller, Output, OutputRequest};

/// What DownloadTask answers with.
pub type ReplyStream = Pin<Box<dyn Stream<Item = Result<DownloadTaskResponse, Status>> + Send>>;

/// What a caller wants besides the download itself.
#[derive(Debug, Default)]
pub struct Extras {
    /// A file, and with whose rights it is made. Of callers of the unix socket only.
    pub output: Option<(OutputRequest, Caller)>,
    /// The bytes of each piece in its message.
    pub with_content: bool,
    /// The rest of the content too, ahead of need, when a range is asked for.
    pub prefetch: bool,
}

/// A download on its way to its caller.
pub struct Reply {
    tasks: Tasks,
    download: Download,
    spec: DownloadSpec,
    output: Option<Output>,
    with_content: bool,
    labels: TaskLabels,
    began: Instant,
    span: Span,
    _in_progress: InProgress,
    _permit: OwnedSemaphorePermit,
}

/// Where the stream is.
enum Step {
    Start(Box<Reply>),
    Pieces(Box<Reply>),
    End,
}

/// Whether a file of at most so many bytes can be put where its caller wants it is found out when it is done: to know it before would take
/// longer than the download.
const CHECKED_LATE_MAX: u64 = 1 << 20;

impl Reply {
    /// Begins the download, and checks the output path before the origin is asked for a byte.
    ///
    /// # Errors
    /// Everything that is known before the first message.
    pub async fn begin(
        tasks: &Tasks,
        spec: DownloadSpec,
        extras: Extras,
    ) -> Result<ReplyStream, Status> {
        let span = info_span!("download", task_id = %spec.task_id);
        Self::begin_within(tasks, spec, extras, span.clone())
            .instrument(span)
            .await
    }

    async fn begin_within(
        tasks: &Tasks,
        spec: DownloadSpec,
        extras: Extras,
        span: Span,
    ) -> Result<ReplyStream, Status> {
        let parts = &tasks.parts;
        let permit = tasks.replies.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("too many downloads are being answered: try again later")
        })?;
        let labels = parts.metrics.task_labels(
            spec.kind,
            spec.tag.as_deref(),
            spec.application.as_deref(),
            spec.priority,
        );
        let in_progress = parts.metrics.download_begins(&labels);
        let fail = |status: Status| {
            parts.metrics.download_failed(&labels);
            warn!(url = %spec.url_redacted(), error = status.message(), "download refused");
            status
        };
        let output = match extras.output {
            Some((request, caller)) => {
                Some(open_output(tasks, request, caller).await.map_err(fail)?)
            }
            None => None,
        };
        let download = parts
            .engine
            .download(spec.clone())
            .await
            .map_err(|error| fail(errors::download(&error)))?;
        let early = download.started.content_length > CHECKED_LATE_MAX;
        let output = match output {
            Some(output) if early => Some(check_output(output, &download).await.map_err(fail)?),
            output => output,
        };
        if extras.prefetch && download.started.range.is_some() {
            parts
                .engine
                .prefetch(&spec, &download.started.task, &labels);
        }
        let reply = Self {
            tasks: tasks.clone(),
            download,
            output,
            with_content: extras.with_content,
            labels,
            began: Instant::now(),
            span,
            spec,
            _in_progress: in_progress,
            _permit: permit,
        };
        Ok(Box::pin(unfold(Step::Start(Box::new(reply)), Step::next)))
    }

    fn message(&self, kind: Kind) -> DownloadTaskResponse {
        let identity = &self.tasks.parts.identity;
        DownloadTaskResponse {
            host_id: identity.host_id.to_string(),
            task_id: self.spec.task_id.to_string(),
            peer_id: self.download.started.peer_id.to_string(),
            response: Some(kind),
        }
    }

    /// The next piece; `None` when all are there and the output is in its place.
    async fn piece(&mut self) -> Option<Result<DownloadTaskResponse, Status>> {
        let piece = match self.download.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Some(Err(errors::download(&error))),
            None => return self.finish().await.err().map(Err),
        };
        debug!(
            piece = piece.number.0,
            bytes = piece.length,
            "piece reported"
        );
        let content = if self.with_content {
            match self.content(&piece).await {
                Ok(content) => Some(content),
                Err(status) => return Some(Err(status)),
            }
        } else {
            None
        };
        let piece = Some(convert::piece_to_wire(&piece, content));
        Some(Ok(self.message(Kind::DownloadPieceFinishedResponse(
            DownloadPieceFinishedResponse { piece },
        ))))
    }

    /// The bytes of a piece, for its message.
    async fn content(&self, piece: &PieceDone) -> Result<Vec<u8>, Status> {
        let permit = self
            .tasks
            .contents
            .clone()
            .acquire_owned()
            .await
            .map_err(errors::internal)?;
        let file = self.download.started.task.content_file();
        let (offset, length) = (piece.offset, piece.length);
        let read = blocking(move || {
            let _permit = permit;
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        });
        read.await?.map_err(errors::internal)
    }

    async fn finish(&mut self) -> Result<(), Status> {
        let started = &self.download.started;
        let bytes = started
            .range
            .map_or(started.content_length, |range| range.length);
        if let Some(output) = self.output.take() {
            let task = started.task.clone();
            let range = started.range;
            let is_checked = started.content_length > CHECKED_LATE_MAX;
            let placed = blocking(move || {
                if !is_checked {
                    output.check(&task)?;
                }
                output.place(&task, range)
            });
            let placed = placed.await?;
            let placed = placed.map_err(|error| errors::output(&error))?;
            debug!(method = ?placed.method, bytes = placed.bytes, "output file in its place");
        }
        let took = self.began.elapsed();
        self.tasks
            .parts
            .metrics
            .download_took(self.spec.kind, bytes, took);
        info!(
            url = %self.spec.url_redacted(),
            bytes,
            elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "download complete"
        );
        Ok(())
    }

    fn failed(&self, status: &Status) {
        self.tasks.parts.metrics.download_failed(&self.labels);
        warn!(url = %self.spec.url_redacted(), error = status.message(), "download failed");
    }
}

impl Step {
    async fn next(self) -> Option<(Result<DownloadTaskResponse, Status>, Self)> {
        match self {
            Self::Start(reply) => {
                let started = convert::started_to_wire(&reply.download.started);
                let message = reply.message(Kind::DownloadTaskStartedResponse(started));
                Some((Ok(message), Self::Pieces(reply)))
            }
            Self::Pieces(mut reply) => {
                let span = reply.span.clone();
                let item = reply.piece().instrument(span).await?;
                match item {
                    Ok(message) => Some((Ok(message), Self::Pieces(reply))),
                    Err(status) => {
                        reply.failed(&status);
                        Some((Err(status), Self::End))
                    }
                }
            }
            Self::End => None,
        }
    }
}

async fn open_output(
    tasks: &Tasks,
    request: OutputRequest,
    caller: Caller,
) -> Result<Output, Status> {
    let roots = tasks.parts.output_roots.clone();
    let opened = blocking(move || Output::open(request, caller, &roots)).await?;
    opened.map_err(|error| errors::output(&error))
}

async fn check_output(output: Output, download: &Download) -> Result<Output, Status> {
    let task = download.started.task.clone();
    let checked = blocking(move || output.check(&task).map(|()| output)).await?;
    checked.map_err(|error| errors::output(&error))
}
