//! Tests of the pure parts: what is decided, state by state, and what can never be decided.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clearing;
mod ends;
mod lifecycle;
mod pods;
mod purity;
mod simulation;
mod starts;
mod statuses;
mod time_limits;
mod troubles;
mod workspaces;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::WorkflowRun;
use crate::api::run::Phase;
use crate::names::{finalizers, labels};
use crate::wire::{Changes, Outcome, Termination, Tokens, Usage};

use super::config::Config;
use super::shapes::{CurrentPod, Observed, Plan, WorkspaceView};
use super::view::PodView;
use super::{naming, plan};

const UID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn config() -> Config {
    Config {
        image: "runledger:1".to_owned(),
        image_pull_policy: None,
        agent_image: "agent:1".to_owned(),
        model_secret: "anthropic".to_owned(),
        model: None,
        max_turns: None,
        agent_resources: None,
        agent_tmp_size: "10Gi".to_owned(),
        model_url: "https://api.anthropic.com".parse().unwrap(),
        model_ca: None,
        server_url: "https://runledger-server.runledger-system.svc:8443"
            .parse()
            .unwrap(),
        flush_timeout_seconds: 600,
    }
}

/// A run on an emptyDir that carries our finalizer; `with` is merged into the whole object.
fn run(with: Value) -> WorkflowRun {
    let mut value = json!({
        "apiVersion": "runledger.dev/v1alpha1",
        "kind": "WorkflowRun",
        "metadata": {
            "name": "hello", "namespace": "runs", "uid": UID, "generation": 1,
            "resourceVersion": "1", "creationTimestamp": at(0).to_string(),
            "finalizers": [finalizers::RUN],
        },
        "spec": {
            "workflowName": "builder", "task": "Say hello.",
            "workspace": {"persistent": false, "size": "1Gi"},
        },
    });
    merge(&mut value, with);
    serde_json::from_value(value).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(from) => {
            for (key, value) in from {
                merge(&mut into[key.as_str()], value);
            }
        }
        other => *into = other,
    }
}

fn observed(run: WorkflowRun) -> Observed {
    Observed {
        run: Arc::new(run),
        pod: CurrentPod::None,
        leftovers: Vec::new(),
        sightings: Vec::new(),
        workspace: None,
        claim: None,
        refusal: None,
        server_ca: Some(Arc::from("CA")),
        crowded: false,
    }
}

fn with_pod(run: WorkflowRun, pod: PodView) -> Observed {
    Observed {
        pod: CurrentPod::There(Box::new(pod)),
        ..observed(run)
    }
}

fn decide(observed: &Observed, seconds: i64) -> Plan {
    plan::plan(observed, &config(), at(seconds))
}

/// A plan that writes nothing.
fn is_idle(plan: &Plan) -> bool {
    let rest = Plan {
        again: plan.again,
        ..Plan::default()
    };
    *plan == rest
}

/// Phase and reason of the status that the plan writes.
fn says(plan: &Plan) -> (Phase, String) {
    let status = plan.status.as_ref().expect("a status");
    (status.phase, status.reason.clone().unwrap_or_default())
}

/// That condition of it.
fn condition(plan: &Plan, kind: &str) -> String {
    let status = plan.status.as_ref().unwrap();
    status
        .conditions
        .iter()
        .find(|c| c.type_ == kind)
        .map(|c| c.status.clone())
        .unwrap_or_default()
}

/// The run after its plan's status was written.
fn after(run: &WorkflowRun, plan: &Plan) -> WorkflowRun {
    let mut run = run.clone();
    if let Some(status) = &plan.status {
        run.status = Some(status.as_ref().clone());
    }
    run
}

/// The same a moment later: the pod is made.
fn made(state: &Observed) -> Observed {
    let attempt = decide(state, 1).pod.expect("a pod to be made").attempt;
    Observed {
        pod: CurrentPod::There(Box::new(new_pod(attempt))),
        ..state.clone()
    }
}

/// A run of which attempt 1 is a pod with uid `pod-1`.
fn attempted(with: Value) -> WorkflowRun {
    let run = run(with);
    let plan = decide(&made(&observed(run.clone())), 1);
    after(&run, &plan)
}

/// As [`attempted`], and its agent runs.
fn working(with: Value) -> WorkflowRun {
    let run = attempted(with);
    let plan = decide(&with_pod(run.clone(), running_pod(1)), 10);
    after(&run, &plan)
}

