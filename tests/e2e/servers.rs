//! What git servers do to runs: sshd, and nginx before git's http-backend. What may pass is waited for,
//! and what can't ends the run with a sentence.

use anyhow::{Context, Result, ensure};
use runledger::api::run::{Phase, WorkflowRunStatus};
use runledger::names::{conditions, reasons};
use runledger::pod::containers;
use serde_json::json;

use crate::case::{Case, START, WHOLE};
use crate::check::Books;
use crate::references::{goes_on, open, supervisor_says, told};
use crate::runs::{Manifest, condition};
use crate::wait::eventually;
use crate::{ends, git};

pub(crate) async fn an_unknown_ssh_host_is_named_with_its_fingerprint_and_once_known_the_run_is_pushed(
    case: Case,
) -> Result<()> {
    let space = case.space("ssh").await?;
    let stage = &case.world.stage;
    space
        .apply(&stage.ssh_secret("key", "# nobody yet"))
        .await?;
    let manifest = Manifest::new(&space, "run", "happy")
        .set("repository.url", stage.ssh_url())
        .set("repository.secretName", "key");
    let run = space.start(manifest).await?;
    let since = supervisor_says(&run, reasons::HOST_KEY_UNKNOWN).await?;
    let status = told(&run, since, reasons::HOST_KEY_UNKNOWN, "SHA256:").await?;
    let message = status.message.unwrap_or_default();
    // What it says to add is what makes it known.
    let line = stage.git_known_hosts.trim();
    ensure!(message.contains(line), "{message:?} does not name {line:?}");
    space.apply(&stage.ssh_secret("key", line)).await?;
    goes_on(&run).await?;

    let books = Books::of(&run, run.status().await?).await?;
    let clone = git::Clone::of(&case.world).await?;
    books.changes_are_gits(&clone).await?;
    let git = books.status.git.clone().context("no git")?;
    ensure!(
        clone.branch(&run.tag()).await?.as_ref() == Some(&git.final_commit),
        "the branch is not {git:?}"
    );
    ensure!(
        git.repository == format!("ssh://{}/srv/git/demo.git", stage.git_host),
        "{git:?}"
    );
    Ok(())
}

pub(crate) async fn a_repository_that_has_moved_fails_the_run_with_its_new_address(
    case: Case,
) -> Result<()> {
    let space = case.space("moved").await?;
    let url = case
        .world
        .stage
        .repository_url()
        .replace("demo.git", "moved.git");
    let manifest = Manifest::new(&space, "run", "limited").set("repository.url", url);
    let run = space.start(manifest).await?;
    let status = run.ends(Phase::Failed, WHOLE).await?;
    ensure!(
        status.reason.as_deref() == Some(reasons::CHECKOUT_FAILED),
        "{status:?}"
    );
    let message = status.message.unwrap_or_default();
    ensure!(
        message.contains("elsewhere.invalid") && message.contains("repository.url"),
        "{message:?}"
    );
    Ok(())
}

pub(crate) async fn a_git_server_that_is_gone_at_the_push_and_comes_back_gets_the_branch(
    case: Case,
) -> Result<()> {
    let space = case.space("gone").await?;
    // A way of this test's own to the server, so that nobody else misses it.
    let (name, port) = ("passing", 9444);
    open(&case, name, port, 8443).await?;
    let host = case.world.stage.git_host.clone();
    let mut secret = case.world.stage.git_secret("git");
    secret["stringData"]["hosts"] = json!(format!("{host}:{port}"));
    space.apply(&secret).await?;
    let url = case.world.stage.repository_url();
    let url = url.replacen(&host, &format!("{host}:{port}"), 1);
    let manifest = Manifest::new(&space, "run", "steady").set("repository.url", url);
    let run = space.start(manifest).await?;
    ends::at_work(&run).await?;
    open(&case, name, port, 9).await?;
    let pod = run.pod().await?;
    eventually("a push that is tried again", WHOLE, || async {
        let logs = space
            .kubectl(&["logs", &pod, "-c", containers::SUPERVISOR], None)
            .await?;
        ensure!(logs.contains("the push is tried again"), "{logs}");
        Ok(())
    })
    .await?;
    open(&case, name, port, 8443).await?;
    let status = run.ends(Phase::Completed, START).await?;
    ensure!(
        condition(&status, conditions::DELIVERED).as_deref() == Some("True"),
        "{status:?}"
    );
    let git = status.git.context("no git")?;
    let clone = git::Clone::of(&case.world).await?;
    ensure!(
        clone.branch(&run.tag()).await?.as_ref() == Some(&git.final_commit),
        "the branch is not {git:?}"
    );
    Ok(())
}

pub(crate) async fn a_fetch_that_takes_its_time_says_how_far_it_is_until_the_run_works(
    case: Case,
) -> Result<()> {
    let space = case.space("far").await?;
    let url = case
        .world
        .stage
        .repository_url()
        .replace("demo.git", "heavy.git");
    let manifest = Manifest::new(&space, "run", "limited")
        .set("repository.url", url)
        .set("repository.push", json!({"when": "Never"}));
    let run = space.start(manifest).await?;
    let told = |status: &WorkflowRunStatus| {
        status.phase == Phase::Pending
            && status.reason.as_deref() == Some(reasons::CHECKOUT)
            && (status.message.as_deref()).is_some_and(|said| said.contains(" of 22 objects, "))
    };
    run.until("a message with the objects fetched", START, told)
        .await?;
    run.ends(Phase::Completed, WHOLE).await?;
    Ok(())
}
