//! Our server against bare sockets: what old, slow, impolite and hostile children see.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{EMPTY_SHA256, PATIENCE, Serving, Task, request_packet, serve, until};
use protocol::TaskKind;
use protocol::vortex::{ErrorCode, ErrorReply, HEADER_LEN, Header, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use transfer::{CancelHandle, Client, ClientOptions, RateLimit, ServerOptions};

/// A child that does by hand what it likes.
struct Child(TcpStream);

impl Child {
    async fn connect(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        timeout(PATIENCE, self.0.read_exact(&mut bytes))
            .await
            .expect("bytes come")
            .unwrap();
        bytes
    }

    async fn reply(&mut self) -> Reply {
        let header = Header::from_bytes(self.read(HEADER_LEN).await.try_into().unwrap());
        let value = self.read(header.reply_len().unwrap()).await;
        Reply::decode(header.tag, &value).unwrap()
    }

    /// Checks that a whole piece comes.
    async fn expect_piece(&mut self, task: &Task, number: u32) {
        assert_eq!(
            self.reply().await,
            Reply::Piece(TaskKind::Standard, task.head(number))
        );
        assert_eq!(
            self.read(task.span(number).length as usize).await,
            task.piece_bytes(number)
        );
    }

    async fn expect_error(&mut self, code: ErrorCode) {
        assert!(
            matches!(self.reply().await, Reply::Error(ErrorReply { code: got, .. }) if got == code)
        );
    }

    /// Checks that nothing more comes but the end, and returns what came before it.
    async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match timeout(PATIENCE, self.0.read_to_end(&mut bytes))
            .await
            .expect("the server closes")
        {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error}"),
        }
        bytes
    }

    /// Breaks the connection instead of closing it.
    fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }
}

async fn start(task: &Arc<Task>) -> (Serving, Child) {
    let serving = serve(task, ServerOptions::default());
    let child = Child::connect(serving.addr).await;
    (serving, child)
}

#[tokio::test]
async fn golden_piece() {
    let task = Task::new(13 << 20, 4 << 20);
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 3)).await;
    let head = child.read(HEADER_LEN + 4 + 45).await;
    let digest = task.head(3).digest;
    let metadata_len = 45 + digest.len() + 52;
    assert_eq!(head[1..6], [1, 0, 0, 0, metadata_len as u8 + 4]);
    assert_eq!(head[6..10], [0, 0, 0, metadata_len as u8]);
    assert_eq!(head[10..14], [0, 0, 0, 3]);
    assert_eq!(head[14..22], (12u64 << 20).to_be_bytes());
    assert_eq!(head[22..30], (1u64 << 20).to_be_bytes());
    child.read(digest.len() + 52).await;
    assert_eq!(child.read(1 << 20).await, task.piece_bytes(3));
    serving.stop().await;
    assert_eq!(child.rest().await, b"");
}

#[tokio::test]
async fn errors_are_answered_and_the_connection_goes_on() {
    let task = Task::new(100, 64);
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 9)).await;
    let message = format!("piece {EMPTY_SHA256}-9 not found");
    let golden = [&[0xff, 0, 0, 0, 83, 2], message.as_bytes()].concat();
    assert_eq!(child.read(89).await[1..], golden);

    let mut impossible = request_packet(TaskKind::Standard, 0);
    impossible[HEADER_LEN] = b'/';
    child.send(&impossible).await;
    child.expect_error(ErrorCode::NotFound).await;
    child.send(&request_packet(TaskKind::Standard, 1)).await;
    child.expect_piece(&task, 1).await;
    serving.stop().await;
}

