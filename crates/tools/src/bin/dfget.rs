//! Downloads a file through the Dragonfly daemon of this host.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::dfget::main(std::env::args_os())
}
