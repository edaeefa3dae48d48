//! Content whose origin does not say how long it is (a chunked answer without Content-Length).
//!
//! Pieces cannot be cut before the length is known. If another host has the task already, the scheduler knows the length;
//! otherwise this host reads the whole content once into a temporary file, and only then it becomes a task, complete from the
//! beginning. Hosts that start at the same moment therefore each read the origin; later ones use the swarm.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dragonfly_api::scheduler::v2::StatTaskRequest;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use protocol::{TaskId, TrafficType};
use source::{Get, Request};
use storage::{Claim, PieceOrigin, Task};

use super::{DownloadError, Inner};

/// How long the scheduler may take to say whether it knows the task.
const STAT_MAX: Duration = Duration::from_secs(2);
/// Read from the temporary file and handed to the store at once.
const BUFFER_LEN: usize = 1 << 20;

/// The length as the swarm knows it, if it does.
pub(super) async fn length_in_swarm(engine: &Inner, task_id: &TaskId) -> Option<u64> {
    let scheduler = engine.parts.schedulers.for_task(task_id)?;
    let request = StatTaskRequest {
        host_id: engine.parts.identity.host_id.to_string(),
        task_id: task_id.to_string(),
    };
    let mut client = SchedulerClient::new(scheduler.channel);
    let stat = tokio::time::timeout(STAT_MAX, client.stat_task(request)).await;
    let task = stat.ok()?.ok()?.into_inner();
    // An unknown length travels as -1 in an unsigned field.
    let known = task.has_available_peer || task.peer_count > 0;
    (known && task.content_length > 0 && task.content_length < u64::MAX / 2)
        .then_some(task.content_length)
}

/// The whole content in a temporary file that nobody else sees, and its length.
pub(super) struct Spooled {
    file: File,
    length: u64,
}

impl Spooled {
    /// Reads the origin to its end; at most `room` bytes.
    pub(super) async fn read(
        engine: &Arc<Inner>,
        request: &Request,
        room: u64,
    ) -> Result<Self, DownloadError> {
        let folder = engine.parts.store.temporary_dir();
        let mut file = tempfile::tempfile_in(&folder).map_err(|error| {
            DownloadError::Invalid(format!(
                "cannot create a temporary file in {}: {error}",
                folder.display()
            ))
        })?;
        let mut body = engine.parts.sources.get(request, Get::whole()).await?.body;
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            length += chunk.len() as u64;
            if length > room {
                return Err(DownloadError::Invalid(format!(
                    "the content is longer than the {room} bytes that are free: free some space or move storage.dir"
                )));
            }
            let written =
                tokio::task::spawn_blocking(move || file.write_all(&chunk).map(|()| file)).await;
            file = written
                .map_err(|error| DownloadError::Invalid(error.to_string()))?
                .map_err(|error| {
                    DownloadError::Invalid(format!("cannot write the content: {error}"))
                })?;
        }
        Ok(Self { file, length })
    }

    /// Bytes in the content.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Puts all pieces into the store. Blocks.
    pub(super) fn store(mut self, task: &Task) -> Result<(), String> {
        self.file.rewind().map_err(|error| error.to_string())?;
        fill(task, &mut self.file, Duration::ZERO)
    }
}

/// Puts all pieces of a new task into the store, from what the origin gave within this time. Blocks.
pub(super) fn fill(task: &Task, content: &mut impl Read, cost: Duration) -> Result<(), String> {
    let length = usize::try_from(task.geometry().content_length()).unwrap_or(BUFFER_LEN);
    let mut buffer = vec![0; length.min(BUFFER_LEN)];
    for span in task.geometry().pieces() {
        let Claim::Yours(writer) = task.claim(span.number).map_err(|error| error.to_string())?
        else {
            return Err(format!(
                "piece {} is being written by someone else",
                span.number
            ));
        };
        let mut at = 0;
        while at < span.length {
            let wanted = usize::try_from(span.length - at)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            let part = &mut buffer[..wanted];
            content
                .read_exact(part)
                .map_err(|error| error.to_string())?;
            writer.write(at, part).map_err(|error| error.to_string())?;
            at += wanted as u64;
        }
        let origin = PieceOrigin {
            parent: None,
            traffic: TrafficType::BackToSource,
            created_at: SystemTime::now(),
            cost,
        };
        writer
            .commit(None, origin)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
