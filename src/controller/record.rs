//! The ledger's record of a run, made from the run and its status alone: what can be written late
//! is what the status still says. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::api::WorkflowRun;
use crate::api::run::{DesiredState, UsageStatus, WorkflowRunStatus};
use crate::ids;
use crate::ledger::records::{Kill, KillRequest, RunRecord};
use crate::names::{conditions, reasons};
use crate::wire::{Changes, EarlierAttempt, Tokens, Usage};

use super::{figures, naming, validate};

/// The record; nothing for a run without a uid or an age, which no API server hands out.
pub(super) fn of(run: &WorkflowRun, status: &WorkflowRunStatus) -> Option<RunRecord> {
    let spec = &run.spec;
    let namespace = run.metadata.namespace.clone().unwrap_or_default();
    let session_name = validate::session_name(run);
    let attempt = status.attempt.unwrap_or(0);
    let of_attempt = |number: u32| {
        status
            .attempts
            .iter()
            .find(|one| one.attempt == number)
            .and_then(|one| one.usage.as_ref())
            .map(usage)
    };
    let git = status.git.as_ref();
    Some(RunRecord {
        run_id: run.metadata.uid.as_deref()?.parse::<Uuid>().ok()?,
        session_id: ids::session(&namespace, &session_name),
        session_name,
        namespace,
        name: run.metadata.name.clone()?,
        workflow_name: spec.workflow_name.clone(),
        // The cache keeps no task of a run whose row is written.
        task: spec.task.clone().filter(|task| !task.is_empty()),
        repository: spec
            .repository
            .as_ref()
            .map(|repository| repository.url.clone()),
        branch: git
            .map(|git| git.branch.clone())
            .filter(|branch| !branch.is_empty())
            .or_else(|| spec.repository.as_ref().and_then(|r| r.branch.clone())),
        phase: status.phase,
        reason: status.reason.clone(),
        message: status.message.clone(),
        attempt,
        created_at: run.metadata.creation_timestamp.as_ref()?.0,
        started_at: status.start_time.as_ref().map(|time| time.0),
        completed_at: status.completion_time.as_ref().map(|time| time.0),
        workspace_id: status
            .workspace_uid
            .as_deref()
            .and_then(|uid| uid.parse().ok()),
        workspace_persistent: spec.workspace.persistent,
        workspace_path: workspace_path(run, status),
        labels: run.metadata.labels.clone().unwrap_or_default(),
        agent_image: status
            .resolved
            .as_ref()
            .map(|resolved| resolved.agent_image.clone()),
        settings: settings(run, status),
        model: status.model.clone().or_else(|| spec.agent.model.clone()),
        usage: of_attempt(attempt),
        earlier: (1..attempt)
            .filter_map(|number| {
                Some(EarlierAttempt {
                    attempt: number,
                    usage: of_attempt(number)?,
                })
            })
            .collect(),
        changes: git.map(|git| Changes {
            repository: git.repository.clone(),
            branch: git.branch.clone(),
            initial_commit: git.initial_commit.clone(),
            final_commit: git.final_commit.clone(),
            commits: git.commits,
            files: git.files,
            added: git.added,
            removed: git.removed,
            pushed: git.pushed.clone(),
            undelivered: undelivered(status),
            stats: None,
        }),
        transcript_missing_from: status.transcript_missing_from,
        kill: kill(run, status),
    })
}

/// Who set a field, the API server knows by their program only; who deleted, not even that.
fn kill(run: &WorkflowRun, status: &WorkflowRunStatus) -> Option<Kill> {
    let meta = &run.metadata;
    if run.spec.desired_state == DesiredState::Killed {
        let entry = meta
            .managed_fields
            .iter()
            .flatten()
            .find(|e| sets_the_desired_state(e));
        return Some(Kill {
            request: KillRequest::DesiredState,
            at: entry
                .and_then(|entry| entry.time.as_ref())
                .map(|time| time.0),
            manager: entry.and_then(|entry| entry.manager.clone()),
        });
    }
    let before_its_end =
        !status.phase.is_final() || status.reason.as_deref() == Some(reasons::DELETED);
    let deleted = meta
        .deletion_timestamp
        .as_ref()
        .filter(|_| before_its_end)?;
    Some(Kill {
        request: KillRequest::Deletion,
        at: Some(deleted.0),
        manager: None,
    })
}

/// Whether what the entry's manager wrote holds `spec.desiredState`.
pub(super) fn sets_the_desired_state(entry: &ManagedFieldsEntry) -> bool {
    let fields = entry.fields_v1.as_ref();
    fields.is_some_and(|fields| fields.0["f:spec"]["f:desiredState"].is_object())
}

/// On the Workspace's volume, or on that of the last pod.
fn workspace_path(run: &WorkflowRun, status: &WorkflowRunStatus) -> Option<String> {
    let namespace = run.metadata.namespace.as_deref()?;
    if run.spec.workspace.persistent {
        let claim = naming::claim(status.workspace.as_deref()?);
        Some(format!("pvc://{namespace}/{claim}/work"))
    } else {
        let pod = status.pod_name.as_deref()?;
        Some(format!("pod://{namespace}/{pod}/work"))
    }
}

/// What the spec left open and what limits it, as it was decided.
fn settings(run: &WorkflowRun, status: &WorkflowRunStatus) -> Map<String, Value> {
    let mut settings = Map::new();
    if let Some(resolved) = &status.resolved {
        if let Some(model) = &resolved.model {
            settings.insert("model".to_owned(), json!(model));
        }
        if let Some(turns) = resolved.max_turns {
            settings.insert("maxTurns".to_owned(), json!(turns));
        }
    }
    if let Some(timeout) = &run.spec.limits.timeout {
        settings.insert("timeout".to_owned(), json!(timeout));
    }
    settings
}

/// Why the push that was wanted did not come about, as the status has it.
fn undelivered(status: &WorkflowRunStatus) -> Option<String> {
    let is_it = |c: &&Condition| c.type_ == conditions::DELIVERED && c.status == "False";
    let condition = status.conditions.iter().find(is_it)?;
    Some(condition.reason.clone())
}

fn usage(usage: &UsageStatus) -> Usage {
    Usage {
        tokens: Tokens {
            input: usage.input_tokens,
            output: usage.output_tokens,
            cache_read: usage.cache_read_tokens,
            cache_creation: usage.cache_creation_tokens,
        },
        cost_micro_usd: usage.cost_usd.as_deref().and_then(figures::micro_usd),
        turns: usage.turns,
        requests: usage.requests,
        estimated_requests: usage.estimated_requests,
    }
}
