//! The watches: fill the caches with no more than is looked at, and say which run or Workspace each
//! change is about.

use std::sync::Arc;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event as ClusterEvent;
use kube::core::ObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::api::run::DesiredState;
use crate::api::{WorkflowRun, Workspace};
use crate::names::{GROUP, labels};

use super::context::Stores;
use super::index::Index;
use super::sightings::{Sightings, WATCHED};
use super::slim::{self, Slim};
use super::{record, status, validate};

/// Where changes are told.
#[derive(Clone)]
struct Bells {
    runs: UnboundedSender<ObjectRef<WorkflowRun>>,
    workspaces: UnboundedSender<ObjectRef<Workspace>>,
}

/// What wakes the two reconcilers.
pub(super) struct Triggers {
    /// Runs to look at.
    pub runs: UnboundedReceiver<ObjectRef<WorkflowRun>>,
    /// Workspaces to look at.
    pub workspaces: UnboundedReceiver<ObjectRef<Workspace>>,
}

/// Starts all watches.
pub(super) fn start(client: &Client) -> (Stores, Triggers) {
    let (runs_bell, runs) = unbounded_channel();
    let (workspaces_bell, workspaces) = unbounded_channel();
    let bells = Bells {
        runs: runs_bell,
        workspaces: workspaces_bell,
    };
    let (run_store, run_writer) = reflector::store();
    let (workspace_store, workspace_writer) = reflector::store();
    let (pod_store, pod_writer) = reflector::store();
    let (claim_store, claim_writer) = reflector::store();
    let stores = Stores {
        runs: run_store,
        workspaces: workspace_store,
        pods: pod_store,
        claims: claim_store,
        sightings: Arc::new(Sightings::default()),
        listed: Arc::new(Semaphore::new(0)),
        index: Arc::new(Index::default()),
    };
    let runs_api = Api::<Slim<WorkflowRun>>::all(client.clone());
    let run_stream = watcher(runs_api, Config::default())
        .default_backoff()
        .map_ok(slim::unwrapped)
        .modify(strip_run)
        .reflect(run_writer);
    tokio::spawn(watch_runs(run_stream, stores.index.clone(), bells.clone()));
    let workspace_stream = watcher(Api::<Workspace>::all(client.clone()), Config::default())
        .default_backoff()
        .modify(|workspace| strip_meta(&mut workspace.metadata))
        .reflect(workspace_writer);
    tokio::spawn(watch_workspaces(
        workspace_stream,
        stores.index.clone(),
        bells.clone(),
    ));
    let of_runs = format!(
        "{}={},{}",
        labels::MANAGED_BY,
        labels::MANAGED_BY_VALUE,
        labels::RUN_UID
    );
    let pod_stream = watcher(
        Api::<Slim<Pod>>::all(client.clone()),
        Config::default().labels(&of_runs),
    )
    .default_backoff()
    .map_ok(slim::unwrapped)
    .modify(strip_pod)
    .reflect(pod_writer);
    tokio::spawn(watch_pods(pod_stream, stores.runs.clone(), bells.clone()));
    let ours = format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
    let claims = Api::<PersistentVolumeClaim>::all(client.clone());
    let claim_stream = watcher(claims, Config::default().labels(&ours))
        .default_backoff()
        .modify(|claim| strip_meta(&mut claim.metadata))
        .reflect(claim_writer);
    tokio::spawn(watch_claims(
        claim_stream,
        stores.index.clone(),
        bells.clone(),
    ));
    for (kind, reason) in WATCHED {
        let fields = format!("regarding.kind={kind},reason={reason}");
        let events = Api::<ClusterEvent>::all(client.clone());
        let stream = watcher(events, Config::default().fields(&fields)).default_backoff();
        tokio::spawn(watch_events(stream, stores.clone(), bells.clone()));
    }
    (stores, Triggers { runs, workspaces })
}

/// Takes out what nobody looks at: a task can be 50 KB, and `kubectl apply` keeps a copy of it.
pub(super) fn strip_run(run: &mut WorkflowRun) {
    let mut managers = run.metadata.managed_fields.take().unwrap_or_default();
    strip_meta(&mut run.metadata);
    if run.spec.desired_state == DesiredState::Killed {
        managers.retain(record::sets_the_desired_state);
        run.metadata.managed_fields = Some(managers);
    }
    if run.status.as_ref().is_some_and(status::is_recorded)
        && let Some(task) = &mut run.spec.task
    {
        *task = String::new();
    }
}

/// As [`strip_run`]: of a pod, only metadata and status count.
pub(super) fn strip_pod(pod: &mut Pod) {
    strip_meta(&mut pod.metadata);
    pod.metadata.annotations = None;
    pod.spec = None;
}

fn strip_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key.starts_with(GROUP));
    }
}

