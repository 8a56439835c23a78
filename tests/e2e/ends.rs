//! Runs that people end: by desiredState, by deletion, at work or before it; and who comes after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use runledger::api::run::Phase;
use runledger::api::workspace::{Workspace, WorkspacePhase};
use runledger::names::reasons;

use crate::case::{Case, START, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::wait::{eventually, until};
use crate::{git, ledger, model};

/// From the wish to stop until the run is at its end: Claude has 5 s, the seal and a push come after.
const STOPPED: Duration = Duration::from_secs(40);

/// Waits until the scenario's commit is made and the CLI talks on.
pub(crate) async fn at_work(run: &Run) -> Result<()> {
    run.running().await?;
    let world = &run.space.world;
    eventually(
        "the first tool's result is in the ledger",
        START,
        || async {
            let events = ledger::events(&world.ledger, run.id()).await?;
            let results = ledger::of_kind(&events, "message")
                .any(|event| event.body.to_string().contains("tool_result"));
            ensure!(results, "{} events", events.len());
            Ok(())
        },
    )
    .await
}

async fn kept(run: &Run, workspace: &str) -> Result<()> {
    let api = run.space.world.api::<Workspace>(&run.space.namespace);
    until(
        api,
        workspace,
        "free again",
        START,
        |workspace: Option<&Workspace>| {
            workspace
                .and_then(|workspace| workspace.status.as_ref())
                .is_some_and(|status| {
                    status.phase == WorkspacePhase::Available && status.holder.is_none()
                })
        },
    )
    .await?;
    let claims = run
        .space
        .kubectl(
            &["get", "pvc", "-o", "jsonpath={.items[*].status.phase}"],
            None,
        )
        .await?;
    ensure!(claims.contains("Bound"), "the volume is {claims:?}");
    Ok(())
}

pub(crate) async fn a_run_killed_in_mid_work_leaves_its_workspace_to_the_next_of_its_session(
    case: Case,
) -> Result<()> {
    let space = case.space("kill").await?;
    let first = space
        .start(Manifest::new(&space, "first", "slow").set("session.name", "talk"))
        .await?;
    at_work(&first).await?;
    first.kill().await?;
    let status = first.ends(Phase::Killed, STOPPED).await?;
    ensure!(
        status.reason.as_deref() == Some(reasons::KILLED),
        "reason {:?}",
        status.reason
    );
    first.pods_gone(START).await?;
    let books = Books::of(&first, status).await?;
    books.sealed(&first).await?;
    ensure!(
        books.row.status == "killed" && books.row.git_commits == 1,
        "{:?}",
        books.row
    );
    books
        .changes_are_gits(&git::Clone::of(&case.world).await?)
        .await?;
    let workspace = books.status.workspace.clone().context("no workspace")?;
    kept(&first, &workspace).await?;

    // Without a marker the model goes by the conversation: only a resumed one has the first run's tag.
    let mut next = Manifest::new(&space, "next", "")
        .set("session.name", "talk")
        .set("task", "Go on.");
    next = next.set("repository.push.branch", space.tag("next"));
    let next = space.start(next).await?;
    let status = next.ends(Phase::Completed, WHOLE).await?;
    ensure!(
        status.workspace.as_ref() == Some(&workspace),
        "another workspace: {:?}",
        status.workspace
    );
    ensure!(
        status.session_id == books.status.session_id,
        "another session"
    );
    let git = status.git.clone().context("no git")?;
    let before = books.status.git.clone().context("no git")?;
    ensure!(
        git.initial_commit == before.final_commit,
        "{git:?} does not go on from {before:?}"
    );
    let usage = status.usage.clone().context("no usage")?;
    let sent = model::sent(&case.world, Some(&first.tag())).await?;
    let later: Vec<_> = sent
        .iter()
        .skip_while(|sent| sent.turn < 2)
        .cloned()
        .collect();
    ensure!(
        !later.is_empty(),
        "the conversation was not resumed: {sent:?}"
    );
    let (ours, theirs) = (usage.input_tokens, model::total(&later).input);
    ensure!(
        ours >= theirs,
        "tokens of the second run {ours}, model's {theirs}"
    );

    // Neither run pays for the other: the two together are what the CLI counts for the session.
    let next_books = Books::of(&next, status).await?;
    let session = next_books
        .session_cost()
        .context("no cost in the CLI's result")?;
    let sum = books.cost().unwrap_or(0) + next_books.cost().unwrap_or(0);
    ensure!(
        sum == session,
        "{:?} and {:?} are not {session}",
        books.cost(),
        next_books.cost()
    );
    let show = git::Clone::of(&case.world)
        .await?
        .show(&git.final_commit, "PARTIAL.md")
        .await?;
    ensure!(show.contains("partial"), "PARTIAL.md is {show:?}");
    Ok(())
}

pub(crate) async fn a_second_run_of_a_session_goes_on_and_pays_only_for_itself(
    case: Case,
) -> Result<()> {
    let space = case.space("session").await?;
    let first = space
        .start(Manifest::new(&space, "one", "limited").set("session.name", "talk"))
        .await?;
    let status = first.ends(Phase::Completed, WHOLE).await?;
    let before = Books::undisturbed(&first, status).await?;
    let second = Manifest::new(&space, "two", "")
        .set("session.name", "talk")
        .set("task", "Go on.");
    let second = space.start(second).await?;
    let status = second.ends(Phase::Completed, WHOLE).await?;
    let after = Books::of(&second, status).await?;
    let sent = model::sent(&case.world, Some(&first.tag())).await?;
    let later: Vec<_> = sent.iter().filter(|sent| sent.turn >= 2).cloned().collect();
    ensure!(
        !later.is_empty(),
        "the conversation was not resumed: {sent:?}"
    );
    ensure!(
        after.tokens() == model::total(&later),
        "{:?} is not {later:?}",
        after.tokens()
    );
    let priced: u64 = later
        .iter()
        .filter_map(|sent| model::price(&sent.model, sent.usage.into()))
        .sum();
    let cost = after.cost().context("no cost")?;
    ensure!(
        cost.abs_diff(priced) <= 10,
        "row {cost}, priced from the model's log {priced}"
    );
    let both = before.cost().context("no cost")? + cost;
    ensure!(
        Some(both) == after.session_cost(),
        "{both} is not the session's {:?}",
        after.session_cost()
    );
    ensure!(
        before.row.session_id == after.row.session_id,
        "two sessions"
    );
    Ok(())
}

pub(crate) async fn a_run_deleted_in_mid_work_is_killed_in_the_ledger(case: Case) -> Result<()> {
    let space = case.space("delete").await?;
    let run = space
        .start(Manifest::new(&space, "deleted", "slow"))
        .await?;
    at_work(&run).await?;
    let workspace = run.status().await?.workspace.context("no workspace")?;
    run.delete().await?;
    run.gone(STOPPED).await?;
    run.pods_gone(START).await?;
    let row = ledger::row(&case.world.ledger, run.id()).await?;
    ensure!(
        row.status == "killed" && row.reason.as_deref() == Some(reasons::DELETED),
        "{row:?}"
    );
    ensure!(
        row.git_commits == 1 && row.total_tokens > 0,
        "the partial work is missing: {row:?}"
    );
    let events = ledger::events(&case.world.ledger, run.id()).await?;
    ledger::contiguous(&events)?;
    ensure!(
        events.last().is_some_and(|event| event.kind == "sealed"),
        "not sealed: {:?}",
        events.last()
    );
    let there = git::Clone::of(&case.world)
        .await?
        .branch(&run.tag())
        .await?;
    ensure!(
        there == row.final_commit_hash,
        "{there:?} was pushed, not {:?}",
        row.final_commit_hash
    );
    kept(&run, &workspace).await
}

pub(crate) async fn a_run_killed_while_pending_never_gets_a_pod(case: Case) -> Result<()> {
    let space = case.space("pending").await?;
    let holder = space
        .start(Manifest::new(&space, "holder", "slow").set("workspace.name", "shared"))
        .await?;
    holder.running().await?;
    let second = space
        .start(Manifest::new(&space, "second", "limited").set("workspace.name", "shared"))
        .await?;
    second.waits_for(reasons::WORKSPACE, START).await?;
    let third = space
        .start(Manifest::new(&space, "third", "limited").set("workspace.name", "shared"))
        .await?;
    third.waits_for(reasons::WORKSPACE, START).await?;
    second.kill().await?;
    let status = second.ends(Phase::Killed, START).await?;
    ensure!(status.start_time.is_none(), "it never started: {status:#?}");
    let row = ledger::row(&case.world.ledger, second.id()).await?;
    ensure!(row.status == "killed" && row.attempt == 0, "{row:?}");

    // The one behind it gets its turn once the holder is gone.
    holder.kill().await?;
    holder.ends(Phase::Killed, STOPPED).await?;
    third.ends(Phase::Completed, WHOLE).await?;
    ensure!(
        space.witness.count(&second.uid) == 0,
        "a killed run got a pod"
    );
    Ok(())
}
