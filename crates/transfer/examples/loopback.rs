//! How fast pieces go from a file over loopback into a file, against the least that any program could do.
//!
//! `cargo run --release -p transfer --example loopback [MiB] [rounds] [KiB per piece]`
//!
//! Both runs send pieces (of 4 MiB unless told otherwise) from a file in memory over 8 flows, and on the other side compute the CRC-32 and write to
//! another file in memory. The bare run is a pair of threads per flow around `sendfile` and `recv`, without any protocol;
//! the other is [`transfer::Server`] and [`transfer::Client`]. Printed are seconds and CPU seconds of both, and their
//! ratio; runs alternate, the medians count.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark: any failure may end it"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use protocol::vortex::{ErrorCode, ErrorReply, PieceHead, Request};
use protocol::{Crc32, Crc32Hasher, Geometry, PieceNumber, PieceSpan, TaskId, TaskKind};
use tokio_util::sync::CancellationToken;
use transfer::{
    Arrival, CancelHandle, Client, ClientOptions, Content, ContentHead, FetchRequest, Limits,
    PieceSource, Server, ServerOptions, Sink, SinkError, Wanted,
};

const FLOWS: usize = 8;
/// The bare receiver's buffer; the same as the client's.
const BUFFER_LEN: usize = 256 << 10;

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .filter_map(|arg| arg.parse::<u64>().ok());
    let [mib, rounds, piece_kib] = [1024, 5, 4096].map(|default| args.next().unwrap_or(default));
    let geometry = Geometry::new(mib << 20, piece_kib << 10).unwrap();
    let content = Arc::new(Bench::prepare(geometry));

    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(timed(|| run_bare(&content)));
        ours.push(timed(|| run_ours(&content)));
    }
    let (bare, ours) = (median(bare), median(ours));
    let gib = geometry.content_length() as f64 / f64::from(1 << 30);
    for (name, (wall, cpu)) in [("bare", bare), ("ours", ours)] {
        println!(
            "{name}: {wall:.3} s, {cpu:.3} CPU s, {:.2} GiB/s, {:.3} CPU s per GiB",
            gib / wall,
            cpu / gib
        );
    }
    println!(
        "ours against bare: speed {:.2}, CPU {:.2}",
        bare.0 / ours.0,
        ours.1 / bare.1
    );
}

/// The content, and where a run writes it.
struct Bench {
    geometry: Geometry,
    source: Arc<File>,
    target: File,
    digests: Vec<Crc32>,
    task_id: TaskId,
}

impl Bench {
    fn prepare(geometry: Geometry) -> Self {
        let create = || tempfile::tempfile_in("/dev/shm").unwrap();
        let (source, target) = (create(), create());
        let mut digests = Vec::new();
        for span in geometry.pieces() {
            let bytes = vec![
                u8::try_from(span.number.0 % 251).unwrap();
                usize::try_from(span.length).unwrap()
            ];
            source.write_all_at(&bytes, span.offset).unwrap();
            target.write_all_at(&bytes, span.offset).unwrap();
            digests.push(Crc32::of(&bytes));
        }
        let task_id = "a".repeat(64).parse().unwrap();
        Self {
            geometry,
            source: Arc::new(source),
            target,
            digests,
            task_id,
        }
    }

    /// Gives each flow the next piece until there are no more.
    fn next(&self, counter: &AtomicU32) -> Option<PieceSpan> {
        self.geometry
            .piece(PieceNumber(counter.fetch_add(1, Ordering::Relaxed)))
    }

    fn digest(&self, number: PieceNumber) -> Crc32 {
        self.digests[number.index()]
    }
}

fn run_bare(bench: &Bench) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let counter = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..FLOWS {
            scope.spawn(|| bare_child(bench, addr, &counter));
            let (stream, _) = listener.accept().unwrap();
            scope.spawn(move || bare_parent(bench, &stream));
        }
    });
}

fn bare_parent(bench: &Bench, mut stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut number = [0; 4];
    while stream.read_exact(&mut number).is_ok() {
        let span = bench
            .geometry
            .piece(PieceNumber(u32::from_be_bytes(number)))
            .unwrap();
        let mut offset = span.offset;
        while offset < span.range().end() {
            let left = usize::try_from(span.range().end() - offset).unwrap();
            rustix::fs::sendfile(stream, &bench.source, Some(&mut offset), left).unwrap();
        }
    }
}

