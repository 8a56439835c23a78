//! Workspace: a volume with a life of its own.

// The derived schemas repeat each struct, `pub` and all, inside a function.
#![allow(unreachable_pub)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// A volume with a life of its own: no run owns it, and one run at a time holds it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "runledger.dev",
    version = "v1alpha1",
    kind = "Workspace",
    plural = "workspaces",
    singular = "workspace",
    shortname = "wfws",
    category = "runledger",
    namespaced,
    status = "WorkspaceStatus",
    derive = "PartialEq",
    doc = "A volume with a life of its own, that runs work on one after the other.",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Holder", "type": "string", "jsonPath": ".status.holderName"}"#,
    printcolumn = r#"{"name": "Waiting", "type": "integer", "jsonPath": ".status.waiting"}"#,
    printcolumn = r#"{"name": "Size", "type": "string", "jsonPath": ".spec.size"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = rules::fixed_size(), validation = rules::fixed_class())]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceSpec {
    /// Size of its volume.
    #[serde(default = "default_size")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::size("spec.size"))]
    pub size: String,
    /// StorageClass of its volume; the cluster's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::cluster_object_name("spec.storageClassName", "StorageClass"))]
    pub storage_class_name: Option<String>,
}

fn default_size() -> String {
    "10Gi".to_owned()
}

/// What became of a Workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
// The controller writes it whole, and nobody else does.
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct WorkspaceStatus {
    /// Where the workspace is in its life.
    pub phase: WorkspacePhase,
    /// Name of the PersistentVolumeClaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
    /// Uid of the run that may use it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Name of that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_name: Option<String>,
    /// Runs that wait for it, first come first served.
    pub waiting: u32,
    /// When a run last let go of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Time>,
    /// Ready (kstatus).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Where a workspace is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkspacePhase {
    /// Its volume is not asked for yet, or has trouble.
    #[default]
    Pending,
    /// A run holds it.
    InUse,
    /// Nobody holds it.
    Available,
}
