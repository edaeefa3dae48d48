//! Settings of the HTTP backend.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::upstream::Upstream;
use crate::{EgressPolicy, RetryPolicy};

/// Settings of the HTTP backend.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpOptions {
    /// `User-Agent` where the request has none.
    pub user_agent: String,
    /// Headers added to every request that does not have them (`backend.requestHeader`). They go to the first origin only, like the caller's own credentials, if their name tells of a secret.
    pub request_header: HashMap<String, String>,
    /// Trust roots besides those of the system, each one certificate in DER.
    pub trust_roots: Vec<Vec<u8>>,
    /// Hosts whose certificates are not verified; `*` means all of them. Empty by default: use it only where a CA cannot be given.
    pub unverified_hosts: Vec<String>,
    /// What single origins need; the first that means a host holds for it.
    pub upstreams: Vec<Upstream>,
    /// Which addresses may be contacted. By default all but [`EgressPolicy::standard`] refuses.
    pub egress: EgressPolicy,
    /// Whether an HTTP proxy stands in between, where the upstream does not say so.
    pub proxy: ProxyUse,
    /// Where a proxy of this process listens: it is never used as the proxy that the environment names.
    pub own_addresses: Vec<SocketAddr>,
    /// Tries for passing failures.
    pub retry: RetryPolicy,
    /// Longest wait for a connection: name, TCP and TLS together.
    pub connect_limit: Duration,
    /// Longest wait for the headers of an answer, the connection included.
    pub header_limit: Duration,
    /// Longest pause within a body.
    pub idle_limit: Duration,
    /// Most redirects in a row.
    pub redirects_max: usize,
    /// What to do with compressed answers.
    pub encoded: EncodedContent,
    /// Idle connections kept per host.
    pub idle_connections_max: usize,
}

/// Whether requests go through an HTTP proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyUse {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say; never for loopback addresses.
    Environment,
    /// Never.
    Direct,
}

/// What to do with an answer that has a content encoding although none was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedContent {
    /// Refuse it: its length and its bytes may differ from answer to answer.
    Refuse,
    /// Take it as it is, encoded. For stores whose objects carry an encoding as a mere label.
    AsStored,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("dragonfly/", env!("CARGO_PKG_VERSION")).to_owned(),
            request_header: HashMap::new(),
            trust_roots: Vec::new(),
            unverified_hosts: Vec::new(),
            upstreams: Vec::new(),
            egress: EgressPolicy::standard(),
            proxy: ProxyUse::Environment,
            own_addresses: Vec::new(),
            retry: RetryPolicy::default(),
            connect_limit: Duration::from_secs(5),
            header_limit: Duration::from_secs(20),
            idle_limit: Duration::from_secs(15),
            redirects_max: 10,
            encoded: EncodedContent::Refuse,
            idle_connections_max: 8,
        }
    }
}
