//! The dynamic configuration: which schedulers there are, and what may not be downloaded.
//!
//! It comes from the manager (`ListSchedulers`), or without one from a local file, and is asked for again and again. What
//! was good last is kept, also across a restart: it is stored under the data directory, so that a daemon starts while its
//! manager is away. Only a first start without an answer and without a stored configuration fails.
//!
//! Whether the listed schedulers answer is watched by [`crate::schedulers`]; here they are only asked once per listing, to
//! find the cluster that counts: that of the first one that serves.

mod local;
mod manager;
mod stored;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use runtime::config::ConfigError;
use runtime::grpc::DialError;
use runtime::shutdown::Shutdown;
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::blocklist::BlockList;
use crate::schedulers::{Member, Schedulers};

pub use local::LocalSource;
pub use manager::{Asker, ManagerSource};

/// How long the first configuration is tried for when none is stored.
const START_MAX: Duration = Duration::from_secs(10);

/// How long the first attempt may take when one is stored.
const START_MAX_WITH_STORED: Duration = Duration::from_secs(3);

/// First pause after a failed refresh; doubled up to the refresh interval.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Where the configuration comes from.
#[derive(Debug)]
pub enum Source {
    /// The manager.
    Manager(Box<ManagerSource>),
    /// A local file.
    File(LocalSource),
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DynconfigError {
    /// The manager's address is not usable.
    #[error("manager.addr: {0}")]
    Address(#[from] DialError),
    /// The manager did not answer.
    #[error(
        "manager {addr} does not answer: {reason}: check manager.addr and that the manager runs"
    )]
    Silent {
        /// Its address.
        addr: String,
        /// What happened.
        reason: String,
    },
    /// The manager answered with an error.
    #[error(
        "manager {addr} gives no schedulers: {reason}: check that a scheduler of this cluster is registered there"
    )]
    Refused {
        /// Its address.
        addr: String,
        /// What it said.
        reason: String,
    },
    /// The local file cannot be used.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// A scheduler's name has no address.
    #[error(
        "scheduler {addr} cannot be resolved: {reason}: check scheduler.addr in the dynconfig file and DNS"
    )]
    Resolve {
        /// As written.
        addr: String,
        /// What happened.
        reason: String,
    },
}

impl DynconfigError {
    /// Whether the operator must mend something, whatever was stored.
    fn is_mistake(&self) -> bool {
        matches!(self, Self::Address(_) | Self::File(_))
    }

    /// Whether the next refresh may well succeed: the source is there but has no scheduler yet.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Resolve { .. })
    }
}

/// One listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Listing {
    members: Vec<Member>,
    /// The block list as JSON; empty for none.
    block_list: Vec<u8>,
}

/// Keeps the configuration up to date.
#[derive(Debug)]
pub struct Dynconfig {
    source: Source,
    refresh_interval: Duration,
    stored: stored::Place,
    schedulers: Arc<Schedulers>,
    block_list: ArcSwap<BlockList>,
}

impl Dynconfig {
    /// Gets the first configuration: from its source, else the stored one. Takes at most about 10 s.
    ///
    /// # Errors
    /// Neither is to be had, or the address or the file is wrong.
    pub async fn start(
        source: Source,
        refresh_interval: Duration,
        data_dir: &Path,
        schedulers: Arc<Schedulers>,
    ) -> Result<Arc<Self>, DynconfigError> {
        let stored = stored::Place::new(data_dir, source.name());
        let dynconfig = Self {
            source,
            refresh_interval,
            stored,
            schedulers,
            block_list: ArcSwap::default(),
        };
        dynconfig.first().await?;
        Ok(Arc::new(dynconfig))
    }

    /// Where it comes from: the manager's address or the path of the file.
    pub fn source(&self) -> String {
        self.source.name()
    }

    /// The way to the manager, if there is one.
    pub fn manager(&self) -> Option<Channel> {
        match &self.source {
            Source::Manager(manager) => Some(manager.channel()),
            Source::File(_) => None,
        }
    }

