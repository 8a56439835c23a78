//! Bad input: refused at the door or Failed, each in words that name the field; and it harms nobody else.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use runledger::api::run::{Phase, WorkflowRun};
use serde_json::json;

use crate::bad_manifests::{self, Bad};
use crate::case::{Case, START, Space, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::world::{SYSTEM, World};
use crate::{restarts, writes};

pub(crate) async fn thirty_bad_manifests_are_refused_with_the_name_of_the_field(
    case: Case,
) -> Result<()> {
    let space = case.space("bad").await?;
    let before = restarts::of_product(&case.world).await?;
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
    // It was the same processes that took them all.
    let after = restarts::of_product(&case.world).await?;
    ensure!(
        before == after,
        "restarts by pod: {before:?}, then {after:?}"
    );
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

/// What the controllers have counted since they began.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    reconciles: u64,
    failures: u64,
}

async fn counted(world: &World) -> Result<Counted> {
    let of_controllers = ListParams::default().labels("app.kubernetes.io/component=controller");
    let mut sum = Counted::default();
    for pod in world.api::<Pod>(SYSTEM).list(&of_controllers).await? {
        let path = format!(
            "/api/v1/namespaces/{SYSTEM}/pods/{}:8080/proxy/metrics",
            pod.name_any()
        );
        let text = world
            .kube
            .request_text(http::Request::get(path).body(Vec::new())?)
            .await?;
        let value = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            let value = values
                .next()
                .and_then(|value| value.trim().parse::<u64>().ok());
            value.with_context(|| format!("no {name} in {text}"))
        };
        sum.reconciles += value("runledger_reconciles_total ")?;
        sum.failures += value("runledger_reconcile_failures_total ")?;
    }
    Ok(sum)
}

/// Lets a run go through, and answers how often runs were looked at meanwhile.
async fn looks_of_a_good_run(space: &Space, name: &str) -> Result<u64> {
    let before = counted(&space.world).await?;
    let task = space.task(name, "default");
    let run = space
        .start(Manifest::bare(name, &task).set("workspace.persistent", false))
        .await?;
    run.ends(Phase::Completed, WHOLE).await?;
    run.pods_gone(START).await?;
    Ok(counted(&space.world).await?.reconciles - before.reconciles)
}

/// That bad input slows nobody else, without a clock: runs that are refused are looked at a few times,
/// none of them in vain, and never again once they have Failed, however long they lie there.
pub(crate) async fn refused_runs_are_soon_left_alone(case: Case) -> Result<()> {
    const REFUSED: u64 = 20;
    /// New, Failed and recorded; and what comes late.
    const LOOKS: u64 = 5;
    let (space, of_bad) = (case.space("patient").await?, case.space("refused").await?);
    let alone = looks_of_a_good_run(&space, "before").await?;

    let before = counted(&case.world).await?;
    let bad = (0..REFUSED).map(|number| {
        let selector = json!({"-": "*"});
        Manifest::new(&of_bad, &format!("bad-{number}"), "limited")
            .set("podTemplate.nodeSelector", selector)
    });
    let runs = try_join_all(bad.map(|manifest| of_bad.start(manifest))).await?;
    let ends = runs.iter().map(|run| run.ends(Phase::Failed, START));
    try_join_all(ends).await?;
    writes::settled(&case.world, |namespace| namespace == of_bad.namespace).await?;
    let after = counted(&case.world).await?;
    let looks = after.reconciles - before.reconciles;
    ensure!(
        looks <= REFUSED * LOOKS && after.failures == before.failures,
        "{REFUSED} refused runs: {before:?}, then {after:?}"
    );

    let beside = looks_of_a_good_run(&space, "after").await?;
    println!(
        "    looks at {REFUSED} refused runs: {looks}; at a good one: {alone}, beside them {beside}"
    );
    ensure!(
        beside < alone + REFUSED,
        "a good run alone took {alone} looks, and {beside} beside {REFUSED} refused ones"
    );
    Ok(())
}
