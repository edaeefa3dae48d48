//! Applications and the priority of their tasks.

use super::{Database, DbError, Row, sql};
use crate::model::{Application, Priority};

/// Most applications one answer carries; v2 has no limit, its console makes them by hand.
const APPLICATIONS_MAX: i64 = 10_000;

impl Database {
    /// Every application, oldest first. A row whose priority cannot be read is left out, as in Dragonfly v2.
    pub(crate) async fn applications(&self) -> Result<Vec<Application>, DbError> {
        let query = sql(
            "SELECT id, name, url, bio, priority FROM application WHERE is_del = 0 ORDER BY id LIMIT ?",
        );
        let rows = self.fetch(query.bind(APPLICATIONS_MAX)).await?;
        rows.iter()
            .filter_map(|row| application(row).transpose())
            .collect()
    }
}

fn application(row: &Row) -> Result<Option<Application>, DbError> {
    let name: String = row.get("name")?;
    let priority = match serde_json::from_str::<Option<Priority>>(&row.text("priority")?) {
        Ok(priority) => priority.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(application = name, %error, "application left out: its priority is no valid JSON");
            return Ok(None);
        }
    };
    Ok(Some(Application {
        id: u64::try_from(row.get::<i64>("id")?).unwrap_or(0),
        name,
        url: row.text("url")?,
        bio: row.text("bio")?,
        priority,
    }))
}
