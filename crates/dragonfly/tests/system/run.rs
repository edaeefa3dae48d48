//! Running the program as a user would, and looking for what it left behind.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine; a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// One run of the program, whose temporary files go to a folder of its own. All of its processes inherit that folder's name in
/// their environment, by which they are found.
pub(crate) struct Run {
    folder: tempfile::TempDir,
    child: Child,
    out: Option<Lines<BufReader<ChildStdout>>>,
}

impl Run {
    /// Starts `dragonfly` with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(
            tempfile::Builder::new().prefix("df").tempdir().unwrap(),
            arguments,
        )
    }

    /// As [`Run::start`], in the folder of an earlier run.
    pub(crate) fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        build_companions();
        let mut child = Command::new(program())
            .args(arguments)
            .env("TMPDIR", folder.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().map(|out| BufReader::new(out).lines());
        Self { folder, child, out }
    }

    /// Reads lines until one contains `words`, and gives it.
    pub(crate) fn line_with(&mut self, words: &str) -> String {
        let mut before = String::new();
        for line in self.out.as_mut().unwrap().map(Result::unwrap) {
            if line.contains(words) {
                return line;
            }
            before = before
                + &line
                + "
";
        }
        panic!(
            "the program ended without saying {words:?}; it said
{before}"
        )
    }

    /// All that is left to read.
    pub(crate) fn rest(&mut self) -> String {
        let lines: Vec<String> = self.out.take().unwrap().map(Result::unwrap).collect();
        lines.join("\n")
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the program itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// The folder for temporary files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder up to another run.
    pub(crate) fn into_folder(self) -> tempfile::TempDir {
        self.folder
    }

    /// What is in the folder for temporary files.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// Command lines of the living processes of this run.
    pub(crate) fn processes(&self) -> Vec<String> {
        let marker = format!("TMPDIR={}", self.folder().display());
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .filter(|entry| {
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == marker.as_bytes())
            })
            .map(|entry| {
                String::from_utf8_lossy(
                    &std::fs::read(entry.path().join("cmdline")).unwrap_or_default(),
                )
                .replace('\0', " ")
            })
            .collect()
    }

    /// Waits until no process of this run is left.
    pub(crate) fn assert_gone(&self) {
        until("all processes are gone", || self.processes().is_empty());
    }
}

/// Waits for a condition, with a deadline.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dragonfly"))
}

/// Cargo builds only this package's own program for its tests; the demo also starts those of two others, beside it.
fn build_companions() {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        if ["dfdaemon", "dfget"]
            .iter()
            .all(|name| program().with_file_name(name).is_file())
        {
            return;
        }
        let target = program().parent().unwrap().parent().unwrap();
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "daemon",
                "--package",
                "tools",
                "--bins",
                "--target-dir",
            ])
            .arg(target)
            .status()
            .unwrap();
        assert!(built.success(), "dfdaemon and dfget do not build");
    });
}
