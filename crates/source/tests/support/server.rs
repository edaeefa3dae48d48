//! Servers that a script under `tests/servers` starts; stopped when dropped.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A running script.
pub(crate) struct Server {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// What it told when it was ready.
    pub(crate) facts: Value,
}

impl Server {
    /// One that needs nothing but Python.
    pub(crate) fn script(name: &str) -> Self {
        Self::start(Command::new("python3").arg(scripts().join(name)))
    }

    /// One of the object storages.
    pub(crate) fn objects(name: &str) -> Self {
        let python = installed("python-servers/bin/python");
        Self::start(
            Command::new(python)
                .arg(scripts().join("objects.py"))
                .arg(name),
        )
    }

    /// Hadoop's own cluster.
    pub(crate) fn hdfs() -> Self {
        let classes = format!("{}/*", installed("hadoop").display());
        Self::start(
            Command::new("java")
                .args([
                    "-Dfile.encoding=UTF-8",
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    "-cp",
                    &classes,
                ])
                .arg(scripts().join("MiniHdfs.java")),
        )
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{command:?}: {error}: run scripts/install-deps.sh test")
            });
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self {
            process,
            stdin,
            stdout,
            facts: Value::Null,
        };
        let line = server.line();
        server.facts = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{command:?} printed {line:?}: {error}"));
        server
    }

    /// A text of its facts.
    pub(crate) fn fact(&self, name: &str) -> String {
        self.facts[name].as_str().unwrap_or_default().to_owned()
    }

    /// Sends a line and returns the one that comes back.
    pub(crate) fn tell(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input lets a script stop what it has started.
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/servers")
}

fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
        PathBuf::from,
    );
    let path = cache.join("dragonfly-tests").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/test-servers.sh",
        path.display()
    );
    path
}
