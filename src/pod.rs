//! What controller, supervisor and agent agree on inside a run's pod: container names, paths,
//! ports, and the [`Assignment`] that the controller hands to the supervisor. It owns no behaviour:
//! the controller builds the pod, the supervisor and the agent act in it.

use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use crate::api::repository::OnReuse;

/// Container names.
pub mod containers {
    /// Native sidecar: `runledger supervise`. It brings the static binary into the agent's container.
    pub const SUPERVISOR: &str = "supervisor";
    /// Main container: `runledger agent`, in any image.
    pub const AGENT: &str = "agent";
}

/// Mount points and files.
pub mod paths {
    /// The checkout, in both containers (subPath `work`).
    pub const WORK: &str = "/workspace";
    /// HOME of the agent (subPath `home/<session id>`).
    pub const HOME: &str = "/home/agent";
    /// Supervisor only (subPath `state`): journals and the trusted git dir.
    pub const STATE: &str = "/state";
    /// An emptyDir in memory that both see: the first nonce of the door passes here.
    pub const DOOR: &str = "/run/runledger";
    /// The door's first nonce; the agent reads and unlinks it before it starts anything.
    pub const NONCE: &str = "/run/runledger/nonce";
    /// Folder of the agent's that the binary is in (emptyDir, read-only).
    pub const BIN: &str = "/runledger";
    /// Where the supervisor has that folder, to put the binary into; in Runledger's own image,
    /// [`BIN`] is the binary itself.
    pub const INSTALL: &str = "/install";
    /// Volume of what the controller and the kubelet tell the supervisor: the assignment as a file.
    pub const ASSIGNMENT: &str = "/etc/runledger/given/assignment";
    /// The task as a file, from the annotation.
    pub const TASK: &str = "/etc/runledger/given/task";
    /// The task as a file, from `taskFrom.configMapKeyRef` (its key is mounted as `task`).
    pub const TASK_FROM: &str = "/etc/runledger/task/task";
    /// The model's Secret, mounted whole: `ANTHROPIC_API_KEY`, `hosts`.
    pub const MODEL_SECRET: &str = "/etc/runledger/model";
    /// The repository's Secret, mounted whole: `username`, `password`, `hosts`, `ca.crt`.
    pub const GIT_SECRET: &str = "/etc/runledger/git";
    /// The projected token for the server.
    pub const TOKEN: &str = "/etc/runledger/given/token";
    /// Kubernetes' termination message, of the supervisor.
    pub const TERMINATION: &str = "/dev/termination-log";
}

/// Ports. Both doors listen on 127.0.0.1 only.
pub mod ports {
    /// The metering proxy: the agent's `ANTHROPIC_BASE_URL`.
    pub const PROXY: u16 = 7080;
    /// The door: the agent's one event connection ([`crate::wire::door`]).
    pub const DOOR: u16 = 7081;
    /// On the pod's address: `GET /started` is 200 once the checkout is there. The startup probe
    /// asks it, so that the agent's container starts only then.
    pub const STARTED: u16 = 7082;
    /// The server's port (TLS).
    pub const SERVER: u16 = 8443;
}

/// What a supervisor is to do, written by the controller as JSON into the pod's annotation
/// [`crate::names::annotations::ASSIGNMENT`]. Holds no secret. The task is beside it, not in it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assignment {
    /// The run's `metadata.uid`: the ledger's run_id.
    pub run_id: Uuid,
    /// The run's namespace.
    pub namespace: String,
    /// The run's name.
    pub name: String,
    /// From 1.
    pub attempt: u32,
    /// `spec.workflowName`.
    pub workflow_name: String,
    /// The session ([`crate::ids::session`]).
    pub session_id: Uuid,
    /// The session's name.
    pub session_name: String,
    /// False where the volume is an emptyDir.
    pub persistent: bool,
    /// What to check out; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryAssignment>,
    /// How to drive the CLI.
    pub agent: AgentAssignment,
    /// `limits.timeout` in seconds, from the agent's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Where the model's Messages API is. The one upstream of the metering proxy.
    pub model: ModelEndpoint,
    /// Where events go.
    pub server: ServerEndpoint,
    /// How long the seal waits for its flush, in seconds.
    pub flush_timeout_seconds: u64,
}

/// The repository of an [`Assignment`].
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepositoryAssignment {
    /// https or http, without credentials.
    pub url: Url,
    /// Branch, tag or commit to check out; the remote's default branch where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// So many commits of history; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// What becomes of what an earlier run left.
    #[serde(default)]
    pub on_reuse: OnReuse,
    /// PEM bundle that the host's certificate may chain to, beside the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// A Secret is mounted at [`paths::GIT_SECRET`].
    pub has_secret: bool,
    /// What to deliver; nothing where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushAssignment>,
}

impl RepositoryAssignment {
    /// The default branch, whole, without a Secret; nothing is delivered.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            branch: None,
            depth: None,
            on_reuse: OnReuse::Keep,
            ca: None,
            has_secret: false,
            push: None,
        }
    }
}

/// Delivery of an [`Assignment`].
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushAssignment {
    /// Push also the work of a run that did not end well.
    pub always: bool,
    /// Name of the remote branch, without `refs/heads/`.
    pub branch: String,
    /// Protected branches that may be pushed to all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_protected: Vec<String>,
}

/// The CLI's options of an [`Assignment`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentAssignment {
    /// `--model`; the CLI's own default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `--max-turns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
}

/// The model's API.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelEndpoint {
    /// Base URL, e.g. `https://api.anthropic.com`.
    pub url: Url,
    /// PEM bundle that its certificate must chain to, beside the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// Runledger's server, as a supervisor sees it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerEndpoint {
    /// Base URL, e.g. `https://runledger-server.runledger-system.svc:8443`.
    pub url: Url,
    /// PEM bundle that its certificate must chain to (and nothing else).
    pub ca: String,
}
