//! `dfctl task ls`, `dfctl persistent-task ls` and `dfctl persistent-cache-task ls`: what this host has, by kind.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::{
    ListLocalPersistentCacheTasksRequest, ListLocalPersistentTasksRequest, ListLocalTasksRequest,
};
use prost_wkt_types::Timestamp;
use serde::Serialize;
use tonic::transport::Channel;

use crate::connection::{DaemonArguments, bounded, call_failed};
use crate::failure::Failure;
use crate::logging::{LogArguments, LogLevel};
use crate::program::{Report, Told};
use crate::table;

/// Most bytes of an answer: about a million tasks.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What to do with the tasks of a kind of which this host only lists what it has.
#[derive(Debug, Clone, Subcommand)]
pub enum ListOnly {
    /// List those of this host.
    Ls(List),
}

impl ListOnly {
    pub(super) async fn run(self, kind: Kind) -> Result<Told, Failure> {
        let Self::Ls(list) = self;
        list.run(kind).await
    }
}

/// Where the daemon is, and nothing else.
#[derive(Debug, Clone, Args)]
pub struct List {
    #[command(flatten)]
    daemon: DaemonArguments,
    #[command(flatten)]
    logs: LogArguments,
}

/// Which tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Files fetched from an origin.
    Standard,
    /// Files kept in an object storage.
    Persistent,
    /// Files kept by peers.
    PersistentCache,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Tasks {
    tasks: Vec<Task>,
}

/// One task of this host. Lengths are bytes, times are RFC 3339 in UTC.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Task {
    id: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    lifetime: Option<Lifetime>,
    piece_length: Option<u64>,
    content_length: Option<u64>,
    created_at: Option<Time>,
    finished_at: Option<Time>,
    failed_at: Option<Time>,
    updated_at: Option<Time>,
}

/// How long a task of another kind than standard stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Lifetime {
    persistent: bool,
    ttl_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Time(SystemTime);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&table::rfc3339(self.0))
    }
}

impl Time {
    fn of(stamp: Option<Timestamp>) -> Option<Self> {
        SystemTime::try_from(stamp?).ok().map(Self)
    }
}

/// The three kinds of answers have the same fields; those of the first kind lack two.
macro_rules! task_of {
    ($task:ident, $lifetime:expr) => {
        Task {
            lifetime: $lifetime,
            piece_length: $task.piece_length,
            content_length: $task.content_length,
            created_at: Time::of($task.created_at),
            finished_at: Time::of($task.finished_at),
            failed_at: Time::of($task.failed_at),
            updated_at: Time::of($task.updated_at),
            id: $task.task_id,
        }
    };
}

impl List {
    pub(super) async fn run(self, kind: Kind) -> Result<Told, Failure> {
        let channel = self.daemon.connect().await?;
        let mut tasks = tasks_of(kind, channel).await?;
        self.logs
            .say(LogLevel::Info, || format!("{} tasks", tasks.len()));
        // The oldest first: what was done last stands beside the prompt.
        tasks.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(match kind {
            Kind::Standard => Told::new(&Tasks { tasks }),
            _ => Told::new(&Kept(Tasks { tasks })),
        })
    }
}

async fn tasks_of(kind: Kind, channel: Channel) -> Result<Vec<Task>, Failure> {
    let mut client =
        DfdaemonDownloadClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let lifetime = |persistent, ttl: Option<prost_wkt_types::Duration>| {
        let ttl = ttl.and_then(|ttl| Duration::try_from(ttl).ok());
        Some(Lifetime {
            persistent,
            ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
        })
    };
    Ok(match kind {
        Kind::Standard => {
            let request = bounded(ListLocalTasksRequest::default());
            let answer = client.list_local_tasks(request).await;
            let tasks = answer.map_err(call_failed)?.into_inner().tasks.into_iter();
            tasks.map(|task| task_of!(task, None)).collect()
        }
        Kind::Persistent => {
            let request = bounded(ListLocalPersistentTasksRequest::default());
            let answer = client.list_local_persistent_tasks(request).await;
            let tasks = answer.map_err(call_failed)?.into_inner().tasks.into_iter();
            tasks
                .map(|task| task_of!(task, lifetime(task.persistent, task.ttl)))
                .collect()
        }
        Kind::PersistentCache => {
            let request = bounded(ListLocalPersistentCacheTasksRequest::default());
            let answer = client.list_local_persistent_cache_tasks(request).await;
            let tasks = answer.map_err(call_failed)?.into_inner().tasks.into_iter();
            tasks
                .map(|task| task_of!(task, lifetime(task.persistent, task.ttl)))
                .collect()
        }
    })
}

