//! One connection of a client, from its first byte to its end.
//!
//! A connection that waits for its first request, or has waited for the next one for a moment, is *parked*: no more than its
//! socket is held, so that ten thousand of them cost little. With the first byte it gets an HTTP/1 state machine, which is given up again
//! when nothing follows. A CONNECT turns it into a tunnel; one that is looked into carries such a state machine again, over TLS.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Proxy;
use super::body::ProxyBody;
use super::listener::{farewell, linger, reset};
use super::target::Destination;
use super::tunnel::{self, Opened};
use super::watch::{Phase, Watch, Watched};
use super::window::{Socket, Windows};

/// How often the waits of a connection in use are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Longest request head; a connection buffers at most twice as much. Header lines of real clients stay below 16 KiB; signed URLs and
/// tokens are what needs room.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most header lines of a request.
const HEADERS_MAX: usize = 128;

/// First byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the handler of a request needs to know of its connection.
pub(super) struct Peer {
    /// The client.
    pub(super) remote: IpAddr,
    /// The tunnel that the requests come out of.
    pub(super) within: Option<Destination>,
    /// Filled by a CONNECT: what the connection becomes after the answer.
    pub(super) opened: Mutex<Option<Opened>>,
    /// For answers whose bytes the kernel may send.
    pub(super) windows: Option<Windows>,
}

impl Peer {
    pub(super) fn new(remote: IpAddr, within: Option<Destination>) -> Arc<Self> {
        Arc::new(Self {
            remote,
            opened: Mutex::default(),
            // Out of a tunnel requests come over TLS.
            windows: Windows::for_client(remote).filter(|_| within.is_none()),
            within,
        })
    }
}

/// How the HTTP part of a connection ended.
enum Ended<I> {
    /// Nothing to do for a while. With bytes that were read already.
    Parked(I, Bytes),
    /// It is a tunnel now. With bytes that were read already.
    Tunnel(I, Bytes, Opened),
    /// In order: close it.
    Done(I),
    /// In the middle of an answer: nobody may take what was sent for the whole.
    Broken(I),
}

/// Serves `stream` to its end. Everything but waiting is boxed, so that a parked connection does not carry the room for it.
pub(super) async fn serve(
    proxy: Proxy,
    mut stream: TcpStream,
    remote: IpAddr,
    stop: CancellationToken,
) {
    let mut ahead = Bytes::new();
    loop {
        if ahead.is_empty() {
            match first_bytes(&stream, &proxy, &stop).await {
                First::Http => {}
                First::Gone => return,
                First::Tls => {
                    proxy.tls_on_plain_port(remote);
                    let text = "this port speaks plain HTTP, you sent TLS: use http:// in the address of this proxy or mirror";
                    return Box::pin(farewell(stream, StatusCode::BAD_REQUEST, "", text)).await;
                }
                First::Http2 => {
                    let text = "this port speaks HTTP/1.1, you sent HTTP/2";
                    let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
                    return Box::pin(farewell(stream, status, "", text)).await;
                }
            }
        }
        let peer = Peer::new(remote, None);
        let ended = Box::pin(converse(
            &proxy,
            stream,
            ahead,
            peer,
            &stop,
            Parking::Allowed,
        ))
        .await;
        match ended {
            Ended::Parked(io, rest) => (stream, ahead) = (io, rest),
            Ended::Tunnel(io, rest, opened) => {
                return Box::pin(tunnel::run(&proxy, io, rest, opened, remote, &stop)).await;
            }
            Ended::Done(io) => return Box::pin(linger(io)).await,
            Ended::Broken(io) => {
                reset(io);
                return;
            }
        }
    }
}

/// Serves the requests that come out of a tunnel.
pub(super) async fn serve_within<I>(proxy: &Proxy, io: I, peer: Arc<Peer>, stop: &CancellationToken)
where
    I: Socket,
{
    match converse(proxy, io, Bytes::new(), peer, stop, Parking::Never).await {
        Ended::Done(io) => linger(io).await,
        // Without the end that TLS has, the client knows that something is missing.
        Ended::Parked(..) | Ended::Tunnel(..) | Ended::Broken(_) => {}
    }
}

enum First {
    Http,
    Tls,
    Http2,
    Gone,
}

