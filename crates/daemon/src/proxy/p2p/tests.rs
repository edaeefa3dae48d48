//! A whole daemon, spoken to as clients speak to its proxy, with a real HTTP origin that can misbehave.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::{ByteRange, Digest, DigestAlgorithm};
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::service::{Addresses, start};
use crate::testing::DEADLINE;

/// More than two pieces.
const LEN: usize = 9_000_000;

fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + at / 251 + seed) % 256).unwrap())
        .collect()
}

/// What the origin has, and how it behaves.
#[derive(Default)]
struct Origin {
    /// Requests that reached it.
    asked: AtomicUsize,
    /// Content bytes that it sent.
    sent: AtomicUsize,
    /// It answers 503 to everything.
    away: AtomicBool,
    /// It sends half of each body and then breaks off.
    breaks: AtomicBool,
}

async fn file(
    State(origin): State<Arc<Origin>>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    origin.asked.fetch_add(1, Ordering::Relaxed);
    if origin.away.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let last = name.rsplit('/').next().unwrap();
    if name.contains("private")
        && headers
            .get(header::AUTHORIZATION)
            .is_none_or(|it| it != "Basic bWU=")
    {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    let (bytes, content_type) = match last {
        "chunked" => {
            let parts = [content(0, 1000), content(1, 1000)].map(Ok::<_, std::io::Error>);
            return Body::from_stream(futures::stream::iter(parts)).into_response();
        }
        "gzip" => return ([(header::CONTENT_ENCODING, "gzip")], "not really").into_response(),
        "loop" => return (StatusCode::FOUND, [(header::LOCATION, "loop")]).into_response(),
        "latest" => (manifest(), "application/vnd.oci.image.manifest.v1+json"),
        "page" => (b"<html>".to_vec(), "text/html"),
        "small" => (content(3, 20_000), "text/plain"),
        "empty" => (vec![], "text/plain"),
        "big" => (content(0, LEN), "text/plain"),
        blob if blob == digest(&content(0, LEN)) => (content(0, LEN), "application/octet-stream"),
        blob if blob == digest(&manifest()) => (manifest(), "application/json"),
        // A registry that gives other bytes than it was asked for.
        blob if blob.starts_with("sha256:bad0") => (content(5, 100_000), "text/plain"),
        blob if blob.starts_with("sha256:bad1") => (content(5, LEN), "text/plain"),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let length = bytes.len() as u64;
    let range = headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| ByteRange::parse_header(range, length).ok());
    let part = range.unwrap_or(ByteRange::whole(length));
    let body =
        bytes[usize::try_from(part.start).unwrap()..usize::try_from(part.end()).unwrap()].to_vec();
    let common = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::ETAG, format!("\"{last}\"")),
        (header::SET_COOKIE, "a=b".to_owned()),
        (header::CONTENT_LENGTH, body.len().to_string()),
    ];
    let body = match origin.breaks.load(Ordering::Relaxed) && body.len() > 1 {
        true => {
            let half = body[..body.len() / 2].to_vec();
            let broken = [Ok(half), Err(std::io::Error::other("broken"))];
            Body::from_stream(futures::stream::iter(broken))
        }
        false => {
            origin.sent.fetch_add(body.len(), Ordering::Relaxed);
            Body::from(body)
        }
    };
    match range {
        None => (common, body).into_response(),
        Some(range) => {
            let told = [(header::CONTENT_RANGE, range.content_range_header(length))];
            (StatusCode::PARTIAL_CONTENT, common, told, body).into_response()
        }
    }
}

fn manifest() -> Vec<u8> {
    b"{\"schemaVersion\":2,\"config\":{}}".to_vec()
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(DigestAlgorithm::Sha256, bytes).to_string()
}

struct Setup {
    addresses: Addresses,
    origin: Arc<Origin>,
    origin_addr: SocketAddr,
    shutdown: Shutdown,
    around: Shutdown,
    _dir: tempfile::TempDir,
}

/// An answer as its client saw it.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    /// As long as it was announced to be.
    complete: bool,
}

