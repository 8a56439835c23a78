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
use crate::stage::STAGE;
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
    let url = case.world.stage.url_of("moved");
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
    let url = case.world.stage.url_of("heavy");
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

pub(crate) async fn another_ca_fails_the_run_and_names_what_to_set(case: Case) -> Result<()> {
    let space = case.space("ca").await?;
    let other = rcgen::generate_simple_self_signed(vec![case.world.stage.git_host.clone()])?;
    let mut secret = case.world.stage.git_secret("git");
    secret["stringData"]["ca.crt"] = json!(other.cert.pem());
    space.apply(&secret).await?;
    let run = space.start(Manifest::new(&space, "run", "limited")).await?;
    let status = run.ends(Phase::Failed, WHOLE).await?;
    let message = status.message.unwrap_or_default();
    ensure!(
        status.reason.as_deref() == Some(reasons::CHECKOUT_FAILED)
            && message.contains("repository.caBundle"),
        "{:?}: {message:?}",
        status.reason
    );
    Ok(())
}

pub(crate) async fn a_token_that_expires_in_mid_run_is_told_and_with_a_new_one_all_is_delivered(
    case: Case,
) -> Result<()> {
    let space = case.space("expired").await?;
    let mut secret = case.world.stage.git_secret("git");
    secret["stringData"]["username"] = json!("daily");
    secret["stringData"]["password"] = json!("for-a-day");
    space.apply(&secret).await?;
    let user = "echo \"daily:$(openssl passwd -apr1 for-a-day)\" >>/tmp/htpasswd";
    at_the_server(&case, user).await?;
    let first = Manifest::new(&space, "first", "steady").set("session.name", "talk");
    let first = space.start(first).await?;
    ends::at_work(&first).await?;
    at_the_server(&case, "sed -i /^daily:/d /tmp/htpasswd").await?;
    let status = first.ends(Phase::Failed, WHOLE).await?;
    let message = status.message.clone().unwrap_or_default();
    ensure!(
        status.reason.as_deref() == Some(reasons::PUSH_FAILED)
            && condition(&status, conditions::DELIVERED).as_deref() == Some("False")
            && message.contains(&case.world.stage.git_host)
            && !message.contains("for-a-day"),
        "{status:?}"
    );
    let made = status.git.context("no git")?.final_commit;

    space.apply(&case.world.stage.git_secret("git")).await?;
    let next = Manifest::new(&space, "next", "limited").set("session.name", "talk");
    let next = space.start(next).await?;
    next.ends(Phase::Completed, WHOLE).await?;
    let clone = git::Clone::of(&case.world).await?;
    let branch = clone.branch(&next.tag()).await?.context("no branch")?;
    clone
        .git(&["merge-base", "--is-ancestor", &made, &branch])
        .await
        .context("what the first run made was not delivered")?;
    Ok(())
}

pub(crate) async fn a_repository_of_fifty_thousand_files_is_checked_out_counted_and_pushed(
    case: Case,
) -> Result<()> {
    let space = case.space("wide").await?;
    let make = r#"set -e; cd /srv/git; rm -rf wide.git; git init -q --bare -b main wide.git
        awk 'BEGIN {
            print "commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 0"
            for (n = 0; n < 50000; n++) {
                text = "this is file " n
                printf "M 100644 inline d%d/%d.txt\ndata %d\n%s\n", n % 50, n, length(text), text
            }
        }' | git -C wide.git fast-import --quiet"#;
    at_the_server(&case, make).await?;
    let url = case.world.stage.url_of("wide");
    let run = Manifest::new(&space, "run", "happy").set("repository.url", url);
    let run = space.start(run).await?;
    let git = run.ends(Phase::Completed, WHOLE).await?.git;
    let git = git.context("no git")?;
    let ask = format!(
        "git -C /srv/git/wide.git rev-parse {} && git -C /srv/git/wide.git rev-list --count {from}..{to} \
         && git -C /srv/git/wide.git diff --numstat {from} {to} && git -C /srv/git/wide.git ls-tree -r {from} | wc -l",
        run.tag(),
        from = git.initial_commit,
        to = git.final_commit
    );
    let told = at_the_server(&case, &ask).await?;
    let expected = format!(
        "{}\n{}\n{}\t{}\tNOTES.md\n50000",
        git.final_commit, git.commits, git.added, git.removed
    );
    ensure!(told.trim() == expected, "{told:?}, not {expected:?}");
    Ok(())
}

/// Runs a script where the git server runs.
async fn at_the_server(case: &Case, script: &str) -> Result<String> {
    let exec = ["-n", STAGE, "exec", "deploy/git", "--", "sh", "-c", script];
    case.world.kubectl(&exec, None).await
}
