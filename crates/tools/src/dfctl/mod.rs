//! `dfctl`: what is on this host, and whether all is well.
//!
//! One module per command. A command is a struct of arguments with `async fn run(self) -> Result<Told, Failure>`; adding one
//! is a variant here and an arm in `Command::run`. Environment variables are named after the path of a command
//! (`DFCTL_TASK_LS_LOG_LEVEL`), as in Dragonfly v2.

mod ca;
mod doctor;
mod list;
mod papers;
mod task;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::Failure;
use crate::program::{self, Format, Streams, Told};

use list::{Kind, ListOnly};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    it could not be done, or something is not well
  2    wrong options
  3    no daemon answers on the socket
  5    an output cannot be written
  7    not done in time
  130  interrupted by Ctrl-C (143: by SIGTERM, 129: by the end of its terminal)";

/// Looks after the Dragonfly daemon of this host.
#[derive(Debug, Clone, Parser)]
#[command(name = "dfctl", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Arguments {
    /// How the outcome is told; json also tells failures so.
    #[arg(
        short,
        long,
        global = true,
        env = "DFCTL_OUTPUT",
        value_enum,
        default_value = "text"
    )]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Files that this host has or fetches.
    #[command(subcommand)]
    Task(task::Command),
    /// Persistent tasks of this host.
    #[command(subcommand, name = "persistent-task")]
    PersistentTask(ListOnly),
    /// Persistent cache tasks of this host.
    #[command(subcommand, name = "persistent-cache-task")]
    PersistentCacheTask(ListOnly),
    /// Check this host and the way to its neighbours, and say what to mend.
    Doctor(doctor::Doctor),
    /// Print the completions of a shell for the tools.
    Completions(papers::Completions),
    /// Write the man pages of the tools into a folder.
    Man(papers::Man),
    /// The CA of the proxy: trust it, and see whether it is trusted.
    #[command(subcommand)]
    Ca(ca::Command),
}

impl Command {
    async fn run(self) -> Result<Told, Failure> {
        match self {
            Self::Task(command) => command.run().await,
            Self::PersistentTask(command) => command.run(Kind::Persistent).await,
            Self::PersistentCacheTask(command) => command.run(Kind::PersistentCache).await,
            Self::Doctor(doctor) => doctor.run().await,
            Self::Completions(completions) => Ok(completions.run()),
            Self::Man(man) => man.run(),
            Self::Ca(command) => command.run().await,
        }
    }
}

/// The whole command line, with the names of its environment variables.
pub fn command() -> clap::Command {
    named(Arguments::command(), "DFCTL")
}

/// Names the environment variables of the commands below `command`.
fn named(command: clap::Command, prefix: &str) -> clap::Command {
    let command = program::with_environment(command, "DFCTL", prefix);
    command.mut_subcommands(|below| {
        let name = below.get_name().to_ascii_uppercase().replace('-', "_");
        named(below, &format!("{prefix}_{name}"))
    })
}

/// Parses `arguments` (the first is the program's name), does it, and tells the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let parsed = command()
        .try_get_matches_from(&words)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => program::run(
            "dfctl",
            arguments.output,
            Streams::Result,
            arguments.command.run(),
        ),
        Err(error) => {
            let is_json = program::has_json_output(&words)
                || program::has(&words, &["-o", "json"])
                || program::has(&words, &["-ojson"])
                || std::env::var_os("DFCTL_OUTPUT").is_some_and(|value| value == "json");
            program::usage(&error, Format::json_if(is_json), Streams::Result)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_consistent() {
        command().debug_assert();
    }

    #[tokio::test]
    async fn the_help_tells_the_code_for_what_cannot_be_written() {
        let parsed = Arguments::try_parse_from(["dfctl", "man", "/proc/x"]).unwrap();
        let Err(failure) = parsed.command.run().await else {
            panic!("/proc takes folders");
        };
        let line = format!("  {}    an output cannot be written", failure.exit_code());
        assert!(EXIT_CODES.contains(&line), "{failure}");
    }

    #[test]
    fn environment_variables_have_the_names_of_v2() {
        let command = command();
        let list = command
            .find_subcommand("task")
            .unwrap()
            .find_subcommand("ls")
            .unwrap();
        let name = |id: &str| {
            let argument = list
                .get_arguments()
                .find(|argument| argument.get_id() == id);
            argument
                .unwrap()
                .get_env()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(name("log_level"), "DFCTL_TASK_LS_LOG_LEVEL");
        assert_eq!(name("console"), "DFCTL_TASK_LS_CONSOLE");
        assert_eq!(name("endpoint"), "DFCTL_ENDPOINT");
    }
}
