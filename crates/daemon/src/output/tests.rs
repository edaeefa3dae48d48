use super::*;
use protocol::{Crc32, DigestAlgorithm, Geometry, TaskKind, TrafficType};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use storage::{Claim, Method, NewTask, Options, PieceOrigin, Store};

const CONTENT: &[u8] = b"what the caller wanted";
const NOBODY: u32 = 65534;

struct Fixture {
    dir: tempfile::TempDir,
    task: Task,
    _store: Store,
}

/// A store with one complete task, and a folder `out` beside it that only root may use.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    let geometry = Geometry::standard(CONTENT.len() as u64).unwrap();
    let new = NewTask::new(
        "abc123".parse().unwrap(),
        TaskKind::Standard,
        "http://x/",
        geometry,
    );
    let task = store.create_task(new).unwrap().task;
    let Claim::Yours(piece) = task.claim(protocol::PieceNumber(0)).unwrap() else {
        panic!("it is missing")
    };
    piece.write(0, CONTENT).unwrap();
    let origin = PieceOrigin {
        parent: None,
        traffic: TrafficType::BackToSource,
        created_at: std::time::SystemTime::now(),
        cost: std::time::Duration::ZERO,
    };
    piece.commit(Some(Crc32::of(CONTENT)), origin).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    Fixture {
        dir,
        task,
        _store: store,
    }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    fn request(&self, name: &str) -> OutputRequest {
        OutputRequest {
            path: self.path(name),
            existing: Existing::Refuse,
            force_hard_link: false,
            digest: None,
        }
    }

    fn export(&self, request: OutputRequest, caller: Caller) -> Result<Exported, OutputError> {
        let output = Output::open(request, caller, &[])?;
        output.check(&self.task)?;
        output.place(&self.task, None)
    }

    /// What is in the folder, to see that nothing was left behind.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("out")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn give_folder_to(&self, uid: u32) {
        std::os::unix::fs::chown(self.dir.path().join("out"), Some(uid), Some(uid)).unwrap();
    }
}

fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: vec![],
    }
}

fn nobody() -> Caller {
    Caller {
        uid: NOBODY,
        gid: NOBODY,
        groups: vec![],
    }
}

/// Acting as others needs root; the checks that run without it are in the other tests.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: only the refusal is tested");
    }
    root
}

#[test]
fn the_daemons_own_user_gets_a_hard_link() {
    let fixture = fixture();
    let exported = fixture.export(fixture.request("f"), me()).unwrap();
    assert_eq!(exported.method, Method::HardLink);
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), CONTENT);
    // A second time: it is there already and is the same file.
    assert_eq!(
        fixture.export(fixture.request("f"), me()).unwrap().method,
        Method::AlreadyLinked
    );
    let forced = OutputRequest {
        force_hard_link: true,
        ..fixture.request("g")
    };
    assert_eq!(
        fixture.export(forced, me()).unwrap().method,
        Method::HardLink
    );
    assert_eq!(fixture.names(), ["f", "g"]);
}

#[test]
fn an_existing_file_stays_unless_overwriting_is_allowed() {
    let fixture = fixture();
    std::fs::write(fixture.path("f"), "mine").unwrap();
    std::fs::hard_link(fixture.path("f"), fixture.path("other name")).unwrap();
    let error = fixture.export(fixture.request("f"), me()).unwrap_err();
    assert!(matches!(error, OutputError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), b"mine");

    let over = OutputRequest {
        existing: Existing::Replace,
        ..fixture.request("f")
    };
    fixture.export(over, me()).unwrap();
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), CONTENT);
    assert_eq!(
        std::fs::read(fixture.path("other name")).unwrap(),
        b"mine",
        "replaced, not written into"
    );
    assert_eq!(fixture.names(), ["f", "other name"]);
}

#[test]
fn a_symbolic_link_is_never_followed() {
    let fixture = fixture();
    let victim = fixture.dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    symlink(&victim, fixture.path("f")).unwrap();
    assert!(matches!(
        fixture.export(fixture.request("f"), me()),
        Err(OutputError::Exists { .. })
    ));
    let over = OutputRequest {
        existing: Existing::Replace,
        ..fixture.request("f")
    };
    fixture.export(over, me()).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(!fixture.path("f").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn a_wrong_digest_leaves_nothing_behind() {
    let fixture = fixture();
    let wrong = Digest::of(DigestAlgorithm::Sha256, b"something else");
    let request = OutputRequest {
        digest: Some(wrong),
        ..fixture.request("f")
    };
    let error = fixture.export(request, me()).unwrap_err();
    assert!(matches!(error, OutputError::Digest { .. }), "{error}");
    assert!(fixture.names().is_empty());
    for algorithm in [
        DigestAlgorithm::Sha256,
        DigestAlgorithm::Sha512,
        DigestAlgorithm::Crc32,
    ] {
        let right = Digest::of(algorithm, CONTENT);
        let request = OutputRequest {
            digest: Some(right),
            ..fixture.request(&format!("{algorithm:?}"))
        };
        fixture.export(request, me()).unwrap();
    }
}

#[test]
fn a_range_becomes_a_file_of_its_own() {
    let fixture = fixture();
    let output = Output::open(fixture.request("f"), me(), &[]).unwrap();
    output
        .place(
            &fixture.task,
            Some(ByteRange {
                start: 5,
                length: 3,
            }),
        )
        .unwrap();
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), b"the");
}

