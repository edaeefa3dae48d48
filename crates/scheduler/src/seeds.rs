//! Seed peers: which of them can be asked, and asking them (scheduler sheet, section 2.9).
//!
//! A seed is known by its announcement. It is looked at as soon as it announces itself, and every 30 s; only one that says
//! it serves is asked. Asking is a `DfdaemonUpload/DownloadTask` call that lasts as long as the download; the scheduler
//! reads it only to learn how it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Download;
use dragonfly_api::dfdaemon::v2::DownloadTaskRequest;
use futures::StreamExt;
use protocol::{HostId, HostRole};
use runtime::grpc::is_serving;
use runtime::shutdown::Shutdown;
use scheduling::{Event, TriggerFailure};
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::Status;
use tracing::{debug, info, warn};

use crate::brain::{Brain, TriggerOrder};
use crate::daemons::{Daemons, address_of, origin_failure};

/// How often all seeds are looked at.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// How long one may take to answer.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Seeds that are looked at together.
const PROBES_AT_ONCE: usize = 64;
/// Calls to seeds at once. One more counts as failed, and a peer reads the origin.
const CALLS_MAX: usize = 4096;
/// A seed that says nothing for so long about a download that it was asked for is listened to no more.
const SILENCE_MAX: Duration = Duration::from_secs(30 * 60);

/// Asks for a look at the seeds out of turn.
#[derive(Debug, Default)]
pub(crate) struct Probe(Notify);

impl Probe {
    /// A seed announced itself.
    pub(crate) fn now(&self) {
        self.0.notify_one();
    }
}

/// The scheduler's side towards its seeds.
pub(crate) struct Seeds {
    brain: Arc<Brain>,
    probe: Arc<Probe>,
    /// Those to seeds that are no longer known are closed with each look.
    daemons: Arc<Daemons>,
    calls: Arc<Semaphore>,
}

/// A seed host to be looked at.
struct Candidate {
    id: HostId,
    address: SocketAddr,
}

impl Seeds {
    pub(crate) fn new(brain: Arc<Brain>, probe: Arc<Probe>, daemons: Arc<Daemons>) -> Self {
        Self {
            brain,
            probe,
            daemons,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }

    /// Looks at the seeds, at the interval and out of turn, until the shutdown begins.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        let mut available: Vec<HostId> = Vec::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.probe.0.notified() => {}
            }
            let now = self.look().await;
            if now != available {
                info!(count = now.len(), "seed peers available");
                available.clone_from(&now);
            }
            self.brain.handle(Event::SeedsAvailable(now));
        }
    }

    /// The seeds that say that they serve.
    async fn look(&self) -> Vec<HostId> {
        let candidates = self.candidates();
        self.daemons
            .retain(|address| candidates.iter().any(|seed| seed.address == *address));
        let probes = futures::stream::iter(candidates).map(|seed| async move {
            let serves = match self.daemons.channel(seed.address) {
                Some(channel) => is_serving(channel, "", PROBE_MAX).await,
                None => false,
            };
            if !serves {
                debug!(host_id = %seed.id, address = %seed.address, "seed peer does not serve");
            }
            serves.then_some(seed.id)
        });
        let mut available: Vec<HostId> = probes
            .buffer_unordered(PROBES_AT_ONCE)
            .filter_map(async |id| id)
            .collect()
            .await;
        available.sort();
        available
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.brain.read(|core| {
            let seeds = core
                .hosts()
                .filter(|host| host.role == HostRole::Seed && !host.disable_shared);
            let candidates = seeds.filter_map(|host| {
                Some(Candidate {
                    id: host.id.clone(),
                    address: address_of(&host.data)?,
                })
            });
            candidates.collect()
        })
    }

    /// Asks seeds as the core orders, until the shutdown begins. Each call is a task of its own.
    pub(crate) async fn trigger(
        self: Arc<Self>,
        mut orders: mpsc::Receiver<TriggerOrder>,
        shutdown: Shutdown,
    ) {
        while let Some(order) = orders.recv().await {
            let Ok(permit) = self.calls.clone().try_acquire_owned() else {
                self.ended(order, Err(TriggerFailure::Seed));
                continue;
            };
            let seeds = self.clone();
            shutdown.spawn_until_begun("seed trigger", async move {
                let outcome = seeds.ask(&order).await;
                seeds.ended(order, outcome);
                drop(permit);
            });
        }
    }

    fn ended(&self, order: TriggerOrder, outcome: Result<(), TriggerFailure>) {
        let TriggerOrder {
            task_id, host_id, ..
        } = order;
        self.brain.handle(Event::SeedTriggerEnded {
            task_id,
            host_id,
            outcome,
        });
    }

    async fn ask(&self, order: &TriggerOrder) -> Result<(), TriggerFailure> {
        let (task_id, host_id) = (&order.task_id, &order.host_id);
        let mut client = self
            .daemons
            .upload(&order.host)
            .ok_or(TriggerFailure::Seed)?;
        let request = DownloadTaskRequest {
            download: Some(order_for_seed(&order.order)),
        };
        debug!(%task_id, %host_id, "seed peer asked");
        let outcome = async {
            let mut progress = client.download_task(request).await?.into_inner();
            loop {
                match tokio::time::timeout(SILENCE_MAX, progress.message()).await {
                    Ok(Ok(Some(_))) => {}
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Err(status)) => return Err(status),
                    Err(_) => return Err(Status::deadline_exceeded("the seed peer fell silent")),
                }
            }
        };
        outcome.await.map_err(|status: Status| {
            warn!(%task_id, %host_id, code = ?status.code(), error = status.message(), "seed peer did not fetch the task");
            origin_failure(&status).map_or(TriggerFailure::Seed, TriggerFailure::Origin)
        })
    }
}

/// The order as a seed gets it: it is to read the origin itself, keep what it reads, and not send it here. That the peer
/// must not read the origin does not bind the seed.
fn order_for_seed(order: &Download) -> Download {
    Download {
        need_back_to_source: true,
        disable_back_to_source: false,
        output_path: None,
        need_piece_content: false,
        ..order.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_told_to_read_the_origin() {
        let order = Download {
            output_path: Some("/x".to_owned()),
            disable_back_to_source: true,
            url: "https://x/".to_owned(),
            ..Download::default()
        };
        let expected = Download {
            need_back_to_source: true,
            url: "https://x/".to_owned(),
            ..Download::default()
        };
        assert_eq!(order_for_seed(&order), expected);
    }
}
