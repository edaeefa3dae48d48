//! Whether the runtimes of this host pull through the daemon: for `dfctl doctor`. Nothing is changed.

use std::path::Path;

use super::arguments::{CONFIG_FILE, STATE_DIR};
use super::config::{Config, RuntimeConfig, proxy_url};
use super::detect::{self, Kind};
use super::journal::Journal;
use super::plan::Edit;
use super::root::HostRoot;
use super::{containerd, report};

/// How a containerd of this host stands to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It pulls through the daemon.
    SetUp,
    /// dfinit has not run here, or its configuration has changed since.
    NotSetUp,
    /// It does not know of what dfinit has written.
    RestartDue,
    /// Its files do not let dfinit work; the text says why and what to do.
    Unclear(String),
}

/// Each containerd of this host, in a few words, and how it stands. Other runtimes are not looked at: only containerd asks the
/// daemon for every registry, so that only of it can be said whether it should.
pub async fn standings() -> Vec<(String, Standing)> {
    let mut told = Vec::new();
    let root = HostRoot::new("/");
    for runtime in detect::detect(&root).await {
        if runtime.kind == Kind::Containerd {
            told.push((report::described(&runtime), standing(&root, &runtime)));
        }
    }
    told
}

fn standing(root: &HostRoot, runtime: &detect::Runtime) -> Standing {
    let config = match Config::load(Path::new(CONFIG_FILE), false) {
        Ok(loaded) => loaded.value,
        Err(error) => return Standing::Unclear(error.to_string()),
    };
    let settings = match config.runtime {
        Some(RuntimeConfig::Containerd(settings)) => settings,
        _ => match RuntimeConfig::usual(Kind::Containerd) {
            RuntimeConfig::Containerd(settings) => settings,
            _ => return Standing::NotSetUp,
        },
    };
    let proxy = proxy_url(&config.proxy);
    let plan = match containerd::plan(root, runtime, &settings, &proxy) {
        Ok(plan) => plan,
        Err(refusal) => return Standing::Unclear(refusal.to_string()),
    };
    if plan.edits.iter().any(Edit::changes) {
        return Standing::NotSetUp;
    }
    let journal = Journal::open(root, Path::new(STATE_DIR)).ok();
    let due = journal.and_then(|journal| journal.due_since(runtime.kind.name()));
    match (due, runtime.started()) {
        (Some(due), Some(started)) if started <= due => Standing::RestartDue,
        _ => Standing::SetUp,
    }
}
