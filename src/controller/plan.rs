//! What is to be done about a run, decided from what was observed: the lifecycle of a run is this
//! page. Pure and total: every state has an answer, and the answer to a state in which nothing has
//! changed is nothing.

mod begin;
mod finish;
pub(super) mod waits;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::WorkflowRun;
use crate::api::run::{DesiredState, Phase, WorkflowRunStatus};
use crate::names::{finalizers, reasons};
use crate::wire::Outcome;

use super::config::Config;
use super::end::{self, End, Stop, Verdict};
use super::last_resort::LastResort;
use super::shapes::{Again, CurrentPod, Ledger, Note, Observed, Plan, PodRef};
use super::view::PodView;
use super::{record, status, trouble, validate};

use begin::{attempted, to_be_made};
use finish::finished;
use waits::waits;

/// How long a run among many says nothing of its new pod, where nothing is wrong with it and its
/// supervisor has not started (only then does the server have to know it), and how long what is over
/// waits to be cleared up: new pods and their ends come first.
const DISCRETION: SignedDuration = SignedDuration::from_secs(10);

/// Infrastructure may take a run's pod away this often.
const MAX_LOSSES: u32 = 5;

/// The number of the current attempt.
pub(super) fn current_attempt(run: &WorkflowRun) -> u32 {
    run.status
        .as_ref()
        .and_then(|status| status.attempt)
        .unwrap_or(1)
        .max(1)
}

/// Why the run is to end though its agent has not, should that be so.
pub(super) fn stop(run: &WorkflowRun) -> Option<Stop> {
    if run.spec.desired_state == DesiredState::Killed {
        Some(Stop::Killed)
    } else if run.metadata.deletion_timestamp.is_some() {
        Some(Stop::Deleted)
    } else {
        None
    }
}

/// Decides.
pub(super) fn plan(observed: &Observed, config: &Config, now: Timestamp) -> Plan {
    let run = observed.run.as_ref();
    if run
        .status
        .as_ref()
        .is_some_and(|status| status.phase.is_final())
    {
        return finished(observed, now);
    }
    if let Some(left) = nothing_to_tell(observed, now) {
        return Plan {
            again: waits::after(left),
            ..Plan::default()
        };
    }
    let adopted = adopted(observed, config, now);
    let observed = adopted.as_ref().unwrap_or(observed);
    let mut plan = match (&observed.pod, stop(run)) {
        (CurrentPod::There(pod), stop) if pod.has_ended() => {
            let last_resort = LastResort::of(run, config);
            match end::read(pod, stop, last_resort) {
                End::Over(verdict) => over(observed, &verdict, Some(pod), now),
                End::Lost { why, termination } => lost(observed, Some(pod), &why, termination, now),
            }
        }
        (CurrentPod::There(pod), Some(_)) => Plan {
            delete: (!pod.deleting)
                .then(|| PodRef::from(pod.as_ref()))
                .into_iter()
                .collect(),
            ..Plan::default()
        },
        (CurrentPod::There(pod), None) => {
            let plan = at_work(observed, pod, config, now);
            match &adopted {
                Some(adopted) if plan.status.is_none() => told(adopted, plan),
                _ => plan,
            }
        }
        (CurrentPod::Gone | CurrentPod::None | CurrentPod::Foreign(_), Some(stop)) => {
            if observed.leftovers.is_empty() {
                over(observed, &killed(stop), None, now)
            } else {
                cleared(&observed.leftovers)
            }
        }
        (CurrentPod::Gone, None) => lost(observed, None, "its pod vanished", None, now),
        (CurrentPod::None | CurrentPod::Foreign(_), None) => to_be_made(observed, config, now),
    };
    // A run that is being deleted takes no new finalizers.
    plan.protect = !holds(run) && run.metadata.deletion_timestamp.is_none();
    plan
}

fn holds(run: &WorkflowRun) -> bool {
    run.metadata
        .finalizers
        .as_ref()
        .is_some_and(|all| all.iter().any(|one| one == finalizers::RUN))
}

