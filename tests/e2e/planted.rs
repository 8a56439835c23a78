//! A former run leaves traps in the workspace: the supervisor of the next walks into none of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use runledger::api::run::Phase;
use tokio::net::TcpListener;

use crate::case::{Case, WHOLE};
use crate::check::Books;
use crate::git;
use crate::runs::Manifest;

/// Counts whoever calls: nobody may.
async fn canary(address: &str) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind((address, 0))
        .await
        .context("listening for the canary")?;
    let url = format!("http://{}", listener.local_addr()?);
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok((url, calls))
}

pub(crate) async fn a_planted_git_config_gets_nothing_executed_read_or_sent(
    case: Case,
) -> Result<()> {
    let space = case.space("planted").await?;
    let (url, calls) = canary(case.world.variable("RUNLEDGER_HOST_IP")?).await?;
    // The trap needs the canary's address and the git server's: the task brings them to the shell
    // through the model's scenario, as a file of the workspace can't.
    let planter = Manifest::new(&space, "planter", "plant").set("workspace.name", "shared");
    let planter = space.start(planter).await?;
    let status = planter.ends(Phase::Completed, WHOLE).await?;
    let before = Books::of(&planter, status).await?;
    let commit = before.status.git.clone().context("no git")?.final_commit;

    // What only the run's own shell can write, with this test's addresses.
    trap(&case, &space, &url).await?;
    let victim = Manifest::new(&space, "victim", "victim").set("workspace.name", "shared");
    let victim = space.start(victim).await?;
    let status = victim.ends(Phase::Completed, WHOLE).await?;
    let books = Books::of(&victim, status).await?;
    let git = books.status.git.clone().context("no git")?;
    ensure!(
        git.initial_commit == commit,
        "{git:?} does not go on from {commit}"
    );
    let clone = git::Clone::of(&case.world).await?;
    books.changes_are_gits(&clone).await?;
    ensure!(git.pushed == Some(space.tag("victim")), "pushed {git:?}");

    ensure!(calls.load(Ordering::Relaxed) == 0, "the canary was called");
    let archive = clone.archive(&space.tag("victim")).await?;
    let text = String::from_utf8_lossy(&archive);
    let stage = &case.world.stage;
    ensure!(
        !text.contains(&stage.git_password) && !text.contains(&stage.api_key),
        "a secret was pushed"
    );
    let listing = clone
        .git(&["ls-tree", "-r", "--name-only", &space.tag("victim")])
        .await?;
    for trace in ["password", "ANTHROPIC_API_KEY", "executed"] {
        ensure!(
            !listing.lines().any(|file| file.contains(trace)),
            "{trace} is in the pushed tree:\n{listing}"
        );
    }
    let work = work_folder(&case, &space).await?;
    ensure!(
        !work.join("executed-by-supervisor").exists(),
        "a planted command ran in the supervisor"
    );
    Ok(())
}

/// The workspace's files as the host has them.
async fn work_folder(case: &Case, space: &crate::case::Space) -> Result<std::path::PathBuf> {
    let claim = space
        .kubectl(
            &[
                "get",
                "wfws",
                "shared",
                "-o",
                "jsonpath={.status.claimName}",
            ],
            None,
        )
        .await?;
    let volume = space
        .kubectl(
            &[
                "get",
                "pvc",
                claim.trim(),
                "-o",
                "jsonpath={.spec.volumeName}",
            ],
            None,
        )
        .await?;
    let path = case
        .world
        .kubectl(
            &[
                "get",
                "pv",
                volume.trim(),
                "-o",
                "jsonpath={.spec.local.path}{.spec.hostPath.path}",
            ],
            None,
        )
        .await?;
    Ok(std::path::PathBuf::from(path.trim()).join("work"))
}

/// Puts the canary's address where the planted files left a place for it.
async fn trap(case: &Case, space: &crate::case::Space, canary: &str) -> Result<()> {
    let work = work_folder(case, space).await?;
    let config = work.join(".git/config");
    let text = std::fs::read_to_string(&config)
        .with_context(|| format!("reading {}", config.display()))?;
    ensure!(
        text.contains("http://canary.invalid"),
        "the scenario has planted nothing:\n{text}"
    );
    let host = &case.world.stage.git_host;
    std::fs::write(
        &config,
        text.replace("http://canary.invalid", canary)
            .replace("git.invalid", host),
    )?;
    Ok(())
}
