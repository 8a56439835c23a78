//! The end of it all: the chart goes, and nothing that is left behind hangs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::{Api, ListParams};
use runledger::api::run::{Phase, WorkflowRun};
use runledger::names::ADMISSION_POLICY;

use crate::case::{Case, WHOLE};
use crate::runs::Manifest;
use crate::wait::eventually;
use crate::world::{RELEASE, SYSTEM};
use crate::{ends, held, sh, writes};

pub(crate) async fn uninstalling_finishes_with_runs_still_there(case: Case) -> Result<()> {
    let space = case.space("uninstall").await?;
    held::held_from_the_first(&space, true).await?;
    let done = space
        .start(Manifest::new(&space, "done", "limited"))
        .await?;
    done.ends(Phase::Completed, WHOLE).await?;
    let working = space
        .start(Manifest::new(&space, "working", "slow"))
        .await?;
    ends::at_work(&working).await?;
    let waiting = space
        .start(Manifest::new(&space, "waiting", "slow").set("agent.secretName", "never"))
        .await?;
    waiting
        .until("Pending with a pod", WHOLE, |status| {
            status.pod_name.is_some()
        })
        .await?;

    let mut uninstall = case.world.command("helm");
    uninstall.args([
        "uninstall",
        RELEASE,
        "-n",
        SYSTEM,
        "--wait",
        "--timeout",
        "3m",
    ]);
    sh::run(&mut uninstall, None, Duration::from_secs(240))
        .await
        .context("helm uninstall")?;

    // Else a run that is made meanwhile would keep its finalizer for ever.
    let cluster_wide = writes::writes(&case.world, str::is_empty)?;
    let binding = format!("delete mutatingadmissionpolicybindings/ {ADMISSION_POLICY} in  -> 200");
    ensure!(
        cluster_wide.contains(&binding),
        "no '{binding}' in {cluster_wide:#?}"
    );

    // With nobody there to take finalizers off, none may hold what people delete now.
    case.world
        .kubectl(
            &["delete", "namespace", &space.namespace, "--wait=false"],
            None,
        )
        .await?;
    eventually(
        "the namespace is gone",
        Duration::from_secs(150),
        || async {
            let left = case
                .world
                .try_kubectl(&["get", "namespace", &space.namespace, "-o", "json"], None)
                .await?;
            ensure!(left.code != 0, "it is still there: {}", left.stdout);
            Ok(())
        },
    )
    .await?;
    let all: Api<WorkflowRun> = Api::all(case.world.kube.clone());
    let runs = all
        .list(&ListParams::default())
        .await
        .map(|list| list.items.len())
        .unwrap_or(0);
    println!("    runs of other namespaces that stayed: {runs}");
    let pods = case
        .world
        .kubectl(&["-n", SYSTEM, "get", "pods", "-o", "name"], None)
        .await?;
    ensure!(
        pods.trim().is_empty(),
        "pods of the product are left: {pods}"
    );
    Ok(())
}
