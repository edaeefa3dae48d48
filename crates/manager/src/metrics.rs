//! The manager's metrics, under Dragonfly v2's names.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use runtime::metrics::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// Distinct pairs of version and commit that get figures of their own. Both are free text from the network; whatever comes
/// after this many counts under `other`, so that nobody can fill the memory with labels.
const CLIENT_BUILDS_MAX: usize = 64;
/// Longest version or commit that is kept as a label.
const LABEL_LEN_MAX: usize = 64;

/// The registry of one manager and its counters.
pub(crate) struct Metrics {
    registry: Registry,
    search_total: IntCounterVec,
    search_failure_total: IntCounterVec,
    builds: Mutex<HashSet<(String, String)>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = runtime::metrics::registry();
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["version", "commit"])
                .expect("the name and labels are valid");
            registry
                .register(Box::new(counter.clone()))
                .expect("each name is registered once");
            counter
        };
        let search_total = counter(
            "dragonfly_manager_search_scheduler_cluster_total",
            "Grows with each ListSchedulers call, by the version and commit of the asking client.",
        );
        let search_failure_total = counter(
            "dragonfly_manager_search_scheduler_cluster_failure_total",
            "Grows when no cluster had a scheduler to offer; divide by dragonfly_manager_search_scheduler_cluster_total.",
        );
        register_version(&registry);
        Self {
            registry,
            search_total,
            search_failure_total,
            builds: Mutex::default(),
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Somebody with this build asks for schedulers.
    pub(crate) fn search(&self, version: &str, commit: &str) {
        let (version, commit) = self.labels(version, commit);
        self.search_total
            .with_label_values(&[version, commit])
            .inc();
    }

    /// ... and there was nothing to rank.
    pub(crate) fn search_failed(&self, version: &str, commit: &str) {
        let (version, commit) = self.labels(version, commit);
        self.search_failure_total
            .with_label_values(&[version, commit])
            .inc();
    }

    fn labels<'a>(&self, version: &'a str, commit: &'a str) -> (&'a str, &'a str) {
        const OTHER: (&str, &str) = ("other", "other");
        if version.len() > LABEL_LEN_MAX || commit.len() > LABEL_LEN_MAX {
            return OTHER;
        }
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        let build = (version.to_owned(), commit.to_owned());
        if builds.contains(&build) || (builds.len() < CLIENT_BUILDS_MAX && builds.insert(build)) {
            return (version, commit);
        }
        OTHER
    }
}

/// `dragonfly_manager_version`, always 1: its labels are the message. The labels that only Go has stay empty.
fn register_version(registry: &Registry) {
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
    let opts = Opts::new(
        "dragonfly_manager_version",
        "Version of the running manager; always 1.",
    );
    let version = IntGaugeVec::new(opts, &labels.map(|(name, _)| name))
        .expect("the name and labels are valid");
    version
        .with_label_values(&labels.map(|(_, value)| value))
        .set(1);
    registry
        .register(Box::new(version))
        .expect("each name is registered once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_builds_ends_up_under_other() {
        let metrics = Metrics::new();
        for build in 0..1000 {
            metrics.search(&format!("1.{build}"), "abc");
        }
        metrics.search("1.0", "abc");
        metrics.search_failed(&"x".repeat(65), "");
        let text = runtime::metrics::text(metrics.registry()).unwrap();
        let total = "dragonfly_manager_search_scheduler_cluster_total";
        assert!(
            text.contains(&format!("{total}{{commit=\"abc\",version=\"1.0\"}} 2\n")),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "{total}{{commit=\"other\",version=\"other\"}} 936\n"
            )),
            "{text}"
        );
        assert!(
            text.contains("_failure_total{commit=\"other\",version=\"other\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("dragonfly_manager_version{"), "{text}");
    }
}
