//! How it went: one file, or many.

use std::time::Duration;

use runtime::secret::redact_url;
use serde::Serialize;

use super::destination::Destination;
use super::plan::PlannedFile;
use super::receive::Received;
use crate::bytes_from::BytesFrom;
use crate::failure::Failure;
use crate::program::Report;
use crate::table;

/// A finished download.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The task's id.
    pub task_id: String,
    /// This host's part in it.
    pub peer_id: String,
    /// Where the file is; `-` for standard output.
    pub output: String,
    /// Length of the file.
    pub bytes: u64,
    /// From the start of the process's work to the end of the download.
    pub seconds: f64,
    /// Digest in lower-case hex, if one of this kind was asked for and so is known to be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where the bytes came from.
    pub bytes_from: BytesFrom,
}

/// What became of one file of many.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileOutcome {
    /// Its address, without credentials.
    pub url: String,
    /// Where it is, or should be.
    pub output: String,
    /// Whether it is there, whole.
    pub ok: bool,
    /// The task's id, if it was downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Its length, if it was downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The exit code that this failure has with one file alone; absent for a file that was not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the origin answered, if it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    #[serde(skip)]
    bytes_from: BytesFrom,
}

impl FileOutcome {
    pub(super) fn new(file: &PlannedFile, outcome: Result<Summary, Failure>) -> Self {
        let begun = Self {
            url: redact_url(file.url.as_str()).into_owned(),
            output: file.output.display().to_string(),
            ok: outcome.is_ok(),
            task_id: None,
            bytes: None,
            exit_code: None,
            error: None,
            status_code: None,
            bytes_from: BytesFrom::default(),
        };
        match outcome {
            Ok(summary) => Self {
                task_id: Some(summary.task_id),
                bytes: Some(summary.bytes),
                bytes_from: summary.bytes_from,
                ..begun
            },
            Err(failure) => Self {
                exit_code: Some(failure.exit_code()),
                error: Some(failure.to_string()),
                status_code: failure.status_code(),
                ..begun
            },
        }
    }

    /// Not begun, because another one failed.
    pub(super) fn skipped(file: &PlannedFile) -> Self {
        let reason = "not begun, because another file failed".to_owned();
        let failure = Failure::Refused { reason };
        Self {
            exit_code: None,
            ..Self::new(file, Err(failure))
        }
    }

    fn is_skipped(&self) -> bool {
        !self.ok && self.exit_code.is_none()
    }
}

/// A folder of files that were downloaded, or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FolderSummary {
    /// The folder.
    pub output: String,
    /// Folders in it that were made or were there.
    pub directories: usize,
    /// Files that are there now, whole.
    pub succeeded: usize,
    /// Files that failed.
    pub failed: usize,
    /// Files that were not begun.
    pub skipped: usize,
    /// Bytes of the files that are there.
    pub bytes: u64,
    /// From the start of the process's work to the end of the last download.
    pub seconds: f64,
    /// Where the bytes came from.
    pub bytes_from: BytesFrom,
    /// What should be known although it is no failure, such as that a directory is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Every file, in the order of their paths.
    pub files: Vec<FileOutcome>,
}

impl FolderSummary {
    pub(super) fn new(
        output: String,
        directories: usize,
        files: Vec<FileOutcome>,
        elapsed: Duration,
    ) -> Self {
        let succeeded = files.iter().filter(|file| file.ok).count();
        let skipped = files.iter().filter(|file| file.is_skipped()).count();
        let bytes_from = files.iter().map(|file| file.bytes_from);
        Self {
            output,
            directories,
            succeeded,
            failed: files.len() - succeeded - skipped,
            skipped,
            bytes: files.iter().filter_map(|file| file.bytes).sum(),
            seconds: elapsed.as_secs_f64(),
            bytes_from: bytes_from.fold(BytesFrom::default(), BytesFrom::plus),
            note: None,
            files,
        }
    }

    /// Whether every file is there.
    pub(super) fn is_whole(&self) -> bool {
        self.failed + self.skipped == 0
    }
}

impl Report for FolderSummary {
    /// The failures, one line each, and the total.
    fn text(&self) -> String {
        let failures = self
            .files
            .iter()
            .filter(|file| !file.ok && !file.is_skipped());
        let mut lines: Vec<String> = failures
            .map(|file| {
                let error = file.error.as_deref().unwrap_or_default();
                format!(
                    "dfget: {}: {}",
                    table::harmless(&file.url),
                    table::harmless(error)
                )
            })
            .collect();
        if let Some(note) = &self.note {
            lines.push(format!("dfget: {}", table::harmless(note)));
        }
        let mut total = format!("{}: {} files, ", self.output, self.succeeded);
        total.push_str(&amount(self.bytes, self.seconds, self.bytes_from));
        if !self.is_whole() {
            total.push_str(&format!("; {} failed", self.failed));
        }
        if self.skipped > 0 {
            total.push_str(&format!(", {} not begun", self.skipped));
        }
        lines.push(total);
        lines.join("\n")
    }
}

