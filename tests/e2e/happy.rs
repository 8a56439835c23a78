//! What a run is for: it works, commits, pushes, and everything that is said of it is true.

use anyhow::{Context, Result, ensure};
use runledger::api::run::Phase;
use runledger::api::workspace::WorkspacePhase;
use runledger::names::{conditions, reasons};
use serde_json::json;

use crate::case::{Case, START, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, condition};
use crate::{git, ledger, model};

pub(crate) async fn a_run_completes_pushes_and_every_figure_agrees_with_its_source(
    case: Case,
) -> Result<()> {
    let space = case.space("happy").await?;
    let run = space.start(Manifest::new(&space, "happy", "happy")).await?;
    let status = run.ends(Phase::Completed, WHOLE).await?;
    for (kind, wanted) in [
        (conditions::READY, "True"),
        (conditions::RECONCILING, "False"),
        (conditions::STALLED, "False"),
        (conditions::ACCEPTED, "True"),
        (conditions::RECORDED, "True"),
    ] {
        ensure!(
            condition(&status, kind).as_deref() == Some(wanted),
            "{kind} of {status:#?}"
        );
    }
    ensure!(
        status.reason.as_deref() == Some(reasons::COMPLETED),
        "reason of {status:#?}"
    );
    ensure!(
        status.start_time.is_some() && status.completion_time.is_some(),
        "times of {status:#?}"
    );

    let books = Books::undisturbed(&run, status).await?;
    let clone = git::Clone::of(&case.world).await?;
    books.changes_are_gits(&clone).await?;
    let (row, patch) = (
        &books.row,
        ledger::patch(&case.world.ledger, run.id()).await?,
    );
    let (from, to) = (&row.initial_commit_hash, &row.final_commit_hash);
    let (from, to) = from.as_ref().zip(to.as_ref()).context("no commits")?;
    let applied = clone.applied(from, &patch).await?;
    ensure!(
        applied == clone.git(&["rev-parse", &format!("{to}^{{tree}}")]).await?,
        "the patch makes the tree {applied}: {}",
        String::from_utf8_lossy(&patch)
    );
    let git = books.status.git.clone().context("no git")?;
    ensure!(
        (git.commits, git.files) == (2, 1),
        "the scenario makes two commits of one file: {git:?}"
    );
    ensure!(
        git.pushed == Some(space.tag("happy")),
        "pushed {:?}",
        git.pushed
    );

    // The scenario's own promises, or the figures above would be of an easier run.
    let turns = books
        .sent
        .iter()
        .filter(|sent| sent.complete && sent.status == 200);
    ensure!(
        turns.clone().any(|sent| sent.in_flight >= 2),
        "no two requests were parallel: {:?}",
        books.sent
    );
    ensure!(
        books.sent.iter().any(|sent| sent.status == 529),
        "nothing was overloaded: {:?}",
        books.sent
    );
    ensure!(
        turns.clone().any(|sent| sent.attempt == 2),
        "nothing was tried again: {:?}",
        books.sent
    );

    // The CLI's own figure, and the same from the model's log and the price list.
    let cost = books.cost().context("the row has no cost")?;
    ensure!(
        Some(cost) == books.session_cost(),
        "row {cost}, CLI {:?}",
        books.session_cost()
    );
    let priced: u64 = turns
        .filter_map(|sent| model::price(&sent.model, sent.usage.into()))
        .sum();
    ensure!(
        cost.abs_diff(priced) <= 10,
        "row {cost}, priced from the model's log {priced}"
    );

    let messages = ledger::messages(&case.world.ledger, run.id()).await?;
    let first = messages.first().context("no messages")?;
    ensure!(
        first.text_content.as_deref() == Some(space.task("happy", "happy").as_str()),
        "first {first:?}"
    );
    let said = |text: &str| {
        messages.iter().any(|message| {
            message.role == "assistant"
                && message
                    .text_content
                    .as_deref()
                    .unwrap_or_default()
                    .contains(text)
        })
    };
    ensure!(
        said("I add a page of notes") && said("written, corrected and committed"),
        "{messages:#?}"
    );
    let calls: String = messages
        .iter()
        .map(|message| message.tool_calls.to_string())
        .collect();
    let outputs: String = messages
        .iter()
        .map(|message| message.tool_outputs.to_string())
        .collect();
    ensure!(
        calls.contains("git add NOTES.md") && calls.contains("\"Write\""),
        "tool calls: {calls}"
    );
    ensure!(
        outputs.contains("Add notes") && outputs.contains("It says what a readme says."),
        "tool outputs: {outputs}"
    );
    ensure!(
        books.row.task_input == space.task("happy", "happy"),
        "task {:?}",
        books.row.task_input
    );

    run.pods_gone(START).await?;
    let workspace = run.workspace().await?;
    ensure!(
        books.row.workspace_id == workspace.metadata.uid,
        "{:?} is not {workspace:?}",
        books.row.workspace_id
    );
    ensure!(
        books.row.workspace_persistent,
        "the workspace outlives the run"
    );
    ensure!(
        workspace.status.clone().is_some_and(
            |status| status.phase == WorkspacePhase::Available && status.holder.is_none()
        ),
        "nobody holds {workspace:?}"
    );
    Ok(())
}

