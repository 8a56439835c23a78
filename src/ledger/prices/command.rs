//! `runledger prices`: shows, checks and loads what models cost.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::{Price, read_file};
use crate::ledger::Error;
use crate::ledger::connection::Connection;

/// Arguments of `runledger prices`.
#[derive(Debug, Parser)]
#[command(after_long_help = "\
A file of prices, in US dollars for a million tokens:

  - model: claude-sonnet-4-5*   # * stands for any characters; the longest name that matches counts
    from: 2026-01-31            # UTC day from which on it holds
    input: 3
    output: 15
    cacheRead: 0.30
    cacheCreation: 3.75

Prices count where the SDK names no cost, and for what was used after it last named one: there a run's cost
is tokens x price on the day of each request. Which of the two it is says workflow_runs.cost_source. A cost
that was unknown for want of a price is worked out when one is loaded (for requests whose events `prune` has
removed: at the price of the day on which their attempt first asked that model); a cost that is known stays
as it is.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the prices that are known, and the models that have none.
    List(Connection),
    /// Look a file of prices over, without a database.
    Check {
        /// YAML file.
        file: PathBuf,
    },
    /// Add the prices of a file, or put them in the place of those of the same model and day.
    Load {
        /// YAML file.
        file: PathBuf,
        #[command(flatten)]
        database: Connection,
    },
}

/// Does what is asked, and says on standard output what that was.
pub async fn run(args: Args) -> Result<(), Error> {
    tell(args, &mut std::io::stdout()).await
}

/// As [`run`], with what it says written to `out`.
pub async fn tell(args: Args, out: &mut (dyn Write + Send)) -> Result<(), Error> {
    match args.command {
        Command::List(database) => {
            let ledger = database.ledger().await?;
            let prices = ledger.prices().await?;
            say(out, table(&prices))?;
            let unpriced = ledger.unpriced_models().await?;
            for model in unpriced {
                let (name, n) = (model.model, model.attempts);
                say(out, format!("no price: {name} (used in {n} attempts)\n"))?;
            }
            Ok(())
        }
        Command::Check { file } => {
            let prices = read_file(&file)?;
            say(
                out,
                format!("{}: {} prices, all well\n", file.display(), prices.len()),
            )
        }
        Command::Load { file, database } => {
            let prices = read_file(&file)?;
            let ledger = database.ledger().await?;
            let loaded = ledger.load_prices(&prices).await?;
            say(
                out,
                format!(
                    "{} figures new or changed; the cost of {} runs worked out\n",
                    loaded.written, loaded.runs
                ),
            )
        }
    }
}

fn say(out: &mut (dyn Write + Send), text: String) -> Result<(), Error> {
    out.write_all(text.as_bytes())
        .map_err(|error| Error::Refused(format!("standard output can't be written to: {error}")))
}

fn table(prices: &[Price]) -> String {
    if prices.is_empty() {
        return "no prices: a run costs what the SDK says, and where it says nothing that is unknown\n"
            .to_owned();
    }
    let mut rows = vec![
        [
            "MODEL",
            "FROM",
            "INPUT",
            "OUTPUT",
            "CACHE READ",
            "CACHE CREATION",
        ]
        .map(str::to_owned),
    ];
    for price in prices {
        let [input, output, read, creation] = price
            .usd_per_million
            .map(|figure| figure.normalize().to_string());
        rows.push([
            price.model.clone(),
            price.from.to_string(),
            input,
            output,
            read,
            creation,
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
