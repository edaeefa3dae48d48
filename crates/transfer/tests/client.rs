//! Our client against bare sockets: what it makes of old, slow, broken and hostile parents.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use std::time::Duration;

use common::parent::{
    LENGTH, Parent, answered_with, fetch, head, packet, read_request, whole_reply,
};
use common::{Collect, Task, client, serve};
use protocol::vortex::{ErrorCode, ErrorReply, PieceHead, Reply, SegmentHead};
use protocol::{PieceNumber, TaskKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use transfer::{
    CancelHandle, Client, ClientOptions, Fault, FetchError, FetchOutcome, FetchRequest,
    ServerOptions, Sink, SinkError, Wanted,
};

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
