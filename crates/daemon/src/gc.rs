//! Making room: tasks whose time is over, and the least used ones when the disk is nearly full.
//!
//! What goes is decided by the store, which never takes what is in use; here are the times, and the schedulers are told
//! that this host no longer has a task.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream;
use protocol::TaskKind;
use runtime::shutdown::Shutdown;
use storage::{Evicted, Store};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::config::Gc;
use crate::metrics::Metrics;
use crate::rpc::Tasks;

/// Schedulers that are told of deleted tasks at once.
const REPORTS_AT_ONCE: usize = 8;

/// How long telling them may take in one round; what is left they find out when they send a child in vain.
const REPORT_MAX: Duration = Duration::from_secs(60);

/// How often the disk metrics are brought up to date.
const DISK_INTERVAL: Duration = Duration::from_secs(30);

/// Collects until `shutdown` begins: at once, then at every `config.interval`.
pub async fn run(config: Gc, store: Store, tasks: Tasks, metrics: &Metrics, shutdown: &Shutdown) {
    let mut ticks = tokio::time::interval(DISK_INTERVAL.min(config.interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            _ = ticks.tick() => {}
        }
        measure(&store, metrics).await;
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + config.interval;
        let evicted = collect(&config, &store).await;
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            () = report(&tasks, evicted) => {}
        }
    }
}

/// One round on disk; gives what went.
async fn collect(config: &Gc, store: &Store) -> Vec<Evicted> {
    let store = store.clone();
    let ttl = config.task_ttl;
    let (high, low) = (
        config.disk_high_threshold_percent,
        config.disk_low_threshold_percent,
    );
    let round = tokio::task::spawn_blocking(move || {
        let mut evicted = store.evict_expired(SystemTime::now(), ttl);
        match store.evict_to_watermark(high, low) {
            Ok(more) => evicted.extend(more),
            Err(error) => warn!(%error, "disk watermark not looked at"),
        }
        evicted
    });
    let evicted = round.await.unwrap_or_default();
    for task in &evicted {
        info!(task_id = %task.id, bytes = task.freed_bytes, reason = ?task.reason, "task evicted");
    }
    evicted
}

/// Tells the schedulers of standard tasks, as v2 does.
async fn report(tasks: &Tasks, evicted: Vec<Evicted>) {
    let standard = evicted
        .into_iter()
        .filter(|task| task.kind == TaskKind::Standard);
    let told = stream::iter(standard).for_each_concurrent(REPORTS_AT_ONCE, |task| async move {
        if let Err(status) = tasks.tell_deleted(&task.id).await {
            warn!(task_id = %task.id, error = status.message(), "scheduler not told that a task is gone");
        }
    });
    if tokio::time::timeout(REPORT_MAX, told).await.is_err() {
        warn!(
            limit_s = REPORT_MAX.as_secs(),
            "not every deleted task was reported in time"
        );
    }
}

async fn measure(store: &Store, metrics: &Metrics) {
    let store = store.clone();
    if let Ok(Ok(usage)) = tokio::task::spawn_blocking(move || store.usage()).await {
        metrics.disk(usage.total, usage.total.saturating_sub(usage.available));
    }
}
