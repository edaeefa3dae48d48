//! Channels to other services.

use std::path::Path;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::error::told;
use crate::tls::TlsMaterial;

/// The limits of a client. The defaults are those of the public v2 client (manager sheet, section 1.1), except that a
/// dead connection is noticed within seconds instead of minutes.
#[derive(Clone)]
pub struct ClientOptions {
    /// Longest time to connect. Default 3 s.
    pub connect_timeout: Duration,
    /// Longest time until the response headers of a call. Default 10 s.
    pub request_timeout: Option<Duration>,
    /// How often an idle connection is pinged. Default 300 s: servers of Dragonfly v2 drop a client that pings much faster.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is given up. Default 20 s.
    pub keepalive_timeout: Duration,
    /// Certificates for mutual TLS; `None` is plaintext.
    pub tls: Option<TlsMaterial>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            request_timeout: Some(Duration::from_secs(10)),
            keepalive_interval: Duration::from_secs(300),
            keepalive_timeout: Duration::from_secs(20),
            tls: None,
        }
    }
}

/// Why a channel cannot be made. A service that does not answer is no such reason: channels connect when they are used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The address is not one.
    #[error(
        "{address:?} is no address of a gRPC service: {error}: expected such as http://10.0.0.1:8002"
    )]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        error: String,
    },
    /// The certificates cannot be used.
    #[error("TLS towards {address:?} is not usable: {error}: check caCert, cert and key")]
    Tls {
        /// The address as given.
        address: String,
        /// What is wrong with them.
        error: String,
    },
}

/// A channel to `address` that connects on first use and again after a loss. An address without a scheme gets `https` if
/// there are certificates, else `http`.
///
/// # Errors
/// The address or the certificates are not usable.
pub fn channel(address: &str, options: &ClientOptions) -> Result<Channel, DialError> {
    Ok(endpoint(address, options)?.connect_lazy())
}

/// What [`channel`] connects to, for those who bring a connector of their own.
///
/// # Errors
/// As [`channel`].
pub fn endpoint(address: &str, options: &ClientOptions) -> Result<Endpoint, DialError> {
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let uri = if address.contains("://") {
        address.to_owned()
    } else {
        format!("{scheme}://{address}")
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| DialError::Address {
        address: address.to_owned(),
        error: told(&error),
    })?;
    let endpoint = limited(endpoint, options);
    match &options.tls {
        None => Ok(endpoint),
        Some(tls) => endpoint
            .tls_config(tls.client_config())
            .map_err(|error| DialError::Tls {
                address: address.to_owned(),
                error: told(&error),
            }),
    }
}

/// A channel to a unix socket, as [`channel`]; never TLS.
///
/// # Errors
/// The path cannot be written as an address.
pub fn channel_unix(path: &Path, options: &ClientOptions) -> Result<Channel, DialError> {
    let address = format!("unix://{}", path.display());
    let endpoint = Endpoint::from_shared(address.clone()).map_err(|error| DialError::Address {
        address,
        error: told(&error),
    })?;
    Ok(limited(endpoint, options).connect_lazy())
}

/// Asks `grpc.health.v1.Health/Check` for `service` (`""` is the whole server). `false` also if no answer comes within
/// `timeout`. Cancel-safe.
pub async fn is_serving(channel: Channel, service: &str, timeout: Duration) -> bool {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = async move { HealthClient::new(channel).check(request).await };
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(response)) => response.into_inner().status() == ServingStatus::Serving,
        _ => false,
    }
}

fn limited(endpoint: Endpoint, options: &ClientOptions) -> Endpoint {
    let endpoint = endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    match options.request_timeout {
        Some(timeout) => endpoint.timeout(timeout),
        None => endpoint,
    }
}
