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
use super::tables::{Kind, TABLES, Table, insert, is_known, rows_of};
use super::values;
use crate::ledger::clean;

const MAX_ROWS: usize = 1_000;
const MAX_BYTES: usize = 8 << 20;

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
            if *kind != Kind::Text && value.as_str() == Some("") {
                continue;
            }
            let read = match kind {
                Kind::Uuid => value
                    .as_str()
                    .and_then(|s| Uuid::parse_str(s.trim()).ok())
                    .map(|id| json!(id)),
                Kind::Text => Some(json!(
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                )),
                Kind::Count => values::count(value)
                    .and_then(|n| i32::try_from(n).ok())
                    .map(|n| json!(n)),
                Kind::Flag => values::flag(value).map(|flag| json!(flag)),
                Kind::Time => values::time(value).map(|time| json!(time)),
                Kind::Json => Some(match value.as_str() {
                    Some(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
                    None => value.clone(),
                }),
                Kind::Agent => values::text(value)
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
