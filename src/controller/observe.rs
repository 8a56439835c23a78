//! Looks up what there is to know about a run. It reads only: the caches, and the API server where a
//! cache's silence would be taken for an answer (a pod that is missing may just not have arrived).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};

use crate::api::{WorkflowRun, Workspace};
use crate::names::conditions;

use super::context::Context;
use super::error::Error;
use super::plan;
use super::shapes::{CurrentPod, Observed, WorkspaceView};
use super::trouble::{ClaimOwner, ClaimView};
use super::view::PodView;
use super::{naming, validate};

/// Everything about the run.
pub(super) async fn observe(context: &Context, run: Arc<WorkflowRun>) -> Result<Observed, Error> {
    let namespace = run.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let name = run.name_any();
    let uid = run.uid().ok_or(Error::Incomplete("a uid"))?;
    let attempt = plan::current_attempt(&run);
    let pod = current_pod(context, &run, &namespace, &uid, attempt).await?;
    let leftovers = (1..attempt)
        .filter_map(|earlier| cached_pod(context, &namespace, &naming::pod(&name, earlier)))
        .map(|pod| PodView::read(&pod))
        .filter(|pod| pod.run_uid == uid)
        .collect();
    let sightings = match &pod {
        CurrentPod::There(pod) => {
            let mut all = context.stores.sightings.of(&pod.uid);
            all.extend(context.stores.sightings.of(&uid));
            all
        }
        _ => Vec::new(),
    };
    let workspace = validate::workspace_name(&run)
        .and_then(|workspace| cached_workspace(context, &namespace, &workspace));
    let claim = workspace
        .as_ref()
        .and_then(|workspace| workspace.status.as_ref()?.claim_name.clone())
        .and_then(|claim| cached_claim(context, &namespace, &claim))
        .zip(workspace.as_deref())
        .map(|(claim, workspace)| claim_view(context, workspace, &claim));
    let server_ca = context.server_ca.borrow().as_deref().map(Arc::from);
    Ok(Observed {
        pod,
        leftovers,
        sightings,
        workspace: workspace.as_deref().map(workspace_view),
        claim,
        refusal: context.setbacks.refusal(&uid),
        server_ca,
        crowded: context.crowd.is_there(),
        run,
    })
}

async fn current_pod(
    context: &Context,
    run: &WorkflowRun,
    namespace: &str,
    uid: &str,
    attempt: u32,
) -> Result<CurrentPod, Error> {
    let name = naming::pod(&run.name_any(), attempt);
    let known = run
        .status
        .as_ref()
        .and_then(|status| status.pod_uid.clone());
    let is_final = run
        .status
        .as_ref()
        .is_some_and(|status| status.phase.is_final());
    let cached = cached_pod(context, namespace, &name);
    let pod = match cached {
        Some(pod) => Some(pod),
        // Nothing hangs on it, or there has never been one.
        None if is_final || (known.is_none() && plan::stop(run).is_none()) => None,
        None => live_pod(context, namespace, &name).await?.map(Arc::new),
    };
    let view = pod.map(|pod| PodView::read(&pod));
    Ok(match view {
        Some(view) if view.run_uid == uid => CurrentPod::There(Box::new(view)),
        Some(_) if known.is_none() => CurrentPod::Foreign(name),
        None if known.is_none() => CurrentPod::None,
        _ => CurrentPod::Gone,
    })
}

/// Asks the API server for the pod.
pub(super) async fn live_pod(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<Pod>, Error> {
    Api::<Pod>::namespaced(context.client.clone(), namespace)
        .get_opt(name)
        .await
        .map_err(Error::doing(format!("look for pod {name}")))
}

/// The run, as new as anyone here has seen it.
pub(super) fn cached_run(
    context: &Context,
    key: &ObjectRef<WorkflowRun>,
) -> Option<Arc<WorkflowRun>> {
    let cached = context.stores.runs.get(key)?;
    let namespace = key.namespace.as_deref().unwrap_or_default();
    context
        .written
        .runs
        .newest(namespace, &key.name, Some(cached))
}

/// The pod, as new as anyone here has seen it.
pub(super) fn cached_pod(context: &Context, namespace: &str, name: &str) -> Option<Arc<Pod>> {
    let cached = context
        .stores
        .pods
        .get(&ObjectRef::new(name).within(namespace));
    context.written.pods.newest(namespace, name, cached)
}

/// The Workspace, as new as anyone here has seen it.
pub(super) fn cached_workspace(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Option<Arc<Workspace>> {
    let cached = context
        .stores
        .workspaces
        .get(&ObjectRef::new(name).within(namespace));
    context.written.workspaces.newest(namespace, name, cached)
}

/// The claim, as new as anyone here has seen it.
pub(super) fn cached_claim(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Option<Arc<PersistentVolumeClaim>> {
    let cached = context
        .stores
        .claims
        .get(&ObjectRef::new(name).within(namespace));
    context.written.claims.newest(namespace, name, cached)
}

/// Reads the claim that is named after the Workspace, and what was seen of it.
pub(super) fn claim_view(
    context: &Context,
    workspace: &Workspace,
    claim: &PersistentVolumeClaim,
) -> ClaimView {
    ClaimView {
        name: claim.name_any(),
        bound: claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| phase == "Bound"),
        storage_class_name: claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.clone()),
        deleting: claim.metadata.deletion_timestamp.is_some(),
        owner: ClaimOwner::of(&claim.metadata, &workspace.metadata),
        sightings: context
            .stores
            .sightings
            .of(&claim.uid().unwrap_or_default()),
    }
}

fn workspace_view(workspace: &Workspace) -> WorkspaceView {
    let status = workspace.status.clone().unwrap_or_default();
    let unready = (status.conditions.into_iter())
        .find(|condition| condition.type_ == conditions::READY && condition.status == "False")
        .map(|condition| condition.message);
    WorkspaceView {
        trouble: unready.filter(|_| status.claim_name.is_none()),
        uid: workspace.uid().unwrap_or_default(),
        holder: status.holder,
        holder_name: status.holder_name,
        claim_name: status.claim_name,
        deleting: workspace.metadata.deletion_timestamp.is_some(),
        size: workspace.spec.size.clone(),
        storage_class_name: workspace.spec.storage_class_name.clone(),
    }
}
