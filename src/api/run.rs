//! WorkflowRun: what to do once.

// The derived schemas repeat each struct, `pub` and all, inside a function.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::repository::Repository;
use super::rules;

pub use status::{AttemptStatus, GitStatus, Resolved, UsageStatus, WorkflowRunStatus};

mod status;

/// What to do once: this task, on this repository, in this session, on this workspace.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "runledger.dev",
    version = "v1alpha1",
    kind = "WorkflowRun",
    plural = "workflowruns",
    singular = "workflowrun",
    shortname = "wfr",
    category = "runledger",
    namespaced,
    status = "WorkflowRunStatus",
    derive = "PartialEq",
    doc = "A task that the Claude SDK works on once, in a pod, and what came of it.",
    printcolumn = r#"{"name": "Workflow", "type": "string", "jsonPath": ".spec.workflowName"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason"}"#,
    printcolumn = r#"{"name": "Turns", "type": "integer", "jsonPath": ".status.usage.turns"}"#,
    printcolumn = r#"{"name": "Tokens", "type": "integer", "jsonPath": ".status.usage.totalTokens"}"#,
    printcolumn = r#"{"name": "Cost", "type": "string", "jsonPath": ".status.usage.costUSD"}"#,
    printcolumn = r#"{"name": "Changes", "type": "string", "jsonPath": ".status.changes"}"#,
    printcolumn = r#"{"name": "Duration", "type": "string", "jsonPath": ".status.duration"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name": "Branch", "type": "string", "jsonPath": ".status.git.branch", "priority": 1}"#,
    printcolumn = r#"{"name": "Commit", "type": "string", "jsonPath": ".status.git.finalCommit", "priority": 1}"#,
    printcolumn = r#"{"name": "Session", "type": "string", "jsonPath": ".status.session", "priority": 1}"#,
    printcolumn = r#"{"name": "Workspace", "type": "string", "jsonPath": ".status.workspace", "priority": 1}"#,
    printcolumn = r#"{"name": "Model", "type": "string", "jsonPath": ".status.model", "priority": 1}"#
)]
#[x_kube(
    validation = rules::one_task(),
    // Of `taskFrom` too, by the rule above.
    validation = rules::fixed_presence("task"),
    validation = rules::fixed_presence("session"),
    validation = rules::fixed_presence("repository")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRunSpec {
    /// What kind of work this is, e.g. `builder`, `surgeon`, `reviewer`.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::label("spec.workflowName", "what kind of work this is, e.g. builder"), validation = rules::fixed("workflowName"))]
    pub workflow_name: String,
    /// What the agent is asked to do. Longer tasks go into a ConfigMap (`taskFrom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // Above the rule, so that the rule is what speaks; but a rule's refusal repeats the value, which
    // for a task of megabytes would be all that a person sees.
    #[schemars(length(max = 100_000))]
    #[x_kube(validation = rules::task_is_not_blank(), validation = rules::task_is_short(), validation = rules::task_has_no_nul(), validation = rules::fixed("task"))]
    pub task: Option<String>,
    /// Where the task is, if it is not in `task`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::fixed("taskFrom"), merge_strategy = MapMerge::Atomic)]
    pub task_from: Option<TaskFrom>,
    /// The conversation that the run belongs to; one of its own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::fixed("session"), merge_strategy = MapMerge::Atomic)]
    pub session: Option<SessionRef>,
    /// The repository to work on; an empty folder where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::fixed("repository"), merge_strategy = MapMerge::Atomic)]
    pub repository: Option<Repository>,
    /// The volume to work on.
    #[serde(default)]
    #[x_kube(validation = rules::fixed("workspace"), merge_strategy = MapMerge::Atomic)]
    pub workspace: RunWorkspace,
    /// Which agent works.
    #[serde(default)]
    #[x_kube(validation = rules::fixed("agent"), merge_strategy = MapMerge::Atomic)]
    pub agent: Agent,
    /// Where it is stopped.
    #[serde(default)]
    #[x_kube(validation = rules::fixed("limits"), merge_strategy = MapMerge::Atomic)]
    pub limits: Limits,
    /// `Killed` stops the run for good.
    #[serde(default)]
    #[x_kube(validation = rules::one_way())]
    pub desired_state: DesiredState,
    /// What of the pod can be chosen.
    #[serde(default)]
    #[x_kube(validation = rules::fixed("podTemplate"), merge_strategy = MapMerge::Atomic)]
    pub pod_template: PodTemplate,
}

