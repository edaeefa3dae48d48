//! An origin that answers byte for byte what a test wants, also what no sane server would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One thing the origin does on a connection; after the last one it closes.
pub(crate) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends nothing more until the client goes away.
    Stall,
    /// Ends the connection with a TCP reset.
    Reset,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// How many requests came before it.
    pub(crate) index: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The origin; stops when dropped.
pub(crate) struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    serving: JoinHandle<()>,
}

impl Origin {
    /// Answers every request as `answer` says; one request per connection.
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", answer).await
    }

    /// The same on another loopback address.
    pub(crate) async fn start_at(
        ip: &str,
        answer: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let record = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer), Arc::clone(&record)));
            }
        });
        Self {
            address,
            seen,
            serving,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve<A: Fn(&Seen) -> Vec<Step>>(
    mut stream: TcpStream,
    answer: Arc<A>,
    record: Arc<Mutex<Vec<Seen>>>,
) {
    let Some(mut seen) = read_request(&mut stream).await else {
        return;
    };
    {
        let mut record = record.lock().unwrap();
        seen.index = record.len();
        record.push(seen.clone());
    }
    let steps = answer(&seen);
    for step in steps {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Stall => {
                let mut sink = [0; 1];
                let _ = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut sink)).await;
                return;
            }
            Step::Reset => {
                // What was sent before stays readable for the client: Linux hands out what it received before it tells of the reset.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
        }
    }
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut raw = Vec::new();
    while !raw.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.ok()?;
        if read == 0 || raw.len() > 64 << 10 {
            return None;
        }
        raw.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8(raw).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Seen {
        index: 0,
        method,
        target,
        headers,
    })
}

/// A head with these headers, and `connection: close`.
pub(crate) fn head(status: &str, headers: &[(&str, &str)]) -> Step {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    Step::Send(text.into_bytes())
}

/// A whole answer with its length.
pub(crate) fn reply(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<Step> {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    headers.push(("content-length", &length));
    vec![head(status, &headers), Step::Send(body.to_vec())]
}

/// An honest answer out of `content`: a 206 if a range was asked for, else a 200.
pub(crate) fn honest(seen: &Seen, content: &[u8], headers: &[(&str, &str)]) -> Vec<Step> {
    let Some(range) = seen
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="))
    else {
        return reply("200 OK", headers, content);
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last: usize = last.parse::<usize>().unwrap().min(content.len() - 1);
    let told = format!("bytes {first}-{last}/{}", content.len());
    let mut headers = headers.to_vec();
    headers.push(("content-range", &told));
    reply("206 Partial Content", &headers, &content[first..=last])
}
