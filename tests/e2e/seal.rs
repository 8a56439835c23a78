//! The seal: the supervisor has the last word, and the agent waits for it; and a CLI that hangs does
//! not keep it from being said.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;
use runledger::api::run::Phase;
use runledger::names::reasons;
use runledger::pod::containers;

use crate::case::{Case, START, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::wait::eventually;
use crate::world::SYSTEM;
use crate::{ends, kill, ledger, model};

pub(crate) async fn the_agent_still_runs_when_the_termination_message_is_written(
    case: Case,
) -> Result<()> {
    let world = &case.world;
    let space = case.space("seal").await?;
    let run = space
        .start(Manifest::new(&space, "seal", "limited"))
        .await?;
    let status = run.running().await?;
    let pod = status.pod_uid.context("no pod")?;
    // Without the server the seal can't flush: it stands still between its begin and its end.
    let replicas = world.replicas(SYSTEM, "runledger-server").await?;
    world.scale(SYSTEM, "runledger-server", 0).await?;
    let sealed = sealing(
        &case,
        &run,
        &pod,
        &status.pod_name.unwrap_or_default(),
        replicas,
    )
    .await;
    world.scale(SYSTEM, "runledger-server", replicas).await?;
    sealed?;
    let status = run.ends(Phase::Completed, WHOLE).await?;
    Books::undisturbed(&run, status).await?;
    Ok(())
}

async fn sealing(case: &Case, run: &Run, pod: &str, pod_name: &str, replicas: u32) -> Result<()> {
    eventually("the model's last word", START, || async {
        let sent = model::sent(&case.world, Some(&run.tag())).await?;
        ensure!(
            sent.iter()
                .any(|sent| sent.turn == 1 && sent.complete && sent.status == 200),
            "{sent:?}"
        );
        Ok(())
    })
    .await?;
    let since = std::sync::Mutex::new(None);
    eventually(
        "the CLI has ended, and the agent has had a second to say so",
        START,
        || async {
            let left = kill::processes(pod);
            ensure!(!left.iter().any(kill::Process::is_claude), "{left:?}");
            let since = *since
                .lock()
                .unwrap()
                .get_or_insert_with(std::time::Instant::now);
            ensure!(
                since.elapsed() > Duration::from_secs(1),
                "it ended a moment ago"
            );
            Ok(())
        },
    )
    .await?;
    let agent = kill::runledger(pod, "agent")?;
    ensure!(
        agent.lives(),
        "the agent was gone before the run was sealed"
    );
    let early = termination(case, pod);
    ensure!(early.is_none(), "sealed without having flushed: {early:?}");
    agent.signal(Signal::SIGSTOP)?;
    case.world
        .scale(SYSTEM, "runledger-server", replicas)
        .await?;
    let written = eventually("the termination message", START, || async {
        termination(case, pod).context("it is not written")
    })
    .await;
    let seen: Pod = case
        .world
        .api::<Pod>(&run.space.namespace)
        .get(pod_name)
        .await?;
    let lives = agent.lives();
    agent.signal(Signal::SIGCONT)?;
    ensure!(
        written?.contains("\"outcome\""),
        "the termination message is no termination message"
    );
    ensure!(
        lives,
        "the agent was gone when the termination message was there"
    );
    let state = crate::witness::container(&seen, containers::AGENT).and_then(|status| status.state);
    ensure!(
        state.is_some_and(|state| state.running.is_some()),
        "the kubelet does not call the agent running"
    );
    Ok(())
}

/// The supervisor's termination message as the kubelet will read it: a file of the host.
fn termination(case: &Case, pod_uid: &str) -> Option<String> {
    let folder: PathBuf = case
        .world
        .cluster_dir()
        .join("kubelet/pods")
        .join(pod_uid)
        .join("containers/supervisor");
    std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|file| std::fs::read_to_string(file.path()).ok())
        .find(|text| !text.is_empty())
}

/// Stops the CLI's every thread, so that it answers to nothing but SIGKILL.
async fn freeze(run: &Run) -> Result<()> {
    let status = run.running().await?;
    let pod = status.pod_uid.context("no pod")?;
    // Its first request is on its way: it is past its start.
    eventually("the CLI asks the model", START, || async {
        let events = ledger::events(&run.space.world.ledger, run.id()).await?;
        ensure!(
            ledger::of_kind(&events, "request_started").count() > 0,
            "{} events",
            events.len()
        );
        Ok(())
    })
    .await?;
    let mut frozen = 0;
    for process in kill::processes(&pod)
        .iter()
        .filter(|process| process.is_claude())
    {
        process.signal(Signal::SIGSTOP)?;
        frozen += 1;
    }
    ensure!(frozen > 0, "no CLI is there to be stopped");
    Ok(())
}

pub(crate) async fn a_hung_cli_is_stopped_at_the_time_limit(case: Case) -> Result<()> {
    let space = case.space("timeout").await?;
    let run = space
        .start(Manifest::new(&space, "hung", "hang").set("limits.timeout", "25s"))
        .await?;
    freeze(&run).await?;
    let status = run.ends(Phase::Failed, Duration::from_secs(80)).await?;
    ensure!(
        status.reason.as_deref() == Some(reasons::TIMEOUT),
        "reason {:?}: {:?}",
        status.reason,
        status.message
    );
    let (start, end) = (
        status.start_time.clone().context("no start")?,
        status.completion_time.clone().context("no end")?,
    );
    let took = end.0.duration_since(start.0).as_secs();
    ensure!(
        (25..=45).contains(&took),
        "a run with a limit of 25 s took {took} s"
    );
    let books = Books::of(&run, status).await?;
    books.sealed(&run).await?;
    Ok(())
}

pub(crate) async fn a_hung_cli_is_stopped_when_its_run_is_deleted(case: Case) -> Result<()> {
    let space = case.space("hungdel").await?;
    let run = space.start(Manifest::new(&space, "hung", "slow")).await?;
    ends::at_work(&run).await?;
    freeze(&run).await?;
    run.delete().await?;
    run.gone(Duration::from_secs(45)).await?;
    let row = ledger::row(&case.world.ledger, run.id()).await?;
    ensure!(row.status == "killed", "{row:?}");
    let events = ledger::events(&case.world.ledger, run.id()).await?;
    ensure!(
        events.last().is_some_and(|event| event.kind == "sealed"),
        "not sealed: {:?}",
        events.last()
    );
    Ok(())
}