/// Waits for the first bytes and leaves them where they are.
async fn first_bytes(stream: &TcpStream, proxy: &Proxy, stop: &CancellationToken) -> First {
    let mut start = [0; 4];
    let peeked = tokio::select! {
        biased;
        () = stop.cancelled() => return First::Gone,
        () = proxy.is_cut() => return First::Gone,
        peeked = tokio::time::timeout(proxy.limits().idle, stream.peek(&mut start)) => peeked,
    };
    match peeked {
        Ok(Ok(len)) if len > 0 => match start[0] {
            TLS_HANDSHAKE => First::Tls,
            _ if start[..len] == *b"PRI " => First::Http2,
            _ => First::Http,
        },
        _ => First::Gone,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parking {
    Allowed,
    Never,
}

/// Requests and answers on one connection, until there is a reason to stop.
async fn converse<I>(
    proxy: &Proxy,
    io: I,
    ahead: Bytes,
    peer: Arc<Peer>,
    stop: &CancellationToken,
    parking: Parking,
) -> Ended<I>
where
    I: Socket,
{
    let watch = Watch::new();
    let io = TokioIo::new(Watched::new(
        io,
        ahead,
        watch.clone(),
        peer.windows.clone().unwrap_or_default(),
    ));
    let service = service_fn({
        let (proxy, peer, watch) = (proxy.clone(), peer.clone(), watch.clone());
        move |request| answer(proxy.clone(), peer.clone(), watch.clone(), request)
    });
    let mut connection = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        // Ours tell a silent client from a slow one; see `watch`.
        .header_read_timeout(None)
        .serve_connection(io, service);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = false;
    let mut parked_at = None;
    let outcome = loop {
        let mut cut = pin!(proxy.is_cut());
        let finished = poll_fn(|cx| connection.poll_without_shutdown(cx));
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = &mut cut => break None,
            outcome = finished => break Some(outcome),
            _ = ticks.tick() => match judge(&watch, proxy, parking) {
                Judgement::Fine => {}
                Judgement::Park if parked_at.is_none() => {
                    parked_at = Some(watch.requests());
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Judgement::Park => {}
                Judgement::End(why) => {
                    debug!(remote = %peer.remote, why, "connection ended");
                    break None;
                }
            },
        }
    };
    // Asked before the state machine goes, which takes the answer along with it. What a client does not take is not sent yet, even if
    // all of it was made.
    let unfinished = watch.phase() == Phase::Busy || watch.is_blocked();
    let parts = connection.into_parts();
    let (io, unread) = parts.io.into_inner().into_parts();
    // Bytes that the state machine read come before those that it was not given yet.
    let rest = if unread.is_empty() {
        parts.read_buf
    } else {
        [parts.read_buf, unread].concat().into()
    };
    match outcome {
        Some(Ok(())) => {
            let opened = peer.opened.lock().take();
            match opened {
                Some(opened) => Ended::Tunnel(io, rest, opened),
                None if parked_at == Some(watch.requests()) && !stopping => Ended::Parked(io, rest),
                None => Ended::Done(io),
            }
        }
        Some(Err(error)) => {
            debug!(remote = %peer.remote, %error, "connection failed");
            if unfinished || error.is_user() {
                Ended::Broken(io)
            } else {
                Ended::Done(io)
            }
        }
        None if unfinished => Ended::Broken(io),
        None => Ended::Done(io),
    }
}

enum Judgement {
    Fine,
    Park,
    End(&'static str),
}

fn judge(watch: &Watch, proxy: &Proxy, parking: Parking) -> Judgement {
    let limits = proxy.limits();
    if watch.blocked() > limits.idle {
        return Judgement::End("the client does not take its answer");
    }
    match watch.phase() {
        Phase::Head if watch.lasted() > limits.header => {
            Judgement::End("the headers of a request did not come in time")
        }
        Phase::Idle if watch.lasted() > limits.idle => Judgement::End("no request came"),
        Phase::Idle if watch.lasted() >= TICK && watch.blocked().is_zero() => match parking {
            Parking::Allowed => Judgement::Park,
            Parking::Never => Judgement::Fine,
        },
        Phase::Idle | Phase::Head | Phase::Busy => Judgement::Fine,
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<ProxyBody>, Infallible>> + Send>>;

fn answer(
    proxy: Proxy,
    peer: Arc<Peer>,
    watch: Arc<Watch>,
    request: Request<Incoming>,
) -> Answering {
    watch.request_begins();
    let until_end = UntilIdle(watch);
    Box::pin(async move {
        let response = proxy.answer(request, &peer).await;
        Ok(response.map(|body| body.holding(until_end)))
    })
}

/// Notes the end of an answer, however it comes.
struct UntilIdle(Arc<Watch>);

impl Drop for UntilIdle {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}
