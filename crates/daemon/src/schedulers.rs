//! The schedulers that this daemon may talk to, and which of them owns a task.
//!
//! Every daemon of a cluster must send a task to the same scheduler, else its peers do not find each other. So the
//! owner comes from the consistent-hash ring of Dragonfly v2, keyed by hostname (`ip:port` where there is none), built
//! over the schedulers that answer: taking one out of the ring hands its tasks to the next node, for every daemon alike.
//!
//! A scheduler that fails a call is reported with [`Schedulers::report_failure`] and leaves the ring at once; the
//! [monitor](Schedulers::monitor) asks it again with growing pauses and puts it back when it answers. Whoever wants to
//! know about either follows [`Schedulers::changes`].
//!
//! Not here: where the list comes from (`dynconfig`), and what is said to a scheduler (`announce`, `engine`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::join_all;
use parking_lot::Mutex;
use protocol::{HashRing, TaskId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use runtime::shutdown::Shutdown;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::dial::{self, Dialer, Health};

/// Members beyond this many are ignored; a cluster has a handful, and each costs 512 places on the ring.
const MEMBERS_MAX: usize = 256;

/// How often a scheduler that answers is asked whether it still does.
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
}

impl Member {
    /// A member that has no hostname.
    pub fn unnamed(addr: SocketAddr) -> Self {
        Self {
            name: addr.to_string(),
            addr,
            id: 0,
        }
    }
}

/// The pool: members, their health, and the ring over those that answer.
#[derive(Debug)]
pub struct Schedulers {
    dialer: Dialer,
    /// Held for short, never while awaiting; `ring` is rebuilt from it under the same lock.
    entries: Mutex<BTreeMap<SocketAddr, Entry>>,
    ring: ArcSwap<Usable>,
    /// Counts the changes of the usable set.
    changed: watch::Sender<u64>,
    /// Wakes the monitor: a failure was reported, or the members changed.
    wake: Notify,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    handle: SchedulerHandle,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked yet, or answered; used, and asked again at the instant.
    Usable { probe_at: Instant },
    /// Failed a call or a probe; not used, asked again at the instant.
    Down { probe_at: Instant, failures: u32 },
}

impl State {
    fn probe_at(self) -> Instant {
        match self {
            Self::Usable { probe_at } | Self::Down { probe_at, .. } => probe_at,
        }
    }

    fn is_usable(self) -> bool {
        matches!(self, Self::Usable { .. })
    }
}

/// The ring and what its nodes stand for.
#[derive(Debug)]
struct Usable {
    ring: HashRing,
    by_name: BTreeMap<String, SchedulerHandle>,
}

impl Schedulers {
    /// An empty pool that connects as `dialer` says.
    pub fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            entries: Mutex::new(BTreeMap::new()),
            ring: ArcSwap::from_pointee(Usable::over(std::iter::empty())),
            changed: watch::channel(0).0,
            wake: Notify::new(),
        })
    }

    /// The scheduler that owns `task_id` among those that answer; `None` when none does.
    ///
    /// When a call to it fails for want of an answer, call [`report_failure`](Self::report_failure) and ask again: the
    /// next node of the ring is returned then.
    pub fn for_task(&self, task_id: &TaskId) -> Option<SchedulerHandle> {
        let usable = self.ring.load();
        let name = usable.ring.owner(task_id.as_str())?;
        usable.by_name.get(name).cloned()
    }

    /// Every scheduler that answers, for what concerns the host and not one task.
    pub fn all(&self) -> Vec<SchedulerHandle> {
        self.ring.load().by_name.values().cloned().collect()
    }

    /// Takes the scheduler at `addr` out of use until it answers a probe, which is sent at once.
    ///
    /// For calls that got no answer (connection refused or lost, deadline): an answer with an error is an answer.
    /// An unknown address is ignored: the member may have been removed meanwhile.
    pub fn report_failure(&self, addr: &str) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.values_mut().find(|entry| &*entry.handle.addr == addr) else {
            return;
        };
        if !entry.state.is_usable() {
            return;
        }
        warn!(scheduler = addr, "scheduler did not answer, using others until it does");
        entry.state = State::Down {
            probe_at: Instant::now(),
            failures: 0,
        };
        self.rebuild(&entries);
        self.wake.notify_one();
    }

    /// A counter that changes whenever the set of usable schedulers does: one came, went, failed or came back.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces the members. Connections and health of those that stay are kept; new ones are used at once.
    ///
    /// Several members with one name: the one with the highest id counts, as in v2.
    pub fn set_members(&self, members: Vec<Member>) {
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
        self.wake.notify_one();
    }

    /// Asks every member for its health, again and again, until `shutdown`.
    ///
    /// Cancel-safe: state changes only between awaits.
    pub async fn monitor(&self, shutdown: &Shutdown) {
        loop {
            let due = self.due(Instant::now());
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = self.probe(due) => {}
            }
            let next = self.next_probe();
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn enter(&self, member: Member) -> Entry {
        Entry {
            handle: self.connect(member.addr),
            member,
            state: State::Usable {
                probe_at: Instant::now(),
            },
        }
    }

    fn connect(&self, addr: SocketAddr) -> SchedulerHandle {
        SchedulerHandle {
            addr: addr.to_string().into(),
            channel: self.dialer.lazy(addr),
        }
    }

    /// The members whose time has come. A silent one gets a fresh connection: its old one may lead nowhere.
    fn due(&self, now: Instant) -> Vec<SchedulerHandle> {
        let mut entries = self.entries.lock();
        let mut due = Vec::new();
        for entry in entries.values_mut().filter(|entry| entry.state.probe_at() <= now) {
            if !entry.state.is_usable() {
                entry.handle = self.connect(entry.member.addr);
            }
            due.push(entry.handle.clone());
        }
        due
    }

    async fn probe(&self, due: Vec<SchedulerHandle>) {
        join_all(due.into_iter().map(|handle| async move {
            let health = dial::health(handle.channel.clone()).await;
            self.note(&handle.addr, &health);
        }))
        .await;
    }

    /// Enters the result of a probe.
    fn note(&self, addr: &str, health: &Health) {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let Some(entry) = entries.values_mut().find(|entry| &*entry.handle.addr == addr) else {
            return;
        };
        let was_usable = entry.state.is_usable();
        entry.state = match (health, entry.state) {
            (Health::Serving, _) => State::Usable {
                probe_at: now + jittered(SERVING_INTERVAL),
            },
            (Health::Silent(_), State::Down { failures, .. }) => State::Down {
                probe_at: now + pause_after(failures),
                failures: failures.saturating_add(1),
            },
            (Health::Silent(_), State::Usable { .. }) => State::Down {
                probe_at: now + pause_after(0),
                failures: 1,
            },
        };
        match (was_usable, health) {
            (true, Health::Silent(why)) => {
                warn!(scheduler = addr, error = %why, "scheduler does not answer, using others until it does");
            }
            (false, Health::Serving) => info!(scheduler = addr, "scheduler answers again"),
            _ => return,
        }
        self.rebuild(&entries);
    }

    fn next_probe(&self) -> Instant {
        let entries = self.entries.lock();
        let soonest = entries.values().map(|entry| entry.state.probe_at()).min();
        soonest.unwrap_or_else(|| Instant::now() + SERVING_INTERVAL)
    }

    /// Builds the ring anew and tells the followers. The caller holds the lock, so rings are published in order.
    fn rebuild(&self, entries: &BTreeMap<SocketAddr, Entry>) {
        let usable = entries.values().filter(|entry| entry.state.is_usable());
        self.ring.store(Arc::new(Usable::over(usable)));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
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
