//! Generates the client and server of `proto/swarm.proto`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(&["proto/swarm.proto"], &["proto"])
}
