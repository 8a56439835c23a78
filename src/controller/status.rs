//! The status of a run, made from the one before and what has happened. Pure, and the same input
//! gives the same status, so that nothing is written where nothing has changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::WorkflowRun;
use crate::api::run::{Phase, Resolved as ResolvedStatus, WorkflowRunStatus};
use crate::names::{conditions, reasons};
use crate::wire::Termination;

use super::end::Verdict;
use super::figures::{self, count};
use super::validate::{self, Resolved};
use super::view::PodView;

/// The run's status, or that of a run that has none yet.
pub(super) fn current(run: &WorkflowRun) -> WorkflowRunStatus {
    run.status.clone().unwrap_or_default()
}

/// Waits for what reason and message say.
pub(super) fn pending(
    run: &WorkflowRun,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> WorkflowRunStatus {
    let mut status = base(run);
    let phase = status_phase(&status);
    say(&mut status, run, phase, reason, message, now);
    let waits = reason == reasons::WORKSPACE;
    if waits {
        set(
            &mut status,
            run,
            conditions::WORKSPACE_READY,
            false,
            reason,
            message,
            now,
        );
    }
    status
}

/// A pod is made for the attempt; its uid is filled in once it has one.
pub(super) fn attempted(
    run: &WorkflowRun,
    resolved: &Resolved,
    attempt: u32,
    pod_name: &str,
    workspace_uid: Option<&str>,
    workspace_note: Option<&str>,
    now: Timestamp,
) -> WorkflowRunStatus {
    let mut status = base(run);
    status.attempt = Some(attempt);
    status.pod_name = Some(pod_name.to_owned());
    status.workspace_uid = workspace_uid.map(str::to_owned).or(status.workspace_uid);
    status.model = status.model.or_else(|| resolved.agent.model.clone());
    status.resolved = Some(ResolvedStatus {
        agent_image: resolved.image.clone(),
        secret_name: resolved.model_secret.clone(),
        model: resolved.agent.model.clone(),
        max_turns: resolved.agent.max_turns,
    });
    let (reason, message) = match status.phase {
        Phase::Running => (
            reasons::RECOVERING,
            format!("Attempt {attempt} goes on where the last one was lost."),
        ),
        _ => (reasons::SCHEDULING, "The pod waits for a node.".to_owned()),
    };
    let phase = status_phase(&status);
    say(&mut status, run, phase, reason, &message, now);
    set(
        &mut status,
        run,
        conditions::ACCEPTED,
        true,
        reasons::ACCEPTED,
        "",
        now,
    );
    let (reason, message) = match workspace_note {
        Some(note) => ("Differs", note),
        None if resolved.workspace.is_some() => ("Held", ""),
        None => ("Ephemeral", ""),
    };
    set(
        &mut status,
        run,
        conditions::WORKSPACE_READY,
        true,
        reason,
        message,
        now,
    );
    status
}

/// The agent runs.
pub(super) fn running(run: &WorkflowRun, started: Timestamp, now: Timestamp) -> WorkflowRunStatus {
    let mut status = base(run);
    status.start_time = status.start_time.or(Some(Time(started)));
    say(
        &mut status,
        run,
        Phase::Running,
        reasons::AGENT_RUNNING,
        "The agent works.",
        now,
    );
    status
}

/// The attempt was lost; the next one is to be made.
pub(super) fn recovering(
    run: &WorkflowRun,
    pod: Option<&PodView>,
    why: &str,
    termination: Option<&Termination>,
    now: Timestamp,
) -> WorkflowRunStatus {
    let mut status = base(run);
    let attempt = status.attempt.unwrap_or(1);
    count(&mut status, termination);
    if let Some(started) = pod.and_then(PodView::agent_started) {
        status.start_time = status.start_time.or(Some(Time(started)));
        status.phase = Phase::Running;
    }
    status.attempt = Some(attempt.saturating_add(1));
    status.pod_name = None;
    status.pod_uid = None;
    let message = format!("Attempt {attempt} was lost: {why}. Another one is made.");
    let phase = status_phase(&status);
    say(&mut status, run, phase, reasons::RECOVERING, &message, now);
    status
}

/// The run is over.
pub(super) fn ended(
    run: &WorkflowRun,
    verdict: &Verdict,
    pod: Option<&PodView>,
    recorded: bool,
    now: Timestamp,
) -> WorkflowRunStatus {
    let mut status = base(run);
    let termination = verdict.termination.as_deref();
    if status.attempt.is_some() {
        count(&mut status, termination);
    }
    if let Some(started) = pod.and_then(PodView::agent_started) {
        status.start_time = status.start_time.or(Some(Time(started)));
    }
    let finished = pod.and_then(PodView::finished).unwrap_or(now);
    let began = status.start_time.as_ref().map(|start| start.0);
    let finished = began.map_or(finished, |began| finished.max(began));
    status.completion_time = Some(Time(finished));
    status.duration =
        began.map(|began| figures::duration(finished.duration_since(began).as_secs()));
    if let Some(termination) = termination {
        status.model = termination.model.clone().or(status.model);
        status.git = termination.git.as_ref().map(figures::git).or(status.git);
        status.changes = status.git.as_ref().map(figures::changes);
        status.transcript_missing_from = (termination.acknowledged < termination.sequence)
            .then(|| termination.acknowledged.saturating_add(1));
    }
    let accepted = verdict.reason != reasons::INVALID_SPEC;
    let (why, message) = if accepted {
        (reasons::ACCEPTED, "")
    } else {
        (reasons::INVALID_SPEC, verdict.message.as_str())
    };
    set(
        &mut status,
        run,
        conditions::ACCEPTED,
        accepted,
        why,
        message,
        now,
    );
    say(
        &mut status,
        run,
        verdict.phase,
        &verdict.reason,
        &verdict.message,
        now,
    );
    deliver(&mut status, run, verdict, now);
    record(&mut status, run, recorded, now);
    status
}

/// Says whether the commits are where they were to be pushed; nothing where no push was wanted.
fn deliver(status: &mut WorkflowRunStatus, run: &WorkflowRun, verdict: &Verdict, now: Timestamp) {
    let Some(git) = verdict.termination.as_deref().and_then(|t| t.git.as_ref()) else {
        return;
    };
    let (delivered, reason, message) = match (&git.pushed, &git.undelivered) {
        (Some(branch), _) => {
            let message = format!("Branch {branch} is at {}.", git.final_commit);
            (true, reasons::PUSHED, message)
        }
        (None, Some(why)) => (false, why.as_str(), verdict.message.clone()),
        (None, None) => return,
    };
    let kind = conditions::DELIVERED;
    set(status, run, kind, delivered, reason, &message, now);
}

/// The final row of a run that has ended before is in the ledger.
pub(super) fn recorded(run: &WorkflowRun, now: Timestamp) -> WorkflowRunStatus {
    let mut status = current(run);
    record(&mut status, run, true, now);
    status
}

/// Whether the final row is in the ledger.
pub(super) fn is_recorded(status: &WorkflowRunStatus) -> bool {
    status
        .conditions
        .iter()
        .any(|condition| condition.type_ == conditions::RECORDED && condition.status == "True")
}

fn record(status: &mut WorkflowRunStatus, run: &WorkflowRun, recorded: bool, now: Timestamp) {
    let (reason, message) = if recorded {
        ("Recorded", "")
    } else {
        (
            reasons::LEDGER_UNREACHABLE,
            "The final row could not be written into the ledger; it is tried again.",
        )
    };
    set(
        status,
        run,
        conditions::RECORDED,
        recorded,
        reason,
        message,
        now,
    );
}

fn base(run: &WorkflowRun) -> WorkflowRunStatus {
    let mut status = current(run);
    let session = validate::session_name(run);
    let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
    status.observed_generation = run.metadata.generation;
    status.session_id = Some(crate::ids::session(namespace, &session).to_string());
    status.session = Some(session);
    status.workspace = validate::workspace_name(run);
    status
}

/// A run that has been at work stays Running while it is being recovered.
fn status_phase(status: &WorkflowRunStatus) -> Phase {
    if status.phase == Phase::Running {
        Phase::Running
    } else {
        Phase::Pending
    }
}

/// Phase, reason, message and the conditions that follow from the phase.
fn say(
    status: &mut WorkflowRunStatus,
    run: &WorkflowRun,
    phase: Phase,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    status.phase = phase;
    status.reason = Some(reason.to_owned());
    status.message = (!message.is_empty()).then(|| message.to_owned());
    let (ready, reconciling, stalled) = match phase {
        Phase::Pending | Phase::Running => (false, true, false),
        Phase::Completed => (true, false, false),
        Phase::Failed | Phase::Killed => (false, false, true),
    };
    for (kind, value) in [
        (conditions::READY, ready),
        (conditions::RECONCILING, reconciling),
        (conditions::STALLED, stalled),
    ] {
        // Once is enough: where the condition holds, or where it is the one that is waited for.
        let message = if value || kind == conditions::READY {
            message
        } else {
            ""
        };
        set(status, run, kind, value, reason, message, now);
    }
}

fn set(
    status: &mut WorkflowRunStatus,
    run: &WorkflowRun,
    kind: &str,
    value: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    condition(
        &mut status.conditions,
        run.metadata.generation,
        kind,
        value,
        reason,
        message,
        now,
    );
}

/// Sets one condition of a list; its time is that of its last change of status.
pub(super) fn condition(
    conditions: &mut Vec<Condition>,
    generation: Option<i64>,
    kind: &str,
    value: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let value = if value { "True" } else { "False" };
    let old = conditions
        .iter()
        .position(|condition| condition.type_ == kind);
    let since = old
        .and_then(|at| conditions.get(at))
        .filter(|condition| condition.status == value)
        .map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        });
    let new = Condition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
    };
    match old.and_then(|at| conditions.get_mut(at)) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}
