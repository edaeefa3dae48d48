//! A small swarm on simulated links: the real [`Picker`], [`Slots`] and [`Stage`] of every host, driven by
//! one event queue.
//!
//! Model: every host has one uplink and one downlink. An uplink sends one quantum at a time, round robin
//! over the uploads that have bytes and an open window; a downlink is a first-in-first-out server. A
//! message takes one way, announcements wait in a [`Batch`](swarm::Batch) first. The seed reads the
//! origin in order. Hosts that speak v2 ask whole pieces of up to four earlier hosts, eight at once.
//!
//! Checked on the way: nobody receives a byte that its parent did not have, and nobody gets a request
//! for a host that is gone.

#![allow(dead_code, reason = "the tests and the example each use a part")]

mod act;
mod host;
mod net;
mod report;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use protocol::{Geometry, PieceNumber};
use swarm::{PickerOptions, Shown};

pub use host::Host;
use host::Speaks;
pub use report::Report;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Hosts beside the seed.
    pub hosts: usize,
    /// Length of the file in bytes.
    pub content: u64,
    /// Length of a piece in bytes.
    pub piece: u64,
    /// Bytes per second of every link and of the origin.
    pub rate: f64,
    /// One way of a message.
    pub delay: Duration,
    /// How long announcements are gathered.
    pub batch: Duration,
    /// Most neighbours that a host dials beside the seed, and is given by others.
    pub degree: usize,
    /// The seed has the file at the start.
    pub warm: bool,
    /// So many hosts are v2 peers, spread evenly.
    pub v2: usize,
    /// This host's links are so many times slower.
    pub slow: Option<(usize, f64)>,
    /// This host's uplink becomes so many times slower then.
    pub fade: Option<(usize, f64, Duration)>,
    /// This host dies then; its neighbours hear of it a second later.
    pub kill: Option<(usize, Duration)>,
    /// This host stops answering then, and nobody is told.
    pub freeze: Option<(usize, Duration)>,
    /// Upload slots of every host over the usual number.
    pub slots: f64,
    /// The child's options.
    pub options: PickerOptions,
    /// Seed of all chance.
    pub chance: u64,
}

impl Scene {
    /// The usual scene: 200 MB, 200 Mbit links at their goodput of 23.9 MB/s, a cold seed.
    pub fn new(hosts: usize) -> Self {
        Self {
            hosts,
            content: 200 << 20,
            piece: 4 << 20,
            rate: 23.9 * 1048576.0,
            delay: Duration::from_millis(1),
            batch: Duration::from_millis(5),
            degree: 8,
            warm: false,
            v2: 0,
            slow: None,
            fade: None,
            kill: None,
            freeze: None,
            slots: 1.0,
            options: PickerOptions::default(),
            chance: 1,
        }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Report {
        World::new(self).run()
    }
}

/// What hosts tell each other.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Announce(Vec<Shown>),
    Ask {
        request: u64,
        piece: u32,
        offset: u64,
        length: u64,
    },
    Refused {
        request: u64,
    },
    NotAhead {
        request: u64,
    },
    Closed {
        request: u64,
    },
    Cancel {
        request: u64,
    },
    Grant,
    Decline,
}

#[derive(Debug)]
enum Event {
    Wake {
        host: usize,
    },
    Origin,
    Message {
        from: usize,
        to: usize,
        message: Message,
    },
    UplinkFree {
        host: usize,
    },
    /// A quantum reached the end of the receiver's downlink.
    Delivered {
        from: usize,
        to: usize,
        request: u64,
        bytes: u64,
    },
    /// The receiver's window opens again at the sender.
    Acknowledged {
        from: usize,
        to: usize,
        request: u64,
        bytes: u64,
    },
    Kill {
        host: usize,
    },
    Freeze {
        host: usize,
    },
    Fade {
        host: usize,
        factor: f64,
    },
    /// Everybody hears that the host is gone.
    Mourn {
        host: usize,
    },
}

struct Entry(Duration, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// All hosts, the clock and what is to come.
pub(crate) struct World {
    pub(crate) scene: Scene,
    pub(crate) geometry: Geometry,
    pub(crate) now: Duration,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) report: Report,
}

