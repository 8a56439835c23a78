//! What is decided in each state of a run's life.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::controller::plan::waits::PATIENCE;
use crate::controller::shapes::{Again, Ledger, Unprotect};
use crate::names::{annotations, conditions as kinds, reasons};

#[test]
fn a_new_run_gets_finalizer_and_pod_in_one_go_and_then_a_status() {
    let mut new = run(json!({}));
    new.metadata.finalizers = None;
    let plan = decide(&observed(new), 1);
    assert!(plan.protect && plan.verify);
    assert_eq!(plan.pod.as_ref().unwrap().attempt, 1);
    assert_eq!(plan.again, Again::After(Duration::ZERO));
    assert!(plan.status.is_none() && plan.ledger == Ledger::Nothing);
    assert!(plan.delete.is_empty() && plan.release.is_empty() && plan.unprotect == Unprotect::No);

    let held = run(json!({}));
    let plan = decide(&made(&observed(held.clone())), 1);
    assert_eq!(
        says(&plan),
        (Phase::Pending, reasons::SCHEDULING.to_owned())
    );
    let status = plan.status.as_ref().unwrap();
    assert_eq!(status.pod_name.as_deref(), Some("hello-1"));
    assert_eq!(status.pod_uid.as_deref(), Some("pod-1"));
    assert_eq!(condition(&plan, kinds::ACCEPTED), "True");
    assert_eq!(condition(&plan, kinds::RECONCILING), "True");
    assert!(matches!(&plan.ledger, Ledger::Later(row) if row.attempt == 1));
    assert!(is_idle(&decide(
        &with_pod(after(&held, &plan), new_pod(1)),
        2
    )));
}

#[test]
fn a_whole_run_takes_at_most_eight_writes() {
    let mut new = run(json!({}));
    new.metadata.finalizers = None;
    let first = decide(&observed(new), 1);
    let told = decide(&made(&observed(run(json!({})))), 1);
    let second = decide(&with_pod(attempted(json!({})), running_pod(1)), 10);
    let message = said(&termination(Outcome::Completed, reasons::COMPLETED));
    let run = working(json!({}));
    let third = decide(&with_pod(run.clone(), ended_pod(1, &message)), 70);
    let fourth = decide(&with_pod(after(&run, &third), ended_pod(1, &message)), 71);
    let writes = |plan: &Plan| {
        usize::from(plan.protect)
            + usize::from(plan.workspace.is_some())
            + usize::from(plan.pod.is_some())
            + usize::from(plan.status.is_some())
            + plan.release.len()
            + plan.delete.len()
            + usize::from(plan.unprotect != Unprotect::No)
    };
    assert_eq!(
        [&first, &told, &second, &third, &fourth].map(writes),
        [2, 1, 1, 1, 3]
    );
}

#[test]
fn a_pod_on_its_way_is_left_alone_until_it_takes_its_time() {
    let run = attempted(json!({}));
    let patience = PATIENCE.as_secs();
    let young = pod(
        1,
        json!({"phase": "Pending", "conditions": conditions(false)}),
    );
    let plan = decide(&with_pod(run.clone(), young.clone()), 3);
    assert!(is_idle(&plan));
    let Again::After(wait) = plan.again else {
        panic!("it looks again")
    };
    let left = wait.as_secs() as i64;
    assert!((patience - 2..patience).contains(&left), "{wait:?}");
    let plan = decide(&with_pod(run.clone(), young.clone()), patience + 2);
    assert_eq!(says(&plan), (Phase::Pending, reasons::VOLUME.to_owned()));
    let plan = decide(&with_pod(after(&run, &plan), young), patience + 60);
    assert!(is_idle(&plan) && plan.again == Again::OnChange, "said once");
}

#[test]
fn the_run_is_running_from_the_agents_start() {
    let run = attempted(json!({}));
    let plan = decide(&with_pod(run.clone(), running_pod(1)), 10);
    assert_eq!(
        says(&plan),
        (Phase::Running, reasons::AGENT_RUNNING.to_owned())
    );
    let status = plan.status.as_ref().unwrap();
    assert_eq!(
        status.start_time.as_ref().unwrap().0,
        at(5),
        "the agent's start, not the look at it"
    );
    assert!(is_idle(&decide(
        &with_pod(after(&run, &plan), running_pod(1)),
        20
    )));
}

