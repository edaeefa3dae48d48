//! A piece source over temporary files, sinks, and bare sockets that speak for the other side.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by test files that each use a part of it"
)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

pub mod parent;

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use protocol::vortex::{ErrorCode, ErrorReply, PieceHead, Request, SegmentHead};
use protocol::{Crc32, Geometry, PieceNumber, TaskId, TaskKind};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transfer::{
    Arrival, ArrivalFailed, Arriving, Client, ClientOptions, Content, ContentHead, FetchRequest,
    Limits, PieceSource, Server, ServerOptions, Sink, SinkError, Upload, Wanted,
};

pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn task_id() -> TaskId {
    EMPTY_SHA256.parse().unwrap()
}

/// Bytes that differ from place to place.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until a condition holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// One task in a file, of which some bytes may still be arriving.
pub struct Task {
    pub bytes: Vec<u8>,
    pub geometry: Geometry,
    pub file: Arc<File>,
    /// How many bytes of the task have arrived; `None` when the rest will not come.
    pub arrived: watch::Sender<Option<u64>>,
    /// Requests wait here while it is set.
    pub held: AtomicBool,
    pub release: Notify,
    pub opened: AtomicUsize,
    pub dropped_while_held: Arc<AtomicUsize>,
    pub uploads: Arc<AtomicUsize>,
    pub sent: Arc<AtomicU64>,
}

impl Task {
    pub fn new(len: usize, piece_length: u64) -> Arc<Self> {
        let bytes = bytes(len);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Arc::new(Self {
            geometry: Geometry::new(len as u64, piece_length).unwrap(),
            arrived: watch::Sender::new(Some(len as u64)),
            bytes,
            file: Arc::new(file),
            held: AtomicBool::new(false),
            release: Notify::new(),
            opened: AtomicUsize::new(0),
            dropped_while_held: Arc::default(),
            uploads: Arc::default(),
            sent: Arc::default(),
        })
    }

    pub fn span(&self, number: u32) -> protocol::PieceSpan {
        self.geometry.piece(PieceNumber(number)).unwrap()
    }

    pub fn piece_bytes(&self, number: u32) -> &[u8] {
        let span = self.span(number);
        &self.bytes[span.offset as usize..(span.offset + span.length) as usize]
    }

    pub fn piece(&self, number: u32, parent: SocketAddr) -> FetchRequest {
        let wanted = Wanted::Piece {
            kind: TaskKind::Standard,
            task_id: task_id(),
            span: self.span(number),
        };
        FetchRequest {
            parent,
            wanted,
            limits: limits(),
        }
    }

    pub fn segment(
        &self,
        piece: u32,
        offset: u64,
        length: u64,
        parent: SocketAddr,
    ) -> FetchRequest {
        let piece = PieceNumber(piece);
        let wanted = Wanted::Segment {
            link_token: 7,
            task_id: task_id(),
            piece,
            offset,
            length,
        };
        FetchRequest {
            parent,
            wanted,
            limits: limits(),
        }
    }

    pub fn head(&self, number: u32) -> PieceHead {
        let span = self.span(number);
        PieceHead {
            piece: span.number,
            offset: span.offset,
            length: span.length,
            digest: Crc32::of(self.piece_bytes(number)).to_string(),
            parent_id: "10.0.0.7-node-7-1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b".to_owned(),
            traffic_type: 1,
            cost_seconds: 1,
            created_at: 1_767_225_600,
        }
    }
}