/// The grain in which bytes move.
pub(crate) const QUANTUM: u64 = 64 << 10;
/// Nobody waits longer for a scene.
const TIME_MAX: Duration = Duration::from_secs(600);

impl World {
    fn new(scene: &Scene) -> Self {
        let geometry = Geometry::new(scene.content, scene.piece).unwrap();
        let mut chance = fastrand::Rng::with_seed(scene.chance);
        let hosts = (0..=scene.hosts)
            .map(|at| Host::new(scene, &geometry, at, chance.u64(..)))
            .collect();
        let mut world = Self {
            scene: scene.clone(),
            geometry,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            serial: 0,
            hosts,
            report: Report::new(scene.hosts + 1),
        };
        world.connect(&mut chance);
        world.top_up(&mut chance);
        world.schedule(
            Duration::from_secs_f64(QUANTUM as f64 / scene.rate),
            Event::Origin,
        );
        for host in 0..=scene.hosts {
            world.schedule(Duration::ZERO, Event::Wake { host });
        }
        if let Some((host, at)) = scene.kill {
            world.schedule(at, Event::Kill { host });
            world.schedule(at + Duration::from_secs(1), Event::Mourn { host });
        }
        if let Some((host, factor, at)) = scene.fade {
            world.schedule(at, Event::Fade { host, factor });
        }
        if let Some((host, at)) = scene.freeze {
            world.schedule(at, Event::Freeze { host });
        }
        world
    }

    /// Who knows whom: the seed knows all; ours know each other both ways; a v2 peer knows up to three
    /// earlier hosts beside the seed.
    fn connect(&mut self, chance: &mut fastrand::Rng) {
        for child in 1..self.hosts.len() {
            let own = self.hosts[child].speaks;
            self.hosts[0].join(child, own, self.now);
            self.hosts[child].join(0, Speaks::Ours, self.now);
            let mut earlier: Vec<usize> = (1..child).collect();
            chance.shuffle(&mut earlier);
            let v2 = own == Speaks::V2;
            let most = if v2 { 3 } else { self.scene.degree / 2 };
            let small = self.scene.hosts <= self.scene.degree && !v2;
            for parent in earlier
                .into_iter()
                .take(if small { usize::MAX } else { most })
            {
                let speaks = self.hosts[parent].speaks;
                self.hosts[child].join(parent, speaks, self.now);
                // A v2 parent never asks of its child: edges to v2 stay acyclic.
                if own == Speaks::V2 || speaks == Speaks::V2 {
                    self.hosts[parent].join_child(child, own, self.now);
                } else {
                    self.hosts[parent].join(child, own, self.now);
                }
            }
        }
    }