#[test]
fn a_run_ends_row_first_and_lets_go_of_everything_when_there_is_time() {
    let run = working(json!({}));
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Completed, reasons::COMPLETED)),
    );
    let plan = decide(&with_pod(run, pod), 70);
    let Ledger::Final(row) = &plan.ledger else {
        panic!("the row is final")
    };
    assert_eq!((row.phase, row.attempt), (Phase::Completed, 1));
    assert_eq!(row.usage, Some(usage(1)));
    assert_eq!(
        says(&plan),
        (Phase::Completed, reasons::COMPLETED.to_owned())
    );
    let status = plan.status.as_ref().unwrap();
    assert_eq!(status.duration.as_deref(), Some("1m0s"));
    assert_eq!(status.changes.as_deref(), Some("3 files +40 -2"));
    assert_eq!(status.model.as_deref(), Some("claude-1"));
    assert_eq!(condition(&plan, kinds::READY), "True");
    assert_eq!(condition(&plan, kinds::RECORDED), "True");
    let unrecorded = plan.status_unrecorded.as_ref().unwrap();
    assert!(!crate::controller::status::is_recorded(unrecorded));
    assert_eq!(unrecorded.phase, Phase::Completed);
    assert!(plan.release.is_empty() && plan.delete.is_empty());
    assert_eq!(plan.unprotect, Unprotect::No);
    assert_eq!(plan.again, Again::After(Duration::ZERO));
}

#[test]
fn an_end_is_checked_against_the_api_server_unless_the_supervisor_has_sealed_it() {
    let verifies = |outcome, reason| {
        let pod = ended_pod(1, &said(&termination(outcome, reason)));
        decide(&with_pod(killed(working(json!({}))), pod), 70).verify
    };
    assert!(!verifies(Outcome::Completed, reasons::COMPLETED));
    assert!(!verifies(Outcome::Failed, reasons::MODEL_ERROR));
    assert!(
        verifies(Outcome::Stopped, reasons::KILLED),
        "whether it was killed or lost is the run's to say"
    );
}

#[test]
fn a_finished_run_is_cleared_and_then_nothing_is_left_to_do() {
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Completed, reasons::COMPLETED)),
    );
    let run = working(json!({}));
    let done = after(&run, &decide(&with_pod(run.clone(), pod.clone()), 70));
    let plan = decide(&with_pod(done.clone(), pod), 80);
    assert_eq!((plan.release.len(), plan.delete.len()), (1, 1));
    assert_eq!(plan.unprotect, Unprotect::Now);
    assert!(plan.status.is_none() && plan.ledger == Ledger::Nothing);
    let mut free = done;
    free.metadata.finalizers = None;
    for run in [free.clone(), killed(free.clone()), deleted(free)] {
        assert!(
            is_idle(&decide(&observed(run), 90)),
            "a finished run isn't changed"
        );
    }
}

#[test]
fn a_row_that_could_not_be_written_is_written_later_and_holds_only_the_run() {
    let run = working(json!({}));
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Completed, reasons::COMPLETED)),
    );
    let plan = decide(&with_pod(run.clone(), pod), 70);
    let mut unrecorded = run;
    unrecorded.status = plan.status_unrecorded.map(|status| *status);
    let retry = decide(&observed(unrecorded.clone()), 80);
    assert_eq!(
        retry.ledger, plan.ledger,
        "the same row, from the status alone"
    );
    assert_eq!(condition(&retry, kinds::RECORDED), "True");
    assert!(
        retry.status_unrecorded.is_none(),
        "nothing new to say while the ledger is away"
    );
    assert_eq!(retry.unprotect, Unprotect::WhenRecorded);

    let mut skipping = deleted(unrecorded.clone());
    let skip = (annotations::SKIP_LEDGER.to_owned(), "true".to_owned());
    skipping.metadata.annotations = Some([skip.clone()].into());
    assert_eq!(
        decide(&observed(skipping), 80).unprotect,
        Unprotect::Now,
        "the way out"
    );
    unrecorded.metadata.annotations = Some([skip].into());
    assert_ne!(
        decide(&observed(unrecorded), 80).unprotect,
        Unprotect::Now,
        "only when deleted"
    );
}

