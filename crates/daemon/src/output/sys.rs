//! Peer credentials and per-thread identity, for which there are no safe wrappers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most groups that Linux keeps per process (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65536;

/// SO_PEERCRED: effective user and group of the process that connected.
pub(super) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = socklen(size_of::<libc::ucred>());
    // SAFETY: the descriptor is open for the borrow's time; `credentials` is valid for `len` bytes, which is its size, and
    // any bytes make a valid ucred.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((credentials.uid, credentials.gid))
}

/// SO_PEERGROUPS: further groups of the process that connected.
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut len = socklen(size_of_val(groups.as_slice()));
        // SAFETY: the descriptor is open for the borrow's time; `groups` is valid for `len` bytes, which is its size, and
        // any bytes make valid group ids.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = usize::try_from(len).unwrap_or(usize::MAX) / size_of::<libc::gid_t>();
        if done == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how much room it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX
        {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Makes the kernel check every further file operation of this thread as that user.
///
/// The raw system calls change one thread only; the functions of libc would change the whole process. A change of the
/// filesystem user from root to another one also takes the capabilities that pass file permissions by.
pub(super) fn become_user_on_this_thread(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is valid for its length and only read.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // These two return the former value, not an error; asking with an impossible id tells whether they worked.
    set_and_check(libc::SYS_setfsgid, gid)?;
    set_and_check(libc::SYS_setfsuid, uid)
}

fn set_and_check(call: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: setfsuid and setfsgid take one number and touch no memory.
    let now = unsafe {
        libc::syscall(call, id);
        libc::syscall(call, u32::MAX)
    };
    if u32::try_from(now) == Ok(id) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(libc::socklen_t::MAX)
}
