//! What the proxy makes of bytes that no library would send: origins and clients are sockets here.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::tests::{Setup, read_to_end, status};
use super::*;
use crate::testing::DEADLINE;

/// What an origin does after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    /// Nothing, as long as the client stays.
    Wait,
    Reset,
}

/// An origin that says the same to everybody, and keeps what it was told.
struct Origin {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    /// A permit for each exchange that is over.
    ended: Arc<Semaphore>,
    _serving: JoinSet<()>,
}

impl Origin {
    fn start(answer: &'static str, then: Then) -> Self {
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "origin").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let mut serving = JoinSet::new();
        let ended = Arc::new(Semaphore::new(0));
        let (told, over) = (heads.clone(), ended.clone());
        serving.spawn(async move {
            let mut exchanges = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (told, over) = (told.clone(), over.clone());
                exchanges.spawn(async move {
                    exchange(stream, answer, then, told).await;
                    over.add_permits(1);
                });
            }
        });
        Self {
            address,
            heads,
            ended,
            _serving: serving,
        }
    }

    /// The heads of the requests so far.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }

    /// Waits for the end of an exchange.
    async fn has_ended(&self) {
        let permit = tokio::time::timeout(DEADLINE, self.ended.acquire()).await;
        permit.unwrap().unwrap().forget();
    }
}

async fn exchange(
    mut stream: TcpStream,
    answer: &'static str,
    then: Then,
    told: Arc<Mutex<Vec<String>>>,
) {
    let head = read_until(&mut stream, "\r\n\r\n").await;
    told.lock().push(head);
    let _ = stream.write_all(answer.as_bytes()).await;
    match then {
        Then::Close => {}
        Then::Wait => drop(read_to_end(&mut stream).await),
        Then::Reset => super::listener::reset(stream),
    }
}

/// Reads until `end` was seen, or nothing comes any more.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = String::new();
    let mut buffer = [0; 4096];
    while !read.contains(end) {
        match stream.read(&mut buffer).await {
            Ok(len) if len > 0 => read.push_str(&String::from_utf8_lossy(&buffer[..len])),
            _ => break,
        }
    }
    read
}

