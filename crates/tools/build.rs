//! Generates the client of the protocol that a daemon speaks with the tools of its own host.

fn main() -> std::io::Result<()> {
    const PROTO: &str = "../daemon/proto";
    println!("cargo:rerun-if-changed={PROTO}/local.proto");
    tonic_prost_build::configure()
        .build_server(false)
        .compile_protos(&[format!("{PROTO}/local.proto")], &[PROTO.to_owned()])
}
