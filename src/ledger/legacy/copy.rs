//! Users, agents, sessions and messages of another database, native or text, brought into the ledger's:
//! ids stay, rows that are there already too. What can't be read as its column's type, or refers to
//! nothing, is kept in the row's own JSON column.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use uuid::Uuid;

use super::Error;
use super::report::Report;
use super::source::Source;
use super::values;
use crate::ledger::clean;

const MAX_ROWS: usize = 1_000;
const MAX_BYTES: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Uuid,
    Text,
    Count,
    Flag,
    Time,
    Json,
    /// An agent's number, which is another one here.
    Agent,
}

impl Kind {
    fn sql(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Text => "text",
            Self::Count | Self::Agent => "int",
            Self::Flag => "boolean",
            Self::Time => "timestamptz",
            Self::Json => "jsonb",
        }
    }
}

struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
    /// Columns that refer to a table.
    refers: &'static [(&'static str, &'static str)],
    /// Where what has no place is kept.
    keeps: &'static str,
    order: &'static str,
}

use Kind::{Agent, Count, Flag, Json, Text, Time, Uuid as Id};

const TABLES: [Table; 4] = [
    Table {
        name: "users",
        columns: &[
            ("id", Id),
            ("email", Text),
            ("phone_number", Text),
            ("user_data", Json),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[],
        keeps: "user_data",
        order: "id",
    },
    Table {
        name: "agents",
        columns: &[
            ("name", Text),
            ("type", Text),
            ("model", Text),
            ("description", Text),
            ("version", Text),
            ("config", Json),
            ("active", Flag),
            ("run_id", Count),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[],
        keeps: "config",
        order: "id",
    },
    Table {
        name: "sessions",
        columns: &[
            ("id", Id),
            ("user_id", Id),
            ("agent_id", Agent),
            ("agent_name", Text),
            ("name", Text),
            ("platform", Text),
            ("metadata", Json),
            ("created_at", Time),
            ("updated_at", Time),
            ("run_finished_at", Time),
            ("message_count", Count),
            ("branch_type", Text),
            ("is_main_branch", Flag),
        ],
        refers: &[("user_id", "users")],
        keeps: "metadata",
        order: "id",
    },
    Table {
        name: "messages",
        columns: &[
            ("id", Id),
            ("session_id", Id),
            ("user_id", Id),
            ("agent_id", Agent),
            ("role", Text),
            ("text_content", Text),
            ("media_url", Text),
            ("mime_type", Text),
            ("message_type", Text),
            ("raw_payload", Json),
            ("tool_calls", Json),
            ("tool_outputs", Json),
            ("context", Json),
            ("system_prompt", Text),
            ("user_feedback", Text),
            ("flagged", Text),
            ("channel_payload", Json),
            ("usage", Json),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[("session_id", "sessions"), ("user_id", "users")],
        keeps: "raw_payload",
        // They are numbered in the order in which they come.
        order: "created_at, id",
    },
];

/// Columns that the report says nothing of: they are brought over by other means, or are made here.
const KNOWN: [&str; 3] = ["id", "parent_session_id", "branch_point_message_id"];

pub(super) struct Copy<'a> {
    pub(super) ledger: &'a mut PgConnection,
    pub(super) report: &'a mut Report,
    pub(super) dry: bool,
    pub(super) out: &'a mut (dyn Write + Send),
    /// Numbers of agents, there and here.
    agents: BTreeMap<String, i32>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        ledger: &'a mut PgConnection,
        report: &'a mut Report,
        dry: bool,
        out: &'a mut (dyn Write + Send),
    ) -> Self {
        Self {
            ledger,
            report,
            dry,
            out,
            agents: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, stream: &mut Source) -> Result<(), Error> {
        // What is brought over is no update of it.
        self.tell("SET runledger.backfill = 'on'").await?;
        for table in &TABLES {
            if stream.has(table.name).await? {
                self.table(stream, table).await?;
            }
        }
        if stream.has_column("sessions", "parent_session_id").await? && !self.dry {
            self.branches(stream).await?;
        }
        self.tell("RESET runledger.backfill").await
    }

    async fn tell(&mut self, sql: &'static str) -> Result<(), Error> {
        self.ledger
            .execute(sql)
            .await
            .map(drop)
            .map_err(Error::Ledger)
    }

    async fn table(&mut self, stream: &mut Source, table: &'static Table) -> Result<(), Error> {
        let source = rows_of(table.name);
        let mut names = BTreeMap::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut rows = stream.all(table.name, table.order);
        while let Some(row) = rows.next().await? {
            self.report.read(source, self.out)?;
            for column in row.values.keys().filter(|c| !is_known(table, c)) {
                let note = format!(
                    "values of {}.{column} were left: the ledger has no such column",
                    table.name
                );
                self.report
                    .note(&note, u64::from(!row.values[column].is_null()));
            }
            let id = row.text("id");
            if table.name == "agents" {
                names.insert(id.clone(), row.text("name"));
            }
            match self.read(table, &row.values) {
                Ok(values) => {
                    batch.push(values);
                    bytes += row.bytes;
                }
                Err(why) => self.report.skip(source, why, &id),
            }
            if batch.len() >= MAX_ROWS || bytes >= MAX_BYTES {
                self.write(table, std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.write(table, batch).await?;
        if table.name == "agents" {
            self.find_agents(names).await?;
        }
        Ok(())
    }

    /// The row in the types of its columns.
    fn read(&self, table: &Table, row: &Map<String, Value>) -> Result<Value, &'static str> {
        let mut values = Map::new();
        let mut lost = Map::new();
        for (column, kind) in table.columns {
            let Some(value) = row.get(*column).filter(|value| !value.is_null()) else {
                continue;
            };
            if *kind != Text && value.as_str() == Some("") {
                continue;
            }
            let read = match kind {
                Id => value
                    .as_str()
                    .and_then(|s| Uuid::parse_str(s.trim()).ok())
                    .map(|id| json!(id)),
                Text => Some(json!(
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                )),
                Count => values::count(value)
                    .and_then(|n| i32::try_from(n).ok())
                    .map(|n| json!(n)),
                Flag => values::flag(value).map(|flag| json!(flag)),
                Time => values::time(value).map(|time| json!(time)),
                Json => Some(match value.as_str() {
                    Some(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
                    None => value.clone(),
                }),
                Agent => values::text(value)
                    .and_then(|id| self.agents.get(&id))
                    .map(|id| json!(id)),
            };
            match read {
                Some(Value::String(text)) if *column == "usage" => {
                    lost.insert("usage".to_owned(), json!(text));
                }
                Some(read) => {
                    values.insert((*column).to_owned(), read);
                }
                None if *column == "id" => return Err("its id is no UUID"),
                None => {
                    lost.insert((*column).to_owned(), value.clone());
                }
            }
        }
        let mut values = Value::Object(values);
        if clean::value(&mut values) {
            lost.insert("altered".to_owned(), json!(true));
        }
        values["lost"] = Value::Object(lost);
        Ok(values)
    }

    async fn write(&mut self, table: &'static Table, rows: Vec<Value>) -> Result<(), Error> {
        let count = rows.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let new = if self.dry {
            count
        } else {
            sqlx::query(AssertSqlSafe(insert(table)))
                .bind(Value::Array(rows))
                .execute(&mut *self.ledger)
                .await
                .map_err(Error::Ledger)?
                .rows_affected()
        };
        let counts = self.report.count(rows_of(table.name));
        counts.imported += new;
        counts.unchanged += count - new;
        Ok(())
    }

    async fn find_agents(&mut self, names: BTreeMap<String, String>) -> Result<(), Error> {
        let here = sqlx::query!("SELECT id, name FROM agents")
            .fetch_all(&mut *self.ledger)
            .await
            .map_err(Error::Ledger)?;
        let here: BTreeMap<String, i32> = here.into_iter().map(|row| (row.name, row.id)).collect();
        self.agents = names
            .into_iter()
            .filter_map(|(id, name)| Some((id, *here.get(&name)?)))
            .collect();
        Ok(())
    }

    /// Sessions that branch off others, once all sessions and messages are there.
    async fn branches(&mut self, stream: &mut Source) -> Result<(), Error> {
        let mut rows = stream.all("sessions", "id");
        while let Some(row) = rows.next().await? {
            let id = |column| Uuid::parse_str(&row.text(column)).ok();
            let (parent, point) = (id("parent_session_id"), id("branch_point_message_id"));
            if parent.is_none() && point.is_none() {
                continue;
            }
            sqlx::query!(
                "UPDATE sessions SET
                     parent_session_id = coalesce(parent_session_id, (SELECT p.id FROM sessions p WHERE p.id = $2)),
                     branch_point_message_id =
                         coalesce(branch_point_message_id, (SELECT m.id FROM messages m WHERE m.id = $3))
                 WHERE id = $1 AND namespace IS NULL",
                id("id"),
                parent,
                point,
            )
            .execute(&mut *self.ledger)
            .await
            .map_err(Error::Ledger)?;
        }
        Ok(())
    }
}

fn rows_of(table: &str) -> &'static str {
    match table {
        "users" => "users (copied)",
        "agents" => "agents (copied)",
        "sessions" => "sessions (copied)",
        _ => "messages (copied)",
    }
}

fn is_known(table: &Table, column: &str) -> bool {
    KNOWN.contains(&column) || table.columns.iter().any(|(known, _)| *known == column)
}

/// One statement for a batch: rows that are there stay as they are; a reference to nothing, and what
/// could not be read, goes to `lost` in the column that keeps such things.
fn insert(table: &Table) -> String {
    let refers = |column: &str| table.refers.iter().find(|(of, _)| *of == column);
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let kinds: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| format!("{name} {}", kind.sql()))
        .collect();
    let missing: Vec<String> = table
        .refers
        .iter()
        .map(|(column, of)| {
            format!("'{column}', CASE WHEN NOT EXISTS (SELECT FROM {of} o WHERE o.id = x.{column}) THEN x.{column} END")
        })
        .collect();
    let lost = format!(
        "(x.lost || jsonb_strip_nulls(jsonb_build_object({})))",
        missing.join(", ")
    );
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match (*name, kind) {
            (name, _) if name == table.keeps => format!(
                "CASE WHEN {lost} = '{{}}' THEN x.{name}
                      WHEN jsonb_typeof(coalesce(x.{name}, '{{}}')) = 'object'
                      THEN coalesce(x.{name}, '{{}}') || jsonb_build_object('lost', {lost})
                      ELSE jsonb_build_object('lost', {lost}, 'value', x.{name}) END"
            ),
            ("usage", _) => {
                "CASE jsonb_typeof(x.usage) WHEN 'object' THEN x.usage ELSE '{}' END".to_owned()
            }
            ("created_at", _) => "coalesce(x.created_at, x.updated_at, now())".to_owned(),
            ("updated_at", _) => "coalesce(x.updated_at, x.created_at, now())".to_owned(),
            ("role" | "type" | "model", _) => format!("coalesce(x.{name}, '')"),
            (name, _) => match refers(name) {
                Some((_, of)) => format!("(SELECT o.id FROM {of} o WHERE o.id = x.{name})"),
                None => format!("x.{name}"),
            },
        })
        .collect();
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM jsonb_to_recordset($1) AS x ({}, lost jsonb) ON CONFLICT DO NOTHING",
        table.name,
        names.join(", "),
        values.join(", "),
        kinds.join(", "),
    )
}
