//! The one binary: subcommands for each place that Runledger runs in.

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Runs the Claude SDK on tasks in pods, and keeps the ledger of it in Postgres.
#[derive(Parser)]
#[command(name = "runledger", version)]
enum Command {
    /// Take in the events of runs.
    Server(runledger::server::Args),
    /// Bring the ledger's database up to date.
    Migrate(runledger::ledger::migrate::Args),
    /// Print the CustomResourceDefinitions.
    Crds(runledger::api::definitions::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Server(args) => within_runtime(runledger::server::run(args)),
        Command::Migrate(args) => within_runtime(runledger::ledger::migrate::run(args)),
        Command::Crds(args) => Ok(runledger::api::definitions::run(&args)?),
    }
}

/// Runs a long-lived part, logging to standard error as RUST_LOG says.
fn within_runtime<E>(part: impl Future<Output = Result<(), E>>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().context("the runtime can't be started")?;
    Ok(runtime.block_on(part)?)
}
