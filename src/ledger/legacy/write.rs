//! Rows into `workflow_runs`: a batch in one statement, so that it is there whole or not at all. Written
//! twice it changes nothing; a row that is there gets what it lacks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Error;
use super::facts::Facts;
use super::report::Report;
use crate::ids;
use crate::ledger::clean;

/// Longest `run_id`.
const MAX_RUN_ID: usize = 255;
/// Rows and bytes of a batch.
const MAX_ROWS: usize = 1_000;
const MAX_BYTES: usize = 8 << 20;

/// A run that waits to be written.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) source: &'static str,
    pub(super) facts: Facts,
    /// Of a session whose run another names too: its facts as they are.
    pub(super) said: Map<String, Value>,
    /// What was read for it: the names of rows and files, with what tells whether they have changed.
    pub(super) read: Map<String, Value>,
    pub(super) bytes: usize,
    /// Sources that were asked for this run out of their turn.
    pub(super) joined: Vec<&'static str>,
}

/// A batch in the making.
#[derive(Debug, Default)]
pub(super) struct Batch {
    runs: BTreeMap<String, Pending>,
    bytes: usize,
}

impl Batch {
    /// Adds a run; what can't have a row is told.
    pub(super) fn add(&mut self, run: Pending, report: &mut Report) {
        let name = run.read.keys().next().cloned().unwrap_or_default();
        let Some(run_id) = run.facts.run_id.clone() else {
            report.skip(run.source, "it has no run_id", &name);
            return;
        };
        if run_id.chars().count() > MAX_RUN_ID || run_id.contains('\0') {
            report.skip(
                run.source,
                "its run_id is longer than 255 characters",
                &name,
            );
            return;
        }
        self.bytes += run.bytes;
        match self.runs.remove(&run_id) {
            Some(known) => {
                report.count(run.source).merged += 1;
                let mut facts = known.facts.or(run.facts);
                if !run.said.is_empty() {
                    // The first's count; what this one says is told nowhere else once it is removed.
                    let also = facts.legacy.entry("also").or_insert_with(|| json!({}));
                    also[&name] = Value::Object(run.said);
                    report.note("sessions name a run that another names too; what they say is in metadata.legacy.also", 1);
                }
                let mut read = known.read;
                read.extend(run.read);
                let both = Pending {
                    source: known.source,
                    facts,
                    said: Map::new(),
                    read,
                    bytes: 0,
                    joined: Vec::new(),
                };
                self.runs.insert(run_id, both);
            }
            None => {
                self.runs.insert(run_id, run);
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.runs.len() >= MAX_ROWS || self.bytes >= MAX_BYTES
    }

    pub(super) fn holds(&self, run_id: Option<&str>) -> bool {
        run_id.is_some_and(|run_id| self.runs.contains_key(run_id))
    }

    pub(super) fn run_ids(&self) -> Vec<String> {
        self.runs.keys().cloned().collect()
    }

    pub(super) fn runs_mut(&mut self) -> impl Iterator<Item = (&String, &mut Pending)> {
        self.runs.iter_mut()
    }

    /// Writes what is not there yet (or, in a dry run, only finds out), and begins anew.
    pub(super) async fn write(
        &mut self,
        ledger: &mut PgConnection,
        dry: bool,
        now: Timestamp,
        report: &mut Report,
    ) -> Result<(), Error> {
        let batch = std::mem::take(self);
        if batch.runs.is_empty() {
            return Ok(());
        }
        let there = there(ledger, &batch.run_ids()).await?;
        let mut rows = Vec::new();
        let mut sources = BTreeMap::new();
        for (run_id, run) in batch.runs {
            let (mut row, read) = (run.facts.row(id(&run_id), &run_id, now), run.read);
            if let Some(known) = there.get(&run_id) {
                if !known.foreign {
                    report.skip(run.source, "the run is Runledger's own", &run_id);
                    continue;
                }
                let status = row.get("status").and_then(Value::as_str);
                let moved = known.status != "failed"
                    && known.status != "completed"
                    && known.status != "killed"
                    && status != Some(&known.status);
                if !moved
                    && read
                        .iter()
                        .all(|(key, value)| known.read.get(key) == Some(value))
                {
                    report.count(run.source).unchanged += 1;
                    continue;
                }
            }
            if let Some(legacy) = row.get_mut("legacy").and_then(Value::as_object_mut) {
                legacy.insert("read".to_owned(), Value::Object(read));
            }
            if clean::value(&mut row)
                && let Some(legacy) = row.get_mut("legacy").and_then(Value::as_object_mut)
            {
                legacy.insert("altered".to_owned(), json!(true));
            }
            for source in run.joined {
                report.merged_ahead(source);
            }
            sources.insert(run_id, run.source);
            rows.push(row);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let new = if dry {
            let ids = sources.keys().filter(|run_id| !there.contains_key(*run_id));
            ids.cloned().collect()
        } else {
            match upsert(ledger, rows.clone()).await {
                Err(Error::Ledger(error)) if is_refusal(&error) => {
                    one_by_one(ledger, rows, &mut sources, report).await?
                }
                other => other?,
            }
        };
        for (run_id, source) in sources {
            let count = report.count(source);
            if new.contains(&run_id) {
                count.imported += 1;
            } else {
                count.merged += 1;
            }
        }
        Ok(())
    }
}

/// Id of the row: the same in every import.
fn id(run_id: &str) -> Uuid {
    ids::legacy_run(run_id)
}

/// A row that is there.
pub(super) struct Known {
    /// Not one of ours.
    pub(super) foreign: bool,
    status: String,
    pub(super) read: Map<String, Value>,
}

/// Those of the runs that the ledger has.
pub(super) async fn there(
    ledger: &mut PgConnection,
    run_ids: &[String],
) -> Result<BTreeMap<String, Known>, Error> {
    let rows = sqlx::query!(
        r#"SELECT run_id, namespace IS NULL AS "foreign!", status, metadata #> '{legacy,read}' AS read
           FROM workflow_runs WHERE run_id = ANY($1)"#,
        run_ids,
    )
    .fetch_all(ledger)
    .await
    .map_err(Error::Ledger)?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let read = match row.read {
                Some(Value::Object(read)) => read,
                _ => Map::new(),
            };
            let known = Known {
                foreign: row.foreign,
                status: row.status,
                read,
            };
            (row.run_id, known)
        })
        .collect())
}

