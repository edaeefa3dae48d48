//! The service over real gRPC, driven by hand as Dragonfly v2 clients and daemons of ours do it.

mod calls;
mod configuration;
mod conversation;
mod fake;
mod mesh;
mod seeds;
