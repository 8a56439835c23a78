//! One run: all of its row, its status in short, and what it changed.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::Value;
use uuid::Uuid;

use crate::ledger::{Error, Ledger};
use crate::names::reasons;

/// Most of a task or result that is given out, in characters.
const MAX_TEXT: i32 = 1_000_000;
/// Most tools that are named.
const MAX_TOOLS: i64 = 200;

/// A run, as it is in the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What lists show of it.
    pub id: Uuid,
    /// Its cluster, where that is known.
    pub cluster: Option<String>,
    /// Its namespace; nothing in rows that are not ours.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its workflow.
    pub workflow_name: String,
    /// The task.
    pub task_input: String,
    /// Its session.
    pub session_id: Option<Uuid>,
    /// Its status, in the ledger's words.
    pub status: String,
    /// Why, in one word.
    pub reason: Option<String>,
    /// The agent's last word.
    pub result: Option<String>,
    /// Why it ended badly, in a sentence.
    pub error_message: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its agent first started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Image of the agent.
    pub agent_image: Option<String>,
    /// Version of the CLI.
    pub cli_version: Option<String>,
    /// What was resolved of the spec.
    pub settings: Value,
    /// Where the checkout is.
    pub workspace_path: Option<String>,
    /// Whether the volume outlives the run.
    pub workspace_persistent: bool,
    /// Whether the volume is gone.
    pub workspace_cleaned_up: bool,
    /// From which event on the transcript is still on the volume.
    pub transcript_missing_from: Option<i64>,
    /// What else writers kept.
    pub metadata: Value,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its status, in the ledger's words.
    pub status: String,
    /// What it waits for, does, or ended by, in one word.
    pub current_phase: Option<String>,
    /// The SDK's number of turns.
    pub turns: i64,
    /// Most that it may take, where that is limited.
    pub max_turns: Option<i64>,
    /// All its tokens.
    pub total_tokens: i64,
    /// Of these, input without cache.
    pub input_tokens: i64,
    /// Output.
    pub output_tokens: i64,
    /// Written to the cache.
    pub cache_created: i64,
    /// Read from the cache.
    pub cache_read: i64,
    /// US dollars; unknown where absent.
    pub cost: Option<Decimal>,
    /// Whose figure that is.
    pub cost_source: Option<String>,
    /// Names of the tools that it called, in the order of first use.
    pub tools_used: Vec<String>,
    /// Time that the model took to answer.
    pub api_milliseconds: i64,
    /// Paths that are new.
    pub files_created: Vec<String>,
    /// Paths that were there and are changed.
    pub files_changed: Vec<String>,
    /// Commits that it made.
    pub commits: i32,
    /// How it ended; nothing before it has.
    pub completion: Option<Completion>,
}

impl Status {
    /// Share of the input that came from the cache; nothing where there was no input.
    pub fn cache_efficiency(&self) -> Option<Decimal> {
        let all = self.input_tokens + self.cache_created + self.cache_read;
        (all > 0).then(|| (Decimal::from(self.cache_read) / Decimal::from(all)).round_dp(4))
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The task was done.
    CompletedSuccessfully,
    /// The turns were used up.
    MaxTurnsReached,
    /// It failed, or was killed.
    Failed,
    /// Nobody wrote down how.
    Unknown,
}

impl Completion {
    fn of(status: &str, reason: Option<&str>) -> Option<Self> {
        match (status, reason) {
            ("pending" | "running", _) => None,
            (_, Some(reasons::MAX_TURNS_REACHED)) => Some(Self::MaxTurnsReached),
            ("completed", _) => Some(Self::CompletedSuccessfully),
            ("failed" | "killed", _) => Some(Self::Failed),
            _ => Some(Self::Unknown),
        }
    }
}

/// What a run changed in its repository.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffSummary {
    /// The repository.
    pub repository: Option<String>,
    /// Branch at the end.
    pub branch: Option<String>,
    /// HEAD before the run.
    pub initial_commit: Option<String>,
    /// HEAD after it.
    pub final_commit: Option<String>,
    /// The remote branch that was pushed.
    pub pushed_branch: Option<String>,
    /// Commits between.
    pub commits: i32,
    /// Files that differ.
    pub files_changed: i64,
    /// Lines added.
    pub added_lines: i64,
    /// Lines removed.
    pub removed_lines: i64,
    /// The report in full: each file and commit, as far as the ledger keeps them.
    pub stats: Value,
}

