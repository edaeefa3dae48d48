//! From the store to the client, in order, with little memory.
//!
//! Whole pieces are sent by the kernel out of the page cache to clients on other hosts ([`Windows`]); an answer takes next to no
//! memory then. What goes to this host or over TLS, is still arriving, or has to be read from the disk is read in portions small enough to
//! stay in the processor's cache until they are written to the socket, into buffers that come back when the connection has sent them.
//! The HTTP library holds at most two portions more than the one being read, so such an answer takes about 1.5 MiB however long it is.
//! Nothing is read while the client takes nothing: the body is not polled then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use super::super::window::Windows;
use crate::engine::{DownloadError, Reader, Run};

/// Bytes read at once for one of few clients. Half of it costs an eighth more time with a fast client on this host, which is woken twice as
/// often; twice as much falls out of the processor's cache.
const PORTION: usize = 512 << 10;
/// The same for one of many, who share the cache.
const PORTION_AMONG_MANY: usize = 256 << 10;
/// Shorter runs, of pieces that are just arriving, get a buffer of their own size.
const SHORT: u64 = 32 << 10;
/// Buffers of one answer that are kept for the next portion.
const KEPT: usize = 3;

/// The answers that are being sent; clones count together.
#[derive(Debug, Clone)]
pub struct Crowd {
    count: Arc<AtomicUsize>,
    /// Of this host, as far as this process may use them.
    processors: usize,
}

/// One of them.
#[derive(Debug)]
struct InCrowd(Crowd);

impl Default for Crowd {
    fn default() -> Self {
        Self {
            count: Arc::default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Crowd {
    fn join(&self) -> InCrowd {
        self.count.fetch_add(1, Ordering::Relaxed);
        InCrowd(self.clone())
    }
}

impl InCrowd {
    fn portion(&self) -> usize {
        match self.0.count.load(Ordering::Relaxed) > self.0.processors {
            true => PORTION_AMONG_MANY,
            false => PORTION,
        }
    }
}

impl Drop for InCrowd {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a content is read with, portion by portion.
pub struct Portions {
    reader: Reader,
    file: Arc<File>,
    buffers: Arc<Buffers>,
    windows: Option<Windows>,
    crowd: InCrowd,
}

impl Portions {
    /// The bytes that `reader` hands out; by the kernel if the connection has windows.
    pub fn new(reader: Reader, windows: Option<Windows>, crowd: &Crowd) -> Self {
        Self {
            windows,
            crowd: crowd.join(),
            file: reader.started().task.content_file(),
            buffers: Arc::default(),
            reader,
        }
    }

    /// What is known of the download.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Waits until the next byte can be read, if there is one. Cancel-safe.
    ///
    /// # Errors
    /// Why there will be none.
    pub async fn ready(&mut self) -> Result<Option<Run>, DownloadError> {
        self.reader.ready().await
    }

    /// The next portion; `None` behind the last.
    ///
    /// # Errors
    /// Why there will be no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DownloadError> {
        let (offset, length) = match self.reader.ready().await? {
            None => return Ok(None),
            Some(Run::Express(bytes)) => {
                self.reader.took(&bytes);
                return Ok(Some(bytes));
            }
            Some(Run::Stored {
                offset,
                length,
                checked,
            }) => {
                let windows = self.windows.as_ref().filter(|_| checked);
                if let Some(bytes) = windows.and_then(|it| it.open(&self.file, offset, length)) {
                    self.reader.took(&bytes);
                    return Ok(Some(bytes));
                }
                (offset, length)
            }
        };
        let most = self.crowd.portion();
        let portion = usize::try_from(length).unwrap_or(most).min(most);
        let buffer = if length < SHORT {
            Buffer::loose(portion)
        } else {
            self.buffers.take(portion)
        };
        let buffer =
            read(&self.file, offset, buffer)
                .await
                .map_err(|error| DownloadError::Write {
                    reason: format!("the content cannot be read back: {error}"),
                })?;
        self.reader.took(buffer.as_ref());
        Ok(Some(Bytes::from_owner(buffer)))
    }
}

/// Reads a whole buffer: at once if the bytes are in the page cache, else where blocking is allowed.
async fn read(file: &Arc<File>, offset: u64, mut buffer: Buffer) -> io::Result<Buffer> {
    if read_cached(file, offset, buffer.as_mut()) {
        return Ok(buffer);
    }
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || {
        file.read_exact_at(buffer.as_mut(), offset).map(|()| buffer)
    });
    read.await.map_err(io::Error::other)?
}

/// Whether all bytes could be read without waiting for the disk.
fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> bool {
    let wanted = buffer.len();
    let mut slices = [io::IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(length) if length == wanted => true,
        // A filesystem in memory may not know the flag, and does not wait either.
        Err(Errno::OPNOTSUPP) => {
            rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC)
                && file.read_exact_at(&mut slices[0], offset).is_ok()
        }
        _ => false,
    }
}

/// Buffers that wait for the next portion.
#[derive(Debug, Default)]
struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let mut bytes = self.free.lock().pop().unwrap_or_default();
        if bytes.len() < length {
            bytes.resize(length, 0);
        }
        Buffer {
            bytes,
            length,
            home: Some(self.clone()),
        }
    }
}

/// Bytes on their way to the socket.
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Option<Arc<Buffers>>,
}

impl Buffer {
    fn loose(length: usize) -> Self {
        Self {
            bytes: vec![0; length],
            length,
            home: None,
        }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut free = home.free.lock();
            if free.len() < KEPT {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}