/// A row that the database refuses must not keep its batch out: it is told, and left.
async fn one_by_one(
    ledger: &mut PgConnection,
    rows: Vec<Value>,
    sources: &mut BTreeMap<String, &'static str>,
    report: &mut Report,
) -> Result<BTreeSet<String>, Error> {
    let mut new = BTreeSet::new();
    for row in rows {
        let run_id = row
            .get("run_id")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        match upsert(ledger, vec![row]).await {
            Err(Error::Ledger(error)) if is_refusal(&error) => {
                let why = error.as_database_error().map(|e| e.message().to_owned());
                if let Some(source) = sources.remove(&run_id) {
                    report.skip(source, &why.unwrap_or_default(), &run_id);
                }
            }
            other => new.extend(other?),
        }
    }
    Ok(new)
}

/// A value out of range, a constraint, or the rule that runs only move forward.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23") || code == "RL001")
}

/// Writes the rows, and answers which are new.
async fn upsert(ledger: &mut PgConnection, rows: Vec<Value>) -> Result<BTreeSet<String>, Error> {
    let rows = sqlx::query_file!("src/ledger/legacy/upsert.sql", Value::Array(rows))
        .fetch_all(ledger)
        .await
        .map_err(Error::Ledger)?;
    Ok(rows
        .into_iter()
        .filter(|row| row.new)
        .map(|row| row.run_id)
        .collect())
}