    /// What may not be downloaded at present.
    pub fn block_list(&self) -> arc_swap::Guard<Arc<BlockList>> {
        self.block_list.load()
    }

    /// Refreshes at every interval, and sooner after a failure, until `shutdown` begins.
    pub async fn run(&self, shutdown: &Shutdown) {
        let mut pause = RETRY_MIN;
        if !self.schedulers.is_empty() {
            pause = self.refresh_interval;
        }
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = tokio::time::sleep(varied(pause)) => {}
            }
            let refreshed = tokio::select! {
                biased;
                () = shutdown.begun() => return,
                refreshed = self.refresh() => refreshed,
            };
            pause = match refreshed {
                Ok(count) if count > 0 => self.refresh_interval,
                Ok(_) => next_pause(pause, self.refresh_interval),
                Err(error) => {
                    warn!(%error, "dynamic configuration not refreshed, the last one stays in force");
                    next_pause(pause, self.refresh_interval)
                }
            };
        }
    }

    async fn first(&self) -> Result<(), DynconfigError> {
        let stored = self.stored.read();
        let deadline = Instant::now()
            + if stored.is_some() {
                START_MAX_WITH_STORED
            } else {
                START_MAX
            };
        let mut pause = Duration::from_millis(100);
        let error = loop {
            let error = match tokio::time::timeout_at(deadline, self.refresh()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => self.source.too_slow(),
            };
            // Only a manager that is about to start is worth waiting for.
            let is_silent = matches!(error, DynconfigError::Silent { .. });
            if !is_silent || stored.is_some() || Instant::now() + pause >= deadline {
                break error;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        match stored {
            Some(stored) if !error.is_mistake() => {
                warn!(%error, "starting with the stored dynamic configuration");
                self.apply(&stored);
                Ok(())
            }
            None if error.is_passing() => {
                warn!(%error, "starting without schedulers, asking again");
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// One refresh; gives the number of schedulers.
    async fn refresh(&self) -> Result<usize, DynconfigError> {
        let listing = match &self.source {
            Source::Manager(manager) => manager.list().await?,
            Source::File(file) => file.list().await?,
        };
        self.apply(&listing);
        let count = listing.members.len();
        if count > 0 {
            let stored = self.stored.clone();
            // The record is synced to disk, which may take long; a failure is reported there.
            let _ = tokio::task::spawn_blocking(move || stored.write(&listing)).await;
        }
        Ok(count)
    }

    fn apply(&self, listing: &Listing) {
        // A listing without schedulers tells nothing that is worth losing the known ones for.
        if !listing.members.is_empty() || self.schedulers.is_empty() {
            self.schedulers.set_members(listing.members.clone());
        }
        let block_list = BlockList::parse(&listing.block_list).unwrap_or_else(|error| {
            warn!(%error, "block list not used");
            BlockList::default()
        });
        self.block_list.store(Arc::new(block_list));
        info!(count = listing.members.len(), "schedulers listed");
    }
}

impl Source {
    /// Names the source in the stored record, so that another one's configuration is not taken for it.
    fn name(&self) -> String {
        match self {
            Self::Manager(manager) => manager.addr().to_owned(),
            Self::File(file) => file.name(),
        }
    }

    fn too_slow(&self) -> DynconfigError {
        let reason = "no answer in time".to_owned();
        match self {
            Self::Manager(manager) => DynconfigError::Silent {
                addr: manager.addr().to_owned(),
                reason,
            },
            Self::File(file) => DynconfigError::Resolve {
                addr: format!("in {}", file.name()),
                reason,
            },
        }
    }
}

fn next_pause(pause: Duration, most: Duration) -> Duration {
    if pause >= most {
        RETRY_MIN.min(most)
    } else {
        (pause * 2).min(most)
    }
}

/// Less up to a tenth, so that the daemons of a cluster do not ask in step.
fn varied(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests;
