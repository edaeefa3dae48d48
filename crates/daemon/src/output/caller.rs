//! Who is at the other end of the unix socket, and acting as that user.

use std::io;
use std::os::fd::AsFd;

use super::sys;

/// The identity of a process that connected to the unix socket, as the kernel noted it at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Further groups; empty where the kernel does not tell.
    pub groups: Vec<u32>,
}

/// With whose rights something is done for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The caller may do whatever the daemon may: it is root, or the daemon's own user.
    AsDaemon,
    /// The daemon is root and takes on the caller's identity.
    AsCaller,
}

/// Why nothing is done for a caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallerError {
    /// The daemon cannot act as this user.
    #[error(
        "this daemon runs as user {daemon} and cannot write files as user {caller}: write the content yourself (dfget -O -), or run the daemon as root or as user {caller}"
    )]
    OtherUser {
        /// The daemon's user.
        daemon: u32,
        /// The caller's user.
        caller: u32,
    },
    /// The system did not let us.
    #[error(
        "cannot act as user {uid}: {error}: does the daemon run with CAP_SETUID and CAP_SETGID?"
    )]
    Identity {
        /// The caller's user.
        uid: u32,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

impl Caller {
    /// The process at the other end of `socket`.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let (uid, gid) = sys::peer_credentials(socket.as_fd())?;
        // Linux before 4.13 does not tell the groups; then fewer files can be reached, never more.
        let groups = sys::peer_groups(socket.as_fd()).unwrap_or_default();
        Ok(Self { uid, gid, groups })
    }

    /// With whose rights the daemon acts for this caller.
    ///
    /// # Errors
    /// [`CallerError::OtherUser`]: the daemon is not root, and the caller is neither root nor the daemon's user.
    pub fn authority(&self) -> Result<Authority, CallerError> {
        let daemon = rustix::process::geteuid().as_raw();
        match (daemon, self.uid) {
            (_, 0) => Ok(Authority::AsDaemon),
            (0, _) => Ok(Authority::AsCaller),
            (daemon, caller) if daemon == caller => Ok(Authority::AsDaemon),
            (daemon, caller) => Err(CallerError::OtherUser { daemon, caller }),
        }
    }

    /// Runs `work` with the rights of this caller, and waits for it.
    ///
    /// For another user that is a thread of its own: the kernel keeps the identity per thread, and it ends with it.
    ///
    /// # Errors
    /// The daemon may not, or cannot, act as this caller; `work` was not begun then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, CallerError> {
        match self.authority()? {
            Authority::AsDaemon => Ok(work()),
            Authority::AsCaller => {
                let failed = |error| CallerError::Identity {
                    uid: self.uid,
                    error,
                };
                std::thread::scope(|scope| {
                    let thread = std::thread::Builder::new().name(format!("as user {}", self.uid));
                    let running = thread.spawn_scoped(scope, || {
                        sys::become_user_on_this_thread(self.uid, self.gid, &self.groups)?;
                        Ok(work())
                    });
                    match running.map_err(failed)?.join() {
                        Ok(done) => done.map_err(failed),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                })
            }
        }
    }
}
