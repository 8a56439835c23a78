//! Tells the ledger which volumes there are and which are gone: what it says of a workspace is what
//! was seen, at every look anew, so that neither a restart nor a ledger that was away loses any of it.

use std::collections::HashSet;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use uuid::Uuid;

use crate::api::Workspace;
use crate::ledger::records::WorkspaceRecord;
use crate::ledger::{Error, Ledger};
use crate::names::labels;

use super::context::Context;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(30);

/// Looks for ever.
pub(super) async fn watch(context: Arc<Context>, ledger: Arc<Ledger>) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut kept = HashSet::new();
    loop {
        period.tick().await;
        if let Err(error) = look(&context, &ledger, &mut kept).await {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            tracing::debug!(%error, cause, "the ledger was not told about volumes");
        }
    }
}

async fn look(
    context: &Context,
    ledger: &Ledger,
    kept: &mut HashSet<(Uuid, bool)>,
) -> Result<(), Error> {
    // The ledger first: what it knows was in the caches before.
    let known = ledger.workspaces_there().await?;
    let ended = ledger.ended_on_volumes_of_pods().await?;
    let workspaces: Vec<WorkspaceRecord> = context
        .stores
        .workspaces
        .state()
        .iter()
        .filter_map(|workspace| record(workspace))
        .collect();
    let key = |w: &WorkspaceRecord| (w.id, w.claim.is_some());
    let new: Vec<_> = workspaces
        .iter()
        .filter(|w| !kept.contains(&key(w)))
        .cloned()
        .collect();
    if !new.is_empty() {
        ledger.keep_workspaces(&new).await?;
    }
    *kept = workspaces.iter().map(key).collect();
    let there: HashSet<Uuid> = workspaces.iter().map(|w| w.id).collect();
    let claimed: HashSet<Uuid> = owners(context);
    let gone: Vec<Uuid> = known
        .into_iter()
        .filter(|id| !there.contains(id) && !claimed.contains(id))
        .collect();
    if !gone.is_empty() {
        ledger.workspaces_gone(&gone, Timestamp::now()).await?;
    }
    let with_pods = runs_with_pods(context);
    let clean: Vec<Uuid> = ended
        .into_iter()
        .filter(|run| !with_pods.contains(run))
        .collect();
    if !clean.is_empty() {
        ledger.cleaned_up(&clean).await?;
    }
    Ok(())
}

fn record(workspace: &Workspace) -> Option<WorkspaceRecord> {
    Some(WorkspaceRecord {
        id: workspace.metadata.uid.as_deref()?.parse().ok()?,
        namespace: workspace.namespace()?,
        name: workspace.name_any(),
        claim: workspace
            .status
            .as_ref()
            .and_then(|status| status.claim_name.clone()),
        created_at: workspace.metadata.creation_timestamp.as_ref()?.0,
    })
}

/// Workspaces whose claims are still there.
fn owners(context: &Context) -> HashSet<Uuid> {
    context
        .stores
        .claims
        .state()
        .iter()
        .flat_map(|claim| claim.owner_references().to_vec())
        .filter_map(|owner| owner.uid.parse().ok())
        .collect()
}

fn runs_with_pods(context: &Context) -> HashSet<Uuid> {
    context
        .stores
        .pods
        .state()
        .iter()
        .filter_map(|pod| pod.labels().get(labels::RUN_UID)?.parse().ok())
        .collect()
}
