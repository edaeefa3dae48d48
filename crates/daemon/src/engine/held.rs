//! Telling the scheduler that this host holds a task already.
//!
//! A seed that is asked for what it has registers with `metadata_only`, so that the scheduler knows it as a parent.

use std::sync::Arc;
use std::time::Duration;

use protocol::Geometry;
use tokio::sync::mpsc;
use tracing::debug;

use super::conversation::{Conversation, Ending, SchedulerEvent, Speaker};
use super::session::Event;
use super::{DownloadSpec, Inner, convert};

/// How long the whole exchange may take.
const ANNOUNCE_MAX: Duration = Duration::from_secs(10);

/// Registers in the background; a failure only means that the scheduler does not know yet.
pub(super) fn announce(engine: &Arc<Inner>, spec: &DownloadSpec, geometry: &Geometry) {
    let Some(scheduler) = engine.parts.schedulers.for_task(&spec.task_id) else {
        return;
    };
    let speaker = Speaker {
        host_id: engine.parts.identity.host_id.clone(),
        task_id: spec.task_id.clone(),
        peer_id: engine.parts.identity.new_peer_id(),
    };
    let mut download = convert::registration(spec, geometry);
    download.metadata_only = true;
    download.need_back_to_source = false;
    let (events, mut answers) = mpsc::channel(8);
    let conversation =
        Conversation::open(scheduler.channel, speaker, download, events, &engine.tasks);
    let cancel = engine.cancel.clone();
    engine.tasks.spawn(async move {
        let exchange = async {
            while let Some(event) = answers.recv().await {
                match event {
                    Event::Scheduler(SchedulerEvent::MetadataOnly) => {
                        conversation.started();
                        conversation.finish(Ending::Finished).await;
                        return;
                    }
                    Event::Scheduler(SchedulerEvent::Closed(status)) => {
                        debug!(?status, "held task not announced");
                        return;
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = tokio::time::timeout(ANNOUNCE_MAX, exchange) => {}
        }
    });
}
