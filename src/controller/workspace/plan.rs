//! What is to be done about a Workspace: its claim is made, and its runs take turns, the one that
//! was there first first. Pure and total.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::Workspace;
use crate::api::workspace::{WorkspacePhase, WorkspaceStatus};
use crate::controller::trouble::{self, ClaimOwner, ClaimView};
use crate::controller::{naming, status};
use crate::names::{conditions, finalizers};

/// How often a claim that is in the way is looked at: of those that aren't ours the watch tells nothing.
const IN_THE_WAY: Duration = Duration::from_secs(10);

/// What was observed of a Workspace.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The Workspace, as new as anyone here has seen it.
    pub workspace: Arc<Workspace>,
    /// The claim of its name, should it be there.
    pub claim: Option<ClaimView>,
    /// Runs that name it.
    pub runs: Vec<Candidate>,
}

/// A run that names the Workspace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// It has ended.
    pub over: bool,
    /// It is to end.
    pub stops: bool,
    /// A pod of it is there, and may have the volume mounted.
    pub busy: bool,
}

/// What is to be done, in the order of its fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Put our finalizer on the Workspace.
    pub protect: bool,
    /// Make the claim of that name.
    pub claim: Option<String>,
    /// Write the status.
    pub status: Option<Box<WorkspaceStatus>>,
    /// Take our finalizer off the Workspace.
    pub unprotect: bool,
    /// When to look again, should nothing happen before.
    pub again: Option<Duration>,
}

/// Decides.
pub(crate) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let workspace = observed.workspace.as_ref();
    let held = workspace
        .metadata
        .finalizers
        .as_ref()
        .is_some_and(|all| all.iter().any(|one| one == finalizers::WORKSPACE));
    let old = workspace.status.clone().unwrap_or_default();
    let deleting = workspace.metadata.deletion_timestamp.is_some();
    let in_use = observed.runs.iter().any(|run| run.busy);
    if deleting && !in_use {
        // Its claim goes with it, and with that the volume, as its StorageClass says.
        return Plan {
            unprotect: held,
            ..Plan::default()
        };
    }
    let name = workspace.metadata.name.as_deref().unwrap_or_default();
    let claim_name = naming::claim(name);
    let holder = holder(observed, &old, deleting);
    let mut new = old.clone();
    let is_own = (observed.claim.as_ref()).is_none_or(|claim| claim.owner == ClaimOwner::Workspace);
    // Nobody's files but the Workspace's own are worked on.
    new.claim_name = is_own.then(|| claim_name.clone());
    new.holder = holder.map(|run| run.uid.clone());
    new.holder_name = holder.map(|run| run.name.clone());
    let waiting = observed
        .runs
        .iter()
        .filter(|run| !run.over && Some(&run.uid) != new.holder.as_ref())
        .count();
    new.waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
    if old.holder.is_some() && old.holder != new.holder {
        new.last_used = Some(Time(now));
    }
    new.phase = if holder.is_some() {
        WorkspacePhase::InUse
    } else {
        WorkspacePhase::Available
    };
    let trouble = observed.claim.as_ref().and_then(trouble::claim_trouble);
    let (ready, reason, message) = match &trouble {
        _ if deleting => (false, "Deleting", "It is deleted once no pod uses it."),
        Some(trouble) => (false, trouble.reason.as_str(), trouble.message.as_str()),
        None => (true, "Usable", ""),
    };
    if trouble.is_some() && (holder.is_none() || !is_own) {
        new.phase = WorkspacePhase::Pending;
    }
    new.observed_generation = workspace.metadata.generation;
    let generation = workspace.metadata.generation;
    status::condition(
        &mut new.conditions,
        generation,
        conditions::READY,
        ready,
        reason,
        message,
        now,
    );
    Plan {
        protect: !held && !deleting,
        claim: (observed.claim.is_none() && !deleting).then_some(claim_name),
        status: (new != old).then(|| Box::new(new)),
        unprotect: false,
        again: (!is_own).then_some(IN_THE_WAY),
    }
}

/// The run that may use the volume: the one that holds it until it has ended and its pod has let
/// go, then the one that has waited longest.
fn holder<'a>(
    observed: &'a Observed,
    old: &WorkspaceStatus,
    deleting: bool,
) -> Option<&'a Candidate> {
    let runs = &observed.runs;
    let current = runs
        .iter()
        .find(|run| Some(&run.uid) == old.holder.as_ref());
    if let Some(current) = current.filter(|run| !run.over || run.busy) {
        return Some(current);
    }
    // Should two pods ever be there, the volume goes to nobody else before both are gone.
    if deleting || runs.iter().any(|run| run.busy) {
        return None;
    }
    runs.iter()
        .filter(|run| !run.over && !run.stops)
        .min_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)))
}