#[tokio::test]
async fn kinds_are_answered_with_their_own_tag() {
    let task = Task::new(10, 64);
    let (serving, mut child) = start(&task).await;
    for (number, kind) in (0..).zip([
        TaskKind::Standard,
        TaskKind::Persistent,
        TaskKind::PersistentCache,
    ]) {
        child.send(&request_packet(kind, 0)).await;
        assert_eq!(
            child.reply().await,
            Reply::Piece(kind, task.head(0)),
            "tag {number}"
        );
        child.read(10).await;
    }
    serving.stop().await;
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order() {
    let task = Task::new(3 << 20, 1 << 20);
    let (serving, mut child) = start(&task).await;
    let packets = [0, 2, 1, 7, 0]
        .map(|number| request_packet(TaskKind::Standard, number))
        .concat();
    // In two portions that cut a request in the middle.
    child.send(&packets[..100]).await;
    child.send(&packets[100..]).await;
    for number in [0, 2, 1] {
        child.expect_piece(&task, number).await;
    }
    child.expect_error(ErrorCode::NotFound).await;
    child.expect_piece(&task, 0).await;
    serving.stop().await;
}

#[tokio::test]
async fn a_child_that_half_closes_gets_its_content() {
    let task = Task::new(12 << 20, 12 << 20);
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.0.shutdown().await.unwrap();
    child.expect_piece(&task, 0).await;
    assert_eq!(child.rest().await, b"");
    serving.stop().await;
}

#[tokio::test]
async fn a_half_closed_child_is_waited_for_and_a_broken_one_is_not() {
    let task = Task::new(1 << 20, 1 << 20);
    task.held.store(true, Ordering::SeqCst);
    let (serving, mut polite) = start(&task).await;
    polite.send(&request_packet(TaskKind::Standard, 0)).await;
    polite.0.shutdown().await.unwrap();
    let mut broken = Child::connect(serving.addr).await;
    broken.send(&request_packet(TaskKind::Standard, 0)).await;
    until("both wait in open", || {
        task.opened.load(Ordering::SeqCst) == 2
    })
    .await;
    broken.reset();
    until("the broken one is given up", || {
        task.dropped_while_held.load(Ordering::SeqCst) == 1
    })
    .await;

    task.held.store(false, Ordering::SeqCst);
    task.release.notify_waiters();
    polite.expect_piece(&task, 0).await;
    assert_eq!(task.dropped_while_held.load(Ordering::SeqCst), 1);
    serving.stop().await;
}

#[tokio::test]
async fn what_is_no_request_closes_the_connection_without_an_answer() {
    let task = Task::new(100, 64);
    let serving = serve(&task, ServerOptions::default());
    let lengths = [
        (0, u32::MAX),
        (0, 67),
        (0, 69),
        (2, 0),
        (128, 257),
        (128, u32::MAX),
    ];
    let tags = [1, 3, 8, 127, 129, 200, 254, 255].map(|tag| (tag, 0));
    for (tag, len) in lengths.into_iter().chain(tags) {
        let mut child = Child::connect(serving.addr).await;
        child
            .send(&[&[7, tag], &len.to_be_bytes()[..]].concat())
            .await;
        assert_eq!(child.rest().await, b"", "tag {tag} with {len}");
    }
    let mut child = Child::connect(serving.addr).await;
    let mut no_text = request_packet(TaskKind::Standard, 0);
    no_text[HEADER_LEN] = 0xff;
    child.send(&no_text).await;
    assert_eq!(child.rest().await, b"");
    assert_eq!(task.opened.load(Ordering::SeqCst), 0);
    serving.stop().await;
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let task = Task::new(100, 64);
    let options = ServerOptions {
        idle: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut silent = Child::connect(serving.addr).await;
    assert_eq!(silent.rest().await, b"");
    let mut slow = Child::connect(serving.addr).await;
    slow.send(&[1, 0, 0]).await;
    assert_eq!(slow.rest().await, b"");
    serving.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_altogether_and_per_host() {
    let task = Task::new(100, 64);
    let options = ServerOptions {
        connections_max: 20,
        connections_per_host_max: 15,
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut held = Vec::new();
    for _ in 0..15 {
        let mut child = Child::connect(serving.addr).await;
        child.send(&request_packet(TaskKind::Standard, 0)).await;
        child.expect_piece(&task, 0).await;
        held.push(child);
    }
    assert_eq!(
        Child::connect(serving.addr).await.rest().await,
        b"",
        "one too many of this host"
    );

    // Loopback has many addresses, so the others come from another host.
    let from = |last: u8| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        Child(socket.connect(serving.addr).await.unwrap())
    };
    for _ in 0..5 {
        held.push(from(2).await);
    }
    let mut waiting = from(3).await;
    waiting.send(&request_packet(TaskKind::Standard, 1)).await;
    let early = timeout(Duration::from_millis(50), waiting.0.readable()).await;
    assert!(early.is_err(), "served beyond the bound");
    drop(held);
    waiting.expect_piece(&task, 1).await;
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_connections_do_not_shut_out_a_working_one() {
    let task = Task::new(100, 64);
    let options = ServerOptions {
        connections_max: 3000,
        connections_per_host_max: 2500,
        idle: Duration::from_secs(60),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut idle = Vec::new();
    for _ in 0..2000 {
        idle.push(Child::connect(serving.addr).await);
    }
    let mut working = Child::connect(serving.addr).await;
    for _ in 0..10 {
        working.send(&request_packet(TaskKind::Standard, 1)).await;
        working.expect_piece(&task, 1).await;
    }
    serving.stop().await;
}

#[tokio::test]
async fn requests_are_bounded_and_wait_their_turn() {
    let task = Task::new(100, 64);
    task.held.store(true, Ordering::SeqCst);
    let options = ServerOptions {
        requests_max: 2,
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut children = Vec::new();
    for _ in 0..5 {
        let mut child = Child::connect(serving.addr).await;
        child.send(&request_packet(TaskKind::Standard, 0)).await;
        children.push(child);
    }
    until("two are in open", || {
        task.opened.load(Ordering::SeqCst) == 2
    })
    .await;
    task.held.store(false, Ordering::SeqCst);
    task.release.notify_waiters();
    for child in &mut children {
        child.expect_piece(&task, 0).await;
    }
    serving.stop().await;
}

#[tokio::test]
async fn a_piece_that_does_not_become_ready_is_an_error() {
    let task = Task::new(100, 64);
    task.held.store(true, Ordering::SeqCst);
    let options = ServerOptions {
        open: Duration::from_millis(20),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut child = Child::connect(serving.addr).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.expect_error(ErrorCode::Internal).await;
    serving.stop().await;
}

#[tokio::test]
async fn a_child_that_takes_nothing_loses_its_slot() {
    let task = Task::new(16 << 20, 16 << 20);
    let options = ServerOptions {
        stall: Duration::from_millis(100),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut child = Child::connect(serving.addr).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    until("it is being sent", || task.sent.load(Ordering::SeqCst) > 0).await;
    until("the slot is free", || {
        task.uploads.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(child.rest().await.len() < 16 << 20);
    serving.stop().await;
}

#[tokio::test]
async fn bytes_are_relayed_as_they_arrive() {
    let task = Task::new(3 << 20, 2 << 20);
    task.arrived.send_replace(Some((2 << 20) + 10));
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 1)).await;
    assert_eq!(
        child.reply().await,
        Reply::Piece(TaskKind::Standard, task.head(1))
    );
    let mut got = child.read(10).await;
    for arrived in [11, 5000, 100_000, 1 << 20] {
        assert_eq!(task.uploads.load(Ordering::SeqCst), 1);
        task.arrived.send_replace(Some((2 << 20) + arrived));
        got.extend(child.read(arrived as usize - got.len()).await);
    }
    assert_eq!(got, task.piece_bytes(1));
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.expect_piece(&task, 0).await;
    serving.stop().await;
}

#[tokio::test]
async fn a_relay_that_fails_closes_before_the_last_byte() {
    let task = Task::new(1 << 20, 1 << 20);
    task.arrived.send_replace(Some(1000));
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.reply().await;
    assert_eq!(child.read(1000).await, task.bytes[..1000]);
    task.arrived.send_replace(None);
    assert_eq!(child.rest().await, b"");
    serving.stop().await;
}

#[tokio::test]
async fn a_relay_without_bytes_is_given_up() {
    let task = Task::new(1 << 20, 1 << 20);
    task.arrived.send_replace(Some(1000));
    let options = ServerOptions {
        stall: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut child = Child::connect(serving.addr).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.reply().await;
    assert_eq!(child.rest().await, task.bytes[..1000]);
    assert_eq!(task.uploads.load(Ordering::SeqCst), 0);
    serving.stop().await;
}

#[tokio::test]
async fn a_file_that_is_too_short_closes_before_the_last_byte() {
    let task = Task::new(3 << 20, 3 << 20);
    task.file.set_len(1 << 20).unwrap();
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.reply().await;
    assert!(child.rest().await.len() <= 1 << 20);
    serving.stop().await;
}

#[tokio::test]
async fn cold_content_is_sent_too() {
    let task = Task::new(6 << 20, 6 << 20);
    task.file.sync_all().unwrap();
    rustix::fs::fadvise(&*task.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let (serving, mut child) = start(&task).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.expect_piece(&task, 0).await;
    serving.stop().await;
}

#[tokio::test]
async fn a_stop_lets_content_finish_and_ends_the_rest() {
    let task = Task::new(16 << 20, 16 << 20);
    let (serving, mut taking) = start(&task).await;
    let mut idle = Child::connect(serving.addr).await;
    taking.send(&request_packet(TaskKind::Standard, 0)).await;
    until("it is being sent", || task.sent.load(Ordering::SeqCst) > 0).await;
    serving.stop.cancel();
    assert_eq!(idle.rest().await, b"");
    taking.expect_piece(&task, 0).await;
    serving.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_child_that_takes_nothing() {
    let task = Task::new(16 << 20, 16 << 20);
    let options = ServerOptions {
        drain: Duration::from_millis(50),
        ..ServerOptions::default()
    };
    let serving = serve(&task, options);
    let mut child = Child::connect(serving.addr).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    until("it is being sent", || task.sent.load(Ordering::SeqCst) > 0).await;
    serving.stop().await;
    assert_eq!(task.uploads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_upload_limit_holds() {
    let task = Task::new(4 << 20, 1 << 20);
    let limit = Arc::new(RateLimit::new(10 << 20));
    let serving = serve(
        &task,
        ServerOptions {
            upload_limit: Some(limit),
            ..ServerOptions::default()
        },
    );
    let client = Client::new(ClientOptions::default());
    let started = Instant::now();
    for number in 0..4 {
        let request = task.piece(number, serving.addr);
        let outcome = client
            .fetch(request, common::Collect::default(), CancelHandle::new())
            .await;
        outcome.result.unwrap();
    }
    assert!(
        started.elapsed() >= Duration::from_millis(250),
        "{:?}",
        started.elapsed()
    );
    serving.stop().await;
}

#[tokio::test]
async fn both_address_families_are_served_and_ipv4_looks_like_ipv4() {
    struct Tells(tokio::sync::mpsc::UnboundedSender<SocketAddr>);
    impl transfer::PieceSource for Tells {
        async fn open(
            &self,
            _request: protocol::vortex::Request,
            child: SocketAddr,
        ) -> Result<transfer::Content, ErrorReply> {
            self.0.send(child).unwrap();
            Err(ErrorReply {
                code: ErrorCode::NotFound,
                message: String::new(),
            })
        }
    }
    // Not every machine has IPv6.
    let Ok(server) = transfer::Server::bind("[::]:0".parse().unwrap(), ServerOptions::default())
    else {
        return;
    };
    let port = server.local_addr().unwrap().port();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let stop = tokio_util::sync::CancellationToken::new();
    let done = tokio::spawn(server.serve(Tells(tell), stop.clone()));
    let mut child = Child::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
    child.send(&request_packet(TaskKind::Standard, 0)).await;
    child.expect_error(ErrorCode::NotFound).await;
    assert_eq!(told.recv().await, Some(child.0.local_addr().unwrap()));
    stop.cancel();
    done.await.unwrap();
}
