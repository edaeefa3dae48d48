//! How this daemon connects to the gRPC services of one kind (schedulers, peers, manager), and asks for their health.
//!
//! Whether somebody is alive is found out by calls with deadlines, not by pings: servers of Dragonfly v2 close a
//! connection that is pinged more often than every five minutes.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use runtime::grpc::{ClientOptions, DialError};
use runtime::tls::{TlsError, TlsFiles};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How long a health check may take, connecting included.
const HEALTH_MAX: Duration = Duration::from_secs(3);

/// How often another daemon is pinged while a call is open, and how long it may take to answer.
const PEER_PING: Duration = Duration::from_secs(3);

/// Makes channels to one kind of service.
#[derive(Clone, Default)]
pub struct Dialer {
    options: ClientOptions,
}

/// Why no channel of a kind can ever be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialerError {
    /// A certificate file is no good.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The files do not fit together.
    #[error(transparent)]
    Material(#[from] DialError),
}

/// What a health check found.
#[derive(Debug)]
pub enum Health {
    /// It serves, or at least speaks gRPC without a health service.
    Serving,
    /// It does not, for this reason.
    Silent(String),
}

impl Dialer {
    /// Reads and checks the certificates, if there are any; plain text without.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn new(tls: Option<&TlsFiles>) -> Result<Self, DialerError> {
        let tls = tls.map(TlsFiles::read).transpose()?;
        let options = ClientOptions {
            tls,
            ..ClientOptions::default()
        };
        // Every later channel uses the same certificates, so that if this one can be made, all can.
        runtime::grpc::channel("127.0.0.1:1", &options)?;
        Ok(Self { options })
    }

    /// The same for other daemons, which bear frequent pings: a frozen one is noticed within seconds.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn for_peers(tls: Option<&TlsFiles>) -> Result<Self, DialerError> {
        let mut dialer = Self::new(tls)?;
        dialer.options.keepalive_interval = PEER_PING;
        dialer.options.keepalive_timeout = PEER_PING;
        Ok(dialer)
    }

    /// A channel to `addr` that connects at its first call and again after each loss.
    ///
    /// Must be called within a tokio runtime, as the connection is driven by a task.
    pub fn lazy(&self, addr: SocketAddr) -> Channel {
        runtime::grpc::channel(&addr.to_string(), &self.options)
            .expect("a socket address is a valid address, and new() has checked the certificates")
    }

    /// As [`Dialer::lazy`], and tells when the connection is lost.
    pub fn watched(&self, addr: SocketAddr) -> (Channel, Arc<Notify>) {
        let lost = Arc::new(Notify::new());
        let connector = tower::service_fn({
            let lost = lost.clone();
            move |_: Uri| {
                let lost = lost.clone();
                async move { Watched::connect(addr, lost).await.map(TokioIo::new) }
            }
        });
        let endpoint = runtime::grpc::endpoint(&addr.to_string(), &self.options)
            .expect("a socket address is a valid address, and new() has checked the certificates");
        (endpoint.connect_with_connector_lazy(connector), lost)
    }

    /// A channel to a URL from the configuration; as [`Dialer::lazy`].
    ///
    /// # Errors
    /// The URL is none.
    pub fn lazy_url(&self, url: &str) -> Result<Channel, DialError> {
        let plain = url.starts_with("http://");
        let tls = if plain {
            None
        } else {
            self.options.tls.clone()
        };
        runtime::grpc::channel(
            url,
            &ClientOptions {
                tls,
                ..self.options.clone()
            },
        )
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("tls", &self.options.tls.is_some())
            .finish()
    }
}

/// What a check-up of a server found.
#[derive(Debug)]
pub struct CheckUp {
    /// Whether it serves.
    pub health: Health,
    /// From the question to the answer, connecting included.
    pub round_trip: Duration,
    /// Its clock, to the second, if it tells (`date` header, which servers built on hyper send).
    pub date: Option<SystemTime>,
}

/// Asks for the health of the whole server (service `""`); takes at most 3 s.
pub async fn health(channel: Channel) -> Health {
    check_up(channel).await.health
}

/// As [`health`], and notes how long it took and what time it is there.
pub async fn check_up(channel: Channel) -> CheckUp {
    let mut client = HealthClient::new(channel);
    let request = Request::new(HealthCheckRequest::default());
    let asked = Instant::now();
    let answer = tokio::time::timeout(HEALTH_MAX, client.check(request)).await;
    let round_trip = asked.elapsed();
    let metadata = match &answer {
        Ok(Ok(reply)) => Some(reply.metadata()),
        Ok(Err(status)) => Some(status.metadata()),
        Err(_) => None,
    };
    let date = metadata
        .and_then(|metadata| metadata.get("date")?.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let health = match answer {
        Err(_) => Health::Silent(format!("no answer within {} s", HEALTH_MAX.as_secs())),
        Ok(Ok(reply)) => match reply.into_inner().status() {
            ServingStatus::Serving => Health::Serving,
            other => Health::Silent(format!("its health is {}", other.as_str_name())),
        },
        Ok(Err(status)) if status.code() == Code::Unimplemented => Health::Serving,
        Ok(Err(status)) => Health::Silent(reason(&status)),
    };
    CheckUp {
        health,
        round_trip,
        date,
    }
}

/// The first cause behind a status, which tonic itself only calls "transport error".
pub fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    if text.is_empty() {
        status.code().description().to_owned()
    } else {
        text
    }
}

/// True when nobody answered, so that another server should be tried; false when `status` is somebody's answer.
pub fn is_silence(status: &Status) -> bool {
    // Only a status made on this side, by the transport, has a source.
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// A connection that tells when it is dropped, which its driver does as soon as the other side closes or resets it.
struct Watched {
    stream: TcpStream,
    lost: Arc<Notify>,
}

impl Watched {
    async fn connect(addr: SocketAddr, lost: Arc<Notify>) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, lost })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.lost.notify_one();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
