//! The metrics of this daemon, under the names that Dragonfly v2 exports.
//!
//! Names, labels and meaning are a contract with existing dashboards. Labels that carry a `type` are the number of the
//! task type (`0` standard) or the name of the traffic type. `tag` and `app` come from callers, so the number of distinct
//! values is bounded here: what comes after the first [`LABEL_VALUES_MAX`] is counted under `other`.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::{TaskKind, TrafficType};
use runtime::metrics::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Distinct values of `tag`, and of `app`, that are told apart.
pub const LABEL_VALUES_MAX: usize = 100;

const PREFIX: &str = "dragonfly_client_";

/// All of them; cheap to share in an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    labels: Mutex<Labels>,
    /// Downloads begun by a caller; divide failures by it.
    pub download_task: IntCounterVec,
    /// Downloads that ended in an error.
    pub download_task_failure: IntCounterVec,
    /// Prefetches begun.
    pub prefetch_task: IntCounterVec,
    /// Prefetches that ended in an error.
    pub prefetch_task_failure: IntCounterVec,
    /// Downloads in progress.
    pub concurrent_download_task: IntGaugeVec,
    /// Pieces being served at this moment.
    pub concurrent_upload_piece: IntGauge,
    download_traffic: IntCounterVec,
    upload_traffic: IntCounter,
    download_piece_duration: HistogramVec,
    download_task_duration: HistogramVec,
    backend_request: IntCounterVec,
    backend_request_failure: IntCounterVec,
    backend_request_duration: HistogramVec,
    /// Requests to the proxy.
    pub proxy: ProxyMetrics,
    rpc: RpcMetrics,
    disk_space: IntGauge,
    disk_usage: IntGauge,
}

/// Counters of the HTTP proxy.
#[derive(Debug)]
pub struct ProxyMetrics {
    request: IntCounterVec,
    /// Requests and tunnels whose origin could not be reached; divide by all requests.
    pub failure: IntCounter,
    /// Requests that went into the swarm; divide by all requests.
    pub via_dfdaemon: IntCounter,
    /// Requests that were refused because there were too many in this second.
    pub rate_limited: IntCounter,
}

impl ProxyMetrics {
    fn new(maker: &Maker<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            request: maker.counters(
                "proxy_request_total",
                "Requests to the proxy.",
                &["scheme", "method"],
            )?,
            failure: maker.counter(
                "proxy_request_failure_total",
                "Requests to the proxy whose origin could not be reached.",
            )?,
            via_dfdaemon: maker.counter(
                "proxy_request_via_dfdaemon_total",
                "Requests to the proxy that went into the swarm.",
            )?,
            rate_limited: maker.counter(
                "proxy_request_rate_limited_total",
                "Requests to the proxy that the rate limit refused.",
            )?,
        })
    }

    /// A request came in. Methods that HTTP does not know are counted under one label.
    pub fn request(&self, scheme: &'static str, method: &http::Method) {
        const KNOWN: [&str; 9] = [
            "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "PATCH", "TRACE",
        ];
        let method = KNOWN
            .into_iter()
            .find(|known| *known == method.as_str())
            .unwrap_or("other");
        self.request.with_label_values(&[scheme, method]).inc();
    }
}

/// Counters of the RPCs that are not downloads.
#[derive(Debug)]
struct RpcMetrics {
    stat_task: [IntCounterVec; 2],
    list_local_tasks: [IntCounterVec; 2],
    list_task_entries: [IntCounterVec; 2],
    delete_task: [IntCounterVec; 2],
    delete_local_task: [IntCounterVec; 2],
    delete_host: [IntCounter; 2],
    download_blocked: IntCounterVec,
}

/// An RPC that is counted with its failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    /// StatTask.
    StatTask,
    /// ListLocalTasks.
    ListLocalTasks,
    /// ListTaskEntries.
    ListTaskEntries,
    /// DeleteTask.
    DeleteTask,
    /// DeleteLocalTask.
    DeleteLocalTask,
    /// DeleteHost.
    DeleteHost,
}

/// The labels of one download, with foreign text already bounded.
#[derive(Debug, Clone)]
pub struct TaskLabels([String; 4]);

impl TaskLabels {
    fn values(&self) -> [&str; 4] {
        let [kind, tag, app, priority] = &self.0;
        [kind, tag, app, priority]
    }
}

