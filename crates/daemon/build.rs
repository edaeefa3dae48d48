//! Generates clients and servers of this project's own protocols.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .compile_protos(&["proto/swarm.proto", "proto/local.proto"], &["proto"])
}
