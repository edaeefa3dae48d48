//! The local file as a source: `scheduler.addr` or `scheduler.addrs`, and block lists.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::HostRole;
use runtime::config::{Document, Section};
use serde_json::{Value, json};
use tracing::warn;

use super::{DynconfigError, Listing};
use crate::schedulers::Member;

/// What stands in a file that says nothing: the name of the service in a cluster of Dragonfly v2.
const DEFAULT_ADDR: &str = "dragonfly-scheduler:8002";

/// How long a name may take to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The file as meant.
#[derive(Debug)]
struct LocalFile {
    addr: String,
    addrs: Vec<SocketAddr>,
    block_list: Value,
}

/// A dynconfig file.
#[derive(Debug)]
pub struct LocalSource {
    file: PathBuf,
    role: HostRole,
}

impl LocalSource {
    /// The file at `file`; a missing one is as an empty one. `role` chooses between its two block lists.
    pub fn new(file: PathBuf, role: HostRole) -> Self {
        Self { file, role }
    }

    pub(super) fn name(&self) -> String {
        self.file.display().to_string()
    }

    /// Reads the file and resolves the schedulers in it.
    pub(super) async fn list(&self) -> Result<Listing, DynconfigError> {
        let local = read(&self.file, self.role)?;
        let addrs = if local.addrs.is_empty() {
            resolve(&local.addr).await?
        } else {
            local.addrs
        };
        // Sorted and without repetition, as the ring is built from the addresses.
        let addrs: BTreeSet<SocketAddr> = addrs.into_iter().collect();
        let member = |addr: SocketAddr| Member {
            name: addr.to_string(),
            addr,
            id: 0,
            serving: true,
        };
        Ok(Listing {
            members: addrs.into_iter().map(member).collect(),
            block_list: local.block_list.to_string().into_bytes(),
        })
    }
}

fn read(file: &Path, role: HostRole) -> Result<LocalFile, DynconfigError> {
    let document = Document::load_if_present(file)?;
    let root = document.root();
    let scheduler = root.section("scheduler");
    // Both are read, so that a mistake in either is found.
    let normal = block_list(&root.section("clientConfig"));
    let seed = block_list(&root.section("seedClientConfig"));
    let local = LocalFile {
        addr: scheduler.checked(
            "addr",
            DEFAULT_ADDR.to_owned(),
            "host:port, such as 10.0.0.1:8002",
            |addr: &String| {
                addr.rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            },
        ),
        addrs: scheduler.list("addrs").unwrap_or_default(),
        block_list: match role {
            HostRole::Normal => normal,
            HostRole::Seed => seed,
        },
    };
    let loaded = document.finish(local)?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    Ok(loaded.value)
}

/// The same object as the manager sends, so that there is one reader of it.
fn block_list(section: &Section<'_>) -> Value {
    let list = section
        .optional_section("blockList")
        .unwrap_or_else(|| section.section("block_list"));
    let download = list.section("task").section("download");
    list.accept_unused(&[
        "persistentTask",
        "persistent_task",
        "persistentCacheTask",
        "persistent_cache_task",
    ]);
    json!({"block_list": {"task": {"download": {
        "applications": download.list::<String>("applications"),
        "urls": download.list::<String>("urls").unwrap_or_default(),
        "tags": download.list::<String>("tags"),
        "priorities": download.list::<i32>("priorities"),
    }}}})
}

/// All addresses of a name; only the IPv4 ones when it has both kinds.
async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, DynconfigError> {
    let failed = |reason: String| DynconfigError::Resolve {
        addr: addr.to_owned(),
        reason,
    };
    let looked_up = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(addr)).await;
    let found: Vec<SocketAddr> = match looked_up {
        Err(_) => {
            return Err(failed(format!(
                "no answer within {} s",
                RESOLVE_MAX.as_secs()
            )));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Ok(Ok(found)) => found.collect(),
    };
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    let found = if v4.is_empty() { v6 } else { v4 };
    if found.is_empty() {
        Err(failed("the name has no address".to_owned()))
    } else {
        Ok(found)
    }
}
