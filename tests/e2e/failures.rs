//! Runs that end badly: the reason is named, and what was done by then is not lost.

use anyhow::{Context, Result, ensure};
use runledger::api::run::Phase;
use runledger::names::{conditions, reasons};

use crate::case::{Case, WHOLE};
use crate::check::Books;
use crate::git;
use crate::runs::{Manifest, Run, condition};

/// The run fails for that reason, in words, and the commits, the push and the tokens of its part are there.
async fn fails(case: &Case, run: &Run, reason: &str, commits: u32) -> Result<Books> {
    let status = run.ends(Phase::Failed, WHOLE).await?;
    ensure!(
        status.reason.as_deref() == Some(reason),
        "reason {:?}: {:?}",
        status.reason,
        status.message
    );
    ensure!(
        status
            .message
            .as_ref()
            .is_some_and(|message| message.len() > 10),
        "message {:?}",
        status.message
    );
    for (kind, wanted) in [
        (conditions::READY, "False"),
        (conditions::RECONCILING, "False"),
        (conditions::STALLED, "True"),
    ] {
        ensure!(
            condition(&status, kind).as_deref() == Some(wanted),
            "{kind} of {status:#?}"
        );
    }
    let books = Books::of(run, status).await?;
    books.sealed(run).await?;
    books
        .changes_are_gits(&git::Clone::of(&case.world).await?)
        .await?;
    let git = books.status.git.clone().context("no git")?;
    ensure!(git.commits == commits, "commits of {git:?}");
    ensure!(
        git.pushed == Some(run.tag()),
        "push.when is Always: {git:?}"
    );
    ensure!(
        books.row.error_message.is_some(),
        "the row has no error_message"
    );
    Ok(books)
}

pub(crate) async fn a_model_error_fails_the_run_and_keeps_the_partial_work(
    case: Case,
) -> Result<()> {
    let space = case.space("modelerr").await?;
    let run = space.start(Manifest::new(&space, "fail", "fail")).await?;
    let books = fails(&case, &run, reasons::MODEL_ERROR, 1).await?;
    ensure!(
        books.tokens() == crate::model::total(&books.sent),
        "{:?} of {:?}",
        books.tokens(),
        books.sent
    );
    let message = books.status.message.clone().unwrap_or_default();
    ensure!(
        message.contains("refuses this request"),
        "the model's own words are not in {message:?}"
    );
    Ok(())
}

pub(crate) async fn the_turn_limit_fails_the_run_and_keeps_the_partial_work(
    case: Case,
) -> Result<()> {
    let space = case.space("maxturns").await?;
    let run = space
        .start(Manifest::new(&space, "maxturns", "maxturns").set("agent.maxTurns", 3))
        .await?;
    let books = fails(&case, &run, reasons::MAX_TURNS_REACHED, 0).await?;
    ensure!(
        books.tokens() == crate::model::total(&books.sent),
        "{:?} of {:?}",
        books.tokens(),
        books.sent
    );
    let answers = books
        .sent
        .iter()
        .filter(|sent| sent.kind == "turn" && sent.complete)
        .count();
    ensure!(
        (3..=4).contains(&answers),
        "{answers} answers with a limit of 3 turns"
    );
    Ok(())
}

pub(crate) async fn a_crash_of_the_cli_fails_the_run_and_keeps_the_partial_work(
    case: Case,
) -> Result<()> {
    let space = case.space("crash").await?;
    let run = space.start(Manifest::new(&space, "crash", "crash")).await?;
    let books = fails(&case, &run, reasons::AGENT_CRASHED, 1).await?;
    ensure!(
        books.tokens() == crate::model::total(&books.sent),
        "{:?} of {:?}",
        books.tokens(),
        books.sent
    );
    Ok(())
}

pub(crate) async fn out_of_memory_fails_the_run_and_keeps_the_partial_work(
    case: Case,
) -> Result<()> {
    let space = case.space("oom").await?;
    let manifest =
        Manifest::new(&space, "oom", "oom").set("podTemplate.resources.limits.memory", "700Mi");
    let run = space.start(manifest).await?;
    // The kernel may take the shell alone, and the CLI then goes on: the run has to say which it was.
    fails(&case, &run, reasons::OUT_OF_MEMORY, 1).await?;
    Ok(())
}
