//! Telling the schedulers that this host is there, how it fares, and when it leaves.
//!
//! Every scheduler that answers hears of the host when the daemon starts serving, at every interval, and whenever it
//! comes back after a loss: it may have been restarted and know nobody. Right after the start a second announcement
//! follows, since only then there are rates to report.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{AnnounceHostRequest, DeleteHostRequest};
use futures::future::join_all;
use runtime::shutdown::Shutdown;
use tokio::time::Instant;
use tonic::{Request, Status};
use tracing::{debug, warn};

use crate::dial;
use crate::host::HostMonitor;
use crate::identity::Identity;
use crate::schedulers::{SchedulerHandle, Schedulers};

/// How long one announcement may take; a scheduler only notes it.
const ANNOUNCE_MAX: Duration = Duration::from_secs(5);

/// How long leaving may take in all: the process is about to end.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// When the second announcement follows the first.
const FIRST_RATES_AFTER: Duration = Duration::from_secs(2);

/// How soon a scheduler that refused an announcement is told again.
const REFUSED_RETRY: Duration = Duration::from_secs(15);

/// Announces this host.
#[derive(Debug)]
pub struct Announcer {
    identity: Arc<Identity>,
    monitor: Arc<HostMonitor>,
    schedulers: Arc<Schedulers>,
    interval: Duration,
}

/// Some schedulers were not told that this host leaves.
#[derive(Debug, thiserror::Error)]
#[error("not told that this host leaves: {}; they find out when its announcements stop", .failed.join(", "))]
pub struct LeaveError {
    /// Address and reason of each.
    failed: Vec<String>,
}

/// What a scheduler was last told.
#[derive(Debug, Clone, Copy)]
struct Told {
    generation: u64,
    next: Instant,
}

impl Announcer {
    /// Announces the figures of `monitor` every `interval`.
    pub fn new(
        identity: Arc<Identity>,
        monitor: Arc<HostMonitor>,
        schedulers: Arc<Schedulers>,
        interval: Duration,
    ) -> Self {
        Self {
            identity,
            monitor,
            schedulers,
            interval,
        }
    }

    /// Announces until `shutdown` begins. Leaving is a step of its own: [`Announcer::leave`].
    pub async fn run(&self, shutdown: &Shutdown) {
        let mut told: HashMap<Arc<str>, Told> = HashMap::new();
        let mut changes = self.schedulers.changes();
        loop {
            changes.borrow_and_update();
            let usable = self.schedulers.all();
            told.retain(|addr, _| usable.iter().any(|scheduler| scheduler.addr == *addr));
            let due = usable
                .into_iter()
                .filter(|scheduler| is_due(told.get(&scheduler.addr), scheduler))
                .collect();
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                results = self.announce(due) => self.note(&mut told, results),
            }
            let next = told.values().map(|told| told.next).min();
            let next = next.unwrap_or_else(|| Instant::now() + self.interval);
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Tells every scheduler that answers that this host is gone, within 2 s.
    ///
    /// # Errors
    /// [`LeaveError`]: those that were not told; they find out by their own means.
    pub async fn leave(&self) -> Result<(), LeaveError> {
        let calls = self
            .schedulers
            .all()
            .into_iter()
            .map(|scheduler| async move {
                let request = DeleteHostRequest {
                    host_id: self.identity.host_id.to_string(),
                };
                let mut client = SchedulerClient::new(scheduler.channel);
                let call = client.delete_host(request);
                let reason = match tokio::time::timeout(LEAVE_MAX, call).await {
                    Ok(Ok(_)) => return None,
                    Ok(Err(status)) => dial::reason(&status),
                    Err(_) => format!("no answer within {} s", LEAVE_MAX.as_secs()),
                };
                Some(format!("{}: {reason}", scheduler.addr))
            });
        let failed: Vec<String> = join_all(calls).await.into_iter().flatten().collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(LeaveError { failed })
        }
    }

    async fn announce(
        &self,
        due: Vec<SchedulerHandle>,
    ) -> Vec<(SchedulerHandle, Result<(), Status>)> {
        if due.is_empty() {
            return Vec::new();
        }
        let monitor = self.monitor.clone();
        let Ok(host) = tokio::task::spawn_blocking(move || monitor.announcement()).await else {
            return Vec::new();
        };
        let message = AnnounceHostRequest {
            host: Some(host),
            interval: self.interval.try_into().ok(),
        };
        join_all(due.into_iter().map(|scheduler| {
            let mut request = Request::new(message.clone());
            request.set_timeout(ANNOUNCE_MAX);
            async move {
                let mut client = SchedulerClient::new(scheduler.channel.clone());
                let call = tokio::time::timeout(ANNOUNCE_MAX, client.announce_host(request)).await;
                let result = call.unwrap_or_else(|_| {
                    Err(Status::deadline_exceeded("no answer to AnnounceHost"))
                });
                (scheduler, result.map(drop))
            }
        }))
        .await
    }

