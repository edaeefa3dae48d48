//! CONNECT: a blind tunnel, or for the hosts that rules name one that this daemon answers itself.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::{self, ErrorType};
use super::body::ProxyBody;
use super::connection::{self, Peer};
use super::listener::reset;
use super::target::Destination;
use super::watch::{Watch, Watched};
use super::window::Windows;
use super::{Proxy, headers};

/// How often a tunnel is looked at; and once the end has begun, how long one may be silent before it is closed.
const TICK: Duration = Duration::from_secs(1);

/// Bytes of one direction that are in memory.
const BUFFER: usize = 16 << 10;

/// A tunnel that was promised to a client, with its place among the others.
#[derive(Debug)]
pub(super) struct Opened {
    kind: Kind,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Kind {
    /// Bytes go to the far end as they are.
    Blind(TcpStream),
    /// We are the far end.
    Intercepted(Destination, Arc<ServerConfig>),
}

/// Answers a CONNECT. A far end that is forwarded to is dialled before, so that the client hears the truth about it.
pub(super) async fn open(proxy: &Proxy, to: Destination, peer: &Peer) -> Response<ProxyBody> {
    let Ok(permit) = proxy.tunnels().clone().try_acquire_owned() else {
        return answer::busy(
            StatusCode::SERVICE_UNAVAILABLE,
            "this proxy has as many tunnels as proxy.server.maxTunnels allows: connect directly, or come back later",
        );
    };
    let interception = proxy.interception().filter(|it| it.covers(&to));
    let kind = if let Some(interception) = interception {
        match interception.certificate_for(&to.host) {
            Ok(config) => Kind::Intercepted(to, config),
            Err(error) => {
                warn!(host = %to.host, %error, "no certificate for an intercepted host");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                return answer::error(status, ErrorType::Proxy, &error.to_string());
            }
        }
    } else {
        match proxy.http().dial(&to.host, to.port).await {
            Ok(far) => Kind::Blind(far),
            Err(error) => {
                debug!(host = %to.host, %error, "tunnel");
                proxy.failed();
                return answer::unreachable(&error);
            }
        }
    };
    *peer.opened.lock() = Some(Opened {
        kind,
        _permit: permit,
    });
    Response::new(ProxyBody::empty())
}

/// Carries a tunnel to its end. `ahead` was sent by the client together with its request.
pub(super) async fn run(
    proxy: &Proxy,
    near: TcpStream,
    ahead: Bytes,
    opened: Opened,
    remote: IpAddr,
    stop: &CancellationToken,
) {
    let watch = Watch::new();
    let near = Watched::new(near, ahead, watch.clone(), Windows::default());
    match opened.kind {
        Kind::Blind(far) => copy(proxy, near, far, &watch, stop).await,
        Kind::Intercepted(to, config) => {
            let handshake = TlsAcceptor::from(config).accept(near);
            let limit = proxy.limits().header;
            let shaken = tokio::select! {
                biased;
                () = proxy.is_cut() => return,
                shaken = tokio::time::timeout(limit, handshake) => shaken,
            };
            match shaken {
                Ok(Ok(stream)) => {
                    let peer = Peer::new(remote, Some(to));
                    connection::serve_within(proxy, stream, peer, stop).await;
                }
                Ok(Err(error)) => proxy.handshake_failed(&to, remote, &error),
                Err(_) => debug!(%remote, host = %to.host, "no TLS handshake came"),
            }
        }
    }
}

/// Carries bytes until both ends have ended their direction. Any other end is a reset for both, so that what one of them lost is not
/// taken for its end by the other.
async fn copy(
    proxy: &Proxy,
    mut near: Watched<TcpStream>,
    mut far: TcpStream,
    watch: &Watch,
    stop: &CancellationToken,
) {
    let ended = {
        let mut copied = pin!(tokio::io::copy_bidirectional_with_sizes(
            &mut near, &mut far, BUFFER, BUFFER
        ));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = proxy.is_cut() => break false,
                copied = &mut copied => break copied.is_ok(),
                _ = ticks.tick() => {
                    let still = watch.still();
                    if still > proxy.limits().idle || (stop.is_cancelled() && still >= TICK) {
                        break false;
                    }
                }
            }
        }
    };
    if !ended {
        reset(near.into_parts().0);
        reset(far);
    }
}

/// Whether the client asks for a change of protocol that is refused.
pub(super) fn refused_upgrade(headers: &http::HeaderMap) -> Option<Response<ProxyBody>> {
    let protocol = headers::wanted_upgrade(headers)?;
    let text = format!(
        "this proxy does not change to {protocol:?}: open a tunnel with CONNECT, or exempt the host from proxying (NO_PROXY)"
    );
    Some(answer::error(
        StatusCode::NOT_IMPLEMENTED,
        ErrorType::Proxy,
        &text,
    ))
}
