//! Generates the clients and servers of `proto/`. What Dragonfly v2 has is taken from `dragonfly-api`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .extern_path(".scheduler.v2", "::dragonfly_api::scheduler::v2")
        .compile_protos(&["proto/preheat.proto", "proto/local.proto"], &["proto"])
}