    fn note(
        &self,
        told: &mut HashMap<Arc<str>, Told>,
        results: Vec<(SchedulerHandle, Result<(), Status>)>,
    ) {
        for (scheduler, result) in results {
            let is_first = told
                .get(&scheduler.addr)
                .is_none_or(|told| told.generation != scheduler.generation);
            let pause = match result {
                Ok(()) if is_first => FIRST_RATES_AFTER.min(self.interval),
                Ok(()) => self.interval,
                Err(status) => {
                    warn!(scheduler = %scheduler.addr, error = %dial::reason(&status), "this host could not be announced");
                    if dial::is_silence(&status) {
                        self.schedulers.report_failure(&scheduler.addr);
                    }
                    REFUSED_RETRY.min(self.interval)
                }
            };
            debug!(scheduler = %scheduler.addr, generation = scheduler.generation, "host announced");
            let next = Instant::now() + pause;
            told.insert(
                scheduler.addr,
                Told {
                    generation: scheduler.generation,
                    next,
                },
            );
        }
    }
}

fn is_due(told: Option<&Told>, scheduler: &SchedulerHandle) -> bool {
    told.is_none_or(|told| told.generation != scheduler.generation || told.next <= Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Dialer;
    use crate::host::HostOptions;
    use crate::identity::Ports;
    use crate::schedulers::Member;
    use crate::testing::{DEADLINE, Heard, TestScheduler};
    use protocol::HostRole;

    struct Fixture {
        announcer: Arc<Announcer>,
        schedulers: Arc<Schedulers>,
        shutdown: Shutdown,
    }

    fn fixture(interval: Duration) -> Fixture {
        let shutdown = Shutdown::new();
        let ports = Ports {
            upload: 4000,
            piece_tcp: 4005,
            piece_quic: 4006,
            proxy: 4001,
        };
        let ip = [127, 0, 0, 1].into();
        let identity = Arc::new(Identity::new(ip, "host", HostRole::Normal, ports));
        let options = HostOptions {
            idc: None,
            location: None,
            scheduler_cluster_id: 0,
            disable_shared: false,
            host_type: 0,
            bandwidth_limit_bits: 1_000_000,
            storage_dir: std::env::temp_dir(),
        };
        let monitor = Arc::new(HostMonitor::new(identity.clone(), options));
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        let announcer = Arc::new(Announcer::new(
            identity,
            monitor,
            schedulers.clone(),
            interval,
        ));
        let running = announcer.clone();
        let part = shutdown.clone();
        shutdown.spawn("announcer", async move { running.run(&part).await });
        Fixture {
            announcer,
            schedulers,
            shutdown,
        }
    }

    fn member(scheduler: &TestScheduler) -> Member {
        let addr = scheduler.addr();
        Member {
            name: addr.to_string(),
            addr,
            id: 0,
            serving: true,
        }
    }

    fn announced(heard: Heard) -> AnnounceHostRequest {
        match heard {
            Heard::AnnounceHost(request) => *request,
            other => panic!("expected an announcement, heard {other:?}"),
        }
    }

    #[tokio::test]
    async fn every_scheduler_hears_of_the_host_again_and_again_and_of_its_leaving() {
        let fixture = fixture(Duration::from_millis(50));
        let mut one = TestScheduler::start().await;
        let mut two = TestScheduler::start().await;
        fixture
            .schedulers
            .set_members(vec![member(&one), member(&two)]);
        for scheduler in [&mut one, &mut two] {
            for _ in 0..3 {
                let request = announced(scheduler.hears().await);
                assert_eq!(request.host.unwrap().id, "127.0.0.1-host");
                assert_eq!(request.interval.unwrap().nanos, 50_000_000);
            }
        }
        assert!(fixture.shutdown.drain(DEADLINE).await.aborted.is_empty());
        while one.try_hears().is_some() {}
        fixture.announcer.leave().await.unwrap();
        assert!(
            matches!(one.hears().await, Heard::DeleteHost(request) if request.host_id == "127.0.0.1-host")
        );
    }

    #[tokio::test]
    async fn a_scheduler_that_comes_back_is_told_at_once() {
        let fixture = fixture(Duration::from_secs(3600));
        let mut one = TestScheduler::start().await;
        let addr = one.addr();
        fixture.schedulers.set_members(vec![member(&one)]);
        announced(one.hears().await);
        one.stop().await;
        let mut one = TestScheduler::start_at(addr).await;
        announced(one.hears().await);
    }

    #[tokio::test]
    async fn a_scheduler_that_joins_later_is_told_at_once() {
        let fixture = fixture(Duration::from_secs(3600));
        let one = TestScheduler::start().await;
        fixture.schedulers.set_members(vec![member(&one)]);
        let mut two = TestScheduler::start().await;
        fixture
            .schedulers
            .set_members(vec![member(&one), member(&two)]);
        announced(two.hears().await);
    }

    #[tokio::test]
    async fn leaving_without_schedulers_takes_no_time() {
        let fixture = fixture(Duration::from_secs(3600));
        let dead = Member {
            name: "dead".into(),
            addr: "127.0.0.1:1".parse().unwrap(),
            id: 0,
            serving: true,
        };
        fixture.schedulers.set_members(vec![dead]);
        let begin = Instant::now();
        let _ = fixture.announcer.leave().await;
        assert!(begin.elapsed() <= LEAVE_MAX + Duration::from_secs(1));
    }
}
