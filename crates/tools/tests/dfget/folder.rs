//! Directories, and several files at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;

use crate::daemon::{Daemon, LENGTH, content};
use crate::{code, run, start, stderr};

/// Every file and folder below `root`; a folder's name ends with `/`.
fn tree(root: &Path) -> BTreeSet<String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            if path.is_dir() {
                found.insert(format!("{name}/"));
                walk(root, &path, found);
            } else {
                found.insert(name.to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(root, root, &mut found);
    found
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const WHOLE: [&str; 6] = [
    "a.json",
    "empty/",
    "sub/",
    "sub/odd näme\n%.bin",
    "sub/deep/",
    "sub/deep/b.json",
];

#[tokio::test]
async fn a_directory_comes_with_its_empty_folders_and_odd_names() {
    let daemon = Daemon::start();
    for (part, more) in [
        ("tree/", &["-O", "out"][..]),
        ("tree", &["-r", "-O", "out2", "--transfer-from-dfdaemon"]),
    ] {
        let output = run(&daemon, part, &[more, &["--json"]].concat()).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let root = daemon.path(more[more.iter().position(|&a| a == "-O").unwrap() + 1]);
        assert_eq!(tree(&root), names(&WHOLE));
        assert_eq!(
            std::fs::read(root.join("sub/odd näme\n%.bin")).unwrap(),
            content()
        );
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["ok"], true);
        assert_eq!(
            (&told["succeeded"], &told["failed"], &told["skipped"]),
            (&3.into(), &0.into(), &0.into())
        );
        assert_eq!(told["bytes"], LENGTH * 3);
        assert_eq!(told["files"][0]["url"], "http://h/tree/a.json");
        assert!(stderr(&output).contains("3 files, "), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn patterns_choose_and_exclude() {
    let daemon = Daemon::start();
    for (folder, more, expected) in [
        ("1", &["-I", "*.json"][..], &["a.json"][..]),
        (
            "2",
            &["-I", "**/*.json"],
            &["a.json", "sub/", "sub/deep/", "sub/deep/b.json"],
        ),
        (
            "3",
            &["-I", "sub/", "-X", "**/*.bin"],
            &["sub/", "sub/deep/", "sub/deep/b.json"],
        ),
        ("4", &["-X", "sub", "-X", "a.*"], &["empty/"]),
        // Paths need no listing: these are in none.
        ("5", &["-I", "x/y z", "-I", "w"], &["w", "x/", "x/y z"]),
    ] {
        let output = run(&daemon, "tree/", &[&["-O", folder], more].concat()).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(tree(&daemon.path(folder)), names(expected), "{more:?}");
    }
    // A path may be that of a directory, which comes with all in it.
    let more = ["-O", "7", "-I", "x/folder", "-I", "w", "-X", "**/b"];
    let output = run(&daemon, "tree/", &more).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let expected = names(&["w", "x/", "x/folder/", "x/folder/a"]);
    assert_eq!(tree(&daemon.path("7")), expected);
    for pattern in ["../x", "/x", "[", "a/./b"] {
        let output = run(&daemon, "tree/", &["-O", "6", "-I", pattern]).await;
        assert_ne!(code(&output), 0, "{pattern}");
        assert!(stderr(&output).contains("pattern"), "{}", stderr(&output));
    }
    assert!(!daemon.path("6").exists());
}

#[tokio::test]
async fn a_hostile_listing_is_refused_whole() {
    let daemon = Daemon::start();
    std::fs::create_dir(daemon.path("in")).unwrap();
    for part in ["climbs/", "hidden/", "elsewhere/"] {
        let output = run(&daemon, part, &["-O", "in/out", "--json"]).await;
        assert_eq!(code(&output), 1, "{part}: {}", stderr(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["ok"], false);
        assert!(
            told["error"]
                .as_str()
                .unwrap()
                .contains("the listing holds"),
            "{told}"
        );
    }
    assert!(daemon.asked().is_empty());
    assert_eq!(tree(daemon.folder.path()), names(&["d.sock", "in/"]));
}

#[tokio::test]
async fn a_name_that_no_file_can_have_can_be_excluded() {
    let daemon = Daemon::start();
    let output = run(&daemon, "odd/", &["-O", "out"]).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("leave it out with --exclude-files"));
    let output = run(
        &daemon,
        "odd/",
        &["-O", "out", "-X", "double", "-X", "[!o]*"],
    )
    .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("out")), names(&["ok"]));
}

#[tokio::test]
async fn nothing_is_written_through_a_link_in_the_folder() {
    let daemon = Daemon::start();
    std::fs::create_dir_all(daemon.path("out")).unwrap();
    std::fs::create_dir(daemon.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(daemon.path("elsewhere"), daemon.path("out/sub")).unwrap();
    let output = run(&daemon, "tree/", &["-O", "out"]).await;
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(tree(&daemon.path("elsewhere")).is_empty());
}

#[tokio::test]
async fn a_link_in_place_of_a_file_is_replaced_and_never_followed() {
    let daemon = Daemon::start();
    std::fs::create_dir(daemon.path("out")).unwrap();
    for more in ["--no-progress", "--transfer-from-dfdaemon"] {
        for target in ["elsewhere", "nowhere"] {
            std::fs::write(daemon.path("elsewhere"), "theirs").unwrap();
            let link = daemon.path("out/a.json");
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(daemon.path(target), &link).unwrap();
            let arguments = ["-O", "out", "-I", "*.json", more];
            let output = run(&daemon, "tree/", &arguments).await;
            assert_eq!(code(&output), 1, "{}", stderr(&output));
            assert!(stderr(&output).contains("a symbolic link is in its place"));
            assert!(link.is_symlink());

            let output = run(
                &daemon,
                "tree/",
                &[&arguments[..], &["--overwrite"]].concat(),
            )
            .await;
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert!(!link.is_symlink());
            assert_eq!(std::fs::read(&link).unwrap(), content());
            assert_eq!(std::fs::read(daemon.path("elsewhere")).unwrap(), b"theirs");
            assert!(!daemon.path("nowhere").exists());
        }
    }
}

#[tokio::test]
async fn failures_are_listed_and_the_others_are_there() {
    let daemon = Daemon::start();
    let output = run(&daemon, "partly/", &["-O", "out", "--json"]).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("out")), names(&["a", "z"]));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["ok"], &told["exit_code"]),
        (&false.into(), &1.into())
    );
    assert_eq!(
        (&told["succeeded"], &told["failed"]),
        (&2.into(), &1.into())
    );
    let failed = &told["files"][1];
    assert_eq!(failed["url"], "http://h/partly/missing");
    assert_eq!(
        (&failed["exit_code"], &failed["status_code"]),
        (&4.into(), &404.into())
    );
    let said = stderr(&output);
    assert!(
        said.contains("dfget: http://h/partly/missing: ") && said.contains("; 1 failed"),
        "{said}"
    );

    let more = [
        "-O",
        "fast",
        "--fail-fast",
        "--max-concurrent-requests",
        "1",
        "--json",
    ];
    let output = run(&daemon, "partly/", &more).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("fast")), names(&["a"]));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["skipped"], 1);
}

