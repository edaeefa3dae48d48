//! The way of a request through the swarm: from the request to a task, and from the task to a streamed answer.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method, Response};
use url::Url;

use super::body::ProxyBody;
use super::rules::Rule;

/// A GET or HEAD that a rule, or `X-Dragonfly-Use-P2P`, sends into the swarm.
#[derive(Debug)]
pub struct P2pRequest {
    /// GET or HEAD.
    pub method: Method,
    /// The URL at the origin, after the rewriting of mirror and rule, with its full query.
    pub url: Url,
    /// The client's headers without those that are meant for one hop and without the credentials of the proxy.
    pub headers: HeaderMap,
    /// The rule that matched.
    pub rule: Arc<Rule>,
    /// The client.
    pub remote: IpAddr,
}

/// What became of it.
#[derive(Debug)]
pub enum Outcome {
    /// The answer for the client, also if it is an error.
    Answer(Response<ProxyBody>),
    /// The swarm is not the right way for this one: forward it to the origin.
    Direct(DirectReason),
}

/// Why the swarm is not the right way for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectReason {
    /// What it asks for is no content that can be shared.
    NotShareable,
}

/// Requests as tasks; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct P2p {}

impl P2p {
    /// Answers from the swarm, or says that the origin should be asked directly.
    pub async fn serve(&self, request: P2pRequest) -> Outcome {
        let _ = request;
        Outcome::Direct(DirectReason::NotShareable)
    }
}
