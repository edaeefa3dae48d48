//! The core itself: what it holds, and the way of an event through it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use fastrand::Rng;
use protocol::{HostId, PeerId, TaskId};

use crate::arena::Arena;
use crate::hosts::SeedRing;
use crate::message::{Action, Answer, Event, Refusal};
use crate::model::{
    Host, HostKey, HostMark, Peer, PeerKey, PeerMark, Task, TaskKey, TaskMark, Time,
};
use crate::policy::Policy;
use crate::roster::{self, Roster};
use crate::states::{PeerEvent, PeerState};
use crate::timers::Sweeps;

/// The decisions of one scheduler. `H` and `T` are what the caller wants to remember of a host and of a task.
///
/// Invariants between two events: the graph of each task has no cycle; a key in a list of edges or neighbours, or in a
/// roster, names a peer that exists; a waiting peer has a stream; every task with a waiting peer, a reader or a trigger has
/// a timer.
#[derive(Debug)]
pub struct Core<H, T> {
    pub(crate) policy: Policy,
    pub(crate) rng: Rng,
    pub(crate) hosts: Arena<HostMark, Host<H>>,
    pub(crate) tasks: Arena<TaskMark, Task<T>>,
    pub(crate) peers: Arena<PeerMark, Peer>,
    pub(crate) host_keys: HashMap<HostId, HostKey>,
    pub(crate) task_keys: HashMap<TaskId, TaskKey>,
    pub(crate) peer_keys: HashMap<PeerId, PeerKey>,
    pub(crate) seed_ring: SeedRing,
    /// Number of the last graph search.
    pub(crate) search: u64,
    pub(crate) timers: BinaryHeap<Reverse<(Time, TaskKey)>>,
    pub(crate) sweeps: Sweeps,
    pub(crate) actions: Vec<Action>,
    /// Tasks in which a parent appeared.
    woken: Vec<TaskKey>,
    /// Tasks that may have lost their last source.
    pub(crate) bereft: Vec<TaskKey>,
}

