//! Our server and our client with each other.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Collect, Task, client, serve, until};
use protocol::vortex::{ErrorReply, Request, SegmentHead};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use transfer::{
    Arrival, ArrivalFailed, Arriving, CancelHandle, Client, ClientOptions, Content, ContentHead,
    FetchError, PieceSource, Server, ServerOptions, Sink, SinkError,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_and_segments_arrive_whole() {
    let task = Task::new(10_000_000, 4 << 20);
    let serving = serve(&task, ServerOptions::default());
    let client = client();
    for number in 0..3 {
        let request = task.piece(number, serving.addr);
        let outcome = client
            .fetch(request, Collect::default(), CancelHandle::new())
            .await;
        outcome.result.unwrap();
        assert_eq!(outcome.received, task.span(number).length);
        assert_eq!(
            outcome.sink.head,
            Some(ContentHead::Piece(task.head(number)))
        );
        assert_eq!(outcome.sink.bytes, task.piece_bytes(number));
    }
    let request = task.segment(1, 5, 100_000, serving.addr);
    let outcome = client
        .fetch(request, Collect::default(), CancelHandle::new())
        .await;
    outcome.result.unwrap();
    assert_eq!(outcome.sink.bytes, task.piece_bytes(1)[5..100_005]);
    serving.stop().await;
}

/// Stops itself after some bytes, as a cancelled fetch would.
struct Quits {
    collect: Collect,
    after: usize,
    cancel: CancelHandle,
}

impl Sink for Quits {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.collect.write(offset, bytes)?;
        if self.collect.bytes.len() >= self.after {
            self.cancel.cancel();
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_fetches_of_which_some_are_cancelled_leave_nothing_behind() {
    let task = Task::new(8 << 20, 256 << 10);
    let serving = serve(&task, ServerOptions::default());
    let client = Client::new(ClientOptions {
        workers_max: 12,
        ..ClientOptions::default()
    });
    let mut fetches = JoinSet::new();
    for round in 0..10 {
        for number in 0..task.geometry.piece_count() {
            let (task, client, addr) = (Arc::clone(&task), client.clone(), serving.addr);
            fetches.spawn(async move {
                let cancel = CancelHandle::new();
                let after = match (number + round) % 3 {
                    0 => 1 + (number as usize * 7919) % (256 << 10),
                    _ => usize::MAX,
                };
                let sink = Quits {
                    collect: Collect::default(),
                    after,
                    cancel: cancel.clone(),
                };
                let outcome = client.fetch(task.piece(number, addr), sink, cancel).await;
                let got = outcome.sink.collect.bytes;
                assert_eq!(got, task.piece_bytes(number)[..got.len()]);
                assert_eq!(outcome.received, got.len() as u64);
                match outcome.result {
                    Ok(()) => assert_eq!(got.len(), 256 << 10),
                    Err(error) => assert!(
                        matches!(error, FetchError::Cancelled) && after < usize::MAX,
                        "{error}"
                    ),
                }
            });
        }
    }
    while let Some(fetch) = fetches.join_next().await {
        fetch.unwrap();
    }
    until("every upload slot is free", || {
        task.uploads.load(Ordering::SeqCst) == 0
    })
    .await;
    serving.stop().await;
}

/// A host in the middle: what its own fetch has written so far, its children can have.
struct Relay {
    file: Arc<File>,
    reached: watch::Sender<Option<u64>>,
}

/// The receiving half of a relay.
struct Onward(Arc<Relay>);

impl Sink for Onward {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.file.write_all_at(bytes, offset)?;
        self.0
            .reached
            .send_replace(Some(offset + bytes.len() as u64));
        Ok(())
    }
}

struct Reached(watch::Receiver<Option<u64>>);

impl Arriving for Reached {
    fn more(
        &mut self,
        have: u64,
    ) -> Pin<Box<dyn Future<Output = Result<u64, ArrivalFailed>> + Send + '_>> {
        Box::pin(async move {
            let enough = |reached: &Option<u64>| reached.is_none_or(|reached| reached > have);
            let reached = self.0.wait_for(enough).await.map_err(|_| ArrivalFailed)?;
            reached.ok_or(ArrivalFailed)
        })
    }
}

impl PieceSource for Relay {
    async fn open(&self, request: Request, _child: SocketAddr) -> Result<Content, ErrorReply> {
        let Request::Segment(request) = request else {
            panic!("only segments are asked for")
        };
        let head = SegmentHead {
            piece: request.piece,
            offset: request.offset,
            length: request.length,
        };
        Ok(Content {
            head: ContentHead::Segment(head),
            file: Arc::clone(&self.file),
            file_offset: 0,
            arrival: Arrival::Arriving(Box::new(Reached(self.reached.subscribe()))),
            upload: Box::new(()),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_relays_passes_bytes_on_and_passes_failure_on() {
    const LENGTH: u64 = 4 << 20;
    let task = Task::new(LENGTH as usize, LENGTH);
    task.arrived.send_replace(Some(LENGTH / 2));
    let origin = serve(&task, ServerOptions::default());
    let (client, stop) = (client(), CancellationToken::new());
    let mut work = JoinSet::new();
    let mut parent = origin.addr;
    let mut last = None;
    for _ in 0..4 {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let relay = Arc::new(Relay {
            file,
            reached: watch::Sender::new(Some(0)),
        });
        let (client, request) = (client.clone(), task.segment(0, 0, LENGTH, parent));
        let server =
            Server::bind("127.0.0.1:0".parse().unwrap(), ServerOptions::default()).unwrap();
        parent = server.local_addr().unwrap();
        let (source, stop, sink) = (Arc::clone(&relay), stop.clone(), Onward(Arc::clone(&relay)));
        work.spawn(async move { server.serve(source, stop).await });
        work.spawn(async move {
            let outcome = client.fetch(request, sink, CancelHandle::new()).await;
            assert!(
                matches!(outcome.result, Err(FetchError::Closed)),
                "{:?}",
                outcome.result
            );
            outcome.sink.0.reached.send_replace(None);
        });
        last = Some(relay);
    }
    let last = last.unwrap();
    let progress = watch::Sender::new(0);
    let mut seen = progress.subscribe();
    let sink = Collect {
        progress: Some(progress),
        ..Collect::default()
    };
    let fetching = client.fetch(
        task.segment(0, 0, LENGTH, parent),
        sink,
        CancelHandle::new(),
    );
    let failing = async {
        // Half of it has come through all relays while the other half is not even at the first.
        seen.wait_for(|bytes| *bytes == LENGTH / 2).await.unwrap();
        task.arrived.send_replace(None);
    };
    let (outcome, ()) = tokio::join!(fetching, failing);
    assert!(
        matches!(outcome.result, Err(FetchError::Closed)),
        "{:?}",
        outcome.result
    );
    assert_eq!(outcome.sink.bytes, task.bytes[..(LENGTH / 2) as usize]);
    until("the last relay knows", || last.reached.borrow().is_none()).await;
    stop.cancel();
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    origin.stop().await;
}
