//! `dfctl task show`: who served which bytes of a task, and why the origin was read.

use std::time::{Duration, SystemTime};

use api::local as proto;
use api::local::giver::Kind;
use api::local::local_client::LocalClient;
use api::local::{ExplainTaskRequest, ExplainTaskResponse};
use clap::Args;
use runtime::secret::redact_url;
use serde::Serialize;

use crate::bytes_from::BytesFrom;
use crate::connection::{DaemonArguments, bounded};
use crate::failure::Failure;
use crate::local;
use crate::logging::LogArguments;
use crate::program::{Report, Told};
use crate::table;

/// Most bytes of an answer: some thousand givers.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Tells who served which bytes of a task, and why the origin was read.
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// Id of the task, as `dfctl task ls` lists it.
    id: String,
    #[command(flatten)]
    daemon: DaemonArguments,
    #[command(flatten)]
    logs: LogArguments,
}

/// The answer. Lengths are bytes, times are RFC 3339 in UTC.
#[derive(Debug, Serialize)]
struct Explained {
    id: String,
    url: String,
    content_length: u64,
    piece_length: u64,
    piece_count: u32,
    held_pieces: u32,
    held_bytes: u64,
    in_progress: bool,
    created_at: String,
    finished_at: Option<String>,
    failed_at: Option<String>,
    prefetched_at: Option<String>,
    host: String,
    scheduler: Option<String>,
    bytes_from: BytesFrom,
    givers: Vec<Giver>,
    origin_use: Option<OriginUse>,
}

/// Somebody who gave bytes, the greatest giver first.
#[derive(Debug, Serialize)]
struct Giver {
    /// `origin`, `seed`, `peer` or `local`.
    kind: &'static str,
    host: Option<String>,
    peer_id: Option<String>,
    pieces: u32,
    bytes: u64,
    began_at: String,
    /// From the first of these pieces to the end of the last.
    seconds: f64,
    /// The times of the pieces added up; pieces travel at once.
    cost_seconds: f64,
}

/// Why the origin was read last.
#[derive(Debug, Serialize)]
struct OriginUse {
    reason: String,
    at: String,
}

impl Show {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let channel = self.daemon.connect().await?;
        let request = ExplainTaskRequest { task_id: self.id };
        let answer = LocalClient::new(channel)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .explain_task(bounded(request))
            .await
            .map_err(local::failed)?;
        Ok(Told::new(&Explained::from(answer.into_inner())))
    }
}

impl From<ExplainTaskResponse> for Explained {
    fn from(task: ExplainTaskResponse) -> Self {
        let mut bytes_from = BytesFrom::default();
        for giver in &task.givers {
            match giver.kind() {
                Kind::Origin => bytes_from.origin += giver.bytes,
                Kind::Seed => bytes_from.seed += giver.bytes,
                Kind::Peer => bytes_from.peers += giver.bytes,
                Kind::Local => bytes_from.local += giver.bytes,
                Kind::Unknown => {}
            }
        }
        Self {
            id: task.task_id,
            url: redact_url(&task.url).into_owned(),
            content_length: task.content_length,
            piece_length: task.piece_length,
            piece_count: task.piece_count,
            held_pieces: task.held_pieces,
            held_bytes: task.held_bytes,
            in_progress: task.in_progress,
            created_at: at(task.created_at),
            finished_at: task.finished_at.map(at),
            failed_at: task.failed_at.map(at),
            prefetched_at: task.prefetched_at.map(at),
            host: task.host_id,
            scheduler: named(task.scheduler),
            bytes_from,
            givers: task.givers.into_iter().map(Giver::from).collect(),
            origin_use: task.origin_use.map(|used| OriginUse {
                reason: used.reason,
                at: at(used.at),
            }),
        }
    }
}

impl From<proto::Giver> for Giver {
    fn from(giver: proto::Giver) -> Self {
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        Self {
            kind: match giver.kind() {
                Kind::Origin => "origin",
                Kind::Seed => "seed",
                Kind::Peer => "peer",
                Kind::Local => "local",
                Kind::Unknown => "unknown",
            },
            pieces: giver.pieces,
            bytes: giver.bytes,
            began_at: at(giver.began_at),
            seconds: seconds(giver.ended_at.saturating_sub(giver.began_at)),
            cost_seconds: seconds(giver.cost_ms),
            host: named(giver.host_id),
            peer_id: named(giver.peer_id),
        }
    }
}

fn at(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    time.map_or("-".to_owned(), table::rfc3339)
}

