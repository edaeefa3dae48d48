//! The digest of bytes that are on disk already.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use protocol::{Crc32, Crc32Hasher, PieceSpan};

use crate::error::DiskError;

/// How much is read at once: stays in the second-level cache.
const BUFFER_LEN: usize = 256 << 10;

/// The digest of a piece as it is in the file; nothing when the file ends before the piece does, or cannot be read there.
pub(crate) fn of_span(
    file: &File,
    path: &Path,
    span: PieceSpan,
) -> Result<Option<Crc32>, DiskError> {
    let mut hasher = Crc32Hasher::new();
    let buffer_len = usize::try_from(span.length)
        .unwrap_or(usize::MAX)
        .min(BUFFER_LEN);
    let mut buffer = vec![0; buffer_len];
    let (mut offset, end) = (span.offset, span.offset + span.length);
    while offset < end {
        let wanted = usize::try_from(end - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match file.read_at(&mut buffer[..wanted], offset) {
            Ok(0) => return Ok(None),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A sector that cannot be read is a corrupt piece, not a reason to stop.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
            Err(error) => return Err(DiskError::new("read", path, error)),
        }
    }
    Ok(Some(hasher.finish()))
}
