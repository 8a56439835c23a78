//! The termination message, which outlives the pod. It owns its shape and its size; the sentences and
//! figures in it are the supervisor's business.

use serde::{Deserialize, Serialize};

use super::Usage;
use crate::report::Report;

/// The supervisor's termination message: at most [`MAX_TERMINATION_BYTES`] of JSON, the only thing
/// that the controller reads of what went on in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// How it ended.
    pub outcome: Outcome,
    /// One of [`crate::names::reasons`].
    pub reason: String,
    /// A sentence for a person (cut to fit).
    pub message: String,
    /// Of this attempt.
    pub usage: Usage,
    /// Of earlier attempts of the run whose journals this pod found unsealed and handed in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierAttempt>,
    /// The model that answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What changed in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Changes>,
    /// Sequence of the attempt's last event.
    pub sequence: u64,
    /// Highest sequence that the server has acknowledged; below `sequence`, the rest of the
    /// transcript waits on the volume.
    pub acknowledged: u64,
}

/// Figures of an attempt that could not seal itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlierAttempt {
    /// Its number.
    pub attempt: u32,
    /// What it had used.
    pub usage: Usage,
}

/// Largest termination message, in bytes.
pub const MAX_TERMINATION_BYTES: usize = 1024;

/// How a pod's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The checkout could not be made; worth trying again (the kubelet restarts the supervisor).
    Waiting,
    /// The task was done.
    Completed,
    /// It was not.
    Failed,
    /// The pod was told to stop (SIGTERM) before the agent had ended.
    Stopped,
}

/// What changed between the initial and the final commit, as `git diff --numstat -M` counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// URL without credentials.
    pub repository: String,
    /// Branch at the end (`HEAD` where detached).
    pub branch: String,
    /// HEAD before the agent. Empty in an empty repository.
    pub initial_commit: String,
    /// HEAD after the agent.
    pub final_commit: String,
    /// Commits in `initial..final`.
    pub commits: u32,
    /// Files that differ.
    pub files: u32,
    /// Lines added.
    pub added: u64,
    /// Lines removed.
    pub removed: u64,
    /// The remote branch that now points at `final_commit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<String>,
    /// Why the push that was wanted did not come about: one of [`crate::names::reasons`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<String>,
    /// All of it, cut to [`crate::report::LEDGER_BYTES`]: in the event only, where there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Box<Report>>,
}

/// A termination inside an event: nested, since both have a `sequence`.
pub(super) mod nested {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Termination;

    #[derive(Serialize)]
    struct Of<'a> {
        termination: &'a Termination,
    }

    #[derive(Deserialize)]
    struct Owned {
        termination: Termination,
    }

    pub(in crate::wire) fn serialize<S: Serializer>(
        termination: &Termination,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Of { termination }.serialize(serializer)
    }

    pub(in crate::wire) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Termination, D::Error> {
        Ok(Owned::deserialize(deserializer)?.termination)
    }
}
