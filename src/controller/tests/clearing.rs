//! What is cleared up after a run, and when.

use super::*;
use crate::controller::shapes::Unprotect;
use crate::names::{annotations, reasons};

/// A pod whose checkout can't work; its supervisor would be started again.
fn hopeless_pod() -> PodView {
    let failed = termination(Outcome::Failed, reasons::AUTHENTICATION_FAILED);
    let mut status = status(
        "supervisor",
        json!({"waiting": {"reason": "CrashLoopBackOff"}}),
    );
    status["lastState"] = terminated(1, "Error", &said(&failed));
    pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(true), "initContainerStatuses": [status]}),
    )
}

#[test]
fn a_checkout_that_can_not_work_fails_at_once() {
    let plan = decide(&with_pod(attempted(json!({})), hopeless_pod()), 10);
    assert_eq!(
        says(&plan),
        (Phase::Failed, reasons::AUTHENTICATION_FAILED.to_owned())
    );
    assert!(plan.status.as_ref().unwrap().start_time.is_none());
}

#[test]
fn a_run_whose_pod_still_lives_is_let_go_only_once_that_is_no_more() {
    let state = with_pod(attempted(json!({})), hopeless_pod());
    let over = after(&state.run, &decide(&state, 10));
    let state = with_pod(over.clone(), hopeless_pod());
    let plan = decide(&state, 11);
    assert_eq!((plan.release.len(), plan.delete.len()), (0, 1));
    assert_eq!(plan.unprotect, Unprotect::No, "its volume may be in use");

    let mut leaving = hopeless_pod();
    leaving.deleting = true;
    let state = with_pod(deleted(over.clone()), leaving.clone());
    assert!(is_idle(&decide(&state, 12)), "also where it is deleted");

    leaving.deleted_for_good = true;
    let plan = decide(&with_pod(over.clone(), leaving.clone()), 13);
    assert_eq!((plan.release.len(), plan.delete.len()), (1, 0));
    assert_eq!(plan.unprotect, Unprotect::Now);

    leaving.deleted_for_good = false;
    let mut out = deleted(over);
    out.metadata.annotations =
        Some([(annotations::SKIP_LEDGER.to_owned(), "true".to_owned())].into());
    let plan = decide(&with_pod(out, leaving), 14);
    assert_eq!(plan.unprotect, Unprotect::Now, "the way out");
}
