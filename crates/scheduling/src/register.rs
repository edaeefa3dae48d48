//! A peer registers: what becomes known of its task and of itself.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::core::Core;
use crate::cost::CostWindow;
use crate::message::{Action, Answer, Lengths, OriginWish, Refusal, Registration};
use crate::model::{HostKey, Peer, PeerKey, Task, TaskKey, Time};
use crate::roster::{self, Places, Roster};
use crate::seek::Occasion;
use crate::states::{PeerEvent, PeerState, TaskEvent, TaskState};

impl<H, T> Core<H, T> {
    pub(crate) fn register(&mut self, now: Time, registration: Registration<T>) {
        let stream = registration.stream;
        let Some(host) = self.host_keys.get(&registration.host_id).copied() else {
            let refusal = Refusal::HostUnknown(registration.host_id);
            return self.actions.push(Action::Close {
                stream,
                outcome: Err(refusal),
            });
        };
        if let Err(refusal) = self.supersede(now, &registration) {
            return self.actions.push(Action::Close {
                stream,
                outcome: Err(refusal),
            });
        }
        // What its departure led to comes first: nobody is offered a peer that is about to be refused.
        self.settle(now);
        let priority = registration.effective_priority;
        let metadata_only = registration.metadata_only;
        let (task, key) = self.enter(now, host, registration);
        self.resolve_trigger(task, host);
        let record = &mut self.tasks[task];
        if let Some(state) = record.state.after(TaskEvent::Download) {
            record.state = state;
        }
        record.updated_at = now;
        if record.content_length == Some(0) && !metadata_only {
            self.must_advance(now, key, PeerEvent::RegisterEmpty);
            return self.answer(key, Answer::Empty);
        }
        self.must_advance(now, key, PeerEvent::RegisterNormal);
        if self.peers[key].mesh {
            self.join_mesh(now, key);
        }
        if self.is_seed(key) {
            self.tasks[task].seeds.push(key);
        }
        if metadata_only {
            self.expect_holder(now, key);
            self.answer(key, Answer::MetadataOnly);
        } else {
            self.seek(now, key, Occasion::Registered(priority));
        }
        if self
            .peers
            .get(key)
            .is_some_and(|peer| peer.mesh && peer.state.is_joined())
            && self.is_seed(key)
        {
            self.announce_root(now, key);
        }
    }

    /// Makes room for a peer that registers again, as after a broken stream.
    fn supersede(&mut self, now: Time, registration: &Registration<T>) -> Result<(), Refusal> {
        let Some(key) = self.peer_keys.get(&registration.peer_id).copied() else {
            return Ok(());
        };
        let peer = &self.peers[key];
        let same = self.hosts[peer.host].id == registration.host_id
            && self.tasks[peer.task].id == registration.task_id;
        if !same {
            return Err(Refusal::PeerTaken(registration.peer_id.clone()));
        }
        if peer.stream == Some(registration.stream) {
            // The stream goes on with the new registration.
            self.peers[key].stream = None;
        }
        self.delete_peer(now, key, Refusal::Superseded(registration.peer_id.clone()));
        Ok(())
    }

    fn enter(
        &mut self,
        now: Time,
        host: HostKey,
        registration: Registration<T>,
    ) -> (TaskKey, PeerKey) {
        let Registration {
            stream,
            peer_id,
            mesh,
            lengths,
            range,
            priority,
            origin,
            ..
        } = registration;
        let task = match self.task_keys.get(&registration.task_id).copied() {
            Some(task) => {
                refresh(&mut self.tasks[task], lengths, registration.data);
                task
            }
            None => {
                let record = new_task(
                    now,
                    registration.task_id.clone(),
                    registration.kind,
                    lengths,
                    registration.data,
                );
                let task = self.tasks.insert(record);
                self.task_keys.insert(registration.task_id, task);
                task
            }
        };
        let key = self.peers.insert(Peer {
            id: peer_id.clone(),
            task,
            host,
            state: PeerState::Pending,
            mesh,
            range,
            priority,
            concurrent_piece_count: registration.concurrent_piece_count,
            need_back_to_source: origin == OriginWish::Wanted,
            cost: Duration::ZERO,
            created_at: now,
            updated_at: now,
            piece_updated_at: now,
            finished_piece_count: 0,
            // Whoever has everything has nothing to read.
            origin_forbidden: origin == OriginWish::Forbidden || registration.metadata_only,
            credentials: registration.credentials,
            stream: Some(stream),
            waiting_since: None,
            queued: false,
            parents: Vec::new(),
            children: Vec::new(),
            neighbours: Vec::new(),
            blocked: Vec::new(),
            costs: CostWindow::default(),
            places: Places::default(),
            visited: 0,
            source_failure: None,
        });
        self.peer_keys.insert(peer_id, key);
        roster::add(
            Roster::Host,
            &mut self.hosts[host].peers,
            &mut self.peers,
            key,
        );
        roster::add(
            Roster::Task,
            &mut self.tasks[task].peers,
            &mut self.peers,
            key,
        );
        (task, key)
    }

    /// The seed that was asked has come.
    fn resolve_trigger(&mut self, task: TaskKey, host: HostKey) {
        let record = &mut self.tasks[task];
        if record
            .trigger
            .as_ref()
            .is_some_and(|trigger| trigger.host == host)
        {
            record.trigger = None;
            // Should it fall through after all, nobody else is on the way.
            self.bereft.push(task);
        }
    }

    /// Takes a peer that was just entered through its first transition.
    fn must_advance(&mut self, now: Time, key: PeerKey, event: PeerEvent) {
        let moved = self.advance(now, key, event);
        debug_assert!(
            moved.is_ok(),
            "a peer that was just entered is Pending, which every registration leads out of"
        );
    }
}

/// What a further registration tells about a task that is known. Lengths are learnt once; only after a failure of the origin
/// they are taken anew, for the content may have changed.
fn refresh<T>(task: &mut Task<T>, lengths: Lengths, data: T) {
    task.data = data;
    if task.state == TaskState::Failed || task.content_length.is_none() {
        task.content_length = lengths.content_length;
        task.piece_length = lengths.piece_length;
        task.piece_count = lengths.piece_count;
    }
}

fn new_task<T>(
    now: Time,
    id: protocol::TaskId,
    kind: protocol::TaskKind,
    lengths: Lengths,
    data: T,
) -> Task<T> {
    Task {
        id,
        kind,
        state: TaskState::Pending,
        content_length: lengths.content_length,
        piece_length: lengths.piece_length,
        piece_count: lengths.piece_count,
        created_at: now,
        updated_at: now,
        data,
        pieces: BTreeMap::new(),
        peer_failed_count: 0,
        peers: Vec::new(),
        serving: Vec::new(),
        holders: Vec::new(),
        mesh: Vec::new(),
        seeds: Vec::new(),
        waiting: Vec::new(),
        waiting_due: None,
        short: HashSet::new(),
        top_up_due: None,
        top_up_first: Time::ZERO,
        readers: Vec::new(),
        trigger: None,
        given_up_seeds: Vec::new(),
        reader_failure_count: 0,
        reader_silence_count: 0,
        verdict: None,
        timer_at: None,
    }
}
