//! What comes from the earlier system and then goes: `runledger migrate import-legacy` makes runs of
//! process rows, of the facts in sessions' metadata and of log files; `runledger migrate drop-legacy`
//! removes those once every one of them is accounted for.
//!
//! Rows are streamed and written in batches of one statement each; each run remembers what was read for
//! it (`metadata.legacy.read`), so that an import that was interrupted goes on where it was, and one
//! that is repeated changes nothing.

mod copy;
mod facts;
mod logs;
mod reader;
mod remove;
mod report;
mod row;
mod source;
mod tables;
mod typed;
mod users;
mod values;
mod write;

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;

pub use remove::DropArgs;
pub(super) use remove::run as remove;
pub use report::{Count, Report};

use copy::Copy;
use facts::Facts;
use logs::Logs;
use source::{Row, Source};
use write::{Batch, Pending};

/// Names of the sources, as the report has them.
pub const SESSIONS: &str = "sessions";
/// Rows of `workflow_processes`.
pub const PROCESSES: &str = "workflow_processes";
/// Log files.
pub const LOGS: &str = "log files";

/// Arguments of `runledger migrate import-legacy`.
///
/// Makes a row of workflow_runs of each run that the earlier system knew: of rows of
/// workflow_processes, of the facts in metadata of sessions whose agent_type is claude-code, and of log
/// files. Where several know the same run, they become one row, and the first that has a fact wins, in
/// that order: session, process, log. What has no column is kept in metadata.legacy. Columns of the
/// tables may be native or text. With --from, users, agents, sessions, messages and workflow_runs are
/// copied first: ids stay (but for agents' numbers), and rows that are there already do too. May be
/// interrupted and repeated at any time: what was imported before is not imported again.
#[derive(Clone, Debug, Default, Parser)]
pub struct ImportArgs {
    /// Where the earlier tables are, if not in the ledger's own database: postgres://…
    #[arg(long, env = "LEGACY_DATABASE_URL", hide_env_values = true)]
    pub from: Option<String>,
    /// Folder of the earlier system's log files (run_ID.log, WORKFLOW_SESSION.log).
    #[arg(long)]
    pub logs: Option<PathBuf>,
}

