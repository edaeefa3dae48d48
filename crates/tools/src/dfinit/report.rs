//! What dfinit tells at its end.

use std::path::PathBuf;

use serde::Serialize;

use super::detect::{Kind, Runtime};
use super::plan::Plan;
use super::probe::Proof;
use crate::program::Report;

/// The outcome of a run: its fields are the JSON of `--output json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) dry_run: bool,
    runtimes: Vec<Seen>,
    /// Files that were written, or that would be.
    changed: Vec<Changed>,
    /// Files that say already what they should.
    unchanged: Vec<PathBuf>,
    /// Files that `undo` restored or removed.
    pub(super) restored: Vec<PathBuf>,
    pub(super) restarts: Vec<Restart>,
    /// The file that tells that a restart is due.
    pub(super) sentinel: Option<PathBuf>,
    pub(super) probes: Vec<Proof>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Seen {
    kind: Kind,
    shipped_by: Option<&'static str>,
    version: Option<String>,
    config: PathBuf,
}

#[derive(Debug, Serialize)]
struct Changed {
    path: PathBuf,
    created: bool,
    diff: String,
}

/// A restart that is due or was done.
#[derive(Debug, Serialize)]
pub(super) struct Restart {
    runtime: Kind,
    done: bool,
    /// What was run; nothing for a runtime that does not run.
    command: Option<String>,
}

impl Restart {
    pub(super) fn due(runtime: Kind) -> Self {
        Self {
            runtime,
            done: false,
            command: None,
        }
    }

    pub(super) fn done(runtime: Kind, command: Option<String>) -> Self {
        Self {
            runtime,
            done: true,
            command,
        }
    }
}

impl Outcome {
    pub(super) fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            ..Self::default()
        }
    }

    /// Takes over what the plans say.
    pub(super) fn hear(&mut self, plans: &[Plan]) {
        for plan in plans {
            self.runtimes.push(Seen {
                kind: plan.runtime.kind,
                shipped_by: plan.runtime.shipped_by,
                version: plan.runtime.version.map(|version| version.to_string()),
                config: plan.runtime.config.clone(),
            });
            self.notes.extend(plan.notes.iter().cloned());
            for edit in &plan.edits {
                if !edit.changes() {
                    self.unchanged.push(edit.path.clone());
                    continue;
                }
                self.changed.push(Changed {
                    path: edit.path.clone(),
                    created: edit.before.is_none(),
                    diff: diff(
                        edit.before.as_deref(),
                        &edit.after,
                        &edit.path.display().to_string(),
                    ),
                });
            }
            if self.dry_run && plan.needs_restart() {
                self.restarts.push(Restart::due(plan.runtime.kind));
            }
        }
    }
}

/// A runtime in a few words: `containerd 1.6.20 (/etc/containerd/config.toml)`.
pub(super) fn described(runtime: &Runtime) -> String {
    let mut words = runtime.kind.name().to_owned();
    if let Some(version) = runtime.version {
        words += &format!(" {version}");
    }
    if let Some(who) = runtime.shipped_by {
        words += &format!(" of {who}");
    }
    format!("{words} ({})", runtime.config.display())
}

fn diff(before: Option<&str>, after: &str, path: &str) -> String {
    let old = before.map_or("/dev/null", |_| path);
    similar::TextDiff::from_lines(before.unwrap_or(""), after)
        .unified_diff()
        .header(old, path)
        .to_string()
}

impl Report for Outcome {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        for changed in &self.changed {
            match (self.dry_run, changed.created) {
                (true, _) => lines.push(changed.diff.trim_end().to_owned()),
                (false, true) => lines.push(format!("created {}", changed.path.display())),
                (false, false) => lines.push(format!("changed {}", changed.path.display())),
            }
        }
        lines.extend(
            self.unchanged
                .iter()
                .map(|path| format!("as it should be: {}", path.display())),
        );
        lines.extend(
            self.restored
                .iter()
                .map(|path| format!("restored {}", path.display())),
        );
        for restart in &self.restarts {
            let name = restart.runtime.name();
            lines.push(match (restart.done, &restart.command) {
                (false, _) if self.dry_run => format!("{name} would have to be restarted"),
                (false, _) => format!("{name} has to be restarted"),
                (true, Some(command)) => format!("restarted {name} ({command})"),
                (true, None) => format!("{name} does not run: it reads the files when it starts"),
            });
        }
        for proof in &self.probes {
            lines.push(format!(
                "{} pulled {}: {} requests reached the daemon",
                proof.runtime.name(),
                proof.image,
                proof.requests
            ));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if lines.is_empty() {
            lines.push("nothing to do".to_owned());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_name_the_file() {
        assert_eq!(
            diff(Some("a\nb\n"), "a\nc\n", "/x"),
            "--- /x\n+++ /x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
        );
        assert!(diff(None, "a\n", "/x").starts_with("--- /dev/null\n+++ /x\n"));
    }

    #[test]
    fn nothing_to_do_is_said() {
        assert_eq!(Outcome::new(false).text(), "nothing to do");
    }
}
