//! What a run refers to may still appear: it stays Pending, says what it waits for soon after the
//! cluster does, and goes on by itself when the cause goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use runledger::api::run::{Phase, WorkflowRunStatus};
use runledger::names::reasons;
use serde_json::json;

use crate::case::{Case, START, Space, WHOLE};
use crate::runs::{Manifest, Run};
use crate::stage::STAGE;
use crate::wait::eventually;

/// From the cluster's word until ours.
const TOLD: Duration = Duration::from_secs(10);
/// The kubelet tries a failed mount or pull again after up to two minutes, and looks for a changed
/// Secret every minute or so.
const CURED: Duration = Duration::from_secs(240);

/// Waits until the cluster says it: an Event in the namespace with these words.
async fn cluster_says(space: &Space, words: &[&str]) -> Result<Instant> {
    let api = space.world.api::<Event>(&space.namespace);
    eventually(&format!("an Event about {words:?}"), START, || async {
        let events = api.list(&ListParams::default()).await?;
        let texts: Vec<String> = events
            .items
            .iter()
            .filter(|event| {
                event
                    .source
                    .as_ref()
                    .and_then(|source| source.component.as_deref())
                    != Some("runledger-controller")
            })
            .map(|event| {
                format!(
                    "{} {}",
                    event.reason.as_deref().unwrap_or_default(),
                    event.message.as_deref().unwrap_or_default()
                )
            })
            .collect();
        ensure!(
            texts
                .iter()
                .any(|text| words.iter().all(|word| text.contains(word))),
            "{texts:#?}"
        );
        Ok(Instant::now())
    })
    .await
}

/// Waits until the run's supervisor has ended for that reason: the cluster's word where the cause is
/// outside of it.
pub(crate) async fn supervisor_says(run: &Run, reason: &str) -> Result<Instant> {
    let pods = run.space.world.api::<Pod>(&run.space.namespace);
    eventually(
        &format!("a supervisor that ended for {reason}"),
        START,
        || async {
            let pods = pods.list(&ListParams::default()).await?;
            let said = pods
                .items
                .iter()
                .filter_map(|pod| pod.status.as_ref()?.init_container_statuses.as_ref())
                .flatten()
                .flat_map(|container| [&container.state, &container.last_state])
                .filter_map(|state| state.as_ref()?.terminated.as_ref()?.message.as_deref());
            ensure!(
                said.clone().any(|said| said.contains(reason)),
                "{:?}",
                said.collect::<Vec<_>>()
            );
            Ok(Instant::now())
        },
    )
    .await
}

/// Ours, soon after, with a sentence that names it.
pub(crate) async fn told(
    run: &Run,
    since: Instant,
    reason: &str,
    name: &str,
) -> Result<WorkflowRunStatus> {
    let left = TOLD.saturating_sub(since.elapsed());
    run.until(
        &format!("Pending for {reason}, naming {name}"),
        left.max(Duration::from_secs(1)),
        |status| {
            status.phase == Phase::Pending
                && status.reason.as_deref() == Some(reason)
                && status
                    .message
                    .as_ref()
                    .is_some_and(|message| message.contains(name))
        },
    )
    .await
}

pub(crate) async fn goes_on(run: &Run) -> Result<()> {
    run.until("no longer Pending", CURED, |status| {
        status.phase != Phase::Pending
    })
    .await?;
    run.ends(Phase::Completed, WHOLE).await?;
    Ok(())
}

pub(crate) async fn missing_secrets_are_named_and_the_runs_go_on_when_they_appear(
    case: Case,
) -> Result<()> {
    let space = case.space("nosecret").await?;
    let keyless = Manifest::new(&space, "keyless", "limited").set("agent.secretName", "late-key");
    let keyless = space.start(keyless).await?;
    let barred = Manifest::new(&space, "barred", "limited");
    let barred = barred.set("repository.secretName", "late-password");
    let barred = space.start(barred).await?;
    let both = async |run: &Run, name: &str| {
        let since = cluster_says(&space, &["FailedMount", name]).await?;
        told(run, since, reasons::MISSING_SECRET, name).await
    };
    tokio::try_join!(both(&keyless, "late-key"), both(&barred, "late-password"))?;
    let stage = &case.world.stage;
    space.apply(&stage.model_secret("late-key")).await?;
    space.apply(&stage.git_secret("late-password")).await?;
    tokio::try_join!(goes_on(&keyless), goes_on(&barred))?;
    Ok(())
}

pub(crate) async fn a_missing_config_map_is_named_and_the_run_goes_on_when_it_appears(
    case: Case,
) -> Result<()> {
    let space = case.space("noconfig").await?;
    let manifest = Manifest::new(&space, "run", "limited").without("task").set(
        "taskFrom",
        json!({"configMapKeyRef": {"name": "later", "key": "task"}}),
    );
    let run = space.start(manifest).await?;
    let since = cluster_says(&space, &["FailedMount", "later"]).await?;
    told(&run, since, reasons::MISSING_CONFIG_MAP, "later").await?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"},
        "data": {"task": space.task("run", "limited")},
    });
    space.apply(&map).await?;
    goes_on(&run).await
}

pub(crate) async fn a_missing_storage_class_is_named_and_the_run_goes_on_when_it_appears(
    case: Case,
) -> Result<()> {
    let space = case.space("noclass").await?;
    let class = space.namespace.clone();
    let manifest =
        Manifest::new(&space, "run", "limited").set("workspace.storageClassName", class.as_str());
    let run = space.start(manifest).await?;
    let since = cluster_says(&space, &[&class, "not found"]).await?;
    told(&run, since, reasons::MISSING_STORAGE_CLASS, &class).await?;
    let object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
        "provisioner": "runledger.test/local", "volumeBindingMode": "WaitForFirstConsumer",
    });
    space.apply(&object).await?;
    let end = goes_on(&run).await;
    space
        .kubectl(&["delete", "storageclass", &class], None)
        .await?;
    end
}

