//! Our client against bare sockets: what it makes of old, slow, broken and hostile parents.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Collect, PATIENCE, Task, client, limits, request_packet, serve, task_id};
use protocol::vortex::{ErrorCode, ErrorReply, PieceHead, Reply, SegmentHead};
use protocol::{PieceNumber, PieceSpan, TaskKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use transfer::{
    CancelHandle, Client, ClientOptions, Fault, FetchError, FetchOutcome, FetchRequest, Limits,
    RateLimit, ServerOptions, Sink, SinkError, Wanted,
};

const LENGTH: u64 = 1000;

/// A parent that does by hand what it likes.
struct Parent {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Parent {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.listener.accept())
            .await
            .expect("a child connects")
            .unwrap()
            .0
    }

    /// Accepts and reads the request.
    async fn asked(&self) -> TcpStream {
        let mut stream = self.accept().await;
        read_request(&mut stream).await;
        stream
    }

    fn request(&self) -> FetchRequest {
        let span = PieceSpan {
            number: PieceNumber(3),
            offset: 3 * LENGTH,
            length: LENGTH,
        };
        let wanted = Wanted::Piece {
            kind: TaskKind::Standard,
            task_id: task_id(),
            span,
        };
        FetchRequest {
            parent: self.addr,
            wanted,
            limits: limits(),
        }
    }

    fn request_within(&self, limits: Limits) -> FetchRequest {
        FetchRequest {
            limits,
            ..self.request()
        }
    }
}

async fn read_request(stream: &mut TcpStream) {
    let mut packet = [0; 74];
    timeout(PATIENCE, stream.read_exact(&mut packet))
        .await
        .expect("a request comes")
        .unwrap();
    assert_eq!(packet[1..], request_packet(TaskKind::Standard, 3)[1..]);
}

fn head() -> PieceHead {
    PieceHead {
        piece: PieceNumber(3),
        offset: 3 * LENGTH,
        length: LENGTH,
        digest: "crc32:1".to_owned(),
        traffic_type: 1,
        ..PieceHead::default()
    }
}

fn packet(head: PieceHead) -> Vec<u8> {
    Reply::Piece(TaskKind::Standard, head).to_packet(9).unwrap()
}

fn whole_reply() -> Vec<u8> {
    [packet(head()), common::bytes(LENGTH as usize)].concat()
}

async fn fetch(client: &Client, request: FetchRequest) -> FetchOutcome<Collect> {
    let fetching = client.fetch(request, Collect::default(), CancelHandle::new());
    timeout(2 * PATIENCE, fetching)
        .await
        .expect("every fetch ends")
}

/// Answers one request with `reply`, closes, and returns what became of the fetch.
async fn answered_with(reply: Vec<u8>) -> FetchOutcome<Collect> {
    let parent = Parent::bind().await;
    let (client, request) = (client(), parent.request());
    let answering = async {
        let mut stream = parent.asked().await;
        stream.write_all(&reply).await.unwrap();
    };
    tokio::join!(fetch(&client, request), answering).0
}

fn assert_bad_parent(outcome: FetchOutcome<Collect>, what: &str) {
    let error = outcome.result.expect_err(what);
    assert_eq!(error.fault(), Fault::Parent, "{what}: {error}");
    assert_eq!(
        (
            outcome.received,
            outcome.sink.bytes.len(),
            outcome.sink.head
        ),
        (0, 0, None),
        "{what}"
    );
}

#[tokio::test]
async fn content_comes_with_its_head() {
    let outcome = answered_with(whole_reply()).await;
    outcome.result.unwrap();
    assert_eq!(outcome.received, LENGTH);
    assert_eq!(outcome.sink.head.unwrap().digest(), "crc32:1");
    assert_eq!(outcome.sink.bytes, common::bytes(LENGTH as usize));
}

