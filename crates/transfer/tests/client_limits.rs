//! Our client against bare sockets: every wait ends, by itself or when it is told to.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::parent::{Parent, fetch, whole_reply};
use common::{Collect, PATIENCE, Task, client, limits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use transfer::{
    CancelHandle, Client, ClientOptions, Fault, FetchError, FetchRequest, Limits, RateLimit,
    ServerOptions,
};

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
