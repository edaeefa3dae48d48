//! Checking the whole content against a digest while it arrives.
//!
//! A [`Verification`] follows the store: as soon as the next piece in order is whole, it is read back (from the page cache, it
//! was written a moment ago) and hashed, on the blocking pool, one batch of pieces at a time. So the verdict stands
//! shortly after the last piece, and no byte is hashed twice, however many callers wait for the same digest. A content that
//! was found right is remembered by the store ([`storage::Task::confirm`]) and not read again.
//!
//! A content with another digest than the one it must have is of no use to anybody: it is deleted here.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use protocol::{Crc32, Digest, DigestHasher, PieceNumber, TaskId};
use storage::Task;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tracing::{info, warn};

use super::{DownloadError, Inner};

/// Bytes read at once: they stay in the processor's cache until they are hashed.
const BUFFER_LEN: usize = 256 << 10;
/// Pieces hashed by one visit to the blocking pool at most, so that the end of interest is noticed.
const BATCH_LEN: usize = 16;
/// Parents named in an error.
const NAMED_MAX: usize = 4;

/// `None` until the verdict stands.
type Verdict = Option<Result<(), DownloadError>>;

/// One content being compared with one digest, as its waiters see it. The last one that is dropped ends it.
#[derive(Debug, Clone)]
pub(crate) struct Verification {
    verdict: watch::Receiver<Verdict>,
    _interest: Option<Arc<DropGuard>>,
}

/// The verifications that run.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    running: Mutex<HashMap<(TaskId, String), Running>>,
}

#[derive(Debug)]
struct Running {
    verdict: watch::Receiver<Verdict>,
    interest: Weak<DropGuard>,
}

impl Verification {
    /// The verdict, if it stands.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict.borrow().clone()
    }

    /// Waits for the verdict. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Result<(), DownloadError> {
        match self.verdict.wait_for(Option::is_some).await {
            Ok(verdict) => verdict.clone().expect("it was waited for"),
            Err(_) => Err(DownloadError::Stopping),
        }
    }

    fn confirmed() -> Self {
        let (_, verdict) = watch::channel(Some(Ok(())));
        Self {
            verdict,
            _interest: None,
        }
    }
}

/// Starts comparing the content of `task` with `digest`, or joins who does that already.
pub(super) fn verify(engine: &Arc<Inner>, task: &Task, digest: &Digest) -> Verification {
    if task.is_confirmed(digest) {
        return Verification::confirmed();
    }
    let key = (task.id().clone(), digest.to_string());
    let mut running = engine.verifications.running.lock();
    if let Some(there) = running.get(&key)
        && let Some(interest) = there.interest.upgrade()
    {
        return Verification {
            verdict: there.verdict.clone(),
            _interest: Some(interest),
        };
    }
    let cancel = engine.cancel.child_token();
    let interest = Arc::new(cancel.clone().drop_guard());
    let (tell, verdict) = watch::channel(None);
    running.insert(
        key.clone(),
        Running {
            verdict: verdict.clone(),
            interest: Arc::downgrade(&interest),
        },
    );
    drop(running);
    let (engine_, task, digest) = (engine.clone(), task.clone(), digest.clone());
    engine.tasks.spawn(async move {
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(DownloadError::Stopping),
            outcome = check(&task, &digest) => outcome,
        };
        // Waiters learn the reason before they find the task gone.
        tell.send_replace(Some(outcome.clone()));
        if let Err(error @ DownloadError::Digest { .. }) = &outcome {
            warn!(task_id = %task.id(), %error, "content deleted");
            let (store, id) = (engine_.parts.store.clone(), task.id().clone());
            let _ = tokio::task::spawn_blocking(move || store.delete(&id)).await;
        }
        let mut running = engine_.verifications.running.lock();
        // Another one may have begun after the last waiter of this one went away.
        if running
            .get(&key)
            .is_some_and(|there| there.interest.strong_count() == 0 || !cancel.is_cancelled())
        {
            running.remove(&key);
        }
    });
    Verification {
        verdict,
        _interest: Some(interest),
    }
}

