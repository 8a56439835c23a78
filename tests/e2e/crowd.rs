//! Many runs at once on the one node.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use runledger::api::run::Phase;

use crate::case::Case;
use crate::check::Books;
use crate::runs::Manifest;

const RUNS: usize = 20;
/// Twenty starts of the CLI share the node's cores.
const ALL_OF_THEM: Duration = Duration::from_secs(420);

pub(crate) async fn twenty_runs_at_once_all_complete_with_exact_sums(case: Case) -> Result<()> {
    let space = case.space("crowd").await?;
    let names = (0..RUNS).map(|number| format!("run-{number:02}"));
    let manifests = names
        .map(|name| Manifest::new(&space, &name, "limited").set("workspace.persistent", false));
    let runs = try_join_all(manifests.map(|manifest| space.start(manifest))).await?;
    let ends = runs
        .iter()
        .map(|run| run.ends(Phase::Completed, ALL_OF_THEM));
    let statuses = try_join_all(ends).await?;
    let mut tokens = 0;
    for (run, status) in runs.iter().zip(statuses) {
        let books = Books::undisturbed(run, status).await?;
        tokens += books.row.total_tokens;
    }
    let sum: i64 = sqlx::query_scalar(
        "SELECT sum(total_tokens)::bigint FROM workflow_runs WHERE namespace = $1",
    )
    .bind(&space.namespace)
    .fetch_one(&case.world.ledger)
    .await?;
    ensure!(
        sum == tokens,
        "the ledger's sum is {sum}, the runs' {tokens}"
    );
    Ok(())
}
