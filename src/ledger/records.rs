//! The records that other parts hand to the ledger. No SQL and no client here, so that the pure
//! parts of the controller can build them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::api::run::Phase;
use crate::wire::{Changes, EarlierAttempt, Usage};

/// A phase in the ledger's words.
pub(super) fn status(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Running => "running",
        Phase::Completed => "completed",
        Phase::Failed => "failed",
        Phase::Killed => "killed",
    }
}

/// A run as the controller mirrors it: everything that it knows, each time. Written twice, late or
/// out of order it changes nothing that is already further on.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// The run's `metadata.uid`.
    pub run_id: Uuid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.workflowName`.
    pub workflow_name: String,
    /// The task, where the controller knows it (`spec.task`); the supervisor's first message fills
    /// it in otherwise.
    pub task: Option<String>,
    /// The session's id.
    pub session_id: Uuid,
    /// The session's name.
    pub session_name: String,
    /// `spec.repository.url`.
    pub repository: Option<String>,
    /// `spec.repository.branch`, replaced by the branch at the end.
    pub branch: Option<String>,
    /// Phase, in the CR's words.
    pub phase: Phase,
    /// Reason of the phase.
    pub reason: Option<String>,
    /// A sentence; for a run that ended badly it becomes `error_message`.
    pub message: Option<String>,
    /// Current attempt, from 1; 0 before the first pod.
    pub attempt: u32,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
    /// `status.startTime`.
    pub started_at: Option<Timestamp>,
    /// `status.completionTime`.
    pub completed_at: Option<Timestamp>,
    /// The Workspace's uid; nothing where the volume is an emptyDir.
    pub workspace_id: Option<Uuid>,
    /// Whether the volume outlives the run.
    pub workspace_persistent: bool,
    /// Where the checkout is, once that is known.
    pub workspace_path: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The agent's image, once it is resolved.
    pub agent_image: Option<String>,
    /// What was resolved of the spec: `model`, `maxTurns`, `timeout`.
    pub settings: Map<String, Value>,
    /// The model that answered, else the one that was asked for.
    pub model: Option<String>,
    /// The last attempt's own figures, once it has sealed itself.
    pub usage: Option<Usage>,
    /// Figures of earlier attempts that were handed in late.
    pub earlier: Vec<EarlierAttempt>,
    /// What changed, once the run is sealed.
    pub changes: Option<Changes>,
    /// From which sequence on the transcript is missing, should the flush have run out of time.
    pub transcript_missing_from: Option<u64>,
    /// Somebody asked for its end before it had ended by itself.
    pub kill: Option<Kill>,
}

/// How a run's end was asked for. The API server tells nobody who did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// What was done to it.
    pub request: KillRequest,
    /// When, where that is known.
    pub at: Option<Timestamp>,
    /// With which program, as that calls itself: its field manager.
    pub manager: Option<String>,
}

/// What somebody does to a WorkflowRun to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillRequest {
    /// `spec.desiredState` was set to Killed.
    DesiredState,
    /// It was deleted.
    Deletion,
}

/// A Workspace as the controller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceRecord {
    /// Its `metadata.uid`.
    pub id: Uuid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of its PersistentVolumeClaim, once that is made.
    pub claim: Option<String>,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
}
