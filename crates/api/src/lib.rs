//! gRPC services of this project that two of its programs meet on, beside those of Dragonfly v2: generated code and nothing
//! else.
//!
//! [`preheat`] is served by the scheduler and called by `dfctl` and whoever else wants to see a preheat through.

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
