//! How a pod's end is read, from what the supervisor and the kubelet say.

use super::*;
use crate::controller::end::{self, End, Stop};
use crate::names::reasons;

fn verdict(pod: &PodView, stop: Option<Stop>) -> (Phase, String) {
    match end::read(pod, stop, None) {
        End::Over(verdict) => (verdict.phase, verdict.reason),
        End::Lost { why, .. } => (Phase::Running, why),
    }
}

#[test]
fn the_supervisors_word_counts() {
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Completed, reasons::COMPLETED)),
    );
    assert_eq!(
        verdict(&pod, None),
        (Phase::Completed, reasons::COMPLETED.to_owned())
    );
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Failed, reasons::MODEL_ERROR)),
    );
    assert_eq!(
        verdict(&pod, None),
        (Phase::Failed, reasons::MODEL_ERROR.to_owned())
    );
}

#[test]
fn a_run_that_finished_by_itself_is_not_changed_by_a_kill() {
    let pod = ended_pod(
        1,
        &said(&termination(Outcome::Completed, reasons::COMPLETED)),
    );
    assert_eq!(verdict(&pod, Some(Stop::Killed)).0, Phase::Completed);
}

#[test]
fn a_stopped_pod_is_killed_when_that_was_wanted_and_lost_when_not() {
    let mut pod = ended_pod(1, &said(&termination(Outcome::Stopped, reasons::KILLED)));
    assert_eq!(
        verdict(&pod, Some(Stop::Killed)),
        (Phase::Killed, reasons::KILLED.to_owned())
    );
    assert_eq!(
        verdict(&pod, Some(Stop::Deleted)),
        (Phase::Killed, reasons::DELETED.to_owned())
    );
    assert_eq!(verdict(&pod, None).0, Phase::Running);
    pod.reason = Some("DeadlineExceeded".to_owned());
    assert_eq!(
        verdict(&pod, None),
        (Phase::Failed, reasons::TIMEOUT.to_owned())
    );
}

#[test]
fn what_the_supervisor_could_not_say_is_told_from_the_pod() {
    let silent = || ended_pod(1, "");
    let cases: Vec<(&str, PodView, (Phase, &str))> = vec![
        (
            "nothing known",
            silent(),
            (Phase::Failed, reasons::AGENT_CRASHED),
        ),
        (
            "deadline",
            PodView {
                reason: Some("DeadlineExceeded".to_owned()),
                ..silent()
            },
            (Phase::Failed, reasons::TIMEOUT),
        ),
        (
            "a deadline that passed before the agent started",
            PodView {
                reason: Some("DeadlineExceeded".to_owned()),
                ..pod(1, json!({"phase": "Failed"}))
            },
            (
                Phase::Running,
                "its pod was ended by the node (DeadlineExceeded)",
            ),
        ),
        (
            "evicted for its own use of the disk",
            PodView {
                reason: Some("Evicted".to_owned()),
                ..silent()
            },
            (Phase::Failed, reasons::OUT_OF_DISK),
        ),
        (
            "evicted for the node's sake",
            PodView {
                reason: Some("Evicted".to_owned()),
                disruption: Some("TerminationByKubelet".to_owned()),
                ..silent()
            },
            (
                Phase::Running,
                "its pod was disrupted (TerminationByKubelet)",
            ),
        ),
        (
            "refused by the node",
            PodView {
                reason: Some("OutOfcpu".to_owned()),
                ..silent()
            },
            (Phase::Running, "its pod was ended by the node (OutOfcpu)"),
        ),
        (
            "deleted and killed hard",
            PodView {
                deleting: true,
                ..silent()
            },
            (Phase::Running, "its pod was deleted"),
        ),
    ];
    for (name, pod, expected) in cases {
        assert_eq!(
            verdict(&pod, None),
            (expected.0, expected.1.to_owned()),
            "{name}"
        );
    }
}

#[test]
fn containers_of_a_rebooted_node_are_lost() {
    let mut pod = ended_pod(1, "");
    pod.agent.ended.as_mut().unwrap().reason = "ContainerStatusUnknown".to_owned();
    assert_eq!(verdict(&pod, None).1, "its node lost the pod's containers");
}

#[test]
fn an_agent_out_of_memory_is_called_that_also_when_the_supervisor_knows_no_better() {
    let message = said(&termination(Outcome::Failed, reasons::AGENT_CRASHED));
    for message in [message.as_str(), ""] {
        let mut pod = ended_pod(1, message);
        pod.agent.ended.as_mut().unwrap().reason = "OOMKilled".to_owned();
        assert_eq!(
            verdict(&pod, None),
            (Phase::Failed, reasons::OUT_OF_MEMORY.to_owned())
        );
    }
}

#[test]
fn the_message_of_a_restarted_supervisor_is_found() {
    let mut pod = ended_pod(1, "");
    let mut last = pod.supervisor.ended.clone().unwrap();
    last.message = said(&termination(Outcome::Completed, reasons::COMPLETED));
    pod.supervisor.last = Some(last);
    assert_eq!(verdict(&pod, None).0, Phase::Completed);
}

#[test]
fn a_hostile_message_is_bounded() {
    let mut termination = termination(Outcome::Failed, "Not A Reason; rm -rf");
    termination.message = format!("line\n\u{1b}[31m{}", "x".repeat(5000));
    termination.usage.tokens.input = u64::MAX;
    termination.usage.cost_micro_usd = Some(u64::MAX);
    termination.git.as_mut().unwrap().branch = "b".repeat(9000);
    let pod = ended_pod(
        1,
        &said(&termination)
            .chars()
            .take(12 * 1024)
            .collect::<String>(),
    );
    // Cut in the middle, it is no JSON any more, and says so.
    let End::Over(verdict) = end::read(&pod, None, None) else {
        panic!()
    };
    assert!(
        verdict.message.contains("can't be read"),
        "{}",
        verdict.message
    );

    termination.git.as_mut().unwrap().branch = "b".repeat(3000);
    let End::Over(verdict) = end::read(&ended_pod(1, &said(&termination)), None, None) else {
        panic!()
    };
    assert_eq!(verdict.reason, reasons::AGENT_CRASHED);
    assert!(verdict.message.len() <= 1024 && !verdict.message.contains('\n'));
    let read = verdict.termination.unwrap();
    assert!(read.usage.tokens.total() < 1 << 53);
    assert!(read.git.unwrap().branch.len() <= 255);

    let End::Over(verdict) = end::read(&ended_pod(1, "{\"outcome\": \"completed\"}"), None, None)
    else {
        panic!()
    };
    assert_eq!(verdict.phase, Phase::Failed);
}
