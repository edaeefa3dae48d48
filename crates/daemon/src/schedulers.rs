//! The schedulers that this daemon may talk to, and which of them owns a task.
//!
//! Every daemon of a cluster must send a task to the same scheduler, else its peers do not find each other. So the
//! owner comes from the consistent-hash ring of Dragonfly v2, keyed by hostname (`ip:port` where there is none), built
//! over the schedulers that answer: taking one out of the ring hands its tasks to the next node, for every daemon alike.
//!
//! One task per member watches its health: it hears of a lost connection at once, notices a frozen process within
//! seconds, and asks a silent one again with growing pauses. A call that got no answer is reported with
//! [`Schedulers::report_failure`], which takes the scheduler out of the ring until it answers. Whoever wants to know
//! follows [`Schedulers::changes`].
//!
//! Not here: where the list comes from (`dynconfig`), and what is said to a scheduler (`announce`, `engine`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use protocol::{HashRing, TaskId};
use runtime::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::dial::{self, Dialer, Health};

/// Members beyond this many are ignored; a cluster has a handful, and each costs 512 places on the ring.
const MEMBERS_MAX: usize = 256;

/// How often a scheduler that answers is asked whether it still does: it may be frozen with its connection open.
const SERVING_INTERVAL: Duration = Duration::from_secs(15);

/// First and longest pause before a silent scheduler is asked again.
const DOWN_PAUSE_MIN: Duration = Duration::from_millis(250);
const DOWN_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A connection to one scheduler, and the address by which to complain about it.
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    /// `ip:port`; the key for [`Schedulers::report_failure`].
    pub addr: Arc<str>,
    /// Shared by everybody who talks to this scheduler; connects at the first call, multiplexes all of them.
    pub channel: Channel,
    /// Grows each time that this scheduler comes back, as it may then have forgotten this host.
    pub generation: u64,
}

/// A scheduler as the manager or the local dynconfig names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The key on the ring: the hostname, or `ip:port` when the hostname is empty.
    pub name: String,
    /// Where its gRPC service listens.
    pub addr: SocketAddr,
    /// The manager's id of it; of several members with one name the highest id counts. 0 in local mode.
    pub id: u64,
    /// Whether it answered when it was listed; one that did not is used as soon as it does.
    pub serving: bool,
}

/// The pool: members, their health, and the ring over those that answer.
pub struct Schedulers {
    dialer: Dialer,
    shutdown: Shutdown,
    /// Held for short, never while awaiting; `usable` is rebuilt from it under the same lock.
    entries: Mutex<BTreeMap<SocketAddr, Entry>>,
    usable: ArcSwap<Usable>,
    /// Counts the changes of the usable set.
    changed: watch::Sender<u64>,
}

struct Entry {
    member: Member,
    handle: SchedulerHandle,
    /// Notified when the channel's connection ends.
    lost: Arc<Notify>,
    usable: bool,
    /// Tells the watcher that a call got no answer.
    suspected: Arc<Notify>,
    _watcher: AbortOnDropHandle<Option<()>>,
}

/// The ring and what its nodes stand for.
struct Usable {
    ring: HashRing,
    by_name: BTreeMap<String, SchedulerHandle>,
}

