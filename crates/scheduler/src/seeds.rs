//! Seed peers: which of them can be asked, and asking them (scheduler sheet, section 2.9).
//!
//! A seed is known by its announcement. It is looked at as soon as it announces itself, and every 30 s; only one that says
//! it serves is asked. Asking is a `DfdaemonUpload/DownloadTask` call that lasts as long as the download; the scheduler
//! reads it only to learn how it ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::common::v2::Download;
use dragonfly_api::dfdaemon::v2::DownloadTaskRequest;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use futures::StreamExt;
use parking_lot::Mutex;
use protocol::{HostId, HostRole};
use runtime::grpc::{ClientOptions, channel, is_serving};
use runtime::shutdown::Shutdown;
use runtime::tls::TlsMaterial;
use scheduling::{Event, SourceFailure, TriggerFailure};
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::brain::{Brain, TriggerOrder};

/// How often all seeds are looked at.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// How long one may take to answer.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Seeds that are looked at together.
const PROBES_AT_ONCE: usize = 64;
/// How long connecting to a seed may take: less than the time it has to register.
const CONNECT_MAX: Duration = Duration::from_millis(1500);
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
    options: ClientOptions,
    /// Open connections; entries of seeds that are no longer known are dropped with each look.
    channels: Mutex<HashMap<SocketAddr, Channel>>,
    calls: Arc<Semaphore>,
}

/// A seed host to be looked at.
struct Candidate {
    id: HostId,
    address: SocketAddr,
}

impl Seeds {
    pub(crate) fn new(brain: Arc<Brain>, probe: Arc<Probe>, tls: Option<TlsMaterial>) -> Self {
        // The call lasts as long as the download; what bounds it is written beside each wait.
        let options = ClientOptions {
            connect_timeout: CONNECT_MAX,
            request_timeout: None,
            tls,
            ..ClientOptions::default()
        };
        Self {
            brain,
            probe,
            options,
            channels: Mutex::default(),
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
        self.channels
            .lock()
            .retain(|address, _| candidates.iter().any(|seed| seed.address == *address));
        let probes = futures::stream::iter(candidates).map(|seed| async move {
            let serves = match self.channel(seed.address) {
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
                let ip = host.data.ip.parse().ok()?;
                let port = u16::try_from(host.data.port).ok()?;
                Some(Candidate {
                    id: host.id.clone(),
                    address: SocketAddr::new(ip, port),
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
        let address = order.address().map(SocketAddr::from);
        let channel = address
            .and_then(|address| self.channel(address))
            .ok_or(TriggerFailure::Seed)?;
        let request = DownloadTaskRequest {
            download: Some(order_for_seed(&order.order)),
        };
        debug!(%task_id, %host_id, "seed peer asked");
        let mut client = DfdaemonUploadClient::new(channel)
            .max_decoding_message_size(runtime::grpc::MESSAGE_LEN_MAX);
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
            failure_of(&status)
        })
    }

    fn channel(&self, address: SocketAddr) -> Option<Channel> {
        let mut channels = self.channels.lock();
        if let Some(open) = channels.get(&address) {
            return Some(open.clone());
        }
        let opened = channel(&address.to_string(), &self.options);
        match opened {
            Ok(opened) => {
                channels.insert(address, opened.clone());
                Some(opened)
            }
            Err(error) => {
                warn!(%address, %error, "seed peer cannot be connected");
                None
            }
        }
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

/// What a daemon puts into the details of a status when the origin failed it (daemon sheet, section 6.3).
#[derive(Deserialize)]
struct OriginDetails {
    message: String,
    status_code: Option<u16>,
}

fn failure_of(status: &Status) -> TriggerFailure {
    let details = serde_json::from_slice::<OriginDetails>(status.details());
    match details {
        Ok(details) if status.code() == Code::Internal => TriggerFailure::Origin(SourceFailure {
            status: details.status_code,
            message: details.message,
        }),
        _ => TriggerFailure::Seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origins_failure_is_read_from_the_details() {
        let json = br#"{"message":"gone","header":{"a":"b"},"status_code":404}"#;
        let status = Status::with_details(Code::Internal, "x", json.to_vec().into());
        let failure = SourceFailure {
            status: Some(404),
            message: "gone".to_owned(),
        };
        assert_eq!(failure_of(&status), TriggerFailure::Origin(failure));
        assert_eq!(
            failure_of(&Status::internal("disk full")),
            TriggerFailure::Seed
        );
    }

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
