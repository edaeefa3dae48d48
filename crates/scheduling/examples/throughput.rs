//! How much one core of a machine decides: registrations and piece reports per second of processor time, and memory per
//! idle peer.
//!
//! `cargo run --release -p scheduling --example throughput [tasks] [peers per task]` prints one figure per line.

use std::time::Duration;

use protocol::{HostId, HostRole, PeerId, TaskId, TaskKind};
use scheduling::{
    Core, Event, HostAnnouncement, Lengths, OriginWish, PieceRecord, Policy, Priority,
    Registration, Report, StreamId,
};

struct Load {
    core: Core<(), ()>,
    now: Duration,
    hosts: Vec<HostId>,
    tasks: Vec<TaskId>,
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|it| it.parse().expect("a number"));
    let task_count = arguments.next().unwrap_or(100);
    let per_task = arguments.next().unwrap_or(1000);
    for (name, mesh) in [("v2", false), ("mesh", true)] {
        let before = rss_bytes();
        let mut load = Load::new(task_count, per_task);
        let peer_count = task_count * per_task;
        let peers = load.register(peer_count, mesh);
        load.report(&peers);
        load.finish(&peers);
        let used = rss_bytes().saturating_sub(before);
        println!(
            "{name}: memory per idle peer: {} bytes",
            used / peer_count.max(1)
        );
    }
}

impl Load {
    fn new(task_count: usize, host_count: usize) -> Self {
        let mut load = Self {
            core: Core::new(Policy::default(), 1),
            now: Duration::ZERO,
            hosts: (0..host_count)
                .map(|n| format!("10.0.{}.{}-host-{n}", n / 256, n % 256))
                .map(id)
                .collect(),
            tasks: (0..task_count)
                .map(|n| format!("{n:064x}").parse().expect("a task id"))
                .collect(),
        };
        for host in load.hosts.clone() {
            let announcement = HostAnnouncement {
                name: host.as_str().into(),
                id: host,
                role: HostRole::Normal,
                disable_shared: false,
                idc: None,
                location: None,
                max_tx_bandwidth: 10_000_000_000,
                announce_interval: Duration::from_secs(300),
                data: (),
            };
            load.event(Event::HostAnnounced(announcement));
        }
        load
    }

    fn event(&mut self, event: Event<(), ()>) {
        self.now += Duration::from_micros(1);
        let actions = self.core.handle(self.now, event);
        std::hint::black_box(actions);
    }

    /// Registers one peer per host and task, and lets each begin.
    fn register(&mut self, count: usize, mesh: bool) -> Vec<(StreamId, PeerId)> {
        let mut registrations: Vec<Registration<()>> = (0_u64..)
            .zip(0..count)
            .map(|(stream, n)| self.registration(StreamId(stream), n, mesh))
            .collect();
        let peers: Vec<_> = registrations
            .iter()
            .map(|it| (it.stream, it.peer_id.clone()))
            .collect();
        let began = cpu_time();
        for (n, registration) in registrations.drain(..).enumerate() {
            let (stream, peer_id) = peers[n].clone();
            self.event(Event::PeerRegistered(registration));
            let first = n < self.tasks.len();
            let report = if first {
                Report::BackToSourceStarted
            } else {
                Report::Started
            };
            self.event(Event::PeerReported {
                stream,
                peer_id,
                report,
            });
        }
        rate(
            if mesh {
                "mesh: registrations"
            } else {
                "v2: registrations"
            },
            count,
            cpu_time() - began,
        );
        peers
    }

    fn registration(&self, stream: StreamId, n: usize, mesh: bool) -> Registration<()> {
        let (host, task) = (
            &self.hosts[n / self.tasks.len()],
            &self.tasks[n % self.tasks.len()],
        );
        Registration {
            stream,
            host_id: host.clone(),
            task_id: task.clone(),
            peer_id: id(format!("{host}-00000000-0000-4000-8000-{n:012x}")),
            mesh,
            kind: TaskKind::Standard,
            lengths: Lengths {
                content_length: Some(1 << 30),
                piece_length: 4 << 20,
                piece_count: Some(256),
            },
            range: None,
            priority: 0,
            effective_priority: Priority::SeedFirst,
            concurrent_piece_count: 8,
            origin: OriginWish::AsTold,
            credentials: 0,
            metadata_only: false,
            data: (),
        }
    }

    /// Ten pieces of each peer, interleaved; the first of each task reads the origin.
    fn report(&mut self, peers: &[(StreamId, PeerId)]) {
        let rounds = 10;
        let began = cpu_time();
        for number in 0..rounds {
            for (n, (stream, peer_id)) in peers.iter().enumerate() {
                let cost = Duration::from_millis(30);
                let report = if n < self.tasks.len() {
                    let (offset, length) = (u64::from(number) << 22, 4 << 20);
                    let digest = "crc32:3735928559".into();
                    Report::SourcePieceFinished(PieceRecord {
                        number,
                        offset,
                        length,
                        digest,
                        cost,
                        created_at: cost,
                    })
                } else {
                    Report::PieceFinished {
                        parent: Some(peers[n % self.tasks.len()].1.clone()),
                        cost,
                    }
                };
                self.event(Event::PeerReported {
                    stream: *stream,
                    peer_id: peer_id.clone(),
                    report,
                });
            }
        }
        rate(
            "   piece reports",
            peers.len() * rounds as usize,
            cpu_time() - began,
        );
    }

    fn finish(&mut self, peers: &[(StreamId, PeerId)]) {
        let began = cpu_time();
        for (stream, peer_id) in peers {
            let (stream, peer_id) = (*stream, peer_id.clone());
            self.event(Event::PeerReported {
                stream,
                peer_id,
                report: Report::Finished,
            });
        }
        rate("   ends", peers.len(), cpu_time() - began);
    }
}

fn id<I: TryFrom<String>>(text: String) -> I
where
    I::Error: std::fmt::Debug,
{
    text.try_into().expect("a short id")
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn rate(what: &str, count: usize, took: Duration) {
    println!(
        "{what}: {:.0} a second ({count} in {took:.1?})",
        count as f64 / took.as_secs_f64()
    );
}

/// Processor time of this thread so far (proc(5), `schedstat`): on a shared machine the clock on the wall tells little.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")
        .expect("Linux counts the time of threads");
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first figure is the time on a processor"))
}

/// Resident memory of this process, bytes (proc(5)); 0 where it cannot be read.
fn rss_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    let kib: usize = line
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap_or(0);
    kib * 1024
}
