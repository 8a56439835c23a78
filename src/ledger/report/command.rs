//! `runledger report`: what runs came to, for a person's eyes, a program's or a spreadsheet's.

use std::collections::BTreeMap;
use std::io::Write;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};

use super::super::connection::Connection;
use super::super::{Error, Ledger};
use super::print;
use super::{By, Durations, Key, Line, Query};

/// Arguments of `runledger report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A run counts on the UTC day that it was created on, also once it has been pruned; how long runs took
(p50, p95, p99, from start to end) is read from the rows that are still there. Costs are US dollars. A
cost that nobody named is unknown, not zero: it is shown as `unknown`, and as `≥` where it is part of a
sum. Lines are those added and removed; SUCCESS is of the runs that have ended; FROM CACHE is what was
read from the cache, of all that the models read. By model, a run counts for each model that it used,
with the tokens and the cost of that one (and with all its lines, and the cost of all of it for a line).
Where the SDK named one cost for several models, it is shared out as the prices say; without prices for
all of them nobody knows whose it is, and it stands on the line without a model.

Examples:
  runledger report                               the last 30 days, by workflow
  runledger report --by day --namespace team-a
  runledger report --by workflow,model --since 2026-01-01 --until 2026-03-31 -o csv
  runledger report --by none -o json             one line for all of it")]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// What to tell runs apart by, one or several.
    #[arg(long, value_delimiter = ',', default_value = "workflow", value_enum)]
    by: Vec<Grouping>,
    /// First day, UTC [default: 29 days before the last].
    #[arg(long, value_name = "YYYY-MM-DD")]
    since: Option<Date>,
    /// Last day, UTC [default: today].
    #[arg(long, value_name = "YYYY-MM-DD")]
    until: Option<Date>,
    /// Only runs of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only runs of this workflow.
    #[arg(long)]
    workflow: Option<String>,
    /// Only what this model did.
    #[arg(long)]
    model: Option<String>,
    /// Only runs on this repository.
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
    /// How to print it.
    #[arg(short, long, default_value = "table", value_enum)]
    output: Output,
}

/// `--by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Grouping {
    /// UTC day that they were created on.
    Day,
    /// Namespace.
    Namespace,
    /// Workflow.
    Workflow,
    /// Each model that was used.
    Model,
    /// Repository.
    Repository,
    /// Nothing: all on one line.
    None,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For a person.
    Table,
    /// One document; amounts of money are strings, so that no reader rounds them.
    Json,
    /// With a heading, for a spreadsheet.
    Csv,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(String),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] Error),
    /// It could not be written.
    #[error("standard output can't be written to")]
    Output(#[from] std::io::Error),
}

/// All that is printed.
pub(super) struct Report {
    pub(super) query: Query,
    pub(super) lines: Vec<(Line, Option<Durations>)>,
    /// All lines together; nothing where there is none.
    pub(super) total: Option<(Line, Option<Durations>)>,
}

/// Prints the report.
pub async fn run(args: Args) -> Result<(), Failure> {
    let now = Timestamp::now();
    run_to(&args, now, &mut std::io::stdout()).await
}

/// As [`run`], on a given day, written to `out`.
pub async fn run_to(
    args: &Args,
    now: Timestamp,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let query = args.query(now.to_zoned(TimeZone::UTC).date())?;
    let ledger = args.connection.ledger().await?;
    let report = gather(&ledger, query).await?;
    ledger.close().await;
    let text = match args.output {
        Output::Table => print::table(&report),
        Output::Json => print::json(&report),
        Output::Csv => print::csv(&report),
    };
    out.write_all(text.as_bytes())?;
    Ok(())
}

impl Args {
    fn query(&self, today: Date) -> Result<Query, Failure> {
        let until = self
            .until
            .unwrap_or_else(|| today.max(self.since.unwrap_or(today)));
        let since = match self.since {
            Some(since) => since,
            None => until.saturating_sub(29.days()),
        };
        if until < since {
            return Err(Failure::Asked(format!(
                "--until {until} is before --since {since}"
            )));
        }
        let mut by = Vec::new();
        for grouping in &self.by {
            let one = match grouping {
                Grouping::Day => By::Day,
                Grouping::Namespace => By::Namespace,
                Grouping::Workflow => By::Workflow,
                Grouping::Model => By::Model,
                Grouping::Repository => By::Repository,
                Grouping::None if self.by.len() > 1 => {
                    return Err(Failure::Asked("--by none stands alone".to_owned()));
                }
                Grouping::None => continue,
            };
            if !by.contains(&one) {
                by.push(one);
            }
        }
        Ok(Query {
            since,
            until,
            namespace: self.namespace.clone(),
            workflow: self.workflow.clone(),
            model: self.model.clone(),
            repository: self.repository.clone(),
            by,
        })
    }
}

async fn gather(ledger: &Ledger, query: Query) -> Result<Report, Error> {
    let whole = Query {
        by: Vec::new(),
        ..query.clone()
    };
    let lines = timed(ledger, &query).await?;
    let total = timed(ledger, &whole).await?.pop();
    Ok(Report {
        query,
        lines,
        total,
    })
}

async fn timed(ledger: &Ledger, query: &Query) -> Result<Vec<(Line, Option<Durations>)>, Error> {
    let lines = ledger.report(query).await?;
    let durations = ledger.durations(query).await?;
    let mut durations: BTreeMap<Key, Durations> =
        durations.into_iter().map(|d| (d.key.clone(), d)).collect();
    let with = |line: Line| {
        let took = durations.remove(&line.key);
        (line, took)
    };
    Ok(lines.into_iter().map(with).collect())
}