#[tokio::test]
async fn a_thousand_files_use_one_connection_and_few_lines() {
    let daemon = Daemon::start();
    let output = run(&daemon, "many/", &["-O", "out"]).await;
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("1000 files, which is more than --max-files 100"),
        "{}",
        stderr(&output)
    );
    assert!(!daemon.path("out").exists());

    let output = run(&daemon, "many/", &["-O", "out", "--max-files", "1000"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("out")).len(), 1000);
    assert_eq!(daemon.connections(), 2, "one for each call of dfget");
    assert!(stderr(&output).lines().count() < 20, "{}", stderr(&output));
}

#[tokio::test]
async fn several_urls_go_into_one_folder() {
    let daemon = Daemon::start();
    let output = run(&daemon, "one", &["http://h/x/two", "-O", "out/"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("out")), names(&["one", "two"]));

    let output = run(&daemon, "tree", &["http://h/x/partly", "-r", "-O", "dirs"]).await;
    assert_eq!(code(&output), 1);
    let found = tree(&daemon.path("dirs"));
    assert!(
        found.contains("tree/a.json") && found.contains("partly/z"),
        "{found:?}"
    );

    for (more, told) in [
        (&["http://h/x/one", "-O", "o"][..], "would both become"),
        (&["http://h/two", "-O", "-"], "standard output"),
        (
            &["http://h/two", "-O", "o", "--digest", "crc32:1"],
            "--digest",
        ),
        (
            &["-r", "-O", "o", "--content-for-calculating-task-id", "x"],
            "one task",
        ),
    ] {
        let output = run(&daemon, "one", more).await;
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
        assert!(!daemon.path("o").exists());
    }
}

#[tokio::test]
async fn a_listing_that_fails_says_so() {
    let daemon = Daemon::start();
    let output = run(&daemon, "refused/", &["-O", "out"]).await;
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("lists no directories"),
        "{}",
        stderr(&output)
    );
    // An empty directory is no failure, and the folder is there afterwards.
    for (part, more, told) in [
        ("nothing/", &[][..], "http://h/nothing/ is empty"),
        ("tree/", &["-X", "*"], "--exclude-files leaves nothing"),
    ] {
        let output = run(&daemon, part, &[&["-O", "out", "--json"], more].concat()).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(json["note"].as_str().unwrap().contains(told), "{json}");
        assert!(daemon.path("out").is_dir());
    }
}

#[tokio::test]
async fn nothing_found_is_told() {
    let daemon = Daemon::start();
    let output = run(&daemon, "tree/", &["-O", "out", "-I", "*.jsn"]).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("correct the patterns"));
    let ended = Command::new(env!("CARGO_BIN_EXE_dfget"))
        .args(["s3://bucket/prefix/", "-O", "out", "-e"])
        .arg(&daemon.socket)
        .current_dir(daemon.folder.path())
        .output();
    let output = ended.await.unwrap();
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing is at s3://bucket/prefix/"));
    assert!(!daemon.path("out").exists());
}

#[tokio::test]
async fn interrupting_many_keeps_what_is_whole_and_no_torso() {
    let daemon = Daemon::start();
    let more = ["http://h/hang", "-O", "out", "--transfer-from-dfdaemon"];
    let child = start(&daemon, "good", &more);
    let end = Instant::now() + Duration::from_secs(10);
    while daemon.asked().len() < 2 || !daemon.path("out/good").exists() {
        assert!(Instant::now() < end, "dfget asks for both");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let pid = child.id().unwrap().to_string();
    let killed = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(killed.await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(5), child.wait_with_output());
    let output = ended.await.expect("a signal ends it").unwrap();
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    assert_eq!(tree(&daemon.path("out")), names(&["good"]));
    assert_eq!(std::fs::read(daemon.path("out/good")).unwrap(), content());
}
