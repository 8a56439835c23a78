//! What a source of the earlier system knows of a run, and how sources become one row: the first that
//! has a fact wins, in the order session, process, log. Pure.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::reader::Reader;
use super::values;

/// Keys of `sessions.metadata` that are facts of a run. Each goes to a column or to `metadata.legacy`.
pub(super) const KEYS: [&str; 25] = [
    "run_id",
    "workflow_name",
    "request",
    "run_status",
    "success",
    "started_at",
    "completed_at",
    "duration_ms",
    "elapsed_seconds",
    "final_result",
    "error",
    "error_message",
    "total_cost_usd",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_created",
    "cache_read",
    "git_branch",
    "auto_commit_sha",
    "claude_session_id",
    "total_turns",
    "tools_used",
    "execution_results",
    "model_used",
];

/// Columns of `workflow_processes`. A column of somebody's own goes to `legacy.process`.
const PROCESS: [&str; 12] = [
    "run_id",
    "pid",
    "status",
    "workflow_name",
    "session_id",
    "user_id",
    "started_at",
    "last_heartbeat",
    "workspace_path",
    "process_info",
    "created_at",
    "updated_at",
];

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Status {
    Pending,
    Running,
    Completed,
    Failed,
    Killed,
}

impl Status {
    pub(super) fn of(word: &str) -> Option<Self> {
        Some(match word.trim().to_ascii_lowercase().as_str() {
            "pending" | "queued" => Self::Pending,
            "running" | "started" | "in_progress" => Self::Running,
            "completed" | "success" | "succeeded" | "done" => Self::Completed,
            "failed" | "failure" | "error" | "timeout" | "timed_out" => Self::Failed,
            "killed" | "terminated" | "cancelled" | "canceled" => Self::Killed,
            _ => return None,
        })
    }

    pub(super) fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Killed => "killed",
        }
    }
}

/// What one source, or several together, know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) run_id: Option<String>,
    pub(super) workflow_name: Option<String>,
    pub(super) task: Option<String>,
    pub(super) status: Option<Status>,
    pub(super) session_id: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) user_id: Option<String>,
    pub(super) created_at: Option<Timestamp>,
    pub(super) completed_at: Option<Timestamp>,
    /// When the run last showed that it is alive, in its heartbeat or log.
    pub(super) alive_at: Option<Timestamp>,
    /// When its session last changed: counts where nothing else tells.
    pub(super) touched_at: Option<Timestamp>,
    pub(super) duration_seconds: Option<i32>,
    pub(super) workspace_path: Option<String>,
    pub(super) workspace_persistent: Option<bool>,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) cost: Option<Decimal>,
    pub(super) input: Option<i64>,
    pub(super) output: Option<i64>,
    pub(super) total: Option<i64>,
    pub(super) cache_creation: Option<i64>,
    pub(super) cache_read: Option<i64>,
    pub(super) git_repo: Option<String>,
    pub(super) git_branch: Option<String>,
    pub(super) final_commit: Option<String>,
    /// Goes to `metadata.legacy`.
    pub(super) legacy: Map<String, Value>,
}

impl Facts {
    /// Adds what this source doesn't know.
    pub(super) fn or(mut self, lower: Self) -> Self {
        for (key, value) in lower.legacy {
            self.legacy.entry(key).or_insert(value);
        }
        Self {
            run_id: self.run_id.or(lower.run_id),
            workflow_name: self.workflow_name.or(lower.workflow_name),
            task: self.task.or(lower.task),
            // Whoever saw the end knows more than who last saw it run.
            status: match (self.status, lower.status) {
                (Some(status), Some(end)) if !status.is_end() && end.is_end() => Some(end),
                (status, other) => status.or(other),
            },
            session_id: self.session_id.or(lower.session_id),
            session_name: self.session_name.or(lower.session_name),
            user_id: self.user_id.or(lower.user_id),
            created_at: self.created_at.or(lower.created_at),
            completed_at: self.completed_at.or(lower.completed_at),
            alive_at: self.alive_at.max(lower.alive_at),
            touched_at: self.touched_at.or(lower.touched_at),
            duration_seconds: self.duration_seconds.or(lower.duration_seconds),
            workspace_path: self.workspace_path.or(lower.workspace_path),
            workspace_persistent: self.workspace_persistent.or(lower.workspace_persistent),
            result: self.result.or(lower.result),
            error: self.error.or(lower.error),
            cost: self.cost.or(lower.cost),
            input: self.input.or(lower.input),
            output: self.output.or(lower.output),
            total: self.total.or(lower.total),
            cache_creation: self.cache_creation.or(lower.cache_creation),
            cache_read: self.cache_read.or(lower.cache_read),
            git_repo: self.git_repo.or(lower.git_repo),
            git_branch: self.git_branch.or(lower.git_branch),
            final_commit: self.final_commit.or(lower.final_commit),
            legacy: self.legacy,
        }
    }

