//! gRPC over the daemon's unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tower::service_fn;

use crate::failure::Failure;

/// Where a daemon listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "/var/run/dragonfly/dfdaemon.sock";

/// The longest wait for the daemon's socket to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long a call that moves no content may take, as in Dragonfly v2.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Bytes the daemon may have on the way to us: enough for a socket at full speed, and a bound for our memory.
const WINDOW_BYTES: u32 = 8 << 20;

/// Where the daemon is.
#[derive(Debug, Clone, Args)]
pub struct DaemonArguments {
    /// Unix socket of the daemon.
    #[arg(short, long, env = "DFGET_ENDPOINT", default_value = DEFAULT_ENDPOINT)]
    pub endpoint: PathBuf,
}

impl DaemonArguments {
    /// Connects to it.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub async fn connect(&self) -> Result<Channel, Failure> {
        connect(&self.endpoint).await
    }
}

/// A request with the limit of calls that move no content.
pub(crate) fn bounded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// What the status of such a call means.
pub(crate) fn call_failed(status: Status) -> Failure {
    Failure::of_status(&status, CALL_LIMIT, "-")
}

/// Connects to the daemon at `socket`.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, Failure> {
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