fn named(name: String) -> Option<String> {
    (!name.is_empty()).then_some(name)
}

impl Report for Explained {
    fn text(&self) -> String {
        let mut lines = vec![
            format!("Task        {}", table::harmless(&self.id)),
            format!("Address     {}", table::harmless(&self.url)),
            format!(
                "Length      {} in {} pieces of {}",
                table::bytes(self.content_length),
                self.piece_count,
                table::bytes(self.piece_length)
            ),
            format!("Here        {}", self.here()),
            format!("Created     {}", self.created_at),
        ];
        let times = [
            ("Finished ", &self.finished_at),
            ("Failed   ", &self.failed_at),
            ("Prefetched", &self.prefetched_at),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                lines.push(format!("{name:<12}{time}"));
            }
        }
        let scheduler = self.scheduler.as_deref().unwrap_or("none answers");
        lines.push(format!("Scheduler   {}", table::harmless(scheduler)));
        lines.push(match &self.origin_use {
            Some(used) => format!(
                "Origin      read at {}, because: {}",
                used.at,
                table::harmless(&used.reason)
            ),
            None => "Origin      not read by this host".to_owned(),
        });
        lines.push(String::new());
        lines.push(self.table());
        lines.join("\n")
    }
}

impl Explained {
    fn here(&self) -> String {
        let amount = match self.held_pieces == self.piece_count {
            true => "all of it".to_owned(),
            false => format!(
                "{} in {} of {} pieces",
                table::bytes(self.held_bytes),
                self.held_pieces,
                self.piece_count
            ),
        };
        let shares = self.bytes_from.shares();
        let from = match shares.is_empty() {
            true => String::new(),
            false => format!(", from {shares}"),
        };
        let progress = if self.in_progress {
            "; a download runs"
        } else {
            ""
        };
        format!("{amount}{from}{progress}")
    }

    fn table(&self) -> String {
        let row = |giver: &Giver| {
            let cell =
                |text: &Option<String>| text.as_deref().map_or("-".to_owned(), table::harmless);
            [
                giver.kind.to_owned(),
                giver.pieces.to_string(),
                table::bytes(giver.bytes),
                format!("{:.3} s", giver.seconds),
                cell(&giver.host),
                cell(&giver.peer_id),
            ]
        };
        let rows: Vec<_> = self.givers.iter().map(row).collect();
        table::table(["FROM", "PIECES", "BYTES", "TIME", "HOST", "PEER"], &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::assert_golden;

    fn explained() -> Explained {
        let giver = |kind: Kind, host: &str, bytes, began_at, ended_at| proto::Giver {
            kind: kind.into(),
            peer_id: host.to_owned(),
            host_id: host.to_owned(),
            pieces: 1,
            bytes,
            began_at,
            ended_at,
            cost_ms: 50,
        };
        ExplainTaskResponse {
            task_id: "06408fbf".into(),
            url: "http://h/f".into(),
            content_length: 12 << 20,
            piece_length: 4 << 20,
            piece_count: 3,
            held_pieces: 2,
            held_bytes: 8 << 20,
            created_at: 1000,
            givers: vec![
                giver(Kind::Seed, "10.0.0.1-a-seed", 4 << 20, 1000, 1500),
                giver(Kind::Origin, "", 4 << 20, 1100, 1200),
            ],
            origin_use: Some(proto::OriginUse {
                reason: "no scheduler is available".into(),
                at: 1050,
            }),
            ..ExplainTaskResponse::default()
        }
        .into()
    }

    #[test]
    fn the_text_says_who_gave_and_why_the_origin_was_read() {
        let text = explained().text();
        assert!(
            text.contains("Here        8.0 MiB in 2 of 3 pieces, from origin 50 %, seed 50 %"),
            "{text}"
        );
        assert!(
            text.contains(
                "Origin      read at 1970-01-01T00:00:01.050Z, because: no scheduler is available"
            ),
            "{text}"
        );
        assert!(
            text.contains("seed     1        4.0 MiB   0.500 s   10.0.0.1-a-seed"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_its_fields() {
        let told = Told::new(&explained());
        assert_golden("task-show", told.json());
        let told: serde_json::Value = serde_json::from_str(told.json()).unwrap();
        assert_eq!(told["bytes_from"]["seed"], 4 << 20);
        assert_eq!(told["givers"][1]["kind"], "origin");
        assert!(told["givers"][1]["host"].is_null() && told["scheduler"].is_null());
        assert_eq!(told["origin_use"]["at"], "1970-01-01T00:00:01.050Z");
    }
}
