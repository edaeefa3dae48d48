//! The sequences of the scheduler sheet, section 2.8, and what breaks them.

use dragonfly_api::common::v2::Download;
use dragonfly_api::errordetails::v2::Backend;
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Kind;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Reply;
use dragonfly_api::scheduler::v2::download_piece_back_to_source_failed_request::Response as Failure;
use dragonfly_api::scheduler::v2::*;
use tonic::Code;

use super::fake::{FakePeer, Running, Speaks, TASK, download, eventually, message};

#[tokio::test]
async fn normal_download_from_parents() {
    let running = Running::start().await;
    let mut a = running.register("a", download()).await;
    assert!(!a.mesh);
    assert_eq!(a.origin().await, "first reader of the origin");
    let mut b = running.register("b", download()).await;
    b.heard_nothing(&running).await;
    a.back_to_source_started().await;
    let parents = b.parents().await;
    assert_eq!(parents.len(), 1);
    let parent = &parents[0];
    assert_eq!(
        (parent.id.as_str(), parent.state.as_str()),
        ("a", "BackToSource")
    );
    // Everything that a real scheduler wants to have back when the peer reschedules.
    assert!(parent.cost.is_some() && parent.created_at.is_some() && parent.updated_at.is_some());
    let (task, host) = (parent.task.as_ref().unwrap(), parent.host.as_ref().unwrap());
    assert_eq!(
        (task.id.as_str(), task.url.as_str()),
        (TASK, "https://example.com/file")
    );
    assert_eq!(
        (task.content_length, task.piece_count, task.state.as_str()),
        (100 << 20, 25, "Running")
    );
    assert!(task.created_at.is_some() && task.updated_at.is_some());
    assert_eq!(
        (host.id.as_str(), host.ip.as_str(), host.port),
        ("host-a", "127.0.0.1", 4000)
    );
    b.started().await;
    for number in 0..3 {
        a.source_piece(number).await;
        b.piece(number, "a").await;
    }
    b.finished().await;
    b.closed().await;
    a.back_to_source_finished().await;
    a.closed().await;
    let mut client = running.client.clone();
    let question = StatTaskRequest {
        host_id: String::new(),
        task_id: TASK.to_owned(),
    };
    let task = client.stat_task(question).await.unwrap().into_inner();
    assert_eq!(
        (task.state.as_str(), task.peer_count, task.pieces.len()),
        ("Succeeded", 2, 3)
    );
}

#[tokio::test]
async fn a_reschedule_is_answered_with_others_and_then_with_the_origin() {
    let running = Running::start().await;
    running.register("a", download()).await.read_origin().await;
    let mut b = running.register("b", download()).await;
    let first = b.parents().await;
    b.started().await;
    let mut c = running.register("c", download()).await;
    let of_c = c.parents().await;
    c.started().await;
    c.reschedule(of_c.into_iter().filter(|parent| parent.id == "a").collect())
        .await;
    assert_eq!(c.parent_names().await, ["b"]);
    b.reschedule(first).await;
    assert_eq!(b.origin().await, "next reader of the origin");
}

#[tokio::test]
async fn an_empty_task() {
    let running = Running::start().await;
    let empty = Download {
        actual_content_length: Some(0),
        actual_piece_count: Some(0),
        ..download()
    };
    let mut a = running.register("a", empty).await;
    assert!(matches!(
        a.reply().await,
        Ok(Some(Reply::EmptyTaskResponse(_)))
    ));
    a.started().await;
    a.finished().await;
    a.closed().await;
}

#[tokio::test]
async fn a_cache_hit_is_made_known() {
    let running = Running::start().await;
    let mut a = running
        .register(
            "a",
            Download {
                metadata_only: true,
                ..download()
            },
        )
        .await;
    assert!(matches!(
        a.reply().await,
        Ok(Some(Reply::MetadataOnlyResponse(_)))
    ));
    a.started().await;
    a.finished().await;
    a.closed().await;
    let mut b = running.register("b", download()).await;
    assert_eq!(b.parent_names().await, ["a"]);
}

#[tokio::test]
async fn every_terminal_message_is_answered_by_the_end() {
    let running = Running::start().await;
    let failed = Kind::DownloadPeerFailedRequest(DownloadPeerFailedRequest { description: None });
    let source_failed = DownloadPeerBackToSourceFailedRequest {
        description: Some("x".to_owned()),
    };
    let source_failed = Kind::DownloadPeerBackToSourceFailedRequest(source_failed);
    for (name, terminal) in [("a", failed), ("b", source_failed)] {
        let mut peer = running.register(name, download()).await;
        peer.origin().await;
        peer.back_to_source_started().await;
        peer.say(terminal).await;
        peer.closed().await;
    }
}