impl Setup {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let around = Shutdown::new();
        let origin = Arc::new(Origin::default());
        let router = Router::new()
            .route("/{*name}", get(file))
            .with_state(origin.clone());
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "origin").unwrap();
        let origin_addr = listener.local_addr().unwrap();
        runtime::http::spawn("origin", listener, router, &around);
        let shutdown = Shutdown::new();
        let addresses = start(config(dir.path()), &shutdown)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            addresses,
            origin,
            origin_addr,
            shutdown,
            around,
            _dir: dir,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> Got {
        let request = format!(
            "{method} http://{}/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n",
            self.origin_addr
        );
        let asked = exchange(self.addresses.proxy, &request);
        tokio::time::timeout(DEADLINE, asked)
            .await
            .expect("an answer in time")
    }

    async fn get(&self, path: &str) -> Got {
        self.ask("GET", path, "").await
    }

    async fn part(&self, path: &str, range: &str) -> Got {
        self.ask("GET", path, &format!("range: {range}\r\n")).await
    }

    fn sent(&self) -> usize {
        self.origin.sent.load(Ordering::Relaxed)
    }

    fn asked(&self) -> usize {
        self.origin.asked.load(Ordering::Relaxed)
    }

    fn set_away(&self, away: bool) {
        self.origin.away.store(away, Ordering::Relaxed);
    }

    async fn end(self) {
        let drained = self.shutdown.drain(DEADLINE).await;
        assert_eq!((drained.aborted, drained.failure), (vec![], None));
        self.around.drain(DEADLINE).await;
    }
}

