//! The processes that a demo starts: each in its own group, watched, measured, and ended whatever happens.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use runtime::process::Figures;
use tokio::process::{Child, Command};

use super::sys;

/// How long a process may take to end after SIGTERM before it is killed.
const TERM_WAIT: Duration = Duration::from_secs(5);

/// When a process is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// After all hosts, the one started last first.
    Service,
    /// First: it says goodbye to the services.
    Host,
}

/// All processes, in the order in which they were started. Dropping it kills those that are left.
#[derive(Default)]
pub(super) struct Fleet {
    members: Vec<Member>,
}

/// One process.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) log: PathBuf,
    /// The highest resident memory and the latest processor time that were seen.
    pub(super) figures: Figures,
    pub(super) started: Instant,
    rank: Rank,
    child: Child,
    ended: Option<(ExitStatus, Instant)>,
}

impl Fleet {
    /// Starts `program` as `name`, its output going to `log`. Call it on the main thread only, whose end would otherwise
    /// not be the process's (see [`sys::bind_to_this_process`]).
    pub(super) fn start(
        &mut self,
        name: &str,
        rank: Rank,
        program: &Path,
        arguments: &[String],
        log: PathBuf,
    ) -> std::io::Result<usize> {
        let output = std::fs::File::create(&log)?;
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        sys::bind_to_this_process(&mut command);
        let child = Command::from(command).kill_on_drop(true).spawn()?;
        let figures = Figures::default();
        self.members.push(Member {
            name: name.to_owned(),
            log,
            figures,
            rank,
            started: Instant::now(),
            child,
            ended: None,
        });
        Ok(self.members.len() - 1)
    }

    /// Reads how much each process uses, and which have ended.
    pub(super) fn sample(&mut self) {
        for member in &mut self.members {
            member.sample();
        }
    }

    /// Whether this process has not ended; the moment of its end is noted here first.
    pub(super) fn is_running(&mut self, index: usize) -> bool {
        self.members[index].note_end();
        self.members[index].ended.is_none()
    }

    /// The process with this index, as [`Fleet::start`] gave it.
    pub(super) fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    /// All processes.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Ends all processes at once.
    pub(super) async fn kill(&mut self) {
        for member in &self.members {
            member.signal(rustix::process::Signal::KILL);
        }
        for member in &mut self.members {
            let _ = member.child.wait().await;
        }
        self.members.clear();
    }

    /// Asks all processes to end, hosts before services, waits, and kills those that do not.
    pub(super) async fn stop(&mut self) {
        self.sample();
        // Sorting is stable: the services stay in the order in which they were started.
        self.members.sort_by_key(|member| member.rank);
        let service_count = self
            .members
            .partition_point(|member| member.rank == Rank::Service);
        end(&mut self.members[service_count..]).await;
        for index in (0..service_count).rev() {
            end(&mut self.members[index..=index]).await;
        }
        self.members.clear();
    }
}

/// Asks these processes to end, all at once, waits, and kills those that do not.
async fn end(members: &mut [Member]) {
    for member in members.iter() {
        member.signal(rustix::process::Signal::TERM);
    }
    let deadline = tokio::time::Instant::now() + TERM_WAIT;
    for member in members {
        if tokio::time::timeout_at(deadline, member.child.wait())
            .await
            .is_err()
        {
            tracing::warn!(process = %member.name, "did not stop, killed");
            member.signal(rustix::process::Signal::KILL);
            let _ = member.child.wait().await;
        }
    }
}

impl Member {
    /// How the process ended and how long it ran, if it has ended.
    pub(super) fn ended(&self) -> Option<(ExitStatus, Duration)> {
        self.ended.map(|(status, at)| (status, at - self.started))
    }

    /// The last lines of its output, without colours.
    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| without_colours(line))
            .collect()
    }

    fn sample(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if let Some(figures) = self.child.id().and_then(runtime::process::of) {
            self.figures = figures;
        }
        self.note_end();
    }

    fn note_end(&mut self) {
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.ended = Some((status, Instant::now()));
        }
    }

    /// Signals the whole group, so that what the process itself started is reached too. A process that was waited for has
    /// no id any more and is left alone.
    fn signal(&self, signal: rustix::process::Signal) {
        let group = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &self.members {
            member.signal(rustix::process::Signal::KILL);
        }
    }
}

/// `line` without ANSI escape sequences (ECMA-48, CSI ... final byte).
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            letters.find(|letter| letter.is_ascii_alphabetic());
        } else {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn processes_are_measured_and_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Fleet::default();
        let script = [
            "-c".to_owned(),
            "echo \"\u{1b}[1mready\u{1b}[0m\"; exec sleep 1000".to_owned(),
        ];
        let index = fleet
            .start(
                "sleeper",
                Rank::Host,
                Path::new("/bin/sh"),
                &script,
                folder.path().join("log"),
            )
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while fleet.member(index).last_lines(5) != ["ready"]
            || fleet.member(index).figures.rss_bytes_max == 0
        {
            assert!(Instant::now() < deadline, "the process does not come up");
            fleet.sample();
            tokio::task::yield_now().await;
        }
        let pid = fleet.member(index).child.id().unwrap();
        fleet.stop().await;
        assert_eq!(runtime::process::of(pid), None);
    }
}
