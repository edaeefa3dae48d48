//! A real HTTP origin for the generated file: ranges, validators, and a count of every byte that leaves it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::ByteRange;
use runtime::listen::BindError;
use runtime::shutdown::Shutdown;

use super::content::Content;

/// Bytes per frame of an answer.
const FRAME_LEN: usize = 256 * 1024;

/// The running server.
#[derive(Clone)]
pub(super) struct Origin {
    file: Arc<File>,
    address: SocketAddr,
}

struct File {
    content: Content,
    sent: AtomicU64,
}

impl Origin {
    /// Serves `content` on a free loopback port until `shutdown` begins.
    pub(super) fn start(content: Content, shutdown: &Shutdown) -> Result<Self, BindError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime::listen::tcp(wanted, "the demo's origin")?;
        let address = listener.local_addr().unwrap_or(wanted);
        let file = Arc::new(File {
            content,
            sent: AtomicU64::new(0),
        });
        let router = Router::new().fallback(answer).with_state(file.clone());
        runtime::http::spawn("origin", listener, router, shutdown);
        Ok(Self { file, address })
    }

    /// The file's address.
    pub(super) fn url(&self) -> String {
        format!("http://{}/{}", self.address, file_name(self.file.content))
    }

    /// Bytes of content handed to sockets so far. A connection that its reader drops may count up to one frame more
    /// than arrived.
    pub(super) fn sent(&self) -> u64 {
        self.file.sent.load(Ordering::Relaxed)
    }
}

fn file_name(content: Content) -> String {
    format!("dragonfly-demo-{:016x}.bin", content.seed)
}

async fn answer(
    State(file): State<Arc<File>>,
    method: Method,
    headers: HeaderMap,
    uri: axum::http::Uri,
) -> Response {
    let content = file.content;
    if uri.path().trim_start_matches('/') != file_name(content) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let asked = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let (status, range) = match asked.map(|value| ByteRange::parse_header(value, content.len)) {
        None => (StatusCode::OK, ByteRange::whole(content.len)),
        Some(Ok(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(Err(_)) => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            insert(
                &mut response,
                header::CONTENT_RANGE,
                &format!("bytes */{}", content.len),
            );
            return response;
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        body(file, range)
    };
    let mut response = (status, body).into_response();
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    insert(
        &mut response,
        header::CONTENT_LENGTH,
        &range.length.to_string(),
    );
    insert(
        &mut response,
        header::CONTENT_TYPE,
        "application/octet-stream",
    );
    insert(
        &mut response,
        header::ETAG,
        &format!("\"{:016x}-{}\"", content.seed, content.len),
    );
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end().saturating_sub(1);
        insert(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes {}-{last}/{}", range.start, content.len),
        );
    }
    response
}

fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The bytes of `range`, made frame by frame as the socket takes them.
fn body(file: Arc<File>, range: ByteRange) -> Body {
    let frames = futures::stream::unfold(range.start, move |offset| {
        let file = file.clone();
        async move {
            let len = usize::try_from(range.end() - offset)
                .unwrap_or(usize::MAX)
                .min(FRAME_LEN);
            if len == 0 {
                return None;
            }
            let mut frame = vec![0; len];
            file.content.fill(offset, &mut frame);
            file.sent.fetch_add(len as u64, Ordering::Relaxed);
            Some((
                Ok::<_, std::convert::Infallible>(Bytes::from(frame)),
                offset + len as u64,
            ))
        }
    });
    Body::from_stream(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(origin: &Origin, request: &str) -> (String, Vec<u8>) {
        let mut stream = tokio::net::TcpStream::connect(origin.address)
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let head = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        (
            String::from_utf8(answer[..head].to_vec()).unwrap(),
            answer[head..].to_vec(),
        )
    }

    #[tokio::test]
    async fn it_serves_wholes_parts_and_heads_and_counts_what_it_sends() {
        let shutdown = Shutdown::new();
        let content = Content {
            seed: 3,
            len: 600_000,
        };
        let origin = Origin::start(content, &shutdown).unwrap();
        let path = origin.url().split_off(origin.url().rfind('/').unwrap());
        let end = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let mut whole = vec![0; 600_000];
        content.fill(0, &mut whole);

        let (head, body) = ask(&origin, &format!("HEAD {path} {end}\r\n")).await;
        assert!(
            head.starts_with("HTTP/1.1 200")
                && head.contains("content-length: 600000")
                && body.is_empty(),
            "{head}"
        );
        let (head, body) = ask(
            &origin,
            &format!("GET {path} {end}Range: bytes=300001-300010\r\n\r\n"),
        )
        .await;
        assert!(
            head.contains("206") && head.contains("content-range: bytes 300001-300010/600000"),
            "{head}"
        );
        assert_eq!(body, whole[300_001..300_011]);
        assert_eq!(origin.sent(), 10);
        let (_, body) = ask(&origin, &format!("GET {path} {end}\r\n")).await;
        assert!(body == whole && origin.sent() == 600_010);
        let (head, _) = ask(
            &origin,
            &format!("GET {path} {end}Range: bytes=600000-\r\n\r\n"),
        )
        .await;
        assert!(head.starts_with("HTTP/1.1 416"), "{head}");
        let (head, _) = ask(&origin, &format!("GET /other {end}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        shutdown.drain(Duration::from_secs(20)).await;
    }
}
