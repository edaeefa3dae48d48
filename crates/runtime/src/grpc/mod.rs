//! gRPC servers and clients with the limits that every one of them needs.
//!
//! Nothing here waits without bound: connecting, pinging and unary calls have limits, an idle connection is noticed. Message
//! limits belong to the generated service types of each service (`max_decoding_message_size`); [`MESSAGE_LEN_MAX`] is the
//! one to pass.

mod client;
mod count;
mod limit;
mod server;

pub use client::{ClientOptions, DialError, channel, channel_unix, endpoint, is_serving};
pub use count::{CallCounter, CountError, Counted};
pub use limit::{RateLimit, RateLimited};
pub use server::{
    ServerOptions, health, reflection, server, spawn_incoming, spawn_tcp, spawn_unix,
};

/// The largest message that is accepted, bytes. Dragonfly v2 allows 2 GiB; the largest real one (a task of many pieces with
/// all its records) stays under 16 MiB, and a stranger must not make a service allocate more.
pub const MESSAGE_LEN_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests;
