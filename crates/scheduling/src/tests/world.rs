//! A core with named hosts and peers, and what it said to each of them.

use std::collections::HashMap;
use std::time::Duration;

use protocol::{HostId, HostRole, PeerId, TaskId, TaskKind};

use crate::{
    Action, Answer, Core, Event, HostAnnouncement, Lengths, OriginWish, PeerState, PieceRecord,
    Policy, Priority, Refusal, Registration, Report, SourceFailure, StreamId, Time, TriggerFailure,
};

/// The one task that most tests are about.
pub(super) const TASK: &str = "task-one";

/// What a peer heard, in words that tests can compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Empty,
    Metadata,
    Origin,
    Parents(Vec<String>),
    Closed,
    Refused(String),
}

pub(super) struct World {
    pub(super) core: Core<(), ()>,
    pub(super) now: Time,
    streams: HashMap<StreamId, String>,
    stream_of: HashMap<String, StreamId>,
    heard: HashMap<String, Vec<Heard>>,
    /// Seeds that were asked to fetch, in order.
    pub(super) triggered: Vec<String>,
    next_stream: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Policy::default(), 1)
    }

    pub(super) fn with(policy: Policy, seed: u64) -> Self {
        Self {
            core: Core::new(policy, seed),
            now: Duration::from_secs(1),
            streams: HashMap::new(),
            stream_of: HashMap::new(),
            heard: HashMap::new(),
            triggered: Vec::new(),
            next_stream: 0,
        }
    }

    pub(super) fn event(&mut self, event: Event<(), ()>) {
        for action in self.core.handle(self.now, event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer {
                stream,
                peer,
                answer,
            } => {
                let peer = self
                    .core
                    .peer(peer)
                    .expect("only peers that exist are answered")
                    .id
                    .to_string();
                assert_eq!(
                    self.stream_of.get(&peer),
                    Some(&stream),
                    "{peer} is answered on another's stream"
                );
                self.check_answer(&peer, &answer);
                let heard = match answer {
                    Answer::Empty => Heard::Empty,
                    Answer::MetadataOnly => Heard::Metadata,
                    Answer::BackToSource(_) => Heard::Origin,
                    Answer::Parents(keys) => {
                        assert!(!keys.is_empty(), "an empty list of parents is never sent");
                        let names = keys
                            .iter()
                            .map(|key| self.core.peer(*key).unwrap().id.to_string());
                        Heard::Parents(names.collect())
                    }
                };
                self.heard.entry(peer).or_default().push(heard);
            }
            Action::Close { stream, outcome } => {
                let peer = self
                    .streams
                    .remove(&stream)
                    .expect("an open stream is closed");
                if self.stream_of.get(&peer) == Some(&stream) {
                    self.stream_of.remove(&peer);
                }
                let heard = match outcome {
                    Ok(()) => Heard::Closed,
                    Err(refusal) => Heard::Refused(refusal.to_string()),
                };
                self.heard.entry(peer).or_default().push(heard);
            }
            Action::TriggerSeed { host_id, .. } => self.triggered.push(host_id.to_string()),
        }
    }

    /// What must hold of every answer, whatever led to it.
    fn check_answer(&self, name: &str, answer: &Answer) {
        let peer = self.core.find_peer(&peer_id(name)).unwrap();
        match answer {
            Answer::Parents(keys) if !peer.mesh => {
                for key in keys {
                    let parent = self.core.peer(*key).unwrap();
                    let seed = self.core.host(parent.host).unwrap().role == HostRole::Seed;
                    let serves = match parent.state {
                        PeerState::BackToSource | PeerState::Succeeded => true,
                        PeerState::Running => seed || !parent.parents().is_empty(),
                        _ => false,
                    };
                    assert!(
                        serves,
                        "{name} is offered {} in {}",
                        parent.id, parent.state
                    );
                    assert!(
                        !peer.blocked.contains(key),
                        "{name} is offered what it gave up"
                    );
                }
            }
            Answer::BackToSource(reason) => {
                let seed = self.core.host(peer.host).unwrap().role == HostRole::Seed;
                let asked = peer.need_back_to_source && *reason == crate::BackToSourceReason::Asked;
                let again = peer.state == PeerState::BackToSource;
                if !(seed && asked || again) {
                    let task = &self.core.tasks[peer.task];
                    let own = self.core.peer_keys[&peer.id];
                    let earlier = task.readers.iter().take_while(|it| it.peer != own);
                    for other in earlier.filter(|it| !task.is_silent(it.peer)) {
                        let useless = !self.core.may_meet(other.peer, own);
                        assert!(useless, "{name} reads although {:?} does", other.peer);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn host(&mut self, name: &str, role: HostRole) {
        self.announce(name, role, |_| {});
    }

    pub(super) fn announce(
        &mut self,
        name: &str,
        role: HostRole,
        adapt: impl FnOnce(&mut HostAnnouncement<()>),
    ) {
        let mut announcement = HostAnnouncement {
            id: host_id(name),
            name: name.into(),
            role,
            disable_shared: false,
            idc: None,
            location: None,
            max_tx_bandwidth: 10_000_000_000,
            announce_interval: Duration::from_secs(300),
            data: (),
        };
        adapt(&mut announcement);
        self.event(Event::HostAnnounced(announcement));
    }

    /// Announces a seed host and makes it available.
    pub(super) fn seed(&mut self, name: &str) {
        self.host(name, HostRole::Seed);
        self.event(Event::SeedsAvailable(vec![host_id(name)]));
    }

    /// Registers peer `name` of host `name` as a v2 peer; gives what it heard at once.
    pub(super) fn v2(&mut self, name: &str) -> Vec<Heard> {
        self.register(name, |_| {})
    }

    /// As [`World::v2`], as a mesh peer.
    pub(super) fn mesh(&mut self, name: &str) -> Vec<Heard> {
        self.register(name, |registration| registration.mesh = true)
    }

    /// Registers peer `name` of the host of that name, which is announced if it is not yet.
    pub(super) fn register(
        &mut self,
        name: &str,
        adapt: impl FnOnce(&mut Registration<()>),
    ) -> Vec<Heard> {
        if self.core.find_host(&host_id(name)).is_none() {
            self.host(name, HostRole::Normal);
        }
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let mut registration = Registration {
            stream,
            host_id: host_id(name),
            task_id: TASK.parse().unwrap(),
            peer_id: peer_id(name),
            mesh: false,
            kind: TaskKind::Standard,
            lengths: Lengths {
                content_length: Some(100 << 20),
                piece_length: 4 << 20,
                piece_count: Some(25),
            },
            range: None,
            priority: 0,
            effective_priority: Priority::SeedFirst,
            concurrent_piece_count: 8,
            origin: OriginWish::AsTold,
            credentials: 0,
            metadata_only: false,
            data: (),
        };
        adapt(&mut registration);
        let peer = registration.peer_id.to_string();
        self.streams.insert(stream, peer.clone());
        self.stream_of.insert(peer.clone(), stream);
        self.event(Event::PeerRegistered(registration));
        self.take(&peer)
    }

    pub(super) fn report(&mut self, name: &str, report: Report) -> Vec<Heard> {
        let stream = self.stream_of.get(name).copied().unwrap_or(StreamId(0));
        if stream == StreamId(0) {
            return Vec::new();
        }
        self.event(Event::PeerReported {
            stream,
            peer_id: peer_id(name),
            report,
        });
        self.take(name)
    }

    pub(super) fn reschedule(&mut self, name: &str, parents: &[&str]) -> Vec<Heard> {
        let parents = parents.iter().map(|parent| peer_id(parent)).collect();
        self.report(name, Report::Rescheduled { parents })
    }

    pub(super) fn source_piece(&mut self, name: &str, number: u32) {
        let cost = Duration::from_millis(100);
        let length = 4 << 20;
        let offset = u64::from(number) * length;
        let piece = PieceRecord {
            number,
            offset,
            length,
            digest: "crc32:1".into(),
            cost,
            created_at: Duration::ZERO,
        };
        self.report(name, Report::SourcePieceFinished(piece));
    }

    pub(super) fn piece(&mut self, name: &str, parent: &str) {
        let cost = Duration::from_millis(100);
        self.report(
            name,
            Report::PieceFinished {
                parent: Some(peer_id(parent)),
                cost,
            },
        );
    }

    /// The origin answers `status` to `name`, which gives up.
    pub(super) fn origin_fails(&mut self, name: &str, status: u16) -> Vec<Heard> {
        let failure = SourceFailure {
            status: Some(status),
            message: format!("status {status}"),
        };
        self.report(name, Report::SourcePieceFailed(failure));
        self.report(name, Report::BackToSourceFailed)
    }

    /// The stream of `name` breaks.
    pub(super) fn break_stream(&mut self, name: &str) {
        if let Some(stream) = self.stream_of.remove(name) {
            self.streams.remove(&stream);
            self.event(Event::StreamEnded {
                stream,
                peer_id: peer_id(name),
            });
        }
    }

    pub(super) fn end_trigger(&mut self, host: &str, outcome: Result<(), TriggerFailure>) {
        let task_id: TaskId = TASK.parse().unwrap();
        self.event(Event::SeedTriggerEnded {
            task_id,
            host_id: host_id(host),
            outcome,
        });
    }

    /// Lets time pass, with every timer on its way.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.event(Event::Tick);
        }
        self.now = end;
    }

    /// What `name` heard since it was last asked.
    pub(super) fn take(&mut self, name: &str) -> Vec<Heard> {
        self.heard.remove(name).unwrap_or_default()
    }

    pub(super) fn has_stream(&self, name: &str) -> bool {
        self.stream_of.contains_key(name)
    }

    pub(super) fn state(&self, name: &str) -> Option<PeerState> {
        self.core.find_peer(&peer_id(name)).map(|peer| peer.state)
    }

    /// Peers that may read the origin now, as far as the core knows.
    pub(super) fn readers(&self) -> Vec<String> {
        let Some(task) = self.core.find_task(&TASK.parse().unwrap()) else {
            return Vec::new();
        };
        task.readers
            .iter()
            .map(|reader| self.core.peers[reader.peer].id.to_string())
            .collect()
    }
}

pub(super) fn host_id(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(super) fn peer_id(name: &str) -> PeerId {
    name.parse().unwrap()
}

pub(super) fn parents(names: &[&str]) -> Vec<Heard> {
    vec![Heard::Parents(
        names.iter().map(ToString::to_string).collect(),
    )]
}

pub(super) fn refused(refusal: &Refusal) -> Vec<Heard> {
    vec![Heard::Refused(refusal.to_string())]
}

pub(super) const ORIGIN: [Heard; 1] = [Heard::Origin];
pub(super) const NOTHING: [Heard; 0] = [];

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
