//! What must hold under any order of events, losses and departures.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::{ByteRange, HostRole};

use super::world::{Heard, TASK, World, host_id, ms, peer_id};
use crate::model::PeerKey;
use crate::{Event, OriginWish, PeerState, Policy, Report, SourceFailure, TriggerFailure};

/// Two seeds, a host that does not share, and normal ones.
const NAMES: [&str; 10] = [
    "s0", "s1", "leech", "h0", "h1", "h2", "h3", "h4", "h5", "h6",
];

#[derive(Debug, Clone)]
enum Step {
    Register {
        who: usize,
        mesh: bool,
        wish: OriginWish,
        ranged: bool,
        metadata_only: bool,
    },
    /// The peer does what a client would do next.
    Act {
        who: usize,
    },
    /// The peer says something, in turn or not.
    Say {
        who: usize,
        what: usize,
        about: usize,
    },
    Break {
        who: usize,
    },
    Leave {
        who: usize,
    },
    Delete {
        who: usize,
    },
    Seeds {
        count: usize,
    },
    TriggerEnds {
        who: usize,
        how: usize,
    },
    Pass {
        milliseconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..NAMES.len();
    let wish = prop_oneof![
        6 => Just(OriginWish::AsTold),
        1 => Just(OriginWish::Wanted),
        1 => Just(OriginWish::Forbidden),
    ];
    let register = (who.clone(), any::<bool>(), wish, 0..8, 0..12);
    let register = register.prop_map(|(who, mesh, wish, ranged, metadata)| Step::Register {
        who,
        mesh,
        wish,
        ranged: ranged == 0,
        metadata_only: metadata == 0,
    });
    let step = prop_oneof![
        6 => register,
        12 => who.clone().prop_map(|who| Step::Act { who }),
        3 => (who.clone(), 0..10_usize, who.clone()).prop_map(|(who, what, about)| Step::Say { who, what, about }),
        2 => who.clone().prop_map(|who| Step::Break { who }),
        1 => who.clone().prop_map(|who| Step::Leave { who }),
        1 => who.clone().prop_map(|who| Step::Delete { who }),
        1 => (0..3_usize).prop_map(|count| Step::Seeds { count }),
        1 => (0..2_usize, 0..3_usize).prop_map(|(who, how)| Step::TriggerEnds { who, how }),
        4 => (1..1500_u64).prop_map(|milliseconds| Step::Pass { milliseconds }),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a client of the test knows of its own download.
#[derive(Debug, Default, Clone)]
struct Client {
    mesh: bool,
    /// Whom it was told of since it registered.
    parents: BTreeSet<String>,
    reads: bool,
    has_all: bool,
    source_pieces: u32,
    /// Turns without progress.
    idle: u32,
}

struct Swarm {
    world: World,
    clients: BTreeMap<String, Client>,
    /// Has the content, and still serves it.
    whole: BTreeSet<String>,
}

impl Swarm {
    fn new(seed: u64) -> Self {
        let policy = Policy {
            root_child_limit: 3,
            ..Policy::default()
        };
        Self {
            world: World::with(policy, seed),
            clients: BTreeMap::new(),
            whole: BTreeSet::new(),
        }
    }

    fn announce(&mut self, name: &str) {
        let role = if name.starts_with('s') {
            HostRole::Seed
        } else {
            HostRole::Normal
        };
        self.world.announce(name, role, |host| {
            host.disable_shared = name == "leech";
            host.announce_interval = ms(0);
        });
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Register {
                who,
                mesh,
                wish,
                ranged,
                metadata_only,
            } => {
                let name = NAMES[who];
                self.announce(name);
                self.whole.remove(name);
                self.clients.insert(
                    name.to_owned(),
                    Client {
                        mesh,
                        ..Client::default()
                    },
                );
                let heard = self.world.register(name, |it| {
                    (it.mesh, it.origin, it.metadata_only) = (mesh, wish, metadata_only);
                    it.range = ranged.then_some(ByteRange {
                        start: 0,
                        length: 1,
                    });
                });
                self.hear(name, &heard);
            }
            Step::Act { who } => self.act(NAMES[who]),
            Step::Say { who, what, about } => self.say(NAMES[who], what, NAMES[about]),
            Step::Break { who } => self.world.break_stream(NAMES[who]),
            Step::Leave { who } => {
                self.whole.remove(NAMES[who]);
                self.world.event(Event::HostLeft {
                    host_id: host_id(NAMES[who]),
                });
            }
            Step::Delete { who } => {
                self.whole.remove(NAMES[who]);
                self.world.event(Event::PeerDeleted {
                    peer_id: peer_id(NAMES[who]),
                });
            }
            Step::Seeds { count } => {
                let seeds = NAMES[..count].iter().map(|name| host_id(name)).collect();
                self.world.event(Event::SeedsAvailable(seeds));
            }
            Step::TriggerEnds { who, how } => {
                let failure = SourceFailure {
                    status: Some(404),
                    message: "status 404".to_owned(),
                };
                let outcomes = [
                    Ok(()),
                    Err(TriggerFailure::Seed),
                    Err(TriggerFailure::Origin(failure)),
                ];
                self.world.end_trigger(NAMES[who], outcomes[how].clone());
            }
            Step::Pass { milliseconds } => self.world.pass(ms(milliseconds)),
        }
        self.check();
    }

    fn say(&mut self, name: &str, what: usize, about: &str) {
        let report = match what {
            0 => Report::Started,
            1 => Report::BackToSourceStarted,
            2 => Report::Rescheduled {
                parents: vec![peer_id(about)],
            },
            3 => Report::Finished,
            4 => Report::BackToSourceFinished,
            5 => Report::Failed,
            6 => Report::BackToSourceFailed,
            7 => Report::PieceFailed {
                parent: peer_id(about),
            },
            8 => Report::PieceFinished {
                parent: Some(peer_id(about)),
                cost: ms(3),
            },
            _ => Report::SourcePieceFailed(SourceFailure {
                status: Some(404),
                message: String::new(),
            }),
        };
        let heard = self.world.report(name, report);
        self.hear(name, &heard);
        if self.world.state(name) == Some(PeerState::Succeeded) {
            self.whole.insert(name.to_owned());
        }
    }

    fn hear(&mut self, name: &str, heard: &[Heard]) {
        let client = self.clients.entry(name.to_owned()).or_default();
        for it in heard {
            match it {
                Heard::Parents(parents) => {
                    if !client.mesh {
                        client.parents.clear();
                    }
                    client.parents.extend(parents.iter().cloned());
                    client.idle = 0;
                }
                Heard::Metadata => client.has_all = true,
                Heard::Origin => (client.reads, client.source_pieces) = (true, 0),
                _ => {}
            }
        }
    }

    /// A client that works: what it does next, if it still has a stream.
    fn act(&mut self, name: &str) {
        let heard = self.world.take(name);
        self.hear(name, &heard);
        let (Some(state), true) = (self.world.state(name), self.world.has_stream(name)) else {
            return;
        };
        let client = self.clients[name].clone();
        let report = match state {
            PeerState::ReceivedEmpty => Report::Finished,
            PeerState::BackToSource if client.source_pieces < 3 => {
                self.clients.get_mut(name).unwrap().source_pieces += 1;
                return self.world.source_piece(name, client.source_pieces);
            }
            PeerState::BackToSource => Report::BackToSourceFinished,
            PeerState::ReceivedNormal | PeerState::Running if client.reads => {
                Report::BackToSourceStarted
            }
            PeerState::ReceivedNormal if !client.parents.is_empty() => Report::Started,
            PeerState::ReceivedNormal if client.has_all => Report::Started,
            PeerState::Running if client.has_all => Report::Finished,
            PeerState::ReceivedNormal => return,
            _ => match self.fetch(name, &client) {
                Some(report) => report,
                None => return,
            },
        };
        let heard = self.world.report(name, report);
        self.hear(name, &heard);
        if self.world.state(name) == Some(PeerState::Succeeded) {
            self.whole.insert(name.to_owned());
        }
    }

    /// What a client that fetches from parents says: that it is done, that they do not suffice, or nothing yet.
    fn fetch(&mut self, name: &str, client: &Client) -> Option<Report> {
        let linked_to = |other: &String| {
            let back = self
                .clients
                .get(other)
                .is_some_and(|it| it.mesh && it.parents.contains(name));
            client.parents.contains(other) || (client.mesh && back)
        };
        if self.whole.iter().any(linked_to) {
            return Some(Report::Finished);
        }
        let this = self.clients.get_mut(name).unwrap();
        this.idle += 1;
        if this.idle < 8 {
            return None;
        }
        this.idle = 0;
        let parents = std::mem::take(&mut this.parents)
            .iter()
            .map(|parent| peer_id(parent))
            .collect();
        Some(Report::Rescheduled { parents })
    }

    fn check(&self) {
        let core = &self.world.core;
        let mut edges: BTreeMap<PeerKey, Vec<PeerKey>> = BTreeMap::new();
        for (key, peer) in core.peers.iter() {
            for parent in &peer.parents {
                assert!(
                    core.peers[*parent].children.contains(&key),
                    "an edge has two ends"
                );
                edges.entry(*parent).or_default().push(key);
            }
            for child in &peer.children {
                assert!(
                    core.peers[*child].parents.contains(&key),
                    "an edge has two ends"
                );
            }
            for neighbour in &peer.neighbours {
                assert!(
                    core.peers[*neighbour].state.is_joined(),
                    "a neighbour that is gone is forgotten"
                );
            }
            if peer.waiting_since.is_some() {
                assert!(peer.stream.is_some(), "{} waits without a stream", peer.id);
                assert!(
                    core.tasks[peer.task].timer_at.is_some(),
                    "{} waits without a bound",
                    peer.id
                );
            }
        }
        assert_acyclic(&edges);
        let counted: u64 = core.hosts().map(|host| host.uploads.concurrent_count).sum();
        assert_eq!(
            counted,
            edges
                .values()
                .map(|children| children.len() as u64)
                .sum::<u64>()
        );
        if let Some(task) = core.find_task(&TASK.parse().unwrap()) {
            let joined = task.peers.iter().filter(|key| {
                let peer = &core.peers[**key];
                peer.mesh && peer.state.is_joined()
            });
            assert_eq!(
                joined.count(),
                task.mesh.len(),
                "the mesh has its members and no others"
            );
            let holders = task
                .peers
                .iter()
                .filter(|key| core.peers[**key].is_holder());
            assert_eq!(holders.count(), task.holders.len());
        }
    }
}

/// Removes those without children until none is left; what stays is a cycle.
fn assert_acyclic(edges: &BTreeMap<PeerKey, Vec<PeerKey>>) {
    let mut edges = edges.clone();
    loop {
        let parents: BTreeSet<PeerKey> = edges.keys().copied().collect();
        let before = parents.len();
        edges.retain(|_, children| children.iter().any(|child| parents.contains(child)));
        if edges.len() == before {
            return assert!(edges.is_empty(), "cycle among {:?}", edges.keys());
        }
    }
}

fn arrivals() -> impl Strategy<Value = Vec<(usize, bool, u64)>> {
    prop::collection::vec((3..NAMES.len(), any::<bool>(), 0..400_u64), 1..40)
}

proptest! {
    /// After any beginning, peers that then work as they should all end, in success or for a reason; and what `check` and
    /// the world assert holds at every moment.
    #[test]
    fn everybody_ends(steps in steps(), seed in any::<u64>()) {
        let mut swarm = Swarm::new(seed);
        for step in &steps {
            swarm.take(step);
        }
        for _ in 0..400 {
            for name in NAMES {
                swarm.act(name);
                swarm.check();
            }
            swarm.world.pass(ms(100));
            swarm.check();
            if !NAMES.iter().any(|name| swarm.world.has_stream(name)) {
                break;
            }
        }
        for name in NAMES {
            prop_assert!(!swarm.world.has_stream(name), "{} still {:?}", name, swarm.world.state(name));
        }
    }

    /// Without losses the origin is read once, however the peers come and whatever they are.
    #[test]
    fn the_origin_is_read_once(order in arrivals(), seed in any::<u64>()) {
        let mut swarm = Swarm::new(seed);
        let mut readers = BTreeSet::new();
        let mut registered = BTreeSet::new();
        for (who, mesh, pause) in order {
            if registered.insert(who) {
                let step = Step::Register { who, mesh, wish: OriginWish::AsTold, ranged: false, metadata_only: false };
                swarm.take(&step);
            }
            for _ in 0..pause / 50 {
                NAMES.iter().for_each(|name| swarm.act(name));
                swarm.world.pass(ms(50));
            }
            readers.extend(swarm.clients.iter().filter(|(_, client)| client.reads).map(|(name, _)| name.clone()));
        }
        for _ in 0..100 {
            NAMES.iter().for_each(|name| swarm.act(name));
            swarm.world.pass(ms(50));
        }
        readers.extend(swarm.clients.iter().filter(|(_, client)| client.reads).map(|(name, _)| name.clone()));
        prop_assert_eq!(readers.len(), 1);
        prop_assert_eq!(swarm.whole.len(), registered.len());
    }
}
