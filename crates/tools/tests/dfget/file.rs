//! One file.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::daemon::{Daemon, LENGTH, PIECE_LENGTH, RANGE, content};
use crate::{code, run, start, stderr};

fn sha256_of(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn sha256_of_content() -> String {
    sha256_of(&content())
}

#[tokio::test]
async fn the_daemon_writes_the_output_and_dfget_tells_how_it_went() {
    let daemon = Daemon::start();
    let output = run(&daemon, "good", &["-O", "out", "--json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(daemon.path("out")).unwrap(), content());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["ok"], true);
    assert_eq!(told["task_id"], "a-task");
    assert_eq!(told["bytes"], LENGTH);
    assert_eq!(told["bytes_from"]["origin"], PIECE_LENGTH);
    assert_eq!(told["bytes_from"]["seed"], PIECE_LENGTH);
    assert_eq!(told["bytes_from"]["peers"], PIECE_LENGTH + 17);
    let line = stderr(&output);
    assert!(
        line.contains("293.0 KiB in ") && line.contains("from peers 33 %"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    let asked = &daemon.asked()[0];
    assert!(!asked.need_piece_content);
    assert_eq!(
        asked.output_path.as_deref(),
        Some(daemon.path("out").canonicalize().unwrap().to_str().unwrap())
    );
}

#[tokio::test]
async fn standard_output_gets_the_bytes_in_order() {
    let daemon = Daemon::start();
    for part in ["good", "reverse"] {
        let output = run(
            &daemon,
            part,
            &["-O", "-", "--digest", &sha256_of_content(), "--json"],
        )
        .await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(output.stdout == content(), "{part}");
        let json = stderr(&output).lines().last().unwrap().to_owned();
        let told: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            format!("sha256:{}", told["sha256"].as_str().unwrap()),
            sha256_of_content()
        );
    }
    let output = run(
        &daemon,
        "damaged",
        &["-O", "-", "--digest", &sha256_of_content()],
    )
    .await;
    assert_eq!(code(&output), 6, "{}", stderr(&output));
}

#[tokio::test]
async fn dfget_writes_the_file_itself_when_told_or_when_the_daemon_cannot() {
    let daemon = Daemon::start();
    let output = run(
        &daemon,
        "reverse",
        &[
            "-O",
            "own",
            "--transfer-from-dfdaemon",
            "--digest",
            &sha256_of_content(),
        ],
    )
    .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(daemon.path("own")).unwrap(), content());
    assert!(daemon.asked()[0].need_piece_content && daemon.asked()[0].output_path.is_none());

    let output = run(&daemon, "elsewhere", &["-O", "out"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("over the socket instead"),
        "{}",
        stderr(&output)
    );
    assert_eq!(std::fs::read(daemon.path("out")).unwrap(), content());

    let output = run(
        &daemon,
        "damaged",
        &[
            "-O",
            "bad",
            "--transfer-from-dfdaemon",
            "--digest",
            &sha256_of_content(),
        ],
    )
    .await;
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    let mut names: Vec<String> = std::fs::read_dir(daemon.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["d.sock", "out", "own"], "nothing else stays behind");
}

#[tokio::test]
async fn an_existing_output_is_replaced_only_on_request_and_kept_on_failure() {
    let daemon = Daemon::start();
    let out = daemon.path("out");
    std::fs::write(&out, "old").unwrap();
    std::fs::hard_link(&out, daemon.path("same")).unwrap();
    let output = run(&daemon, "good", &["-O", "out"]).await;
    assert_eq!(code(&output), 5);
    assert!(
        stderr(&output).contains("--overwrite") && daemon.asked().is_empty(),
        "{}",
        stderr(&output)
    );

    for failing in ["missing", "short", "breaks"] {
        let output = run(&daemon, failing, &["-O", "out", "--overwrite"]).await;
        assert_ne!(code(&output), 0);
        assert_eq!(std::fs::read(&out).unwrap(), b"old", "{failing}");
    }
    let output = run(
        &daemon,
        "good",
        &["-O", "out", "--overwrite", "--digest", &sha256_of_content()],
    )
    .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(&out).unwrap(), content());
    assert_eq!(
        std::fs::read(daemon.path("same")).unwrap(),
        b"old",
        "the other name of the old file keeps it"
    );
}

#[tokio::test]
async fn failures_have_exit_codes_and_say_what_to_do() {
    let daemon = Daemon::start();
    for (part, more, expected, told) in [
        (
            "missing",
            &["--json"][..],
            4,
            "the origin answered 404: no such file",
        ),
        ("blocked", &[], 1, "block list"),
        ("short", &[], 1, "1 pieces missing"),
        ("breaks", &[], 1, "disk is gone"),
        ("hang", &["--timeout", "300ms"], 7, "--timeout"),
        ("good", &["--piece-length", "1"], 2, "at least 4MiB"),
    ] {
        let arguments = [&["-O", "out"][..], more].concat();
        let output = run(&daemon, part, &arguments).await;
        assert_eq!(code(&output), expected, "{part}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(told),
            "{part}: {}",
            stderr(&output)
        );
        assert!(!daemon.path("out").exists(), "{part}");
    }
}

#[tokio::test]
async fn wrong_options_are_told_as_json_too() {
    let daemon = Daemon::start();
    let wrong = ["--timeout", "soon", "--json"];
    let output = run(&daemon, "good", &[&["-O", "out"], &wrong[..]].concat()).await;
    assert_eq!(code(&output), 2);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["ok"], &told["exit_code"]),
        (&false.into(), &2.into())
    );
    let error = told["error"].as_str().unwrap();
    assert!(
        error.starts_with("invalid value 'soon'") && !error.contains('\n'),
        "{error}"
    );

    let output = run(&daemon, "good", &[&["-O", "-"], &wrong[..]].concat()).await;
    assert!(output.stdout.is_empty());
    let line = stderr(&output).lines().last().unwrap().to_owned();
    assert!(line.starts_with("{\"ok\":false"), "{line}");

    let output = run(&daemon, "good", &["--json", "--help"]).await;
    assert!(!stderr(&output).contains("{\"ok") && code(&output) == 0);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let daemon = Daemon::start();
    for more in [&["-O", "a"][..], &["-O", "b", "--transfer-from-dfdaemon"]] {
        let output = run(&daemon, "empty", more).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(std::fs::read(daemon.path(more[1])).unwrap(), b"");
    }
    assert_eq!(code(&run(&daemon, "empty", &["-O", "-"]).await), 0);
}

#[tokio::test]
async fn without_a_daemon_one_line_names_the_command_to_run() {
    let daemon = Daemon::start();
    for socket in ["no-such.sock", "plain-file"] {
        std::fs::write(daemon.path("plain-file"), "").unwrap();
        let output = run(&daemon, "good", &["-O", "-", "-e", socket]).await;
        // The first -e is the one of the helper; a repeated option is an error of usage.
        assert_eq!(code(&output), 2);
        let ended = Command::new(env!("CARGO_BIN_EXE_dfget"))
            .args(["http://h/f", "-O", "-", "-e", socket])
            .current_dir(daemon.folder.path())
            .output();
        let output = ended.await.unwrap();
        assert_eq!(code(&output), 3);
        let line = stderr(&output);
        assert!(
            line.contains(socket) && line.contains("`dfdaemon`"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }
}

#[tokio::test]
async fn interrupting_ends_it_at_once_and_leaves_nothing() {
    let daemon = Daemon::start();
    for (more, signal, expected) in [
        (&["-O", "out"][..], "INT", 130),
        (&["-O", "out", "--transfer-from-dfdaemon"][..], "TERM", 143),
        (&["-O", "out", "--transfer-from-dfdaemon"][..], "HUP", 129),
    ] {
        let known = daemon.asked().len();
        let child = start(&daemon, "hang", more);
        let end = Instant::now() + Duration::from_secs(10);
        while daemon.asked().len() == known {
            assert!(Instant::now() < end, "dfget asks the daemon");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let pid = child.id().unwrap().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
        let ended = tokio::time::timeout(Duration::from_secs(5), child.wait_with_output());
        let output = ended.await.expect("a signal ends it").unwrap();
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted"));
        let left: Vec<_> = std::fs::read_dir(daemon.folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the socket: {left:?}");
    }
}

#[tokio::test]
async fn what_others_put_at_the_output_meanwhile_stays() {
    let daemon = Daemon::start();
    for (part, interrupted, expected) in [("slow", false, 5), ("hang", true, 130)] {
        let known = daemon.asked().len();
        let child = start(&daemon, part, &["-O", part]);
        let end = Instant::now() + Duration::from_secs(10);
        while daemon.asked().len() == known {
            assert!(Instant::now() < end, "dfget asks the daemon");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        std::fs::write(daemon.path(part), "theirs").unwrap();
        if interrupted {
            let pid = child.id().unwrap().to_string();
            let killed = Command::new("kill").args(["-s", "INT", &pid]).status();
            assert!(killed.await.unwrap().success());
        }
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(code(&output), expected, "{part}: {}", stderr(&output));
        assert_eq!(std::fs::read(daemon.path(part)).unwrap(), b"theirs");
    }
}

#[tokio::test]
async fn interrupting_works_while_nobody_reads_the_pipe() {
    let daemon = Daemon::start();
    // The pipe holds 64 KiB: the first piece blocks in it.
    let mut child = start(&daemon, "good", &["-O", "-"]);
    let unread = child.stdout.take();
    let end = Instant::now() + Duration::from_secs(10);
    while daemon.asked().is_empty() {
        assert!(Instant::now() < end, "dfget asks the daemon");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let pid = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", "INT", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let status = tokio::time::timeout(Duration::from_secs(5), child.wait())
        .await
        .expect("a signal ends it")
        .unwrap();
    assert_eq!(status.code(), Some(130));
    drop(unread);
}

#[tokio::test]
async fn the_console_tells_every_piece() {
    let daemon = Daemon::start();
    let output = run(&daemon, "good", &["-O", "out", "--console", "-l", "debug"]).await;
    let told = stderr(&output);
    assert!(
        told.contains("4 pieces") && told.contains("piece 3 of 17 bytes"),
        "{told}"
    );
}

#[tokio::test]
async fn of_a_range_nothing_else_is_written() {
    let daemon = Daemon::start();
    let header = ["-H", "Range: bytes=99995-200000"];
    for (name, more) in [
        ("by-daemon", vec![]),
        ("by-dfget", vec!["--transfer-from-dfdaemon"]),
    ] {
        let more = [&["-O", name], &header[..], &more].concat();
        let output = run(&daemon, "ranged", &more).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(std::fs::read(daemon.path(name)).unwrap(), content()[RANGE]);
    }
    for mode in ["--json", "--transfer-from-dfdaemon"] {
        for (digest, expected) in [
            (sha256_of(&content()[RANGE]), 0),
            (sha256_of(&content()), 6),
        ] {
            let more = [&["-O", "checked", "--digest", &digest, mode], &header[..]].concat();
            let output = run(&daemon, "ranged", &more).await;
            assert_eq!(code(&output), expected, "{}", stderr(&output));
            assert_eq!(daemon.path("checked").exists(), expected == 0);
            let _ = std::fs::remove_file(daemon.path("checked"));
        }
    }
    let output = run(&daemon, "ranged", &[&["-O", "-"], &header[..]].concat()).await;
    assert_eq!(
        (code(&output), &output.stdout[..]),
        (0, &content()[RANGE]),
        "{}",
        stderr(&output)
    );
}
