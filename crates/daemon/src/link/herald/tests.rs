//! What becomes of the Want of a child: whatever numbers a foreign host sends, it is told of what is here and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use protocol::{Crc32, TaskKind, TrafficType};
use runtime::grpc::{ClientOptions, ServerOptions};
use runtime::shutdown::Shutdown;
use storage::{Claim, NewTask, PieceOrigin, Store};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::service::Routes;

use super::*;
use crate::dial::Dialer;
use crate::engine::session::Event;
use crate::identity::{Identity, Ports};
use crate::link::proto::swarm_client::SwarmClient;
use crate::link::proto::swarm_server::SwarmServer;
use crate::link::proto::{Frame, Hello, Want};
use crate::link::{FRAMES_LEN, Hub, Known, LinkService};
use crate::metrics::Metrics;
use crate::serve::Uploads;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEADLINE: Duration = Duration::from_secs(30);
/// Nine pieces of two segments, of which the last has one.
const PIECE_LENGTH: u64 = 512 << 10;
const CONTENT_LENGTH: u64 = 8 * PIECE_LENGTH + 100;
/// Whole here.
const HELD: [u32; 4] = [0, 3, 4, 8];
/// Here in part: both segments of piece 1, the first one of piece 5.
const ARRIVING: [u32; 3] = [2, 3, 10];
/// First segment of a piece of which nothing is here.
const LATER: SegmentIndex = SegmentIndex(12);

/// A host with a part of a task whose download goes on.
struct Host {
    hub: Arc<Hub>,
    links: Arc<TaskLinks>,
    _session: mpsc::Receiver<Event>,
    _folder: tempfile::TempDir,
}

impl Host {
    fn new(role: HostRole) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = storage::Options {
            headroom: 0,
            ..storage::Options::default()
        };
        let store = Store::open(folder.path(), options).unwrap();
        let geometry = Geometry::new(CONTENT_LENGTH, PIECE_LENGTH).unwrap();
        let new = NewTask::new(
            "task-of-wants".parse().unwrap(),
            TaskKind::Standard,
            "http://origin/f",
            geometry,
        );
        let task = store.create_task(new).unwrap().task;
        HELD.map(PieceNumber).iter().for_each(|&it| fill(&task, it));
        let hub = Hub::new(
            Arc::new(identity("host", role)),
            store,
            Uploads::new(Arc::new(Metrics::new(prometheus::Registry::new()).unwrap())),
            Dialer::default(),
            CancellationToken::new(),
        );
        let (session, heard) = mpsc::channel(64);
        let (links, _) = hub.attach(&task, session).unwrap();
        Self {
            hub,
            links,
            _session: heard,
            _folder: folder,
        }
    }

    /// A herald with one child, which has heard the first news, and the frames for that child from now on.
    fn herald(&self) -> (Herald, u64, mpsc::Receiver<Frame>) {
        let (frames, mut told) = mpsc::channel(FRAMES_LEN);
        let child = identity("child", HostRole::Normal);
        let link = Link {
            peer_id: child.new_peer_id(),
            host_id: child.host_id,
            piece_addr: SocketAddr::new(LOCALHOST, 1),
            seed: false,
            our_token: 1,
            its_token: 2,
            known: Mutex::new(Known::new(&self.links.geometry)),
            cancel: CancellationToken::new(),
            frames,
        };
        let token = link.its_token;
        let mut herald = Herald::new(self.links.clone());
        herald.hear(HeraldEvent::LinkUp(Arc::new(link)));
        for segment in ARRIVING.map(SegmentIndex) {
            herald.hear(HeraldEvent::Arriving(segment));
        }
        herald.decide();
        herald.flush();
        while told.try_recv().is_ok() {}
        (herald, token, told)
    }
}

fn identity(name: &str, role: HostRole) -> Identity {
    let ports = Ports {
        upload: 1,
        piece_tcp: 1,
        piece_quic: 1,
        proxy: 1,
    };
    Identity::new(LOCALHOST, name, role, ports)
}

fn fill(task: &storage::Task, piece: PieceNumber) {
    let Claim::Yours(writer) = task.claim(piece).unwrap() else {
        panic!("{piece:?} is not missing");
    };
    let length = task.geometry().piece(piece).unwrap().length;
    let bytes = vec![1; usize::try_from(length).unwrap()];
    writer.write(0, &bytes).unwrap();
    let origin = PieceOrigin {
        parent: None,
        traffic: TrafficType::BackToSource,
        created_at: std::time::SystemTime::now(),
        cost: Duration::ZERO,
    };
    writer.commit(Some(Crc32::of(&bytes)), origin).unwrap();
}