#[test]
fn a_killed_run_that_has_no_pod_never_gets_one() {
    for run in [killed(run(json!({}))), deleted(run(json!({})))] {
        let plan = decide(&observed(run), 1);
        assert!(plan.pod.is_none() && plan.verify);
        assert_eq!(says(&plan).0, Phase::Killed);
        let status = plan.status.as_ref().unwrap();
        assert!(status.start_time.is_none() && status.completion_time.is_some());
        assert_eq!(condition(&plan, kinds::STALLED), "True");
    }
}

#[test]
fn a_killed_run_ends_when_its_pod_has() {
    let run = killed(working(json!({})));
    let mut pod = running_pod(1);
    let plan = decide(&with_pod(run.clone(), pod.clone()), 30);
    assert_eq!(plan.delete.len(), 1);
    assert!(
        plan.status.is_none() && plan.release.is_empty(),
        "its end is not known yet"
    );
    pod.deleting = true;
    assert!(
        is_idle(&decide(&with_pod(run.clone(), pod), 31)),
        "deleted once"
    );
    let stopped = ended_pod(1, &said(&termination(Outcome::Stopped, reasons::KILLED)));
    let plan = decide(&with_pod(run, stopped), 40);
    assert_eq!(says(&plan), (Phase::Killed, reasons::KILLED.to_owned()));
    assert_eq!(
        plan.status
            .as_ref()
            .unwrap()
            .usage
            .as_ref()
            .unwrap()
            .total_tokens,
        10
    );
}

#[test]
fn a_deleted_run_is_not_held_up_by_a_bad_spec() {
    let bad = deleted(run(json!({"spec": {"limits": {"timeout": "soon"}}})));
    assert_eq!(
        says(&decide(&observed(bad), 1)),
        (Phase::Killed, reasons::DELETED.to_owned())
    );
}

#[test]
fn a_bad_spec_fails_with_a_sentence_that_names_the_field() {
    for (spec, field) in [
        (
            json!({"limits": {"timeout": "soon"}}),
            "spec.limits.timeout",
        ),
        (
            json!({"repository": {"url": "ftp://example.com/a"}}),
            "spec.repository.url",
        ),
        (
            json!({"repository": {"url": "https://u:p@example.com/a"}}),
            "spec.repository.url",
        ),
        (
            json!({"repository": {"url": "https://example.com/a",
                "push": {"when": "Always", "branch": "release/{session}"}}}),
            "spec.repository.push.branch: release/",
        ),
        (
            json!({"repository": {"url": "https://example.com/a",
                "push": {"when": "Always", "branch": "a/{session}"}}, "session": {"name": "a.lock"}}),
            "spec.repository.push.branch: a/{session} makes a/a.lock",
        ),
        (
            json!({"podTemplate": {"labels": {"a b": "c"}}}),
            "spec.podTemplate.labels",
        ),
        (
            json!({"podTemplate": {"nodeSelector": {"a": "not a value"}}}),
            "spec.podTemplate.nodeSelector",
        ),
        (json!({"task": ""}), "spec.task"),
    ] {
        let plan = decide(&observed(run(json!({"spec": spec}))), 1);
        assert_eq!(
            says(&plan),
            (Phase::Failed, reasons::INVALID_SPEC.to_owned())
        );
        let message = plan.status.as_ref().unwrap().message.clone().unwrap();
        assert!(message.contains(field), "{message}");
        assert_eq!(condition(&plan, kinds::ACCEPTED), "False");
        assert!(plan.pod.is_none());
    }
}