fn killed(mut run: WorkflowRun) -> WorkflowRun {
    run.spec.desired_state = crate::api::run::DesiredState::Killed;
    run
}

fn deleted(mut run: WorkflowRun) -> WorkflowRun {
    run.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(20)));
    run
}

fn pod(attempt: u32, status: Value) -> PodView {
    let value = json!({
        "metadata": {
            "name": naming::pod("hello", attempt), "namespace": "runs",
            "uid": format!("pod-{attempt}"), "creationTimestamp": at(1).to_string(),
            "finalizers": [finalizers::POD],
            "labels": {(labels::RUN_UID): UID, (labels::ATTEMPT): attempt.to_string()},
        },
        "status": status,
    });
    PodView::read(&serde_json::from_value(value).unwrap())
}

/// A pod of which nothing is known yet but that it was made.
fn new_pod(attempt: u32) -> PodView {
    pod(attempt, json!({"phase": "Pending"}))
}

/// A pod that no node has room for.
fn unscheduled_pod(attempt: u32) -> PodView {
    pod(
        attempt,
        json!({"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        }]}),
    )
}

fn conditions(ready_to_start: bool) -> Value {
    let sandbox = if ready_to_start { "True" } else { "False" };
    json!([
        {"type": "PodScheduled", "status": "True"},
        {"type": "PodReadyToStartContainers", "status": sandbox},
    ])
}

fn running_pod(attempt: u32) -> PodView {
    pod(
        attempt,
        json!({
            "phase": "Running",
            "conditions": conditions(true),
            "initContainerStatuses": [
                started("supervisor", json!({"running": {"startedAt": at(3).to_string()}})),
            ],
            "containerStatuses": [started("agent", json!({"running": {"startedAt": at(5).to_string()}}))],
        }),
    )
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "i:1", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn started(name: &str, state: Value) -> Value {
    let mut status = status(name, state);
    status["started"] = json!(true);
    status
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {
        "exitCode": code, "reason": reason, "message": message,
        "startedAt": at(5).to_string(), "finishedAt": at(65).to_string(),
    }})
}

/// A pod that has ended, with that termination message of its supervisor.
fn ended_pod(attempt: u32, message: &str) -> PodView {
    let phase = if message.contains("completed") {
        "Succeeded"
    } else {
        "Failed"
    };
    pod(
        attempt,
        json!({
            "phase": phase,
            "conditions": conditions(true),
            "initContainerStatuses": [
                started("supervisor", terminated(0, "Completed", message)),
            ],
            "containerStatuses": [started("agent", terminated(0, "Completed", ""))],
        }),
    )
}

fn usage(n: u64) -> Usage {
    Usage {
        tokens: Tokens {
            input: n,
            output: 2 * n,
            cache_read: 3 * n,
            cache_creation: 4 * n,
        },
        cost_micro_usd: Some(16_280 * n),
        turns: 2,
        requests: 3,
        estimated_requests: 0,
    }
}

fn termination(outcome: Outcome, reason: &str) -> Termination {
    Termination {
        outcome,
        reason: reason.to_owned(),
        message: "A sentence.".to_owned(),
        usage: usage(1),
        earlier: Vec::new(),
        model: Some("claude-1".to_owned()),
        git: Some(Changes {
            repository: "https://git.example.com/a".to_owned(),
            branch: "main".to_owned(),
            initial_commit: "a".repeat(40),
            final_commit: "b".repeat(40),
            commits: 1,
            files: 3,
            added: 40,
            removed: 2,
            pushed: None,
            undelivered: None,
            stats: None,
        }),
        sequence: 9,
        acknowledged: 9,
    }
}

fn said(termination: &Termination) -> String {
    serde_json::to_string(termination).unwrap()
}

fn workspace(holder: Option<(&str, &str)>) -> WorkspaceView {
    WorkspaceView {
        uid: "0b5b7c3e-6c3c-4a39-9c53-3a6b1ac0a6f1".to_owned(),
        holder: holder.map(|(uid, _)| uid.to_owned()),
        holder_name: holder.map(|(_, name)| name.to_owned()),
        claim_name: Some("workspace-hello".to_owned()),
        trouble: None,
        deleting: false,
        size: "1Gi".to_owned(),
        storage_class_name: None,
    }
}
