//! What is to be changed, decided completely before anything is.

use std::path::{Path, PathBuf};

use super::detect::Runtime;
use super::root::HostRoot;
use super::written::keep_line_ends;

/// Longest file that is edited. The configuration that containerd prints has 15 KiB.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// The files of one runtime as they shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) runtime: Runtime,
    pub(super) edits: Vec<Edit>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// One file, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) path: PathBuf,
    /// `None` if there is no such file.
    pub(super) before: Option<String>,
    pub(super) after: String,
    /// Whether the runtime reads the file only when it starts.
    pub(super) needs_restart: bool,
}

impl Edit {
    /// `path` shall say `after`; its lines go on to end as they do.
    pub(super) fn new(
        path: PathBuf,
        before: Option<String>,
        after: String,
        needs_restart: bool,
    ) -> Self {
        let after = keep_line_ends(before.as_deref().unwrap_or(""), after);
        Self {
            path,
            before,
            after,
            needs_restart,
        }
    }

    pub(super) fn changes(&self) -> bool {
        self.before.as_ref() != Some(&self.after)
    }
}

impl Plan {
    /// Whether the runtime has to be restarted for what this changes.
    pub(super) fn needs_restart(&self) -> bool {
        self.edits
            .iter()
            .any(|edit| edit.needs_restart && edit.changes())
    }
}

/// Why a file is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}: nothing was changed", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// The file says something that an edit could break.
    #[error("{}: {reason}: nothing was changed: {advice}", path.display())]
    Unclear {
        path: PathBuf,
        reason: String,
        advice: String,
    },
}

/// Why a text is left alone; [`Unclear::at`] adds its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unclear {
    pub(super) reason: String,
    pub(super) advice: String,
}

impl Unclear {
    pub(super) fn new(reason: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            advice: advice.into(),
        }
    }

    /// A text that is not TOML or not JSON.
    pub(super) fn syntax(language: &str, error: &impl std::fmt::Display) -> Self {
        let told = error.to_string();
        let told: Vec<&str> = told.lines().map(str::trim).collect();
        Self::new(
            format!("not valid {language}: {}", told.join(" ")),
            "repair it, then try again",
        )
    }

    pub(super) fn at(self, path: &Path) -> Refusal {
        Refusal::Unclear {
            path: path.to_owned(),
            reason: self.reason,
            advice: self.advice,
        }
    }
}

/// The text of a file of the host; `None` if there is none.
pub(super) fn read(root: &HostRoot, path: &Path) -> Result<Option<String>, Refusal> {
    let unreadable = |reason: String| Refusal::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let found = root
        .find(path)
        .map_err(|error| unreadable(error.to_string()))?;
    match std::fs::metadata(&found) {
        Ok(file) if file.len() > FILE_LEN_MAX => {
            return Err(unreadable(format!(
                "{} bytes, the limit is {FILE_LEN_MAX}: is this the right file?",
                file.len()
            )));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    }
    std::fs::read_to_string(found)
        .map(Some)
        .map_err(|error| unreadable(error.to_string()))
}
