//! What a start finds in the data folder.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::sync::Arc;

use protocol::TaskId;

use crate::entry::Entry;
use crate::error::{DiskContext, DiskError};
use crate::journal;
use crate::layout::{Layout, Part, remove_file};
use crate::live::Parked;
use crate::store::check_bounds;

/// Reads the journals; removes what belongs to no task.
pub(crate) fn recover(layout: &Layout) -> Result<(HashMap<TaskId, Arc<Entry>>, u64), DiskError> {
    let mut table = HashMap::new();
    let mut used = 0;
    for id in layout.ids(Part::Journal)? {
        match recover_one(layout, &id) {
            Ok(Some(entry)) => {
                used += entry.footprint();
                table.insert(id, Arc::new(entry));
            }
            Ok(None) => layout.remove(&id)?,
            Err(error) => {
                tracing::error!(task_id = %id, %error, "journal cannot be read, the task is dropped");
                layout.remove(&id)?;
            }
        }
    }
    for id in layout.ids(Part::Content)? {
        if !table.contains_key(&id) {
            remove_file(&layout.path(Part::Content, &id))?;
        }
    }
    Ok((table, used))
}

fn recover_one(layout: &Layout, id: &TaskId) -> Result<Option<Entry>, DiskError> {
    let path = layout.path(Part::Journal, id);
    let content = layout.path(Part::Content, id);
    if !fs::symlink_metadata(&content).is_ok_and(|found| found.is_file()) {
        return Ok(None);
    }
    let file = File::open(&path).doing("open the journal", &path)?;
    let last_used_at = file
        .metadata()
        .and_then(|found| found.modified())
        .doing("look at", &path)?;
    let Some(replay) = journal::replay(BufReader::new(&file)).doing("read the journal", &path)?
    else {
        return Ok(None);
    };
    if replay.task.id != *id || check_bounds(&replay.task).is_err() {
        return Ok(None);
    }
    let parked = Parked {
        times: replay.times,
        retention: (replay.task.retention, replay.task.ttl),
        recorded_pieces: u32::try_from(replay.pieces.len()).unwrap_or(u32::MAX),
    };
    Ok(Some(Entry::new(
        &replay.task,
        parked,
        replay.recorded_bytes(),
        last_used_at,
    )))
}