impl Schedulers {
    /// An empty pool that connects as `dialer` says, and stops watching when `shutdown` begins.
    pub fn new(dialer: Dialer, shutdown: &Shutdown) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            shutdown: shutdown.clone(),
            entries: Mutex::new(BTreeMap::new()),
            usable: ArcSwap::from_pointee(Usable::over(std::iter::empty())),
            changed: watch::Sender::new(0),
        })
    }

    /// The scheduler that owns `task_id` among those that answer; `None` when none does.
    ///
    /// When a call to it gets no answer, call [`report_failure`](Self::report_failure) and ask again: the next node of
    /// the ring is returned then.
    pub fn for_task(&self, task_id: &TaskId) -> Option<SchedulerHandle> {
        let usable = self.usable.load();
        let name = usable.ring.owner(task_id.as_str())?;
        usable.by_name.get(name).cloned()
    }

    /// Every scheduler that answers, for what concerns the host and not one task.
    pub fn all(&self) -> Vec<SchedulerHandle> {
        self.usable.load().by_name.values().cloned().collect()
    }

    /// Every member, whether it answers or not.
    pub fn members(&self) -> Vec<(Member, SchedulerHandle)> {
        let entries = self.entries.lock();
        let members = entries.values();
        members
            .map(|entry| (entry.member.clone(), entry.handle.clone()))
            .collect()
    }

    /// Takes the scheduler at `addr` out of use until it answers a health check, which is sent at once.
    ///
    /// For calls that got no answer (see [`dial::is_silence`]): an answer with an error is an answer. An unknown address
    /// is ignored: the member may have been removed meanwhile.
    pub fn report_failure(&self, addr: &str) {
        let Ok(addr) = addr.parse() else { return };
        self.set_silent(addr, "a call got no answer");
        if let Some(entry) = self.entries.lock().get(&addr) {
            entry.suspected.notify_one();
        }
    }

    /// Whether there are no members at all, answering or not.
    pub fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    /// A counter that changes whenever the set of usable schedulers does: one came, went, failed or came back.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces the members. Connections and health of those that stay are kept.
    ///
    /// Several members with one name: the one with the highest id counts, as in v2. Must be called within a tokio runtime.
    pub fn set_members(self: &Arc<Self>, members: Vec<Member>) {
        let mut by_name: BTreeMap<String, Member> = BTreeMap::new();
        for member in members {
            match by_name.get(&member.name) {
                Some(known) if known.id >= member.id => {}
                _ => {
                    by_name.insert(member.name.clone(), member);
                }
            }
        }
        if by_name.len() > MEMBERS_MAX {
            warn!(
                count = by_name.len(),
                max = MEMBERS_MAX,
                "too many schedulers, the last ones are not used"
            );
        }
        let mut entries = self.entries.lock();
        let mut next = BTreeMap::new();
        for member in by_name.into_values().take(MEMBERS_MAX) {
            let entry = match entries.remove(&member.addr) {
                Some(known) => Entry { member, ..known },
                None => self.enter(member),
            };
            next.insert(entry.member.addr, entry);
        }
        *entries = next;
        self.rebuild(&entries);
    }

    fn enter(self: &Arc<Self>, member: Member) -> Entry {
        let suspected = Arc::new(Notify::new());
        let watcher = self.clone().watch(member.addr, suspected.clone());
        let task = self
            .shutdown
            .spawn_until_begun(format!("health of scheduler {}", member.addr), watcher);
        let (channel, lost) = self.dialer.watched(member.addr);
        Entry {
            handle: SchedulerHandle {
                addr: member.addr.to_string().into(),
                channel,
                generation: 0,
            },
            lost,
            usable: member.serving,
            member,
            suspected,
            _watcher: AbortOnDropHandle::new(task),
        }
    }

    /// Follows the health of the member at `addr` until it is removed.
    async fn watch(self: Arc<Self>, addr: SocketAddr, suspected: Arc<Notify>) {
        let mut failures = 0;
        while let Some((channel, lost)) = self.connection(addr) {
            match dial::health(channel).await {
                Health::Serving => {
                    failures = 0;
                    self.set_usable(addr);
                    tokio::select! {
                        () = lost.notified() => {
                            self.set_silent(addr, "the connection was lost");
                            self.reconnect(addr);
                        }
                        () = suspected.notified() => self.reconnect(addr),
                        () = tokio::time::sleep(jittered(SERVING_INTERVAL)) => {}
                    }
                }
                Health::Silent(why) => {
                    self.set_silent(addr, &why);
                    // The old connection may lead nowhere.
                    self.reconnect(addr);
                    tokio::time::sleep(pause_after(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    fn connection(&self, addr: SocketAddr) -> Option<(Channel, Arc<Notify>)> {
        let entries = self.entries.lock();
        let entry = entries.get(&addr)?;
        Some((entry.handle.channel.clone(), entry.lost.clone()))
    }

    fn reconnect(&self, addr: SocketAddr) {
        let (channel, lost) = self.dialer.watched(addr);
        if let Some(entry) = self.entries.lock().get_mut(&addr) {
            entry.handle.channel = channel;
            entry.lost = lost;
        }
    }

    fn set_usable(&self, addr: SocketAddr) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&addr) else {
            return;
        };
        if !std::mem::replace(&mut entry.usable, true) {
            entry.handle.generation += 1;
            info!(scheduler = %addr, "scheduler answers, using it");
            self.rebuild(&entries);
        }
    }

    fn set_silent(&self, addr: SocketAddr, why: &str) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&addr) else {
            return;
        };
        if std::mem::replace(&mut entry.usable, false) {
            warn!(scheduler = %addr, error = why, "scheduler does not answer, using others until it does");
            self.rebuild(&entries);
        }
    }

    /// Builds the ring anew and tells the followers. The caller holds the lock, so rings are published in order.
    fn rebuild(&self, entries: &BTreeMap<SocketAddr, Entry>) {
        let usable = entries.values().filter(|entry| entry.usable);
        self.usable.store(Arc::new(Usable::over(usable)));
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl std::fmt::Debug for Schedulers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schedulers")
            .field("usable", &self.usable.load().ring.nodes())
            .finish_non_exhaustive()
    }
}

impl Usable {
    fn over<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let by_name: BTreeMap<String, SchedulerHandle> = entries
            .map(|entry| (entry.member.name.clone(), entry.handle.clone()))
            .collect();
        Self {
            ring: HashRing::new(by_name.keys().cloned()),
            by_name,
        }
    }
}

