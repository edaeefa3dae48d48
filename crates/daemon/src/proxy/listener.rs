//! The port: accepting, bounding the number of connections, and ending them in order.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::Proxy;
use super::connection;

/// Connections beyond the limit that are told so at the same time; more are closed without a word.
const REFUSALS_MAX: usize = 256;

/// How long a client may take to read why its connection is closed, and how much it may send meanwhile.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
const FAREWELL_BYTES_MAX: usize = 64 << 10;

/// Pause after the system refused a connection, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the end begins, then lets what runs finish within `grace`.
pub(super) async fn serve(
    proxy: Proxy,
    listener: TcpListener,
    grace: Duration,
    shutdown: Shutdown,
) {
    let connections = usize::try_from(proxy.limits().connections).unwrap_or(usize::MAX);
    let connections = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let tasks = proxy.connections().clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.begun() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "the proxy cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A socket that refuses it works all the same.
        let _ = stream.set_nodelay(true);
        match connections.clone().try_acquire_owned() {
            Ok(permit) => {
                let serving =
                    connection::serve(proxy.clone(), stream, remote.ip(), shutdown.token().clone());
                tasks.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(_) => {
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    tasks.spawn(async move {
                        refuse(stream, remote.ip()).await;
                        drop(permit);
                    });
                }
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        warn!(
            left = tasks.len(),
            limit_s = grace.as_secs(),
            "connections of the proxy were still in use, ending them"
        );
    }
    proxy.cut();
    tasks.wait().await;
}

async fn refuse(stream: TcpStream, remote: IpAddr) {
    debug!(%remote, "too many connections");
    let text = "this proxy has as many connections as proxy.server.maxConnections allows: ask the origin, or come back later";
    farewell(
        stream,
        StatusCode::SERVICE_UNAVAILABLE,
        "Retry-After: 1\r\n",
        text,
    )
    .await;
}

/// Says one thing in HTTP/1.1 and closes the connection, whatever the other side speaks.
pub(super) async fn farewell(stream: TcpStream, status: StatusCode, header: &str, text: &str) {
    let reason = status.canonical_reason().unwrap_or_default();
    let length = text.len() + 1;
    let answer = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\nX-Dragonfly-Error-Type: proxy\r\n{header}\r\n{text}\n",
        status.as_u16(),
    );
    let said = async {
        let mut stream = stream;
        if stream.write_all(answer.as_bytes()).await.is_ok() {
            linger(stream).await;
        }
    };
    // Whoever does not listen is not waited for.
    let _ = tokio::time::timeout(FAREWELL_MAX, said).await;
}

/// Closes our direction and reads for a moment what is still on its way: data that meets a closed socket would be answered with
/// a reset, which takes our last words away from the client.
pub(super) async fn linger(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    let rest = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        let mut read = 0;
        while read < FAREWELL_BYTES_MAX {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(len) => read += len,
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL_MAX, rest).await;
}

/// Ends a connection without a proper end, which would say to whoever reads until then that nothing is missing.
pub(super) fn reset(stream: TcpStream) {
    // Where it is refused the connection is closed all the same.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