/// Waits for the pieces in order, hashes them, and compares.
async fn check(task: &Task, digest: &Digest) -> Result<(), DownloadError> {
    let count = task.geometry().piece_count();
    let mut hashed = Hashed::new(digest);
    let mut changes = task.changes();
    loop {
        changes.borrow_and_update();
        let held = task.held()?;
        let next = hashed.pieces.len();
        let ready: Vec<u32> = (0..count)
            .skip(next)
            .take_while(|&piece| held.get(piece))
            .take(BATCH_LEN)
            .collect();
        if !ready.is_empty() {
            let reading = task.clone();
            let read = tokio::task::spawn_blocking(move || {
                let read = hashed.add(&reading, &ready);
                (hashed, read)
            });
            let (back, read) = read.await.map_err(|_| DownloadError::Stopping)?;
            hashed = back;
            read.map_err(|error| DownloadError::Write {
                reason: format!("the content cannot be read back: {error}"),
            })?;
            continue;
        }
        if hashed.pieces.len() == count as usize {
            if hashed.is_current(task) {
                break;
            }
            // A piece was found corrupt on the disk and fetched again after it had been hashed.
            hashed = Hashed::new(digest);
            continue;
        }
        changes
            .changed()
            .await
            .map_err(|_| DownloadError::Stopping)?;
    }
    let got = hashed.hasher.finish();
    if got == *digest {
        task.confirm(digest.clone())?;
        info!(task_id = %task.id(), %digest, "content verified");
        return Ok(());
    }
    Err(DownloadError::Digest {
        task_id: task.id().clone(),
        got: Box::new(got),
        want: Box::new(digest.clone()),
        from: givers(task),
    })
}

/// What was hashed so far.
struct Hashed {
    hasher: DigestHasher,
    /// Checksums of the pieces that went in, in order.
    pieces: Vec<Crc32>,
}

impl Hashed {
    fn new(digest: &Digest) -> Self {
        Self {
            hasher: DigestHasher::new(digest.algorithm()),
            pieces: Vec::new(),
        }
    }

    /// Adds whole pieces, which follow those that are in. Blocks for the disk.
    fn add(&mut self, task: &Task, pieces: &[u32]) -> std::io::Result<()> {
        let file = task.content_file();
        let mut buffer = vec![0; BUFFER_LEN];
        for &piece in pieces {
            let Some(record) = task.piece_record(PieceNumber(piece)) else {
                // It was dropped a moment ago; it will be held again.
                return Ok(());
            };
            let (mut at, end) = (record.offset, record.offset + record.length);
            while at < end {
                let wanted = usize::try_from(end - at)
                    .unwrap_or(BUFFER_LEN)
                    .min(BUFFER_LEN);
                file.read_exact_at(&mut buffer[..wanted], at)?;
                self.hasher.update(&buffer[..wanted]);
                at += wanted as u64;
            }
            self.pieces.push(record.crc32);
        }
        Ok(())
    }

    fn is_current(&self, task: &Task) -> bool {
        (0..).zip(&self.pieces).all(|(number, crc32)| {
            task.piece_record(PieceNumber(number))
                .is_some_and(|record| record.crc32 == *crc32)
        })
    }
}

/// Who gave the content, for the error and for blame.
fn givers(task: &Task) -> String {
    let mut parents: Vec<String> = Vec::new();
    let mut origin = false;
    for span in task.geometry().pieces() {
        match task
            .piece_record(span.number)
            .map(|record| record.origin.parent)
        {
            Some(Some(parent)) if !parents.iter().any(|known| *known == parent.as_str()) => {
                parents.push(parent.to_string());
            }
            Some(None) => origin = true,
            _ => {}
        }
    }
    let more = parents.len().saturating_sub(NAMED_MAX);
    parents.truncate(NAMED_MAX);
    if more > 0 {
        parents.push(format!("{more} more"));
    }
    match (origin, parents.is_empty()) {
        (true, true) => "the origin".to_owned(),
        (true, false) => format!("the origin and peers {}", parents.join(", ")),
        (false, _) => format!("peers {}", parents.join(", ")),
    }
}

/// The only parent that gave anything, if there is one: then it is to blame.
pub(super) fn sole_parent(task: &Task) -> Option<protocol::PeerId> {
    let mut sole = None;
    for span in task.geometry().pieces() {
        let parent = task.piece_record(span.number)?.origin.parent?;
        if sole.get_or_insert_with(|| parent.clone()) != &parent {
            return None;
        }
    }
    sole
}
