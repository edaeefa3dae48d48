//! The last good answer of the manager, on disk.
//!
//! It is written to a temporary file, synced and renamed, so that after a crash it is whole or the one before. A copy that
//! cannot be read, or that another manager or cluster gave, counts as none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Written;

/// Version of the record.
const VERSION: u32 = 1;

/// Longest record that is read, bytes.
const LEN_MAX: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    source: String,
    dynconfig: Written,
}

pub(super) fn read(folder: &Path, source: String) -> Option<Written> {
    let file = place(folder);
    if fs::metadata(&file).ok()?.len() > LEN_MAX {
        return None;
    }
    let record: Record = serde_json::from_slice(&fs::read(&file).ok()?)
        .inspect_err(
            |error| warn!(file = %file.display(), %error, "stored dynamic configuration not read"),
        )
        .ok()?;
    (record.version == VERSION && record.source == source).then_some(record.dynconfig)
}

/// Replaces the copy. The scheduler works without it, so a failure is only told.
pub(super) fn write(folder: &Path, source: String, written: &Written) {
    let record = Record {
        version: VERSION,
        source,
        dynconfig: written.clone(),
    };
    if let Err(error) = replace(&place(folder), &record) {
        warn!(folder = %folder.display(), %error, "dynamic configuration not stored: set server.dataDir to a folder that can be written");
    }
}

fn replace(file: &Path, record: &Record) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension("new");
    let mut out = File::create(&temporary)?;
    out.write_all(&serde_json::to_vec(record)?)?;
    out.sync_all()?;
    fs::rename(&temporary, file)
}

fn place(folder: &Path) -> PathBuf {
    folder.join("scheduler-dynconfig.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_belongs_to_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let written = Written {
            candidate_parent_limit: 7,
            ..Written::default()
        };
        write(folder.path(), "one".to_owned(), &written);
        assert_eq!(read(folder.path(), "one".to_owned()), Some(written));
        assert_eq!(read(folder.path(), "two".to_owned()), None);
        fs::write(place(folder.path()), "{").unwrap();
        assert_eq!(read(folder.path(), "one".to_owned()), None);
    }
}
