//! The parent's side: answers requests on the piece port.
//!
//! Every connection is one task that reads a request, asks the [`PieceSource`], sends the answer and reads the next
//! request. A connection costs a few KiB of memory and no buffer while it sends: content goes from the
//! page cache to the socket with `sendfile`. What is not in the page cache is read in by a blocking thread first, so a slow
//! disk never holds up the other connections.
//!
//! `TCP_NOTSENT_LOWAT` is left alone on purpose: it would save kernel memory for copied data, but what `sendfile` queues
//! are references to cached pages, and small queues cost a wake-up each.

mod connection;
mod read;
mod residency;
mod send;

pub use residency::is_resident;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::vortex::{ErrorReply, Request};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Content, RateLimit, sys};

/// Knows the pieces: finds what a child asks for and decides when it may have it.
pub trait PieceSource: Send + Sync + 'static {
    /// Finds the content for a request, or says why there is none.
    ///
    /// May wait, for an upload slot or for a piece that is arriving. The future is dropped when the child's connection
    /// breaks (not when the child only ends its writing side, as old v2 children do), when the server stops, and after
    /// [`ServerOptions::open`]. It runs on the reactor, so it must not block.
    fn open(
        &self,
        request: Request,
        child: SocketAddr,
    ) -> impl Future<Output = Result<Content, ErrorReply>> + Send;
}

impl<S: PieceSource> PieceSource for Arc<S> {
    fn open(
        &self,
        request: Request,
        child: SocketAddr,
    ) -> impl Future<Output = Result<Content, ErrorReply>> + Send {
        S::open(self, request, child)
    }
}

/// Settings of a [`Server`].
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections served at the same time; further ones wait in the kernel's queue (1024). Default 4096: one descriptor
    /// and a few KiB each.
    pub connections_max: usize,
    /// Connections from one address; further ones are closed at once, so that one host cannot shut out the others.
    /// Default 1024: many containers may share an address.
    pub connections_per_host_max: usize,
    /// Requests that are opened or sent at the same time; others wait for them, in order. Default 1024.
    pub requests_max: usize,
    /// Contents that are read from disk at the same time because they are not in memory. Default 16: one blocking thread
    /// each.
    pub disk_reads_max: usize,
    /// How long a connection may be silent between requests. Default 30 s, as in the reference.
    pub idle: Duration,
    /// How long [`PieceSource::open`] may take. Default 720 s: the reference waits as long for an unfinished piece.
    pub open: Duration,
    /// How long a child may take nothing, or an arriving content may bring nothing. Default 30 s.
    pub stall: Duration,
    /// A child that takes less than this on average, in bytes per second, is cut off after `stall` and the time this
    /// rate allows for the content. Default 16 KiB/s.
    pub rate_min: u64,
    /// How long contents on their way may take to finish after a stop. Default 5 s.
    pub drain: Duration,
    /// Accept data in the first packet (`TCP_FASTOPEN`). Default off, as in the reference.
    pub fast_open: bool,
    /// Limits what is sent to all children together.
    pub upload_limit: Option<Arc<RateLimit>>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_host_max: 1024,
            requests_max: 1024,
            disk_reads_max: 16,
            idle: Duration::from_secs(30),
            open: Duration::from_secs(720),
            stall: Duration::from_secs(30),
            rate_min: 16 << 10,
            drain: Duration::from_secs(5),
            fast_open: false,
            upload_limit: None,
        }
    }
}

/// A bound piece port that does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    options: ServerOptions,
}

/// What all connections share.
struct Shared<S> {
    source: S,
    options: ServerOptions,
    requests: Semaphore,
    disk_reads: Arc<Semaphore>,
    hosts: Hosts,
}

impl Server {
    /// Binds the piece port. `[::]` serves IPv4 too where the system allows it.
    ///
    /// # Errors
    /// From the system: the port is taken or not allowed.
    pub fn bind(addr: SocketAddr, options: ServerOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // Without it a restart would have to wait until old connections are forgotten.
        socket.set_reuse_address(true)?;
        if addr.ip().is_unspecified() && addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        sys::set_piece_socket_options(&socket)?;
        if options.fast_open
            && let Err(error) = sys::set_fast_open(&socket, BACKLOG)
        {
            warn!(%error, "TCP fast open is not available: check net.ipv4.tcp_fastopen");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG.cast_signed())?;
        Ok(Self {
            listener: socket.into(),
            options,
        })
    }

    /// The address bound, with the real port.
    ///
    /// # Errors
    /// From the system, not in practice.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until `stop` is cancelled, then lets contents on their way finish for a while. Everything it
    /// started has ended when it returns. Dropping the future ends everything at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve<S: PieceSource>(self, source: S, stop: CancellationToken) {
        let listener = TcpListener::from_std(self.listener)
            .expect("a bound, non-blocking listener in a runtime");
        let shared = Arc::new(Shared {
            source,
            requests: Semaphore::new(self.options.requests_max.clamp(1, Semaphore::MAX_PERMITS)),
            disk_reads: Arc::new(Semaphore::new(
                self.options.disk_reads_max.clamp(1, Semaphore::MAX_PERMITS),
            )),
            hosts: Hosts::default(),
            options: self.options,
        });
        let mut connections = JoinSet::new();
        while let Some((stream, child)) =
            next_connection(&listener, &mut connections, &shared.options, &stop).await
        {
            let Some(host) = shared
                .hosts
                .enter(child.ip(), shared.options.connections_per_host_max)
            else {
                debug!(%child, "connection refused: too many from this host");
                continue;
            };
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            connections.spawn(async move {
                let _host = host;
                connection::run(&shared, stream, child, &stop).await;
            });
        }
        drop(listener);
        drain(connections, shared.options.drain).await;
    }
}

/// Connections that may wait in the kernel; the reference has the same number.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept: most causes (no descriptors left) need time to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Waits for a place and then for a connection; nothing when the server stops.
async fn next_connection(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    options: &ServerOptions,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let full = connections.len() >= options.connections_max.max(1);
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection of the piece port ended in a panic");
                }
            }
            accepted = listener.accept(), if !full => match accepted {
                // On a socket for both families an IPv4 child comes in IPv6 clothes.
                Ok((stream, child)) => {
                    return Some((stream, SocketAddr::new(child.ip().to_canonical(), child.port())));
                }
                Err(error) => {
                    warn!(%error, "piece port cannot accept: check the limit of open files");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn drain(mut connections: JoinSet<()>, limit: Duration) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, all).await.is_err() {
        debug!(
            connections = connections.len(),
            "piece port stops in mid transfer"
        );
        connections.shutdown().await;
    }
}

/// How many connections each address has. Holds an entry only for addresses with connections.
#[derive(Debug, Default, Clone)]
struct Hosts(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of a host; counted until dropped.
struct HostGuard {
    hosts: Hosts,
    ip: IpAddr,
}

impl Hosts {
    fn enter(&self, ip: IpAddr, max: usize) -> Option<HostGuard> {
        let mut counts = self.0.lock();
        let count = counts.entry(ip).or_default();
        if *count >= max.max(1) {
            return None;
        }
        *count += 1;
        Some(HostGuard {
            hosts: self.clone(),
            ip,
        })
    }
}

impl Drop for HostGuard {
    fn drop(&mut self) {
        let mut counts = self.hosts.0.lock();
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}
