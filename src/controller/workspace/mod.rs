//! Reconciles Workspaces: their claim, and whose turn it is. It alone assigns holders.

mod apply;
pub(super) mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use crate::api::Workspace;

use super::context::Context;
use super::error::Error;
use super::plan as runs;
use super::{naming, observe};
use apply::Applied;
use plan::{Candidate, Observed};

/// Looks at one Workspace, decides, and does it. Returns when to look again, should nothing happen
/// before.
pub(super) async fn reconcile(
    cached: Arc<Workspace>,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    let mut in_the_way = None;
    // A claim that is in the way is known only once it was tried to make it; the second plan says so.
    for _ in 0..2 {
        let observed = observe(context, cached.clone(), in_the_way.as_deref())?;
        let workspace = observed.workspace.clone();
        let plan = plan::plan(&observed, Timestamp::now());
        match apply::apply(context, workspace, plan).await? {
            Applied::Done(again) => return Ok(again),
            Applied::InTheWay(claim) => in_the_way = Some(claim),
        }
    }
    Ok(Some(Duration::from_secs(1)))
}

fn observe(
    context: &Context,
    cached: Arc<Workspace>,
    in_the_way: Option<&PersistentVolumeClaim>,
) -> Result<Observed, Error> {
    let namespace = cached.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let name = cached.name_any();
    let workspace = context
        .written
        .workspaces
        .newest(&namespace, &name, Some(cached.clone()))
        .unwrap_or(cached);
    let claim = observe::cached_claim(context, &namespace, &naming::claim(&name));
    let claim = claim
        .as_deref()
        .or(in_the_way)
        .map(|claim| observe::claim_view(context, &workspace, claim));
    let runs = context
        .stores
        .index
        .of(&namespace, &name)
        .into_iter()
        .filter_map(|run| candidate(context, &namespace, &run))
        .collect();
    Ok(Observed {
        workspace,
        claim,
        runs,
    })
}

fn candidate(context: &Context, namespace: &str, name: &str) -> Option<Candidate> {
    let cached = context
        .stores
        .runs
        .get(&ObjectRef::new(name).within(namespace));
    let run = context.written.runs.newest(namespace, name, cached)?;
    let uid = run.uid()?;
    let attempts = runs::current_attempt(&run);
    let busy = (1..=attempts).any(|attempt| {
        let pod = naming::pod(name, attempt);
        let cached = context
            .stores
            .pods
            .get(&ObjectRef::new(&pod).within(namespace));
        context
            .written
            .pods
            .newest(namespace, &pod, cached)
            .map(|pod| super::view::PodView::read(&pod))
            .is_some_and(|pod| pod.run_uid == uid && !pod.has_ended())
    });
    Some(Candidate {
        name: name.to_owned(),
        created: run.creation_timestamp().map(|time| time.0),
        over: run
            .status
            .as_ref()
            .is_some_and(|status| status.phase.is_final()),
        stops: runs::stop(&run).is_some(),
        busy,
        uid,
    })
}
