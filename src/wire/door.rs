//! The door between agent and supervisor: frames of one line of JSON each, over one TCP connection on
//! 127.0.0.1. It owns the frames; who sends which when is the business of both ends.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Longest line, in bytes; a longer one closes the connection.
pub const MAX_LINE: usize = 8 * 1024 * 1024;
/// In a line of the CLI's that the agent had to alter: `true`.
pub const ALTERED: &str = "runledgerAltered";

/// From the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "frame",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub enum FromAgent {
    /// First frame: the nonce of the file, or the one that the last `Welcome` gave.
    Hello {
        /// Good for one connection.
        nonce: String,
    },
    /// The CLI is about to be started.
    Began {
        /// Counted like a line.
        number: u64,
        /// It takes the session's transcript up again, so that its cost includes what the
        /// session had cost before.
        resumed: bool,
    },
    /// A line of the CLI's stream-json, whole.
    Line {
        /// From 1; kept by the agent until acknowledged.
        number: u64,
        /// The line.
        line: Value,
    },
    /// Claude and every other process are gone; the agent waits for `Sealed`.
    Ended {
        /// Counted like a line.
        number: u64,
        /// How it ended.
        end: End,
    },
}

/// How the CLI ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Exit code, where it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal, where it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The container's cgroup counted an out-of-memory kill.
    pub out_of_memory: bool,
    /// The agent was told to stop (SIGTERM).
    pub terminated: bool,
    /// Last lines of stderr, at most 2 KiB.
    pub stderr: String,
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "frame",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub enum FromSupervisor {
    /// The nonce was good.
    Welcome {
        /// For the next connection, should this one break.
        next_nonce: String,
        /// Highest number that is journalled.
        acknowledged: u64,
        /// What to run.
        start: Box<Start>,
    },
    /// Every line up to this one is journalled.
    Acknowledged {
        /// As in `Line`.
        number: u64,
    },
    /// Stop Claude (as on SIGTERM), then report.
    Stop,
    /// The run is sealed: exit.
    Sealed {
        /// The agent's exit code, from which the pod's phase follows.
        exit_code: i32,
    },
}

/// How to run the CLI.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// The first user message.
    pub task: String,
    /// `--session-id`, or `--resume` where its transcript is in HOME.
    pub session_id: Uuid,
    /// `--model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `--max-turns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
}
