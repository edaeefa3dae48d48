//! Keeps slow disks away from the reactor: says whether bytes are in memory, and reads them in on a blocking thread if not.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::Semaphore;

use crate::sys;

/// Distance between the bytes that are tried when the kernel cannot count cached pages.
const PROBE_STRIDE: u64 = 64 << 10;
/// Bytes read at once to bring them into memory.
const READ_LEN: usize = 128 << 10;

/// Whether all bytes of `[offset, offset + len)` can be sent without waiting for a disk. Never waits for one itself. An
/// error counts as no: the blocking thread will meet it again and can wait.
pub fn is_resident(file: &File, offset: u64, len: u64) -> bool {
    match sys::cached_pages(file, offset, len) {
        Ok(pages) => {
            let page = rustix::param::page_size() as u64;
            pages >= (offset + len).div_ceil(page) - offset / page
        }
        Err(_) => probe(file, offset, len),
    }
}

/// Reads a byte here and there without waiting.
fn probe(file: &File, offset: u64, len: u64) -> bool {
    let last = (offset + len).saturating_sub(1);
    (offset..last)
        .step_by(usize::try_from(PROBE_STRIDE).unwrap_or(usize::MAX))
        .chain([last])
        .all(|at| {
            let mut byte = [0];
            let read = rustix::io::preadv2(
                file,
                &mut [IoSliceMut::new(&mut byte)],
                at,
                ReadWriteFlags::NOWAIT,
            );
            matches!(read, Ok(1))
        })
}

/// Brings `[offset, offset + len)` into memory and asks the kernel to go on behind it for `ahead` bytes.
///
/// # Errors
/// From the disk, or `UnexpectedEof` when the file is shorter.
pub(super) async fn warm(
    disk_reads: &Arc<Semaphore>,
    file: &Arc<File>,
    offset: u64,
    len: u64,
    ahead: u64,
) -> io::Result<()> {
    let permit = Arc::clone(disk_reads)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        read_in(&file, offset, len, ahead)
    });
    read.await.map_err(io::Error::other)?
}

fn read_in(file: &File, offset: u64, len: u64, ahead: u64) -> io::Result<()> {
    let behind = std::num::NonZeroU64::new(len.saturating_add(ahead));
    match rustix::fs::fadvise(file, offset, behind, Advice::WillNeed) {
        // Advice is only that.
        Ok(()) | Err(Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {}
        Err(error) => return Err(error.into()),
    }
    let mut scratch = vec![0; READ_LEN];
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let want = usize::try_from(end - at).map_or(READ_LEN, |left| left.min(READ_LEN));
        match file.read_at(&mut scratch[..want], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => at += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn what_was_written_or_warmed_is_resident() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 300_000]).unwrap();
        let file = Arc::new(file);
        assert!(is_resident(&file, 1000, 200_000));
        assert!(probe(&file, 1000, 200_000));
        file.sync_all().unwrap();
        rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        warm(&Arc::new(Semaphore::new(1)), &file, 1000, 200_000, 1 << 20)
            .await
            .unwrap();
        assert!(is_resident(&file, 1000, 200_000));
        assert!(!probe(&file, 299_999, 2), "behind the end");
    }

    #[tokio::test]
    async fn a_short_file_is_noticed() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let error = warm(&Arc::new(Semaphore::new(1)), &file, 0, 1, 0)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
