//! The dynamic configuration: limits and priorities that change while the scheduler runs.
//!
//! It comes from the manager, or, without one, from a local file; it is read again at an interval. A source that is away or
//! wrong never fails a decision: what was read last stays in force, also over a restart, and before that the defaults.

mod local;
mod manager;
mod stored;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Download;
use parking_lot::RwLock;
use regex::Regex;
use runtime::shutdown::Shutdown;
use scheduling::{Event, Policy, Priority};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub(crate) use manager::ManagerSource;

use crate::brain::Brain;

/// Applications that are kept, URL rules of each, and length of a rule: a manager is trusted, but not with all memory.
const APPLICATIONS_MAX: usize = 10_000;
const URL_RULES_MAX: usize = 1000;
const REGEX_SIZE_MAX: usize = 1 << 20;

/// A dynamic configuration as it is written down: in the local file, by the manager, and in the stored copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) candidate_parent_limit: usize,
    pub(crate) filter_parent_limit: usize,
    pub(crate) applications: Vec<WrittenApplication>,
}

/// The priorities of one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenApplication {
    pub(crate) name: String,
    pub(crate) priority: i32,
    /// Regular expression and priority, the first that matches a URL counts.
    pub(crate) urls: Vec<(String, i32)>,
}

impl Default for Written {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            candidate_parent_limit: policy.candidate_parent_limit,
            filter_parent_limit: policy.filter_parent_limit,
            applications: Vec::new(),
        }
    }
}

/// A dynamic configuration, ready for use.
#[derive(Debug, Default)]
pub(crate) struct Dynconfig {
    applications: Vec<Application>,
}

#[derive(Debug)]
struct Application {
    name: String,
    priority: i32,
    urls: Vec<(Regex, i32)>,
}

impl Dynconfig {
    fn new(written: &Written) -> Self {
        let applications = written
            .applications
            .iter()
            .take(APPLICATIONS_MAX)
            .map(|application| Application {
                name: application.name.clone(),
                priority: application.priority,
                urls: application
                    .urls
                    .iter()
                    .take(URL_RULES_MAX)
                    .filter_map(|rule| compile(&application.name, rule))
                    .collect(),
            });
        Self {
            applications: applications.collect(),
        }
    }

    /// What the priority of a download comes to: its own unless it is LEVEL0, else that of its application and URL.
    pub(crate) fn effective_priority(&self, download: &Download) -> Priority {
        let level = match download.priority {
            0 => self.level_of(download).unwrap_or(0),
            own => own,
        };
        match level {
            1 => Priority::Forbidden,
            2 => Priority::PeersOnly,
            3 => Priority::OriginFirst,
            _ => Priority::SeedFirst,
        }
    }

    fn level_of(&self, download: &Download) -> Option<i32> {
        let name = download
            .application
            .as_deref()
            .filter(|name| !name.is_empty())?;
        let application = self
            .applications
            .iter()
            .find(|application| application.name == name)?;
        let rule = application
            .urls
            .iter()
            .find(|(regex, _)| regex.is_match(&download.url));
        Some(rule.map_or(application.priority, |(_, level)| *level))
    }
}

fn compile(application: &str, (text, level): &(String, i32)) -> Option<(Regex, i32)> {
    let regex = regex::RegexBuilder::new(text)
        .size_limit(REGEX_SIZE_MAX)
        .build();
    match regex {
        Ok(regex) => Some((regex, *level)),
        Err(error) => {
            warn!(application, regex = text, %error, "URL rule of a priority is left out");
            None
        }
    }
}

/// The configuration in force.
#[derive(Debug, Default)]
pub(crate) struct Current(RwLock<Arc<Dynconfig>>);

impl Current {
    pub(crate) fn current(&self) -> Arc<Dynconfig> {
        self.0.read().clone()
    }
}

/// Where a dynamic configuration comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The manager; the last good answer is kept under this folder.
    Manager {
        source: Box<ManagerSource>,
        data_dir: PathBuf,
    },
    /// A file.
    Local(PathBuf),
}

impl Source {
    async fn read(&self) -> Result<Written, String> {
        match self {
            Self::Manager { source, .. } => source.read().await,
            Self::Local(file) => local::read(file),
        }
    }
}

/// Keeps the configuration up to date.
pub(crate) struct Follower {
    pub(crate) source: Source,
    pub(crate) interval: Duration,
    pub(crate) brain: Arc<Brain>,
    pub(crate) current: Arc<Current>,
}

impl Follower {
    /// Reads at once, then at the interval, until the shutdown begins.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut in_force = None;
        if let Source::Manager { source, data_dir } = &self.source
            && let Some(written) = stored::read(data_dir, source.name())
        {
            info!("stored dynamic configuration in force until the manager answers");
            self.apply(&written);
            in_force = Some(written);
        }
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reachable = true;
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                _ = ticks.tick() => {}
            }
            let answer = tokio::select! {
                biased;
                () = shutdown.begun() => return,
                answer = self.source.read() => answer,
            };
            match answer {
                Ok(written) => {
                    reachable = true;
                    if in_force.as_ref() != Some(&written) {
                        self.apply(&written);
                        self.store(&written);
                        in_force = Some(written);
                    }
                }
                Err(error) => {
                    // Once is enough until it works again.
                    if std::mem::replace(&mut reachable, false) {
                        warn!(
                            error,
                            "dynamic configuration not read, the last one stays in force"
                        );
                    }
                }
            }
        }
    }

    fn apply(&self, written: &Written) {
        *self.current.0.write() = Arc::new(Dynconfig::new(written));
        self.brain.handle(Event::LimitsChanged {
            candidate_parent_limit: written.candidate_parent_limit,
            filter_parent_limit: written.filter_parent_limit,
        });
    }

    fn store(&self, written: &Written) {
        if let Source::Manager { source, data_dir } = &self.source {
            stored::write(data_dir, source.name(), written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts_and_an_own_level_wins() {
        let written = Written {
            applications: vec![WrittenApplication {
                name: "app".to_owned(),
                priority: 3,
                urls: vec![
                    ("blobs/".to_owned(), 1),
                    ("(".to_owned(), 2),
                    ("b".to_owned(), 2),
                ],
            }],
            ..Written::default()
        };
        let dynconfig = Dynconfig::new(&written);
        let level = |application: &str, url: &str, priority| {
            let application = Some(application.to_owned());
            dynconfig.effective_priority(&Download {
                application,
                url: url.to_owned(),
                priority,
                ..Default::default()
            })
        };
        assert_eq!(level("app", "https://x/blobs/1", 0), Priority::Forbidden);
        assert_eq!(level("app", "https://b/", 0), Priority::PeersOnly);
        assert_eq!(level("app", "https://x/", 0), Priority::OriginFirst);
        assert_eq!(level("other", "https://x/blobs/1", 0), Priority::SeedFirst);
        assert_eq!(level("app", "https://x/blobs/1", 6), Priority::SeedFirst);
    }
}
