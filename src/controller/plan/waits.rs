//! What a run waits for, and when that is worth a write: problems at once, what is merely under way
//! only when it takes its time. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::WorkflowRun;
use crate::api::run::{Phase, WorkflowRunStatus};
use crate::controller::shapes::{Again, Plan};
use crate::controller::status;
use crate::controller::trouble::Waiting;
use crate::names::reasons;

use super::{current_attempt, later, note};

/// What is merely under way is not worth a write before: a start takes some seconds, a busy node more.
pub(in crate::controller) const PATIENCE: SignedDuration = SignedDuration::from_secs(20);

/// Says what the run waits for: problems at once, and what is under way when it takes its time.
pub(super) fn waits(run: &WorkflowRun, waiting: Waiting, now: Timestamp) -> Plan {
    let current = status::current(run);
    if current.reason.as_deref() == Some(&waiting.reason) && is_said(&current, &waiting) {
        return Plan::default();
    }
    let was_problem = current.reason.is_some() && is_stale(&current);
    if !waiting.problem && current.phase == Phase::Running {
        // It is being recovered, and says so.
        if !was_problem {
            return Plan::default();
        }
        let message = format!("Attempt {} is on its way.", current_attempt(run));
        let new = status::pending(run, reasons::RECOVERING, &message, now);
        return Plan {
            ledger: later(run, &new),
            status: Some(Box::new(new)),
            ..Plan::default()
        };
    }
    if !waiting.problem && !was_problem {
        let left = waiting
            .since
            .map_or(PATIENCE, |since| PATIENCE - now.duration_since(since));
        if left > SignedDuration::ZERO {
            return Plan {
                again: after(left),
                ..Plan::default()
            };
        }
    }
    let new = status::pending(run, &waiting.reason, &waiting.message, now);
    let event = waiting.problem.then(|| note(run, &new, true)).flatten();
    Plan {
        ledger: later(run, &new),
        status: Some(Box::new(new)),
        event,
        ..Plan::default()
    }
}

/// The status says it already. Nodes word the cause anew with each try (a port, a duration), so what
/// comes after the colon counts only where the cause is one of the cluster's.
fn is_said(current: &WorkflowRunStatus, waiting: &Waiting) -> bool {
    let varies = [reasons::IMAGE, reasons::VOLUME, reasons::POD_REFUSED];
    let said = current.message.as_deref().unwrap_or_default();
    let gist = |message: &str| message.split(": ").next().map(str::to_owned);
    said == waiting.message
        || (waiting.problem
            && varies.contains(&waiting.reason.as_str())
            && gist(said) == gist(&waiting.message))
}

/// The status speaks of trouble that has passed: that is cleared at once.
fn is_stale(current: &WorkflowRunStatus) -> bool {
    !matches!(
        current.reason.as_deref(),
        Some(
            reasons::SCHEDULING
                | reasons::ACCEPTED
                | reasons::RECOVERING
                | reasons::AGENT_RUNNING
                | reasons::CHECKOUT
                | reasons::WORKSPACE
        )
    )
}

/// After that time.
pub(super) fn after(left: SignedDuration) -> Again {
    // A little later than that, so that it is over by then.
    Again::After(left.unsigned_abs() + Duration::from_millis(50))
}
