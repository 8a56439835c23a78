//! Lets go of pods whose run is no more: only somebody who took our finalizer off the run by hand
//! leaves such pods behind, and nothing else would ever let them go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use crate::names::finalizers;

use super::context::Context;
use super::view::PodView;
use super::write::Writer;

/// How often they are looked for.
const PERIOD: Duration = Duration::from_secs(60);

/// Sweeps for ever.
pub(super) async fn sweep(context: Arc<Context>) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        period.tick().await;
        for pod in orphans(&context) {
            release(&context, &pod).await;
        }
    }
}

fn orphans(context: &Context) -> Vec<Arc<Pod>> {
    context.stores.pods.state_filter(|pod| {
        let view = PodView::read(pod);
        let run = pod
            .owner_references()
            .iter()
            .find(|owner| owner.kind == "WorkflowRun");
        let namespace = pod.namespace().unwrap_or_default();
        view.held
            && view.deleting
            && run.is_some_and(|owner| {
                let there = context
                    .stores
                    .runs
                    .get(&ObjectRef::new(&owner.name).within(&namespace));
                there.is_none_or(|run| run.uid().as_deref() != Some(&owner.uid))
            })
    })
}

async fn release(context: &Context, pod: &Pod) {
    let name = pod.name_any();
    let (namespace, uid) = (
        pod.namespace().unwrap_or_default(),
        pod.uid().unwrap_or_default(),
    );
    let writer = Writer::<Pod>::new(&context.client, &namespace);
    match writer.release(&name, &uid, finalizers::POD).await {
        Ok(_) => tracing::info!(pod = %name, "let go of a pod whose run is no more"),
        Err(error) => tracing::debug!(pod = %name, %error, "could not let go of a pod"),
    }
}
