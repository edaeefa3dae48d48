//! gRPC services of this project that two of its programs meet on, beside those of Dragonfly v2: generated code and nothing
//! else.
//!
//! - [`preheat`] is served by the scheduler and called by `dfctl` and whoever else wants to see a preheat through.
//! - [`local`] is served by the daemon on its unix socket and called by `dfctl` on the same host.

/// Metadata of a `DownloadTask` call: how many bytes a listing says that the content has, in decimal. A hint that saves the daemon a question to
/// the origin; daemons of Dragonfly v2 pass it over.
pub const EXPECTED_LENGTH: &str = "dragonfly-expected-length";

/// A preheat that is watched (`proto/preheat.proto`).
pub mod preheat {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::pedantic,
        reason = "generated code"
    )]
    tonic::include_proto!("dragonfly.preheat.v1");
}

/// What a daemon tells the tools of its own host (`proto/local.proto`).
pub mod local {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::pedantic,
        reason = "generated code"
    )]
    tonic::include_proto!("dragonfly.local.v1");
}
