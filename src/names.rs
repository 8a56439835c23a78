//! Every name that others can see or rely on: the API group, finalizers, labels, annotations,
//! condition types and reasons. Grep here finds each use; nothing else spells them out.

/// API group of all our custom resources.
pub const GROUP: &str = "runledger.dev";
/// Version of the custom resources.
pub const VERSION: &str = "v1alpha1";
/// Field manager of the controller's writes.
pub const FIELD_MANAGER: &str = "runledger-controller";
/// Who tells a run's owner what its supervisor has to say, in Events.
pub const TELLER: &str = "runledger-server";
/// The chart's MutatingAdmissionPolicy, and its binding: runs have [`finalizers::RUN`] as they are made.
pub const ADMISSION_POLICY: &str = "runledger-runs";
/// What tells the controller's own pods, as the chart labels them.
pub const CONTROLLER_PODS: &str =
    "app.kubernetes.io/name=runledger,app.kubernetes.io/component=controller";
/// Audience of the projected token that a supervisor shows to the server.
pub const TOKEN_AUDIENCE: &str = "runledger";

/// Finalizers, one for each object that must not vanish before its end is written down.
pub mod finalizers {
    /// On a WorkflowRun, until its final row is in the ledger.
    pub const RUN: &str = "runledger.dev/ledger";
    /// On a run's pod, until its end is in the run's status.
    pub const POD: &str = "runledger.dev/run";
    /// On a Workspace, until no pod uses its volume.
    pub const WORKSPACE: &str = "runledger.dev/workspace";
}

/// Labels that the controller puts on what it makes.
pub mod labels {
    /// `runledger`, on every object of ours.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Value of [`MANAGED_BY`].
    pub const MANAGED_BY_VALUE: &str = "runledger";
    /// The run's name (cut to 63 characters), on its pod.
    pub const RUN: &str = "runledger.dev/run";
    /// The run's uid, on its pod.
    pub const RUN_UID: &str = "runledger.dev/run-uid";
    /// The attempt, from 1, on its pod.
    pub const ATTEMPT: &str = "runledger.dev/attempt";
    /// The Workspace's name, on its PVC.
    pub const WORKSPACE: &str = "runledger.dev/workspace";
}

/// Annotations.
pub mod annotations {
    /// On a WorkflowRun: `"true"` lets it be deleted though its final row is not in the ledger,
    /// or its pod has not ended.
    pub const SKIP_LEDGER: &str = "runledger.dev/skip-ledger";
    /// On a run's pod: the supervisor's [`crate::pod::Assignment`] as JSON.
    pub const ASSIGNMENT: &str = "runledger.dev/assignment";
    /// On a run's pod: the task, as it was written (absent with `taskFrom`).
    pub const TASK: &str = "runledger.dev/task";
}

/// Types of the conditions in `status.conditions`.
pub mod conditions {
    /// The run has ended well (kstatus).
    pub const READY: &str = "Ready";
    /// The run is on its way (kstatus).
    pub const RECONCILING: &str = "Reconciling";
    /// The run has ended badly, or can't go on (kstatus).
    pub const STALLED: &str = "Stalled";
    /// The spec was understood.
    pub const ACCEPTED: &str = "Accepted";
    /// The run holds its workspace.
    pub const WORKSPACE_READY: &str = "WorkspaceReady";
    /// The run's commits are on the branch that they were to be pushed to; absent where no push
    /// was wanted.
    pub const DELIVERED: &str = "Delivered";
    /// The final row is in the ledger.
    pub const RECORDED: &str = "Recorded";
}

/// Reasons: of a run's phase, of conditions and of Events.
pub mod reasons {
    // What a pending run waits for.
    /// Nothing has been looked at yet.
    pub const ACCEPTED: &str = "Accepted";
    /// Another run holds the workspace.
    pub const WORKSPACE: &str = "Workspace";
    /// The pod has no node yet.
    pub const SCHEDULING: &str = "Scheduling";
    /// An image can't be pulled, or is being pulled.
    pub const IMAGE: &str = "Image";
    /// A volume can't be provisioned, mounted or written.
    pub const VOLUME: &str = "Volume";
    /// The supervisor is fetching the repository.
    pub const CHECKOUT: &str = "Checkout";
    /// Of Events: what the checkout left as it is, or saved, or could not have.
    pub const CHECKED_OUT: &str = "CheckedOut";
    /// Of Events: how far a long checkout has come.
    pub const CHECKOUT_PROGRESS: &str = "CheckoutProgress";
    /// A Secret (or a key of one) is not there.
    pub const MISSING_SECRET: &str = "MissingSecret";
    /// A ConfigMap (or a key of one) is not there.
    pub const MISSING_CONFIG_MAP: &str = "MissingConfigMap";
    /// The StorageClass is not there.
    pub const MISSING_STORAGE_CLASS: &str = "MissingStorageClass";
    /// The repository's host does not answer; it is tried again.
    pub const REPOSITORY_UNREACHABLE: &str = "RepositoryUnreachable";
    /// The repository refused the credentials, or wants some (an end only where the run names no Secret).
    pub const AUTHENTICATION_FAILED: &str = "AuthenticationFailed";
    /// A Secret does not name the host that it would be sent to.
    pub const HOST_NOT_ALLOWED: &str = "HostNotAllowed";
    /// The repository's host shows a key that `known_hosts` of the Secret does not hold.
    pub const HOST_KEY_UNKNOWN: &str = "HostKeyUnknown";
    /// The API server, its admission or the node refused the pod.
    pub const POD_REFUSED: &str = "PodRefused";

    // A run that is at work.
    /// The agent runs.
    pub const AGENT_RUNNING: &str = "AgentRunning";
    /// The pod was lost with its node; a new attempt is on its way.
    pub const RECOVERING: &str = "Recovering";

    // Ends.
    /// The agent finished its task.
    pub const COMPLETED: &str = "Completed";
    /// The spec can't be carried out; the message names the field.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The repository or its branch does not exist, or can't be used.
    pub const CHECKOUT_FAILED: &str = "CheckoutFailed";
    /// The model's API answered with an error that retries did not cure.
    pub const MODEL_ERROR: &str = "ModelError";
    /// `agent.maxTurns` was used up.
    pub const MAX_TURNS_REACHED: &str = "MaxTurnsReached";
    /// The CLI ended without a result.
    pub const AGENT_CRASHED: &str = "AgentCrashed";
    /// The agent's container ran out of memory.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// The pod used more of its volume than its own limits allow, or all of it.
    pub const OUT_OF_DISK: &str = "OutOfDisk";
    /// A process of the agent took a port of the supervisor's while that was being restarted.
    pub const PORT_TAKEN: &str = "PortTaken";
    /// `limits.timeout` passed.
    pub const TIMEOUT: &str = "Timeout";
    /// Of the condition Delivered: the branch points at the final commit.
    pub const PUSHED: &str = "Pushed";
    /// The task was done, but the branch holds commits that the run has not built upon.
    pub const PUSH_CONFLICT: &str = "PushConflict";
    /// The task was done, but the branch could not be pushed for another reason.
    pub const PUSH_FAILED: &str = "PushFailed";
    /// The pod was lost more often than is allowed.
    pub const LOST_TOO_OFTEN: &str = "LostTooOften";
    /// `desiredState` is Killed.
    pub const KILLED: &str = "Killed";
    /// The run was deleted before its end.
    pub const DELETED: &str = "Deleted";
    /// The ledger could not be reached; the row is written later.
    pub const LEDGER_UNREACHABLE: &str = "LedgerUnreachable";
}
