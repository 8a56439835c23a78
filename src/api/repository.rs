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
    /// https, http or ssh URL without credentials, e.g. `ssh://git@git.example.com/team/a.git`.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = rules::repository_url())]
    pub url: String,
    /// Branch, tag or full name of a commit to check out, looked for in this order; the remote's
    /// default branch where absent. What becomes of a workspace that holds the repository already,
    /// onReuse says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244))]
    #[x_kube(validation = rules::branch("spec.repository.branch"))]
    pub branch: Option<String>,
    /// So many commits of history, counted from the tip; all where absent. Holds for the first
    /// checkout of a workspace. A commit that no branch points at may come with all its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub depth: Option<u32>,
    /// What becomes of a workspace that holds the repository already, once it is fetched.
    #[serde(default)]
    pub on_reuse: OnReuse,
    /// Secret with `hosts` and, for https, `username`, `password` (`ca.crt` for a private CA); for
    /// ssh, `ssh-privatekey` and `known_hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name("spec.repository.secretName", "Secret"))]
    pub secret_name: Option<String>,
    /// Certificates in PEM that the host's may chain to, beside the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    #[x_kube(validation = rules::certificates("spec.repository.caBundle"))]
    pub ca_bundle: Option<String>,
    /// Author and committer of the agent's commits; Claude <noreply@anthropic.com> where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<Author>,
    /// Whether and where to deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Push>,
}

/// What becomes of what an earlier run left in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnReuse {
    /// It stays as it is, uncommitted work included.
    #[default]
    Keep,
    /// It goes on to the remote's branch where nothing is uncommitted and all of HEAD is on the
    /// remote; otherwise it stays, and an Event says why.
    Update,
    /// The remote's branch takes its place. What the remote does not have, uncommitted work
    /// included, is saved at refs/runledger/backup/ first, and an Event says where.
    Reset,
}

/// Whose name stands on commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Author {
    /// As in `git config user.name`.
    #[schemars(length(max = 128))]
    #[x_kube(validation = rules::author("spec.repository.author.name", "a name"))]
    pub name: String,
    /// As in `git config user.email`.
    #[schemars(length(max = 254))]
    #[x_kube(validation = rules::author("spec.repository.author.email", "an address"))]
    pub email: String,
}

/// Delivery of a run's commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::push_has_branch(), validation = rules::unprotected())]
pub struct Push {
    /// When to push.
    #[serde(default)]
    pub when: PushWhen,
    /// Remote branch that the final commit is pushed to, fast-forward only. `{run}`, `{uid}`,
    /// `{namespace}`, `{session}` and `{workflow}` in it stand for the run's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 244))]
    #[x_kube(validation = rules::branch("spec.repository.push.branch"), validation = rules::placeholders())]
    pub branch: Option<String>,
    /// main, master and release/… are refused, but for those that are named here, in full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 244)))]
    pub allow_protected: Vec<String>,
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
