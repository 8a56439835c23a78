//! Facts of a run as a row of `workflow_runs`: what is stale, what has no column, what is too long. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::facts::{Facts, Status};

/// A run whose last sign of life is older has died without a word.
const STALE: SignedDuration = SignedDuration::from_mins(5);
/// Longest text of an indexed column.
const MAX_NAME: usize = 255;

impl Facts {
    /// The row, in the words of the ledger's columns. `now` decides what is stale.
    pub(super) fn row(mut self, id: Uuid, run_id: &str, now: Timestamp) -> Value {
        let mut note = None;
        let alive_at = self.alive_at.or(self.touched_at);
        let status = match self.status {
            Some(status) if status.is_end() => status,
            Some(status) if alive_at.is_some_and(|at| now.duration_since(at) <= STALE) => status,
            told => {
                note = Some(match told {
                    Some(_) => {
                        "The earlier system lost sight of the run; it was last known to be running."
                    }
                    None => "The earlier system did not keep how the run ended.",
                });
                self.completed_at = self.completed_at.or(alive_at);
                if let Some(told) = told {
                    let raw = json!(told.word());
                    self.legacy.entry("raw_status".to_owned()).or_insert(raw);
                }
                Status::Failed
            }
        };
        let completed_at = self.completed_at.filter(|_| status.is_end());
        let between = self
            .created_at
            .zip(completed_at)
            .and_then(|(from, to)| i32::try_from(to.duration_since(from).as_secs().max(0)).ok());
        let session = uuid(&mut self.legacy, "session_id", self.session_id.take());
        let user = uuid(&mut self.legacy, "user_id", self.user_id.take());
        let session_name = shorten(&mut self.legacy, "session_name", self.session_name.take());
        let git_branch = shorten(&mut self.legacy, "git_branch", self.git_branch.take());
        let commit = shorten(
            &mut self.legacy,
            "final_commit_hash",
            self.final_commit.take(),
        );
        let workflow = shorten(&mut self.legacy, "workflow_name", self.workflow_name.take());
        let cost = self.cost.map(|cost| cost.round_dp(6));
        if let Some(whole) = self.cost.filter(|whole| Some(*whole) != cost) {
            self.legacy
                .insert("total_cost_usd".to_owned(), json!(whole.to_string()));
        }
        let parts = [
            self.input,
            self.output,
            self.cache_read,
            self.cache_creation,
        ];
        let sum = parts
            .iter()
            .flatten()
            .try_fold(0_i64, |sum, n| sum.checked_add(*n));
        // The earlier total may have left the cache out; with no parts it is all there is.
        let total = if parts.iter().any(Option::is_some) {
            sum
        } else {
            self.total
        };
        if let Some(said) = self.total.filter(|said| Some(*said) != total) {
            self.legacy.insert("total_tokens".to_owned(), json!(said));
        }
        json!({
            "id": id,
            "run_id": run_id,
            "workflow_name": workflow,
            "task_input": self.task,
            "status": status.word(),
            "session_id": session,
            "session_name": session_name,
            "user_id": user,
            "created_at": self.created_at.or(completed_at),
            "completed_at": completed_at,
            "duration_seconds": self.duration_seconds.or(between),
            "workspace_path": self.workspace_path,
            "workspace_persistent": self.workspace_persistent,
            "result": self.result,
            "error_message": self.error.or_else(|| note.map(str::to_owned)),
            "cost_estimate": cost.map(|cost| cost.to_string()),
            "input_tokens": self.input,
            "output_tokens": self.output,
            "cache_read_tokens": self.cache_read,
            "cache_creation_tokens": self.cache_creation,
            "total_tokens": total,
            "git_repo": self.git_repo,
            "git_branch": git_branch,
            "final_commit_hash": commit,
            "legacy": self.legacy,
        })
    }
}

/// The text cut to what an indexed column takes; the whole of it is kept.
fn shorten(legacy: &mut Map<String, Value>, key: &str, text: Option<String>) -> Option<String> {
    let text = text?;
    let cut: String = text.chars().take(MAX_NAME).collect();
    if cut.len() < text.len() {
        legacy.insert(format!("whole_{key}"), json!(text));
    }
    Some(cut)
}

/// The text as a UUID; another one is kept.
fn uuid(legacy: &mut Map<String, Value>, key: &str, text: Option<String>) -> Option<Uuid> {
    let text = text?;
    match Uuid::parse_str(text.trim()) {
        Ok(uuid) => Some(uuid),
        Err(_) => {
            legacy.insert(key.to_owned(), json!(text));
            None
        }
    }
}
