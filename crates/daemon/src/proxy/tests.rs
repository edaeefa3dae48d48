//! The proxy of a whole daemon over real sockets: what it forwards, and what it refuses.

use std::path::PathBuf;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::Request as AxumRequest;
use axum::response::IntoResponse;
use http::header;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::testing::DEADLINE;
use crate::{Addresses, Config};

/// A daemon with an origin that tells what it was asked.
pub(super) struct Setup {
    _dir: tempfile::TempDir,
    pub(super) addresses: Addresses,
    pub(super) origin: SocketAddr,
    shutdown: Shutdown,
    around: Shutdown,
}

impl Setup {
    /// `proxy` is added to `proxy.server`, `more` to the configuration; `ORIGIN` in it is the origin.
    pub(super) async fn start(server: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let around = Shutdown::new();
        let origin = origin(&around);
        let folder = dir.path().display();
        let text = format!(
            "host: {{ip: 127.0.0.1, hostname: test}}\n\
             storage: {{dir: {folder}/data, server: {{ip: 127.0.0.1, tcpPort: 0}}}}\n\
             health: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             metrics: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             stats: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             upload: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             server: {{shutdownTimeout: 1s}}\n\
             proxy:\n  server: {{ip: 127.0.0.1, port: 0, {server}}}\n{more}\n"
        );
        let text = text.replace("ORIGIN", &origin.to_string());
        let mut config = Config::parse("test.yaml", &text)
            .unwrap_or_else(|error| panic!("{error}"))
            .value;
        config.download.socket_path = PathBuf::from(format!("{folder}/d.sock"));
        config.dynconfig.local_file = PathBuf::from(format!("{folder}/dynconfig.yaml"));
        let shutdown = Shutdown::new();
        let addresses = crate::start(config, &shutdown)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            _dir: dir,
            addresses,
            origin,
            shutdown,
            around,
        }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addresses.proxy).await.unwrap()
    }

    /// Sends `request` as it is, and reads until the end of the connection. `ORIGIN` in it is the origin.
    pub(super) async fn say(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        let request = request.replace("ORIGIN", &self.origin.to_string());
        // The proxy may have hung up already.
        let _ = stream.write_all(request.as_bytes()).await;
        let shown: String = request.chars().take(200).collect();
        let answer = tokio::time::timeout(DEADLINE, read_to_end(&mut stream)).await;
        answer.unwrap_or_else(|_| panic!("no end after {shown:?}"))
    }

    /// A GET that ends with its answer.
    pub(super) async fn get(&self, target: &str, headers: &str) -> String {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: any\r\n{headers}Connection: close\r\n\r\n");
        self.say(&request).await
    }

    pub(super) async fn stop(self) {
        assert_eq!(self.shutdown.drain(DEADLINE).await.aborted, [""; 0]);
        self.around.drain(DEADLINE).await;
    }
}

pub(super) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends a connection as well.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub(super) fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("nothing")
}

