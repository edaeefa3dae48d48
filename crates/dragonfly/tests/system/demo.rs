//! `dragonfly demo` as a user runs it: a small swarm that holds, and nothing left behind however it ends.

use crate::run::Run;
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

#[test]
fn a_small_swarm_holds_and_tells_so_in_json() {
    let mut run = Run::start(&[
        "demo", "--once", "--json", "--size", "64MiB", "--peers", "3",
    ]);
    let json = run.rest();
    assert!(run.wait().success(), "{json}");
    let summary: Value = serde_json::from_str(&json).unwrap();

    assert_eq!(summary["ok"], true, "{json}");
    assert_eq!(summary["file_bytes"], 64 * MIB);
    let origin_bytes = summary["origin_bytes"].as_u64().unwrap();
    assert!(
        (64 * MIB..=64 * MIB * 101 / 100).contains(&origin_bytes),
        "{json}"
    );

    let peers = summary["peers"].as_array().unwrap();
    assert_eq!(names(peers), ["peer-1", "peer-2", "peer-3"]);
    for peer in peers {
        assert!(peer["seconds"].as_f64().unwrap() > 0.0, "{json}");
        assert_eq!(peer["sha256"], peers[0]["sha256"]);
        assert_eq!(peer["sha256"].as_str().unwrap().len(), 64);
        let from = |giver: &str| peer["bytes_from"][giver].as_u64().unwrap();
        assert_eq!(
            from("origin") + from("seed") + from("peers"),
            64 * MIB,
            "{json}"
        );
    }

    let processes = summary["processes"].as_array().unwrap();
    for name in [
        "manager",
        "scheduler",
        "seed",
        "peer-1",
        "peer-2",
        "peer-3",
        "dfget peer-1",
    ] {
        let process = processes
            .iter()
            .find(|process| process["name"] == name)
            .unwrap();
        assert!(process["rss_mib_max"].as_f64().unwrap() > 0.0, "{json}");
        assert!(process["cpu_seconds"].as_f64().unwrap() >= 0.0, "{json}");
    }
    run.assert_gone();
    assert_eq!(run.files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn ctrl_c_stops_every_process_and_removes_every_file() {
    let mut run = Run::start(&["demo", "--size", "1MiB", "--peers", "2"]);
    run.line_with("The swarm keeps running");
    assert!(
        run.processes().len() >= 6,
        "the demo, a manager, a scheduler, a seed and two peers: {:?}",
        run.processes()
    );
    run.signal(Signal::INT);
    assert_eq!(run.wait().code(), Some(130));
    assert_eq!(run.processes(), Vec::<String>::new());
    assert_eq!(run.files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn ctrl_c_while_it_starts_stops_every_process_too() {
    let mut run = Run::start(&["demo", "--size", "1MiB", "--peers", "2"]);
    run.line_with("starting a manager");
    run.signal(Signal::INT);
    assert_eq!(run.wait().code(), Some(130));
    assert_eq!(run.processes(), Vec::<String>::new());
    assert_eq!(run.files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn no_process_survives_kill_9_and_the_next_demo_removes_the_files() {
    let mut run = Run::start(&["demo", "--size", "1MiB", "--peers", "1"]);
    run.line_with("the cluster serves");
    run.signal(Signal::KILL);
    assert!(!run.wait().success());
    run.assert_gone();
    assert_eq!(
        run.files().len(),
        1,
        "a killed demo cannot remove its folder"
    );

    let mut next = Run::start_in(
        run.into_folder(),
        &["demo", "--once", "--size", "1MiB", "--peers", "1"],
    );
    let text = next.rest();
    assert!(next.wait().success(), "{text}");
    assert_eq!(next.files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_url_that_nobody_serves_fails_and_says_why() {
    // Nobody listens on port 1 (tcpmux).
    let url = "http://127.0.0.3:1/file";
    let mut run = Run::start(&["demo", "--once", "--json", "--url", url, "--peers", "1"]);
    let json = run.rest();
    assert_eq!(run.wait().code(), Some(1), "{json}");
    let summary: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(summary["ok"], false);
    assert!(
        summary["errors"][0]
            .as_str()
            .unwrap()
            .starts_with("dfget on peer-1 ended"),
        "{json}"
    );
    run.assert_gone();
    assert_eq!(run.files(), Vec::<std::path::PathBuf>::new());
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect()
}
