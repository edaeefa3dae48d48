//! Generates the messages of the daemon's link, without the service around them.

fn main() -> std::io::Result<()> {
    let folder = "../crates/daemon/proto";
    prost_build::compile_protos(&[format!("{folder}/swarm.proto")], &[folder])
}