impl<H, T> Core<H, T> {
    /// An empty core. `seed` makes its random choices repeatable.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            sweeps: Sweeps::first(&policy),
            policy,
            rng: Rng::with_seed(seed),
            hosts: Arena::new(),
            tasks: Arena::new(),
            peers: Arena::new(),
            host_keys: HashMap::new(),
            task_keys: HashMap::new(),
            peer_keys: HashMap::new(),
            seed_ring: SeedRing::default(),
            search: 0,
            timers: BinaryHeap::new(),
            actions: Vec::new(),
            woken: Vec::new(),
            bereft: Vec::new(),
        }
    }

    /// Takes in what happened at `now` and says what to do, in this order. `now` must not go back.
    pub fn handle(&mut self, now: Time, event: Event<H, T>) -> Vec<Action> {
        match event {
            Event::HostAnnounced(announcement) => self.announce_host(now, announcement),
            Event::HostLeft { host_id } => self.leave_host(now, &host_id),
            Event::SeedsAvailable(hosts) => self.set_seeds(&hosts),
            Event::PeerRegistered(registration) => self.register(now, registration),
            Event::PeerReported {
                stream,
                peer_id,
                report,
            } => self.report(now, stream, &peer_id, report),
            Event::StreamEnded { stream, peer_id } => self.end_stream(now, stream, &peer_id),
            Event::PeerDeleted { peer_id } => self.delete_by_id(now, &peer_id),
            Event::TaskDeleted { host_id, task_id } => {
                self.delete_task_of_host(now, &host_id, &task_id)
            }
            Event::SeedTriggerEnded {
                task_id,
                host_id,
                outcome,
            } => {
                self.end_trigger(now, &task_id, &host_id, outcome);
            }
            Event::LimitsChanged {
                candidate_parent_limit,
                filter_parent_limit,
            } => {
                self.policy.candidate_parent_limit = candidate_parent_limit.max(1);
                self.policy.filter_parent_limit = filter_parent_limit.max(1);
            }
            Event::Tick => self.tick(now),
        }
        self.settle(now);
        std::mem::take(&mut self.actions)
    }

    /// The host with this id.
    pub fn find_host(&self, id: &HostId) -> Option<&Host<H>> {
        self.hosts.get(*self.host_keys.get(id)?)
    }

    /// The task with this id.
    pub fn find_task(&self, id: &TaskId) -> Option<&Task<T>> {
        self.tasks.get(*self.task_keys.get(id)?)
    }

    /// The peer with this id.
    pub fn find_peer(&self, id: &PeerId) -> Option<&Peer> {
        self.peers.get(*self.peer_keys.get(id)?)
    }

    /// The peer that `key` names; `None` if it is gone.
    pub fn peer(&self, key: PeerKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// The task that `key` names; `None` if it is gone.
    pub fn task(&self, key: TaskKey) -> Option<&Task<T>> {
        self.tasks.get(key)
    }

    /// The host that `key` names; `None` if it is gone.
    pub fn host(&self, key: HostKey) -> Option<&Host<H>> {
        self.hosts.get(key)
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host<H>> {
        self.hosts.iter().map(|(_, host)| host)
    }

    /// The seed host that is asked for this task before any other; `None` while none can be asked.
    pub fn seed_for(&self, task: &TaskId) -> Option<&Host<H>> {
        self.host(self.seed_ring.owner(task, |_| true)?)
    }

    /// How many seed hosts can be asked for work.
    pub fn available_seed_count(&self) -> usize {
        self.seed_ring.len()
    }

    /// How many peers are known.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// How many tasks are known.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Answers what this event made answerable, until nothing is left.
    pub(crate) fn settle(&mut self, now: Time) {
        loop {
            if let Some(task) = self.woken.pop() {
                self.woken.retain(|other| *other != task);
                self.wake(now, task);
            } else if let Some(task) = self.bereft.pop() {
                self.bereft.retain(|other| *other != task);
                self.ensure_reader(now, task);
            } else {
                return;
            }
        }
    }

    /// Sends `answer` to a peer; one whose stream is gone misses it.
    pub(crate) fn answer(&mut self, key: PeerKey, answer: Answer) {
        let peer = &mut self.peers[key];
        peer.waiting_since = None;
        if let Some(stream) = peer.stream {
            self.actions.push(Action::Answer {
                stream,
                peer: key,
                answer,
            });
        }
    }

    /// Ends a peer that cannot be served, and its stream with the reason.
    pub(crate) fn refuse(&mut self, now: Time, key: PeerKey, refusal: Refusal) {
        let stream = self.peers[key].stream;
        // A peer that has ended already stays as it is.
        let _ = self.advance(now, key, PeerEvent::DownloadFailed);
        self.close(key, stream, Err(refusal));
    }

    /// Ends the stream of a peer.
    pub(crate) fn close(
        &mut self,
        key: PeerKey,
        stream: Option<crate::StreamId>,
        outcome: Result<(), Refusal>,
    ) {
        self.peers[key].stream = None;
        if let Some(stream) = stream {
            self.actions.push(Action::Close { stream, outcome });
        }
    }

    /// Moves a peer to its next state, with all that follows from it.
    pub(crate) fn advance(
        &mut self,
        now: Time,
        key: PeerKey,
        event: PeerEvent,
    ) -> Result<(), Refusal> {
        let peer = &mut self.peers[key];
        let state = peer.state;
        let to = state
            .after(event)
            .ok_or(Refusal::Transition { event, state })?;
        let task = peer.task;
        peer.state = to;
        if event != PeerEvent::Leave {
            peer.updated_at = now;
        }
        match to {
            PeerState::BackToSource => self.drop_in_edges(key),
            PeerState::Succeeded => {
                let peer = &mut self.peers[key];
                peer.cost = now.saturating_sub(peer.created_at);
                peer.costs.freeze();
                peer.waiting_since = None;
                self.drop_in_edges(key);
                self.tasks[task].peer_failed_count = 0;
                self.end_reading(key);
            }
            PeerState::Failed | PeerState::Leave => {
                if state == PeerState::BackToSource && to == PeerState::Failed {
                    self.tasks[task].peer_failed_count += 1;
                }
                self.depart(now, key);
            }
            _ => {}
        }
        self.refresh_holder(key);
        self.refresh_serving(key);
        Ok(())
    }

    /// Takes a peer that ended without the content out of everything that offers it.
    fn depart(&mut self, now: Time, key: PeerKey) {
        let peer = &mut self.peers[key];
        peer.waiting_since = None;
        peer.costs.freeze();
        let task = peer.task;
        self.drop_in_edges(key);
        self.drop_out_edges(key);
        self.unlink(now, key);
        roster::remove(
            Roster::Mesh,
            &mut self.tasks[task].mesh,
            &mut self.peers,
            key,
        );
        self.end_reading(key);
    }

    fn refresh_holder(&mut self, key: PeerKey) {
        let (task, holds) = (self.peers[key].task, self.peers[key].is_holder());
        let listed = self.peers[key].places.is_in(Roster::Holders);
        let holders = &mut self.tasks[task].holders;
        if holds && !listed {
            roster::add(Roster::Holders, holders, &mut self.peers, key);
        } else if !holds && roster::remove(Roster::Holders, holders, &mut self.peers, key) {
            self.bereft.push(task);
        }
    }

    /// Brings the list of peers that a v2 child may be given up to date for one of them.
    pub(crate) fn refresh_serving(&mut self, key: PeerKey) {
        let peer = &self.peers[key];
        let task = peer.task;
        let serves = match peer.state {
            PeerState::BackToSource | PeerState::Succeeded => true,
            PeerState::Running => {
                !peer.parents.is_empty() || self.hosts[peer.host].role == protocol::HostRole::Seed
            }
            _ => false,
        };
        let listed = peer.places.is_in(Roster::Serving);
        if serves && !listed {
            roster::add(
                Roster::Serving,
                &mut self.tasks[task].serving,
                &mut self.peers,
                key,
            );
            self.wake_later(task);
        } else if !serves && listed {
            roster::remove(
                Roster::Serving,
                &mut self.tasks[task].serving,
                &mut self.peers,
                key,
            );
        }
    }

    /// Notes that waiting peers of `task` may find a parent now.
    pub(crate) fn wake_later(&mut self, task: TaskKey) {
        if !self.tasks[task].waiting.is_empty() {
            self.woken.push(task);
        }
    }
}