#[derive(Debug, Default)]
struct Labels {
    tags: HashSet<String>,
    applications: HashSet<String>,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics of one name in `registry`.
    pub fn new(registry: Registry) -> Result<Self, prometheus::Error> {
        let maker = Maker(&registry);
        let task = ["type", "tag", "app", "priority"];
        let metrics = Self {
            labels: Mutex::default(),
            download_task: maker.counters("download_task_total", "Downloads begun.", &task)?,
            download_task_failure: maker.counters(
                "download_task_failure_total",
                "Downloads that failed.",
                &task,
            )?,
            prefetch_task: maker.counters("prefetch_task_total", "Prefetches begun.", &task)?,
            prefetch_task_failure: maker.counters(
                "prefetch_task_failure_total",
                "Prefetches that failed.",
                &task,
            )?,
            concurrent_download_task: maker.gauges(
                "concurrent_download_task_total",
                "Downloads in progress.",
                &task,
            )?,
            concurrent_upload_piece: maker
                .gauge("concurrent_upload_piece_total", "Pieces being served.")?,
            download_traffic: maker.counters(
                "download_traffic",
                "Bytes received, by where they came from.",
                &["type"],
            )?,
            upload_traffic: maker
                .counter("upload_traffic", "Bytes of pieces sent to other peers.")?,
            download_piece_duration: maker.histograms(
                "download_piece_duration_milliseconds",
                "Time per piece.",
                &["type"],
            )?,
            download_task_duration: maker.histograms(
                "download_task_duration_milliseconds",
                "Time per download.",
                &["task_type", "task_size_level"],
            )?,
            backend_request: maker.counters(
                "backend_request_total",
                "Requests to origins.",
                &["scheme", "method"],
            )?,
            backend_request_failure: maker.counters(
                "backend_request_failure_total",
                "Requests to origins that failed.",
                &["scheme", "method"],
            )?,
            backend_request_duration: maker.histograms(
                "backend_request_duration_milliseconds",
                "Time per request to an origin.",
                &["scheme", "method"],
            )?,
            proxy: ProxyMetrics::new(&maker)?,
            rpc: RpcMetrics::new(&maker)?,
            disk_space: maker.gauge("disk_space_total", "Bytes of the store's filesystem.")?,
            disk_usage: maker.gauge(
                "disk_usage_space_total",
                "Bytes used of the store's filesystem.",
            )?,
            registry: registry.clone(),
        };
        maker.version()?;
        Ok(metrics)
    }

    /// For the `/metrics` endpoint, and for parts that register metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Labels of one download.
    pub fn task_labels(
        &self,
        kind: TaskKind,
        tag: Option<&str>,
        application: Option<&str>,
        priority: i32,
    ) -> TaskLabels {
        let mut labels = self.labels.lock();
        let tag = bounded(&mut labels.tags, tag.unwrap_or_default());
        let application = bounded(&mut labels.applications, application.unwrap_or_default());
        // v2 knows priorities 0 to 6; anything else would only multiply the series.
        let priority = if (0..=6).contains(&priority) {
            priority.to_string()
        } else {
            "other".to_owned()
        };
        TaskLabels([type_label(kind), tag, application, priority])
    }

    /// A download begins; the gauge falls again when the guard is dropped.
    pub fn download_begins(&self, labels: &TaskLabels) -> InProgress {
        self.download_task.with_label_values(&labels.values()).inc();
        let gauge = self
            .concurrent_download_task
            .with_label_values(&labels.values());
        gauge.inc();
        InProgress(gauge)
    }

    /// A download failed.
    pub fn download_failed(&self, labels: &TaskLabels) {
        self.download_task_failure
            .with_label_values(&labels.values())
            .inc();
    }

    /// A prefetch begins.
    pub fn prefetch_begins(&self, labels: &TaskLabels) {
        self.prefetch_task.with_label_values(&labels.values()).inc();
    }

    /// A prefetch failed.
    pub fn prefetch_failed(&self, labels: &TaskLabels) {
        self.prefetch_task_failure
            .with_label_values(&labels.values())
            .inc();
    }

    /// A download ended well: `bytes` were asked for.
    pub fn download_took(&self, kind: TaskKind, bytes: u64, took: Duration) {
        let level = size_level(bytes).to_string();
        self.download_task_duration
            .with_label_values(&[type_label(kind).as_str(), level.as_str()])
            .observe(milliseconds(took));
    }