#[test]
fn paths_that_are_none_are_refused() {
    let fixture = fixture();
    for path in [
        "",
        "relative",
        "/",
        "/tmp/",
        "/tmp/..",
        "/tmp/x\0y",
        &format!("/{}", "a".repeat(5000)),
    ] {
        let request = OutputRequest {
            path: path.into(),
            ..fixture.request("f")
        };
        let result = Output::open(request, me(), &[]);
        assert!(matches!(result, Err(OutputError::Path { .. })), "{path:?}");
    }
    for path in [
        "/no/such/folder/f",
        "/etc/passwd/f",
        "/proc/self/fd/0/f",
        "/proc/self/cwd/f",
        "/proc/1/root/tmp/f",
    ] {
        let request = OutputRequest {
            path: path.into(),
            ..fixture.request("f")
        };
        let result = Output::open(request, me(), &[]);
        assert!(
            matches!(result, Err(OutputError::Folder { .. })),
            "{path:?}"
        );
    }
}

#[test]
fn output_stays_below_the_allowed_roots() {
    let fixture = fixture();
    let allowed = fixture.dir.path().join("out");
    let open = |path: PathBuf| {
        let request = OutputRequest {
            path,
            ..fixture.request("f")
        };
        Output::open(request, me(), std::slice::from_ref(&allowed))
    };
    assert!(open(allowed.join("f")).is_ok());
    assert!(matches!(
        open(fixture.dir.path().join("f")),
        Err(OutputError::OutsideRoots { .. })
    ));
    assert!(matches!(
        open(allowed.join("../f")),
        Err(OutputError::OutsideRoots { .. })
    ));
    symlink(fixture.dir.path(), allowed.join("way out")).unwrap();
    assert!(matches!(
        open(allowed.join("way out/f")),
        Err(OutputError::OutsideRoots { .. })
    ));
}

#[test]
fn another_user_gets_a_file_of_its_own_where_it_may_write() {
    if !is_root() {
        let error = nobody().authority().unwrap_err();
        assert!(
            matches!(error, CallerError::OtherUser { caller: NOBODY, .. }),
            "{error}"
        );
        return;
    }
    let fixture = fixture();
    fixture.give_folder_to(NOBODY);
    let exported = fixture.export(fixture.request("f"), nobody()).unwrap();
    assert!(
        !matches!(exported.method, Method::HardLink | Method::AlreadyLinked),
        "{exported:?}"
    );
    let written = std::fs::metadata(fixture.path("f")).unwrap();
    assert_eq!((written.uid(), written.gid()), (NOBODY, NOBODY));
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), CONTENT);
    assert_eq!(fixture.names(), ["f"]);

    let forced = OutputRequest {
        force_hard_link: true,
        ..fixture.request("g")
    };
    assert!(matches!(
        fixture.export(forced, nobody()),
        Err(OutputError::HardLinkDenied { .. })
    ));
    assert_eq!(
        rustix::process::geteuid().as_raw(),
        0,
        "only the other thread's identity changed"
    );
}

#[test]
fn a_root_daemon_does_not_write_where_the_caller_could_not() {
    if !is_root() {
        return;
    }
    let fixture = fixture();
    let denied =
        |result: Result<Exported, OutputError>| matches!(result, Err(OutputError::Folder { .. }));
    assert!(
        denied(fixture.export(fixture.request("f"), nobody())),
        "the folder is root's"
    );

    // Through a symbolic link of the caller's own.
    let own = fixture.dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    symlink(fixture.dir.path().join("out"), own.join("way in")).unwrap();
    let request = OutputRequest {
        path: own.join("way in/f"),
        ..fixture.request("f")
    };
    assert!(denied(fixture.export(request, nobody())));

    // Over a file of root's in a folder with the sticky bit, as /tmp.
    std::fs::write(fixture.path("f"), "root's").unwrap();
    std::fs::set_permissions(
        fixture.dir.path().join("out"),
        PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
    let over = OutputRequest {
        existing: Existing::Replace,
        ..fixture.request("f")
    };
    assert!(denied(fixture.export(over, nobody())));
    assert_eq!(std::fs::read(fixture.path("f")).unwrap(), b"root's");
    assert_eq!(fixture.names(), ["f"]);

    // In a folder of a group that the caller is in, or is not in.
    std::fs::set_permissions(
        fixture.dir.path().join("out"),
        PermissionsExt::from_mode(0o770),
    )
    .unwrap();
    std::os::unix::fs::chown(fixture.dir.path().join("out"), Some(0), Some(4242)).unwrap();
    assert!(denied(fixture.export(fixture.request("g"), nobody())));
    let member = Caller {
        groups: vec![4242],
        ..nobody()
    };
    fixture.export(fixture.request("g"), member).unwrap();
}

#[test]
fn a_folder_exchanged_after_the_check_changes_nothing() {
    let fixture = fixture();
    let output = Output::open(fixture.request("f"), me(), &[]).unwrap();
    let moved = fixture.dir.path().join("moved");
    std::fs::rename(fixture.dir.path().join("out"), &moved).unwrap();
    let elsewhere = fixture.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, fixture.dir.path().join("out")).unwrap();
    output.place(&fixture.task, None).unwrap();
    assert!(moved.join("f").exists() && !elsewhere.join("f").exists());
}

#[test]
fn the_kernel_says_who_calls() {
    let (one, _two) = UnixStream::pair().unwrap();
    let caller = Caller::of(&one).unwrap();
    assert_eq!((caller.uid, caller.gid), (me().uid, me().gid));
    assert_eq!(caller.authority().unwrap(), Authority::AsDaemon);
}
