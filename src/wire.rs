//! What travels between a pod's parts and the server, and what outlives them: events and their
//! batches, the termination message, and the frames of the door between agent and supervisor.
//! It owns the shapes and their limits; who sends what when is the business of `supervise`,
//! `agent` and `server`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

pub use json::{MAX_DEPTH, MAX_VALUES, has_too_many_values, is_too_deep};
pub use termination::{Changes, EarlierAttempt, MAX_TERMINATION_BYTES, Outcome, Termination};

pub mod door;
mod json;
pub mod patch;
mod termination;

/// Tokens by kind. `input` excludes cache; the total is the sum of the four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Input tokens that no cache was involved in.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Input tokens read from the cache.
    pub cache_read: u64,
    /// Input tokens written to the cache.
    pub cache_creation: u64,
}

impl Tokens {
    /// The sum of the four kinds.
    pub fn total(&self) -> u64 {
        self.input
            .saturating_add(self.output)
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_creation)
    }
}

impl std::ops::Add for Tokens {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            cache_creation: self.cache_creation.saturating_add(other.cache_creation),
        }
    }
}

/// What an attempt has used so far: cumulative over the attempt, so that the same figures written
/// twice, or late, or out of order, change nothing (every writer takes the greater).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// As the metering proxy read them off the model's responses.
    pub tokens: Tokens,
    /// The SDK's cost of this attempt in micro-USD (its cumulative figure less what the session had
    /// cost before). Absent until the SDK has named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micro_usd: Option<u64>,
    /// The SDK's number of turns in this attempt.
    pub turns: u32,
    /// Requests to the Messages API that were metered.
    pub requests: u32,
    /// Those of them that never ended, whose figures are therefore estimates.
    pub estimated_requests: u32,
}

/// One event of a run. (run, attempt, sequence) is its key: sent twice, it changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// From 1, without gaps, within the attempt.
    pub sequence: u64,
    /// When the supervisor journalled it (UTC).
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What an [`Event`] says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub enum EventBody {
    /// The checkout is there and the agent may start.
    AttemptStarted {
        /// URL without credentials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repository: Option<String>,
        /// The branch that was checked out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        branch: Option<String>,
        /// HEAD before the agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initial_commit: Option<String>,
        /// What somebody should know of this checkout: submodules and Git LFS pointers that were
        /// left as they are. Sentences.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    /// The CLI has started, and said which one it is.
    AgentStarted {
        /// Its version, in its own words.
        version: String,
    },
    /// A message of the session.
    Message(Message),
    /// A request was accepted from the agent and goes to the model.
    RequestStarted {
        /// Counts from 1 within the attempt.
        request: u64,
        /// Size of its body.
        bytes: u64,
    },
    /// A request ended, or was found without an end after a crash.
    RequestEnded {
        /// As in `RequestStarted`.
        request: u64,
        /// HTTP status; absent where none came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// The model that answered, in the response's words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        /// The response's message id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message_id: Option<String>,
        /// Tokens of this request.
        tokens: Tokens,
        /// The stream did not end: the tokens are the best that is known.
        estimated: bool,
        /// From acceptance to end.
        milliseconds: u64,
        /// Of the attempt, this request included.
        usage: Usage,
    },
    /// The SDK's `result`.
    AgentResult {
        /// `success`, `error_max_turns`, `error_during_execution`, …
        subtype: String,
        /// The SDK's own flag (it can be true beside `success`).
        is_error: bool,
        /// The result's text.
        text: String,
        /// The SDK's session-wide cumulative cost, in micro-USD; absent where it named none that can
        /// be true.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_cost_micro_usd: Option<u64>,
        /// Of the attempt, this result included.
        usage: Usage,
    },
    /// Stands in the place of an event that was lost or can't be stored: sequences have no gaps.
    Omitted {
        /// What became of it.
        why: String,
    },
    /// What the run changed, once for each seal that was begun: the last one counts.
    Patch(Box<patch::Patch>),
    /// The run is sealed. The last event of an attempt.
    Sealed(#[serde(with = "termination::nested")] Termination),
}

/// A row of `messages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// [`crate::ids::message`].
    pub id: Uuid,
    /// Who speaks.
    pub role: Role,
    /// What kind of message it is.
    pub kind: MessageKind,
    /// Its text; may be empty beside tool calls.
    pub text: String,
    /// `tool_use` blocks as the API writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// `tool_result` blocks as the API writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_outputs: Vec<Value>,
    /// The model, where a model spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tokens of the API message, where a model spoke and the meter saw it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    /// Whose word this is.
    pub source: Source,
    /// It is not whole as it was said: something was too long, or is in no text (half of a surrogate
    /// pair, bytes that are not UTF-8).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub altered: bool,
}

/// Role of a [`Message`], in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The task, a human's word, a tool's result.
    User,
    /// The model.
    Assistant,
}

/// Kind of a [`Message`]: the column `message_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// The task.
    WorkflowStart,
    /// The model's text and tool calls.
    Assistant,
    /// Results of tool calls.
    ToolResult,
}

/// Whose word something is. What the agent says is hearsay: its shell can reach the same doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The supervisor itself.
    Supervisor,
    /// Read off the model's response by the metering proxy.
    Meter,
    /// Reported by the agent only.
    Agent,
}

/// Events on their way to the server: `POST /v1/namespaces/{namespace}/runs/{name}/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batch {
    /// The run that the events belong to (`metadata.uid`).
    pub run_id: Uuid,
    /// The attempt that they belong to.
    pub attempt: u32,
    /// The session that its messages go to.
    pub session_id: Uuid,
    /// The session's name, for the row's first writer.
    pub session_name: String,
    /// In order of sequence, without gaps.
    pub events: Vec<Event>,
}

/// Most events in a [`Batch`].
pub const MAX_BATCH_EVENTS: usize = 500;
/// Header of a request that hands in what an earlier, ended run left on the workspace: the name of
/// the run whose pod (and token) it is. The path names the earlier run.
pub const POD_RUN_HEADER: &str = "x-runledger-pod-run";
/// Largest body of a [`Batch`], in bytes of JSON. One event may be this large.
pub const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// How far a long checkout has come:
/// `POST /v1/namespaces/{namespace}/runs/{name}/checkout`. Kept nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckoutProgress {
    /// The run (`metadata.uid`).
    pub run_id: Uuid,
    /// Its attempt.
    pub attempt: u32,
    /// Its session.
    pub session_id: Uuid,
    /// Objects that have come.
    pub received_objects: u64,
    /// Objects that are to come.
    pub total_objects: u64,
    /// Bytes that have come.
    pub received_bytes: u64,
}

/// The server's answer to a [`Batch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchAccepted {
    /// Highest sequence up to which every event of the attempt is stored.
    pub acknowledged: u64,
}
