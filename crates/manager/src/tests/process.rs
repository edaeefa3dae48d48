//! A manager as a process of its own: signals, kill -9, the command line.
//!
//! The process is this test binary, told by a variable to be a manager instead.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use dragonfly_api::manager::v2::manager_client::ManagerClient;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tonic::Code;
use tonic::transport::Channel;

use super::clients::{Beating, get_scheduler, is_active, update_scheduler};
use super::eventually;
use crate::Args;

const VARIABLE: &str = "MANAGER_TEST_ARGS";

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    args: Args,
}

/// Not a test of its own: what the child process runs.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(args) = std::env::var(VARIABLE) else {
        return;
    };
    let line = CommandLine::parse_from(std::iter::once("manager").chain(args.lines()));
    crate::execute(line.args).await.unwrap();
}

struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    client: ManagerClient<Channel>,
}

impl Process {
    async fn start(folder: &Path) -> Self {
        let config = folder.join("manager.yaml");
        let text = "
server: {grpc: {listenIP: 127.0.0.1, port: {start: 0}}, rest: {addr: '127.0.0.1:0'}}
database: {url: 'sqlite:///nowhere/manager.db'}
colour: blue
";
        std::fs::write(&config, text).unwrap();
        let args = format!("--console\n--config\n{}", config.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::process::child", "--nocapture"])
            .env(VARIABLE, args)
            .env(
                "MANAGER_DATABASE_URL",
                format!("sqlite://{}/manager.db", folder.display()),
            )
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let grpc = loop {
            let line = log
                .next_line()
                .await
                .unwrap()
                .expect("it says where it serves before it ends");
            if let Some((_, rest)) = line.split_once("manager serves grpc=") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        let client = ManagerClient::connect(format!("http://{grpc}"))
            .await
            .unwrap();
        Self { child, log, client }
    }

    async fn signal(&mut self, signal: &str) -> (std::process::ExitStatus, String) {
        let pid = self.child.id().unwrap().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
        let mut text = String::new();
        while let Some(line) = self.log.next_line().await.unwrap() {
            text.push_str(&line);
        }
        let ended = tokio::time::timeout(Duration::from_secs(15), self.child.wait()).await;
        (ended.expect("it ends within its grace").unwrap(), text)
    }
}

#[tokio::test]
async fn a_manager_process_survives_kill_9_and_ends_well_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Process::start(folder.path()).await;
    first
        .client
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    let beating = Beating::scheduler(first.client.clone(), "s");
    beating.beat().await;
    eventually("it is active", || async {
        is_active(&first.client, "s").await.then_some(())
    })
    .await;
    first.signal("-KILL").await;

    // Everything that was answered is there, and the scheduler is still offered: it will be back before anyone asks.
    let mut second = Process::start(folder.path()).await;
    let row = second
        .client
        .get_scheduler(get_scheduler("s"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((row.port, row.state.as_str()), (8002, "active"));
    second
        .client
        .update_scheduler(update_scheduler("t"))
        .await
        .unwrap();
    let beating = Beating::scheduler(second.client.clone(), "t");
    beating.beat().await;
    eventually("the new one is active", || async {
        is_active(&second.client, "t").await.then_some(())
    })
    .await;
    // An open stream does not hold the end up; its owner is told to connect again.
    let begun_at = std::time::Instant::now();
    let (status, log) = second.signal("-TERM").await;
    assert!(status.success(), "{status:?}: {log}");
    assert!(
        begun_at.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun_at.elapsed()
    );
    assert_eq!(beating.ended().await.code(), Code::Unavailable);
}
