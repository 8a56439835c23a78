//! `runledger uninstall`: ends all runs while there is still a controller to record their ends, then
//! stops the controller and takes every finalizer of ours off, so that nothing is left that can't be
//! deleted. Workspaces and their volumes stay.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::admission;
use crate::api::run::DesiredState;
use crate::api::{WorkflowRun, Workspace};
use crate::names::{ADMISSION_POLICY, CONTROLLER_PODS, FIELD_MANAGER, finalizers, labels};

/// Objects that are listed at once.
const PAGE: u32 = 500;
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_secs(2);
/// How long the controller's pods may take to end: their grace period, and then some.
const CONTROLLER_ENDS: Duration = Duration::from_secs(50);

/// `runledger uninstall`: ends all runs and takes every finalizer off.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Runledger's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "runledger-system")]
    pub namespace: String,
    /// How long runs may take to end, in seconds.
    #[arg(long, default_value_t = 120)]
    pub timeout: u64,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: String,
    source: Box<kube::Error>,
}

fn doing(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |error| Error {
        what,
        source: Box::new(error),
    }
}

/// Does all of it; what is gone already is fine.
pub async fn run(args: Args) -> Result<(), Error> {
    // Fails only where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default()
        .await
        .map_err(doing("find out which cluster to talk to"))?;
    // First of all, as the API server goes on with it for a moment.
    hold_no_more(&client).await?;
    kill_all(&client).await?;
    wait(&client, Duration::from_secs(args.timeout)).await?;
    stop_controller(&client, &args.namespace).await?;
    // A controller that had just started may have made it meanwhile.
    hold_no_more(&client).await?;
    for run in list::<WorkflowRun>(&client, "").await? {
        let_go::<WorkflowRun>(&client, &run, finalizers::RUN).await?;
    }
    let of_runs = format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
    for pod in list::<Pod>(&client, &of_runs).await? {
        if pod.labels().contains_key(labels::RUN_UID) {
            delete(&client, &pod).await?;
            let_go::<Pod>(&client, &pod, finalizers::POD).await?;
        }
    }
    for workspace in list::<Workspace>(&client, "").await? {
        let_go::<Workspace>(&client, &workspace, finalizers::WORKSPACE).await?;
    }
    say("done: Workspaces and their volumes stay until they are deleted");
    Ok(())
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}

/// Takes away what gives new runs their finalizer. The controller looks after runs that come without,
/// for as long as it is there.
async fn hold_no_more(client: &Client) -> Result<(), Error> {
    let what = format!("delete MutatingAdmissionPolicyBinding {ADMISSION_POLICY}");
    if admission::unbind(client).await.map_err(doing(what))? {
        say("new runs are given no finalizer any more");
    }
    Ok(())
}

fn unfinished(run: &WorkflowRun) -> bool {
    !run.status
        .as_ref()
        .is_some_and(|status| status.phase.is_final())
}

async fn kill_all(client: &Client) -> Result<(), Error> {
    for run in list::<WorkflowRun>(client, "").await? {
        if !unfinished(&run) || run.spec.desired_state == DesiredState::Killed {
            continue;
        }
        let name = run.name_any();
        say(&format!(
            "killing run {}/{name}",
            run.namespace().unwrap_or_default()
        ));
        let patch = json!({"spec": {"desiredState": "Killed"}});
        tolerant(
            api::<WorkflowRun>(client, &run)
                .patch(&name, &params(), &Patch::Merge(&patch))
                .await,
        )
        .map_err(doing(format!("kill run {name}")))?;
    }
    Ok(())
}

async fn wait(client: &Client, longest: Duration) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + longest;
    loop {
        let left = list::<WorkflowRun>(client, "")
            .await?
            .iter()
            .filter(|run| unfinished(run))
            .count();
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            say(&format!(
                "{left} runs have not ended in time; they are let go"
            ));
            return Ok(());
        }
        say(&format!("waiting for {left} runs to end"));
        tokio::time::sleep(LOOK).await;
    }
}

/// It would put its finalizers back on, until its last pod is gone.
async fn stop_controller(client: &Client, namespace: &str) -> Result<(), Error> {
    let name = "runledger-controller";
    say(&format!("stopping the controller {namespace}/{name}"));
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"spec": {"replicas": 0}});
    tolerant(
        api.patch_scale(name, &params(), &Patch::Merge(&patch))
            .await,
    )
    .map_err(doing("stop the controller"))?;
    let deadline = tokio::time::Instant::now() + CONTROLLER_ENDS;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_it = ListParams::default().labels(CONTROLLER_PODS).limit(PAGE);
    loop {
        let left = pods
            .list(&of_it)
            .await
            .map_err(doing("look for the controller's pods"))?
            .items
            .len();
        if left == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            say(&format!(
                "{left} of the controller's pods are still there and may put finalizers back on; once they are \
                 gone, let `runledger uninstall` run again if something can't be deleted"
            ));
            return Ok(());
        }
        say(&format!(
            "waiting for {left} of the controller's pods to end"
        ));
        tokio::time::sleep(LOOK).await;
    }
}

async fn delete(client: &Client, pod: &Pod) -> Result<(), Error> {
    let name = pod.name_any();
    tolerant(
        api::<Pod>(client, pod)
            .delete(&name, &DeleteParams::default())
            .await,
    )
    .map_err(doing(format!("delete pod {name}")))?;
    Ok(())
}

async fn let_go<K>(client: &Client, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    if !object.finalizers().iter().any(|one| one == finalizer) {
        return Ok(());
    }
    let name = object.name_any();
    let kind = K::kind(&());
    say(&format!(
        "taking finalizer {finalizer} off {kind} {}/{name}",
        object.namespace().unwrap_or_default()
    ));
    let left: Vec<&String> = object
        .finalizers()
        .iter()
        .filter(|one| *one != finalizer)
        .collect();
    let patch = json!({"metadata": {"uid": object.meta().uid, "finalizers": left}});
    tolerant(
        api::<K>(client, object)
            .patch(&name, &params(), &Patch::Merge(&patch))
            .await,
    )
    .map_err(doing(format!("take the finalizer off {kind} {name}")))?;
    Ok(())
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn api<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// What is gone needs nothing done to it.
fn tolerant<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

async fn list<K>(client: &Client, selector: &str) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let mut all = Vec::new();
    let mut page = ListParams::default().labels(selector).limit(PAGE);
    loop {
        let list =
            tolerant(api.list(&page).await).map_err(doing(format!("list {}", K::plural(&()))))?;
        let Some(list) = list else {
            // The definition is not there (any more).
            return Ok(all);
        };
        all.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}