impl Ledger {
    /// A run by its id; a task or result beyond a million characters is cut.
    pub async fn run(&self, id: Uuid) -> Result<Option<Run>, Error> {
        Self::tries(|| async {
            let row = sqlx::query!(
                r#"SELECT id, cluster, namespace, name, workflow_name, left(task_input, $2) AS "task_input!",
                          session_id, status, reason, left(result, $2) AS result, error_message,
                          created_at AS "created_at: jiff_sqlx::Timestamp",
                          started_at AS "started_at: jiff_sqlx::Timestamp",
                          completed_at AS "completed_at: jiff_sqlx::Timestamp",
                          agent_image, cli_version, settings, workspace_path, workspace_persistent,
                          workspace_cleaned_up, transcript_missing_from, metadata
                   FROM workflow_runs WHERE id = $1"#,
                id,
                MAX_TEXT,
            )
            .fetch_optional(&self.readers)
            .await?;
            Ok(row.map(|row| Run {
                id: row.id,
                cluster: row.cluster,
                namespace: row.namespace,
                name: row.name,
                workflow_name: row.workflow_name,
                task_input: row.task_input,
                session_id: row.session_id,
                status: row.status,
                reason: row.reason,
                result: row.result,
                error_message: row.error_message,
                created_at: row.created_at.to_jiff(),
                started_at: row.started_at.map(jiff_sqlx::Timestamp::to_jiff),
                completed_at: row.completed_at.map(jiff_sqlx::Timestamp::to_jiff),
                agent_image: row.agent_image,
                cli_version: row.cli_version,
                settings: row.settings,
                workspace_path: row.workspace_path,
                workspace_persistent: row.workspace_persistent,
                workspace_cleaned_up: row.workspace_cleaned_up,
                transcript_missing_from: row.transcript_missing_from,
                metadata: row.metadata,
            }))
        })
        .await
    }

    /// How a run stands.
    pub async fn run_status(&self, id: Uuid) -> Result<Option<Status>, Error> {
        Self::tries(|| async {
            let row = sqlx::query!(
                r#"SELECT r.status, r.reason, r.turns,
                          CASE jsonb_typeof(r.settings -> 'maxTurns') WHEN 'number'
                               THEN (r.settings ->> 'maxTurns')::numeric::bigint END AS max_turns,
                          r.total_tokens, r.input_tokens, r.output_tokens, r.cache_creation_tokens,
                          r.cache_read_tokens, r.cost_estimate, r.cost_source, r.git_commits,
                          r.git_diff_stats -> 'files' AS files,
                          (SELECT coalesce(sum(m.api_milliseconds), 0)::bigint FROM run_model_usage m
                           WHERE m.run_id = r.id) AS "api_milliseconds!",
                          ARRAY(SELECT t.tool FROM run_tools t WHERE t.run_id = r.id
                                ORDER BY t.first_use NULLS FIRST, t.first_at, t.tool LIMIT $2) AS "tools!"
                   FROM workflow_runs r WHERE r.id = $1"#,
                id,
                MAX_TOOLS,
            )
            .fetch_optional(&self.readers)
            .await?;
            Ok(row.map(|row| {
                let files = row.files.unwrap_or_default();
                Status {
                    completion: Completion::of(&row.status, row.reason.as_deref()),
                    status: row.status,
                    current_phase: row.reason,
                    turns: row.turns,
                    max_turns: row.max_turns,
                    total_tokens: row.total_tokens,
                    input_tokens: row.input_tokens,
                    output_tokens: row.output_tokens,
                    cache_created: row.cache_creation_tokens,
                    cache_read: row.cache_read_tokens,
                    cost: row.cost_estimate,
                    cost_source: row.cost_source,
                    tools_used: row.tools,
                    api_milliseconds: row.api_milliseconds,
                    files_created: paths(&files, true),
                    files_changed: paths(&files, false),
                    commits: row.git_commits,
                }
            }))
        })
        .await
    }

    /// What a run changed.
    pub async fn run_diff(&self, id: Uuid) -> Result<Option<DiffSummary>, Error> {
        Self::tries(|| async {
            Ok(sqlx::query_as!(
                DiffSummary,
                r#"SELECT git_repo AS repository, git_branch AS branch, initial_commit_hash AS initial_commit,
                          final_commit_hash AS final_commit, git_pushed_branch AS pushed_branch,
                          git_commits AS commits, git_diff_files_changed AS files_changed,
                          git_diff_added_lines AS added_lines, git_diff_removed_lines AS removed_lines,
                          git_diff_stats AS stats
                   FROM workflow_runs WHERE id = $1"#,
                id
            )
            .fetch_optional(&self.readers)
            .await?)
        })
        .await
    }
}

/// Paths of the files of a report that are new, or that are not.
fn paths(files: &Value, added: bool) -> Vec<String> {
    files
        .as_array()
        .into_iter()
        .flatten()
        .filter(|file| (file["kind"] == "added") == added && file["kind"] != "deleted")
        .filter_map(|file| file["path"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn how_a_run_ended_follows_from_status_and_reason() {
        for (status, reason, expected) in [
            ("pending", None, None),
            ("running", Some(reasons::MAX_TURNS_REACHED), None),
            ("completed", None, Some(Completion::CompletedSuccessfully)),
            (
                "failed",
                Some(reasons::MAX_TURNS_REACHED),
                Some(Completion::MaxTurnsReached),
            ),
            ("failed", None, Some(Completion::Failed)),
            ("killed", Some("Killed"), Some(Completion::Failed)),
            // A word that only rows of before may hold.
            ("timeout", None, Some(Completion::Unknown)),
        ] {
            let told = Completion::of(status, reason);
            assert_eq!(told, expected, "{status} {reason:?}");
        }
    }
}
