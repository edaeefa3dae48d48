//! Which gRPC code each error becomes. The codes are Dragonfly v2's, with one exception: a database that is away is
//! `UNAVAILABLE` instead of `INTERNAL`, because schedulers retry the former.

use std::fmt::Display;

use tonic::{Code, Status};
use tracing::error;

use crate::db::DbError;
use crate::keepalive::StreamEnd;

pub(super) fn of_db(error: DbError) -> Status {
    match error {
        DbError::Unavailable { .. } => {
            Status::unavailable("the database is not available: try again")
        }
        // The caller need not know how our tables look; the log does.
        DbError::Conflict { .. } | DbError::Refused { .. } | DbError::Unusable { .. } => {
            error!(%error, "a request failed in the database");
            Status::internal("the manager could not carry that out: see its log")
        }
    }
}

/// `INTERNAL`, not `NOT_FOUND`: so says Dragonfly v2.
pub(super) fn unknown_host(what: &str, hostname: &str, cluster_id: impl Display) -> Status {
    Status::internal(format!(
        "record not found: {what} {hostname:?} is not registered in cluster {cluster_id}"
    ))
}

pub(super) fn of_stream_end(end: StreamEnd) -> Status {
    let code = match end {
        StreamEnd::Database(error) => return of_db(error),
        StreamEnd::Stopping => Code::Unavailable,
        StreamEnd::TooMany => Code::ResourceExhausted,
        StreamEnd::Silent { .. } => Code::DeadlineExceeded,
        StreamEnd::Unregistered { .. } | StreamEnd::Vanished => Code::Internal,
        StreamEnd::Broken(_) => Code::Unknown,
    };
    Status::new(code, end.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::MemberKind;
    use std::time::Duration;

    #[test]
    fn errors_have_pinned_codes() {
        let text = || "x".to_owned();
        let db = [
            (DbError::Unavailable { reason: text() }, Code::Unavailable),
            (DbError::Conflict { what: text() }, Code::Internal),
            (DbError::Refused { reason: text() }, Code::Internal),
            (DbError::Unusable { reason: text() }, Code::Internal),
        ];
        for (error, code) in db {
            let shown = error.to_string();
            assert_eq!(of_db(error).code(), code, "{shown}");
        }
        let unregistered = StreamEnd::Unregistered {
            kind: MemberKind::Scheduler,
            hostname: text(),
            cluster_id: 1,
        };
        let ends = [
            (StreamEnd::Stopping, Code::Unavailable),
            (StreamEnd::TooMany, Code::ResourceExhausted),
            (
                StreamEnd::Silent {
                    limit: Duration::from_secs(1),
                },
                Code::DeadlineExceeded,
            ),
            (unregistered, Code::Internal),
            (StreamEnd::Vanished, Code::Internal),
            (StreamEnd::Broken(text()), Code::Unknown),
            (
                StreamEnd::Database(DbError::Unavailable { reason: text() }),
                Code::Unavailable,
            ),
        ];
        for (end, code) in ends {
            let shown = end.to_string();
            assert_eq!(of_stream_end(end).code(), code, "{shown}");
        }
    }
}
