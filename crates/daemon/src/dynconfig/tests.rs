use super::*;
use crate::blocklist::Subject;
use crate::dial::Dialer;
use crate::testing::{DEADLINE, TestManager, TestScheduler};
use dragonfly_api::manager::v2::{ListSchedulersResponse, Scheduler, SchedulerCluster, SourceType};
use protocol::HostRole;
use std::net::SocketAddr;

const BLOCKING: &[u8] = br#"{"block_list": {"task": {"download": {"tags": ["bad"]}}}}"#;

fn asker(role: HostRole) -> Asker {
    Asker {
        role,
        hostname: "host".into(),
        ip: [127, 0, 0, 1].into(),
        idc: Some("idc".into()),
        location: None,
        scheduler_cluster_id: 0,
    }
}

fn listed(addr: SocketAddr, id: u64, cluster: u64) -> Scheduler {
    Scheduler {
        id,
        hostname: format!("scheduler-{id}"),
        ip: addr.ip().to_string(),
        port: addr.port().into(),
        scheduler_cluster_id: cluster,
        scheduler_cluster: Some(SchedulerCluster {
            id: cluster,
            client_config: BLOCKING.to_vec(),
            seed_client_config: b"{}".to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    shutdown: Shutdown,
    schedulers: Arc<Schedulers>,
}

impl Fixture {
    fn new() -> Self {
        let shutdown = Shutdown::new();
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        Self {
            dir: tempfile::tempdir().unwrap(),
            shutdown,
            schedulers,
        }
    }

    /// The same data directory after a restart: nothing in memory is left.
    fn restarted(self) -> Self {
        let shutdown = Shutdown::new();
        Self {
            schedulers: Schedulers::new(Dialer::default(), &shutdown),
            shutdown,
            dir: self.dir,
        }
    }

    async fn with_manager(
        &self,
        url: &str,
        role: HostRole,
    ) -> Result<Arc<Dynconfig>, DynconfigError> {
        let source = ManagerSource::new(url, asker(role), &Dialer::default(), Dialer::default())?;
        self.start(Source::Manager(Box::new(source))).await
    }

    async fn with_file(&self, text: &str) -> Result<Arc<Dynconfig>, DynconfigError> {
        let file = self.dir.path().join("dynconfig.yaml");
        std::fs::write(&file, text).unwrap();
        self.start(Source::File(LocalSource::new(file, HostRole::Normal)))
            .await
    }

    async fn start(&self, source: Source) -> Result<Arc<Dynconfig>, DynconfigError> {
        let interval = Duration::from_millis(100);
        Dynconfig::start(source, interval, self.dir.path(), self.schedulers.clone()).await
    }

    fn addrs(&self) -> Vec<String> {
        self.schedulers
            .all()
            .iter()
            .map(|scheduler| scheduler.addr.to_string())
            .collect()
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let mut changes = self.schedulers.changes();
        let wait = async {
            while !what(self) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .expect("the pool reaches the state in time");
    }
}

fn blocks_bad(dynconfig: &Dynconfig) -> bool {
    let subject = Subject {
        url: "http://x/",
        application: None,
        tag: Some("bad"),
        priority: 0,
    };
    dynconfig.block_list().blocks_download(subject)
}

#[tokio::test]
async fn the_managers_answer_is_used_and_asked_for_as_v2_does() {
    let scheduler = TestScheduler::start().await;
    let dead = SocketAddr::from(([127, 0, 0, 1], 1));
    let foreign = TestScheduler::start().await;
    // The first that serves decides: the dead one in front of it does not, the one behind is of another cluster.
    let answer = ListSchedulersResponse {
        schedulers: vec![
            listed(dead, 1, 5),
            listed(scheduler.addr(), 2, 6),
            listed(foreign.addr(), 3, 5),
        ],
    };
    let manager = TestManager::start(Some(answer)).await;
    let fixture = Fixture::new();
    let dynconfig = fixture
        .with_manager(&manager.url(), HostRole::Normal)
        .await
        .unwrap();
    assert_eq!(fixture.addrs(), [scheduler.addr().to_string()]);
    assert!(blocks_bad(&dynconfig));
    let asked = &manager.asked()[0];
    assert_eq!(asked.source_type, SourceType::PeerSource as i32);
    assert_eq!(
        (
            asked.hostname.as_str(),
            asked.ip.as_str(),
            asked.idc.as_deref()
        ),
        ("host", "127.0.0.1", Some("idc"))
    );

    let seed = Fixture::new();
    let dynconfig = seed
        .with_manager(&manager.url(), HostRole::Seed)
        .await
        .unwrap();
    assert!(
        !blocks_bad(&dynconfig),
        "seed peers have a list of their own"
    );
    assert_eq!(
        manager.asked()[1].source_type,
        SourceType::SeedPeerSource as i32
    );
}

#[tokio::test]
async fn the_last_good_configuration_outlives_the_manager_and_a_restart() {
    let scheduler = TestScheduler::start().await;
    let answer = ListSchedulersResponse {
        schedulers: vec![listed(scheduler.addr(), 1, 1)],
    };
    let manager = TestManager::start(Some(answer)).await;
    let url = manager.url();
    let fixture = Fixture::new();
    fixture.with_manager(&url, HostRole::Normal).await.unwrap();
    manager.stop().await;

    let fixture = fixture.restarted();
    let dynconfig = fixture
        .with_manager(&url, HostRole::Normal)
        .await
        .expect("the stored one is used");
    assert_eq!(fixture.addrs(), [scheduler.addr().to_string()]);
    assert!(blocks_bad(&dynconfig), "the block list is stored too");

    let other = fixture.restarted();
    let foreign = other.with_manager("http://127.0.0.1:2", HostRole::Normal);
    let result = tokio::time::timeout(DEADLINE, foreign)
        .await
        .expect("bounded");
    assert!(
        matches!(result, Err(DynconfigError::Silent { .. })),
        "another manager's record is not used"
    );
}

#[tokio::test]
async fn a_manager_without_schedulers_is_asked_again() {
    let manager = TestManager::start(None).await;
    let fixture = Fixture::new();
    let dynconfig = fixture
        .with_manager(&manager.url(), HostRole::Normal)
        .await
        .expect("not fatal");
    let part = fixture.shutdown.clone();
    fixture
        .shutdown
        .spawn("dynconfig", async move { dynconfig.run(&part).await });
    let scheduler = TestScheduler::start().await;
    manager.answer_with(ListSchedulersResponse {
        schedulers: vec![listed(scheduler.addr(), 1, 1)],
    });
    fixture
        .until(|fixture| fixture.addrs() == [scheduler.addr().to_string()])
        .await;
    // An empty answer later does not take away what is known.
    let asked = manager.asked().len();
    manager.answer_with(ListSchedulersResponse::default());
    let again = async {
        while manager.asked().len() < asked + 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, again)
        .await
        .expect("asked again");
    assert_eq!(fixture.addrs(), [scheduler.addr().to_string()]);
    assert!(fixture.shutdown.drain(DEADLINE).await.aborted.is_empty());
}

#[tokio::test]
async fn a_local_file_names_schedulers_and_blocks() {
    let one = TestScheduler::start().await;
    let two = TestScheduler::start().await;
    let text = format!(
        "scheduler:\n  addrs: [\"{one}\", \"{two}\", \"{one}\"]\n\
         clientConfig:\n  blockList:\n    task:\n      download:\n        urls: []\n        tags: [bad]\n",
        one = one.addr(),
        two = two.addr()
    );
    let fixture = Fixture::new();
    let dynconfig = fixture.with_file(&text).await.unwrap();
    let mut expected = [one.addr(), two.addr()];
    expected.sort();
    let mut addrs: Vec<SocketAddr> = fixture
        .addrs()
        .iter()
        .map(|addr| addr.parse().unwrap())
        .collect();
    addrs.sort();
    assert_eq!(addrs, expected);
    assert!(blocks_bad(&dynconfig));
}

#[tokio::test]
async fn a_local_name_is_resolved() {
    let one = TestScheduler::start().await;
    let fixture = Fixture::new();
    fixture
        .with_file(&format!(
            "scheduler: {{addr: \"localhost:{}\"}}",
            one.addr().port()
        ))
        .await
        .unwrap();
    assert_eq!(fixture.addrs(), [one.addr().to_string()]);
}

#[tokio::test]
async fn a_mistake_in_the_local_file_is_told_with_its_line() {
    let error = Fixture::new()
        .with_file("scheduler:\n  addrs: [nonsense]\n")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(":2") && error.contains("scheduler.addrs[0]"),
        "{error}"
    );
}
