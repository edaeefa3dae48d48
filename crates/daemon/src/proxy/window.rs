//! Content that the kernel copies by itself, from the page cache to the client's socket.
//!
//! The HTTP library takes bytes in memory and hands them to the connection. A window is such bytes: a mapping of a part of the
//! content file. The connection (`watch`) recognises it by its address and has the kernel send that part of the file
//! (`sendfile`), so the mapping itself is never touched: it is the name of the bytes. If somebody touches it all the same, they are the right
//! bytes, at the usual price.
//!
//! A window is only made of bytes that are in memory, so that no disk holds up the reactor, and only for connections that
//! end in a socket: behind TLS somebody has to touch the bytes.
//!
//! It is not made for a client on this host either. Such a client falls asleep whenever it has taken everything, and the kernel wakes it for
//! every 64 KiB that it sends by itself, where one large write wakes it once. (On a virtual machine that made 12,000 wake-ups per GiB against
//! 3,000, and together they cost more than the copy.)

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Most bytes of one window.
const LENGTH_MAX: u64 = 1 << 20;
/// Fewer bytes are copied faster than they are arranged for.
const LENGTH_MIN: u64 = 64 << 10;

/// A connection that may end in a socket.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket, if what is written goes there as it is.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl Socket for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// Whoever encrypts has to touch the bytes.
impl<I: Socket> Socket for TlsStream<I> {}

/// The windows of one connection; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    open: Arc<Mutex<Vec<Place>>>,
}

/// Where a window is in memory, and where its bytes are in a file.
#[derive(Debug, Clone)]
struct Place {
    address: usize,
    length: usize,
    file: Arc<File>,
    offset: u64,
}

/// See the module.
struct Window {
    map: Mmap,
    windows: Windows,
}

impl Windows {
    /// For a connection with a client at this address, if windows are worth it there.
    pub(super) fn for_client(address: IpAddr) -> Option<Self> {
        (!address.is_loopback()).then(Self::default)
    }

    /// The first of these bytes of `file`, without reading them; nothing if they are better read. They must not change any more.
    pub(super) fn open(&self, file: &Arc<File>, offset: u64, length: u64) -> Option<Bytes> {
        let length = length.min(LENGTH_MAX);
        if length < LENGTH_MIN || !transfer::is_resident(file, offset, length) {
            return None;
        }
        let length = usize::try_from(length).ok()?;
        let map = map(file, offset, length).ok()?;
        self.open.lock().push(Place {
            address: map.as_ptr() as usize,
            length,
            file: file.clone(),
            offset,
        });
        let windows = self.clone();
        Some(Bytes::from_owner(Window { map, windows }))
    }

    /// The part of a file that these bytes are, if they lie in a window.
    fn part(&self, bytes: &[u8]) -> Option<(Arc<File>, u64)> {
        let start = bytes.as_ptr() as usize;
        let open = self.open.lock();
        let within = |place: &&Place| {
            start >= place.address && start + bytes.len() <= place.address + place.length
        };
        let place = open.iter().find(within)?;
        let offset = place.offset + (start - place.address) as u64;
        Some((place.file.clone(), offset))
    }

    /// As [`AsyncWrite::poll_write_vectored`] on `socket`, for what of `bufs` are windows; nothing if the first of them is none.
    /// `bufs` is cut before the first window otherwise.
    pub(super) fn poll_send(
        &self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        bufs: &mut &[IoSlice<'_>],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.open.lock().is_empty() {
            return None;
        }
        let first = bufs.iter().position(|buf| !buf.is_empty())?;
        if let Some((file, offset)) = self.part(&bufs[first]) {
            return Some(poll_sendfile(socket, cx, &file, offset, bufs[first].len()));
        }
        if let Some(end) = bufs.iter().position(|buf| self.part(buf).is_some()) {
            *bufs = &bufs[..end];
        }
        None
    }
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let address = self.map.as_ptr() as usize;
        self.windows
            .open
            .lock()
            .retain(|place| place.address != address);
    }
}

#[allow(unsafe_code)]
fn map(file: &File, offset: u64, length: usize) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and the bytes do not change: only checked pieces are given out this way, whose bytes nobody writes
    // to again. The file keeps its length while it is open here; deleting it only unlinks it.
    unsafe { MmapOptions::new().offset(offset).len(length).map(file) }
}

fn poll_sendfile(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    file: &File,
    offset: u64,
    length: usize,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        let mut at = offset;
        let sent = socket.try_io(Interest::WRITABLE, || {
            Ok(rustix::fs::sendfile(socket, file, Some(&mut at), length)?)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => {
                let text = "the content file is shorter than the content";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
            sent => return Poll::Ready(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::pin::Pin;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::super::watch::{Watch, Watched};
    use super::*;

    fn content(length: usize) -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
            .take(length)
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn windows_between_other_bytes_arrive_in_order() {
        let (file, bytes) = content(3 << 20);
        let windows = Windows::default();
        let offset = 12_345;
        let first = windows.open(&file, offset, 5 << 20).unwrap();
        assert_eq!(first.len(), 1 << 20, "no longer than a window may be");
        let second = windows.open(&file, 2 << 20, 100_000).unwrap();
        let (near, mut far) = pair().await;
        let mut near = Watched::new(near, Bytes::new(), Watch::new(), windows.clone());
        let mut parts = [
            Bytes::from_static(b"head"),
            // As after a write that did not take all.
            first.slice(7..),
            Bytes::from_static(b"middle"),
            second,
        ];
        let mut want = b"head".to_vec();
        want.extend_from_slice(&bytes[12_352..12_345 + (1 << 20)]);
        want.extend_from_slice(b"middle");
        want.extend_from_slice(&bytes[2 << 20..(2 << 20) + 100_000]);
        drop(first);
        let write = async {
            let mut sent = 0;
            while parts.iter().any(|part| !part.is_empty()) {
                let bufs = parts.each_ref().map(|part| IoSlice::new(part));
                let count = poll_fn(|cx| Pin::new(&mut near).poll_write_vectored(cx, &bufs));
                let mut count = count.await.unwrap();
                sent += count;
                for part in &mut parts {
                    let taken = count.min(part.len());
                    *part = part.slice(taken..);
                    count -= taken;
                }
            }
            drop(near);
            sent
        };
        let mut got = Vec::new();
        let (sent, read) = tokio::join!(write, far.read_to_end(&mut got));
        assert_eq!((sent, read.unwrap()), (want.len(), want.len()));
        assert!(got == want);
        drop(parts);
        assert!(windows.open.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn clients_on_this_host_get_copies() {
        let has = |client: &str| Windows::for_client(client.parse().unwrap()).is_some();
        assert!(!has("127.0.0.2") && !has("::1"));
        assert!(has("192.0.2.1") && has("2001:db8::1"));
    }

    #[test]
    fn what_is_short_or_elsewhere_is_no_window() {
        let (file, bytes) = content(200_000);
        let windows = Windows::default();
        assert!(windows.open(&file, 0, LENGTH_MIN - 1).is_none());
        assert!(
            windows.open(&file, 150_000, 100_000).is_none(),
            "behind the end"
        );
        let window = windows.open(&file, 0, 200_000).unwrap();
        assert!(windows.part(&bytes).is_none());
        // Whoever touches it gets the right bytes.
        assert!(window == bytes);
        let (_, offset) = windows.part(&window[1000..]).unwrap();
        assert_eq!(offset, 1000);
        drop(window);
        assert!(windows.open.lock().is_empty());
    }
}
