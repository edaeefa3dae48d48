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

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.egress.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let looked_up = tokio::net::lookup_host((host.as_str(), 0))
                .await
                .map(Vec::from_iter);
            let found: Vec<SocketAddr> = match looked_up {
                Ok(found) => found,
                Err(error) => {
                    return Err(ResolveFailure::NotFound {
                        host,
                        reason: error.to_string(),
                    }
                    .into());
                }
            };
            if found.is_empty() {
                return Err(ResolveFailure::NotFound {
                    host,
                    reason: "it has no address".to_owned(),
                }
                .into());
            }
            let permitted: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| egress.permits_ip(address.ip()))
                .collect();
            if permitted.is_empty() {
                return Err(ResolveFailure::Denied { host }.into());
            }
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
