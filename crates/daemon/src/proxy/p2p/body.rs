//! From the store to the client, in order, with little memory.
//!
//! Bytes are read in portions of 256 KiB, small enough to stay in the processor's cache until they are written to the socket,
//! into buffers that come back when the connection has sent them. The HTTP library holds at most two portions more than the one being
//! read, so an answer takes about 768 KiB however long it is, and nothing while its client takes nothing: it is not polled then.
//! (Mapping the file instead cost the same within the noise, and a disk that fails would end the process. bench/README.md has figures beside nginx.)

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};

use crate::engine::{DownloadError, Reader, Run};

/// Bytes read at once.
const PORTION: usize = 256 << 10;
/// Shorter runs, of pieces that are just arriving, get a buffer of their own size.
const SHORT: u64 = 32 << 10;
/// Buffers of one answer that are kept for the next portion.
const KEPT: usize = 3;

/// What a content is read with, portion by portion.
pub struct Portions {
    reader: Reader,
    file: Arc<File>,
    buffers: Arc<Buffers>,
}

impl Portions {
    /// The bytes that `reader` hands out.
    pub fn new(reader: Reader) -> Self {
        Self {
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
            Some(Run::Stored { offset, length, .. }) => (offset, length),
        };
        let portion = usize::try_from(length).unwrap_or(PORTION).min(PORTION);
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
