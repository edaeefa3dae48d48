//! Name resolution that obeys the egress policy.

use std::fmt;
use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::EgressPolicy;

/// The system's resolver, of whose answers only the permitted addresses are connected to. As the connection goes to the very addresses that
/// were checked, a name that changes its mind in between (DNS rebinding) gains nothing.
pub(super) struct PolicyResolver {
    pub(super) egress: EgressPolicy,
}

/// Why a name gave no address. Travels through the HTTP library and is found again in the error's chain.
#[derive(Debug)]
pub(super) enum ResolveFailure {
    /// The resolver has nothing.
    NotFound { host: String, reason: String },
    /// Every address is forbidden.
    Denied { host: String },
}

/// The addresses of `host` that may be connected to; at least one. An address literal is its own answer.
pub(super) async fn permitted_addresses(
    egress: &EgressPolicy,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, ResolveFailure> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // RFC 6761, section 6.3: these names are loopback, and no resolver needs to be asked.
    let bare = if bare.to_ascii_lowercase().ends_with(".localhost") {
        "127.0.0.1"
    } else {
        bare
    };
    let not_found = |reason: String| ResolveFailure::NotFound {
        host: host.to_owned(),
        reason,
    };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((bare, port))
        .await
        .map_err(|error| not_found(error.to_string()))?
        .collect();
    if found.is_empty() {
        return Err(not_found("it has no address".to_owned()));
    }
    let permitted: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| egress.permits_ip(address.ip()))
        .collect();
    if permitted.is_empty() {
        return Err(ResolveFailure::Denied {
            host: host.to_owned(),
        });
    }
    Ok(permitted)
}

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.egress.clone();
        Box::pin(async move {
            let permitted = permitted_addresses(&egress, name.as_str(), 0).await?;
            let addresses: Addrs = Box::new(permitted.into_iter());
            Ok(addresses)
        })
    }
}

impl fmt::Display for ResolveFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { host, reason } => write!(f, "{host}: {reason}"),
            Self::Denied { host } => write!(f, "{host}: forbidden by the egress policy"),
        }
    }
}

impl std::error::Error for ResolveFailure {}
