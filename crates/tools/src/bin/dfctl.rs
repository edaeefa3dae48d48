//! Looks after the Dragonfly daemon of this host.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::dfctl::main(std::env::args_os())
}
