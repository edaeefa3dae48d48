//! `dfctl completions` and `dfctl man`: what a shell and `man` know of the tools, made from their command lines.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

use crate::failure::Failure;
use crate::program::{Report, Told};

/// A tool of which there are completions and pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Tool {
    /// Downloads.
    Dfget,
    /// Looks after a daemon.
    Dfctl,
    /// Makes container runtimes pull through the daemon.
    Dfinit,
}

impl Tool {
    fn command(self) -> clap::Command {
        match self {
            Self::Dfget => crate::dfget::command(),
            Self::Dfctl => super::command(),
            Self::Dfinit => crate::dfinit::command(),
        }
    }
}

/// Prints the completions of a shell for a tool.
#[derive(Debug, Clone, Args)]
pub struct Completions {
    /// The shell.
    shell: Shell,
    /// The tool; all of them if none is named.
    #[arg(long, value_enum)]
    tool: Vec<Tool>,
}

/// Writes the man pages of the tools into a folder.
#[derive(Debug, Clone, Args)]
pub struct Man {
    /// The folder, which is made if there is none: man1 of a folder of pages such as /usr/local/share/man.
    folder: PathBuf,
    /// The tool; all of them if none is named.
    #[arg(long, value_enum)]
    tool: Vec<Tool>,
}

#[derive(Debug, Serialize)]
struct Script {
    shell: String,
    script: String,
}

#[derive(Debug, Serialize)]
struct Pages {
    files: Vec<PathBuf>,
}

/// The named tools, or all.
fn chosen(tools: &[Tool]) -> &[Tool] {
    match tools {
        [] => Tool::value_variants(),
        named => named,
    }
}

impl Completions {
    pub(super) fn run(self) -> Told {
        let mut script = Vec::new();
        for tool in chosen(&self.tool) {
            let mut command = tool.command();
            let name = command.get_name().to_owned();
            clap_complete::generate(self.shell, &mut command, name, &mut script);
        }
        Told::new(&Script {
            shell: self.shell.to_string(),
            script: String::from_utf8_lossy(&script).trim_end().to_owned(),
        })
    }
}

impl Man {
    pub(super) fn run(self) -> Result<Told, Failure> {
        let failed = |error: io::Error| Failure::output(&self.folder, &error);
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut files = Vec::new();
        for tool in chosen(&self.tool) {
            let mut command = tool.command().disable_help_subcommand(true);
            command.build();
            write_pages(&command, &self.folder, &mut files).map_err(failed)?;
        }
        Ok(Told::new(&Pages { files }))
    }
}

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: &clap::Command, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    std::fs::write(&path, page)?;
    files.push(path);
    for below in command.get_subcommands() {
        write_pages(below, folder, files)?;
    }
    Ok(())
}

impl Report for Script {
    fn text(&self) -> String {
        self.script.clone()
    }
}

impl Report for Pages {
    fn text(&self) -> String {
        let files = self.files.iter().map(|file| file.display().to_string());
        files.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_completions_of_every_tool() {
        for shell in Shell::value_variants() {
            let completions = Completions {
                shell: *shell,
                tool: Vec::new(),
            };
            let told = completions.run();
            for word in ["dfget", "dfctl", "dfinit", "recursive", "doctor"] {
                assert!(told.text().contains(word), "{shell} {word}");
            }
        }
    }

    #[test]
    fn every_command_gets_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let man = Man {
            folder: folder.path().join("man1"),
            tool: Vec::new(),
        };
        man.run().unwrap();
        for (name, told) in [
            ("dfget.1", "max\\-concurrent\\-requests"),
            ("dfctl.1", "doctor"),
            ("dfctl-task-show.1", "origin"),
        ] {
            let page = std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
            assert!(page.contains(told), "{name}: {page}");
        }
    }
}
