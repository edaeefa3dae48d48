//! One process of a plugin and the bytes on its streams.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::message::{Hello, PROTOCOL, Reply};

/// Longest line that a plugin may write. A listing comes in as many lines as it likes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Most content bytes behind one line, and so what one process may make us hold.
const FRAME_BYTES_MAX: u64 = 1 << 20;
/// Read from the pipe at once, which holds 64 KiB.
const BUFFER_LEN: usize = 64 << 10;
/// Tries to start a file that is being written, and the pause between them.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Longest line of its error stream that is logged; the rest of the line is left out.
const LOG_LINE_MAX: usize = 1024;
/// How long the last words of a process that has ended are waited for. They are there by then; only a process that it has left
/// behind can hold the stream open for longer.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// A process that has said hello. Killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Content bytes of the frame being read.
    frame_rest: u64,
    // Behind the streams, so that they are closed first and a plugin that is fast enough ends by itself.
    _child: Child,
    /// Passes on its error stream until that ends, which may be long after the process when others hold it too; so it ends with us.
    log: AbortOnDropHandle<()>,
}

/// What a process did wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    #[error("cannot be started ({0}): try to run it in a shell")]
    Start(std::io::Error),
    #[error("said nothing for {}: it hangs", humantime::format_duration(*limit))]
    Hangs { limit: Duration },
    #[error(
        "ended in the middle ({0}): see the log of this daemon for what it wrote to its error stream"
    )]
    Ended(String),
    #[error("{0}")]
    Senseless(String),
    #[error("could not be started a moment ago and is tried again in {}", humantime::format_duration(Duration::from_millis(u64::try_from(rest.as_millis()).unwrap_or(0))))]
    Paused { rest: Duration },
}

impl Process {
    /// Starts the program and waits for its hello.
    pub(super) async fn start(file: &Path, limit: Duration) -> Result<Self, ProcessError> {
        let mut child = spawn(file).await.map_err(ProcessError::Start)?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
            return Err(ProcessError::Ended("it has no streams".to_owned()));
        };
        let log = tokio::spawn(log(file.display().to_string(), stderr));
        let mut process = Self {
            stdin,
            stdout: BufReader::with_capacity(BUFFER_LEN, stdout),
            frame_rest: 0,
            _child: child,
            log: AbortOnDropHandle::new(log),
        };
        let line = process.line(limit).await?;
        let hello: Hello = serde_json::from_slice(&line).map_err(|error| {
            ProcessError::Senseless(format!("did not say hello ({error}): its first line must be {{\"protocol\":\"{PROTOCOL}\"}}"))
        })?;
        if hello.protocol != PROTOCOL {
            let other: String = hello.protocol.chars().take(64).collect();
            return Err(ProcessError::Senseless(format!(
                "speaks {other:?}, this daemon speaks {PROTOCOL}"
            )));
        }
        Ok(process)
    }

    /// Sends a request and reads the first line of the answer.
    pub(super) async fn ask(
        &mut self,
        line: &[u8],
        limit: Duration,
    ) -> Result<Reply, ProcessError> {
        let sent = timeout(limit, async {
            self.stdin.write_all(line).await?;
            self.stdin.flush().await
        });
        match sent.await {
            Ok(Ok(())) => self.reply(limit).await,
            Ok(Err(error)) => {
                self.after_last_words(Err(ProcessError::Ended(error.to_string())))
                    .await
            }
            Err(_) => Err(ProcessError::Hangs { limit }),
        }
    }

    /// The next line.
    pub(super) async fn reply(&mut self, limit: Duration) -> Result<Reply, ProcessError> {
        let line = self.line(limit).await?;
        parsed(&line)
    }

    /// The next content bytes, `None` at their end. Waits without limit: the body has one.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, ProcessError> {
        let data = self.next_data().await;
        self.after_last_words(data).await
    }

    async fn next_data(&mut self) -> Result<Option<Bytes>, ProcessError> {
        while self.frame_rest == 0 {
            match parsed(&bounded_line(&mut self.stdout).await?)? {
                Reply::Data(length) if length <= FRAME_BYTES_MAX => self.frame_rest = length,
                Reply::Data(length) => {
                    return Err(ProcessError::Senseless(format!(
                        "sends {length} bytes in one frame, the limit is {FRAME_BYTES_MAX}"
                    )));
                }
                Reply::End => return Ok(None),
                Reply::Error(error) => {
                    return Err(ProcessError::Senseless(format!("gave up: {error:?}")));
                }
                _ => {
                    return Err(ProcessError::Senseless(
                        "wrote a line that does not belong to a content".to_owned(),
                    ));
                }
            }
        }
        let wanted = usize::try_from(self.frame_rest)
            .unwrap_or(BUFFER_LEN)
            .min(BUFFER_LEN);
        let mut buffer = vec![0; wanted];
        let read = self.stdout.read(&mut buffer).await;
        let read = read.map_err(|error| ProcessError::Ended(error.to_string()))?;
        if read == 0 {
            return Err(ended());
        }
        buffer.truncate(read);
        self.frame_rest -= read as u64;
        Ok(Some(buffer.into()))
    }

    async fn line(&mut self, limit: Duration) -> Result<Vec<u8>, ProcessError> {
        let line = timeout(limit, bounded_line(&mut self.stdout)).await;
        let line = line.unwrap_or(Err(ProcessError::Hangs { limit }));
        self.after_last_words(line).await
    }

    /// Lets what a process that has ended wrote to its error stream into the log, where the error sends its reader.
    async fn after_last_words<T>(
        &mut self,
        outcome: Result<T, ProcessError>,
    ) -> Result<T, ProcessError> {
        if matches!(outcome, Err(ProcessError::Ended(_))) && !self.log.is_finished() {
            // It counts as ended either way.
            let _ = timeout(LAST_WORDS_MAX, &mut self.log).await;
        }
        outcome
    }
}

