//! `runledger prune`: ages from the command line, and what was done about them.

use std::io::Write;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};

use super::super::connection::Connection;
use super::super::{Error, Ledger};
use super::{Partition, Table};

/// Arguments of `runledger prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ages are whole days, and what is named no age for is kept. Nothing of an unfinished run is removed, nor
are users, agents, workspaces and prices, nor messages and sessions that are not Runledger's. Runs go
with their attempts, labels, usage and patches; what they came to stays in `runledger report`. It can be
stopped at any time and run again, while Runledger works. It needs the rights of the tables' owner, or
those that `runledger migrate --prune-role` gives.

Examples:
  runledger prune --events 30 --dry-run
  runledger prune --events 30 --messages 180 --runs 365 --sessions 365 --audit 730")]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    ages: Ages,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// From how many days on things are too old; what has none is kept.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Ages {
    /// Events of attempts that began so long ago: whole partitions, by the day.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    events: Option<u16>,
    /// Messages of that age, but of sessions in which a run is under way.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    messages: Option<u16>,
    /// Patches of runs that ended so long ago; each run's figures and list of files stay.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    patches: Option<u16>,
    /// Runs that were created and ended so long ago; needs --events of no more days.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..), requires = "events")]
    runs: Option<u16>,
    /// Sessions without runs, messages or branches, not touched for so long.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    sessions: Option<u16>,
    /// Entries of the audit.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    audit: Option<u16>,
}

/// Why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(&'static str),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] Error),
    /// Progress could not be written.
    #[error("standard output can't be written to")]
    Output(#[from] std::io::Error),
}

/// Prunes, and says what.
pub async fn run(args: Args) -> Result<(), Failure> {
    run_to(&args, Timestamp::now(), &mut std::io::stdout()).await
}

/// As [`run`], on a given day, with its lines written to `out`.
pub async fn run_to(
    args: &Args,
    now: Timestamp,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let ages = args.ages;
    if let (Some(runs), Some(events)) = (ages.runs, ages.events)
        && events > runs
    {
        return Err(Failure::Asked(
            "--events must be no more days than --runs: events without their run are of no use",
        ));
    }
    // What refers to others goes first.
    let tables = [
        (Table::Messages, ages.messages),
        (Table::Patches, ages.patches),
        (Table::Runs, ages.runs),
        (Table::Sessions, ages.sessions),
        (Table::Audit, ages.audit),
    ];
    if ages.events.is_none() && tables.iter().all(|(_, days)| days.is_none()) {
        return Err(Failure::Asked(
            "nothing is too old without an age: name one, as in --events 30 (see --help)",
        ));
    }
    let today = now.to_zoned(TimeZone::UTC).date();
    let kept_from = |days: u16| today.saturating_sub(i32::from(days).days());
    let ledger = args.connection.ledger().await?;
    if let Some(days) = ages.events {
        events(&ledger, kept_from(days), args.dry_run, out).await?;
    }
    for (table, days) in tables {
        let Some(days) = days else { continue };
        let before = kept_from(days);
        let rows = match args.dry_run {
            true => ledger.count_old(table, before).await?,
            false => ledger.delete_old(table, before).await?,
        };
        let done = if args.dry_run {
            "would be deleted"
        } else {
            "deleted"
        };
        writeln!(
            out,
            "{}: {rows} rows from before {before} {done}",
            table.name()
        )?;
    }
    ledger.close().await;
    Ok(())
}

async fn events(
    ledger: &Ledger,
    before: Date,
    dry_run: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let old = ledger.event_partitions(before).await?;
    let (pinned, free): (Vec<Partition>, Vec<Partition>) =
        old.into_iter().partition(|partition| partition.is_pinned);
    for partition in &pinned {
        writeln!(
            out,
            "run_events: the day {} is kept: an unfinished run began then",
            partition.day
        )?;
    }
    let done = if dry_run {
        "would be dropped"
    } else {
        "dropped"
    };
    for partition in &free {
        if !dry_run {
            ledger.drop_partition(partition).await?;
        }
        let rows = match partition.rows {
            Some(rows) => format!(", some {rows} rows"),
            None => String::new(),
        };
        writeln!(out, "run_events: the day {}{rows} {done}", partition.day)?;
    }
    if free.is_empty() {
        writeln!(out, "run_events: no day before {before} {done}")?;
    }
    Ok(())
}
