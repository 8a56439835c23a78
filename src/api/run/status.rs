//! What became of a run, as its status says it. It owns the shape; the controller's `status` fills it.

// The derived schemas repeat each struct, `pub` and all, inside a function.
#![allow(unreachable_pub)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Phase;

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
// The controller writes it whole, and nobody else does. Kept account of field by field, it would be a
// third of the object, and of what each write costs the API server.
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct WorkflowRunStatus {
    /// Where the run is in its life.
    pub phase: Phase,
    /// Why it is there, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is there, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Accepted, WorkspaceReady, Ready, Reconciling, Stalled, Delivered, Recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of the current pod, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Name of the current pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Uid of the current pod: the only one whose token the server accepts for this run.
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Id of the session in the ledger.
    #[serde(rename = "sessionID", skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Name of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Name of the Workspace; absent where the volume is an emptyDir.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Uid of the Workspace: the ledger's workspace_id.
    #[serde(rename = "workspaceUID", skip_serializing_if = "Option::is_none")]
    pub workspace_uid: Option<String>,
    /// When the agent first started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// From start to completion, for people, e.g. `1m4s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The model that answered, else the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tokens, cost and turns, over all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// What each attempt used, so that none is counted twice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["attempt"]))]
    pub attempts: Vec<AttemptStatus>,
    /// What changed in the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<GitStatus>,
    /// What changed, for people: `3 files +40 -2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<String>,
    /// The transcript is missing in the ledger from this event of the last attempt on, until the
    /// volume's next pod hands it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcript_missing_from: Option<u64>,
    /// What the spec left open, as it was decided for this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
}

/// Tokens by kind, cost and turns of a run over all its attempts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageStatus {
    /// Input tokens without cache.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Input tokens read from the cache.
    pub cache_read_tokens: u64,
    /// Input tokens written to the cache.
    pub cache_creation_tokens: u64,
    /// The sum of the four.
    pub total_tokens: u64,
    /// US dollars with six decimals, e.g. `0.016280`.
    #[serde(rename = "costUSD", skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<String>,
    /// The SDK's number of turns.
    pub turns: u32,
    /// Requests to the model.
    pub requests: u32,
    /// Those of them whose end was not seen, and whose tokens are estimates.
    #[serde(skip_serializing_if = "is_zero")]
    pub estimated_requests: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// What an attempt used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStatus {
    /// Its number, from 1.
    pub attempt: u32,
    /// Name of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Its figures; absent while it is not known what it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
}

/// What changed in the repository.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GitStatus {
    /// URL without credentials.
    pub repository: String,
    /// Branch at the end.
    pub branch: String,
    /// HEAD before the agent.
    pub initial_commit: String,
    /// HEAD after the agent.
    pub final_commit: String,
    /// Commits between.
    pub commits: u32,
    /// Files that differ.
    pub files: u32,
    /// Lines added.
    pub added: u64,
    /// Lines removed.
    pub removed: u64,
    /// The remote branch that was pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed: Option<String>,
}

/// What the spec left open, as it was decided for this run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resolved {
    /// Image of the agent.
    pub agent_image: String,
    /// Secret with the model's key.
    pub secret_name: String,
    /// Model, if one was named anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Most turns, if limited anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
}
