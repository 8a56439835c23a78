//! Many runs at once on the one node.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use jiff::Timestamp;
use runledger::api::run::Phase;
use runledger::pod::containers;

use crate::case::{Case, START};
use crate::check::Books;
use crate::kill;
use crate::runs::{Manifest, Run};
use crate::wait::eventually;
use crate::witness::container;

const RUNS: usize = 20;
/// Twenty starts of the CLI share the node's cores.
const ALL_OF_THEM: Duration = Duration::from_secs(420);

pub(crate) async fn twenty_runs_at_once_all_complete_with_exact_sums(case: Case) -> Result<()> {
    let space = case.space("crowd").await?;
    let names = (0..RUNS).map(|number| format!("run-{number:02}"));
    let manifests =
        names.map(|name| Manifest::new(&space, &name, "gate").set("workspace.persistent", false));
    let runs = try_join_all(manifests.map(|manifest| space.start(manifest))).await?;
    let pods = try_join_all(runs.iter().map(Run::running)).await?;
    let pods: Vec<String> = pods.into_iter().filter_map(|pod| pod.pod_uid).collect();
    // Each holds its CLI at a gate, so that none is over before the last has begun.
    eventually("twenty CLIs run at the same time", ALL_OF_THEM, || async {
        let lacks = |pod: &&String| !kill::processes(pod).iter().any(kill::Process::is_claude);
        let lacking: Vec<_> = pods.iter().filter(lacks).collect();
        ensure!(lacking.is_empty(), "pods without a CLI: {lacking:?}");
        Ok(())
    })
    .await?;
    for pod in &pods {
        let agent = kill::runledger(pod, "agent")?;
        std::fs::write(format!("/proc/{}/root/tmp/open", agent.pid), "")?;
    }
    let ends = runs
        .iter()
        .map(|run| run.ends(Phase::Completed, ALL_OF_THEM));
    let statuses = try_join_all(ends).await?;
    let together = eventually("all agents have ended", START, || async {
        let times: Vec<_> = runs.iter().filter_map(at_work).collect();
        ensure!(
            times.len() == RUNS,
            "only {} agents have ended",
            times.len()
        );
        Ok(most_at_once(&times))
    })
    .await?;
    ensure!(
        together == RUNS,
        "at most {together} agents ran at the same time"
    );
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

/// From when to when the kubelet saw the run's agent run, once it has ended.
fn at_work(run: &Run) -> Option<(Timestamp, Timestamp)> {
    let (_, pod) = run.space.witness.pods_of(&run.uid).pop()?;
    let ended = container(&pod, containers::AGENT)?.state?.terminated?;
    Some((ended.started_at?.0, ended.finished_at?.0))
}

/// The most of these times that overlap.
fn most_at_once(times: &[(Timestamp, Timestamp)]) -> usize {
    let overlapping = |at: &Timestamp| {
        let during = |(from, to): &&(Timestamp, Timestamp)| from <= at && at < to;
        times.iter().filter(during).count()
    };
    // The most is reached as one of them begins.
    times
        .iter()
        .map(|(from, _)| overlapping(from))
        .max()
        .unwrap_or(0)
}