    /// `bytes` of one piece came from there within that time.
    pub fn piece_downloaded(&self, traffic: TrafficType, bytes: u64, took: Duration) {
        let label = [traffic_label(traffic)];
        self.download_traffic
            .with_label_values(&label)
            .inc_by(bytes);
        self.download_piece_duration
            .with_label_values(&label)
            .observe(milliseconds(took));
    }

    /// `bytes` of pieces were sent to another peer.
    pub fn uploaded(&self, bytes: u64) {
        self.upload_traffic.inc_by(bytes);
    }

    /// An origin was asked; `scheme` must come from the list of known ones.
    pub fn origin_asked(&self, scheme: &str, method: &'static str, failed: bool, took: Duration) {
        let labels = [scheme, method];
        self.backend_request.with_label_values(&labels).inc();
        if failed {
            self.backend_request_failure
                .with_label_values(&labels)
                .inc();
        }
        self.backend_request_duration
            .with_label_values(&labels)
            .observe(milliseconds(took));
    }

    /// An RPC came in.
    pub fn rpc_begins(&self, rpc: Rpc) {
        self.rpc.count(rpc, 0);
    }

    /// An RPC was answered with an error.
    pub fn rpc_failed(&self, rpc: Rpc) {
        self.rpc.count(rpc, 1);
    }

    /// A download was refused by the block list.
    pub fn download_blocked(&self, kind: TaskKind) {
        self.rpc
            .download_blocked
            .with_label_values(&[type_label(kind)])
            .inc();
    }

    /// The filesystem of the store: bytes in total and in use.
    pub fn disk(&self, total: u64, used: u64) {
        self.disk_space
            .set(i64::try_from(total).unwrap_or(i64::MAX));
        self.disk_usage.set(i64::try_from(used).unwrap_or(i64::MAX));
    }
}

/// Counts a download as in progress while it lives.
#[derive(Debug)]
pub struct InProgress(IntGauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RpcMetrics {
    fn new(maker: &Maker<'_>) -> Result<Self, prometheus::Error> {
        let pair = |name: &str, failure: &str, what: &str| {
            Ok::<_, prometheus::Error>([
                maker.counters(name, &format!("{what} requests."), &["type"])?,
                maker.counters(failure, &format!("{what} requests that failed."), &["type"])?,
            ])
        };
        Ok(Self {
            stat_task: pair("stat_task_total", "stat_task_failure_total", "StatTask")?,
            // v2 misnames the failure counter; the name is the contract.
            list_local_tasks: pair(
                "list_local_tasks_total",
                "list_tasks_failure_total",
                "ListLocalTasks",
            )?,
            list_task_entries: pair(
                "list_task_entries_total",
                "list_task_entries_failure_total",
                "ListTaskEntries",
            )?,
            delete_task: pair(
                "delete_task_total",
                "delete_task_failure_total",
                "DeleteTask",
            )?,
            delete_local_task: pair(
                "delete_local_task_total",
                "delete_local_task_failure_total",
                "DeleteLocalTask",
            )?,
            delete_host: [
                maker.counter("delete_host_total", "DeleteHost requests.")?,
                maker.counter(
                    "delete_host_failure_total",
                    "DeleteHost requests that failed.",
                )?,
            ],
            download_blocked: maker.counters(
                "download_task_blocked_total",
                "Downloads that the block list refused.",
                &["type"],
            )?,
        })
    }

    fn count(&self, rpc: Rpc, which: usize) {
        let standard = [type_label(TaskKind::Standard)];
        match rpc {
            Rpc::StatTask => self.stat_task[which].with_label_values(&standard).inc(),
            Rpc::ListLocalTasks => self.list_local_tasks[which]
                .with_label_values(&standard)
                .inc(),
            Rpc::ListTaskEntries => self.list_task_entries[which]
                .with_label_values(&standard)
                .inc(),
            Rpc::DeleteTask => self.delete_task[which].with_label_values(&standard).inc(),
            Rpc::DeleteLocalTask => self.delete_local_task[which]
                .with_label_values(&standard)
                .inc(),
            Rpc::DeleteHost => self.delete_host[which].inc(),
        }
    }
}

/// Makes metrics and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let metric = IntCounterVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let metric = IntCounter::new(format!("{PREFIX}{name}"), help)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let metric = IntGaugeVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let metric = IntGauge::new(format!("{PREFIX}{name}"), help)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        // 1 ms, doubled 23 times up to 2.3 hours.
        let buckets = prometheus::exponential_buckets(1.0, 2.0, 24)?;
        let options = HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(buckets);
        let metric = HistogramVec::new(options, labels)?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    /// Always 1; the labels tell the build.
    fn version(&self) -> Result<(), prometheus::Error> {
        let options = Opts::new(format!("{PREFIX}version"), "Version of the daemon.")
            .const_label("git_version", env!("CARGO_PKG_VERSION"))
            .const_label("git_commit", crate::GIT_COMMIT)
            .const_label("platform", std::env::consts::OS)
            .const_label("build_time", crate::BUILD_TIME);
        let metric = Gauge::with_opts(options)?;
        metric.set(1.0);
        self.0.register(Box::new(metric))
    }
}