#[tokio::test]
async fn answers_about_something_else_are_refused_before_their_content() {
    for (what, wrong) in [
        (
            "number",
            PieceHead {
                piece: PieceNumber(4),
                ..head()
            },
        ),
        (
            "offset",
            PieceHead {
                offset: 0,
                ..head()
            },
        ),
        (
            "shorter",
            PieceHead {
                length: LENGTH - 1,
                ..head()
            },
        ),
        (
            "longer",
            PieceHead {
                length: u64::MAX,
                ..head()
            },
        ),
    ] {
        assert_bad_parent(
            answered_with([packet(wrong), vec![0; 2000]].concat()).await,
            what,
        );
    }
    let other_kind = Reply::Piece(TaskKind::Persistent, head())
        .to_packet(0)
        .unwrap();
    assert_bad_parent(answered_with(other_kind).await, "kind");
    let segment = SegmentHead {
        piece: PieceNumber(3),
        offset: 0,
        length: LENGTH,
    };
    assert_bad_parent(
        answered_with(Reply::Segment(segment).to_packet(0).unwrap()).await,
        "segment",
    );
}

#[tokio::test]
async fn hostile_packets_are_refused_before_memory_is_taken() {
    let header = |tag: u8, len: u32| [&[7, tag], &len.to_be_bytes()[..]].concat();
    for (tag, len) in [
        (1, u32::MAX),
        (1, 70_000),
        (255, u32::MAX),
        (255, 0),
        (129, 21),
        (0, 68),
        (8, 0),
        (254, 0),
    ] {
        assert_bad_parent(
            answered_with([header(tag, len), vec![0; 100]].concat()).await,
            &format!("{tag} {len}"),
        );
    }
    let mut lying = packet(head());
    lying[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_bad_parent(answered_with(lying).await, "metadata length");
}

#[tokio::test]
async fn an_early_end_says_how_far_it_came() {
    let outcome = answered_with(whole_reply()[..700].to_vec()).await;
    assert!(
        matches!(outcome.result, Err(FetchError::Closed)),
        "{:?}",
        outcome.result
    );
    let received = 700 - packet(head()).len();
    assert_eq!(outcome.received, received as u64);
    assert_eq!(
        outcome.sink.bytes,
        common::bytes(LENGTH as usize)[..received]
    );
    for cut in [0, 3, 6, 40] {
        let outcome = answered_with(whole_reply()[..cut].to_vec()).await;
        let error = outcome.result.expect_err("cut off");
        assert_eq!(
            (error.fault(), outcome.received),
            (Fault::Path, 0),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_reset_says_how_far_it_came() {
    let parent = Parent::bind().await;
    let (client, progress) = (client(), watch::Sender::new(0));
    let mut seen = progress.subscribe();
    let sink = Collect {
        progress: Some(progress),
        ..Collect::default()
    };
    let answering = async {
        let mut stream = parent.asked().await;
        stream.write_all(&whole_reply()[..700]).await.unwrap();
        seen.wait_for(|bytes| *bytes > 0).await.unwrap();
        stream.set_zero_linger().unwrap();
    };
    let (outcome, ()) = tokio::join!(
        client.fetch(parent.request(), sink, CancelHandle::new()),
        answering
    );
    assert!(
        matches!(outcome.result, Err(FetchError::Broken(_))),
        "{:?}",
        outcome.result
    );
    assert_eq!(outcome.received, outcome.sink.bytes.len() as u64);
}

#[tokio::test]
async fn an_error_reply_is_handed_on_and_its_connection_used_again() {
    let parent = Parent::bind().await;
    let client = client();
    let refusal = ErrorReply {
        code: ErrorCode::Refused,
        message: "in line".to_owned(),
    };
    let answering = async {
        let mut stream = parent.asked().await;
        let reply = Reply::Error(refusal.clone()).to_packet(1).unwrap();
        stream.write_all(&reply).await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(&whole_reply()).await.unwrap();
        stream
    };
    let fetching = async {
        let outcome = fetch(&client, parent.request()).await;
        assert!(matches!(&outcome.result, Err(FetchError::Refused(got)) if *got == refusal));
        assert_eq!(outcome.result.unwrap_err().fault(), Fault::Path);
        fetch(&client, parent.request()).await.result.unwrap();
    };
    tokio::join!(fetching, answering);
}

#[tokio::test]
async fn connections_are_used_again_until_they_are_too_old() {
    let parent = Parent::bind().await;
    let client = Client::new(ClientOptions {
        idle: Duration::from_millis(30),
        ..ClientOptions::default()
    });
    let answering = async {
        let mut first = parent.asked().await;
        first.write_all(&whole_reply()).await.unwrap();
        let mut second = parent.asked().await;
        second.write_all(&whole_reply()).await.unwrap();
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).await.unwrap();
    };
    let fetching = async {
        fetch(&client, parent.request()).await.result.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        fetch(&client, parent.request()).await.result.unwrap();
    };
    tokio::join!(fetching, answering);
}

#[tokio::test]
async fn parents_that_close_after_one_reply_are_asked_anew() {
    let parent = Parent::bind().await;
    let client = client();
    for _ in 0..3 {
        let answering = async {
            let mut stream = parent.asked().await;
            stream.write_all(&whole_reply()).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(fetch(&client, parent.request()), answering);
        outcome.result.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_ends_just_when_it_is_used_again_costs_one_retry() {
    let parent = Parent::bind().await;
    let client = client();
    let answering = async {
        let mut first = parent.asked().await;
        first.write_all(&whole_reply()).await.unwrap();
        read_request(&mut first).await;
        drop(first);
        let mut second = parent.asked().await;
        second.write_all(&whole_reply()).await.unwrap();
        read_request(&mut second).await;
        drop(second);
        drop(parent.asked().await);
    };
    let fetching = async {
        fetch(&client, parent.request()).await.result.unwrap();
        fetch(&client, parent.request()).await.result.unwrap();
        let outcome = fetch(&client, parent.request()).await;
        assert!(
            matches!(outcome.result, Err(FetchError::Closed)),
            "{:?}",
            outcome.result
        );
    };
    tokio::join!(fetching, answering);
}

#[tokio::test]
async fn bytes_behind_the_content_make_a_connection_useless() {
    let parent = Parent::bind().await;
    let client = client();
    for _ in 0..2 {
        let answering = async {
            let mut stream = parent.asked().await;
            stream
                .write_all(&[whole_reply(), vec![1, 2, 3]].concat())
                .await
                .unwrap();
            stream
        };
        let (outcome, _open) = tokio::join!(fetch(&client, parent.request()), answering);
        assert_eq!(outcome.sink.bytes.len() as u64, LENGTH);
    }
}

#[tokio::test]
async fn silence_is_bounded_before_and_in_the_content() {
    let parent = Parent::bind().await;
    let client = client();
    let short = Duration::from_millis(50);
    let head = parent.request_within(Limits {
        head: short,
        ..limits()
    });
    let (outcome, _open) = tokio::join!(fetch(&client, head), parent.asked());
    assert!(matches!(outcome.result, Err(FetchError::Stalled(limit)) if limit == short));

    let stall = parent.request_within(Limits {
        stall: short,
        ..limits()
    });
    let answering = async {
        let mut stream = parent.asked().await;
        stream.write_all(&whole_reply()[..700]).await.unwrap();
        stream
    };
    let (outcome, _open) = tokio::join!(fetch(&client, stall), answering);
    assert!(matches!(outcome.result, Err(FetchError::Stalled(limit)) if limit == short));
    assert_eq!(outcome.received as usize, outcome.sink.bytes.len());
    assert!(outcome.received > 0);
}

/// Sends byte after byte until the child goes away.
async fn trickle(parent: &Parent, reply: Vec<u8>) {
    let mut stream = parent.asked().await;
    stream.set_nodelay(true).unwrap();
    for byte in reply {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_trickle_is_bounded_too() {
    let parent = Parent::bind().await;
    let client = client();
    let short = Duration::from_millis(60);
    let head = parent.request_within(Limits {
        head: short,
        ..limits()
    });
    let (outcome, ()) = tokio::join!(
        fetch(&client, head),
        trickle(&parent, whole_reply()[..60].to_vec())
    );
    assert!(
        matches!(outcome.result, Err(FetchError::Stalled(_))),
        "{:?}",
        outcome.result
    );

    let content = parent.request_within(Limits {
        content: short,
        ..limits()
    });
    let (outcome, ()) = tokio::join!(fetch(&client, content), trickle(&parent, whole_reply()));
    assert!(matches!(outcome.result, Err(FetchError::Deadline(limit)) if limit == short));
}

#[tokio::test]
async fn parents_that_cannot_be_reached_are_told_apart() {
    let client = Client::new(ClientOptions {
        connect: Duration::from_millis(100),
        ..ClientOptions::default()
    });
    let parent = Parent::bind().await;
    let request = parent.request();
    drop(parent);
    let outcome = fetch(&client, request).await;
    assert!(
        matches!(&outcome.result, Err(FetchError::Connect(_))),
        "{:?}",
        outcome.result
    );
    assert_eq!(outcome.result.unwrap_err().fault(), Fault::Path);
}

/// A listener whose queue is full: further connections get no answer at all.
async fn deaf_parent() -> (Vec<TcpStream>, tokio::net::TcpListener, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(addr)).await {
        queued.push(stream);
    }
    (queued, listener, addr)
}

#[tokio::test]
async fn connecting_is_bounded_and_can_be_cancelled() {
    let (_queued, _listener, addr) = deaf_parent().await;
    let request = FetchRequest {
        parent: addr,
        ..Parent::bind().await.request()
    };
    let client = Client::new(ClientOptions {
        connect: Duration::from_millis(50),
        ..ClientOptions::default()
    });
    let outcome = fetch(&client, request.clone()).await;
    assert!(
        matches!(outcome.result, Err(FetchError::Connect(_))),
        "{:?}",
        outcome.result
    );

    let client = Client::new(ClientOptions {
        connect: PATIENCE,
        ..ClientOptions::default()
    });
    let cancel = CancelHandle::new();
    let started = Instant::now();
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(
        client.fetch(request, Collect::default(), cancel.clone()),
        cancelling
    );
    assert!(
        matches!(outcome.result, Err(FetchError::Cancelled)),
        "{:?}",
        outcome.result
    );
    assert!(started.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_fetch_can_be_cancelled_at_any_point() {
    let parent = Parent::bind().await;
    let client = Client::new(ClientOptions {
        workers_max: 1,
        ..ClientOptions::default()
    });
    let done = CancelHandle::new();
    done.cancel();
    let outcome = client
        .fetch(parent.request(), Collect::default(), done)
        .await;
    assert!(
        matches!(outcome.result, Err(FetchError::Cancelled)),
        "before it began"
    );

    let (waiting, queued) = (CancelHandle::new(), CancelHandle::new());
    let cancelling = async {
        let stream = parent.asked().await;
        queued.cancel();
        waiting.cancel();
        stream
    };
    let (first, second, _open) = tokio::join!(
        client.fetch(parent.request(), Collect::default(), waiting.clone()),
        client.fetch(parent.request(), Collect::default(), queued.clone()),
        cancelling
    );
    assert!(
        matches!(first.result, Err(FetchError::Cancelled)),
        "before the head"
    );
    assert!(
        matches!(second.result, Err(FetchError::Cancelled)),
        "before it had a worker"
    );

    let (cancel, progress) = (CancelHandle::new(), watch::Sender::new(0));
    let mut seen = progress.subscribe();
    let sink = Collect {
        progress: Some(progress),
        ..Collect::default()
    };
    let cancelling = async {
        let mut stream = parent.asked().await;
        stream.write_all(&whole_reply()[..700]).await.unwrap();
        seen.wait_for(|bytes| *bytes > 0).await.unwrap();
        cancel.cancel();
        cancel.cancel();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(
        client.fetch(parent.request(), sink, cancel.clone()),
        cancelling
    );
    assert!(
        matches!(outcome.result, Err(FetchError::Cancelled)),
        "{:?}",
        outcome.result
    );
    assert_eq!(outcome.received, outcome.sink.bytes.len() as u64);
    assert!(outcome.received > 0 && cancel.is_cancelled());
}

#[tokio::test]
async fn a_dropped_fetch_lets_go_of_its_parent() {
    let parent = Parent::bind().await;
    let client = client();
    let mut stream = {
        let fetching = client.fetch(parent.request(), Collect::default(), CancelHandle::new());
        tokio::select! {
            _ = fetching => panic!("nothing was answered"),
            stream = parent.asked() => stream,
        }
    };
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection ends")
        .unwrap();
}

/// A sink that fails in its own way.
struct Fails(fn() -> Result<(), SinkError>);

impl Sink for Fails {
    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        (self.0)()
    }
}

#[tokio::test]
async fn the_sink_decides_whose_fault_it_is() {
    let check = async |fails: fn() -> Result<(), SinkError>, fault| {
        let parent = Parent::bind().await;
        let client = client();
        let answering = async {
            let mut stream = parent.asked().await;
            stream.write_all(&whole_reply()).await.unwrap();
            stream
        };
        let fetching = client.fetch(parent.request(), Fails(fails), CancelHandle::new());
        let (outcome, _open) = tokio::join!(fetching, answering);
        let error = outcome.result.expect_err("the sink refuses");
        assert_eq!((error.fault(), outcome.received), (fault, 0), "{error}");
    };
    check(|| Err(SinkError::Parent("no digest".into())), Fault::Parent).await;
    check(
        || Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into()),
        Fault::Here,
    )
    .await;
    check(|| Err(SinkError::Stop), Fault::Nobody).await;
    check(|| panic!("a sink's own mistake"), Fault::Here).await;
}

#[tokio::test]
async fn long_task_ids_cannot_be_asked_for_by_piece_but_by_segment() {
    let task = Task::new(100, 64);
    let serving = serve(&task, ServerOptions::default());
    let long = || "a".repeat(128).parse().unwrap();
    let wanted = Wanted::Piece {
        kind: TaskKind::Standard,
        task_id: long(),
        span: task.span(0),
    };
    let request = FetchRequest {
        wanted,
        ..task.piece(0, serving.addr)
    };
    let outcome = fetch(&client(), request).await;
    assert!(
        matches!(outcome.result, Err(FetchError::Encode(_))),
        "{:?}",
        outcome.result
    );
    let wanted = Wanted::Segment {
        link_token: 0,
        task_id: long(),
        piece: PieceNumber(0),
        offset: 0,
        length: 5,
    };
    let outcome = fetch(
        &client(),
        FetchRequest {
            wanted,
            ..task.piece(0, serving.addr)
        },
    )
    .await;
    let not_found = |error: &ErrorReply| error.code == ErrorCode::NotFound;
    assert!(matches!(&outcome.result, Err(FetchError::Refused(error)) if not_found(error)));
    serving.stop().await;
}

#[tokio::test]
async fn the_download_limit_holds() {
    let task = Task::new(3 << 20, 3 << 20);
    let serving = serve(&task, ServerOptions::default());
    let limit = Some(Arc::new(RateLimit::new(10 << 20)));
    let client = Client::new(ClientOptions {
        download_limit: limit,
        ..ClientOptions::default()
    });
    let started = Instant::now();
    let outcome = fetch(&client, task.piece(0, serving.addr)).await;
    outcome.result.unwrap();
    assert!(
        started.elapsed() >= Duration::from_millis(150),
        "{:?}",
        started.elapsed()
    );
    serving.stop().await;
}
