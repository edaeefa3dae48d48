//! The last good configuration on disk.
//!
//! Written to a temporary file, synced, and renamed, so that the record is whole or the old one after a crash. A record
//! that cannot be read, or that came from another source, counts as none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Listing;
use crate::schedulers::Member;

/// Version of the record; a reader of a later one reads this one too.
const VERSION: u32 = 1;

/// Longest record that is read, in bytes.
const LEN_MAX: u64 = 8 << 20;

/// Where the record lies, and which source it must be from.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: PathBuf,
    source: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    source: String,
    schedulers: Vec<RecordedMember>,
    block_list: String,
}

#[derive(Serialize, Deserialize)]
struct RecordedMember {
    name: String,
    addr: SocketAddr,
    id: u64,
}

impl Place {
    pub(super) fn new(data_dir: &Path, source: String) -> Self {
        Self {
            file: data_dir.join("dynconfig.json"),
            source,
        }
    }

    /// The record, if there is a good one.
    pub(super) fn read(&self) -> Option<Listing> {
        let len = fs::metadata(&self.file).ok()?.len();
        if len > LEN_MAX {
            return None;
        }
        let text = fs::read(&self.file).ok()?;
        let record: Record = serde_json::from_slice(&text)
            .inspect_err(|error| warn!(file = %self.file.display(), %error, "stored dynamic configuration not read"))
            .ok()?;
        if record.version != VERSION || record.source != self.source {
            return None;
        }
        let members = record.schedulers.into_iter().map(|member| Member {
            name: member.name,
            addr: member.addr,
            id: member.id,
            serving: true,
        });
        Some(Listing {
            members: members.collect(),
            block_list: record.block_list.into_bytes(),
        })
    }

    /// Replaces the record; a failure is only reported, since the daemon works without it.
    pub(super) fn write(&self, listing: &Listing) {
        if self.read().is_some_and(|stored| same(&stored, listing)) {
            return;
        }
        if let Err(error) = self.try_write(listing) {
            warn!(file = %self.file.display(), %error, "dynamic configuration not stored: a restart needs its source");
        }
    }

    fn try_write(&self, listing: &Listing) -> io::Result<()> {
        let schedulers = listing.members.iter().map(|member| RecordedMember {
            name: member.name.clone(),
            addr: member.addr,
            id: member.id,
        });
        let record = Record {
            version: VERSION,
            source: self.source.clone(),
            schedulers: schedulers.collect(),
            block_list: String::from_utf8_lossy(&listing.block_list).into_owned(),
        };
        let temporary = self.file.with_extension("json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.file)
    }
}

/// Whether the two say the same; who answered at the moment is not stored.
fn same(stored: &Listing, listing: &Listing) -> bool {
    stored.block_list == listing.block_list
        && stored.members.len() == listing.members.len()
        && stored
            .members
            .iter()
            .zip(&listing.members)
            .all(|(stored, listed)| {
                (&stored.name, stored.addr, stored.id) == (&listed.name, listed.addr, listed.id)
            })
}
