//! A statement with its values, and its translation for each database.

use std::borrow::Cow;

use sqlx::error::BoxDynError;
use sqlx::{Arguments, AssertSqlSafe, Database, Executor, IntoArguments};

/// SQL in the common subset, with `?` for each value, and the values in order.
///
/// The text is `'static`: no value can ever be pasted into it.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    text: &'static str,
    values: Vec<Value>,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    OptInt(Option<i64>),
    Text(String),
    OptText(Option<String>),
}

/// Starts a statement. `?` stands for a value everywhere: no literal in our SQL holds one.
pub(crate) fn sql(text: &'static str) -> Statement {
    Statement {
        text,
        values: Vec::new(),
    }
}

impl Statement {
    /// Gives the next `?` its value.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(super) async fn fetch<'c, DB, E>(self, on: E) -> Result<Vec<DB::Row>, sqlx::Error>
    where
        DB: Speaks,
        E: Executor<'c, Database = DB>,
        DB::Arguments: IntoArguments<DB>,
    {
        let arguments = self.arguments::<DB>()?;
        sqlx::query_with(AssertSqlSafe(DB::spell(self.text)), arguments)
            .fetch_all(on)
            .await
    }

    pub(super) async fn execute<'c, DB, E>(self, on: E) -> Result<DB::QueryResult, sqlx::Error>
    where
        DB: Speaks,
        E: Executor<'c, Database = DB>,
        DB::Arguments: IntoArguments<DB>,
    {
        let arguments = self.arguments::<DB>()?;
        sqlx::query_with(AssertSqlSafe(DB::spell(self.text)), arguments)
            .execute(on)
            .await
    }

    fn arguments<DB: Speaks>(&self) -> Result<DB::Arguments, sqlx::Error> {
        let mut arguments = DB::Arguments::default();
        for value in &self.values {
            DB::add(&mut arguments, value.clone()).map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::OptInt(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::OptText(value)
    }
}

/// How one database takes our SQL and our values.
pub(super) trait Speaks: Database {
    /// Puts the placeholders of this database for `?`.
    fn spell(text: &'static str) -> Cow<'static, str>;
    /// Appends one value.
    fn add(arguments: &mut Self::Arguments, value: Value) -> Result<(), BoxDynError>;
}

macro_rules! speaks {
    ($database:ty, $spell:expr) => {
        impl Speaks for $database {
            fn spell(text: &'static str) -> Cow<'static, str> {
                $spell(text)
            }

            fn add(arguments: &mut Self::Arguments, value: Value) -> Result<(), BoxDynError> {
                match value {
                    Value::Int(value) => arguments.add(value),
                    Value::OptInt(value) => arguments.add(value),
                    Value::Text(value) => arguments.add(value),
                    Value::OptText(value) => arguments.add(value),
                }
            }
        }
    };
}

speaks!(sqlx::Sqlite, Cow::Borrowed);
speaks!(sqlx::MySql, Cow::Borrowed);
speaks!(sqlx::Postgres, |text| Cow::Owned(number_placeholders(text)));

/// `a = ? AND b = ?` becomes `a = $1 AND b = $2`.
fn number_placeholders(text: &str) -> String {
    let mut numbered = String::with_capacity(text.len() + 16);
    for (index, part) in text.split('?').enumerate() {
        if index > 0 {
            numbered.push('$');
            numbered.push_str(&index.to_string());
        }
        numbered.push_str(part);
    }
    numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_in_order() {
        assert_eq!(number_placeholders("SELECT 1"), "SELECT 1");
        assert_eq!(
            number_placeholders("a = ? AND b IN (?, ?)"),
            "a = $1 AND b IN ($2, $3)"
        );
    }
}