    /// Who was given few neighbours gets more: the late hosts, whom nobody came after to dial.
    fn top_up(&mut self, chance: &mut fastrand::Rng) {
        let ours = |host: &Host| host.speaks == Speaks::Ours;
        let mesh: Vec<usize> = (1..self.hosts.len())
            .filter(|at| ours(&self.hosts[*at]))
            .collect();
        for host in &mesh {
            let mut others = mesh.clone();
            chance.shuffle(&mut others);
            for other in others {
                let enough = self.hosts[*host].degree() + 1 >= self.scene.degree;
                if !enough && other != *host && !self.hosts[*host].knows(other) {
                    self.hosts[*host].join(other, Speaks::Ours, self.now);
                    self.hosts[other].join(*host, Speaks::Ours, self.now);
                }
            }
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.queue
            .push(Reverse(Entry(at.max(self.now), self.serial, event)));
    }

    pub(crate) fn wake_at(&mut self, host: usize, at: Duration) {
        if self.hosts[host]
            .wake
            .is_none_or(|wake| at < wake || wake <= self.now)
        {
            self.hosts[host].wake = Some(at);
            self.schedule(at, Event::Wake { host });
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        self.schedule(
            self.now + self.scene.delay,
            Event::Message { from, to, message },
        );
    }

    fn run(mut self) -> Report {
        while let Some(Reverse(Entry(at, _, event))) = self.queue.pop() {
            self.now = at;
            if at > TIME_MAX || self.is_over() {
                break;
            }
            self.happen(event);
        }
        self.finish()
    }

    fn is_over(&self) -> bool {
        self.hosts
            .iter()
            .all(|host| host.done.is_some() || !host.alive || host.frozen)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { host } => self.poke(host),
            Event::Origin => self.origin(),
            Event::Message { from, to, message } => {
                if self.hosts[to].alive && !self.hosts[to].frozen {
                    self.receive(from, to, message);
                    self.poke(to);
                }
            }
            Event::UplinkFree { host } => {
                self.hosts[host].uplink_busy = false;
                self.pump(host);
            }
            Event::Delivered {
                from,
                to,
                request,
                bytes,
            } => self.delivered(from, to, request, bytes),
            Event::Acknowledged {
                from,
                to,
                request,
                bytes,
            } => self.acknowledged(from, to, request, bytes),
            Event::Kill { host } => self.hosts[host].alive = false,
            Event::Fade { host, factor } => self.hosts[host].up /= factor,
            Event::Freeze { host } => self.hosts[host].frozen = true,
            Event::Mourn { host } => {
                for other in 0..self.hosts.len() {
                    self.hosts[other].mourn(host, self.now);
                    self.poke(other);
                }
            }
        }
    }

    /// The origin delivers the next quantum to the seed, in order.
    fn origin(&mut self) {
        let seed = &mut self.hosts[0];
        let from = seed.origin_reached;
        if self.scene.warm || from == self.scene.content {
            return;
        }
        let piece = self.geometry.piece_at(from).unwrap();
        let span = self.geometry.piece(piece).unwrap();
        let bytes = QUANTUM.min(span.offset + span.length - from);
        seed.origin_reached += bytes;
        let took = Duration::from_secs_f64(bytes as f64 / self.scene.rate);
        self.stored(0, piece.0, from - span.offset, bytes);
        self.schedule(self.now + took, Event::Origin);
        self.poke(0);
        self.pump(0);
    }

    /// Bytes came into the host's store: books, announcements, relays that waited for them.
    pub(crate) fn stored(&mut self, host: usize, piece: u32, offset: u64, bytes: u64) {
        let number = PieceNumber(piece);
        let target = &mut self.hosts[host];
        let mut at = offset;
        while at < offset + bytes {
            let segment = self.geometry.segment_at(number, at).unwrap();
            let span = self.geometry.segment(segment).unwrap();
            let to = (offset + bytes).min(span.offset + span.length);
            let before = target.reached[segment.0 as usize];
            let reached = before.max(to - span.offset);
            assert!(
                at - span.offset <= before,
                "a gap in segment {segment:?} of host {host}"
            );
            self.report.fresh[host] += reached - before;
            self.report.waste[host] += (to - at) - (reached - before);
            target.reached[segment.0 as usize] = reached;
            if before == 0 {
                target.arriving(segment, self.now);
            }
            at = to;
        }
        let whole = self
            .geometry
            .segments_of(number)
            .all(|span| target.reached[span.index.0 as usize] == span.length);
        if whole && target.held.set(piece) {
            target.piece_held(number, self.now);
            if target.held.is_full() {
                target.done = Some(self.now);
            }
        }
    }

    fn finish(mut self) -> Report {
        let bound = self.bound();
        self.report.close(&self.scene, &self.hosts, bound);
        self.report
    }

    /// The fluid lower bound for those that live to the end.
    fn bound(&self) -> f64 {
        let content = self.scene.content as f64;
        let living: Vec<&Host> = self.hosts[1..]
            .iter()
            .filter(|host| host.alive && !host.frozen)
            .collect();
        let up: f64 = self.hosts[0].up + living.iter().map(|host| host.up).sum::<f64>();
        let down = living.iter().map(|host| host.down).fold(f64::MAX, f64::min);
        let origin = if self.scene.warm {
            f64::MAX
        } else {
            self.scene.rate
        };
        (content / origin)
            .max(content / down)
            .max(living.len() as f64 * content / up)
    }
}
