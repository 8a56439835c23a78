//! The figures of a status: exact, and no attempt counted twice.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::*;
use crate::controller::end::Verdict;
use crate::controller::{figures, record, status, watches};
use crate::ledger::records::{Kill, KillRequest};
use crate::names::reasons;
use crate::wire::EarlierAttempt;

fn ended(run: &WorkflowRun, termination: Termination) -> crate::api::WorkflowRunStatus {
    let verdict = Verdict {
        phase: Phase::Completed,
        reason: reasons::COMPLETED.to_owned(),
        message: "Done.".to_owned(),
        termination: Some(Box::new(termination)),
    };
    status::ended(run, &verdict, None, true, at(100))
}

#[test]
fn figures_of_an_earlier_attempt_that_come_late_are_added_once() {
    let first = working(json!({}));
    let lost = status::recovering(&first, None, "its pod vanished", None, at(20));
    assert!(lost.usage.is_none(), "nobody knows yet what it used");
    let second = WorkflowRun {
        status: Some(lost),
        ..first
    };
    let mut said = termination(Outcome::Completed, reasons::COMPLETED);
    said.usage = usage(100);
    said.earlier = vec![EarlierAttempt {
        attempt: 1,
        usage: usage(1),
    }];
    let once = ended(&second, said.clone());
    assert_eq!(once.usage.as_ref().unwrap().total_tokens, 1010);
    assert_eq!(once.usage.as_ref().unwrap().turns, 4);
    let again = WorkflowRun {
        status: Some(once.clone()),
        ..second
    };
    assert_eq!(
        ended(&again, said).usage,
        once.usage,
        "told twice, counted once"
    );
    assert_eq!(
        once.attempts.iter().map(|a| a.attempt).collect::<Vec<_>>(),
        [1, 2]
    );
    let row = record::of(&again, &once).unwrap();
    assert_eq!(row.usage, Some(usage(100)));
    assert_eq!(
        row.earlier,
        [EarlierAttempt {
            attempt: 1,
            usage: usage(1)
        }]
    );
}

#[test]
fn an_attempt_can_not_claim_figures_of_its_own_or_later_ones() {
    let run = working(json!({}));
    let mut said = termination(Outcome::Completed, reasons::COMPLETED);
    said.earlier = vec![
        EarlierAttempt {
            attempt: 1,
            usage: usage(50),
        },
        EarlierAttempt {
            attempt: 9,
            usage: usage(50),
        },
    ];
    assert_eq!(ended(&run, said).usage.unwrap().total_tokens, 10);
}

#[test]
fn money_goes_there_and_back_without_a_float() {
    for micro in [0, 1, 16_280, 999_999, 1_000_000, 123_456_789_012] {
        assert_eq!(figures::micro_usd(&figures::usd(micro)), Some(micro));
    }
    assert_eq!(figures::usd(16_280), "0.016280");
    assert_eq!(figures::micro_usd("1.5"), None);
}

#[test]
fn a_transcript_that_was_cut_off_is_pointed_at() {
    let run = working(json!({}));
    let mut said = termination(Outcome::Completed, reasons::COMPLETED);
    said.acknowledged = 4;
    let status = ended(&run, said);
    assert_eq!(status.transcript_missing_from, Some(5));
    assert_eq!(
        record::of(&run, &status).unwrap().transcript_missing_from,
        Some(5)
    );
}

#[test]
fn a_run_in_the_ledger_has_its_workspace_session_and_task() {
    let run =
        run(json!({"spec": {"session": {"name": "parser"}, "workspace": {"persistent": true}}}));
    let holder = workspace(Some((UID, "hello")));
    let state = Observed {
        workspace: Some(holder.clone()),
        ..observed(run.clone())
    };
    let status = decide(&made(&state), 1).status.unwrap();
    let row = record::of(&run, &status).unwrap();
    assert_eq!(row.workspace_id.unwrap().to_string(), holder.uid);
    assert_eq!(
        (row.session_name.as_str(), row.task.as_deref()),
        ("parser", Some("Say hello."))
    );
    assert_eq!(
        status.workspace.as_deref(),
        Some("parser"),
        "named after its session"
    );
    assert_eq!(
        status.session_id.unwrap(),
        crate::ids::session("runs", "parser").to_string()
    );
}

#[test]
fn a_push_that_was_wanted_is_told_in_a_condition_of_its_own() {
    let delivered = |pushed: Option<&str>, undelivered: Option<&str>| {
        let mut said = termination(Outcome::Completed, reasons::COMPLETED);
        let git = said.git.as_mut().unwrap();
        git.pushed = pushed.map(str::to_owned);
        git.undelivered = undelivered.map(str::to_owned);
        let run = working(json!({}));
        let status = ended(&run, said);
        let of = |c: &&Condition| c.type_ == crate::names::conditions::DELIVERED;
        let told = status.conditions.iter().find(of).cloned();
        let row = record::of(&run, &status).unwrap().changes.unwrap();
        assert_eq!(row.undelivered.as_deref(), undelivered);
        told.map(|c| (c.status, c.reason, c.message))
    };
    let told = |status: &str, reason: &str, message: &str| {
        Some((status.to_owned(), reason.to_owned(), message.to_owned()))
    };
    assert_eq!(delivered(None, None), None);
    let at = format!("Branch x is at {}.", "b".repeat(40));
    assert_eq!(
        delivered(Some("x"), None),
        told("True", reasons::PUSHED, &at)
    );
    assert_eq!(
        delivered(None, Some(reasons::PUSH_CONFLICT)),
        told("False", reasons::PUSH_CONFLICT, "Done.")
    );
}

#[test]
fn a_run_that_is_to_be_stopped_says_how_and_when_that_was_asked_for() {
    let asked = |run: &WorkflowRun| record::of(run, run.status.as_ref().unwrap()).unwrap().kill;
    let run = working(json!({}));
    assert_eq!(asked(&run), None);
    let mut stopped = killed(run.clone());
    let entry = |manager: &str, fields: Value| json!({"manager": manager, "time": at(30).to_string(), "fieldsType": "FieldsV1", "fieldsV1": fields});
    let entries = json!([
        entry("creator", json!({"f:spec": {"f:task": {}}})),
        entry("kubectl-patch", json!({"f:spec": {"f:desiredState": {}}})),
    ]);
    stopped.metadata.managed_fields = serde_json::from_value(entries.clone()).unwrap();
    watches::strip_run(&mut stopped);
    assert_eq!(stopped.metadata.managed_fields.as_ref().unwrap().len(), 1);
    assert_eq!(
        asked(&stopped),
        Some(Kill {
            request: KillRequest::DesiredState,
            at: Some(at(30)),
            manager: Some("kubectl-patch".to_owned()),
        })
    );
    let mut kept = run.clone();
    kept.metadata.managed_fields = serde_json::from_value(entries).unwrap();
    watches::strip_run(&mut kept);
    assert_eq!(kept.metadata.managed_fields, None, "of no use to others");
    let deletion = Some(Kill {
        request: KillRequest::Deletion,
        at: Some(at(20)),
        manager: None,
    });
    assert_eq!(asked(&deleted(run.clone())), deletion);
    let over = |reason: &str, phase| {
        let mut run = deleted(run.clone());
        let status = run.status.as_mut().unwrap();
        status.phase = phase;
        status.reason = Some(reason.to_owned());
        run
    };
    assert_eq!(asked(&over(reasons::DELETED, Phase::Killed)), deletion);
    let cleared_away = over(reasons::COMPLETED, Phase::Completed);
    assert_eq!(asked(&cleared_away), None, "it had ended before");
}
