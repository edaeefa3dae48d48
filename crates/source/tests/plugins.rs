//! Plugins: the one that the repository ships, and some that misbehave.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::{ByteRange, EntryFilter, EntryPlan};
use source::{Get, ListLimits, PluginLimits, Request, SourceError, Sources, plugin};
use tempfile::TempDir;

const HELLO: &str = r#"echo '{"protocol":"dragonfly-origin/1"}'"#;

/// A folder with a plugin of this script, named `bad.sh`.
fn folder_with(name: &str, script: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    (folder, file)
}

fn shell(body: &str) -> String {
    format!("#!/bin/sh\n{body}\n")
}

fn limits() -> PluginLimits {
    let mut limits = PluginLimits::default();
    limits.hello = Duration::from_secs(60);
    limits.answer = Duration::from_secs(60);
    limits.idle = Duration::from_secs(60);
    limits
}

async fn load(folder: &Path, limits: PluginLimits) -> Sources {
    let mut sources = Sources::empty();
    for plugin in plugin::load(folder, limits).await.unwrap() {
        sources.register(Arc::new(plugin));
    }
    sources
}

async fn refused(folder: &Path) -> String {
    let mut limits = limits();
    limits.hello = Duration::from_millis(500);
    plugin::load(folder, limits).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_example_serves_files_ranges_and_listings() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("dir/empty")).unwrap();
    let whole: Vec<u8> = (0..700_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    std::fs::write(tree.path().join("dir/a b%ä.bin"), &whole).unwrap();
    std::fs::write(tree.path().join("dir/none"), b"").unwrap();
    // The example reads its root from the environment, which only a script of ours can set without touching that of the tests.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/plugins/file-tree.py");
    let script = shell(&format!(
        "FILE_TREE_ROOT='{}' exec python3 '{}'",
        tree.path().display(),
        example.display()
    ));
    let (folder, _) = folder_with("file-tree.sh", &script);
    let sources = load(folder.path(), limits()).await;
    let request = |path: &str| Request::new(&format!("file-tree:///{path}")).unwrap();

    let file = request("dir/a%20b%25%C3%A4.bin");
    let facts = sources.stat(&file).await.unwrap();
    assert_eq!(facts.content_length, Some(700_000));
    let read = sources.get(&file, Get::whole()).await.unwrap();
    assert_eq!(read.body.collect(1 << 20).await.unwrap(), whole);
    let version = facts.version;
    // More at once than there are processes, again and again.
    let reads = (0..40_u64).map(|n| {
        let range = ByteRange {
            start: n * 17_000,
            length: 17_000,
        };
        let get = Get::range(range).of_version(version.clone());
        let (sources, file) = (&sources, &file);
        async move {
            sources
                .get(file, get)
                .await
                .unwrap()
                .body
                .collect(17_000)
                .await
                .unwrap()
        }
    });
    let parts = futures::future::join_all(reads).await;
    assert_eq!(parts.concat(), whole[..680_000]);
    let empty = sources
        .get(&request("dir/none"), Get::prefix(10))
        .await
        .unwrap();
    assert!(empty.body.collect(0).await.unwrap().is_empty());

    let error = sources.stat(&request("dir/missing")).await.unwrap_err();
    assert_eq!(error.status_code(), Some(404));
    assert!(!sources.exists(&request("dir/missing")).await.unwrap());
    let error = sources
        .stat(&request("%2e%2e%2fetc/passwd"))
        .await
        .unwrap_err();
    assert_eq!(error.status_code(), Some(403), "{error}");

    let folder = request("dir/");
    let entries = sources.list(&folder, ListLimits::default()).await.unwrap();
    let listed: Vec<_> = entries
        .iter()
        .map(|entry| (entry.url.as_str(), entry.is_dir))
        .collect();
    let plan = EntryPlan::new(folder.url.as_str(), listed, &EntryFilter::everything()).unwrap();
    assert_eq!(plan.directories[0].as_str(), "empty");
    let files: Vec<_> = plan.files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(files, ["a b%ä.bin", "none"]);

    let shallow = |depth| ListLimits {
        depth,
        ..ListLimits::default()
    };
    let above = request("");
    assert!(sources.list(&above, shallow(2)).await.is_ok());
    let error = sources.list(&above, shallow(1)).await.unwrap_err();
    assert!(error.to_string().contains("more than 1 levels"), "{error}");

    std::fs::write(tree.path().join("dir/a b%ä.bin"), b"other").unwrap();
    let range = ByteRange {
        start: 0,
        length: 4,
    };
    let error = sources
        .get(&file, Get::range(range).of_version(version))
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_plugin_that_is_none_stops_the_start() {
    for (name, script, reason) in [
        ("silent.sh", shell("sleep 60"), "said nothing for 500ms"),
        ("gone.sh", shell("exit 3"), "ended in the middle"),
        ("rude.sh", shell("echo hi; cat"), "did not say hello"),
        (
            "old.sh",
            shell(r#"echo '{"protocol":"dragonfly-origin/0"}'; cat"#),
            "this daemon speaks",
        ),
        (
            "no_program.sh",
            "#!/no/such/program\n".to_owned(),
            "is no URL scheme",
        ),
        (
            "lost.sh",
            "#!/no/such/program\n".to_owned(),
            "cannot be started",
        ),
        ("Upper.sh", shell(HELLO), "is no URL scheme"),
        ("libfoo.so", shell(HELLO), "is a shared library"),
    ] {
        let (folder, file) = folder_with(name, &script);
        let error = refused(folder.path()).await;
        assert!(error.contains(reason), "{name}: {error}");
        assert!(error.contains(&*file.to_string_lossy()), "{error}");
    }
    let (folder, file) = folder_with("plain.sh", &shell(HELLO));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(refused(folder.path()).await.contains("chmod +x"));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::copy(&file, folder.path().join("plain.py")).unwrap();
    assert!(refused(folder.path()).await.contains("remove one of them"));

    let nothing = tempfile::tempdir().unwrap();
    std::fs::write(nothing.path().join(".gitkeep"), b"").unwrap();
    assert!(
        plugin::load(nothing.path(), limits())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        plugin::load(&nothing.path().join("absent"), limits())
            .await
            .unwrap()
            .is_empty()
    );
}

/// What becomes of `get` when the plugin answers it with this.
async fn answered(answer: &str, limits: PluginLimits) -> Result<Vec<u8>, SourceError> {
    let script = shell(&format!("{HELLO}\nread line\n{answer}"));
    let (folder, _) = folder_with("bad.sh", &script);
    let sources = load(folder.path(), limits).await;
    let request = Request::new("bad://h/f").unwrap();
    let content = sources.get(&request, Get::whole()).await?;
    content.body.collect(1 << 22).await
}

#[tokio::test]
async fn a_plugin_that_misbehaves_costs_the_operation_and_nothing_else() {
    let facts = r#"echo '{"facts":{"content_length":3}}'"#;
    for (answer, reason) in [
        ("exit 1", "ended in the middle"),
        ("echo nonsense; cat", "which is no answer"),
        (
            "head -c 2000000 /dev/zero; cat",
            "a line of more than 1048576 bytes",
        ),
        ("echo '{\"end\":true}'; cat", "answered something else"),
    ] {
        let error = answered(answer, limits()).await.unwrap_err();
        assert!(matches!(error, SourceError::Plugin { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    for (answer, reason) in [
        (
            "echo '{\"data\":2}'; printf ab; exit 0",
            "it closed its output",
        ),
        (
            "echo '{\"data\":2}'; printf ab; echo '{\"end\":true}'; cat",
            "the body ended",
        ),
        (
            "echo '{\"data\":3}'; printf abc; echo '{\"data\":1}'; printf d; cat",
            "more than it promised",
        ),
        ("echo '{\"data\":9000000000}'; cat", "the limit is 1048576"),
        ("echo '{\"error\":{\"kind\":\"busy\"}}'; cat", "gave up"),
        (
            "echo '{\"entries\":[]}'; cat",
            "does not belong to a content",
        ),
    ] {
        let error = answered(&format!("{facts}\n{answer}"), limits())
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::Interrupted { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{answer}: {error}");
    }
    let whole = answered(
        &format!("{facts}\necho '{{\"data\":3}}'; printf abc; echo '{{\"end\":true}}'; cat"),
        limits(),
    )
    .await;
    assert_eq!(whole.unwrap(), b"abc");
    let mut hasty = limits();
    hasty.answer = Duration::from_millis(300);
    hasty.idle = Duration::from_millis(300);
    for answer in ["sleep 60".to_owned(), format!("{facts}\nsleep 60")] {
        let error = answered(&answer, hasty).await.unwrap_err();
        assert!(matches!(error, SourceError::Stalled { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_plugin_that_falls_is_started_anew_and_one_that_cannot_be_is_left_alone_for_a_while() {
    // Every process serves one operation and is gone.
    let answer = r#"read line; echo '{"facts":{"content_length":7}}'"#;
    let (folder, file) = folder_with("brief.sh", &shell(&format!("{HELLO}\n{answer}")));
    let sources = load(folder.path(), limits()).await;
    let request = Request::new("brief://h/f").unwrap();
    for _ in 0..5 {
        assert_eq!(
            sources.stat(&request).await.unwrap().content_length,
            Some(7)
        );
    }
    std::fs::remove_file(&file).unwrap();
    // What still lies idle may serve one more.
    let mut errors = Vec::new();
    for _ in 0..8 {
        if let Err(error) = sources.stat(&request).await {
            errors.push(error.to_string());
        }
    }
    assert!(errors[0].contains("cannot be started"), "{errors:?}");
    assert!(errors[1].contains("tried again in"), "{errors:?}");
}
