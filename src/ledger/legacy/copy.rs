//! Users, agents, sessions, messages and workflow_runs of another database, native or text, brought into
//! the ledger's: ids stay (but for agents' numbers), rows that are there already too. What can't be read
//! as its column's type, refers to nothing or has no column is kept in the row's own JSON column; a row
//! that the ledger refuses is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use uuid::Uuid;

use super::Error;
use super::report::Report;
use super::source::{Row, Source};
use super::tables::{BRANCHES, TABLES, Table, insert, keep, rows_of};
use super::write::is_refusal;
use super::{typed, values};
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
        if stream.has_column("sessions", BRANCHES[0]).await? && !self.dry {
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
        let mut names = BTreeMap::new();
        let mut batch = Batch::default();
        let mut rows = stream.all(table.name, table.order);
        while let Some(row) = rows.next().await? {
            self.report.read(rows_of(table.name), self.out)?;
            if table.name == "agents" {
                names.insert(row.text("id"), row.text("name"));
            }
            self.add(table, &row, &mut batch);
            if batch.rows.len() >= MAX_ROWS || batch.bytes >= MAX_BYTES {
                self.write(table, std::mem::take(&mut batch)).await?;
            }
        }
        self.write(table, batch).await?;
        if table.name == "agents" {
            self.find_agents(names).await?;
        }
        Ok(())
    }

    fn add(&mut self, table: &Table, row: &Row, batch: &mut Batch) {
        let source = rows_of(table.name);
        let id = row.text("id");
        let read = match typed::read(table, &row.values, &self.agents) {
            Ok(read) => read,
            Err(why) => return self.report.skip(source, why, &id),
        };
        let key = read.values[table.key].to_string();
        if !batch.keys.insert(key) {
            let why = "another row there is the same one by its key";
            return self.report.skip(source, why, &id);
        }
        let (name, (column, key)) = (table.name, table.keeps);
        for unknown in read.unknown {
            let note = format!(
                "values of {name}.{unknown} were put into {column}.{key}: the ledger has no such column"
            );
            self.report.note(&note, 1);
        }
        for empty in read.empty {
            let note = format!("rows of {name} had no {empty}, which is empty or unknown now");
            self.report.note(&note, 1);
        }
        batch.rows.push((id, read.values));
        batch.bytes += row.bytes;
    }

    async fn write(&mut self, table: &'static Table, batch: Batch) -> Result<(), Error> {
        let count = batch.rows.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let (new, refused) = if self.dry {
            (count - self.there(table, &batch.rows).await?, 0)
        } else {
            self.in_parts(table, batch.rows).await?
        };
        let counts = self.report.count(rows_of(table.name));
        counts.imported += new;
        counts.unchanged += count - new - refused;
        Ok(())
    }

    async fn insert(&mut self, table: &Table, rows: Vec<Value>) -> Result<u64, Error> {
        let done = sqlx::query(AssertSqlSafe(insert(table)))
            .bind(Value::Array(rows))
            .execute(&mut *self.ledger)
            .await
            .map_err(Error::Ledger)?;
        Ok(done.rows_affected())
    }

    /// A row that the database refuses must not keep its batch out: it is looked for by halves, told, and
    /// left. Answers how many are new, and how many were refused.
    async fn in_parts(&mut self, table: &Table, rows: Vec<Sent>) -> Result<(u64, u64), Error> {
        let (mut new, mut refused) = (0, 0);
        let mut parts = vec![rows];
        while let Some(mut part) = parts.pop() {
            let values = part.iter().map(|(_, row)| row.clone()).collect();
            match self.insert(table, values).await {
                Err(Error::Ledger(error)) if is_refusal(&error) => {
                    if part.len() > 1 {
                        let second = part.split_off(part.len() / 2);
                        parts.extend([second, part]);
                        continue;
                    }
                    let why = error.as_database_error().map(|e| e.message());
                    for (id, _) in &part {
                        let source = rows_of(table.name);
                        self.report.skip(source, why.unwrap_or_default(), id);
                        refused += 1;
                    }
                }
                some => new += some?,
            }
        }
        Ok((new, refused))
    }

    /// How many of the rows are there already.
    async fn there(&mut self, table: &Table, rows: &[Sent]) -> Result<u64, Error> {
        let keys: Vec<&str> = rows
            .iter()
            .filter_map(|(_, row)| row[table.key].as_str())
            .collect();
        let (name, key) = (table.name, table.key);
        let sql = format!("SELECT count(*) FROM {name} WHERE {key}::text = ANY($1)");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&keys)
            .fetch_one(&mut *self.ledger)
            .await
            .map_err(Error::Ledger)?;
        Ok(count.unsigned_abs())
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
        let mut batch = Vec::new();
        let mut rows = stream.all("sessions", "id");
        while let Some(row) = rows.next().await? {
            batch.extend(branch(&row));
            if batch.len() >= MAX_ROWS {
                self.branch_off(std::mem::take(&mut batch)).await?;
            }
        }
        self.branch_off(batch).await
    }

    async fn branch_off(&mut self, batch: Vec<Value>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let lost = "f.lost";
        let sql = format!(
            "WITH found AS (
                 SELECT x.id, p.id AS parent, m.id AS point, x.lost || jsonb_strip_nulls(jsonb_build_object(
                     'parent_session_id', CASE WHEN p.id IS NULL THEN x.parent_session_id END,
                     'branch_point_message_id', CASE WHEN m.id IS NULL THEN x.branch_point_message_id END)) AS lost
                 FROM jsonb_to_recordset($1)
                     AS x (id uuid, parent_session_id uuid, branch_point_message_id uuid, lost jsonb)
                 LEFT JOIN sessions p ON p.id = x.parent_session_id
                 LEFT JOIN messages m ON m.id = x.branch_point_message_id
             )
             UPDATE sessions s SET
                 parent_session_id = coalesce(s.parent_session_id, f.parent),
                 branch_point_message_id = coalesce(s.branch_point_message_id, f.point),
                 metadata = {}
             FROM found f WHERE s.id = f.id AND s.namespace IS NULL
               AND (f.parent IS NOT NULL AND s.parent_session_id IS NULL
                    OR f.point IS NOT NULL AND s.branch_point_message_id IS NULL
                    OR NOT coalesce(s.metadata -> 'lost' @> f.lost, f.lost = '{{}}'))",
            keep("s.metadata", "lost", lost),
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(Value::Array(batch))
            .execute(&mut *self.ledger)
            .await
            .map(drop)
            .map_err(Error::Ledger)
    }
}

/// A row and its id there.
type Sent = (String, Value);

/// Rows in the making.
#[derive(Default)]
struct Batch {
    rows: Vec<Sent>,
    keys: BTreeSet<String>,
    bytes: usize,
}

/// What a session branches off, if it does; what is no UUID under `lost`.
fn branch(row: &Row) -> Option<Value> {
    let id = Uuid::parse_str(row.text("id").trim()).ok()?;
    let mut found = Map::from_iter([("id".to_owned(), json!(id))]);
    let mut lost = Map::new();
    for column in BRANCHES {
        let Some(text) = row.values.get(column).and_then(values::text) else {
            continue;
        };
        match Uuid::parse_str(text.trim()) {
            Ok(id) => found.insert(column.to_owned(), json!(id)),
            Err(_) => lost.insert(column.to_owned(), json!(text)),
        };
    }
    if found.len() == 1 && lost.is_empty() {
        return None;
    }
    let mut lost = Value::Object(lost);
    clean::value(&mut lost);
    found.insert("lost".to_owned(), lost);
    Some(Value::Object(found))
}
