//! The manager as a source: `ListSchedulers`, read as Dragonfly v2 reads it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dragonfly_api::manager::v2::manager_client::ManagerClient;
use dragonfly_api::manager::v2::{ListSchedulersRequest, Scheduler, SourceType};
use futures::future::join_all;
use protocol::HostRole;
use tonic::Request;
use tonic::transport::Channel;

use super::{DynconfigError, Listing};
use crate::dial::{self, Dialer, Health};
use crate::schedulers::Member;

/// How long the manager may take to answer.
const LIST_MAX: Duration = Duration::from_secs(5);

/// Largest answer that is read: schedulers carry their cluster and seed peers.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// The manager, and what it wants to know of us.
#[derive(Debug)]
pub struct ManagerSource {
    addr: String,
    channel: Channel,
    role: HostRole,
    request: ListSchedulersRequest,
    /// Connects to the schedulers for their health.
    dialer: Dialer,
}

/// What ListSchedulers is asked with.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Seed peers have a block list of their own.
    pub role: HostRole,
    /// `host.hostname`.
    pub hostname: String,
    /// `host.ip`.
    pub ip: IpAddr,
    /// `host.idc`.
    pub idc: Option<String>,
    /// `host.location`.
    pub location: Option<String>,
    /// `host.schedulerClusterID`; 0 lets the manager choose.
    pub scheduler_cluster_id: u64,
}

impl ManagerSource {
    /// The manager at `addr`. `manager` connects to it, `schedulers` to those that it names.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(
        addr: &str,
        asker: Asker,
        manager: &Dialer,
        schedulers: Dialer,
    ) -> Result<Self, DynconfigError> {
        let source_type = match asker.role {
            HostRole::Normal => SourceType::PeerSource,
            HostRole::Seed => SourceType::SeedPeerSource,
        };
        Ok(Self {
            addr: addr.to_owned(),
            channel: manager.lazy_url(addr)?,
            role: asker.role,
            request: ListSchedulersRequest {
                source_type: source_type.into(),
                hostname: asker.hostname,
                ip: asker.ip.to_string(),
                idc: asker.idc,
                location: asker.location,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                commit: crate::GIT_COMMIT.to_owned(),
                scheduler_cluster_id: asker.scheduler_cluster_id,
            },
            dialer: schedulers,
        })
    }

    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) async fn list(&self) -> Result<Listing, DynconfigError> {
        let mut client =
            ManagerClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LEN_MAX);
        let mut request = Request::new(self.request.clone());
        request.set_timeout(LIST_MAX);
        let silent = |reason| DynconfigError::Silent {
            addr: self.addr.clone(),
            reason,
        };
        let answer = tokio::time::timeout(LIST_MAX, client.list_schedulers(request)).await;
        let schedulers = match answer {
            Err(_) => return Err(silent(format!("no answer within {} s", LIST_MAX.as_secs()))),
            Ok(Err(status)) if dial::is_silence(&status) => {
                return Err(silent(dial::reason(&status)));
            }
            Ok(Err(status)) => {
                return Err(DynconfigError::Refused {
                    addr: self.addr.clone(),
                    reason: dial::reason(&status),
                });
            }
            Ok(Ok(answer)) => answer.into_inner().schedulers,
        };
        Ok(self.choose(schedulers).await)
    }

    /// The cluster of the first scheduler that serves (else of the first), with its block list.
    async fn choose(&self, schedulers: Vec<Scheduler>) -> Listing {
        let listed: Vec<(Scheduler, SocketAddr)> = schedulers
            .into_iter()
            .filter_map(|scheduler| address(&scheduler).map(|addr| (scheduler, addr)))
            .collect();
        let checks = listed
            .iter()
            .map(|(_, addr)| dial::health(self.dialer.lazy(*addr)));
        let serving: Vec<bool> = join_all(checks)
            .await
            .into_iter()
            .map(|health| matches!(health, Health::Serving))
            .collect();
        let first = serving.iter().position(|serving| *serving).unwrap_or(0);
        let Some((leader, _)) = listed.get(first) else {
            return Listing::default();
        };
        let cluster_id = leader.scheduler_cluster_id;
        let block_list = leader
            .scheduler_cluster
            .as_ref()
            .map(|cluster| match self.role {
                HostRole::Normal => cluster.client_config.clone(),
                HostRole::Seed => cluster.seed_client_config.clone(),
            });
        let members = listed
            .iter()
            .zip(serving)
            .filter(|((scheduler, _), _)| scheduler.scheduler_cluster_id == cluster_id)
            .map(|((scheduler, addr), serving)| member(scheduler, *addr, serving))
            .collect();
        Listing {
            members,
            block_list: block_list.unwrap_or_default(),
        }
    }
}

/// `None` for an address that is none: such a scheduler is skipped, as in v2.
fn address(scheduler: &Scheduler) -> Option<SocketAddr> {
    let ip: IpAddr = scheduler.ip.parse().ok()?;
    let port = u16::try_from(scheduler.port)
        .ok()
        .filter(|port| *port > 0)?;
    Some(SocketAddr::new(ip, port))
}

fn member(scheduler: &Scheduler, addr: SocketAddr, serving: bool) -> Member {
    let name = if scheduler.hostname.is_empty() {
        addr.to_string()
    } else {
        scheduler.hostname.clone()
    };
    Member {
        name,
        addr,
        id: scheduler.id,
        serving,
    }
}
