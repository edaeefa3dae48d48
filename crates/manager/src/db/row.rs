//! A row of any of the three databases, read by column name.

use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, MySql, Postgres, Row as _, Sqlite, Type};

use super::DbError;
use crate::model::JsonMap;

/// One row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
    MySql(MySqlRow),
}

/// What a column can hold: `i64`, `String`, and these as `Option`.
pub(crate) trait Cell:
    for<'r> Decode<'r, Sqlite>
    + Type<Sqlite>
    + for<'r> Decode<'r, Postgres>
    + Type<Postgres>
    + for<'r> Decode<'r, MySql>
    + Type<MySql>
{
}

impl<T> Cell for T where
    T: for<'r> Decode<'r, Sqlite>
        + Type<Sqlite>
        + for<'r> Decode<'r, Postgres>
        + Type<Postgres>
        + for<'r> Decode<'r, MySql>
        + Type<MySql>
{
}

impl Row {
    /// Reads a column.
    ///
    /// # Errors
    /// When the column is missing or holds another type: the schema is not ours.
    pub(crate) fn get<T: Cell>(&self, column: &'static str) -> Result<T, DbError> {
        let cell = match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
            Self::MySql(row) => row.try_get(column),
        };
        cell.map_err(DbError::from)
    }

    /// Reads a text that may be NULL, which means the same as empty.
    pub(crate) fn text(&self, column: &'static str) -> Result<String, DbError> {
        Ok(self.get::<Option<String>>(column)?.unwrap_or_default())
    }

    /// Reads a JSON object; NULL, the empty text and `null` mean the empty object.
    pub(crate) fn json_map(&self, column: &'static str) -> Result<JsonMap, DbError> {
        self.json(column)
    }

    /// Reads a JSON list of texts; NULL, the empty text and `null` mean the empty list.
    pub(crate) fn json_texts(&self, column: &'static str) -> Result<Vec<String>, DbError> {
        self.json(column)
    }

    fn json<T: serde::de::DeserializeOwned + Default>(
        &self,
        column: &'static str,
    ) -> Result<T, DbError> {
        let text = self.text(column)?;
        if text.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_str::<Option<T>>(&text).map(Option::unwrap_or_default).map_err(|error| DbError::Unusable {
            reason: format!("column {column} holds JSON of another form ({error}): correct the row in the database"),
        })
    }

    /// Reads a port.
    pub(crate) fn port(&self, column: &'static str) -> Result<u16, DbError> {
        let number: i64 = self.get(column)?;
        u16::try_from(number).map_err(|_| DbError::Unusable {
            reason: format!(
                "column {column} holds {number}, which is no port: correct the row in the database"
            ),
        })
    }
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Self::Sqlite(row)
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Self::Postgres(row)
    }
}

impl From<MySqlRow> for Row {
    fn from(row: MySqlRow) -> Self {
        Self::MySql(row)
    }
}

pub(super) fn wrap<R: Into<Row>>(rows: Vec<R>) -> Vec<Row> {
    rows.into_iter().map(Into::into).collect()
}

/// A JSON column's text, keys in alphabetical order, no spaces.
pub(crate) fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("JSON values with text keys always serialise")
}
