//! Binding listeners, with errors that say which key of which setting to change.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UdpSocket, UnixListener};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn` (4096 by default).
const BACKLOG: u32 = 4096;

/// Why a service could not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{key}: {address} is in use by another process: stop that one (`ss -ltnp` names it) or set {key} to a free port"
    )]
    InUse {
        /// The key that sets the address.
        key: String,
        /// The address that was tried.
        address: SocketAddr,
    },
    /// The port needs a privilege.
    #[error(
        "{key}: no permission to listen on {address}: use a port from 1024 up in {key}, or grant CAP_NET_BIND_SERVICE"
    )]
    Denied {
        /// The key that sets the address.
        key: String,
        /// The address that was tried.
        address: SocketAddr,
    },
    /// The address does not belong to this host.
    #[error(
        "{key}: this host has no address {address}: set the ip to one that `ip addr` shows, or to 0.0.0.0"
    )]
    NotLocal {
        /// The key that sets the address.
        key: String,
        /// The address that was tried.
        address: SocketAddr,
    },
    /// Anything else that the system said of a TCP or UDP address.
    #[error("{key}: cannot listen on {address}: {error}")]
    Other {
        /// The key that sets the address.
        key: String,
        /// The address that was tried.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A living process answers on the socket.
    #[error("{key}: another process serves {}: stop it or set {key} to another path", .path.display())]
    SocketInUse {
        /// The key that sets the path.
        key: String,
        /// The path that was tried.
        path: PathBuf,
    },
    /// The socket or its directory cannot be made.
    #[error("{key}: cannot make the socket {}: {error}: check that this user may write to its directory", .path.display())]
    Socket {
        /// The key that sets the path.
        key: String,
        /// The path that was tried.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Listens on a TCP address; `key` is the configuration key that sets it, for the error. Port 0 takes a free one. The address
/// may be used again at once after a restart.
///
/// # Errors
/// See [`BindError`].
pub fn tcp(address: SocketAddr, key: &str) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = if address.is_ipv4() {
            tokio::net::TcpSocket::new_v4()
        } else {
            tokio::net::TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error| bind_error(address, key, error))
}

/// Binds a UDP address; as [`tcp`].
///
/// # Errors
/// See [`BindError`].
pub async fn udp(address: SocketAddr, key: &str) -> Result<UdpSocket, BindError> {
    UdpSocket::bind(address)
        .await
        .map_err(|error| bind_error(address, key, error))
}

/// Listens on a unix socket: makes its directory, and removes the file that a dead process left there. A socket on which a
/// living process answers is left alone.
///
/// # Errors
/// See [`BindError`].
pub fn unix(path: &Path, key: &str) -> Result<UnixListener, BindError> {
    let socket = |error| BindError::Socket {
        key: key.to_owned(),
        path: path.to_owned(),
        error,
    };
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        std::fs::create_dir_all(directory).map_err(socket)?;
    }
    if is_socket(path) {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(BindError::SocketInUse {
                    key: key.to_owned(),
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(socket)?;
            }
            Err(_) => {}
        }
    }
    UnixListener::bind(path).map_err(socket)
}

/// A connection to a plain file is refused as one to a dead socket is, so the refusal alone proves nothing.
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn bind_error(address: SocketAddr, key: &str, error: io::Error) -> BindError {
    let key = key.to_owned();
    match error.kind() {
        ErrorKind::AddrInUse => BindError::InUse { key, address },
        ErrorKind::PermissionDenied => BindError::Denied { key, address },
        ErrorKind::AddrNotAvailable => BindError::NotLocal { key, address },
        _ => BindError::Other {
            key,
            address,
            error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_the_port_and_the_key() {
        let first = tcp("127.0.0.1:0".parse().unwrap(), "upload.server.port").unwrap();
        let address = first.local_addr().unwrap();
        let text = tcp(address, "upload.server.port").unwrap_err().to_string();
        assert!(
            text.contains(&address.to_string())
                && text.contains("set upload.server.port to a free port"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_foreign_address_is_told() {
        let text = tcp("192.0.2.1:0".parse().unwrap(), "host.ip")
            .unwrap_err()
            .to_string();
        assert!(text.contains("no address 192.0.2.1"), "{text}");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/for/it.sock");
        drop(unix(&path, "socketPath").unwrap());
        let living = unix(&path, "socketPath").unwrap();
        assert!(matches!(
            unix(&path, "socketPath"),
            Err(BindError::SocketInUse { .. })
        ));
        drop(living);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let result = unix(&path, "socketPath");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "data",
            "{result:?}"
        );
        assert!(matches!(result, Err(BindError::Socket { .. })));
    }
}
