//! The scheduler's metrics, under Dragonfly v2's names (scheduler sheet, section 10).

mod labels;
mod summary;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Host;
use parking_lot::Mutex;
use prometheus::IntGauge;
use protocol::TrafficType;
use runtime::metrics::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use scheduling::Report;
use summary::{Shared, Summary};

pub(crate) use labels::PeerLabels;
use labels::size_level;

use crate::rpc::SaidReport;

/// Calls with a counter of all and one of failures, without labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    AnnouncePeer,
    StatPeer,
    LeavePeer,
    StatTask,
    LeaveTask,
    ListHosts,
    LeaveHost,
    PreheatImage,
    StatImage,
    PreheatFile,
    StatFile,
}

/// Each call's name in the metrics.
const CALLS: [(Call, &str); 11] = [
    (Call::AnnouncePeer, "announce_peer"),
    (Call::StatPeer, "stat_peer"),
    (Call::LeavePeer, "leave_peer"),
    (Call::StatTask, "stat_task"),
    (Call::LeaveTask, "leave_task"),
    (Call::ListHosts, "list_hosts"),
    (Call::LeaveHost, "leave_host"),
    (Call::PreheatImage, "preheat_image"),
    (Call::StatImage, "stat_image"),
    (Call::PreheatFile, "preheat_file"),
    (Call::StatFile, "stat_file"),
];

const PEER_LABELS: [&str; 3] = ["priority", "task_type", "host_type"];
const PIECE_LABELS: [&str; 3] = ["traffic_type", "task_type", "host_type"];
const HOST_TRAFFIC_LABELS: [&str; 6] = [
    "type",
    "task_type",
    "host_type",
    "host_id",
    "host_ip",
    "host_name",
];
const HOST_LABELS: [&str; 9] = [
    "os",
    "platform",
    "platform_family",
    "platform_version",
    "kernel_version",
    "git_version",
    "git_commit",
    "go_version",
    "build_platform",
];

/// Kinds of machines that get figures of their own; the labels are free text from the network.
const HOST_KINDS_MAX: usize = 256;
/// Longest text that is kept as a label.
const LABEL_LEN_MAX: usize = 64;

/// The registry of one scheduler and its counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Vec<(Call, IntCounter, IntCounter)>,
    registered: IntCounterVec,
    started: IntCounterVec,
    back_to_source_started: IntCounterVec,
    finished: IntCounterVec,
    finished_failure: IntCounterVec,
    back_to_source_finished_failure: IntCounterVec,
    piece_finished: IntCounterVec,
    piece_finished_failure: IntCounterVec,
    traffic: IntCounterVec,
    announce_host: IntCounterVec,
    announce_host_failure: IntCounterVec,
    streams: IntGauge,
    download_duration: Arc<Summary>,
    schedule_duration: Arc<Summary>,
    host_kinds: Mutex<HashSet<[String; 9]>>,
    /// Only with `metrics.enableHost`.
    host_traffic: Option<IntCounterVec>,
}

/// Whether traffic is counted for each host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PerHost {
    Counted,
    Not,
}

/// Which way bytes went, seen from a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Upload,
    Download,
}