/// Tells the request line, the headers and the body that reached it; `/redirect` leads elsewhere, `/hang` never answers, `/torso` breaks.
fn origin(shutdown: &Shutdown) -> SocketAddr {
    let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "origin").unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(|request: AxumRequest| async move {
        let (parts, body) = request.into_parts();
        match parts.uri.path() {
            "/redirect" => {
                let location = [(header::LOCATION, "http://169.254.169.254/latest")];
                return (StatusCode::TEMPORARY_REDIRECT, location).into_response();
            }
            "/hang" => std::future::pending().await,
            "/torso" => {
                let stream = futures::stream::unfold(0, |step| async move {
                    // Pending once, so that what is there is sent.
                    tokio::task::yield_now().await;
                    match step {
                        0 => Some((Ok(bytes::Bytes::from_static(b"some of it")), 1)),
                        _ => Some((Err(std::io::Error::other("broken")), 1)),
                    }
                });
                return AxumBody::from_stream(stream).into_response();
            }
            _ => {}
        }
        let body = axum::body::to_bytes(body, 1 << 20)
            .await
            .unwrap_or_default();
        let mut text = format!("{} {}\n", parts.method, parts.uri);
        for (name, value) in &parts.headers {
            text.push_str(&format!("{name}={}\n", value.to_str().unwrap_or("?")));
        }
        text.push_str(&format!("body={}\n", String::from_utf8_lossy(&body)));
        text.into_response()
    });
    runtime::http::spawn("origin", listener, router, shutdown);
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_passed_on_as_they_are() {
    let setup = Setup::start("", "").await;
    let answer = setup
        .get(
            "http://ORIGIN/a//b?q=%20&ns=1",
            "X-Mine: 1\r\nX-Dragonfly-Tag: t\r\nProxy-Authorization: Basic x\r\nTE: trailers\r\n",
        )
        .await;
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.contains("GET /a//b?q=%20&ns=1\n"), "{answer}");
    assert!(answer.contains("x-mine=1\n"), "{answer}");
    assert!(
        answer.contains(&format!("host={}\n", setup.origin)),
        "{answer}"
    );
    assert!(answer.contains("via=1.1 dragonfly-"), "{answer}");
    for gone in ["x-dragonfly", "proxy-authorization", "te=", "connection="] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }

    let post = setup
        .say("POST http://ORIGIN/p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    assert!(post.contains("body=abc\n"), "{post}");
    let expecting = setup
        .say("PUT http://ORIGIN/p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
        .await;
    assert!(
        expecting.starts_with("HTTP/1.1 100") && expecting.contains("body=abc\n"),
        "{expecting}"
    );
    let old = setup.say("GET http://ORIGIN/old HTTP/1.0\r\n\r\n").await;
    assert!(old.contains("GET /old\n"), "{old}");
    let redirect = setup.get("http://ORIGIN/redirect", "").await;
    assert_eq!(status(&redirect), "307", "the client sees it: {redirect}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_is_found_by_header_namespace_and_configuration() {
    let setup = Setup::start("", "  registryMirror: {addr: 'http://ORIGIN/base'}").await;
    let origin = setup.origin.to_string();
    for (target, headers, line) in [
        ("/v2/".to_owned(), String::new(), "GET /base/v2/\n"),
        (
            format!("/v2/a?ns=http://{origin}&n=2"),
            String::new(),
            "GET /v2/a?n=2\n",
        ),
        (
            "/v2/a?ns=unknown.invalid".to_owned(),
            format!("X-Dragonfly-Registry: http://{origin}\r\n"),
            "GET /v2/a\n",
        ),
    ] {
        let answer = setup.get(&target, &headers).await;
        assert!(answer.contains(line), "{target} {headers}: {answer}");
    }
    let bad = setup
        .get("/v2/", "X-Dragonfly-Registry: nonsense\r\n")
        .await;
    assert_eq!(status(&bad), "400");
    assert!(bad.contains("X-Dragonfly-Error-Type: proxy"), "{bad}");
    assert!(bad.contains("names no registry"), "{bad}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_origins_are_true_errors() {
    let setup = Setup::start("idleTimeout: 1s", "").await;
    let closed = runtime::listen::tcp("127.0.0.1:0".parse().unwrap(), "x").unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    for (target, expected, whose) in [
        (format!("http://{nobody}/"), "502", "backend"),
        ("http://no-such-host.invalid/".to_owned(), "502", "backend"),
        ("http://ORIGIN/hang".to_owned(), "504", "backend"),
        ("http://169.254.169.254/latest".to_owned(), "403", "proxy"),
        (
            "http://[::ffff:169.254.169.254]/".to_owned(),
            "403",
            "proxy",
        ),
        ("ftp://host/".to_owned(), "400", "proxy"),
    ] {
        let target = target.replace("ORIGIN", &setup.origin.to_string());
        let answer = setup.get(&target, "").await;
        assert_eq!(status(&answer), expected, "{target}: {answer}");
        let line = format!("X-Dragonfly-Error-Type: {whose}\r\n");
        assert!(answer.contains(&line), "{target}: {answer}");
        assert!(answer.len() > 200, "it says what to do: {answer}");
    }
    let torso = setup.get("http://ORIGIN/torso", "").await;
    assert!(
        torso.contains("some of it") && !torso.ends_with("0\r\n\r\n"),
        "{torso}"
    );
    for (to, expected) in [
        (nobody.to_string(), "502"),
        ("169.254.169.254:80".to_owned(), "403"),
    ] {
        let answer = setup
            .say(&format!(
                "CONNECT {to} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&answer), expected, "{to}: {answer}");
    }
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_anything_both_ways() {
    let setup = Setup::start("", "").await;
    let mut stream = setup.connect().await;
    // What follows the CONNECT in the same packet belongs to the tunnel.
    let early = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nGET /inside HTTP/1.1\r\nHost: h\r\n\r\n",
        setup.origin
    );
    stream.write_all(early.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.contains("body=\n") {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut buffer));
        let len = read.await.unwrap().unwrap();
        assert!(len > 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("GET /inside\n") && !answer.contains("via="),
        "{answer}"
    );
    drop(stream);
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_has_a_lock_of_its_own() {
    let setup = Setup::start(
        "basicAuth: {username: admin, password: dragonfly}",
        "  registryMirror: {addr: 'http://ORIGIN'}",
    )
    .await;
    const RIGHT: &str = "Basic YWRtaW46ZHJhZ29uZmx5\r\n";
    let forward = setup
        .get("http://ORIGIN/", "Authorization: Bearer mine\r\n")
        .await;
    assert_eq!(status(&forward), "407");
    assert!(forward.contains("Proxy-Authenticate: Basic"), "{forward}");
    let mirror = setup.get("/v2/", "").await;
    assert_eq!(status(&mirror), "401");
    assert!(mirror.contains("Www-Authenticate: Basic"), "{mirror}");
    let tunnel = setup
        .say("CONNECT ORIGIN HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(status(&tunnel), "407");

    let both = format!("Proxy-Authorization: {RIGHT}Authorization: Bearer mine\r\n");
    let answer = setup.get("http://ORIGIN/", &both).await;
    assert!(answer.contains("authorization=Bearer mine\n"), "{answer}");
    let answer = setup.get("/v2/", &format!("Authorization: {RIGHT}")).await;
    assert_eq!(status(&answer), "200");
    assert!(!answer.contains("authorization="), "{answer}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_and_ambiguous_requests_are_refused() {
    let setup = Setup::start("", "").await;
    let long = format!(
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(80 << 10)
    );
    let many = format!(
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "X: 1\r\n".repeat(200)
    );
    let uri = format!(
        "GET http://ORIGIN/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "a".repeat(70 << 10)
    );
    for (request, expected) in [
        ("NONSENSE\r\n\r\n", &["400"][..]),
        ("GET http://ORIGIN/\u{1} HTTP/1.1\r\n\r\n", &["400"]),
        ("GET http://ORIGIN/ HTTP/9.9\r\nHost: x\r\n\r\n", &["400"]),
        ("GET http://ORIGIN/ HTTP/1.1\r\nHost : x\r\n\r\n", &["400"]),
        (
            "GET http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n",
            &["400"],
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            &["400"],
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
            &["400"],
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "POST http://ORIGIN/ HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "POST http://ORIGIN/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "GET http://ORIGIN/ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
            &["501"],
        ),
        (
            "CONNECT /nonsense HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            &["400"],
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["505"]),
        (&long, &["431"]),
        (&many, &["431"]),
        (&uri, &["414", "431"]),
    ] {
        let answer = setup.say(request).await;
        let shown: String = request.chars().take(120).collect();
        assert!(expected.contains(&status(&answer)), "{shown:?}: {answer}");
    }
    // With both lengths the chunks count (RFC 9112, section 6.3), and nothing behind them is taken for a request.
    let smuggled = setup
        .say("POST http://ORIGIN/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://ORIGIN/hidden HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(
        smuggled.contains("body=\n") && !smuggled.contains("content-length="),
        "{smuggled}"
    );
    assert!(!smuggled.contains("/hidden"), "{smuggled}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_the_plain_port_is_answered_in_one_line() {
    let setup = Setup::start("", "").await;
    let answer = setup.say("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}").await;
    assert_eq!(status(&answer), "400");
    assert!(
        answer.ends_with("you sent TLS: use http:// in the address of this proxy or mirror\n"),
        "{answer}"
    );
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leads_back_here_is_refused() {
    let setup = Setup::start("", "").await;
    let own = setup.addresses.proxy;
    let answer = setup.get(&format!("http://{own}/v2/"), "").await;
    assert_eq!(status(&answer), "508", "{answer}");
    let answer = setup
        .say(&format!(
            "CONNECT {own} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert_eq!(status(&answer), "508", "{answer}");
    let via = setup.get("http://ORIGIN/", "").await;
    let via = via
        .split("via=1.1 ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let answer = setup
        .get("http://ORIGIN/", &format!("Via: 1.1 other, 1.1 {via}\r\n"))
        .await;
    assert_eq!(status(&answer), "508", "{answer}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_refused_at_once() {
    let setup = Setup::start("requestRateLimit: 2", "").await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(status(&setup.get("http://ORIGIN/", "").await).to_owned());
    }
    assert_eq!(seen[0], "200");
    assert!(seen.contains(&"429".to_owned()), "{seen:?}");
    setup.stop().await;

    let setup = Setup::start("maxRequests: 1, maxTunnels: 1, maxConnections: 3", "").await;
    let mut running = setup.connect().await;
    let request = format!(
        "GET http://{}/hang HTTP/1.1\r\nHost: x\r\n\r\n",
        setup.origin
    );
    running.write_all(request.as_bytes()).await.unwrap();
    let busy = loop {
        let answer = setup.get("http://ORIGIN/", "").await;
        if status(&answer) == "503" {
            break answer;
        }
    };
    assert!(
        busy.contains("Retry-After: 1\r\n") && busy.contains("X-Dragonfly-Error-Type: proxy\r\n"),
        "{busy}"
    );
    drop(running);

    let mut tunnel = setup.connect().await;
    let connect = format!("CONNECT {} HTTP/1.1\r\nHost: x\r\n\r\n", setup.origin);
    let mut first = [0; 12];
    loop {
        // The place of the request that was given up is free again before long.
        tunnel.write_all(connect.as_bytes()).await.unwrap();
        tunnel.read_exact(&mut first).await.unwrap();
        if first.ends_with(b"200") {
            break;
        }
        tunnel = setup.connect().await;
    }
    let closing = connect.replace("Host: x", "Host: x\r\nConnection: close");
    let second = setup.say(&closing).await;
    assert_eq!(status(&second), "503", "{second}");

    let idle = [setup.connect().await, setup.connect().await];
    let refused = loop {
        let answer = setup.get("http://ORIGIN/", "").await;
        if answer.contains("maxConnections") {
            break answer;
        }
    };
    assert_eq!(status(&refused), "503", "{refused}");
    drop((tunnel, idle));
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers_end_and_silent_connections_wait() {
    let setup = Setup::start("headerTimeout: 1s", "").await;
    let mut slow = setup.connect().await;
    slow.write_all(b"GET http://h/ HTTP/1.1\r\nX-")
        .await
        .unwrap();
    assert_eq!(read_to_end(&mut slow).await, "");

    // A connection that waits gives its state machine up, and is served all the same.
    let mut kept = setup.connect().await;
    let request = format!("GET http://{}/x HTTP/1.1\r\nHost: x\r\n\r\n", setup.origin);
    for _ in 0..2 {
        kept.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("body=\n") {
            let mut buffer = [0; 1024];
            let len = kept.read(&mut buffer).await.unwrap();
            assert!(len > 0, "closed after {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        assert!(
            !answer.to_ascii_lowercase().contains("connection: close"),
            "{answer}"
        );
        // Longer than it takes to be parked: another connection's slow headers tell the time.
        let mut clock = setup.connect().await;
        clock.write_all(b"GET").await.unwrap();
        read_to_end(&mut clock).await;
    }
    setup.stop().await;
}