async fn watch_runs(
    stream: impl Stream<Item = watcher::Result<Event<WorkflowRun>>>,
    index: Arc<Index>,
    bells: Bells,
) {
    let mut stream = std::pin::pin!(stream);
    // Own writes of the status are no news: only what a user or a finalizer changed is.
    let mut last =
        std::collections::HashMap::<String, (Option<i64>, Vec<String>, Option<String>)>::new();
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the watch of WorkflowRuns is started again"
                );
                continue;
            }
        };
        match event {
            Event::Apply(run) | Event::InitApply(run) => {
                index.add(&run);
                let skip = run
                    .annotations()
                    .get(crate::names::annotations::SKIP_LEDGER)
                    .cloned();
                let news = (run.metadata.generation, run.finalizers().to_vec(), skip);
                let uid = run.uid().unwrap_or_default();
                if last.get(&uid) != Some(&news) {
                    last.insert(uid, news);
                    let _ = bells.runs.send(ObjectRef::from_obj(&run));
                }
                ring_workspace(&run, &bells);
            }
            Event::Delete(run) => {
                index.remove(&run);
                last.remove(&run.uid().unwrap_or_default());
                ring_workspace(&run, &bells);
            }
            Event::Init => index.begin(),
            Event::InitDone => {
                for (namespace, workspace) in index.complete() {
                    let workspace = ObjectRef::new(&workspace).within(&namespace);
                    let _ = bells.workspaces.send(workspace);
                }
            }
        }
    }
}

fn ring_workspace(run: &WorkflowRun, bells: &Bells) {
    if let (Some(workspace), Some(namespace)) = (validate::workspace_name(run), run.namespace()) {
        let _ = bells
            .workspaces
            .send(ObjectRef::new(&workspace).within(&namespace));
    }
}

fn ring_runs(index: &Index, namespace: &str, workspace: &str, bells: &Bells) {
    for run in index.of(namespace, workspace) {
        let _ = bells.runs.send(ObjectRef::new(&run).within(namespace));
    }
}

async fn watch_workspaces(
    stream: impl Stream<Item = watcher::Result<Event<Workspace>>>,
    index: Arc<Index>,
    bells: Bells,
) {
    let mut stream = std::pin::pin!(stream.touched_objects());
    loop {
        match stream.try_next().await {
            Ok(Some(workspace)) => {
                let (namespace, name) = (
                    workspace.namespace().unwrap_or_default(),
                    workspace.name_any(),
                );
                let _ = bells.workspaces.send(ObjectRef::from_obj(&workspace));
                ring_runs(&index, &namespace, &name, &bells);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the watch of Workspaces is started again"
                );
            }
        }
    }
}

async fn watch_pods(
    stream: impl Stream<Item = watcher::Result<Event<Pod>>>,
    runs: Store<WorkflowRun>,
    bells: Bells,
) {
    let mut stream = std::pin::pin!(stream.touched_objects());
    loop {
        match stream.try_next().await {
            Ok(Some(pod)) => {
                let Some(run) = run_of(&pod) else { continue };
                // Its Workspace may be free now.
                if let Some(run) = runs.get(&run)
                    && run
                        .status
                        .as_ref()
                        .is_some_and(|status| status.phase.is_final())
                {
                    ring_workspace(&run, &bells);
                }
                let _ = bells.runs.send(run);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the watch of Pods is started again"
                );
            }
        }
    }
}

fn run_of(pod: &Pod) -> Option<ObjectRef<WorkflowRun>> {
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "WorkflowRun")?;
    Some(ObjectRef::new(&owner.name).within(&pod.namespace()?))
}

async fn watch_claims(
    stream: impl Stream<Item = watcher::Result<Event<PersistentVolumeClaim>>>,
    index: Arc<Index>,
    bells: Bells,
) {
    let mut stream = std::pin::pin!(stream.touched_objects());
    loop {
        match stream.try_next().await {
            Ok(Some(claim)) => ring_claim(&claim, &index, &bells),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the watch of claims is started again"
                );
            }
        }
    }
}

fn ring_claim(claim: &PersistentVolumeClaim, index: &Index, bells: &Bells) {
    let namespace = claim.namespace().unwrap_or_default();
    let owner = claim
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "Workspace");
    if let Some(owner) = owner {
        let _ = bells
            .workspaces
            .send(ObjectRef::new(&owner.name).within(&namespace));
        ring_runs(index, &namespace, &owner.name, bells);
    }
}

async fn watch_events(
    stream: impl Stream<Item = watcher::Result<Event<ClusterEvent>>>,
    stores: Stores,
    bells: Bells,
) {
    let mut stream = std::pin::pin!(stream);
    let mut listed = false;
    while let Some(event) = stream.next().await {
        let seen = match event {
            Ok(Event::Apply(seen) | Event::InitApply(seen)) => {
                stores.sightings.see(&seen);
                seen
            }
            Ok(Event::Delete(seen)) => {
                stores.sightings.drop_event(&seen);
                continue;
            }
            Ok(Event::Init) => continue,
            Ok(Event::InitDone) => {
                if !std::mem::replace(&mut listed, true) {
                    stores.listed.add_permits(1);
                }
                continue;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the watch of Events is started again"
                );
                continue;
            }
        };
        let Some(about) = &seen.regarding else {
            continue;
        };
        let (name, namespace) = (
            about.name.as_deref().unwrap_or_default(),
            about.namespace.as_deref().unwrap_or_default(),
        );
        if about.kind.as_deref() == Some("Pod") {
            let pod = stores.pods.get(&ObjectRef::new(name).within(namespace));
            if let Some(run) = pod.as_deref().and_then(run_of) {
                let _ = bells.runs.send(run);
            }
        } else if about.kind.as_deref() == Some("WorkflowRun") {
            let _ = bells.runs.send(ObjectRef::new(name).within(namespace));
        } else if let Some(claim) = stores.claims.get(&ObjectRef::new(name).within(namespace)) {
            ring_claim(&claim, &stores.index, &bells);
        }
    }
}
