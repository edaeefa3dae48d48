//! The unix socket that the tools of this host connect to: its file, who may use it, and who is calling.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use runtime::listen::{self, BindError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::output::Caller;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// It cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The group that should own it does not exist.
    #[error(
        "download.server.socketGroup: there is no group {0:?} on this host: create it or leave the key out"
    )]
    NoGroup(String),
    /// Its owner or permissions cannot be set.
    #[error("download.server.socketMode: cannot set group and permissions of {path:?}: {error}")]
    Permissions {
        /// The socket file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

/// The bound socket. Its file is removed when this is dropped, unless somebody else has bound the path meanwhile.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Binds `path` with these permissions. Under the usual umask nobody but the daemon's user can connect before they are set.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Self, SocketError> {
        let gid = group
            .map(|group| group_id(group).ok_or_else(|| SocketError::NoGroup(group.to_owned())))
            .transpose()?;
        let listener = listen::unix(path, "download.server.socketPath")?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity(path),
        };
        let failed = |error| SocketError::Permissions {
            path: path.to_owned(),
            error,
        };
        if gid.is_some() {
            std::os::unix::fs::lchown(path, None, gid).map_err(failed)?;
        }
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(failed)?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    /// The connections as they come. A failure to accept one is waited out: mostly there are no descriptors left, and
    /// some come free.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        unfold(self, |socket| async {
            loop {
                match socket.listener.accept().await {
                    Ok((stream, _)) => {
                        let caller = Caller::of(&stream).ok();
                        return Some((Ok(Connection { stream, caller }), socket));
                    }
                    Err(error) => {
                        warn!(%error, "connection to the unix socket not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The number of a group given by number or by its name in `/etc/group`.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(gid) = group.parse() {
        return Some(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

/// One connection, with the identity of who made it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    caller: Option<Caller>,
}

/// What each request of a connection knows of its caller; `None` when the system did not tell.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<Caller>);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.caller.clone())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn the_socket_has_its_permissions_and_knows_who_calls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/d.sock");
        let socket = Socket::bind(&path, 0o660, Some("0")).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.mode() & 0o777, 0o660);
        let mut connections = Box::pin(socket.connections());
        let (client, accepted) = tokio::join!(UnixStream::connect(&path), connections.next());
        let caller = accepted.unwrap().unwrap().connect_info().0.unwrap();
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        drop(client);
        let second = Socket::bind(&path, 0o660, None).unwrap_err();
        assert!(
            matches!(second, SocketError::Bind(BindError::SocketInUse { .. })),
            "{second}"
        );
        drop(connections);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_daemon_is_replaced_and_another_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let old = Socket::bind(&path, 0o600, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = Socket::bind(&path, 0o600, None).unwrap();
        drop(old);
        assert!(path.exists(), "it belongs to the new one");
        drop(new);
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("4242"), Some(4242));
        assert_eq!(group_id("no such group"), None);
    }
}
