//! The one binary: subcommands for each place that Runledger runs in.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Runs the Claude SDK on tasks in pods, and keeps the ledger of it in Postgres.
#[derive(Parser)]
#[command(name = "runledger", version)]
// There is one of it, for a moment.
#[allow(clippy::large_enum_variant)]
enum Command {
    /// Take in the events of runs.
    Server(runledger::server::Args),
    /// Bring the ledger's database up to date.
    Migrate(runledger::ledger::migrate::Args),
    /// Say what runs came to: cost, tokens, success, lines changed, time.
    Report(runledger::ledger::report::Args),
    /// Look after the sums that reports are made of.
    Rollups(runledger::ledger::rollup::Args),
    /// Show, check or load what models cost.
    Prices(runledger::ledger::prices::command::Args),
    /// Remove from the ledger what is older than you want to keep it.
    Prune(runledger::ledger::prune::Args),
    /// Print the CustomResourceDefinitions.
    Crds(runledger::api::definitions::Args),
    /// Reconcile WorkflowRuns and Workspaces.
    Controller(Box<runledger::controller::Args>),
    /// End all runs and take every finalizer off, so that Runledger can be removed.
    Uninstall(runledger::uninstall::Args),
    /// Say what changed in a repository since a commit, or what a run changed.
    Changes(runledger::changes::Args),
    /// The trusted half of a run's pod.
    Supervise(runledger::supervise::Args),
    /// The untrusted half of a run's pod.
    Agent(runledger::agent::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Server(args) => within_runtime(runledger::server::run(args))?,
        Command::Migrate(args) => within_runtime(runledger::ledger::migrate::run(args))?,
        Command::Report(args) => within_runtime(runledger::ledger::report::run(args))?,
        Command::Rollups(args) => {
            return Ok(within_runtime(runledger::ledger::rollup::run(args))?.into());
        }
        Command::Prices(args) => within_runtime(runledger::ledger::prices::command::run(args))?,
        Command::Prune(args) => within_runtime(runledger::ledger::prune::run(args))?,
        Command::Crds(args) => runledger::api::definitions::run(&args)?,
        Command::Controller(args) => on_one_thread(runledger::controller::run(*args))?,
        Command::Uninstall(args) => within_runtime(runledger::uninstall::run(args))?,
        Command::Changes(args) if args.asks_ledger() => {
            within_runtime(runledger::changes::run(args))?;
        }
        Command::Changes(args) => runledger::changes::run_on_disk(&args)?,
        Command::Supervise(args) => within_runtime(runledger::supervise::run(args))?,
        Command::Agent(args) => {
            return Ok(within_runtime(runledger::agent::run(args))?.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a long-lived part on as many threads as there are cores.
fn within_runtime<T, E>(part: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    within(tokio::runtime::Builder::new_multi_thread(), part)
}

/// Runs a long-lived part that waits more than it works: threads that wake each other up would cost it
/// more than they could do for it.
fn on_one_thread<T, E>(part: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    within(tokio::runtime::Builder::new_current_thread(), part)
}

/// Runs a long-lived part, logging to standard error as RUST_LOG says.
fn within<T, E>(
    mut runtime: tokio::runtime::Builder,
    part: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = runtime.enable_all().build();
    let runtime = runtime.context("the runtime can't be started")?;
    let done = runtime.block_on(part);
    // Blocking work that was given up must not hold the process.
    runtime.shutdown_background();
    Ok(done?)
}