pub fn limits() -> Limits {
    Limits {
        head: PATIENCE,
        stall: PATIENCE,
        content: PATIENCE,
    }
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Slot {
    running: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
}

impl Upload for Slot {
    fn sent(&mut self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Arrived {
    of_task: watch::Receiver<Option<u64>>,
    start: u64,
}

impl Arriving for Arrived {
    fn more(
        &mut self,
        have: u64,
    ) -> Pin<Box<dyn Future<Output = Result<u64, ArrivalFailed>> + Send + '_>> {
        Box::pin(async move {
            let start = self.start;
            let enough =
                |arrived: &Option<u64>| arrived.is_none_or(|arrived| arrived > start + have);
            let arrived = self
                .of_task
                .wait_for(enough)
                .await
                .map_err(|_| ArrivalFailed)?;
            Ok(arrived.ok_or(ArrivalFailed)? - start)
        })
    }
}

impl Task {
    async fn wait_while_held(&self) {
        let counter = CountDrop(Arc::clone(&self.dropped_while_held));
        while self.held.load(Ordering::SeqCst) {
            self.release.notified().await;
        }
        std::mem::forget(counter);
    }

    fn content(&self, head: ContentHead, file_offset: u64) -> Content {
        let end = file_offset + head.length();
        let of_task = self.arrived.subscribe();
        let whole = of_task.borrow().is_some_and(|arrived| arrived >= end);
        let arrival = match whole {
            true => Arrival::Whole,
            false => Arrival::Arriving(Box::new(Arrived {
                of_task,
                start: file_offset,
            })),
        };
        self.uploads.fetch_add(1, Ordering::SeqCst);
        let upload = Box::new(Slot {
            running: Arc::clone(&self.uploads),
            sent: Arc::clone(&self.sent),
        });
        Content {
            head,
            file: Arc::clone(&self.file),
            file_offset,
            arrival,
            upload,
        }
    }
}

impl PieceSource for Task {
    async fn open(&self, request: Request, _child: SocketAddr) -> Result<Content, ErrorReply> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.wait_while_held().await;
        let not_found = ErrorReply {
            code: ErrorCode::NotFound,
            message: format!("piece {}-{} not found", request.task_id(), request.piece()),
        };
        let span = self
            .geometry
            .piece(request.piece())
            .filter(|_| request.task_id() == &task_id());
        let span = span.ok_or(not_found)?;
        match request {
            Request::Piece(request) => {
                Ok(self.content(ContentHead::Piece(self.head(request.piece.0)), span.offset))
            }
            Request::Segment(request) => {
                let head = SegmentHead {
                    piece: request.piece,
                    offset: request.offset,
                    length: request.length,
                };
                Ok(self.content(ContentHead::Segment(head), span.offset + request.offset))
            }
        }
    }
}

/// A server of one task that stops with the test.
pub struct Serving {
    pub addr: SocketAddr,
    pub stop: CancellationToken,
    pub done: JoinHandle<()>,
}

pub fn serve(task: &Arc<Task>, options: ServerOptions) -> Serving {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let addr = server.local_addr().unwrap();
    let stop = CancellationToken::new();
    let done = tokio::spawn(server.serve(Arc::clone(task), stop.clone()));
    Serving { addr, stop, done }
}

impl Serving {
    /// Stops and checks that nothing is left of it.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.done)
            .await
            .expect("stops")
            .unwrap();
    }
}

pub fn client() -> Client {
    Client::new(ClientOptions::default())
}

/// Keeps everything, also after errors.
#[derive(Debug, Default)]
pub struct Collect {
    pub head: Option<ContentHead>,
    pub bytes: Vec<u8>,
    pub progress: Option<watch::Sender<u64>>,
}

impl Sink for Collect {
    fn head(&mut self, head: &ContentHead) -> Result<(), SinkError> {
        self.head = Some(head.clone());
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        assert_eq!(offset, self.bytes.len() as u64);
        self.bytes.extend(bytes);
        if let Some(progress) = &self.progress {
            progress.send_replace(self.bytes.len() as u64);
        }
        Ok(())
    }
}

/// The bytes of a request packet.
pub fn request_packet(kind: TaskKind, piece: u32) -> Vec<u8> {
    let request = protocol::vortex::PieceRequest {
        kind,
        task_id: task_id(),
        piece: PieceNumber(piece),
    };
    Request::Piece(request).to_packet(0x12).unwrap()
}
