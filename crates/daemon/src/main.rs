//! `dfdaemon`: the daemon as a process of its own.

use std::process::ExitCode;

use clap::Parser;

/// Downloads files for this host and passes their pieces on to others.
#[derive(Debug, Parser)]
#[command(name = "dfdaemon", version, disable_version_flag = true)]
struct CommandLine {
    #[command(flatten)]
    args: daemon::Args,
    /// Print the version.
    #[arg(short = 'V', long = "version", action = clap::ArgAction::Version)]
    version: Option<bool>,
}

fn main() -> ExitCode {
    runtime::tls::install_crypto_provider();
    daemon::main(&CommandLine::parse().args)
}