/// As `3.0 MiB in 0.500 s, 6.0 MiB/s, from peers 75 %, origin 25 %`.
fn amount(bytes: u64, seconds: f64, bytes_from: BytesFrom) -> String {
    let mut text = format!("{} in {seconds:.3} s", table::bytes(bytes));
    if bytes > 0 && seconds > 0.0 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people"
        )]
        let rate = (bytes as f64 / seconds) as u64;
        text.push_str(&format!(", {}/s", table::bytes(rate)));
    }
    let shares = bytes_from.shares();
    if !shares.is_empty() {
        text.push_str(&format!(", from {shares}"));
    }
    text
}

impl Summary {
    pub(super) fn new(received: Received, destination: &Destination, elapsed: Duration) -> Self {
        let sha256 = match received.digest {
            Some(digest @ protocol::Digest::Sha256(_)) => Some(digest.encoded()),
            _ => None,
        };
        Self {
            task_id: received.task_id,
            peer_id: received.peer_id,
            output: destination.shown(),
            bytes: received.length,
            seconds: elapsed.as_secs_f64(),
            sha256,
            bytes_from: received.bytes_from,
        }
    }
}

impl Report for Summary {
    /// One line.
    fn text(&self) -> String {
        let amount = amount(self.bytes, self.seconds, self.bytes_from);
        format!("{}: {amount}", self.output)
    }
}

#[cfg(test)]
mod tests {
    use dragonfly_api::common::v2::{Piece, TrafficType};

    use super::*;
    use crate::program::{Told, assert_golden};

    fn piece(length: u64, kind: Option<TrafficType>, parent: Option<&str>) -> Piece {
        Piece {
            length,
            traffic_type: kind.map(Into::into),
            parent_id: parent.map(Into::into),
            ..Piece::default()
        }
    }

    fn summary() -> Summary {
        let mut bytes_from = BytesFrom::default();
        bytes_from.add(&piece(100, Some(TrafficType::BackToSource), None));
        bytes_from.add(&piece(
            200,
            Some(TrafficType::RemotePeer),
            Some("10.0.0.1-h-3f0c-seed"),
        ));
        bytes_from.add(&piece(
            700,
            Some(TrafficType::RemotePeer),
            Some("10.0.0.2-seed-h-3f0c"),
        ));
        bytes_from.add(&piece(24, Some(TrafficType::LocalPeer), None));
        bytes_from.add(&piece(9, None, None));
        Summary {
            task_id: "t".into(),
            peer_id: "p".into(),
            output: "/out".into(),
            bytes: 1024,
            seconds: 0.5,
            sha256: None,
            bytes_from,
        }
    }

    #[test]
    fn bytes_are_counted_by_where_they_came_from() {
        assert_eq!(
            summary().bytes_from,
            BytesFrom {
                origin: 100,
                seed: 200,
                peers: 700,
                local: 24
            }
        );
        assert_eq!(
            summary().text(),
            "/out: 1.0 KiB in 0.500 s, 2.0 KiB/s, from peers 68 %, seed 20 %, origin 10 %, local 2 %"
        );
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_read() {
        let told = Told::new(&summary());
        assert_golden("dfget", told.json());
        let told: serde_json::Value = serde_json::from_str(told.json()).unwrap();
        assert_eq!(
            (told["ok"].as_bool(), told["bytes"].as_u64()),
            (Some(true), Some(1024))
        );
        assert_eq!(told["bytes_from"]["peers"], 700);
    }

    fn outcome(name: &str, outcome: Result<Summary, Failure>) -> FileOutcome {
        let file = PlannedFile {
            url: format!("http://h/{name}").parse().unwrap(),
            output: format!("/out/{name}").into(),
            name: name.to_owned(),
            length: None,
        };
        FileOutcome::new(&file, outcome)
    }

    #[test]
    fn addresses_are_told_without_their_secrets() {
        let outcome = outcome("a?token=secret", Ok(summary()));
        assert_eq!(outcome.url, "http://h/a?token=<redacted>");
    }

    #[test]
    fn a_folder_lists_its_failures_and_counts_the_rest() {
        let gone = Failure::Origin {
            status_code: Some(404),
            message: "gone".into(),
        };
        let files = vec![outcome("a", Ok(summary())), outcome("b", Err(gone))];
        let folder = FolderSummary::new("/out".into(), 2, files, Duration::from_millis(500));
        assert!(!folder.is_whole());
        assert_eq!(
            folder.text(),
            "dfget: http://h/b: the file cannot be had from its origin: gone\n\
             /out: 1 files, 1.0 KiB in 0.500 s, 2.0 KiB/s, from peers 68 %, seed 20 %, origin 10 %, local 2 %; 1 failed"
        );
        let told = Told::with_exit_code(&folder, 1);
        assert_golden("dfget-folder", told.json());
    }
}
