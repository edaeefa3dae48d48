//! Restarting a runtime, once.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::process::Command;

use super::detect::Runtime;

/// Longest time for the command that restarts; containerd takes a second, Docker with many containers a minute.
const RESTART_LIMIT: Duration = Duration::from_secs(180);
/// Longest time until the runtime serves its socket again.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the socket.
const READY_PAUSE: Duration = Duration::from_millis(100);

/// A runtime could not be restarted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestartError {
    #[error(
        "there is no systemd here: name the command that restarts {runtime} with --restart-command, or restart it yourself"
    )]
    NoSystemd { runtime: &'static str },
    #[error(
        "{runtime} runs, but none of {units} is active, so that it is not known how it was started: name the command that restarts it with --restart-command, or restart it yourself"
    )]
    NoUnit {
        runtime: &'static str,
        units: String,
    },
    #[error(
        "`{command}` failed: {reason}: the files are changed; restart {runtime} yourself, or take the changes back with `dfinit undo`"
    )]
    Failed {
        command: String,
        runtime: &'static str,
        reason: String,
    },
    #[error("{runtime} was restarted, but its socket {socket} does not answer after {} s: look into its log; `dfinit undo --restart` takes the changes back", READY_LIMIT.as_secs())]
    NotBack {
        runtime: &'static str,
        socket: String,
    },
}

/// Restarts `runtime` by `command`, else by systemd, and waits until it serves again. Returns what was run; `None` if it does
/// not run, so that it will read its files when it starts.
pub(super) async fn restart(
    runtime: &Runtime,
    command: Option<&str>,
) -> Result<Option<String>, RestartError> {
    let name = runtime.kind.name();
    let command = match command {
        Some(command) => command.to_owned(),
        None if !Path::new("/run/systemd/system").exists() => {
            return match runtime.running {
                true => Err(RestartError::NoSystemd { runtime: name }),
                false => Ok(None),
            };
        }
        None => match by_unit(runtime, active_unit(runtime.units).await)? {
            Some(command) => command,
            None => return Ok(None),
        },
    };
    run(name, &command).await?;
    if runtime.running {
        back(runtime).await?;
    }
    Ok(Some(command))
}

/// The command that restarts `runtime`, of whose units `active` is active; `None` if it does not run.
fn by_unit(runtime: &Runtime, active: Option<&str>) -> Result<Option<String>, RestartError> {
    match active {
        Some(unit) => Ok(Some(format!("systemctl restart {unit}"))),
        None if runtime.running => Err(RestartError::NoUnit {
            runtime: runtime.kind.name(),
            units: runtime.units.join(", "),
        }),
        None => Ok(None),
    }
}

async fn active_unit(units: &[&'static str]) -> Option<&'static str> {
    for unit in units {
        let asked = Command::new("systemctl")
            .args(["is-active", "--quiet", unit])
            .kill_on_drop(true)
            .status();
        if let Ok(Ok(status)) = tokio::time::timeout(RESTART_LIMIT, asked).await
            && status.success()
        {
            return Some(unit);
        }
    }
    None
}

async fn run(runtime: &'static str, command: &str) -> Result<(), RestartError> {
    let failed = |reason: String| RestartError::Failed {
        command: command.to_owned(),
        runtime,
        reason,
    };
    let started = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(RESTART_LIMIT, started).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let told = String::from_utf8_lossy(&output.stderr);
            Err(failed(
                format!("{} {}", output.status, told.trim())
                    .trim_end()
                    .to_owned(),
            ))
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!(
            "not done after {} s",
            RESTART_LIMIT.as_secs()
        ))),
    }
}

async fn back(runtime: &Runtime) -> Result<(), RestartError> {
    let begin = Instant::now();
    while UnixStream::connect(&runtime.socket).await.is_err() {
        if begin.elapsed() > READY_LIMIT {
            return Err(RestartError::NotBack {
                runtime: runtime.kind.name(),
                socket: runtime.socket.display().to_string(),
            });
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dfinit::detect::Kind;

    #[test]
    fn what_runs_by_other_means_is_not_taken_for_stopped() {
        let runtime = |running| Runtime {
            kind: Kind::Docker,
            shipped_by: None,
            version: None,
            config: "/etc/docker/daemon.json".into(),
            socket: "/run/docker.sock".into(),
            units: &["docker.service"],
            started_file: "/run/docker.pid".into(),
            running,
        };
        let told = by_unit(&runtime(true), None).unwrap_err().to_string();
        assert!(
            told.contains("docker.service") && told.contains("--restart-command"),
            "{told}"
        );
        assert!(matches!(by_unit(&runtime(false), None), Ok(None)));
        let command = by_unit(&runtime(true), Some("docker.service")).unwrap();
        assert_eq!(command.as_deref(), Some("systemctl restart docker.service"));
    }
}