#[tokio::test]
async fn headers_come_before_the_first_message() {
    let running = Running::start().await;
    // Nothing is ever said on this stream; opening it must not wait for that.
    let silent = FakePeer::open(&running.client, "x", Speaks::V2, None)
        .await
        .unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_broken_stream_lets_the_next_read_at_once() {
    let running = Running::start().await;
    let mut a = running.register("a", download()).await;
    a.origin().await;
    a.back_to_source_started().await;
    let mut b = running.register("b", download()).await;
    let of_b = b.parents().await;
    b.started().await;
    drop(a);
    eventually("a leaves", async || {
        let stat = StatPeerRequest {
            peer_id: "a".to_owned(),
            ..Default::default()
        };
        running
            .client
            .clone()
            .stat_peer(stat)
            .await
            .is_ok_and(|peer| peer.into_inner().state == "Leave")
    })
    .await;
    b.reschedule(of_b).await;
    assert_eq!(b.origin().await, "next reader of the origin");
}

#[tokio::test]
async fn a_missing_file_is_told_to_those_who_wait() {
    let running = Running::start().await;
    let mut a = running.register("a", download()).await;
    a.origin().await;
    let mut b = running.register("b", download()).await;
    b.heard_nothing(&running).await;
    let backend = Backend {
        message: "not there".to_owned(),
        status_code: Some(404),
        ..Default::default()
    };
    let failure = DownloadPieceBackToSourceFailedRequest {
        piece_number: None,
        response: Some(Failure::Backend(backend)),
    };
    a.say(Kind::DownloadPieceBackToSourceFailedRequest(failure))
        .await;
    let failed = DownloadPeerBackToSourceFailedRequest { description: None };
    a.say(Kind::DownloadPeerBackToSourceFailedRequest(failed))
        .await;
    a.closed().await;
    let status = b.refused().await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "the origin failed: not there");
    assert_eq!(
        status.details(),
        br#"{"message":"not there","header":{},"status_code":404}"#
    );
}

#[tokio::test]
async fn messages_that_break_the_rules_end_the_stream() {
    let running = Running::start().await;
    let wrong_url = Download {
        url: "no url".to_owned(),
        ..download()
    };
    let wrong_digest = Download {
        digest: Some("sha256:1".to_owned()),
        ..download()
    };
    let wrong_piece_length = Download {
        piece_length: Some(1),
        ..download()
    };
    for (name, download, field) in [
        ("a", wrong_url, "download.url"),
        ("b", wrong_digest, "download.digest"),
        ("c", wrong_piece_length, "download.piece_length"),
    ] {
        let status = running.register(name, download).await.refused().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    let mut unset = FakePeer::open(&running.client, "d", Speaks::V2, None)
        .await
        .unwrap();
    unset
        .send_raw(AnnouncePeerRequest {
            request: None,
            ..message("d", Kind::DownloadPeerFinishedRequest(Default::default()))
        })
        .await;
    assert_eq!(unset.refused().await.code(), Code::InvalidArgument);
    let mut nameless = FakePeer::open(&running.client, "", Speaks::V2, Some(download()))
        .await
        .unwrap();
    assert_eq!(nameless.refused().await.code(), Code::InvalidArgument);
    let mut stranger = FakePeer::open(&running.client, "nobody", Speaks::V2, Some(download()))
        .await
        .unwrap();
    let status = stranger.refused().await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("host host-nobody not found"),
        "{status}"
    );
}

#[tokio::test]
async fn nonsense_about_pieces_never_ends_a_stream() {
    let running = Running::start().await;
    let mut a = running.register("a", download()).await;
    a.origin().await;
    a.back_to_source_started().await;
    let for_good = DownloadPieceFailedRequest {
        piece_number: Some(1),
        parent_id: "x".to_owned(),
        temporary: false,
    };
    a.say(Kind::DownloadPieceFailedRequest(for_good)).await;
    a.piece(3, "who").await;
    let unregistered = message(
        "somebody-else",
        Kind::DownloadPieceFailedRequest(DownloadPieceFailedRequest {
            piece_number: None,
            parent_id: "a".to_owned(),
            temporary: true,
        }),
    );
    a.send_raw(unregistered).await;
    a.back_to_source_finished().await;
    a.closed().await;
}

#[tokio::test]
async fn a_shutdown_ends_open_streams_within_its_grace() {
    let running = Running::start().await;
    let mut a = running.register("a", download()).await;
    a.origin().await;
    let mut b = running.register("b", download()).await;
    b.heard_nothing(&running).await;
    let drained = running.shutdown.drain(super::fake::SOON).await;
    assert_eq!(drained.aborted, Vec::<String>::new());
    for peer in [&mut a, &mut b] {
        assert_eq!(peer.refused().await.code(), Code::Unavailable);
    }
}
