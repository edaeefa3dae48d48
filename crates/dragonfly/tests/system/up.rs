//! `dragonfly up` as a user runs it: everything serves within half a second, and a taken port is told by name.

use std::net::TcpListener;
use std::time::Duration;

use crate::run::Run;
use rustix::process::Signal;

/// A data folder whose services listen on free ports of one loopback address, below the folder of the run.
fn data_folder(ip: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("df").tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // Held until all are chosen: a port that is let go may be handed out again at once.
    let mut held = Vec::new();
    let mut free = || {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        held.push(listener);
        addr
    };
    let (grpc, rest, scheduler) = (free(), free(), free());
    let manager_yaml = format!(
        "server: {{grpc: {{listenIP: {ip}, port: {{start: {}}}}}, rest: {{addr: '{rest}'}}}}\ndatabase: {{url: 'sqlite://{}/m.db'}}\n",
        grpc.port(),
        data.display()
    );
    let scheduler_yaml = format!(
        "server: {{listenIP: {ip}, advertiseIP: {ip}, port: {}, dataDir: {}/scheduler}}\nmanager: {{addr: '{grpc}'}}\n",
        scheduler.port(),
        data.display()
    );
    let (tcp, quic) = (free().port(), free().port());
    let server = |name: &str| {
        format!(
            "{name}: {{server: {{ip: {ip}, port: {}}}}}\n",
            free().port()
        )
    };
    let daemon_yaml = format!(
        "host: {{ip: {ip}, hostname: up}}\nmanager: {{addr: 'http://{grpc}'}}\nseedPeer: {{enable: true}}\n\
         server: {{cacheDir: {data}/cache, pluginDir: {data}/plugins}}\n\
         storage: {{dir: {data}/pieces, server: {{ip: {ip}, tcpPort: {}, quicPort: {}}}}}\n\
         download: {{server: {{socketPath: {data}/d.sock}}}}\n{}",
        tcp,
        quic,
        ["upload", "metrics", "health", "stats", "proxy"]
            .map(server)
            .concat(),
        data = data.display(),
    );
    for (name, text) in [
        ("manager", manager_yaml),
        ("scheduler", scheduler_yaml),
        ("dfdaemon", daemon_yaml),
    ] {
        std::fs::write(data.join(format!("{name}.yaml")), text).unwrap();
    }
    folder
}

fn up(folder: tempfile::TempDir) -> Run {
    let data = folder.path().join("data").display().to_string();
    Run::start_in(folder, &["up", "--data-dir", &data])
}

#[test]
fn it_serves_soon_and_stops_when_told() {
    let mut run = up(data_folder("127.0.0.4"));
    let line = run.line_with("Dragonfly serves after");
    let millis: u64 = line.split(' ').nth(3).unwrap().parse().unwrap();
    // The figure itself is bench/'s; this only catches a start that waits for something.
    assert!(millis < 10_000, "{line}");
    assert!(
        run.line_with("add a host")
            .contains("manager:\\n  addr: http://127.0.0.4:")
    );
    assert!(std::os::unix::net::UnixStream::connect(run.folder().join("data/d.sock")).is_ok());
    run.signal(Signal::TERM);
    assert!(run.wait().success());
    assert_eq!(run.processes(), Vec::<String>::new());

    // What it kept is what the next start begins with.
    let mut again = up(run.into_folder());
    again.line_with("Dragonfly serves after");
    again.signal(Signal::INT);
    assert!(again.wait().success());
}

#[test]
fn a_taken_port_is_named_with_its_file_and_key() {
    let folder = data_folder("127.0.0.5");
    let taken = TcpListener::bind("127.0.0.5:0").unwrap();
    let yaml = format!(
        "server: {{grpc: {{listenIP: 127.0.0.5, port: {{start: {}}}}}}}\n",
        taken.local_addr().unwrap().port()
    );
    std::fs::write(folder.path().join("data/manager.yaml"), yaml).unwrap();
    let data = folder.path().join("data").display().to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dragonfly"))
        .args(["up", "--data-dir", &data])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    let port = taken.local_addr().unwrap().port().to_string();
    for words in [
        "manager.yaml",
        "server.grpc.port",
        &port,
        "is in use by another process",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_within_seconds() {
    let folder = data_folder("127.0.0.6");
    let yaml = "upload:\n  server:\n    port: 70000\ndownload:\n  pieceTimeout: 30\n";
    std::fs::write(folder.path().join("data/dfdaemon.yaml"), yaml).unwrap();
    let begun = std::time::Instant::now();
    let data = folder.path().join("data").display().to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dragonfly"))
        .args(["up", "--data-dir", &data])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("dfdaemon.yaml:3: upload.server.port: found \"70000\""),
        "{text}"
    );
    assert!(
        text.contains("dfdaemon.yaml:5: download.pieceTimeout: found \"30\""),
        "{text}"
    );
    assert!(begun.elapsed() < Duration::from_secs(30));
}