impl Task {
    fn cells(&self) -> [String; 7] {
        let length = |length: Option<u64>| length.map_or("-".to_owned(), table::bytes);
        let time = |time: Option<Time>| table::time(time.map(|time| time.0));
        [
            table::harmless(&self.id),
            length(self.piece_length),
            length(self.content_length),
            time(self.created_at),
            time(self.finished_at),
            time(self.failed_at),
            time(self.updated_at),
        ]
    }
}

impl Report for Tasks {
    fn text(&self) -> String {
        let headings = [
            "ID",
            "PIECE LENGTH",
            "CONTENT LENGTH",
            "CREATED",
            "FINISHED",
            "FAILED",
            "UPDATED",
        ];
        let rows: Vec<_> = self.tasks.iter().map(Task::cells).collect();
        table::table(headings, &rows)
    }
}

/// Tasks with a lifetime: two columns more.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Kept(Tasks);

impl Report for Kept {
    fn text(&self) -> String {
        let headings = [
            "ID",
            "PERSISTENT",
            "TTL",
            "PIECE LENGTH",
            "CONTENT LENGTH",
            "CREATED",
            "FINISHED",
            "FAILED",
            "UPDATED",
        ];
        let row = |task: &Task| {
            let persistent = task.lifetime.is_some_and(|lifetime| lifetime.persistent);
            let ttl = task.lifetime.and_then(|lifetime| lifetime.ttl_seconds);
            let ttl = ttl.map(|ttl| humantime::format_duration(Duration::from_secs(ttl)));
            let [id, piece, content, created, finished, failed, updated] = task.cells();
            [
                id,
                persistent.to_string(),
                ttl.map_or("-".to_owned(), |ttl| ttl.to_string()),
                piece,
                content,
                created,
                finished,
                failed,
                updated,
            ]
        };
        let rows: Vec<_> = self.0.tasks.iter().map(row).collect();
        table::table(headings, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::assert_golden;

    fn task(lifetime: Option<Lifetime>) -> Task {
        Task {
            id: "06408fbf".into(),
            lifetime,
            piece_length: Some(4 << 20),
            content_length: Some(10 << 20),
            created_at: Some(Time(SystemTime::UNIX_EPOCH)),
            finished_at: None,
            failed_at: None,
            updated_at: Some(Time(SystemTime::UNIX_EPOCH)),
        }
    }

    #[test]
    fn the_table_is_that_of_v2() {
        let text = Tasks {
            tasks: vec![task(None)],
        }
        .text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID         PIECE LENGTH   CONTENT LENGTH   CREATED"));
        assert!(
            lines[1]
                .starts_with("06408fbf   4.0 MiB        10.0 MiB         1970-01-01 00:00:00   -")
        );
        let lifetime = Lifetime {
            persistent: true,
            ttl_seconds: Some(3600),
        };
        let text = Kept(Tasks {
            tasks: vec![task(Some(lifetime))],
        })
        .text();
        assert!(
            text.starts_with("ID         PERSISTENT   TTL   PIECE LENGTH"),
            "{text}"
        );
        assert!(
            text.contains("06408fbf   true         1h    4.0 MiB"),
            "{text}"
        );
    }

    #[test]
    fn the_json_keeps_absent_times_as_null() {
        let told = Told::new(&Tasks {
            tasks: vec![task(None)],
        });
        assert_golden("task-ls", told.json());
    }
}
