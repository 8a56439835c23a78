//! Bad input: refused at the door or Failed, each in words that name the field; and it harms nobody else.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use runledger::api::run::{Phase, WorkflowRun};

use crate::bad_manifests::{self, Bad};
use crate::case::{Case, Space, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, Run};

pub(crate) async fn thirty_bad_manifests_are_refused_with_the_name_of_the_field(
    case: Case,
) -> Result<()> {
    let space = case.space("bad").await?;
    let good = space
        .start(Manifest::new(&space, "good", "limited"))
        .await?;
    let all = bad_manifests::all();
    ensure!(all.len() >= 30, "only {}", all.len());
    let mut wrong = Vec::new();
    let mut refused = 0;
    for (number, bad) in all.iter().enumerate() {
        match one(&space, number, bad).await {
            Ok(true) => refused += 1,
            Ok(false) => {}
            Err(error) => wrong.push(format!("{}: {error:#}", bad.what)),
        }
    }
    // A name that no object can have.
    let named = Manifest::new(&space, "Ünïcode", "limited");
    let output = space
        .try_kubectl(&["create", "-f", "-"], Some(&named.0.to_string()))
        .await?;
    ensure!(
        output.code != 0 && output.all().contains("metadata.name"),
        "{}",
        output.all()
    );
    ensure!(
        wrong.is_empty(),
        "{} of {} went wrong:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    println!(
        "    {refused} of {} refused at admission, the others Failed",
        all.len()
    );

    // Next to all of them a good run went its way.
    let status = good.ends(Phase::Completed, WHOLE).await?;
    Books::undisturbed(&good, status).await?;
    Ok(())
}

/// Whether admission refused it; an error where neither it nor the controller did so in good words.
async fn one(space: &Space, number: usize, bad: &Bad) -> Result<bool> {
    let mut manifest = Manifest::new(space, &format!("bad-{number}"), "limited");
    let name = manifest.name().to_owned();
    (bad.change)(&mut manifest.0["spec"]);
    let arguments = ["create", "--validate=strict", "-f", "-"];
    let output = space
        .try_kubectl(&arguments, Some(&manifest.0.to_string()))
        .await?;
    if output.code != 0 {
        let said = output.all();
        ensure!(
            said.contains(bad.names),
            "refused without naming {}: {said}",
            bad.names
        );
        ensure!(said.len() < 4_000, "refused in {} characters", said.len());
        return Ok(true);
    }
    let uid = space
        .world
        .api::<WorkflowRun>(&space.namespace)
        .get(&name)
        .await?
        .metadata
        .uid;
    let run = Run {
        space: space.clone(),
        name,
        uid: uid.context("no uid")?,
    };
    let failed = run.ends(Phase::Failed, Duration::from_secs(30)).await;
    let Ok(status) = failed else {
        run.delete().await?;
        bail!(
            "it was let in, and did not fail: {:#}",
            failed.err().context("no error")?
        );
    };
    let said = status.message.unwrap_or_default();
    ensure!(
        said.contains(bad.names),
        "Failed without naming {}: {said}",
        bad.names
    );
    Ok(false)
}

pub(crate) async fn the_controller_never_restarted_by_itself(case: Case) -> Result<()> {
    // The tests that kill it leave restarts behind that are theirs: a container that ended by itself
    // did so with another code than 137.
    let pods = case
        .world
        .kubectl(
            &["-n", crate::world::SYSTEM, "get", "pods", "-o", "json"],
            None,
        )
        .await?;
    let pods: serde_json::Value = serde_json::from_str(&pods)?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        for status in pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let last = &status["lastState"]["terminated"];
            ensure!(
                last.is_null() || last["exitCode"] == 137 && last["reason"] != "OOMKilled",
                "{} ended by itself: {last}",
                pod["metadata"]["name"]
            );
        }
    }
    Ok(())
}
