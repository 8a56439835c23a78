//! A run's finalizer, from its first moment on: by the chart's policy, and by the controller where
//! the cluster has none.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use runledger::api::run::WorkflowRun;
use runledger::names::{ADMISSION_POLICY, GROUP, finalizers, reasons};
use serde_json::{Value, json};

use crate::case::{Case, START, Space};
use crate::runs::{Manifest, Run};
use crate::wait::eventually;
use crate::world::SYSTEM;
use crate::{ledger, writes};

const BINDING: &str = "mutatingadmissionpolicybinding";
/// Longest wait until the API server goes by the binding, or the lack of one. The controller makes it
/// half a minute after it began.
const POLICY: Duration = Duration::from_secs(90);

/// Asks for the run with that command of kubectl's, and answers what it is then.
async fn made(space: &Space, manifest: &Manifest, command: &[&str]) -> Result<WorkflowRun> {
    let all = [command, &["-o", "json", "-f", "-"]].concat();
    let answer = space.kubectl(&all, Some(&manifest.0.to_string())).await?;
    Ok(serde_json::from_str(&answer)?)
}

fn is_held(run: &WorkflowRun) -> bool {
    run.finalizers().iter().any(|one| one == finalizers::RUN)
}

/// Waits until runs that come are held, or not, as they are made.
pub(crate) async fn held_from_the_first(space: &Space, wanted: bool) -> Result<()> {
    let manifest = Manifest::new(space, "probe", "limited");
    let dry_run = || async {
        let run = made(space, &manifest, &["create", "--dry-run=server"]).await?;
        ensure!(is_held(&run) == wanted, "{:?}", run.metadata);
        Ok(())
    };
    eventually("the policy is in force, or out of it", POLICY, dry_run).await
}

pub(crate) async fn a_run_deleted_in_its_first_moment_is_killed_in_the_ledger(
    case: Case,
) -> Result<()> {
    let space = case.space("held").await?;
    held_from_the_first(&space, true).await?;
    let manifest = Manifest::new(&space, "gone", "limited");
    let object = made(&space, &manifest, &["create"]).await?;
    let run = Run {
        space: space.clone(),
        name: object.name_any(),
        uid: object.uid().context("no uid")?,
    };
    run.delete().await?;
    ensure!(is_held(&object), "made without it: {:?}", object.metadata);
    run.gone(START).await?;
    let row = ledger::row(&case.world.ledger, run.id()).await?;
    ensure!(
        row.status == "killed" && row.reason.as_deref() == Some(reasons::DELETED),
        "{row:?}"
    );
    Ok(())
}

/// As Flux does, and Argo CD where it is told to.
pub(crate) async fn a_run_that_is_applied_again_stays_held(case: Case) -> Result<()> {
    let space = case.space("again").await?;
    held_from_the_first(&space, true).await?;
    let mut manifest = Manifest::new(&space, "again", "limited");
    for round in ["first", "second"] {
        manifest.0["metadata"]["labels"] = json!({"round": round});
        let run = made(&space, &manifest, &["apply", "--server-side"]).await?;
        ensure!(is_held(&run), "{round}: {:?}", run.metadata);
    }
    Ok(())
}

pub(crate) async fn without_the_policy_a_run_is_held_before_it_has_a_pod_and_costs_no_more(
    case: Case,
) -> Result<()> {
    let space = case.space("unheld").await?;
    held_from_the_first(&space, true).await?;
    let binding = case
        .world
        .kubectl(&["get", BINDING, ADMISSION_POLICY, "-o", "json"], None)
        .await?;
    let mut binding: Value = serde_json::from_str(&binding)?;
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        binding["metadata"]
            .as_object_mut()
            .context("no metadata")?
            .remove(field);
    }
    case.world
        .kubectl(&["delete", BINDING, ADMISSION_POLICY], None)
        .await?;
    let outcome = unheld(&case, &space).await;
    case.world
        .kubectl(&["create", "-f", "-"], Some(&binding.to_string()))
        .await?;
    outcome
}

async fn unheld(case: &Case, space: &Space) -> Result<()> {
    held_from_the_first(space, false).await?;
    let small = writes::on_empty_dir(space).await?;
    let other = case.space("unheld12").await?;
    let large = writes::with_workspace(&other).await?;
    for run in [&small, &large] {
        run.until("it has a pod", START, |status| status.pod_uid.is_some())
            .await?;
        let now = run.api().get(&run.name).await?;
        ensure!(is_held(&now), "a pod, and nothing holds {}", run.name);
    }
    // The write more that the finalizer then is has its room in what a run may cost.
    tokio::try_join!(
        writes::costs_at_most(writes::ON_EMPTY_DIR, &small),
        writes::costs_at_most(writes::WITH_WORKSPACE, &large),
    )?;
    for run in [&small, &large] {
        let row = ledger::row(&case.world.ledger, run.id()).await?;
        ensure!(row.status == "completed", "{row:?}");
    }
    Ok(())
}

/// README's last resort, where nobody is there who would put them on again.
pub(crate) async fn without_a_controller_finalizers_come_off_by_hand(case: Case) -> Result<()> {
    const CONTROLLER: &str = "runledger-controller";
    let space = case.space("byhand").await?;
    let manifest = Manifest::new(&space, "stuck", "limited").set("agent.secretName", "never");
    let run = space.start(manifest).await?;
    let pod = run.pod().await?;
    let workspace = run.workspace().await?.name_any();
    let replicas = case.world.replicas(SYSTEM, CONTROLLER).await?;
    case.world.scale(SYSTEM, CONTROLLER, 0).await?;
    let outcome = by_hand(
        &space,
        &[("wfr", "stuck"), ("pod", &pod), ("wfws", &workspace)],
    )
    .await;
    case.world.scale(SYSTEM, CONTROLLER, replicas).await?;
    outcome
}

async fn by_hand(space: &Space, objects: &[(&str, &str)]) -> Result<()> {
    for (kind, name) in objects {
        space
            .kubectl(&["delete", kind, name, "--wait=false"], None)
            .await?;
    }
    for (kind, name) in objects {
        let left = space
            .kubectl(
                &["get", kind, name, "-o", "jsonpath={.metadata.finalizers}"],
                None,
            )
            .await?;
        ensure!(left.contains(GROUP), "nothing held {kind} {name}: {left:?}");
        let patch = r#"{"metadata":{"finalizers":null}}"#;
        space
            .kubectl(&["patch", kind, name, "--type", "merge", "-p", patch], None)
            .await?;
    }
    for (kind, name) in objects {
        let gone = || async {
            let left = space.try_kubectl(&["get", kind, name], None).await?;
            ensure!(left.code != 0, "it is still there: {}", left.stdout);
            Ok(())
        };
        eventually(&format!("{kind} {name} is gone"), START, gone).await?;
    }
    Ok(())
}