/// What came before the connection ended, and whether it ended properly.
async fn read_to_any_end(stream: &mut TcpStream) -> (usize, Result<(), ErrorKind>) {
    let mut read = Vec::new();
    let end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut read)).await;
    let end = end.expect("the connection ends");
    (read.len(), end.map(drop).map_err(|error| error.kind()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_override_a_length() {
    let setup = Setup::start("", "").await;
    for length in ["2", "999"] {
        let answer: &'static str = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n"
        )
        .leak();
        let origin = Origin::start(answer, Then::Wait);
        let got = setup.get(&format!("http://{}/", origin.address), "").await;
        assert!(!got.contains("Content-Length"), "{got}");
        assert!(got.ends_with("6\r\nabcdef\r\n0\r\n\r\n"), "{got}");
    }
    setup.stop().await;
}

const BEGUN: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_ends_with_a_reset() {
    let setup = Setup::start("idleTimeout: 1s", "").await;
    let origin = Origin::start(BEGUN, Then::Wait);
    // As long as the connection: the only end that HTTP/1.0 has.
    let request = format!("GET http://{}/ HTTP/1.0\r\n\r\n", origin.address);
    let mut idle = setup.connect().await;
    idle.write_all(request.as_bytes()).await.unwrap();
    let (read, end) = read_to_any_end(&mut idle).await;
    assert!(read > 0, "nothing came");
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "the origin is silent");
    setup.stop().await;

    let setup = Setup::start("", "").await;
    let mut served = setup.connect().await;
    served.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut served, "abcdef").await;
    let mut tunnel = setup.connect().await;
    let connect = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address);
    tunnel.write_all(connect.as_bytes()).await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    read_until(&mut tunnel, "abcdef").await;
    let (_, served, tunnel) = tokio::join!(
        setup.stop(),
        read_to_any_end(&mut served),
        read_to_any_end(&mut tunnel)
    );
    assert_eq!(served.1, Err(ErrorKind::ConnectionReset), "the daemon ends");
    assert_eq!(tunnel.1, Err(ErrorKind::ConnectionReset), "the daemon ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_left_with_a_reset() {
    let setup = Setup::start("idleTimeout: 1s", "").await;
    let answer: &'static str = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(16 << 20)).leak();
    let origin = Origin::start(answer, Then::Close);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(setup.addresses.proxy).await.unwrap();
    let request = format!("GET http://{}/ HTTP/1.0\r\n\r\n", origin.address);
    slow.write_all(request.as_bytes()).await.unwrap();
    origin.has_ended().await;
    let (read, end) = read_to_any_end(&mut slow).await;
    assert!(read < 16 << 20);
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_goes_through_a_tunnel() {
    let setup = Setup::start("", "").await;
    let origin = Origin::start(BEGUN, Then::Reset);
    let mut tunnel = setup.connect().await;
    let connect = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address);
    tunnel.write_all(connect.as_bytes()).await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (_, end) = read_to_any_end(&mut tunnel).await;
    assert_eq!(end, Err(ErrorKind::ConnectionReset));

    // A proper end is one on the other side too.
    let origin = Origin::start(BEGUN, Then::Close);
    let mut tunnel = setup.connect().await;
    let connect = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address);
    tunnel.write_all(connect.as_bytes()).await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let half = read_until(&mut tunnel, "abcdef").await;
    assert!(half.ends_with("abcdef\r\n"), "{half}");
    tunnel.shutdown().await.unwrap();
    assert_eq!(read_to_any_end(&mut tunnel).await, (0, Ok(())));
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_may_take_as_long_as_bytes_come() {
    let setup = Setup::start("idleTimeout: 1s", "").await;
    let put = format!(
        "PUT http://{}/p HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nConnection: close\r\n\r\n",
        setup.origin
    );
    let mut steady = setup.connect().await;
    let mut silent = setup.connect().await;
    steady.write_all(put.as_bytes()).await.unwrap();
    silent.write_all(put.as_bytes()).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        steady.write_all(b"x").await.unwrap();
    }
    let answer = read_to_end(&mut steady).await;
    assert!(answer.contains("body=xxxxxxxx\n"), "{answer}");
    let answer = read_to_end(&mut silent).await;
    assert_eq!(status(&answer), "400", "{answer}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_is_told_what_the_client_wrote() {
    let setup = Setup::start("", "").await;
    let origin = Origin::start(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        Then::Close,
    );
    for path in [
        "/a/../b",
        "/a/%2e%2E/b",
        "/a/./b",
        "/a\\b",
        "/p?x='q'&y=..",
        "/plain?x=%27",
    ] {
        let got = setup
            .get(
                &format!("http://u:p@{}{path}", origin.address),
                "X-Mine: 1\r\n",
            )
            .await;
        assert!(got.ends_with("abc"), "{path}: {got}");
        let head = origin.heads().pop().unwrap().to_ascii_lowercase();
        let line = format!("get {path} http/1.1\r\n").to_ascii_lowercase();
        assert!(head.starts_with(&line), "{path}: {head}");
        let host = format!("host: {}\r\n", origin.address);
        for line in [&host, "authorization: basic dtpw\r\n", "x-mine: 1\r\n"] {
            assert_eq!(head.matches(line).count(), 1, "{line}: {head}");
        }
    }
    let post = setup
        .say("POST http://ORIGIN/a/../p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    assert!(post.contains("POST /a/../p\n"), "{post}");
    assert!(post.contains("body=abc\n"), "{post}");
    let refused = setup.get("http://169.254.169.254/./latest", "").await;
    assert_eq!(status(&refused), "403", "{refused}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_passed_on_is_refused() {
    let setup = Setup::start("", "").await;
    for (request, expected) in [
        (
            "CONNECT ORIGIN HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            "400",
        ),
        (
            "CONNECT ORIGIN HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "CONNECT h:99999 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "400",
        ),
        (
            "CONNECT h: HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "400",
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "501",
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("GET http://ORIGIN/ HTTP/1.1\r\n\r\n", "400"),
        (
            "GET http://ORIGIN/ HTTP/1.1\r\nHost: a b@c/d\r\n\r\n",
            "400",
        ),
    ] {
        let answer = setup.say(request).await;
        assert_eq!(status(&answer), expected, "{request:?}: {answer}");
        assert!(
            answer.contains("X-Dragonfly-Error-Type: proxy\r\n"),
            "{answer}"
        );
    }
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ] {
        let origin = Origin::start(answer, Then::Wait);
        let got = setup.get(&format!("http://{}/", origin.address), "").await;
        assert_eq!(status(&got), "502", "{answer}: {got}");
        assert!(got.contains("X-Dragonfly-Error-Type: backend\r\n"), "{got}");
    }
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hops_are_counted_and_told() {
    let setup = Setup::start("", "").await;
    let ask = async |method: &str, more: &str| {
        let request = format!(
            "{method} http://ORIGIN/ HTTP/1.1\r\nHost: x\r\n{more}Connection: close\r\n\r\n"
        );
        setup.say(&request).await
    };
    let options = ask("OPTIONS", "Max-Forwards: 0\r\n").await;
    assert_eq!(status(&options), "200", "{options}");
    assert!(options.contains("Allow: GET, "), "{options}");
    assert!(
        !options.contains("body="),
        "the origin was asked: {options}"
    );
    let trace = ask(
        "TRACE",
        "Max-Forwards: 0\r\nAuthorization: Basic secret\r\n",
    )
    .await;
    assert_eq!(status(&trace), "405", "{trace}");
    assert!(!trace.contains("secret"), "{trace}");
    let further = ask("OPTIONS", "Max-Forwards: 3\r\n").await;
    assert!(further.contains("max-forwards=2\n"), "{further}");
    let get = ask("GET", "Max-Forwards: 0\r\n").await;
    assert!(get.contains("max-forwards=0\n"), "{get}");
    assert!(get.contains("\r\nVia: 1.1 dragonfly-"), "{get}");
    let old = setup.say("GET http://ORIGIN/ HTTP/1.0\r\n\r\n").await;
    assert!(old.contains("via=1.0 dragonfly-"), "{old}");
    setup.stop().await;
}

const P2P: &str = "  rules: [{regex: /p2p/}, {regex: blobs/sha256}]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_neither_content_nor_refusal_is_passed_on() {
    let setup = Setup::start("", P2P).await;
    let blob = format!("v2/a/blobs/sha256:{}", "ab".repeat(32));
    for (answer, expected) in [
        ("202 Accepted", "202"),
        ("203 Non-Authoritative Information", "203"),
        ("204 No Content", "204"),
        ("205 Reset Content", "205"),
        ("300 Multiple Choices", "300"),
        ("304 Not Modified", "304"),
    ] {
        let head = format!("HTTP/1.1 {answer}\r\nX-Mine: 1\r\nContent-Length: 0\r\n\r\n");
        let origin = Origin::start(head.leak(), Then::Close);
        for path in ["p2p/f", &blob] {
            let got = setup
                .get(&format!("http://{}/{path}", origin.address), "")
                .await;
            assert_eq!(status(&got), expected, "{path}: {got}");
            assert!(got.contains("X-Mine: 1\r\n"), "{path}: {got}");
        }
    }
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_announces_too_much_is_at_fault() {
    let setup = Setup::start("", P2P).await;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4611686018427387904\r\n\r\nx";
    let origin = Origin::start(answer, Then::Close);
    let got = setup
        .get(&format!("http://{}/p2p/f", origin.address), "")
        .await;
    assert_eq!(status(&got), "502", "{got}");
    assert!(got.contains("X-Dragonfly-Error-Type: backend\r\n"), "{got}");
    setup.stop().await;
}