/// The news that were sent to a child, which got nothing else.
fn news(told: &mut mpsc::Receiver<Frame>) -> Vec<Have> {
    let mut news = Vec::new();
    while let Ok(frame) = told.try_recv() {
        match frame.kind {
            Some(Kind::Have(have)) => news.push(have),
            other => panic!("the child was sent {other:?}"),
        }
    }
    news
}

/// What a Want of these pieces must be answered with: held pieces and arriving segments.
fn wanted_here(pieces: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let held = HELD.iter().copied().filter(|it| pieces.contains(it));
    let arriving = ARRIVING
        .iter()
        .copied()
        .filter(|it| pieces.contains(&(it / 2)));
    (held.collect(), arriving.collect())
}

/// Pieces of the task and beyond, again and again, and whether they are all that is wanted.
fn want() -> impl Strategy<Value = (Vec<u32>, bool)> {
    let piece = prop_oneof![4 => 0..18_u32, 1 => any::<u32>()];
    (proptest::collection::vec(piece, 0..200), any::<bool>())
}

#[tokio::test]
async fn any_wants_are_answered_once_each_with_what_is_here_and_the_latest_holds() {
    let host = Host::new(HostRole::Seed);
    let geometry = host.links.geometry;
    let wants = proptest::collection::vec(want(), 1..8);
    let mut runner = TestRunner::new(Config::default());
    let outcome = runner.run(&wants, |wants| {
        let (mut herald, token, mut told) = host.herald();
        for (pieces, part) in &wants {
            herald.hear(HeraldEvent::Wants {
                token,
                pieces: pieces_of(&geometry, pieces),
                part: *part,
            });
            herald.decide();
            let answers = news(&mut told);
            prop_assert!(answers.len() <= 1, "{answers:?}");
            let answer = answers.into_iter().next().unwrap_or_default();
            let (held, arriving) = wanted_here(pieces);
            prop_assert_eq!(&answer.held, &held);
            prop_assert_eq!(answer.held_crc32.len(), held.len());
            if *part {
                prop_assert_eq!(&answer.arriving, &arriving);
            } else {
                // The stage may show it something besides.
                prop_assert!(arriving.iter().all(|it| answer.arriving.contains(it)));
                prop_assert!(answer.arriving.len() <= 2 * geometry.segment_slots() as usize);
                prop_assert!(
                    answer
                        .arriving
                        .iter()
                        .all(|it| *it < geometry.segment_slots())
                );
            }
        }
        // Nothing of the wishes is kept but which pieces of the task the latest one named.
        let (latest, part) = wants.last().expect("there is one");
        match herald.children.get(&ChildId(token)) {
            Some(Child::Mesh { link, news, wants }) => {
                prop_assert!(!link.cancel.is_cancelled());
                prop_assert!(news.arriving.is_empty() && news.held.is_empty());
                prop_assert_eq!(wants.len(), geometry.piece_count());
                let named = (0..geometry.piece_count()).filter(|it| latest.contains(it));
                prop_assert!(wants.ones().eq(named));
            }
            _ => prop_assert!(false, "the child is gone"),
        }
        herald.hear(HeraldEvent::Arriving(LATER));
        herald.decide();
        let later = news(&mut told);
        let is_told = later.iter().any(|have| have.arriving.contains(&LATER.0));
        let is_wanted = latest.contains(&(LATER.0 / 2));
        prop_assert!(is_told || !is_wanted, "what it waits for is not told");
        prop_assert!(!is_told || is_wanted || !part, "it is told of more");
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    host.hub.close().await;
}

#[tokio::test]
async fn wants_of_nobody_and_of_the_child_of_a_plain_host_change_nothing() {
    for (role, nobody) in [(HostRole::Seed, true), (HostRole::Normal, false)] {
        let host = Host::new(role);
        let (mut herald, token, mut told) = host.herald();
        herald.hear(HeraldEvent::Wants {
            token: if nobody { token + 1 } else { token },
            pieces: pieces_of(&host.links.geometry, &[0, 0, 3, 17, u32::MAX]),
            part: true,
        });
        herald.flush();
        assert_eq!(news(&mut told), []);
        host.hub.close().await;
    }
}

#[tokio::test]
async fn news_of_millions_are_told_in_messages_that_grpc_takes() {
    let host = Host::new(HostRole::Normal);
    let arriving: Vec<u32> = (u32::MAX - 900_000..u32::MAX).collect();
    let pieces: Vec<PieceNumber> = HELD.map(PieceNumber).repeat(200_000);
    let mut news = News {
        arriving: arriving.clone(),
        held: pieces.clone(),
        digests: pieces[1..].to_vec(),
    };
    let mut told = Have::default();
    while let Some(have) = news.take(&host.links.task) {
        // The limit of tonic, and of every other gRPC: 4 MiB.
        assert!(prost::Message::encoded_len(&have) < 4 << 20);
        told.arriving.extend(have.arriving);
        told.held.extend(have.held);
        told.held_crc32.extend(have.held_crc32);
        told.known.extend(have.known);
        told.known_crc32.extend(have.known_crc32);
    }
    assert!(told.arriving == arriving);
    assert!(told.held.iter().eq(pieces.iter().map(|piece| &piece.0)));
    assert!(told.known == told.held[1..] && told.known_crc32 == told.held_crc32[1..]);
    host.hub.close().await;
}

/// The child's end of a link over a real connection.
struct Dialled {
    frames: mpsc::Sender<Frame>,
    inbound: Streaming<Frame>,
}

impl Dialled {
    /// A link that stands: both have said Hello.
    async fn new(addr: SocketAddr, host: &Host) -> Self {
        let (frames, outbound) = mpsc::channel(8);
        let child = identity("child", HostRole::Normal);
        let hello = Hello {
            version: 1,
            task_id: host.links.task.id().to_string(),
            host_id: child.host_id.to_string(),
            peer_id: child.new_peer_id().to_string(),
            piece_port: 1,
            content_length: CONTENT_LENGTH,
            piece_length: PIECE_LENGTH,
            token: 7,
            ..Hello::default()
        };
        send(&frames, Kind::Hello(hello)).await;
        let channel = runtime::grpc::channel(&addr.to_string(), &ClientOptions::default());
        let mut client = SwarmClient::new(channel.unwrap());
        let answer = client.link(ReceiverStream::new(outbound)).await.unwrap();
        let mut dialled = Self {
            frames,
            inbound: answer.into_inner(),
        };
        let first = dialled.next().await.expect("a Hello");
        assert!(matches!(first.kind, Some(Kind::Hello(_))), "{first:?}");
        dialled
    }

    async fn want(&self, pieces: Vec<u32>) {
        send(&self.frames, Kind::Want(Want { pieces, part: true })).await;
    }

    /// The next frame; nothing when the link has ended.
    async fn next(&mut self) -> Option<Frame> {
        let frame = tokio::time::timeout(DEADLINE, self.inbound.message()).await;
        frame.expect("a frame or the end in time").ok().flatten()
    }

    /// The next pieces that are told to be held.
    async fn held(&mut self) -> Vec<u32> {
        loop {
            let frame = self.next().await.expect("the link stands");
            if let Some(Kind::Have(have)) = frame.kind
                && !have.held.is_empty()
            {
                return have.held;
            }
        }
    }
}

async fn send(frames: &mpsc::Sender<Frame>, kind: Kind) {
    let sent = frames.send(Frame { kind: Some(kind) }).await;
    sent.expect("the call takes frames");
}

#[tokio::test]
async fn a_want_of_millions_is_understood_and_one_beyond_the_limit_ends_its_link_only() {
    let host = Host::new(HostRole::Seed);
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    runtime::grpc::spawn_tcp(
        "links",
        runtime::grpc::server(&ServerOptions::default()).unwrap(),
        Routes::new(SwarmServer::new(LinkService::new(host.hub.clone()))),
        listener,
        &shutdown,
    );

    let mut child = Dialled::new(addr, &host).await;
    // One byte each: a frame of nearly 4 MiB.
    child
        .want((0..4_000_000).map(|it| it % 128).collect())
        .await;
    assert_eq!(child.held().await, HELD);
    child.want(vec![9, 17, 1 << 22, u32::MAX]).await;
    child.want(vec![8, 3, 8, 8, 3, u32::MAX]).await;
    assert_eq!(child.held().await, [3, 8]);

    // More than a message may have.
    child.want(vec![3; 5_000_000]).await;
    while child.next().await.is_some() {}
    let mut child = Dialled::new(addr, &host).await;
    child.want(vec![4]).await;
    assert_eq!(child.held().await, [4]);

    drop(child);
    host.hub.close().await;
    let _ = shutdown.drain(DEADLINE).await;
}