fn config(dir: &Path) -> Config {
    let dir = dir.display();
    let local = "{ip: 127.0.0.1, port: 0}";
    let text = format!(
        "host: {{ip: 127.0.0.1, hostname: test}}\n\
         storage: {{dir: {dir}/data, server: {{ip: 127.0.0.1, tcpPort: 0}}}}\n\
         health: {{server: {local}}}\nmetrics: {{server: {local}}}\nstats: {{server: {local}}}\n\
         upload: {{server: {local}}}\n\
         backend: {{maxRetries: 0}}\n\
         proxy: {{server: {local}, rules: [{{regex: '.*'}}]}}\n"
    );
    let loaded = Config::parse("test.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
    let mut config = loaded.value;
    config.download.socket_path = format!("{dir}/d.sock").into();
    config.gc.disk_high_threshold_percent = 100;
    config.dynconfig.local_file = format!("{dir}/dynconfig.yaml").into();
    config
}

/// Sends a request and reads until the other side closes.
async fn exchange(addr: SocketAddr, request: &str) -> Got {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    // A connection that was broken off ends in an error here: what came before counts.
    let _ = stream.read_to_end(&mut all).await;
    let end = all
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let head = std::str::from_utf8(&all[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, value.trim().parse().unwrap());
    }
    let body = all[end + 4..].to_vec();
    let told = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let complete = match told {
        Some(length) => length == body.len(),
        None => body.ends_with(b"0\r\n\r\n"),
    };
    Got {
        status,
        headers,
        body,
        complete,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_fetched_once_and_answered_whole_or_in_parts() {
    let setup = Setup::start().await;
    let cold = setup.get("big").await;
    assert_eq!((cold.status, cold.complete), (200, true));
    assert!(cold.body == content(0, LEN));
    assert_eq!(cold.headers["content-type"], "text/plain");
    assert_eq!(cold.headers["etag"], "\"big\"");
    assert_eq!(cold.headers["x-dragonfly-server-ip"], "127.0.0.1");
    assert!(!cold.headers.contains_key("set-cookie"));
    assert!(
        !cold
            .headers
            .contains_key("x-dragonfly-task-download-finished")
    );
    let (asked, sent) = (setup.asked(), setup.sent());
    assert!(sent <= LEN + 1, "the probe and the content: {sent}");

    let warm = setup.get("big").await;
    assert!(warm.body == cold.body);
    assert_eq!(warm.headers["x-dragonfly-task-download-finished"], "true");
    let part = setup.part("big", "bytes=4194300-4194309").await;
    assert_eq!(part.status, 206);
    assert_eq!(part.body, content(0, LEN)[4_194_300..4_194_310]);
    assert_eq!(
        part.headers["content-range"],
        "bytes 4194300-4194309/9000000"
    );
    let tail = setup.part("big", "bytes=-5").await;
    assert_eq!(
        (tail.status, &tail.body[..]),
        (206, &content(0, LEN)[LEN - 5..])
    );
    let bad = setup.part("big", "bytes=9000000-").await;
    assert_eq!((bad.status, bad.body.len()), (416, 0));
    assert_eq!(bad.headers["content-range"], "bytes */9000000");
    let unchanged = setup.ask("GET", "big", "if-none-match: \"big\"\r\n").await;
    assert_eq!(unchanged.status, 304);
    let head = setup.ask("HEAD", "big", "").await;
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["content-length"], "9000000");
    assert!(head.body.is_empty());
    assert_eq!(
        (setup.asked(), setup.sent()),
        (asked, sent),
        "the origin was left alone"
    );
    let empty = setup.get("empty").await;
    assert_eq!(
        (empty.status, empty.body.len(), empty.complete),
        (200, 0, true)
    );
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_or_misbehaves_is_an_honest_error() {
    let setup = Setup::start().await;
    let missing = setup.get("nothing").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.headers["x-dragonfly-error-type"], "backend");
    let secret = setup.get("private/small").await;
    assert_eq!(secret.status, 401);
    assert_eq!(secret.headers["www-authenticate"], "Basic realm=\"r\"");
    assert_eq!(setup.get("loop").await.status, 502);
    // Nobody knows how long it is, or it is encoded for this client: it comes as the origin sends it.
    let chunked = setup.get("chunked").await;
    assert_eq!((chunked.status, chunked.complete), (200, true));
    let gzip = setup.get("gzip").await;
    assert_eq!((gzip.status, &gzip.body[..]), (200, &b"not really"[..]));
    assert_eq!(gzip.headers["content-encoding"], "gzip");

    setup.origin.breaks.store(true, Ordering::Relaxed);
    let torso = setup.get("big").await;
    assert!(
        torso.status >= 500 || !torso.complete,
        "status {}",
        torso.status
    );
    assert!(torso.body.len() < LEN);
    setup.origin.breaks.store(false, Ordering::Relaxed);
    let whole = setup.get("big").await;
    assert_eq!((whole.status, whole.complete), (200, true));
    assert!(whole.body == content(0, LEN));
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_named_by_a_digest_is_that_content_or_none() {
    let setup = Setup::start().await;
    let name = digest(&content(0, LEN));
    let blob = format!("v2/a/blobs/{name}");
    let good = setup.get(&blob).await;
    assert_eq!((good.status, good.complete), (200, true));
    assert!(good.body == content(0, LEN));
    assert_eq!(good.headers["docker-content-digest"], name.as_str());
    assert_eq!(good.headers["x-dragonfly-task-id"], name[7..]);
    let sent = setup.sent();
    let elsewhere = setup.get(&format!("v2/b/blobs/{name}")).await;
    assert!(elsewhere.body == good.body);
    assert!(
        setup.sent() <= sent + 1,
        "another repository, the same content"
    );

    // One piece: nothing of it goes out.
    let small = format!("v2/a/blobs/sha256:bad0{}", "0".repeat(60));
    let refused = setup.get(&small).await;
    assert_eq!(refused.status, 502);
    let text = String::from_utf8(refused.body).unwrap();
    assert!(
        text.contains("the origin") && text.contains("expected sha256:bad0"),
        "{text}"
    );
    // Several: the connection breaks before the end, and nothing is kept.
    let big = format!("v2/a/blobs/sha256:bad1{}", "0".repeat(60));
    for _ in 0..2 {
        let before = setup.sent();
        let torso = setup.get(&big).await;
        assert!(!torso.complete || torso.status == 502);
        assert!(torso.body.len() < LEN, "the last piece was kept back");
        assert!(
            setup.sent() >= before + LEN,
            "it was deleted, and asked for anew"
        );
    }
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_blob_is_given_to_those_whom_its_registry_accepts() {
    let setup = Setup::start().await;
    let blob = format!("v2/private/blobs/{}", digest(&content(0, LEN)));
    let mine = "authorization: Basic bWU=\r\n";
    let first = setup.ask("GET", &blob, mine).await;
    assert_eq!((first.status, first.complete), (200, true));
    // It is here by now, and its digest is known: that is not enough.
    let nobody = setup.get(&blob).await;
    assert_eq!(nobody.status, 401);
    assert_eq!(nobody.headers["www-authenticate"], "Basic realm=\"r\"");
    let other = setup
        .ask("GET", &blob, "authorization: Basic eW91\r\n")
        .await;
    assert_eq!(other.status, 401);
    setup.set_away(true);
    let again = setup.ask("GET", &blob, mine).await;
    assert_eq!((again.status, again.complete), (200, true));
    let nobody = setup.get(&blob).await;
    assert_eq!(nobody.status, 503);
    assert!(nobody.headers.contains_key("retry-after"));
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_pulled_while_its_registry_is_away() {
    let setup = Setup::start().await;
    let blob = format!("v2/a/blobs/{}", digest(&content(0, LEN)));
    let by_digest = format!("v2/a/manifests/{}", digest(&manifest()));
    let tag = "v2/a/manifests/latest";
    let fresh = setup.get(tag).await;
    assert_eq!((fresh.status, &fresh.body[..]), (200, &manifest()[..]));
    assert!(!fresh.headers.contains_key("warning"));
    assert_eq!(
        fresh.headers["docker-content-digest"],
        digest(&manifest()).as_str()
    );
    let named = setup.get(&by_digest).await;
    assert_eq!((named.status, &named.body[..]), (200, &manifest()[..]));
    assert_eq!(
        named.headers["content-type"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(setup.get(&blob).await.status, 200);
    // A page for people is no manifest.
    assert_eq!(setup.get("v2/a/manifests/page").await.status, 502);

    setup.set_away(true);
    for method in ["HEAD", "GET"] {
        let stale = setup.ask(method, tag, "").await;
        assert_eq!(stale.status, 200, "{method}");
        let warning = stale.headers["warning"].to_str().unwrap();
        assert!(warning.starts_with("110 - "), "{warning}");
        assert_eq!(
            stale.headers["docker-content-digest"],
            digest(&manifest()).as_str()
        );
        assert_eq!(stale.body.is_empty(), method == "HEAD");
    }
    assert_eq!(setup.get(&by_digest).await.status, 200);
    assert!(setup.get(&blob).await.body == content(0, LEN));
    let head = setup.ask("HEAD", &blob, "").await;
    assert_eq!(
        (
            head.status,
            head.headers["content-length"].to_str().unwrap()
        ),
        (200, "9000000")
    );
    assert!(setup.get("v2/a/manifests/other").await.status >= 500);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ranged_reader_has_the_rest_fetched_if_it_wishes() {
    let setup = Setup::start().await;
    let wish = "range: bytes=0-9\r\nx-dragonfly-prefetch: true\r\n";
    let part = setup.ask("GET", "big", wish).await;
    assert_eq!((part.status, part.body.len()), (206, 10));
    let all = async {
        loop {
            let head = setup.ask("HEAD", "big", "").await;
            if head
                .headers
                .contains_key("x-dragonfly-task-download-finished")
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, all)
        .await
        .expect("the rest is fetched");
    let sent = setup.sent();
    assert!(setup.get("big").await.body == content(0, LEN));
    assert_eq!(setup.sent(), sent);
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_or_goes_away_holds_up_nobody() {
    let setup = Setup::start().await;
    let request = format!(
        "GET http://{}/big HTTP/1.1\r\nhost: x\r\n\r\n",
        setup.origin_addr
    );
    let mut slow = TcpStream::connect(setup.addresses.proxy).await.unwrap();
    slow.write_all(request.as_bytes()).await.unwrap();
    let mut gone = TcpStream::connect(setup.addresses.proxy).await.unwrap();
    gone.write_all(request.as_bytes()).await.unwrap();
    gone.read_u8().await.unwrap();
    drop(gone);
    let quick = setup.get("big").await;
    assert!(quick.complete && quick.body == content(0, LEN));
    let mut first = [0; 12];
    slow.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    drop(slow);
    assert!(
        setup.sent() <= LEN + 1,
        "one read of the origin for all three"
    );
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_mean_nothing_are_refused() {
    let setup = Setup::start().await;
    let short = setup
        .ask("GET", "big", "x-dragonfly-piece-length: 1mib\r\n")
        .await;
    assert_eq!(short.status, 400);
    assert_eq!(short.headers["x-dragonfly-error-type"], "proxy");
    let blob = setup.get("v2/a/blobs/sha256:short").await;
    assert_eq!(blob.status, 400);
    assert_eq!(blob.headers["x-dragonfly-error-type"], "dfdaemon");
    assert_eq!(setup.asked(), 0);
    setup.end().await;
}
