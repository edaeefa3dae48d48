//! A parent that answers by hand, and fetches from it.

use std::net::SocketAddr;

use protocol::vortex::{PieceHead, Reply};
use protocol::{PieceNumber, PieceSpan, TaskKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use transfer::{CancelHandle, Client, FetchOutcome, FetchRequest, Limits, Wanted};

use super::{Collect, PATIENCE, bytes, client, limits, request_packet, task_id};

pub const LENGTH: u64 = 1000;

/// A parent that does by hand what it likes.
pub struct Parent {
    pub listener: TcpListener,
    pub addr: SocketAddr,
}

impl Parent {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    pub async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.listener.accept())
            .await
            .expect("a child connects")
            .unwrap()
            .0
    }

    /// Accepts and reads the request.
    pub async fn asked(&self) -> TcpStream {
        let mut stream = self.accept().await;
        read_request(&mut stream).await;
        stream
    }

    pub fn request(&self) -> FetchRequest {
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

    pub fn request_within(&self, limits: Limits) -> FetchRequest {
        FetchRequest {
            limits,
            ..self.request()
        }
    }
}

pub async fn read_request(stream: &mut TcpStream) {
    let mut packet = [0; 74];
    timeout(PATIENCE, stream.read_exact(&mut packet))
        .await
        .expect("a request comes")
        .unwrap();
    assert_eq!(packet[1..], request_packet(TaskKind::Standard, 3)[1..]);
}

pub fn head() -> PieceHead {
    PieceHead {
        piece: PieceNumber(3),
        offset: 3 * LENGTH,
        length: LENGTH,
        digest: "crc32:1".to_owned(),
        traffic_type: 1,
        ..PieceHead::default()
    }
}

pub fn packet(head: PieceHead) -> Vec<u8> {
    Reply::Piece(TaskKind::Standard, head).to_packet(9).unwrap()
}

pub fn whole_reply() -> Vec<u8> {
    [packet(head()), bytes(LENGTH as usize)].concat()
}

pub async fn fetch(client: &Client, request: FetchRequest) -> FetchOutcome<Collect> {
    let fetching = client.fetch(request, Collect::default(), CancelHandle::new());
    timeout(2 * PATIENCE, fetching)
        .await
        .expect("every fetch ends")
}

/// Answers one request with `reply`, closes, and returns what became of the fetch.
pub async fn answered_with(reply: Vec<u8>) -> FetchOutcome<Collect> {
    let parent = Parent::bind().await;
    let (client, request) = (client(), parent.request());
    let answering = async {
        let mut stream = parent.asked().await;
        stream.write_all(&reply).await.unwrap();
    };
    tokio::join!(fetch(&client, request), answering).0
}