/// Why the import ended early. What was written by then stays, and is not written again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source can't be reached or read.
    #[error(
        "the earlier system's database can't be read; what was imported stays, run import-legacy again"
    )]
    Source(#[source] sqlx::Error),
    /// The ledger refused or went away.
    #[error("the ledger can't be written to; what was imported stays, run import-legacy again")]
    Ledger(#[source] sqlx::Error),
    /// The folder of log files can't be listed.
    #[error("folder {0} can't be listed")]
    Logs(PathBuf, #[source] std::io::Error),
    /// Progress could not be written.
    #[error("standard output can't be written to")]
    Output(#[source] std::io::Error),
}

/// Imports all there is. `from` are two connections to the same database: one streams, one looks up.
pub(super) async fn import(
    args: &ImportArgs,
    ledger: &mut PgConnection,
    from: [PgConnection; 2],
    dry: bool,
    out: &mut (dyn Write + Send),
) -> Result<Report, Error> {
    let [stream, lookup] = from;
    let mut import = Import {
        ledger,
        lookup: Source::new(lookup).await?,
        logs: args.logs.clone().map(Logs),
        now: Timestamp::now(),
        batch: Batch::default(),
        report: Report::default(),
        dry,
        out,
    };
    if let Some(logs) = &import.logs {
        // Before the long part.
        drop(logs.names().map_err(|e| Error::Logs(logs.0.clone(), e))?);
    }
    let mut stream = Source::new(stream).await?;
    let runs = args.from.is_some() && stream.has("workflow_runs").await?;
    if args.from.is_some() {
        // First, so that runs find their sessions.
        let copy = Copy::new(import.ledger, &mut import.report, dry, import.out);
        copy.run(&mut stream).await?;
    }
    if stream.sessions {
        import.sessions(&mut stream).await?;
    }
    if stream.processes {
        import.processes(&mut stream).await?;
    }
    import.remaining_logs().await?;
    if !stream.sessions && !stream.processes && !runs && args.logs.is_none() {
        let line = "nothing to import: the database has neither sessions nor workflow_processes, and no --logs were given";
        writeln!(import.out, "{line}").map_err(Error::Output)?;
    }
    Ok(import.report)
}

struct Import<'a> {
    ledger: &'a mut PgConnection,
    lookup: Source,
    logs: Option<Logs>,
    now: Timestamp,
    batch: Batch,
    report: Report,
    dry: bool,
    out: &'a mut (dyn Write + Send),
}

impl Import<'_> {
    /// Sessions first: they know most. What processes know of the same runs is added at once.
    async fn sessions(&mut self, stream: &mut Source) -> Result<(), Error> {
        let mut rows = stream.sessions();
        while let Some(row) = rows.next().await? {
            self.report.read(SESSIONS, self.out)?;
            let name = format!("session:{}", row.text("id"));
            match Facts::of_session(&row.values) {
                Ok(Some(facts)) => {
                    // Sessions that name the same run come one after the other.
                    if self.batch.is_full() && !self.batch.holds(facts.run_id.as_deref()) {
                        self.join_processes().await?;
                        self.flush().await?;
                    }
                    self.add(SESSIONS, facts, name, row);
                }
                Ok(None) => self.report.count(SESSIONS).empty += 1,
                Err(why) => self.report.skip(SESSIONS, why, &name),
            }
        }
        self.join_processes().await?;
        self.flush().await
    }

    async fn join_processes(&mut self) -> Result<(), Error> {
        if !self.lookup.processes {
            return Ok(());
        }
        for row in self.lookup.processes_of(&self.batch.run_ids()).await? {
            let facts = Facts::of_process(&row.values);
            let run_id = facts.run_id.clone().unwrap_or_default();
            let md5 = json!(row.md5);
            for (_, run) in self.batch.runs_mut().filter(|(id, _)| **id == run_id) {
                let known = std::mem::take(&mut run.facts);
                run.facts = known.or(facts.clone());
                run.read.insert("process".to_owned(), md5.clone());
                run.joined.push(PROCESSES);
            }
        }
        Ok(())
    }

    /// Processes whose run no session tells of.
    async fn processes(&mut self, stream: &mut Source) -> Result<(), Error> {
        let mut rows = stream.processes();
        while let Some(row) = rows.next().await? {
            self.report.read(PROCESSES, self.out)?;
            let facts = Facts::of_process(&row.values);
            self.add(PROCESSES, facts, "process".to_owned(), row);
            if self.batch.is_full() {
                self.flush().await?;
            }
        }
        self.flush().await?;
        self.report.turn_is_over(PROCESSES);
        Ok(())
    }

    fn add(&mut self, source: &'static str, facts: Facts, name: String, row: Row) {
        let again = source == SESSIONS && self.batch.holds(facts.run_id.as_deref());
        let said = again.then(|| Facts::said_by(&row.values));
        let run = Pending {
            source,
            facts,
            said: said.unwrap_or_default(),
            read: Map::from_iter([(name, json!(row.md5))]),
            bytes: row.bytes,
            joined: Vec::new(),
        };
        self.batch.add(run, &mut self.report);
    }

    /// Adds what the log files of the batch's runs know, and writes it.
    async fn flush(&mut self) -> Result<(), Error> {
        if let Some(logs) = &self.logs {
            for (run_id, run) in self.batch.runs_mut() {
                let claude = run
                    .facts
                    .legacy
                    .get("claude_session_id")
                    .and_then(Value::as_str);
                let files = logs.of(run_id, run.facts.workflow_name.as_deref(), claude);
                for mut log in files {
                    if let Some(facts) = log.runs.remove(run_id) {
                        let known = std::mem::take(&mut run.facts);
                        run.facts = known.or(facts);
                        run.read
                            .insert(format!("log:{}", log.name), json!(log.bytes));
                        run.joined.push(LOGS);
                    }
                }
            }
        }
        self.batch
            .write(self.ledger, self.dry, self.now, &mut self.report)
            .await
    }

    /// Files of runs that neither a session nor a process tells of.
    async fn remaining_logs(&mut self) -> Result<(), Error> {
        let Some(logs) = self.logs.take() else {
            return Ok(());
        };
        let names = logs.names().map_err(|e| Error::Logs(logs.0.clone(), e))?;
        for name in names {
            self.report.read(LOGS, self.out)?;
            let name = match name {
                Ok(name) => name,
                Err((why, name)) => {
                    self.report.skip(LOGS, &why, &name);
                    continue;
                }
            };
            let log = match logs.read(&name) {
                Ok(log) => log,
                Err(error) => {
                    self.report.skip(LOGS, &error.to_string(), &name);
                    continue;
                }
            };
            self.report.note(
                "lines of log files were no entries, and passed over",
                log.passed_over,
            );
            if log.runs.is_empty() {
                self.report.skip(LOGS, "no entry names a run", &name);
                continue;
            }
            for facts in log.runs.into_values() {
                let run = Pending {
                    source: LOGS,
                    facts,
                    said: Map::new(),
                    read: Map::from_iter([(format!("log:{name}"), json!(log.bytes))]),
                    bytes: 0,
                    joined: Vec::new(),
                };
                self.batch.add(run, &mut self.report);
            }
            if self.batch.is_full() {
                self.batch
                    .write(self.ledger, self.dry, self.now, &mut self.report)
                    .await?;
            }
        }
        self.batch
            .write(self.ledger, self.dry, self.now, &mut self.report)
            .await?;
        self.report.turn_is_over(LOGS);
        Ok(())
    }
}
