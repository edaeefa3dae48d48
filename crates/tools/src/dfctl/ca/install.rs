//! `dfctl ca install`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::process::Command;

use super::{CaArguments, refused};
use crate::failure::Failure;
use crate::program::{Report, Told};

/// Name of the file in the store.
const FILE: &str = "dragonfly-proxy-ca.crt";

/// How long the system may take to rebuild its store.
const REBUILD_MAX: Duration = Duration::from_secs(120);

/// Stores of the system: a folder for certificates of the operator, and the program that takes them up.
const STORES: [(&str, &str); 2] = [
    ("/usr/local/share/ca-certificates", "update-ca-certificates"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
];

/// Makes this host trust the CA of the proxy. Doing it twice changes nothing.
#[derive(Debug, Clone, Args)]
pub struct Install {
    #[command(flatten)]
    ca: CaArguments,

    /// Put the certificate into this folder and do nothing else, instead of the trust store of the system.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Take it away again.
    #[arg(long)]
    remove: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    file: PathBuf,
    /// Whether anything was changed.
    changed: bool,
    installed: bool,
}

impl Install {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let (folder, rebuild) = match &self.to {
            Some(folder) => (folder.clone(), None),
            None => {
                let (folder, program) = system_store().ok_or_else(|| Failure::Here {
                    reason: "no trust store of the system is known here (neither update-ca-certificates nor update-ca-trust): use --to, and add the certificate by hand".to_owned(),
                })?;
                (PathBuf::from(folder), Some(program))
            }
        };
        let file = folder.join(FILE);
        let changed = if self.remove {
            remove(&file)?
        } else {
            let (pem, _) = self.ca.read()?;
            put(&folder, &file, &pem)?
        };
        // Also if nothing was changed here: the last rebuild may have been interrupted.
        if let Some(program) = rebuild {
            run(program).await?;
        }
        Ok(Told::new(&Done {
            file,
            changed,
            installed: !self.remove,
        }))
    }
}

fn system_store() -> Option<(&'static str, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let exists = |program: &str| {
        let folders = std::env::split_paths(&path);
        // Not everybody's PATH has the programs of the administrator.
        folders
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
            .any(|folder| folder.join(program).is_file())
    };
    STORES.into_iter().find(|(_, program)| exists(program))
}

fn put(folder: &Path, file: &Path, pem: &[u8]) -> Result<bool, Failure> {
    if std::fs::read(file).is_ok_and(|present| present == pem) {
        return Ok(false);
    }
    std::fs::create_dir_all(folder).map_err(|error| Failure::output(folder, &error))?;
    let partial = file.with_extension("new");
    std::fs::write(&partial, pem)
        .and_then(|()| std::fs::rename(&partial, file))
        .map_err(|error| Failure::output(file, &error))?;
    Ok(true)
}

fn remove(file: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused(file, &format!("cannot be removed: {error}"))),
    }
}

async fn run(program: &str) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Here {
        reason: format!("{program}: {reason}"),
    };
    let running = Command::new(program)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(REBUILD_MAX, running)
        .await
        .map_err(|_| failed("does not come to an end".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(failed(format!(
        "{} {last}: root may be needed",
        output.status
    )))
}

impl Report for Done {
    fn text(&self) -> String {
        let file = self.file.display();
        match (self.installed, self.changed) {
            (true, true) => {
                format!("Trusted from now on: {file}. Programs that run already must be restarted.")
            }
            (true, false) => format!("Trusted already: {file}"),
            (false, true) => format!("No longer trusted: {file}"),
            (false, false) => format!("Was not trusted: {file}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_and_removing_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("made");
        let file = folder.join(FILE);
        assert_eq!(put(&folder, &file, b"one"), Ok(true));
        assert_eq!(put(&folder, &file, b"one"), Ok(false));
        assert_eq!(put(&folder, &file, b"another"), Ok(true));
        assert_eq!(std::fs::read(&file).unwrap(), b"another");
        assert_eq!((remove(&file), remove(&file)), (Ok(true), Ok(false)));
    }
}