    /// The facts of a run in a session's metadata, as they are.
    pub(super) fn said_by(row: &Map<String, Value>) -> Map<String, Value> {
        let metadata = row.get("metadata").and_then(values::object);
        let facts = metadata.into_iter().flatten();
        facts
            .filter(|(key, _)| KEYS.contains(&key.as_str()))
            .collect()
    }

    /// From a row of `sessions`. Nothing where its metadata holds no facts of a run; an error where it
    /// can't be read at all.
    pub(super) fn of_session(row: &Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let Some(metadata) = row.get("metadata") else {
            return Ok(None);
        };
        let Some(metadata) = values::object(metadata) else {
            return Err("metadata is not a JSON object");
        };
        if metadata.get("agent_type").and_then(Value::as_str) != Some("claude-code")
            || !KEYS.iter().any(|key| metadata.contains_key(*key))
        {
            return Ok(None);
        }
        let mut facts = Self::of_metadata(&metadata);
        let mut read = Reader::new(row, &mut facts.legacy);
        let session_id = read.text("id");
        let session_name = read.text("name");
        let user_id = read.text("user_id");
        let created_at = read.time("created_at");
        let finished_at = read.time("run_finished_at");
        let updated_at = read.time("updated_at");
        facts.run_id = facts
            .run_id
            .or_else(|| session_id.as_ref().map(|id| format!("session_{id}")));
        facts.session_id = session_id;
        facts.session_name = session_name;
        facts.user_id = user_id;
        facts.created_at = facts.created_at.or(created_at);
        if facts.status.is_some_and(Status::is_end) {
            facts.completed_at = facts.completed_at.or(finished_at);
        }
        facts.touched_at = updated_at;
        facts
            .legacy
            .insert("agent_type".to_owned(), json!("claude-code"));
        Ok(Some(facts))
    }

    /// From the keys of a session's metadata, which log entries use as well.
    pub(super) fn of_metadata(metadata: &Map<String, Value>) -> Self {
        let mut legacy = Map::new();
        let mut read = Reader::new(metadata, &mut legacy);
        let mut facts = Self {
            run_id: read.get("run_id", values::name),
            workflow_name: read.text("workflow_name"),
            created_at: read.time("started_at"),
            completed_at: read.time("completed_at"),
            result: read.text("final_result"),
            error: read.text("error_message").or_else(|| read.text("error")),
            cost: read.get("total_cost_usd", cost),
            input: read.count("input_tokens"),
            output: read.count("output_tokens"),
            total: read.count("total_tokens"),
            cache_creation: read.count("cache_created"),
            cache_read: read.count("cache_read"),
            git_branch: read.text("git_branch"),
            final_commit: read.text("auto_commit_sha"),
            ..Self::default()
        };
        let duration = read
            .get("duration_ms", values::decimal)
            .map(|ms| ms / Decimal::from(1000));
        let elapsed = read.get("elapsed_seconds", values::decimal);
        facts.duration_seconds = duration.or(elapsed).and_then(|d| d.trunc().try_into().ok());
        if facts.duration_seconds.is_some_and(|seconds| seconds < 0) {
            facts.duration_seconds = Some(0);
        }
        let raw = read.text("run_status");
        let success = read.get("success", values::flag);
        let said = raw.as_deref().and_then(Status::of);
        facts.status = match (said, success) {
            // Results that were errors used to be stored as completed.
            (None | Some(Status::Completed), Some(false)) => Some(Status::Failed),
            (None, Some(true)) => Some(Status::Completed),
            (said, _) => said,
        };
        if let Some(raw) = raw
            && facts.status.map(Status::word) != Some(raw.as_str())
        {
            legacy.insert("raw_status".to_owned(), json!(raw));
        }
        facts.read_request(metadata.get("request"), &mut legacy);
        for key in [
            "claude_session_id",
            "total_turns",
            "tools_used",
            "execution_results",
            "model_used",
            "success",
            "duration_ms",
            "elapsed_seconds",
        ] {
            if let Some(value) = metadata.get(key).filter(|value| !value.is_null()) {
                legacy.insert(key.to_owned(), value.clone());
            }
        }
        if let (Some(error), Some(message)) = (metadata.get("error"), metadata.get("error_message"))
            && error != message
            && !error.is_null()
        {
            legacy.insert("error".to_owned(), error.clone());
        }
        facts.legacy = legacy;
        facts
    }

