//! The socket options and system calls that no library of ours wraps.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

/// Keepalive of the piece port, as in the reference: after 5 s of silence, every 3 s, 3 times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged. Keepalive does not run while some are, so this covers a peer that vanishes
/// in mid transfer.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// What every socket of the piece port has, on both sides. Accepted sockets inherit it from the listener.
pub(crate) fn set_piece_socket_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Lets clients that did so before send data with their first packet (`TCP_FASTOPEN`); `queue` such may wait.
pub(crate) fn set_fast_open(listener: impl AsFd, queue: u32) -> io::Result<()> {
    set_option(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, queue)
}

/// A receive is not woken by fewer bytes than these (`SO_RCVLOWAT`), apart from an end or an error.
pub(crate) fn set_receive_mark(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

fn set_option(socket: impl AsFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(value).map_err(|_| io::ErrorKind::InvalidInput)?;
    let len = size_of_val(&value);
    // SAFETY: the descriptor is open for the borrow's life; `value` is a live c_int and the length given is its size, as
    // both options want it. The kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            libc::socklen_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of `linux/mman.h`, counts of pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Number of `cachestat`, which the libc crate does not name yet: the same on every architecture that we build for, since
/// they share one table for all newer calls.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many pages of a part of a file are in memory (Linux 6.5 and later).
///
/// # Errors
/// `ENOSYS` or `EPERM` where the kernel or a sandbox does not have the call, `EOPNOTSUPP` for files without page cache.
pub(crate) fn cached_pages(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let range = CachestatRange { offset, len };
    let mut stat = Cachestat::default();
    // SAFETY: the descriptor is open for the borrow's life; both pointers are to live values with the kernel's layout, the
    // first is only read, the second only written; the flags must be 0.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0 as libc::c_uint,
        )
    };
    if result == 0 {
        Ok(stat.cached)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn options_are_taken_by_the_kernel() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        set_piece_socket_options(&socket).unwrap();
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        set_fast_open(&socket, 16).unwrap();
        assert!(set_fast_open(&socket, u32::MAX).is_err());
        set_receive_mark(&socket, 64 << 10).unwrap();
    }

    #[test]
    fn freshly_written_pages_are_in_memory() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1 << 16]).unwrap();
        match cached_pages(&file, 0, 1 << 16) {
            Ok(pages) => assert!(pages >= 1),
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                "{error}"
            ),
        }
    }
}
