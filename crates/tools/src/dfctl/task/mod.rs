//! `dfctl task`: files that this host has or fetches, and those that a scheduler has other hosts fetch.

mod preheat;
mod remove;
mod show;
mod stat;
mod subject;

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
    /// Have hosts fetch a file or an image before anybody there asks for it.
    Preheat(Box<preheat::Preheat>),
    /// Tell which hosts hold a file or the layers of an image.
    Stat(Box<stat::Stat>),
}

impl Command {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        match self {
            Self::Ls(list) => list.run(Kind::Standard).await,
            Self::Show(show) => show.run().await,
            Self::Rm(remove) => remove.run().await,
            Self::Preheat(preheat) => preheat.run().await,
            Self::Stat(stat) => stat.run().await,
        }
    }
}
