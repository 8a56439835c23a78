//! The earlier system's tables, read as JSON whatever their columns' types are, one row after the other.

use futures::TryStreamExt;
use futures::stream::BoxStream;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::Error;

/// A row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) values: Map<String, Value>,
    /// Tells whether it has changed: of a session its metadata, of a process all of it.
    pub(super) md5: String,
    pub(super) bytes: usize,
}

impl Row {
    fn of((json, md5): (String, Option<String>)) -> Self {
        let values = match serde_json::from_str(&json) {
            Ok(Value::Object(values)) => values,
            _ => Map::new(),
        };
        Self {
            values,
            md5: md5.unwrap_or_default(),
            bytes: json.len(),
        }
    }

    pub(super) fn text(&self, column: &str) -> String {
        self.values
            .get(column)
            .and_then(super::values::text)
            .unwrap_or_default()
    }
}

/// A database that the earlier system wrote.
#[derive(Debug)]
pub(super) struct Source {
    connection: PgConnection,
    pub(super) sessions: bool,
    pub(super) processes: bool,
}

/// Sessions that may have facts of a run, and their metadata as it is now. Those that name the same run
/// come one after the other: metadata may be a text, and JSON inside one.
const SESSIONS: &str = r#"SELECT to_jsonb(t)::text, md5(t.metadata::text) FROM sessions t
     WHERE t.metadata::text LIKE '%claude-code%'
     ORDER BY substring(t.metadata::text FROM '"run_id\\?": *\\?"([^"\\]*)') COLLATE "C", t.id"#;
const PROCESSES: &str =
    "SELECT to_jsonb(t)::text, md5(to_jsonb(t)::text) FROM workflow_processes t ORDER BY t.run_id";
const PROCESSES_OF: &str =
    "SELECT to_jsonb(t)::text, md5(to_jsonb(t)::text) FROM workflow_processes t
     WHERE t.run_id = ANY($1)";

impl Source {
    /// Looks which tables there are. Times are told in UTC, whatever the role's setting is.
    pub(super) async fn new(mut connection: PgConnection) -> Result<Self, Error> {
        connection
            .execute("SET TimeZone = 'UTC'; SET default_transaction_read_only = on")
            .await
            .map_err(Error::Source)?;
        // Not checked at build time: what is asked here is of another schema than the ledger's.
        let (sessions, processes) = sqlx::query_as(
            "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('sessions') AND attname = 'metadata'),
                    to_regclass('workflow_processes') IS NOT NULL",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(Error::Source)?;
        Ok(Self {
            connection,
            sessions,
            processes,
        })
    }

    pub(super) fn sessions(&mut self) -> Rows<'_> {
        self.rows(SESSIONS)
    }

    pub(super) fn processes(&mut self) -> Rows<'_> {
        self.rows(PROCESSES)
    }

    /// All rows of a table.
    pub(super) fn all(&mut self, table: &str, order: &str) -> Rows<'_> {
        self.rows(format!(
            "SELECT to_jsonb(t)::text, NULL::text FROM {table} t ORDER BY {order}"
        ))
    }

    /// Whether there is such a table.
    pub(super) async fn has(&mut self, table: &str) -> Result<bool, Error> {
        self.has_column(table, "id").await
    }

    /// Whether there is such a table, with such a column.
    pub(super) async fn has_column(&mut self, table: &str, column: &str) -> Result<bool, Error> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2)",
        )
        .bind(table)
        .bind(column)
        .fetch_one(&mut self.connection)
        .await
        .map_err(Error::Source)
    }

    fn rows(&mut self, sql: impl Into<String>) -> Rows<'_> {
        Rows(sqlx::query_as(AssertSqlSafe(sql.into())).fetch(&mut self.connection))
    }

    pub(super) async fn processes_of(&mut self, run_ids: &[String]) -> Result<Vec<Row>, Error> {
        let rows: Vec<(String, Option<String>)> = sqlx::query_as(PROCESSES_OF)
            .bind(run_ids)
            .fetch_all(&mut self.connection)
            .await
            .map_err(Error::Source)?;
        Ok(rows.into_iter().map(Row::of).collect())
    }
}

/// Rows as they come: no more than one at a time is held.
pub(super) struct Rows<'a>(BoxStream<'a, Result<(String, Option<String>), sqlx::Error>>);

impl Rows<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<Row>, Error> {
        Ok(self.0.try_next().await.map_err(Error::Source)?.map(Row::of))
    }
}
