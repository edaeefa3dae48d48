//! Our server and our client with each other.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod common;

use common::{Collect, Task, client, serve};
use transfer::{CancelHandle, ServerOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_and_segments_arrive_whole() {
    let task = Task::new(10_000_000, 4 << 20);
    let serving = serve(&task, ServerOptions::default());
    let client = client();
    for number in 0..3 {
        let outcome = client
            .fetch(
                task.piece(number, serving.addr),
                Collect::default(),
                CancelHandle::new(),
            )
            .await;
        outcome.result.unwrap();
        assert_eq!(outcome.received, task.span(number).length);
        assert_eq!(
            outcome.sink.head,
            Some(transfer::ContentHead::Piece(task.head(number)))
        );
        assert_eq!(outcome.sink.bytes, task.piece_bytes(number));
    }
    let outcome = client
        .fetch(
            task.segment(1, 5, 100_000, serving.addr),
            Collect::default(),
            CancelHandle::new(),
        )
        .await;
    outcome.result.unwrap();
    assert_eq!(outcome.sink.bytes, task.piece_bytes(1)[5..100_005]);
    serving.stop().await;
}
