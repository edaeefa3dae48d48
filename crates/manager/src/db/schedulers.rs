//! Registered schedulers.

use super::row::json_text;
use super::{Database, DbError, Row, now_ms, sql};
use crate::model::{Scheduler, SchedulerClusterId, SchedulerId, SchedulerRegistration, State};

/// Most schedulers that a snapshot takes in.
const SCHEDULERS_MAX: i64 = 100_000;

impl Database {
    /// Every scheduler that is not forgotten, in whatever state, oldest first.
    pub(crate) async fn schedulers(&self) -> Result<Vec<Scheduler>, DbError> {
        let query = sql(
            "SELECT id, host_name, ip, port, idc, location, state, features, scheduler_cluster_id
            FROM scheduler WHERE is_del = 0 ORDER BY id LIMIT ?",
        );
        self.fetch(query.bind(SCHEDULERS_MAX))
            .await?
            .iter()
            .map(scheduler)
            .collect()
    }

    /// Writes what a scheduler says of itself and returns its row; `None` if somebody deleted it in the same instant.
    ///
    /// The state stays as it is (inactive in a new row): only keepalive makes a scheduler active. Dragonfly v2 also
    /// looks for the port and so refuses a scheduler that comes back on another one; the unique key has no port,
    /// hence neither has the condition here.
    pub(crate) async fn register_scheduler(
        &self,
        told: &SchedulerRegistration,
    ) -> Result<Option<Scheduler>, DbError> {
        let now = now_ms();
        let features = json_text(&told.features);
        let config = told.config.as_ref().map(json_text);
        let interval_ms = told.config.as_ref().and_then(keep_alive_interval_ms);
        let key = &told.key;
        let update = sql("UPDATE scheduler SET updated_at = ?, last_keep_alive_at = ?, is_del = 0, port = ?,
                idc = COALESCE(NULLIF(?, ''), idc), location = COALESCE(NULLIF(?, ''), location), features = ?,
                config = COALESCE(?, config), keep_alive_interval_ms = COALESCE(?, keep_alive_interval_ms)
            WHERE host_name = ? AND ip = ? AND scheduler_cluster_id = ?")
        .bind(now)
        .bind(now)
        .bind(i64::from(told.port))
        .bind(told.idc.as_str())
        .bind(told.location.as_str())
        .bind(features.as_str())
        .bind(config.clone())
        .bind(interval_ms)
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        let insert = sql("INSERT INTO scheduler (created_at, updated_at, last_keep_alive_at, state, port, idc, location,
                features, config, keep_alive_interval_ms, host_name, ip, scheduler_cluster_id)
            VALUES (?, ?, ?, 'inactive', ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(now)
        .bind(now)
        .bind(now)
        .bind(i64::from(told.port))
        .bind(told.idc.as_str())
        .bind(told.location.as_str())
        .bind(features)
        .bind(config.unwrap_or_else(|| "{}".to_owned()))
        .bind(interval_ms)
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        self.upsert(update, insert).await?;
        let query = sql(
            "SELECT id, host_name, ip, port, idc, location, state, features, scheduler_cluster_id
            FROM scheduler WHERE host_name = ? AND ip = ? AND scheduler_cluster_id = ?",
        )
        .bind(key.hostname.as_str())
        .bind(key.ip.as_str())
        .bind(key.cluster_id.row());
        self.fetch(query).await?.first().map(scheduler).transpose()
    }
}

fn scheduler(row: &Row) -> Result<Scheduler, DbError> {
    Ok(Scheduler {
        id: SchedulerId::from_row(row.get("id")?),
        cluster_id: SchedulerClusterId::from_row(row.get("scheduler_cluster_id")?),
        hostname: row.get("host_name")?,
        ip: row.get("ip")?,
        port: row.port("port")?,
        idc: row.text("idc")?,
        location: row.text("location")?,
        state: State::from_column(&row.text("state")?),
        features: row.json_texts("features")?,
    })
}

/// The `manager_keep_alive_interval` (nanoseconds) of a scheduler's configuration, in milliseconds.
///
/// Held within one second and one hour: it is multiplied in SQL, and a wild value there would fail for every row.
fn keep_alive_interval_ms(config: &crate::model::JsonMap) -> Option<i64> {
    let nanos = config
        .get("manager_keep_alive_interval")?
        .as_i64()
        .filter(|nanos| *nanos > 0)?;
    Some((nanos / 1_000_000).clamp(1_000, 3_600_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: serde_json::Value, expected: Option<i64>) {
        let config = [("manager_keep_alive_interval".to_owned(), value)].into();
        assert_eq!(keep_alive_interval_ms(&config), expected);
    }

    #[test]
    fn the_interval_is_read_in_nanoseconds_and_kept_in_bounds() {
        check(json!(5_000_000_000_i64), Some(5_000));
        check(json!(1), Some(1_000));
        check(json!(i64::MAX), Some(3_600_000));
        check(json!(0), None);
        check(json!(-5), None);
        check(json!("5s"), None);
    }
}
