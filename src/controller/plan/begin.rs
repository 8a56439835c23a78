//! What has to be there before a run's next attempt gets its pod, and that pod. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::WorkflowRun;
use crate::api::run::WorkflowRunStatus;
use crate::controller::config::Config;
use crate::controller::shapes::{Again, CurrentPod, NewPod, Observed, Plan, WorkspaceView};
use crate::controller::trouble::Waiting;
use crate::controller::validate::{self, Resolved, WorkspaceWanted};
use crate::controller::{naming, status};
use crate::names::reasons;

use super::waits::{after, waits};
use super::{cleared, current_attempt, invalid, over};

/// There is no pod for the attempt yet.
pub(super) fn to_be_made(observed: &Observed, config: &Config, now: Timestamp) -> Plan {
    let run = observed.run.as_ref();
    let resolved = match validate::resolve(run, config) {
        Ok(resolved) => resolved,
        Err(errors) => return over(observed, &invalid(&errors), None, now),
    };
    if !observed.leftovers.is_empty() {
        return cleared(&observed.leftovers);
    }
    let claim = match (&resolved.workspace, &observed.workspace) {
        (None, _) => None,
        (Some(wanted), None) => {
            return Plan {
                workspace: Some(wanted.clone()),
                ..Plan::default()
            };
        }
        (Some(wanted), Some(workspace)) => {
            let holds = workspace.holder.is_some()
                && workspace.holder.as_deref() == run.metadata.uid.as_deref();
            match workspace
                .claim_name
                .as_ref()
                .filter(|_| holds && !workspace.deleting)
            {
                Some(claim) => Some(claim.clone()),
                None => return waits(run, queued(run, wanted, workspace), now),
            }
        }
    };
    if let CurrentPod::Foreign(name) = &observed.pod {
        let message =
            format!("A pod named {name} is in the way that is not this run's; delete it.");
        return Plan {
            again: Again::After(Duration::from_secs(10)),
            ..waits(run, refused(message), now)
        };
    }
    if let Some(refusal) = &observed.refusal {
        if refusal.for_good {
            return over(
                observed,
                &invalid(&[in_words_of_the_run(&refusal.message)]),
                None,
                now,
            );
        }
        let left = refusal.again.duration_since(now);
        if left > SignedDuration::ZERO {
            let message = format!(
                "The pod was refused, and is tried again: {}",
                refusal.message
            );
            return Plan {
                again: after(left),
                ..waits(run, refused(message), now)
            };
        }
    }
    if observed.server_ca.is_none() {
        let waiting = Waiting {
            reason: reasons::ACCEPTED.to_owned(),
            message: "Runledger's server has no certificate yet.".to_owned(),
            problem: false,
            since: run.metadata.creation_timestamp.as_ref().map(|time| time.0),
        };
        return Plan {
            again: Again::After(Duration::from_secs(1)),
            ..waits(run, waiting, now)
        };
    }
    Plan {
        verify: true,
        pod: Some(NewPod {
            attempt: current_attempt(run),
            resolved: Box::new(resolved),
            claim,
        }),
        // To say so, when no other run waits for its pod: by then there may be more to say.
        again: Again::After(Duration::ZERO),
        ..Plan::default()
    }
}

/// The status of a run whose attempt has a pod; its uid is left to be filled in.
pub(super) fn attempted(
    observed: &Observed,
    resolved: &Resolved,
    attempt: u32,
    now: Timestamp,
) -> WorkflowRunStatus {
    let run = observed.run.as_ref();
    let workspace = observed.workspace.as_ref();
    let note = workspace
        .zip(resolved.workspace.as_ref())
        .and_then(|(is, wanted)| {
            let class =
                |class: &Option<String>| class.clone().unwrap_or_else(|| "the default".to_owned());
            let same_class = wanted.storage_class_name.is_none()
                || wanted.storage_class_name == is.storage_class_name;
            (is.size != wanted.size || !same_class).then(|| {
                format!(
                    "Workspace {} stays as it was made: size {}, StorageClass {}.",
                    wanted.name,
                    is.size,
                    class(&is.storage_class_name)
                )
            })
        });
    status::attempted(
        run,
        resolved,
        attempt,
        &naming::pod(&resolved.name, attempt),
        workspace.map(|workspace| workspace.uid.as_str()),
        note.as_deref(),
        now,
    )
}

fn queued(run: &WorkflowRun, wanted: &WorkspaceWanted, workspace: &WorkspaceView) -> Waiting {
    let name = &wanted.name;
    let mine = workspace.holder.as_deref() == run.metadata.uid.as_deref();
    let (reason, message, problem) = match (&workspace.holder_name, &workspace.trouble) {
        _ if workspace.deleting => (
            reasons::WORKSPACE,
            format!("Workspace {name} is being deleted."),
            true,
        ),
        (Some(holder), _) if !mine => (
            reasons::WORKSPACE,
            format!("Workspace {name} is held by run {holder}; this run waits its turn."),
            true,
        ),
        (_, Some(trouble)) => (reasons::VOLUME, trouble.clone(), true),
        _ => (
            reasons::WORKSPACE,
            format!("Workspace {name} is being prepared."),
            false,
        ),
    };
    Waiting {
        reason: reason.to_owned(),
        message,
        problem,
        since: run.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

fn refused(message: String) -> Waiting {
    Waiting {
        reason: reasons::POD_REFUSED.to_owned(),
        message,
        problem: true,
        since: None,
    }
}

/// The API server names fields of the pod; a person wrote those of the run.
fn in_words_of_the_run(refusal: &str) -> String {
    let field = [
        "resources",
        "nodeSelector",
        "tolerations",
        "labels",
        "annotations",
    ]
    .into_iter()
    .find(|field| refusal.contains(&format!(".{field}")));
    match field {
        Some(field) => format!("spec.podTemplate.{field}: {refusal}"),
        None => refusal.to_owned(),
    }
}
