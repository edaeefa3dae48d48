//! The last good answer for each tag.
//!
//! A tag is always asked of its registry. The last manifest that it gave is kept in a file, so that images can still be pulled by tag
//! while the registry is away, also after a restart. One file per tag: a line of JSON, then the manifest as it came. A client that
//! asked by HEAD has heard the manifest's digest only: then that is kept, with nothing behind the line.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use protocol::{Digest, DigestAlgorithm};
use serde::{Deserialize, Serialize};
use url::Url;

use super::manifest::{MANIFEST_LEN_MAX, Manifest};

/// Manifests that are kept; the oldest go first. Most have a few KiB.
const KEPT_MAX: usize = 4096;
/// How many may be written between two looks at their number.
const LOOK_EVERY: usize = 64;
/// Longest first line of a file.
const LINE_LEN_MAX: usize = 16 << 10;

/// The last good answer for a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The manifest.
    pub(super) manifest: Manifest,
    /// The registry gave it to anybody.
    pub(super) public: bool,
    /// When it was given.
    pub(super) at: SystemTime,
}

/// What a registry said of a tag without showing the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// What names the manifest.
    pub(super) digest: Digest,
    /// When it was said.
    pub(super) at: SystemTime,
}

/// What is known of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it.
    Manifest(Remembered),
    /// Its name, under which the swarm may have it.
    Digest(Named),
}

impl Kept {
    fn digest(&self) -> Digest {
        match self {
            Self::Manifest(remembered) => remembered.manifest.digest(),
            Self::Digest(named) => named.digest.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    url: String,
    content_type: String,
    digest: String,
    public: bool,
    at_ms: u64,
}

/// The last good answers, in a folder.
#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
    written: AtomicUsize,
}

impl Memory {
    /// In `folder`, which is made when something is to be kept.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            written: AtomicUsize::new(0),
        }
    }

    /// The last good answer for this URL, if there was one. Blocks for the disk.
    pub(super) fn recall(&self, url: &Url) -> Option<Kept> {
        let bytes = std::fs::read(self.path(url)).ok()?;
        if bytes.len() as u64 > MANIFEST_LEN_MAX + LINE_LEN_MAX as u64 {
            return None;
        }
        understood(Bytes::from(bytes), url)
    }

    /// Keeps an answer. Blocks for the disk.
    ///
    /// # Errors
    /// What the system says; the answer before is still there then.
    pub(super) fn keep(&self, url: &Url, remembered: &Remembered) -> io::Result<()> {
        let manifest = &remembered.manifest;
        let line = Line {
            url: key(url),
            content_type: manifest.content_type.clone(),
            digest: manifest.digest().to_string(),
            public: remembered.public,
            at_ms: at_ms(remembered.at),
        };
        self.write(url, &line, &manifest.bytes)
    }

    /// Keeps what a tag names, unless that is known already. Blocks for the disk.
    ///
    /// # Errors
    /// What the system says; the answer before is still there then.
    pub(super) fn note(&self, url: &Url, named: &Named) -> io::Result<()> {
        if self
            .recall(url)
            .is_some_and(|kept| kept.digest() == named.digest)
        {
            return Ok(());
        }
        let line = Line {
            url: key(url),
            content_type: String::new(),
            digest: named.digest.to_string(),
            public: false,
            at_ms: at_ms(named.at),
        };
        self.write(url, &line, &[])
    }

    fn write(&self, url: &Url, line: &Line, manifest: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(manifest);
        // Whole or not at all; the name is put in place by a rename.
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        std::fs::write(file.path(), bytes)?;
        file.persist(self.path(url)).map_err(|error| error.error)?;
        let written = self.written.fetch_add(1, Ordering::Relaxed);
        if written.is_multiple_of(LOOK_EVERY) {
            self.drop_oldest()?;
        }
        Ok(())
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(&self.folder)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        files.sort();
        let surplus = files.len().saturating_sub(KEPT_MAX);
        for (_, path) in &files[..surplus] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    fn path(&self, url: &Url) -> PathBuf {
        let name = Digest::of(DigestAlgorithm::Sha256, key(url).as_bytes()).encoded();
        self.folder.join(name)
    }
}

/// The default place of [`Memory`] in the daemon's data folder.
pub(super) fn folder(storage_dir: &Path) -> PathBuf {
    storage_dir.join("proxy").join("manifests")
}

/// What a tag is kept under: without query, which says nothing about it, and without a user.
fn key(url: &Url) -> String {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.into()
}

fn at_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A file's content, if it is whole and about this URL.
fn understood(bytes: Bytes, url: &Url) -> Option<Kept> {
    let end = bytes
        .iter()
        .take(LINE_LEN_MAX)
        .position(|byte| *byte == b'\n')?;
    let line: Line = serde_json::from_slice(&bytes[..end]).ok()?;
    if line.url != key(url) {
        return None;
    }
    // Far beyond any date that a registry was asked at is damage.
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(line.at_ms))?;
    let manifest = bytes.slice(end + 1..);
    if manifest.is_empty() {
        let digest = line.digest.parse().ok()?;
        return Some(Kept::Digest(Named { digest, at }));
    }
    let manifest = Manifest::read(manifest, Some(&line.content_type)).ok()?;
    let whole = manifest.digest().to_string() == line.digest;
    whole.then(|| {
        Kept::Manifest(Remembered {
            manifest,
            public: line.public,
            at,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_good_answer_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let url: Url = "https://r/v2/a/manifests/latest?ns=r".parse().unwrap();
        let other: Url = "https://r/v2/b/manifests/latest".parse().unwrap();
        let bytes = Bytes::from_static(b"{\"schemaVersion\":2}\n\n");
        let remembered = Remembered {
            manifest: Manifest::read(bytes, None).unwrap(),
            public: true,
            at: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(12345),
        };
        let memory = Memory::new(dir.path().join("deep/er"));
        assert_eq!(memory.recall(&url), None);
        memory.keep(&url, &remembered).unwrap();
        let memory = Memory::new(dir.path().join("deep/er"));
        let bare: Url = "https://r/v2/a/manifests/latest".parse().unwrap();
        let kept = Kept::Manifest(remembered.clone());
        assert_eq!(memory.recall(&bare), Some(kept.clone()));
        // The same by HEAD says nothing new, another one does.
        let mut named = Named {
            digest: remembered.manifest.digest(),
            at: remembered.at,
        };
        memory.note(&url, &named).unwrap();
        assert_eq!(memory.recall(&url), Some(kept));
        named.digest = Digest::of(DigestAlgorithm::Sha256, b"another");
        memory.note(&url, &named).unwrap();
        assert_eq!(memory.recall(&url), Some(Kept::Digest(named)));
        memory.keep(&url, &remembered).unwrap();
        assert_eq!(memory.recall(&other), None);
        let path = memory.path(&url);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(memory.recall(&url), None, "it is damaged");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_of_ours_or_none(bytes: Vec<u8>) {
            let _ = understood(bytes.into(), &"https://r/v2/a/manifests/x".parse().unwrap());
        }
    }
}
