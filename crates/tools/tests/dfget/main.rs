//! The `dfget` binary against a daemon made for the test.
#![allow(clippy::unwrap_used)]

mod daemon;
mod file;
mod folder;

use std::process::{Output, Stdio};
use std::time::Duration;

use daemon::Daemon;
use tokio::process::{Child, Command};

/// Starts `dfget http://h/PART -e SOCKET` and more arguments.
fn start(daemon: &Daemon, part: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_dfget"))
        .arg(format!("http://h/{part}"))
        .arg("-e")
        .arg(&daemon.socket)
        .args(more)
        .current_dir(daemon.folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn run(daemon: &Daemon, part: &str, more: &[&str]) -> Output {
    let ended = start(daemon, part, more).wait_with_output();
    tokio::time::timeout(Duration::from_secs(120), ended)
        .await
        .expect("dfget ends by itself")
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