async fn spawn(file: &Path) -> std::io::Result<Child> {
    let mut tries = 0;
    loop {
        let spawned = Command::new(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal is the daemon's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        match spawned {
            // Somebody still has it open for writing, for an instant as a rule.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

fn ended() -> ProcessError {
    ProcessError::Ended("it closed its output".to_owned())
}

fn parsed(line: &[u8]) -> Result<Reply, ProcessError> {
    serde_json::from_slice(line).map_err(|error| {
        let shown: String = String::from_utf8_lossy(line).chars().take(80).collect();
        ProcessError::Senseless(format!("wrote {shown:?}, which is no answer: {error}"))
    })
}

/// A line without its end; too long a line is an error before it is held.
async fn bounded_line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>, ProcessError> {
    let mut line = Vec::new();
    loop {
        let held = stream.fill_buf().await;
        let held = held.map_err(|error| ProcessError::Ended(error.to_string()))?;
        if held.is_empty() {
            return Err(ended());
        }
        let end = held.iter().position(|byte| *byte == b'\n');
        let part = &held[..end.unwrap_or(held.len())];
        if line.len() + part.len() > LINE_BYTES_MAX {
            return Err(ProcessError::Senseless(format!(
                "wrote a line of more than {LINE_BYTES_MAX} bytes"
            )));
        }
        line.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        stream.consume(used);
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Passes on what a plugin writes to its error stream.
async fn log(plugin: String, stderr: ChildStderr) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        let Ok(held) = stderr.fill_buf().await else {
            return;
        };
        if held.is_empty() {
            if !line.is_empty() {
                info!(plugin, "{}", String::from_utf8_lossy(&line));
            }
            return;
        }
        let end = held.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(held.len(), |end| end + 1);
        let room = LOG_LINE_MAX - line.len();
        line.extend_from_slice(&held[..end.unwrap_or(held.len()).min(room)]);
        stderr.consume(used);
        if end.is_some() {
            info!(plugin, "{}", String::from_utf8_lossy(&line));
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A process of a shell script that says hello and goes on with `body`, and the folder that it runs in.
    async fn started(body: &str) -> (Process, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plugin.sh");
        let place = folder.path().display();
        let script = format!("#!/bin/sh\ncd '{place}'\n{body}\n")
            .replace("HELLO", &format!("echo '{{\"protocol\":\"{PROTOCOL}\"}}'"));
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        (Process::start(&file, LIMIT).await.unwrap(), folder)
    }

    #[tokio::test]
    async fn the_log_ends_with_the_process_even_if_others_hold_its_error_stream() {
        // What it starts lives on, with the error stream that it got from it.
        let (process, folder) = started("sleep 300 >/dev/null & echo $! >left\nHELLO\ncat").await;
        let log = process.log.abort_handle();
        assert!(!log.is_finished());
        drop(process);
        let deadline = Instant::now() + LIMIT;
        while !log.is_finished() {
            assert!(Instant::now() < deadline, "the log goes on");
            tokio::task::yield_now().await;
        }
        let left = std::fs::read_to_string(folder.path().join("left")).unwrap();
        let killed = std::process::Command::new("kill").arg(left.trim()).status();
        assert!(killed.unwrap().success(), "it did not live on");
    }

    #[tokio::test]
    async fn the_last_words_are_in_the_log_when_the_end_is_told() {
        let (mut process, _folder) =
            started("HELLO\nread line\nhead -c 40000 /dev/zero >&2\nprintf 'no more' >&2\nexit 1")
                .await;
        let error = process.ask(b"{}\n", LIMIT).await.unwrap_err();
        assert!(matches!(error, ProcessError::Ended(_)), "{error}");
        assert!(process.log.is_finished());
    }

    #[tokio::test]
    async fn who_holds_the_error_stream_of_a_process_that_ended_delays_the_error_a_little_only() {
        let (mut process, folder) =
            started("HELLO\nread line\nsleep 300 >/dev/null & echo $! >left\nexit 1").await;
        let error = process.ask(b"{}\n", LIMIT).await.unwrap_err();
        assert!(matches!(error, ProcessError::Ended(_)), "{error}");
        assert!(!process.log.is_finished());
        let left = std::fs::read_to_string(folder.path().join("left")).unwrap();
        let killed = std::process::Command::new("kill").arg(left.trim()).status();
        assert!(killed.unwrap().success());
    }
}