impl Metrics {
    /// All counters; with `PerHost::Counted` also the traffic of each host.
    pub(crate) fn new(per_host: PerHost) -> prometheus::Result<Self> {
        let registry = runtime::metrics::registry();
        let one = |name: &str, help: &str| counter(&registry, name, help);
        let many =
            |name: &str, help: &str, labels: &[&str]| counters(&registry, name, help, labels);
        let mut calls = Vec::new();
        for (call, name) in CALLS {
            let total = one(&format!("{name}_total"), "Grows with each call.")?;
            let failure = one(
                &format!("{name}_failure_total"),
                "Grows with each call that ends in an error.",
            )?;
            calls.push((call, total, failure));
        }
        let streams = IntGauge::with_opts(opts(
            "concurrent_schedule_total",
            "AnnouncePeer streams that are open.",
        ))?;
        registry.register(Box::new(streams.clone()))?;
        let download_duration = summary(
            &registry,
            "download_peer_duration_milliseconds",
            "From registration to the end of a download.",
            Some("task_size_level"),
        )?;
        let schedule_duration = summary(
            &registry,
            "schedule_duration_milliseconds",
            "From a question of a peer to its answer.",
            None,
        )?;
        register_version(&registry)?;
        let peers = &PEER_LABELS;
        // Counters that Dragonfly v2 has and that cannot grow here: a registration or start that fails ends its stream and is
        // counted there.
        many(
            "register_peer_failure_total",
            "Registrations that failed.",
            peers,
        )?;
        many(
            "download_peer_started_failure_total",
            "Starts that failed.",
            peers,
        )?;
        many(
            "download_peer_back_to_source_started_failure_total",
            "Starts at the origin that failed.",
            peers,
        )?;
        Ok(Self {
            calls,
            registered: many("register_peer_total", "Grows when a peer registers.", peers)?,
            started: many(
                "download_peer_started_total",
                "Grows when a peer begins to fetch.",
                peers,
            )?,
            back_to_source_started: many(
                "download_peer_back_to_source_started_total",
                "Grows when a peer begins to read the origin.",
                peers,
            )?,
            finished: many(
                "download_peer_finished_total",
                "Grows when a download ends, well or not.",
                peers,
            )?,
            finished_failure: many(
                "download_peer_finished_failure_total",
                "Grows when a download fails.",
                peers,
            )?,
            back_to_source_finished_failure: many(
                "download_peer_back_to_source_finished_failure_total",
                "Grows when a download fails at the origin.",
                peers,
            )?,
            piece_finished: many(
                "download_piece_finished_total",
                "Grows with each piece, well or not.",
                &PIECE_LABELS,
            )?,
            piece_finished_failure: many(
                "download_piece_finished_failure_total",
                "Grows with each piece that failed.",
                &PIECE_LABELS,
            )?,
            traffic: many(
                "traffic",
                "Bytes of finished pieces.",
                &["type", "task_type", "host_type"],
            )?,
            announce_host: many(
                "announce_host_total",
                "Grows when a host announces itself.",
                &HOST_LABELS,
            )?,
            announce_host_failure: many(
                "announce_host_failure_total",
                "Grows when an announcement is refused.",
                &HOST_LABELS,
            )?,
            streams,
            download_duration,
            schedule_duration,
            host_kinds: Mutex::default(),
            host_traffic: match per_host {
                PerHost::Counted => Some(many(
                    "host_traffic",
                    "Bytes of finished pieces, by host.",
                    &HOST_TRAFFIC_LABELS,
                )?),
                PerHost::Not => None,
            },
            registry,
        })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A call came in and was answered.
    pub(crate) fn called<R>(&self, call: Call, outcome: &Result<R, tonic::Status>) {
        if let Some((_, total, failure)) = self.calls.iter().find(|(known, _, _)| *known == call) {
            total.inc();
            if outcome.is_err() {
                failure.inc();
            }
        }
    }

    /// An AnnouncePeer stream was opened.
    pub(crate) fn stream_opened(&self) {
        self.streams.inc();
        self.called(Call::AnnouncePeer, &Ok(()));
    }

    /// It ended.
    pub(crate) fn stream_closed(&self) {
        self.streams.dec();
    }

    /// It ended with an error.
    pub(crate) fn stream_failed(&self) {
        if let Some((_, _, failure)) = self
            .calls
            .iter()
            .find(|(call, _, _)| *call == Call::AnnouncePeer)
        {
            failure.inc();
        }
    }

    /// A peer was answered so long after it asked.
    pub(crate) fn answered(&self, after: Duration) {
        self.schedule_duration
            .observe("", after.as_secs_f64() * 1000.0);
    }

    /// Whether [`Metrics::moved`] has an effect.
    pub(crate) fn counts_hosts(&self) -> bool {
        self.host_traffic.is_some()
    }

    /// A host sent or received this many bytes of a piece.
    pub(crate) fn moved(&self, direction: Direction, labels: &PeerLabels, host: &Host, bytes: u64) {
        let Some(counters) = &self.host_traffic else {
            return;
        };
        let direction = match direction {
            Direction::Upload => "upload",
            Direction::Download => "download",
        };
        let host_type = if host.r#type == 0 { "normal" } else { "super" };
        let values = [
            direction,
            labels.task_type,
            host_type,
            &host.id,
            &host.ip,
            &host.hostname,
        ];
        counters.with_label_values(&values).inc_by(bytes);
    }

    /// A host announced itself.
    pub(crate) fn announced(&self, host: &Host, accepted: bool) {
        let values = self.host_kind(host);
        let counter = if accepted {
            &self.announce_host
        } else {
            &self.announce_host_failure
        };
        counter.with_label_values(&values).inc();
    }

    /// A peer registered.
    pub(crate) fn registered(&self, labels: &PeerLabels) {
        self.registered.with_label_values(&labels.of_peer()).inc();
    }

    /// A peer reported.
    pub(crate) fn reported(&self, labels: &PeerLabels, said: &SaidReport) {
        let peer = labels.of_peer();
        match &said.report {
            Report::Started => self.started.with_label_values(&peer).inc(),
            Report::BackToSourceStarted => {
                self.back_to_source_started.with_label_values(&peer).inc()
            }
            Report::Finished | Report::BackToSourceFinished => {
                self.finished.with_label_values(&peer).inc();
                if let Some(since) = labels.since {
                    let level = size_level(labels.content_length.unwrap_or(0));
                    self.download_duration
                        .observe(&level.to_string(), since.elapsed().as_secs_f64() * 1000.0);
                }
            }
            Report::Failed => {
                self.finished.with_label_values(&peer).inc();
                self.finished_failure.with_label_values(&peer).inc();
            }
            Report::BackToSourceFailed => {
                self.finished.with_label_values(&peer).inc();
                self.back_to_source_finished_failure
                    .with_label_values(&peer)
                    .inc();
            }
            Report::PieceFinished { .. } | Report::SourcePieceFinished(_) => {
                let (traffic, bytes) = said.traffic.unwrap_or((TrafficType::RemotePeer, 0));
                self.piece_finished
                    .with_label_values(&labels.of_piece(traffic))
                    .inc();
                self.traffic
                    .with_label_values(&labels.of_piece(traffic))
                    .inc_by(bytes);
            }
            Report::PieceFailed { .. } => self.piece_failed(labels, TrafficType::RemotePeer),
            Report::SourcePieceFailed(_) => self.piece_failed(labels, TrafficType::BackToSource),
            Report::Rescheduled { .. } => {}
        }
    }

    fn piece_failed(&self, labels: &PeerLabels, traffic: TrafficType) {
        self.piece_finished
            .with_label_values(&labels.of_piece(traffic))
            .inc();
        self.piece_finished_failure
            .with_label_values(&labels.of_piece(traffic))
            .inc();
    }

    fn host_kind(&self, host: &Host) -> [String; 9] {
        let build = host.build.clone().unwrap_or_default();
        let values = [
            host.os.clone(),
            host.platform.clone(),
            host.platform_family.clone(),
            // Dragonfly v2 puts the family here.
            host.platform_family.clone(),
            host.kernel_version.clone(),
            build.git_version,
            build.git_commit.unwrap_or_default(),
            build.go_version.unwrap_or_default(),
            build.platform.unwrap_or_default(),
        ];
        let mut kinds = self.host_kinds.lock();
        let fits = values.iter().all(|value| value.len() <= LABEL_LEN_MAX);
        if fits
            && (kinds.contains(&values)
                || kinds.len() < HOST_KINDS_MAX && kinds.insert(values.clone()))
        {
            return values;
        }
        std::array::from_fn(|_| "other".to_owned())
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("dragonfly_scheduler_{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::with_opts(opts(name, help))?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(opts(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn summary(
    registry: &Registry,
    name: &str,
    help: &str,
    label: Option<&'static str>,
) -> prometheus::Result<Arc<Summary>> {
    let summary = Arc::new(Summary::new(
        &format!("dragonfly_scheduler_{name}"),
        help,
        label,
    )?);
    registry.register(Box::new(Shared(summary.clone())))?;
    Ok(summary)
}

/// `dragonfly_scheduler_version`, always 1: its labels are the message. The labels that only Go has stay empty.
fn register_version(registry: &Registry) -> prometheus::Result<()> {
    let labels = [
        ("major", env!("CARGO_PKG_VERSION_MAJOR")),
        ("minor", env!("CARGO_PKG_VERSION_MINOR")),
        ("git_version", env!("CARGO_PKG_VERSION")),
        ("git_commit", ""),
        ("platform", std::env::consts::OS),
        ("build_time", ""),
        ("go_version", ""),
        ("go_tags", ""),
        ("go_gcflags", ""),
    ];
    let opts = opts("version", "Version of the running scheduler; always 1.");
    let version = IntGaugeVec::new(opts, &labels.map(|(name, _)| name))?;
    version
        .with_label_values(&labels.map(|(_, value)| value))
        .set(1);
    registry.register(Box::new(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_machines_ends_up_under_other() {
        let metrics = Metrics::new(PerHost::Not).unwrap();
        for n in 0..1000 {
            metrics.announced(
                &Host {
                    os: format!("os{n}"),
                    ..Host::default()
                },
                true,
            );
        }
        let text = runtime::metrics::text(metrics.registry()).unwrap();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("dragonfly_scheduler_announce_host_total{"));
        assert_eq!(lines.count(), HOST_KINDS_MAX + 1);
    }
}
