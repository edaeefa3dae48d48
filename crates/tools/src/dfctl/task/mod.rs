//! `dfctl task`: files that this host has or fetches.

mod remove;
mod show;

use clap::Subcommand;

use super::list::{Kind, List};
use crate::failure::Failure;
use crate::program::Told;

/// What to do with tasks.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List the tasks of this host.
    Ls(List),
    /// Tell who served which bytes of a task, and why the origin was read.
    Show(show::Show),
    /// Remove a task from this host, and tell its scheduler so.
    Rm(remove::Remove),
}

impl Command {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        match self {
            Self::Ls(list) => list.run(Kind::Standard).await,
            Self::Show(show) => show.run().await,
            Self::Rm(remove) => remove.run().await,
        }
    }
}