#[test]
fn a_lost_pod_is_followed_by_another_attempt_only_once_it_is_gone() {
    let run = working(json!({}));
    let stopped = ended_pod(1, &said(&termination(Outcome::Stopped, reasons::KILLED)));
    let plan = decide(&with_pod(run.clone(), stopped.clone()), 40);
    assert_eq!(
        says(&plan),
        (Phase::Running, reasons::RECOVERING.to_owned())
    );
    let status = plan.status.as_ref().unwrap();
    assert_eq!((status.attempt, status.pod_uid.as_deref()), (Some(2), None));
    assert!(plan.pod.is_none() && plan.release.len() == 1 && plan.delete.len() == 1);

    let recovering = after(&run, &plan);
    let mut state = observed(recovering.clone());
    state.leftovers = vec![stopped];
    let plan = decide(&state, 41);
    assert!(plan.pod.is_none(), "the old pod is still there");
    assert_eq!(plan.release.len(), 1);
    let plan = decide(&observed(recovering.clone()), 42);
    assert_eq!(plan.pod.as_ref().unwrap().attempt, 2);
    let plan = decide(&with_pod(recovering.clone(), new_pod(2)), 43);
    assert_eq!(says(&plan).0, Phase::Running);
    let again = after(&recovering, &plan);
    let plan = decide(&with_pod(again.clone(), running_pod(2)), 50);
    assert_eq!(
        says(&plan),
        (Phase::Running, reasons::AGENT_RUNNING.to_owned())
    );
    assert_eq!(
        plan.status.as_ref().unwrap().start_time.as_ref().unwrap().0,
        at(5),
        "set once"
    );
    let mut done = termination(Outcome::Completed, reasons::COMPLETED);
    done.usage = usage(10);
    let plan = decide(
        &with_pod(after(&again, &plan), ended_pod(2, &said(&done))),
        90,
    );
    let total = plan.status.as_ref().unwrap().usage.as_ref().unwrap();
    assert_eq!(
        (total.total_tokens, total.cost_usd.as_deref()),
        (110, Some("0.179080"))
    );
}

#[test]
fn a_pod_that_the_api_server_does_not_know_any_more_is_lost() {
    let state = Observed {
        pod: CurrentPod::Gone,
        ..observed(working(json!({})))
    };
    let plan = decide(&state, 40);
    assert_eq!(
        says(&plan),
        (Phase::Running, reasons::RECOVERING.to_owned())
    );
    assert!(
        plan.pod.is_none(),
        "the new attempt is written down before it is made"
    );
    let state = Observed {
        pod: CurrentPod::Gone,
        ..observed(attempted(json!({})))
    };
    assert_eq!(
        says(&decide(&state, 40)).0,
        Phase::Pending,
        "it had never started"
    );
}

#[test]
fn a_pod_is_not_lost_for_ever() {
    let mut run = working(json!({}));
    for attempt in 1..=6 {
        run.status.as_mut().unwrap().pod_uid = Some(format!("pod-{attempt}"));
        let state = Observed {
            pod: CurrentPod::Gone,
            ..observed(run.clone())
        };
        let plan = decide(&state, 40);
        run = after(&run, &plan);
        let expected = if attempt <= 5 {
            Phase::Running
        } else {
            Phase::Failed
        };
        assert_eq!(says(&plan).0, expected, "attempt {attempt}");
    }
    assert_eq!(
        run.status.unwrap().reason.as_deref(),
        Some(reasons::LOST_TOO_OFTEN)
    );
}

#[test]
fn with_a_stale_cache_a_finished_runs_deleted_pod_makes_no_new_one() {
    // The cache still says Running; the pod, ended and recorded, is gone. What is planned carries
    // the old resource version and no pod: the API server refuses it, and nothing has happened.
    let stale = Observed {
        pod: CurrentPod::Gone,
        ..observed(working(json!({})))
    };
    let plan = decide(&stale, 80);
    assert!(plan.pod.is_none() && plan.ledger_is_not_final());
    // The same before the first status: the pod is asked for, but only of the newest version.
    let plan = decide(&observed(run(json!({}))), 80);
    assert!(plan.pod.is_some() && plan.verify);
    // And a kill seen without any pod ends the run in the ledger only if that is the newest.
    let plan = decide(&observed(killed(run(json!({})))), 80);
    assert!(plan.verify);
}

