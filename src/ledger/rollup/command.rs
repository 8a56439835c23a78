//! `runledger rollups`: compares the rollups with the runs, and makes them the same.

use std::io::Write;

use super::super::Error;
use super::super::connection::Connection;
use super::Comparison;

/// Exit status where the rollups were not what the runs say.
pub const DIFFERED: u8 = 3;

/// Arguments of `runledger rollups`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Count the runs again and make the rollups that.
    ///
    /// They are kept as runs are written, so nothing differs unless somebody wrote into their tables.
    /// Days whose runs have been pruned keep what was counted. Runs may be written meanwhile.
    /// Exit status: 0 nothing differed; 3 something did, and was put right; 1 it could not be told.
    Rebuild {
        #[command(flatten)]
        connection: Connection,
        /// Only say whether they differ.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] Error),
    /// The answer could not be written.
    #[error("standard output can't be written to")]
    Output(#[from] std::io::Error),
}

/// Does it, and answers the exit status.
pub async fn run(args: Args) -> Result<u8, Failure> {
    run_to(&args, &mut std::io::stdout()).await
}

/// As [`run`], with its answer written to `out`.
pub async fn run_to(args: &Args, out: &mut (dyn Write + Send)) -> Result<u8, Failure> {
    let What::Rebuild {
        connection,
        dry_run,
    } = &args.what;
    let ledger = connection.ledger().await?;
    let comparison = ledger.compare_rollups(!dry_run).await?;
    if !dry_run {
        ledger.fold_rollups().await?;
    }
    ledger.close().await;
    say(&comparison, *dry_run, out)?;
    Ok(if comparison.is_exact() { 0 } else { DIFFERED })
}

fn say(comparison: &Comparison, dry_run: bool, out: &mut dyn Write) -> Result<(), std::io::Error> {
    let since = match comparison.from {
        Some(day) => format!(" since {day} (earlier runs were pruned; their rollups stay)"),
        None => String::new(),
    };
    if comparison.is_exact() {
        return writeln!(out, "the rollups are what the runs say{since}");
    }
    let done = if dry_run {
        "differ"
    } else {
        "differed and were put right"
    };
    if comparison.sums > 0 {
        let sums = comparison.sums;
        writeln!(out, "{sums} sums of rollups {done}")?;
    }
    if comparison.differ == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "{} rollups {done}{since}; they said too little by",
        comparison.differ
    )?;
    for d in &comparison.named {
        let or_none = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.escape_debug().to_string()
            }
        };
        writeln!(
            out,
            "  {} {} {} {} {}: {} runs, {} tokens, {} USD",
            d.day,
            or_none(&d.namespace),
            or_none(&d.workflow),
            d.model
                .as_deref()
                .map_or_else(|| "(all models)".to_owned(), or_none),
            or_none(&d.repository),
            d.runs,
            d.tokens.normalize(),
            d.cost
        )?;
    }
    match comparison
        .differ
        .saturating_sub(comparison.named.len() as u64)
    {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}