/// A task that is not in the manifest. Never a Secret: the ledger keeps the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskFrom {
    /// A key of a ConfigMap in the run's namespace.
    pub config_map_key_ref: ConfigMapKeyRef,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("spec.taskFrom.configMapKeyRef.name", "ConfigMap"))]
    pub name: String,
    /// Its key.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::config_key("spec.taskFrom.configMapKeyRef.key"))]
    pub key: String,
}

/// A session by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionRef {
    /// Unique in the namespace.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::object_name("spec.session.name", "session"))]
    pub name: String,
}

/// The volume that a run works on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunWorkspace {
    /// Workspace of this namespace; after the session where absent, else after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::object_name("spec.workspace.name", "Workspace"))]
    pub name: Option<String>,
    /// Whether the volume outlives the run. `false`: an emptyDir, lost with the pod.
    #[serde(default = "yes")]
    pub persistent: bool,
    /// Size of a volume that is made for this run (and size limit of an emptyDir).
    #[serde(default = "default_size")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::size("spec.workspace.size"))]
    pub size: String,
    /// StorageClass of a volume that is made for this run; the cluster's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::cluster_object_name("spec.workspace.storageClassName", "StorageClass"))]
    pub storage_class_name: Option<String>,
}

impl Default for RunWorkspace {
    fn default() -> Self {
        Self {
            name: None,
            persistent: true,
            size: default_size(),
            storage_class_name: None,
        }
    }
}

fn yes() -> bool {
    true
}

fn default_size() -> String {
    "10Gi".to_owned()
}

/// Which agent works. What is left out comes from the controller's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Any image with the Claude CLI on its PATH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::image())]
    pub image: Option<String>,
    /// Model name or alias, as the CLI takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = rules::model())]
    pub model: Option<String>,
    /// Most turns of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_turns: Option<u32>,
    /// Secret with key `ANTHROPIC_API_KEY` (and `hosts`, if not for api.anthropic.com).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("spec.agent.secretName", "Secret"))]
    pub secret_name: Option<String>,
}

/// Where a run is stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Longest time from the agent's start, e.g. `45m`, `2h30m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::timeout())]
    pub timeout: Option<String>,
}

/// What the user wants of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DesiredState {
    /// Let it run.
    #[default]
    Running,
    /// Stop it for good.
    Killed,
}

/// What of a run's pod can be chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Of the agent's container, in the place of the controller's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "rules::resources")]
    pub resources: Option<ResourceRequirements>,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// RuntimeClass, e.g. of gVisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::cluster_object_name("spec.podTemplate.runtimeClassName", "RuntimeClass"))]
    pub runtime_class_name: Option<String>,
    /// Secrets for pulling the agent's image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules::secret_names")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Added to the pod (`runledger.dev/…` is refused).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::labels")]
    #[x_kube(validation = rules::foreign_keys("spec.podTemplate.labels"))]
    pub labels: BTreeMap<String, String>,
    /// Added to the pod (`runledger.dev/…` is refused).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::annotations")]
    #[x_kube(validation = rules::foreign_keys("spec.podTemplate.annotations"))]
    pub annotations: BTreeMap<String, String>,
}

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Accepted, and waiting for what `reason` says.
    #[default]
    Pending,
    /// The agent works, or is being recovered.
    Running,
    /// The agent finished its task.
    Completed,
    /// Ended by what waiting can't cure.
    Failed,
    /// Stopped by desiredState, or deleted before its end.
    Killed,
}

impl Phase {
    /// Nothing comes after it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }
}
