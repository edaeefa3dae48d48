//! The unix socket, and who is behind it.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use api::local::local_client::LocalClient;
use api::local::{DescribeDaemonRequest, DescribeDaemonResponse};
use tokio::net::UnixStream;
use tonic::{Code, Request};

use super::finding::Finding;
use crate::connection;

/// How long the daemon may take to tell of itself: it asks its neighbours, for three seconds each, at once.
const DESCRIBE_MAX: Duration = Duration::from_secs(8);
/// How long the socket may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// What was learned at the socket.
pub(super) struct Reached {
    pub(super) findings: Vec<Finding>,
    pub(super) daemon: Option<DescribeDaemonResponse>,
    /// The process behind the socket.
    pub(super) pid: Option<u32>,
}

/// Connects as any tool does, and asks the daemon about itself.
pub(super) async fn check(endpoint: &Path) -> Reached {
    let shown = endpoint.display().to_string();
    let mut reached = Reached {
        findings: Vec::new(),
        daemon: None,
        pid: None,
    };
    let connected = tokio::time::timeout(CONNECT_MAX, UnixStream::connect(endpoint)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            reached.findings.push(not_connected(endpoint, &error));
            return reached;
        }
        Err(_) => {
            reached.findings.push(Finding::failure(
                "socket",
                shown,
                "it accepts no connection",
                "the daemon hangs or is stopped: look into its log, then restart it",
            ));
            return reached;
        }
    };
    let credentials = stream.peer_cred().ok();
    reached.pid = credentials
        .and_then(|credentials| credentials.pid())
        .and_then(|pid| u32::try_from(pid).ok());
    drop(stream);
    let mode = std::fs::metadata(endpoint).map_or(0, |file| file.permissions().mode() & 0o777);
    if mode & 0o002 != 0 {
        reached.findings.push(Finding::warning(
            "socket",
            shown.clone(),
            format!("every user of this host may use the daemon (mode {mode:o})"),
            "set download.server.socketMode and socketGroup, unless that is wanted",
        ));
    }
    let (finding, daemon) = describe(endpoint, shown).await;
    reached.findings.push(finding);
    if let Some(daemon) = &daemon {
        reached.findings.push(version(daemon));
    }
    reached.daemon = daemon;
    reached
}

async fn describe(endpoint: &Path, shown: String) -> (Finding, Option<DescribeDaemonResponse>) {
    let channel = match connection::connect(endpoint).await {
        Ok(channel) => channel,
        Err(failure) => {
            let fix = "is it a daemon's socket? name the right one with --endpoint";
            return (
                Finding::failure("socket", shown, failure.to_string(), fix),
                None,
            );
        }
    };
    let mut request = Request::new(DescribeDaemonRequest { check: true });
    request.set_timeout(DESCRIBE_MAX);
    let mut client = LocalClient::new(channel);
    let asked = client.describe_daemon(request);
    match tokio::time::timeout(DESCRIBE_MAX, asked).await {
        Ok(Ok(answer)) => (
            Finding::ok("socket", shown, "a daemon answers"),
            Some(answer.into_inner()),
        ),
        Ok(Err(status)) if status.code() == Code::Unimplemented => (
            Finding::skipped(
                "socket",
                shown,
                "a daemon of Dragonfly v2 answers, which does not tell where it listens",
            ),
            None,
        ),
        Ok(Err(status)) => (
            Finding::failure(
                "socket",
                shown,
                format!("the daemon answers with an error: {}", status.message()),
                "look into its log",
            ),
            None,
        ),
        Err(_) => (
            Finding::failure(
                "socket",
                shown,
                "the daemon accepts and does not answer",
                "it hangs: look into its log, then restart it",
            ),
            None,
        ),
    }
}

fn version(daemon: &DescribeDaemonResponse) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let role = if daemon.seed { "seed peer" } else { "peer" };
    let detail = format!("version {} ({role})", daemon.version);
    match daemon.version == ours {
        true => Finding::ok("daemon", &daemon.host_id, detail),
        false => Finding::warning(
            "daemon",
            &daemon.host_id,
            format!("{detail}, this tool is {ours}"),
            "install both from one release",
        ),
    }
}

fn not_connected(endpoint: &Path, error: &std::io::Error) -> Finding {
    let shown = endpoint.display().to_string();
    let there = std::fs::symlink_metadata(endpoint);
    let is_socket = there
        .as_ref()
        .is_ok_and(|file| file.file_type().is_socket());
    let (detail, fix) = match error.kind() {
        ErrorKind::NotFound => (
            "there is no such socket".to_owned(),
            "start a daemon (`dfdaemon`, or `systemctl start dfdaemon`), or name its socket with --endpoint".to_owned(),
        ),
        ErrorKind::ConnectionRefused if is_socket => (
            "nobody listens on it: its daemon has ended".to_owned(),
            "start the daemon again, and look into its log for why it ended".to_owned(),
        ),
        ErrorKind::PermissionDenied => {
            let group = there.map_or("its group".to_owned(), |file| format!("group {}", file.gid()));
            (
                "this user may not connect to it".to_owned(),
                format!("become a member of {group}, or have download.server.socketGroup set to one of yours"),
            )
        }
        _ => (
            error.to_string(),
            "name the daemon's socket with --endpoint".to_owned(),
        ),
    };
    Finding::failure("socket", shown, detail, fix)
}
