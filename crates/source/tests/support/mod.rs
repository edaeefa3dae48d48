//! Real origins for the tests: nginx, and a hand-written one that misbehaves as told.
#![allow(dead_code, reason = "every test file uses another part")]

pub(crate) mod hostile;
pub(crate) mod nginx;
pub(crate) mod server;

use std::time::Duration;

use source::http::{HttpOptions, ProxyUse};
use source::{RetryPolicy, Sources, SourcesOptions};

/// Options with limits short enough for tests, and without a proxy of the environment.
pub(crate) fn options() -> HttpOptions {
    let mut options = HttpOptions::default();
    options.proxy = ProxyUse::Direct;
    options.retry = RetryPolicy {
        first_pause: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    options
}

/// The standard backends with these options.
pub(crate) fn sources(http: HttpOptions) -> Sources {
    Sources::standard(SourcesOptions::default().with_http(http)).unwrap()
}

/// Bytes in which every position can be told from its neighbours.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| u8::try_from((index * 31 + index / 253) % 251).unwrap())
        .collect()
}
