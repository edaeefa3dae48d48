//! Servers on TCP and on unix sockets.

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::error::told;
use crate::shutdown::Shutdown;
use crate::tls::{TlsError, TlsMaterial};

/// The limits of a server. They bound what one connection can hold; a rate limit is [`super::RateLimit`].
#[derive(Clone)]
pub struct ServerOptions {
    /// Certificates for mutual TLS; `None` is plaintext.
    pub tls: Option<TlsMaterial>,
    /// How often a silent connection is pinged. Default 60 s.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is closed. Default 20 s.
    pub keepalive_timeout: Duration,
    /// Largest HTTP/2 frame that is accepted. Default 4 MiB: fewer frames for messages that carry content.
    pub frame_len_max: u32,
    /// Calls that one connection may have open at once. Default 10,000: a scheduler's client holds one stream per download.
    pub concurrent_streams_max: u32,
    /// Largest size of all headers of a call, bytes. Default 64 KiB.
    pub header_len_max: u32,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            tls: None,
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
            frame_len_max: 4 * 1024 * 1024,
            concurrent_streams_max: 10_000,
            header_len_max: 64 * 1024,
        }
    }
}

/// A server with these limits; add layers and services to it, then [`spawn_tcp`] or [`spawn_unix`].
///
/// # Errors
/// The certificates are not usable.
pub fn server(options: &ServerOptions) -> Result<Server, TlsError> {
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout))
        .max_frame_size(options.frame_len_max)
        .max_concurrent_streams(options.concurrent_streams_max)
        .http2_max_header_list_size(options.header_len_max);
    match &options.tls {
        Some(tls) => server
            .tls_config(tls.server_config())
            .map_err(|error| TlsError::Unusable(told(&error))),
        None => Ok(server),
    }
}

/// Serves `routes` on `listener` until `shutdown` begins, as a task named `name`; calls that are open then may finish within
/// the grace time of the drain. A server that ends by itself begins the shutdown as a failure.
pub fn spawn_tcp(
    name: &'static str,
    server: Server,
    routes: Routes,
    listener: TcpListener,
    shutdown: &Shutdown,
) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    spawn_incoming(name, server, routes, incoming, shutdown);
}

/// As [`spawn_tcp`], on a unix socket.
pub fn spawn_unix(
    name: &'static str,
    server: Server,
    routes: Routes,
    listener: UnixListener,
    shutdown: &Shutdown,
) {
    let incoming = UnixListenerStream::new(listener);
    spawn_incoming(name, server, routes, incoming, shutdown);
}

/// As [`spawn_tcp`], on any connections as they come in: for those that know more of the other side than its address.
pub fn spawn_incoming<C, E>(
    name: &'static str,
    mut server: Server,
    routes: Routes,
    incoming: impl Stream<Item = Result<C, E>> + Send + 'static,
    shutdown: &Shutdown,
) where
    C: AsyncRead
        + AsyncWrite
        + Connected<ConnectInfo: Clone + Send + Sync>
        + Unpin
        + Send
        + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let part = shutdown.clone();
    shutdown.spawn(name, async move {
        let stop = part.clone();
        let served = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async move { stop.begun().await })
            .await;
        if let Err(error) = served {
            part.fail(name, told(&error));
        }
    });
}

/// The `grpc.health.v1.Health` service and the handle that sets what it says. The server as a whole (`""`) is SERVING from
/// the start; drop to NOT_SERVING with [`HealthReporter::set_service_status`] before stopping.
pub fn health() -> (HealthReporter, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    (reporter, service)
}

/// The server reflection service (v1) over the encoded file descriptor sets of the services.
///
/// # Errors
/// A descriptor set does not parse.
pub fn reflection(
    descriptor_sets: &[&'static [u8]],
) -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
    tonic_reflection::server::Error,
> {
    descriptor_sets
        .iter()
        .fold(
            tonic_reflection::server::Builder::configure(),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        )
        .build_v1()
}
