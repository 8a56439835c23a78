//! What travels between a pod's parts and the server, and what outlives them: events and their
//! batches, the termination message, and the frames of the door between agent and supervisor.
//! It owns the shapes and their limits; who sends what when is the business of `supervise`,
//! `agent` and `server`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::report::Report;

pub mod door;
pub mod patch;

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
        /// The SDK's session-wide cumulative cost, in micro-USD.
        session_cost_micro_usd: u64,
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
    Sealed(#[serde(with = "nested")] Termination),
}

/// A termination inside an event: nested, since both have a `sequence`.
mod nested {
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

    pub(super) fn serialize<S: Serializer>(
        termination: &Termination,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Of { termination }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Termination, D::Error> {
        Ok(Owned::deserialize(deserializer)?.termination)
    }
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

/// Deepest JSON that is passed on as it came. Readers give up at 127 levels, and what is passed on is
/// wrapped in some more.
pub const MAX_DEPTH: usize = 64;

/// Whether a value is nested deeper than [`MAX_DEPTH`], so that the next reader might refuse it.
pub fn is_too_deep(value: &Value) -> bool {
    fn deeper(value: &Value, left: usize) -> bool {
        let Some(left) = left.checked_sub(1) else {
            return true;
        };
        match value {
            Value::Array(items) => items.iter().any(|item| deeper(item, left)),
            Value::Object(fields) => fields.values().any(|field| deeper(field, left)),
            _ => false,
        }
    }
    deeper(value, MAX_DEPTH)
}

/// Most values in JSON that is taken from the agent or the model: each takes some eighty bytes of
/// memory, and two of text.
pub const MAX_VALUES: usize = 200_000;

/// Whether JSON holds more than [`MAX_VALUES`] values, told before it is parsed.
pub fn has_too_many_values(json: &[u8]) -> bool {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values > MAX_VALUES
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings_only() {
        let zeros = |n| format!("[{}]", vec!["0"; n].join(","));
        assert!(!has_too_many_values(zeros(MAX_VALUES).as_bytes()));
        assert!(has_too_many_values(zeros(MAX_VALUES + 1).as_bytes()));
        let text = r#"\"[,{\\"#.repeat(MAX_VALUES);
        assert!(!has_too_many_values(format!("[\"{text}\"]").as_bytes()));
    }

    #[test]
    fn a_value_is_too_deep_from_one_level_past_the_limit_on() {
        let nested = |levels| (1..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert!(!is_too_deep(&nested(MAX_DEPTH)));
        assert!(is_too_deep(&nested(MAX_DEPTH + 1)));
    }
}