fn killed(stop: Stop) -> Verdict {
    Verdict {
        phase: Phase::Killed,
        reason: stop.reason().to_owned(),
        message: stop.message().to_owned(),
        termination: None,
    }
}

/// Ends the run: the row first, then the status. The rest waits for its turn, see [`finished`].
fn over(observed: &Observed, verdict: &Verdict, pod: Option<&PodView>, now: Timestamp) -> Plan {
    let run = observed.run.as_ref();
    let new = status::ended(run, verdict, pod, true, now);
    let ledger = record::of(run, &new).map_or(Ledger::Nothing, |row| Ledger::Final(Box::new(row)));
    Plan {
        // The ledger takes no end back. What a supervisor has sealed is its run's end whatever else has
        // become of the run: such a pod is held until that end is in the status.
        verify: !is_sealed(verdict, pod),
        ledger,
        status: Some(Box::new(new)),
        status_unrecorded: Some(Box::new(status::ended(run, verdict, pod, false, now))),
        event: Some(Note {
            warning: verdict.phase == Phase::Failed,
            reason: verdict.reason.clone(),
            message: verdict.message.clone(),
        }),
        again: Again::After(Duration::ZERO),
        ..Plan::default()
    }
}

fn is_sealed(verdict: &Verdict, pod: Option<&PodView>) -> bool {
    pod.is_some_and(|pod| pod.held && pod.has_ended())
        && verdict.termination.as_ref().is_some_and(|termination| {
            matches!(termination.outcome, Outcome::Completed | Outcome::Failed)
        })
}

/// The pod was taken away; the next attempt goes on, unless that has happened too often.
fn lost(
    observed: &Observed,
    pod: Option<&PodView>,
    why: &str,
    termination: Option<Box<crate::wire::Termination>>,
    now: Timestamp,
) -> Plan {
    let run = observed.run.as_ref();
    let attempt = current_attempt(run);
    if attempt > MAX_LOSSES {
        let verdict = Verdict {
            phase: Phase::Failed,
            reason: reasons::LOST_TOO_OFTEN.to_owned(),
            message: format!("The run's pod was lost {attempt} times, at last because {why}."),
            termination,
        };
        return over(observed, &verdict, pod, now);
    }
    let new = status::recovering(run, pod, why, termination.as_deref(), now);
    Plan {
        ledger: later(run, &new),
        event: note(run, &new, true),
        status: Some(Box::new(new)),
        release: pod
            .filter(|pod| pod.held)
            .map(PodRef::from)
            .into_iter()
            .collect(),
        delete: pod
            .filter(|pod| !pod.deleting)
            .map(PodRef::from)
            .into_iter()
            .collect(),
        again: Again::After(Duration::ZERO),
        ..Plan::default()
    }
}

/// Whether the run's status names the pod.
fn is_told(run: &WorkflowRun, pod: &PodView) -> bool {
    let status = run.status.as_ref();
    status.is_some_and(|status| status.pod_uid.as_deref() == Some(&pod.uid))
}

/// The same with the pod in the run's status, where it isn't there yet: it is put there with the first
/// status that is written for it, which is the last one, where the pod has ended by then.
fn adopted(observed: &Observed, config: &Config, now: Timestamp) -> Option<Observed> {
    let CurrentPod::There(pod) = &observed.pod else {
        return None;
    };
    let run = observed.run.as_ref();
    if is_told(run, pod) {
        return None;
    }
    let resolved = validate::resolve(run, config).ok()?;
    let mut status = attempted(observed, &resolved, pod.attempt, now);
    status.pod_uid = Some(pod.uid.clone());
    let mut run = run.clone();
    run.status = Some(status);
    Some(Observed {
        run: Arc::new(run),
        ..observed.clone()
    })
}

/// How long a run among many can wait to tell of its new pod: there may be more to say by then.
fn nothing_to_tell(observed: &Observed, now: Timestamp) -> Option<SignedDuration> {
    let CurrentPod::There(pod) = &observed.pod else {
        return None;
    };
    let run = observed.run.as_ref();
    let waits = observed.crowded
        && holds(run)
        && stop(run).is_none()
        && !is_told(run, pod)
        && observed.sightings.is_empty()
        && pod.is_merely_made();
    waits.then(|| discretion(pod.created, now)).flatten()
}

