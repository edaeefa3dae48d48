//! Small contents that come straight from the origin, whole, by one request.
//!
//! A session with all that belongs to it (links, books of pieces, a reader of the origin) costs more than such a content itself. Who
//! knows how long a content is expected to be, because a listing said so, saves the question to the origin as well.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocol::TrafficType;
use source::{Facts, Get, SourceError};
use storage::Task;
use tracing::debug;

use super::{DownloadSpec, Inner, origin, unmeasured};

/// Longest content that is read this way.
const LENGTH_MAX: u64 = 256 << 10;

/// What one request brought.
pub(super) struct AtOnce {
    pub(super) facts: Facts,
    /// The whole content, unless it is longer than was expected.
    pub(super) content: Option<Read>,
}

/// A content in memory.
pub(super) struct Read {
    bytes: Bytes,
    took: Duration,
}

/// Whether this caller gets a content of `length` bytes straight from the origin.
pub(super) fn is_for(spec: &DownloadSpec, length: u64) -> bool {
    (1..=LENGTH_MAX).contains(&length)
        && !spec.scheduling_always
        && !spec.disable_back_to_source
        && !spec.is_prefetch
        && spec.named_by.is_none()
        && spec.range.is_none()
        && spec.range_header.is_none()
}

/// Reads the first `length` bytes, and learns whether they are all. `known`, if the origin was asked before, must still be true.
///
/// # Errors
/// The origin's refusal, or why it was not reached.
pub(super) async fn read(
    engine: &Arc<Inner>,
    spec: &DownloadSpec,
    length: u64,
    known: Option<&Facts>,
) -> Result<AtOnce, SourceError> {
    let parts = &engine.parts;
    let request = origin::request(spec)?.with_deadline(parts.limits.piece_timeout);
    let scheme = request.url.scheme().to_owned();
    let mut get = Get::prefix(length);
    if let Some(known) = known {
        get = get.of_version(known.version.clone());
    }
    let asked = Instant::now();
    let answer = parts.sources.get(&request, get).await;
    parts
        .metrics
        .origin_asked(&scheme, "GET", answer.is_err(), asked.elapsed());
    let mut answer = answer?;
    let is_all = answer.facts.content_length == Some(length) && answer.start == 0;
    if !is_all {
        return Ok(AtOnce {
            facts: answer.facts,
            content: None,
        });
    }
    let mut bytes = BytesMut::new();
    while let Some(chunk) = answer.body.next().await {
        bytes.extend_from_slice(&chunk?);
        // More than it said: it is no longer believed.
        if bytes.len() as u64 > length {
            break;
        }
    }
    let content = Read {
        bytes: bytes.freeze(),
        took: asked.elapsed(),
    };
    Ok(AtOnce {
        content: (content.bytes.len() as u64 == length).then_some(content),
        facts: answer.facts,
    })
}

impl Read {
    /// Puts it into a task that was just created. If that fails, the usual way brings the pieces. Blocks.
    pub(super) fn store(&self, engine: &Inner, task: &Task) {
        let stored =
            unmeasured::fill(task, &mut Cursor::new(&self.bytes), self.took).and_then(|()| {
                task.note_origin_use("the content is small")
                    .map_err(|error| error.to_string())
            });
        match stored {
            Ok(()) => engine.parts.metrics.piece_downloaded(
                TrafficType::BackToSource,
                self.bytes.len() as u64,
                self.took,
            ),
            Err(error) => debug!(task_id = %task.id(), error, "content not stored at once"),
        }
    }
}