fn bare_child(bench: &Bench, addr: SocketAddr, counter: &AtomicU32) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; BUFFER_LEN];
    while let Some(span) = bench.next(counter) {
        stream.write_all(&span.number.0.to_be_bytes()).unwrap();
        let mut hasher = Crc32Hasher::new();
        let mut offset = span.offset;
        while offset < span.range().end() {
            let left = usize::try_from(span.range().end() - offset).unwrap();
            let count = stream.read(&mut buffer[..left.min(BUFFER_LEN)]).unwrap();
            hasher.update(&buffer[..count]);
            bench.target.write_all_at(&buffer[..count], offset).unwrap();
            offset += count as u64;
        }
        assert_eq!(hasher.finish(), bench.digest(span.number));
    }
}

struct Source(Arc<Bench>);

impl PieceSource for Source {
    async fn open(&self, request: Request, _child: SocketAddr) -> Result<Content, ErrorReply> {
        let span = self.0.geometry.piece(request.piece()).ok_or(ErrorReply {
            code: ErrorCode::NotFound,
            message: String::new(),
        })?;
        let head = PieceHead {
            piece: span.number,
            offset: span.offset,
            length: span.length,
            digest: self.0.digest(span.number).to_string(),
            ..PieceHead::default()
        };
        Ok(Content {
            head: ContentHead::Piece(head),
            file: Arc::clone(&self.0.source),
            file_offset: span.offset,
            arrival: Arrival::Whole,
            upload: Box::new(()),
        })
    }
}

struct Store {
    bench: Arc<Bench>,
    span: PieceSpan,
    hasher: Crc32Hasher,
}

impl Sink for Store {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.hasher.update(bytes);
        Ok(self
            .bench
            .target
            .write_all_at(bytes, self.span.offset + offset)?)
    }
}

fn run_ours(bench: &Arc<Bench>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server =
            Server::bind("127.0.0.1:0".parse().unwrap(), ServerOptions::default()).unwrap();
        let parent = server.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(Source(Arc::clone(bench)), stop.clone()));
        let client = Client::new(ClientOptions::default());
        let counter = Arc::new(AtomicU32::new(0));
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                tokio::spawn(our_child(
                    Arc::clone(bench),
                    client.clone(),
                    parent,
                    Arc::clone(&counter),
                ))
            })
            .collect();
        for flow in flows {
            flow.await.unwrap();
        }
        stop.cancel();
        serving.await.unwrap();
    });
}

async fn our_child(bench: Arc<Bench>, client: Client, parent: SocketAddr, counter: Arc<AtomicU32>) {
    while let Some(span) = bench.next(&counter) {
        let wanted = Wanted::Piece {
            kind: TaskKind::Standard,
            task_id: bench.task_id.clone(),
            span,
        };
        let request = FetchRequest {
            parent,
            wanted,
            limits: Limits::default(),
        };
        let sink = Store {
            bench: Arc::clone(&bench),
            span,
            hasher: Crc32Hasher::new(),
        };
        let outcome = client.fetch(request, sink, CancelHandle::new()).await;
        outcome.result.unwrap();
        assert_eq!(outcome.sink.hasher.finish(), bench.digest(span.number));
    }
}

/// Wall and CPU seconds of a run.
fn timed(run: impl FnOnce()) -> (f64, f64) {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    run();
    (start.elapsed().as_secs_f64(), cpu_seconds() - cpu)
}

/// CPU seconds of this process so far: fields 14 and 15 of its stat line, in hundredths.
fn cpu_seconds() -> f64 {
    let mut stat = String::new();
    File::open("/proc/self/stat")
        .unwrap()
        .read_to_string(&mut stat)
        .unwrap();
    let behind_name = stat.rsplit_once(')').unwrap().1;
    let ticks: f64 = behind_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

fn median(mut runs: Vec<(f64, f64)>) -> (f64, f64) {
    let mut pick = |key: fn(&(f64, f64)) -> f64| {
        runs.sort_by(|a, b| key(a).total_cmp(&key(b)));
        key(&runs[runs.len() / 2])
    };
    (pick(|run| run.0), pick(|run| run.1))
}