pub(crate) async fn somebody_elses_claim_is_not_touched_and_the_run_goes_on_when_it_is_out_of_the_way(
    case: Case,
) -> Result<()> {
    let space = case.space("claim").await?;
    let claim = "workspace-place";
    space
        .apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": space.namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .await?;
    let run = space
        .start(Manifest::new(&space, "run", "limited").set("workspace.name", "place"))
        .await?;
    told(&run, Instant::now(), reasons::VOLUME, claim).await?;
    let pods = space.world.api::<Pod>(&space.namespace);
    let made = pods.list(&ListParams::default()).await?.items.len();
    ensure!(made == 0, "{made} pods were made that could mount it");
    space
        .kubectl(&["delete", "persistentvolumeclaim", claim], None)
        .await?;
    goes_on(&run).await
}

pub(crate) async fn an_image_that_cannot_be_pulled_is_named_and_the_run_goes_on_when_it_is_there(
    case: Case,
) -> Result<()> {
    let space = case.space("noimage").await?;
    let image = format!("registry.invalid/{}:1", space.namespace);
    let run = space
        .start(Manifest::new(&space, "run", "limited").set("agent.image", image.as_str()))
        .await?;
    let since = cluster_says(&space, &["Failed", &image]).await?;
    told(&run, since, reasons::IMAGE, &image).await?;
    // Once the node has it the kubelet asks no registry.
    let socket = case
        .world
        .variable("RUNLEDGER_CONTAINERD_SOCKET")?
        .to_owned();
    let mut tag = case.world.command("sh");
    tag.args([
        "tests/cluster/cluster.sh",
        "exec",
        "--name",
        case.world.variable("RUNLEDGER_CLUSTER")?,
        "--",
    ]);
    tag.args([
        "ctr",
        "--address",
        &socket,
        "-n",
        "k8s.io",
        "images",
        "tag",
        &case.world.stage.agent_image,
        &image,
    ]);
    crate::sh::run(&mut tag, None, Duration::from_secs(60)).await?;
    goes_on(&run).await
}

pub(crate) async fn an_unreachable_repository_is_named_and_the_run_goes_on_when_it_answers(
    case: Case,
) -> Result<()> {
    let space = case.space("norepo").await?;
    // A port of the git server's Service behind which nothing listens yet.
    let port = 9443;
    open(&case, "late", port, 9).await?;
    let host = case.world.stage.git_host.clone();
    let mut secret = case.world.stage.git_secret("git");
    secret["stringData"]["hosts"] = json!(format!("{host}:{port}"));
    space.apply(&secret).await?;
    let url = case
        .world
        .stage
        .repository_url()
        .replacen(&host, &format!("{host}:{port}"), 1);
    let run = space
        .start(Manifest::new(&space, "run", "limited").set("repository.url", url))
        .await?;
    let since = supervisor_says(&run, reasons::REPOSITORY_UNREACHABLE).await?;
    told(&run, since, reasons::REPOSITORY_UNREACHABLE, &host).await?;
    open(&case, "late", port, 8443).await?;
    goes_on(&run).await
}

/// Lets a port of the git server's Service lead to that port of its pod.
pub(crate) async fn open(case: &Case, name: &str, port: u16, target: u16) -> Result<()> {
    let patch = json!({"spec": {"ports": [{"name": name, "port": port, "targetPort": target, "protocol": "TCP"}]}});
    case.world
        .kubectl(
            &[
                "-n",
                STAGE,
                "patch",
                "service",
                "git",
                "--type=strategic",
                "-p",
                &patch.to_string(),
            ],
            None,
        )
        .await?;
    Ok(())
}

pub(crate) async fn a_wrong_password_is_named_and_the_run_goes_on_with_the_right_one(
    case: Case,
) -> Result<()> {
    let space = case.space("nopass").await?;
    let right = case.world.stage.git_secret("git");
    let mut wrong = right.clone();
    wrong["stringData"]["password"] = json!("not this one");
    space.apply(&wrong).await?;
    let run = space.start(Manifest::new(&space, "run", "limited")).await?;
    let since = supervisor_says(&run, reasons::AUTHENTICATION_FAILED).await?;
    let host = &case.world.stage.git_host;
    let status = told(&run, since, reasons::AUTHENTICATION_FAILED, host).await?;
    let message = status.message.unwrap_or_default();
    ensure!(!message.contains("not this one"), "the password is told");
    space.apply(&right).await?;
    goes_on(&run).await
}

pub(crate) async fn a_pod_without_a_node_is_named_and_the_run_goes_on_when_there_is_room(
    case: Case,
) -> Result<()> {
    let space = case.space("nonode").await?;
    let label = format!("e2e/{}", space.namespace);
    let selector = json!({ &label: "yes" });
    let run = space
        .start(Manifest::new(&space, "run", "limited").set("podTemplate.nodeSelector", selector))
        .await?;
    let since = cluster_says(&space, &["FailedScheduling"]).await?;
    told(&run, since, reasons::SCHEDULING, "can't be scheduled").await?;
    let node = case
        .world
        .variable("RUNLEDGER_NODE_NAME")
        .context("no node")?;
    space
        .kubectl(&["label", "node", node, &format!("{label}=yes")], None)
        .await?;
    let end = goes_on(&run).await;
    space
        .kubectl(&["label", "node", node, &format!("{label}-")], None)
        .await?;
    end
}
