//! The one binary: subcommands for each place that Runledger runs in.

use clap::Parser;

/// Runs the Claude SDK on tasks in pods, and keeps the ledger of it in Postgres.
#[derive(Parser)]
#[command(name = "runledger", version)]
enum Command {
    /// Print the CustomResourceDefinitions.
    Crds(runledger::api::definitions::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Crds(args) => runledger::api::definitions::run(&args)?,
    }
    Ok(())
}
