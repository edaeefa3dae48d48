//! gRPC over the daemon's unix socket.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::CONNECT_LIMIT;
use super::failure::Failure;

/// Bytes the daemon may have on the way to us: enough for a socket at full speed, and a bound for our memory.
const WINDOW_BYTES: u32 = 8 << 20;

/// Connects to the daemon at `socket`.
pub(super) async fn connect(socket: &Path) -> Result<Channel, Failure> {
    let unreachable = |reason: String| Failure::Unreachable {
        endpoint: socket.to_owned(),
        reason,
    };
    // The first connection is made here, so that its error is the system's own word instead of the library's.
    let stream = match tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => {
            return Err(unreachable(format!(
                "no answer within {}",
                humantime::format_duration(CONNECT_LIMIT)
            )));
        }
    };
    let mut first = Some(stream);
    let path = socket.to_owned();
    let connector = service_fn(move |_| {
        let ready = first.take();
        let path = path.clone();
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The address only fills the HTTP authority; nothing is connected to there.
    Endpoint::from_static("http://dfdaemon")
        .connect_timeout(CONNECT_LIMIT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(error.to_string()))
}
