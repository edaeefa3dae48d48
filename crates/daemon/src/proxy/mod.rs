//! The HTTP proxy and registry mirror (port 4001): every HTTP client's way into the swarm.
//!
//! [`rules`] says which requests go into the swarm, [`p2p`] takes them there, [`body`] is what an answer is made of.

pub mod body;
pub mod p2p;
pub mod rules;
