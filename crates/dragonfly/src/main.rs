//! Dragonfly in one program: `dragonfly up | manager | scheduler | daemon | demo | version`.
//!
//! The services are the crates of the same names; here they are only chosen, started and ended. Start reading at
//! [`up`] for the three in one process, at [`demo`] for the swarm on one machine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod demo;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runtime::error::told;

/// Distribute files to many hosts by letting the hosts pass pieces on to each other.
#[derive(Debug, Parser)]
#[command(name = "dragonfly", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Options),
    Manager(manager::Args),
    Scheduler(scheduler::Args),
    Daemon(daemon::Args),
    Demo(demo::Options),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    runtime::tls::install_crypto_provider();
    let outcome = match Arguments::parse().command {
        Command::Up(options) => block_on(up::run(options)).and_then(|outcome| outcome),
        Command::Manager(arguments) => block_on(manager::execute(arguments))
            .and_then(|outcome| Ok(outcome?))
            .map(|()| ExitCode::SUCCESS),
        Command::Scheduler(arguments) => Ok(scheduler::main(&arguments)),
        Command::Daemon(arguments) => Ok(daemon::main(&arguments)),
        Command::Demo(options) => block_on(demo::run(options)).and_then(|outcome| outcome),
        Command::Version => {
            println!(
                "dragonfly {} ({}-{})",
                env!("CARGO_PKG_VERSION"),
                std::env::consts::ARCH,
                std::env::consts::OS
            );
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("dragonfly: {}", told(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// Runs `future` on this thread, its tasks on worker threads.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}
