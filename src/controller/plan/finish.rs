//! What is left to be done once a run is over: its row, its pods and its finalizers. Pure.

use jiff::Timestamp;

use crate::api::WorkflowRun;
use crate::api::run::WorkflowRunStatus;
use crate::controller::shapes::{CurrentPod, Ledger, Observed, Plan, PodRef, Unprotect};
use crate::controller::view::PodView;
use crate::controller::{record, status};
use crate::names::annotations;

use super::{discretion, holds, waits};

/// The run is over; its pods, its row and its finalizers are left to be cleared.
pub(super) fn finished(observed: &Observed, now: Timestamp) -> Plan {
    let run = observed.run.as_ref();
    let current = match &observed.pod {
        CurrentPod::There(pod) => Some(pod.as_ref()),
        _ => None,
    };
    let pods: Vec<&PodView> = current.into_iter().chain(&observed.leftovers).collect();
    let said = status::current(run);
    let since = said.completion_time.as_ref().map(|time| time.0);
    if observed.crowded
        && nobody_waits(run, &said)
        && let Some(left) = discretion(since, now)
    {
        return Plan {
            again: waits::after(left),
            ..Plan::default()
        };
    }
    let mut plan = Plan {
        release: pods
            .iter()
            .filter(|pod| pod.held && pod.has_ended())
            .map(|pod| PodRef::from(*pod))
            .collect(),
        delete: pods
            .iter()
            .filter(|pod| !pod.deleting)
            .map(|pod| PodRef::from(*pod))
            .collect(),
        ..Plan::default()
    };
    let skips = run.metadata.deletion_timestamp.is_some()
        && run
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(annotations::SKIP_LEDGER))
            .is_some_and(|value| value == "true");
    // A pod that lives may have the volume mounted (its checkout failed, and it has only just been told
    // to end): the next run gets that when this one is no more, should somebody delete it.
    let lets_go = holds(run) && (skips || pods.iter().all(|pod| pod.has_ended()));
    if status::is_recorded(&said) || skips {
        plan.unprotect = if lets_go {
            Unprotect::Now
        } else {
            Unprotect::No
        };
    } else if let Some(row) = record::of(run, &said) {
        plan.ledger = Ledger::Final(Box::new(row));
        plan.status = Some(Box::new(status::recorded(run, now)));
        plan.unprotect = if lets_go {
            Unprotect::WhenRecorded
        } else {
            Unprotect::No
        };
    }
    plan
}

/// All that is left of the run is to be cleared up, and nobody waits for that: another run may for its
/// volume, and whoever deletes it for its end.
fn nobody_waits(run: &WorkflowRun, said: &WorkflowRunStatus) -> bool {
    status::is_recorded(said)
        && said.workspace.is_none()
        && run.metadata.deletion_timestamp.is_none()
}