/// 250 ms, doubled with every failure up to 10 s, varied so that daemons do not ask in step.
fn pause_after(failures: u32) -> Duration {
    jittered(
        DOWN_PAUSE_MIN
            .saturating_mul(1 << failures.min(10))
            .min(DOWN_PAUSE_MAX),
    )
}

/// `pause` less up to a quarter.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fastrand::f64() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestScheduler;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn member(name: &str, addr: SocketAddr) -> Member {
        Member {
            name: name.to_owned(),
            addr,
            id: 1,
            serving: true,
        }
    }

    async fn until(schedulers: &Schedulers, what: impl Fn(&Schedulers) -> bool) {
        let mut changes = schedulers.changes();
        let wait = async {
            while !what(schedulers) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .expect("the pool reaches the state in time");
    }

    /// A task owned by the member of that name in the ring of all `names`.
    fn task_of(names: &[&str], owner: &str) -> TaskId {
        let ring = HashRing::new(names.iter().copied());
        let found = (0..10_000)
            .map(|n| format!("task-{n}"))
            .find(|id| ring.owner(id) == Some(owner));
        found.unwrap().as_str().try_into().unwrap()
    }

    #[tokio::test]
    async fn a_task_moves_to_the_next_node_and_back() {
        let shutdown = Shutdown::new();
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        let (one, two) = (TestScheduler::start().await, TestScheduler::start().await);
        schedulers.set_members(vec![member("one", one.addr()), member("two", two.addr())]);
        let task = task_of(&["one", "two"], "one");
        assert_eq!(
            *schedulers.for_task(&task).unwrap().addr,
            *one.addr().to_string()
        );

        let addr = one.addr();
        one.stop().await;
        until(&schedulers, |pool| {
            pool.for_task(&task)
                .is_some_and(|s| *s.addr == *two.addr().to_string())
        })
        .await;

        let _one = TestScheduler::start_at(addr).await;
        until(&schedulers, |pool| {
            pool.for_task(&task)
                .is_some_and(|s| *s.addr == *addr.to_string())
        })
        .await;
        assert!(
            schedulers.for_task(&task).unwrap().generation > 0,
            "it may have forgotten this host"
        );
        assert!(shutdown.drain(DEADLINE).await.aborted.is_empty());
    }

    #[tokio::test]
    async fn a_reported_failure_counts_at_once_and_until_it_answers() {
        let shutdown = Shutdown::new();
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        let one = TestScheduler::start().await;
        schedulers.set_members(vec![member("one", one.addr())]);
        let generation = schedulers.all()[0].generation;
        schedulers.report_failure(&one.addr().to_string());
        assert!(schedulers.all().is_empty());
        until(&schedulers, |pool| {
            pool.all()
                .first()
                .is_some_and(|s| s.generation > generation)
        })
        .await;
        schedulers.report_failure("nonsense");
        schedulers.report_failure("192.0.2.1:1");
    }

    #[tokio::test]
    async fn without_anybody_there_is_no_owner() {
        let shutdown = Shutdown::new();
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        let task = "abc".parse().unwrap();
        assert!(schedulers.for_task(&task).is_none());
        let addr = "127.0.0.1:1".parse().unwrap();
        schedulers.set_members(vec![Member {
            serving: false,
            ..member("one", addr)
        }]);
        assert!(
            schedulers.for_task(&task).is_none(),
            "it did not answer when it was listed"
        );
    }

    #[tokio::test]
    async fn the_highest_id_of_a_name_counts() {
        let shutdown = Shutdown::new();
        let schedulers = Schedulers::new(Dialer::default(), &shutdown);
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let members = [(1, 7), (2, 9), (3, 8)].map(|(port, id)| Member {
            id,
            ..member("same", addr(port))
        });
        schedulers.set_members(members.to_vec());
        let all = schedulers
            .entries
            .lock()
            .keys()
            .copied()
            .collect::<Vec<_>>();
        assert_eq!(all, [addr(2)]);
        schedulers.set_members(vec![]);
        assert!(schedulers.all().is_empty());
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert!(pause_after(0) <= DOWN_PAUSE_MIN);
        assert!(pause_after(40) <= DOWN_PAUSE_MAX && pause_after(40) >= DOWN_PAUSE_MAX / 2);
    }
}
