//! The whole content behind a ranged reader, fetched ahead of need, once per task.

use std::sync::Arc;

use dragonfly_api::common::v2;
use storage::{Mark, Task};
use tracing::warn;

use super::{DownloadError, DownloadSpec, Engine};
use crate::metrics::TaskLabels;

impl Engine {
    /// Fetches all of `task` in the background, unless that was begun before. A failure is logged, and forgotten so that the next
    /// ranged request tries again.
    ///
    /// Ends with the engine.
    pub fn prefetch(&self, spec: &DownloadSpec, task: &Task, labels: &TaskLabels) {
        if task.summary().times.prefetched_at.is_some() || task.mark(Mark::Prefetched).is_err() {
            return;
        }
        let spec = whole_ahead(spec);
        let (engine, task, labels) = (self.clone(), task.clone(), labels.clone());
        let cancel = self.inner.cancel.clone();
        self.inner.tasks.spawn(async move {
            let metrics = engine.inner.parts.metrics.clone();
            metrics.prefetch_begins(&labels);
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                outcome = engine.fetch_whole(spec) => outcome,
            };
            if let Err(error) = outcome {
                metrics.prefetch_failed(&labels);
                warn!(task_id = %task.id(), %error, "prefetch failed");
                let _ = task.mark(Mark::PrefetchCancelled);
            }
        });
    }

    async fn fetch_whole(&self, spec: DownloadSpec) -> Result<(), DownloadError> {
        let mut download = self.download(spec).await?;
        while let Some(piece) = download.next().await {
            piece?;
        }
        Ok(())
    }
}

/// The same content, whole and ahead of need.
fn whole_ahead(spec: &DownloadSpec) -> DownloadSpec {
    let mut wire = v2::Download::clone(&spec.wire);
    wire.range = None;
    wire.request_header
        .retain(|name, _| !name.eq_ignore_ascii_case("range"));
    wire.prefetch = false;
    wire.is_prefetch = true;
    wire.output_path = None;
    DownloadSpec {
        range: None,
        range_header: None,
        is_prefetch: true,
        in_order: false,
        wire: Arc::new(wire),
        ..spec.clone()
    }
}