impl Plan {
    fn ledger_is_not_final(&self) -> bool {
        !matches!(self.ledger, Ledger::Final(_))
    }
}

#[test]
fn a_pod_whose_uid_was_not_written_down_is_taken_over() {
    let plan = decide(&with_pod(run(json!({})), running_pod(1)), 10);
    assert!(plan.pod.is_none());
    assert_eq!(
        plan.status.as_ref().unwrap().pod_uid.as_deref(),
        Some("pod-1")
    );
}

#[test]
fn among_many_a_run_tells_of_its_pod_when_the_node_starts_it_or_after_ten_seconds() {
    let crowded = |pod: PodView| Observed {
        crowded: true,
        ..with_pod(run(json!({})), pod)
    };
    let plan = decide(&crowded(new_pod(1)), 4);
    let Again::After(wait) = plan.again else {
        panic!("it looks again")
    };
    assert!(is_idle(&plan) && wait.as_secs() == 7, "{wait:?}");
    assert!(decide(&crowded(new_pod(1)), 11).status.is_some());
    let clock_is_behind = decide(&crowded(new_pod(1)), -3600);
    assert!(clock_is_behind.status.is_some());
    let sandbox = json!({"phase": "Pending", "conditions": conditions(true)});
    let plan = decide(&crowded(pod(1, sandbox)), 4);
    let uid = plan.status.as_ref().unwrap().pod_uid.as_deref();
    assert_eq!(uid, Some("pod-1"));
    assert!(decide(&crowded(unscheduled_pod(1)), 4).status.is_some());
}

#[test]
fn among_many_what_is_over_is_cleared_up_ten_seconds_later_where_nobody_waits_for_it() {
    let message = said(&termination(Outcome::Completed, reasons::COMPLETED));
    let over = |run: WorkflowRun| {
        let plan = decide(&with_pod(run.clone(), ended_pod(1, &message)), 66);
        Observed {
            crowded: true,
            ..with_pod(after(&run, &plan), ended_pod(1, &message))
        }
    };
    let state = over(working(json!({})));
    let plan = decide(&state, 67);
    let Again::After(wait) = plan.again else {
        panic!("it looks again")
    };
    assert!(is_idle(&plan) && wait.as_secs() == 8, "{wait:?}");
    let clears = |state: &Observed, seconds| decide(state, seconds).unprotect != Unprotect::No;
    assert!(clears(&state, 75));
    let mut deleted_run = state.clone();
    deleted_run.run = Arc::new(deleted(state.run.as_ref().clone()));
    assert!(clears(&deleted_run, 67));
    let mut lasting = state.run.as_ref().clone();
    lasting.status.as_mut().unwrap().workspace = Some("parser".to_owned());
    let lasting = Observed {
        run: Arc::new(lasting),
        ..state
    };
    assert!(clears(&lasting, 67), "its volume may be waited for");
}

#[test]
fn a_pod_that_has_ended_before_its_run_speaks_of_it_is_told_of_in_one_write() {
    let said = said(&termination(Outcome::Completed, reasons::COMPLETED));
    let plan = decide(&with_pod(run(json!({})), ended_pod(1, &said)), 80);
    let status = plan.status.as_ref().unwrap();
    assert_eq!(status.phase, Phase::Completed);
    assert_eq!(
        (
            status.attempt,
            status.pod_name.as_deref(),
            status.pod_uid.as_deref()
        ),
        (Some(1), Some("hello-1"), Some("pod-1"))
    );
    assert_eq!(status.usage.as_ref().map(|usage| usage.turns), Some(2));
    assert!(status.resolved.is_some() && status.start_time.is_some());
    assert_eq!(condition(&plan, kinds::WORKSPACE_READY), "True");
}

#[test]
fn what_troubles_a_new_pod_is_told_of_in_one_write_with_the_pod() {
    let plan = decide(&with_pod(run(json!({})), unscheduled_pod(1)), 10);
    let status = plan.status.as_ref().unwrap();
    assert_eq!(status.pod_uid.as_deref(), Some("pod-1"));
    assert!(
        status
            .message
            .as_ref()
            .unwrap()
            .contains("Insufficient cpu")
    );
}
