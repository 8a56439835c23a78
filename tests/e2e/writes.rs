//! Writes to the API server, counted in its audit log: they cap how many runs a cluster can take.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Result, ensure};
use runledger::api::run::Phase;
use runledger::names::reasons;
use serde_json::Value;

use crate::case::{Case, START, Space, WHOLE};
use crate::ends;
use crate::held::held_from_the_first;
use crate::runs::{Manifest, Run};
use crate::wait::eventually;
use crate::world::{SYSTEM, World};

/// Create, update, patch and delete by Runledger's identities, without Events, Leases and reviews.
pub(crate) fn writes(world: &World, concerns: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let file = std::fs::File::open(world.variable("RUNLEDGER_AUDIT_LOG")?)?;
    let user = format!("system:serviceaccount:{SYSTEM}:");
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        if !line.contains(&user) {
            continue;
        }
        let Ok(entry) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let text = |pointer: &str| {
            entry
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (verb, resource) = (text("/verb"), text("/objectRef/resource"));
        let counted = matches!(
            verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        ) && !matches!(
            resource.as_str(),
            "events" | "leases" | "tokenreviews" | "subjectaccessreviews"
        ) && text("/stage") == "ResponseComplete"
            && text("/user/username").starts_with(&user);
        let namespace = text("/objectRef/namespace");
        if counted && concerns(&namespace) {
            let code = entry
                .pointer("/responseStatus/code")
                .and_then(Value::as_i64)
                .unwrap_or(0);
            found.push(format!(
                "{verb} {resource}/{} {} in {namespace} -> {code}",
                text("/objectRef/subresource"),
                text("/objectRef/name")
            ));
        }
    }
    Ok(found)
}

/// Waits until nothing has been written for a while, since the last writes come after the run's end.
pub(crate) async fn settled(world: &World, concerns: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let last = std::sync::Mutex::new((usize::MAX, tokio::time::Instant::now()));
    eventually("no more writes", Duration::from_secs(60), || async {
        let now = writes(world, &concerns)?;
        let mut last = last.lock().unwrap();
        if last.0 != now.len() {
            *last = (now.len(), tokio::time::Instant::now());
        }
        ensure!(
            last.1.elapsed() > Duration::from_secs(3),
            "the last write was a moment ago"
        );
        Ok(now)
    })
    .await
}

/// The most that a run on an emptyDir may cost, and one with a new Workspace.
pub(crate) const ON_EMPTY_DIR: usize = 8;
pub(crate) const WITH_WORKSPACE: usize = 12;

/// Lets the run, the only one of its namespace, go through, and requires that it cost no more.
pub(crate) async fn costs_at_most(most: usize, run: &Run) -> Result<()> {
    run.ends(Phase::Completed, WHOLE).await?;
    run.pods_gone(START).await?;
    let Space {
        world, namespace, ..
    } = &run.space;
    let written = settled(world, |concerned| concerned == namespace).await?;
    ensure!(
        written.len() <= most,
        "{} writes:\n{}",
        written.len(),
        written.join("\n")
    );
    ensure!(!written.is_empty(), "the audit log shows nothing");
    println!("    writes, of at most {most}: {}", written.len());
    Ok(())
}

/// A run on an emptyDir, as they are counted.
pub(crate) async fn on_empty_dir(space: &Space) -> Result<Run> {
    let manifest = Manifest::new(space, "eight", "limited").set("workspace.persistent", false);
    space.start(manifest).await
}

/// A run with a new Workspace, as they are counted.
pub(crate) async fn with_workspace(space: &Space) -> Result<Run> {
    let manifest = Manifest::new(space, "twelve", "limited");
    space.start(manifest).await
}

pub(crate) async fn a_run_on_an_empty_dir_costs_at_most_eight_writes(case: Case) -> Result<()> {
    let space = case.space("writes8").await?;
    held_from_the_first(&space, true).await?;
    costs_at_most(ON_EMPTY_DIR, &on_empty_dir(&space).await?).await
}

pub(crate) async fn a_run_with_a_new_workspace_costs_at_most_twelve_writes(
    case: Case,
) -> Result<()> {
    let space = case.space("writes12").await?;
    held_from_the_first(&space, true).await?;
    costs_at_most(WITH_WORKSPACE, &with_workspace(&space).await?).await
}

pub(crate) async fn a_resync_in_which_nothing_changed_writes_nothing(case: Case) -> Result<()> {
    let old = case.space("resync").await?;
    let done = old.start(Manifest::new(&old, "done", "limited")).await?;
    let waiting = old
        .start(Manifest::new(&old, "waiting", "limited").set("agent.secretName", "later"))
        .await?;
    // One at work, and one that waits until it lets go of their Workspace.
    let on_one = |name| Manifest::new(&old, name, "slow").set("workspace.name", "shared");
    let working = old.start(on_one("working")).await?;
    ends::at_work(&working).await?;
    let queued = old.start(on_one("queued")).await?;
    done.ends(Phase::Completed, WHOLE).await?;
    done.pods_gone(START).await?;
    waiting.waits_for(reasons::MISSING_SECRET, START).await?;
    queued.waits_for(reasons::WORKSPACE, START).await?;
    let before = settled(&case.world, |namespace| namespace == old.namespace).await?;

    case.world
        .kubectl(
            &[
                "-n",
                SYSTEM,
                "rollout",
                "restart",
                "deployment/runledger-controller",
            ],
            None,
        )
        .await?;
    case.world
        .deployment_ready(SYSTEM, "runledger-controller", START)
        .await?;
    // A run that goes through shows that the new controller has come through its first list.
    let new = case.space("resync-new").await?;
    let marker = new
        .start(Manifest::new(&new, "marker", "limited").set("workspace.persistent", false))
        .await?;
    marker.ends(Phase::Completed, WHOLE).await?;
    let after = settled(&case.world, |namespace| namespace == old.namespace).await?;
    let more = after.get(before.len()..).unwrap_or_default();
    ensure!(
        more.is_empty(),
        "written though nothing had changed:\n{}",
        more.join("\n")
    );
    ensure!(
        working.status().await?.phase == Phase::Running,
        "the run that was to be at work all along is not"
    );
    for run in [&waiting, &queued, &working] {
        run.kill().await?;
        run.ends(Phase::Killed, START).await?;
    }
    Ok(())
}
