//! What runs came to, as the rollups have it, and how long they took, as the rows have it. Who keeps
//! the rollups is `rollup`.

mod command;
mod print;

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use rust_decimal::Decimal;

use super::{Error, Ledger};

pub use command::{Args, Failure, run, run_to};

/// What is asked: which runs, and by what they are told apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// First UTC day that the runs were created on.
    pub since: Date,
    /// Last such day.
    pub until: Date,
    /// Only runs of this namespace.
    pub namespace: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only what this model did in them.
    pub model: Option<String>,
    /// Only runs on this repository.
    pub repository: Option<String>,
    /// One line for each of these; all runs on one line if there is none.
    pub by: Vec<By>,
}

/// What runs are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// UTC day that they were created on.
    Day,
    /// Their namespace.
    Namespace,
    /// Their workflow.
    Workflow,
    /// The models that they used: a run counts for each of them, with what that one used and cost.
    Model,
    /// Their repository.
    Repository,
}

/// Which runs a line is about: what the query tells them apart by; the empty text where they have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// UTC day that they were created on.
    pub day: Option<Date>,
    /// Their namespace.
    pub namespace: Option<String>,
    /// Their workflow.
    pub workflow: Option<String>,
    /// Their model.
    pub model: Option<String>,
    /// Their repository.
    pub repository: Option<String>,
}

/// What the runs of a line came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Which runs.
    pub key: Key,
    /// How many.
    pub runs: i64,
    /// Of them, how many were completed.
    pub completed: i64,
    /// How many failed.
    pub failed: i64,
    /// How many were killed.
    pub killed: i64,
    /// Completed, of all that ended; nothing where none did.
    pub success_rate: Option<Decimal>,
    /// US dollars, of the runs whose cost is known; nothing where none is.
    pub cost: Option<Decimal>,
    /// Runs that cost something, or more than is counted, and nobody said how much.
    pub unknown_cost: i64,
    /// Input tokens that no cache was involved in.
    pub input_tokens: i64,
    /// Output tokens.
    pub output_tokens: i64,
    /// Input tokens read from the cache.
    pub cache_read_tokens: i64,
    /// Input tokens written to the cache.
    pub cache_creation_tokens: i64,
    /// What was read from the cache, of all that the models read.
    pub cache_efficiency: Option<Decimal>,
    /// Lines added.
    pub added_lines: i64,
    /// Lines removed.
    pub removed_lines: i64,
    /// US dollars for a line added or removed, of the runs whose cost is known, whatever their models.
    pub cost_per_line: Option<Decimal>,
}

/// How long the runs of a line took from start to end, in seconds: of those whose rows are still there.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    /// Which runs.
    pub key: Key,
    /// Half of them no longer than this.
    pub p50: i32,
    /// 95 of 100.
    pub p95: i32,
    /// 99 of 100.
    pub p99: i32,
}

impl Query {
    fn is_by(&self, by: By) -> bool {
        self.by.contains(&by)
    }
}

/// The rows of a file's query, asked for what both are asked for: by what, from when to when, of which runs.
macro_rules! rows {
    ($file:literal, $q:ident, $pool:expr) => {
        sqlx::query_file!(
            $file,
            $q.is_by(By::Day),
            $q.is_by(By::Namespace),
            $q.is_by(By::Workflow),
            $q.is_by(By::Model),
            $q.is_by(By::Repository),
            $q.since.to_sqlx() as _,
            $q.until.to_sqlx() as _,
            $q.namespace,
            $q.workflow,
            $q.model,
            $q.repository,
        )
        .fetch_all($pool)
        .await?
    };
}

/// What a row of them is about.
macro_rules! key {
    ($row:ident) => {
        Key {
            day: $row.day.map(|day| day.to_jiff()),
            namespace: $row.namespace,
            workflow: $row.workflow,
            model: $row.model,
            repository: $row.repository,
        }
    };
}

impl Ledger {
    /// A line for each day, namespace … that the query names, days first, then what cost most.
    pub async fn report(&self, query: &Query) -> Result<Vec<Line>, Error> {
        Self::tries(|| self.lines(query)).await
    }

    async fn lines(&self, q: &Query) -> Result<Vec<Line>, Error> {
        let rows = rows!("src/ledger/report/lines.sql", q, &self.pool);
        let lines = rows.into_iter().map(|row| Line {
            key: key!(row),
            runs: row.runs,
            completed: row.completed,
            failed: row.failed,
            killed: row.killed,
            success_rate: row.success_rate,
            cost: row.cost,
            unknown_cost: row.unknown_cost,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cache_read_tokens: row.cache_read_tokens,
            cache_creation_tokens: row.cache_creation_tokens,
            cache_efficiency: row.cache_efficiency,
            added_lines: row.added_lines,
            removed_lines: row.removed_lines,
            cost_per_line: row.cost_per_line,
        });
        Ok(lines.collect())
    }

    /// How long the runs took, for each day, namespace … that the query names. Reads their rows.
    pub async fn durations(&self, query: &Query) -> Result<Vec<Durations>, Error> {
        Self::tries(|| self.quantiles(query)).await
    }

    async fn quantiles(&self, q: &Query) -> Result<Vec<Durations>, Error> {
        let rows = rows!("src/ledger/report/durations.sql", q, &self.pool);
        let durations = rows.into_iter().map(|row| Durations {
            key: key!(row),
            p50: row.p50,
            p95: row.p95,
            p99: row.p99,
        });
        Ok(durations.collect())
    }
}