pub(crate) async fn kubectl_get_shows_what_the_run_did(case: Case) -> Result<()> {
    let space = case.space("columns").await?;
    let run = space
        .start(Manifest::new(&space, "columns", "limited"))
        .await?;
    let status = run.ends(Phase::Completed, WHOLE).await?;
    let usage = status.usage.clone().context("no usage")?;
    let git = status.git.clone().context("no git")?;
    let shown = space
        .kubectl(&["get", "wfr", "columns", "-o", "wide"], None)
        .await?;
    let mut lines = shown.lines();
    let heads: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        heads
            == [
                "NAME",
                "WORKFLOW",
                "PHASE",
                "REASON",
                "TURNS",
                "TOKENS",
                "COST",
                "CHANGES",
                "DURATION",
                "AGE",
                "BRANCH",
                "COMMIT",
                "SESSION",
                "WORKSPACE",
                "MODEL"
            ],
        "{shown}"
    );
    let line = lines.next().unwrap_or_default();
    for wanted in [
        "columns",
        "builder",
        "Completed",
        &format!(" {} ", usage.turns),
        &format!(" {} ", usage.total_tokens),
        &usage.cost_usd.clone().context("no cost")?,
        &status.changes.clone().context("no changes")?,
        &status.duration.clone().context("no duration")?,
        &git.branch,
        &git.final_commit,
        &status.session.clone().context("no session")?,
        &status.workspace.clone().context("no workspace")?,
        "claude-sonnet-4-5",
    ] {
        ensure!(line.contains(wanted), "{wanted:?} is not in:\n{shown}");
    }
    ensure!(
        status.changes.as_deref() == Some("none"),
        "nothing was changed: {:?}",
        status.changes
    );
    Ok(())
}

pub(crate) async fn a_run_without_a_repository_completes(case: Case) -> Result<()> {
    let space = case.space("bare").await?;
    let task = space.task("bare", "default");
    let run = space
        .start(Manifest::bare("bare", &task).set("workspace.persistent", false))
        .await?;
    let status = run.ends(Phase::Completed, WHOLE).await?;
    ensure!(
        status.workspace.is_none(),
        "an emptyDir is no Workspace: {status:#?}"
    );
    let books = Books::undisturbed(&run, status).await?;
    ensure!(
        books.row.git_repo.is_none() && books.row.git_commits == 0,
        "{:?}",
        books.row
    );
    ensure!(
        !books.row.workspace_persistent && books.row.workspace_id.is_none(),
        "{:?}",
        books.row
    );
    Ok(())
}

pub(crate) async fn a_task_from_a_config_map_is_the_first_message(case: Case) -> Result<()> {
    let space = case.space("taskfrom").await?;
    let task = space.task("taskfrom", "limited");
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "tasks"}, "data": {"first": task},
    });
    space.apply(&map).await?;
    let manifest = Manifest::bare("taskfrom", "")
        .without("task")
        .set(
            "taskFrom",
            json!({"configMapKeyRef": {"name": "tasks", "key": "first"}}),
        )
        .set("workspace.persistent", false);
    let run = space.start(manifest).await?;
    let status = run.ends(Phase::Completed, WHOLE).await?;
    let books = Books::undisturbed(&run, status).await?;
    ensure!(
        books.row.task_input == task,
        "row {:?}",
        books.row.task_input
    );
    let messages = ledger::messages(&case.world.ledger, run.id()).await?;
    let first = messages
        .first()
        .and_then(|message| message.text_content.clone());
    ensure!(
        first.as_deref() == Some(task.as_str()),
        "first message {first:?}"
    );
    Ok(())
}