/// The plan, with what there is no other status to tell of.
fn told(adopted: &Observed, plan: Plan) -> Plan {
    let run = adopted.run.as_ref();
    let new = status::current(run);
    Plan {
        ledger: later(run, &new),
        status: Some(Box::new(new)),
        ..plan
    }
}

/// How much is left of what can wait since then.
fn discretion(since: Option<Timestamp>, now: Timestamp) -> Option<SignedDuration> {
    let age = now.duration_since(since?);
    // A clock that differs from another's holds nothing up.
    (SignedDuration::ZERO..DISCRETION)
        .contains(&age)
        .then(|| DISCRETION - age)
}

/// The pod lives, and nobody wants it to end.
fn at_work(observed: &Observed, pod: &PodView, config: &Config, now: Timestamp) -> Plan {
    let run = observed.run.as_ref();
    let current = status::current(run);
    let resolved = match validate::resolve(run, config) {
        Ok(resolved) => resolved,
        Err(errors) => return over(observed, &invalid(&errors), Some(pod), now),
    };
    if let Some(started) = pod.agent_started() {
        if pod.agent.running.is_none() {
            // The agent has ended, and its supervisor soon will.
            return Plan::default();
        }
        let left = LastResort::of(run, config).map(|last| last.left(started, now));
        if left.is_some_and(|left| left <= SignedDuration::ZERO) {
            return Plan {
                delete: (!pod.deleting)
                    .then(|| PodRef::from(pod))
                    .into_iter()
                    .collect(),
                ..Plan::default()
            };
        }
        let again = left.map_or(Again::OnChange, waits::after);
        let is_said = current.phase == Phase::Running
            && current.reason.as_deref() == Some(reasons::AGENT_RUNNING);
        if is_said {
            return Plan {
                again,
                ..Plan::default()
            };
        }
        let new = status::running(run, started, now);
        let event = (current.start_time.is_none()).then(|| Note {
            warning: false,
            reason: "Started".to_owned(),
            message: format!("The agent works in pod {}.", pod.name),
        });
        return Plan {
            ledger: later(run, &new),
            status: Some(Box::new(new)),
            event,
            again,
            ..Plan::default()
        };
    }
    if let Some(termination) = end::checkout(pod).filter(|t| t.outcome == Outcome::Failed) {
        let verdict = Verdict {
            phase: Phase::Failed,
            reason: termination.reason.clone(),
            message: termination.message.clone(),
            termination: Some(Box::new(termination)),
        };
        return over(observed, &verdict, Some(pod), now);
    }
    let waiting = trouble::read(pod, observed.claim.as_ref(), &observed.sightings, &resolved);
    waits(run, waiting, now)
}

/// Pods of earlier attempts go before anything new comes.
fn cleared(leftovers: &[PodView]) -> Plan {
    let done = |pod: &&PodView| pod.has_ended();
    Plan {
        release: leftovers
            .iter()
            .filter(done)
            .filter(|pod| pod.held)
            .map(PodRef::from)
            .collect(),
        delete: leftovers
            .iter()
            .filter(|pod| !pod.deleting)
            .map(PodRef::from)
            .collect(),
        ..Plan::default()
    }
}

fn invalid(errors: &[String]) -> Verdict {
    Verdict {
        phase: Phase::Failed,
        reason: reasons::INVALID_SPEC.to_owned(),
        message: end::sentence(&errors.join("; ")),
        termination: None,
    }
}

fn later(run: &WorkflowRun, new: &WorkflowRunStatus) -> Ledger {
    record::of(run, new).map_or(Ledger::Nothing, |row| Ledger::Later(Box::new(row)))
}

fn note(run: &WorkflowRun, new: &WorkflowRunStatus, warning: bool) -> Option<Note> {
    let old = status::current(run);
    (old.reason != new.reason).then(|| Note {
        warning,
        reason: new.reason.clone().unwrap_or_default(),
        message: new.message.clone().unwrap_or_default(),
    })
}
