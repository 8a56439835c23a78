//! The last resort against agents that outlive their runs' time limits.

use super::*;
use crate::controller::shapes::Again;
use crate::names::reasons;

/// An agent that was started at 5 s with a limit of 15 min is waited for until then: 10 min for the
/// flush, 15 for the rest of the seal, 15 for the clocks.
const LAST: i64 = 5 + 55 * 60;

fn limited() -> WorkflowRun {
    working(json!({"spec": {"limits": {"timeout": "15m"}}}))
}

/// Its pod, of which both containers ended then.
fn stopped_at(seconds: i64, message: &str) -> PodView {
    let mut pod = ended_pod(1, message);
    for container in [&mut pod.agent, &mut pod.supervisor] {
        container.ended.as_mut().unwrap().finished = Some(at(seconds));
    }
    pod.deleting = true;
    pod
}

#[test]
fn a_pod_is_deleted_whose_supervisor_does_not_end_it_in_time() {
    let run = limited();
    let state = with_pod(run.clone(), running_pod(1));
    let plan = decide(&state, LAST - 10);
    assert!(is_idle(&plan), "the seal has its time");
    let Again::After(wait) = plan.again else {
        panic!("{:?}", plan.again)
    };
    assert!((10..12).contains(&wait.as_secs()), "{wait:?}");
    let plan = decide(&state, LAST);
    assert_eq!(plan.delete.len(), 1);
    assert!(plan.status.is_none(), "its end is not known yet");
    let mut leaving = running_pod(1);
    leaving.deleting = true;
    assert!(
        is_idle(&decide(&with_pod(run.clone(), leaving), LAST + 1)),
        "once"
    );

    for message in [
        String::new(),
        said(&termination(Outcome::Stopped, reasons::KILLED)),
    ] {
        let state = with_pod(run.clone(), stopped_at(LAST + 30, &message));
        let plan = decide(&state, LAST + 31);
        assert_eq!(says(&plan), (Phase::Failed, reasons::TIMEOUT.to_owned()));
    }
    let sealed = said(&termination(Outcome::Completed, reasons::COMPLETED));
    let plan = decide(&with_pod(run, stopped_at(LAST + 30, &sealed)), LAST + 31);
    assert_eq!(says(&plan).0, Phase::Completed, "its own word counts");
}

#[test]
fn a_pod_that_is_lost_in_time_goes_on_in_another() {
    let state = with_pod(limited(), stopped_at(600, ""));
    assert_eq!(
        says(&decide(&state, 601)),
        (Phase::Running, reasons::RECOVERING.to_owned())
    );
}

#[test]
fn waiting_for_what_is_missing_uses_up_no_time() {
    let run = attempted(json!({"spec": {"limits": {"timeout": "15m"}}}));
    let day = 24 * 3600;
    let waits = decide(&with_pod(run.clone(), unscheduled_pod(1)), day);
    assert_eq!(
        says(&waits),
        (Phase::Pending, reasons::SCHEDULING.to_owned())
    );
    assert!(waits.delete.is_empty());
    let mut pod = running_pod(1);
    pod.agent.running = Some(at(day));
    let plan = decide(&with_pod(run, pod), day + 60);
    assert_eq!(says(&plan).0, Phase::Running);
    assert!(plan.delete.is_empty());
}

#[test]
fn without_a_limit_nothing_is_counted() {
    let plan = decide(&with_pod(working(json!({})), running_pod(1)), 9 * 24 * 3600);
    assert!(is_idle(&plan));
    assert_eq!(plan.again, Again::OnChange);
}

#[test]
fn who_had_less_than_its_time_when_the_kubelet_stopped_it_goes_on() {
    let exceeded = |seconds| {
        let mut pod = stopped_at(seconds, "");
        (pod.reason, pod.deleting) = (Some("DeadlineExceeded".to_owned()), false);
        says(&decide(&with_pod(limited(), pod), seconds + 1))
    };
    assert_eq!(
        exceeded(600),
        (Phase::Running, reasons::RECOVERING.to_owned())
    );
    assert_eq!(exceeded(LAST), (Phase::Failed, reasons::TIMEOUT.to_owned()));
}
