//! The conversation on one connection: request, answer, request.

use std::net::SocketAddr;

use protocol::vortex::{ErrorCode, ErrorReply, Reply, Request};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::read::{Next, Requests};
use super::send::Sender;
use super::{PieceSource, Shared};
use crate::{Content, ContentHead};

/// Serves a connection until either side ends it.
pub(super) async fn run<S: PieceSource>(
    shared: &Shared<S>,
    mut stream: TcpStream,
    child: SocketAddr,
    stop: &CancellationToken,
) {
    let mut requests = Requests::new();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = requests.next(&mut stream, shared.options.idle) => next,
        };
        let answered = match next {
            Ok(Next::Request(request)) => answer(shared, &stream, child, request, stop).await,
            Ok(Next::Impossible(error)) => {
                refuse(
                    shared,
                    &stream,
                    ErrorCode::NotFound,
                    format!("no such piece: {error}"),
                )
                .await
            }
            Ok(Next::End) => return,
            Err(error) => {
                debug!(%child, %error, "piece connection closed");
                return;
            }
        };
        if let Goes::Closed = answered {
            return;
        }
    }
}

/// Whether a connection can carry another request.
enum Goes {
    On,
    Closed,
}

async fn answer<S: PieceSource>(
    shared: &Shared<S>,
    stream: &TcpStream,
    child: SocketAddr,
    request: Request,
    stop: &CancellationToken,
) -> Goes {
    let (task_id, piece) = (request.task_id().clone(), request.piece());
    let wanted = Kind::of(&request);
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Goes::Closed,
        () = broken(stream) => {
            debug!(%child, %task_id, %piece, "child is gone before its piece was there");
            return Goes::Closed;
        }
        opened = open(shared, request, child) => opened,
    };
    let (_permit, content) = match opened {
        Ok(opened) => opened,
        Err(refusal) => return refuse(shared, stream, refusal.code, refusal.message).await,
    };
    let Some(reply) = wanted.reply(&content.head) else {
        error!(%task_id, %piece, "the piece source answered another request than it was asked: report this");
        return refuse(shared, stream, ErrorCode::Internal, "mixed up".to_owned()).await;
    };
    let length = content.head.length();
    match Sender::new(shared, stream).send(reply, content).await {
        Ok(()) => Goes::On,
        Err(error) => {
            debug!(%child, %task_id, %piece, bytes = length, %error, "piece not sent to its end");
            Goes::Closed
        }
    }
}

/// Waits for a place among the requests, then for the source.
async fn open<'a, S: PieceSource>(
    shared: &'a Shared<S>,
    request: Request,
    child: SocketAddr,
) -> Result<(tokio::sync::SemaphorePermit<'a>, Content), ErrorReply> {
    let opening = async {
        let permit = shared
            .requests
            .acquire()
            .await
            .expect("the semaphore is never closed");
        Ok((permit, shared.source.open(request, child).await?))
    };
    timeout(shared.options.open, opening)
        .await
        .unwrap_or_else(|_| {
            Err(ErrorReply {
                code: ErrorCode::Internal,
                message: "the piece did not become ready in time".to_owned(),
            })
        })
}

async fn refuse<S>(
    shared: &Shared<S>,
    stream: &TcpStream,
    code: ErrorCode,
    message: String,
) -> Goes {
    match Sender::new(shared, stream)
        .send_error(ErrorReply { code, message })
        .await
    {
        Ok(()) => Goes::On,
        Err(_) => Goes::Closed,
    }
}

/// Waits until the connection is broken. The end of the child's writing side is not enough: old v2 children end it as soon
/// as they have asked, and still want their content.
async fn broken(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::ERROR).await {
        if ready.is_error() {
            return;
        }
    }
}

/// Which head answers a request.
enum Kind {
    Piece(protocol::TaskKind),
    Segment,
}

impl Kind {
    fn of(request: &Request) -> Self {
        match request {
            Request::Piece(request) => Self::Piece(request.kind),
            Request::Segment(_) => Self::Segment,
        }
    }

    fn reply(&self, head: &ContentHead) -> Option<Reply> {
        match (self, head) {
            (Self::Piece(kind), ContentHead::Piece(head)) => {
                Some(Reply::Piece(*kind, head.clone()))
            }
            (Self::Segment, ContentHead::Segment(head)) => Some(Reply::Segment(*head)),
            _ => None,
        }
    }
}
