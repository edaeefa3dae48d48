//! Makes the container runtime of this host pull images through the Dragonfly daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::dfinit::main(std::env::args_os())
}