/// The number of the task type, as v2 labels it.
fn type_label(kind: TaskKind) -> String {
    kind.number().to_string()
}

fn traffic_label(traffic: TrafficType) -> &'static str {
    match traffic {
        TrafficType::BackToSource => "BACK_TO_SOURCE",
        TrafficType::RemotePeer => "REMOTE_PEER",
        TrafficType::LocalPeer => "LOCAL_PEER",
    }
}

/// Keeps the first values and folds the rest together.
fn bounded(known: &mut HashSet<String>, value: &str) -> String {
    const VALUE_LEN_MAX: usize = 128;
    if known.contains(value) {
        return value.to_owned();
    }
    if known.len() >= LABEL_VALUES_MAX || value.len() > VALUE_LEN_MAX {
        return "other".to_owned();
    }
    known.insert(value.to_owned());
    value.to_owned()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// v2's level of a size: 0 for nothing, then one step at 1, 4, 8, 16 ... MiB up to 1 TiB.
fn size_level(bytes: u64) -> u8 {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const LIMITS: [u64; 19] = [
        MIB,
        4 * MIB,
        8 * MIB,
        16 * MIB,
        32 * MIB,
        64 * MIB,
        128 * MIB,
        256 * MIB,
        512 * MIB,
        GIB,
        4 * GIB,
        8 * GIB,
        16 * GIB,
        32 * GIB,
        64 * GIB,
        128 * GIB,
        256 * GIB,
        512 * GIB,
        1024 * GIB,
    ];
    if bytes == 0 {
        return 0;
    }
    let below = LIMITS.iter().take_while(|limit| bytes >= **limit).count();
    u8::try_from(below + 1).unwrap_or(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_levels_are_those_of_v2() {
        for (bytes, level) in [
            (0, 0),
            (1, 1),
            (1 << 20, 2),
            (4 << 20, 3),
            ((1 << 30) - 1, 10),
            (1 << 30, 11),
            (1 << 40, 20),
            (u64::MAX, 20),
        ] {
            assert_eq!(size_level(bytes), level, "{bytes}");
        }
    }

    #[test]
    fn names_and_labels_are_those_of_v2() {
        let metrics = Metrics::new(runtime::metrics::registry()).unwrap();
        let labels = metrics.task_labels(TaskKind::Standard, Some("t"), None, 3);
        let running = metrics.download_begins(&labels);
        metrics.piece_downloaded(TrafficType::RemotePeer, 10, Duration::from_millis(3));
        metrics.rpc_failed(Rpc::ListLocalTasks);
        let text = runtime::metrics::text(metrics.registry()).unwrap();
        for line in [
            r#"dragonfly_client_download_task_total{app="",priority="3",tag="t",type="0"} 1"#,
            r#"dragonfly_client_concurrent_download_task_total{app="",priority="3",tag="t",type="0"} 1"#,
            r#"dragonfly_client_download_traffic{type="REMOTE_PEER"} 10"#,
            r#"dragonfly_client_list_tasks_failure_total{type="0"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        drop(running);
        let text = runtime::metrics::text(metrics.registry()).unwrap();
        assert!(
            text.contains(
                r#"concurrent_download_task_total{app="",priority="3",tag="t",type="0"} 0"#
            )
        );
    }

    #[test]
    fn foreign_labels_are_bounded() {
        let metrics = Metrics::new(runtime::metrics::registry()).unwrap();
        for tag in 0..10 * LABEL_VALUES_MAX {
            metrics.task_labels(
                TaskKind::Standard,
                Some(&tag.to_string()),
                None,
                tag.try_into().unwrap(),
            );
        }
        let labels = metrics.task_labels(TaskKind::Standard, Some("late"), None, 99);
        assert_eq!(labels.values(), ["0", "other", "", "other"]);
    }
}
