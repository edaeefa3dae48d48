//! Generates the client and server of the link, which only daemons speak with each other. What a daemon says to other programs of
//! this project is in `api`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(&["proto/swarm.proto"], &["proto"])
}
