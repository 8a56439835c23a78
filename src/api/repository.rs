//! The repository of a WorkflowRun: what is checked out, and what is delivered.

// The derived schemas repeat each struct, `pub` and all, inside a function.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// The repository to work on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// https (or http) URL without credentials.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = rules::repository_url())]
    pub url: String,
    /// Branch to check out; the remote's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244))]
    #[x_kube(validation = rules::branch("spec.repository.branch"))]
    pub branch: Option<String>,
    /// Secret of type basic-auth (`username`, `password`, `hosts`; `ca.crt` for a private CA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("spec.repository.secretName", "Secret"))]
    pub secret_name: Option<String>,
    /// Whether and where to deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
}

/// Delivery of a run's commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::push_has_branch())]
pub struct Push {
    /// When to push.
    #[serde(default)]
    pub when: PushWhen,
    /// Remote branch that the final commit is pushed to, fast-forward only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244))]
    #[x_kube(validation = rules::branch("spec.repository.push.branch"), validation = rules::unprotected())]
    pub branch: Option<String>,
}

/// When to push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PushWhen {
    /// Commits stay in the workspace.
    #[default]
    Never,
    /// After a run that completed.
    OnSuccess,
    /// After every run.
    Always,
}