    /// The request says what was asked for; what has no column stays in `legacy.request`.
    fn read_request(&mut self, request: Option<&Value>, legacy: &mut Map<String, Value>) {
        let Some(request) = request.filter(|request| !request.is_null()) else {
            return;
        };
        let Some(mut request) = values::object(request) else {
            // The oldest kept the message alone.
            self.task = values::text(request);
            return;
        };
        let mut read = Reader::new(&request, legacy);
        self.task = read.text("message");
        self.git_repo = read.text("repository_url");
        self.workspace_path = read.text("workspace_path");
        self.workspace_persistent = read
            .get("workspace_persistent", values::flag)
            .or_else(|| read.get("persistent", values::flag));
        for key in ["message", "repository_url", "workspace_path"] {
            request.remove(key);
        }
        if !request.is_empty() {
            legacy.insert("request".to_owned(), Value::Object(request));
        }
    }

    /// From a row of `workflow_processes`.
    pub(super) fn of_process(row: &Map<String, Value>) -> Self {
        let mut legacy = Map::new();
        let mut read = Reader::new(row, &mut legacy);
        let raw = read.text("status");
        let status = raw.as_deref().and_then(Status::of);
        let heartbeat = read.time("last_heartbeat");
        let updated = read.time("updated_at");
        let path = read.text("workspace_path");
        let mut facts = Self {
            run_id: read.get("run_id", values::name),
            workflow_name: read.text("workflow_name"),
            status,
            session_id: read.text("session_id"),
            user_id: read.text("user_id"),
            created_at: read.time("started_at").or_else(|| read.time("created_at")),
            completed_at: updated.filter(|_| status.is_some_and(Status::is_end)),
            alive_at: heartbeat.or(updated),
            workspace_persistent: path.as_deref().map(|path| path.ends_with("_persistent")),
            workspace_path: path,
            ..Self::default()
        };
        if matches!(raw.as_deref(), Some("timeout")) {
            facts.error = Some("The earlier system ended the run for its time-out.".to_owned());
        }
        for key in ["pid", "process_info", "last_heartbeat"] {
            if let Some(value) = row.get(key).filter(|value| !value.is_null()) {
                let whole = values::object(value).map_or_else(|| value.clone(), Value::Object);
                legacy.insert(key.to_owned(), whole);
            }
        }
        if let Some(raw) = raw {
            legacy.insert("process_status".to_owned(), json!(raw));
        }
        let others: Map<String, Value> = row
            .iter()
            .filter(|(column, value)| !PROCESS.contains(&column.as_str()) && !value.is_null())
            .map(|(column, value)| (column.clone(), value.clone()))
            .collect();
        if !others.is_empty() {
            legacy.insert("process".to_owned(), Value::Object(others));
        }
        facts.legacy = legacy;
        facts
    }

    /// A log tells when it began and, of a run that ended, when that was.
    pub(super) fn lasted(&mut self, first: Option<Timestamp>, last: Option<Timestamp>) {
        self.created_at = self.created_at.or(first);
        self.alive_at = self.alive_at.max(last);
        if self.status.is_some_and(Status::is_end) {
            self.completed_at = self.completed_at.or(last);
        }
    }

    /// A word of a log entry's type that says how the run stands.
    pub(super) fn said(&mut self, word: &str) {
        if let Some(status) = Status::of(word) {
            self.status = Some(status);
        }
    }
}

/// What a run can have cost: the column holds no more, and nothing was ever paid back.
pub(super) fn cost(value: &Value) -> Option<Decimal> {
    let bounds = Decimal::ZERO..Decimal::from(1_000_000_000_000_i64);
    values::decimal(value).filter(|cost| bounds.contains(cost))
}
