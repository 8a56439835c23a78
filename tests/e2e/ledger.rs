//! What the ledger holds of a run, read with SQL of the tests' own.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

/// The columns of `workflow_runs` that tests look at.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) attempt: i32,
    pub(crate) task_input: String,
    pub(crate) session_id: Option<Uuid>,
    pub(crate) git_repo: Option<String>,
    pub(crate) git_branch: Option<String>,
    pub(crate) initial_commit_hash: Option<String>,
    pub(crate) final_commit_hash: Option<String>,
    pub(crate) git_commits: i32,
    pub(crate) git_pushed_branch: Option<String>,
    pub(crate) git_diff_added_lines: i64,
    pub(crate) git_diff_removed_lines: i64,
    pub(crate) git_diff_files_changed: i64,
    pub(crate) error_message: Option<String>,
    pub(crate) cost_estimate: Option<Decimal>,
    pub(crate) input_tokens: i64,
    pub(crate) output_tokens: i64,
    pub(crate) cache_read_tokens: i64,
    pub(crate) cache_creation_tokens: i64,
    pub(crate) total_tokens: i64,
    pub(crate) turns: i64,
    pub(crate) transcript_missing_from: Option<i64>,
    pub(crate) workspace_id: Option<String>,
    pub(crate) workspace_persistent: bool,
}

/// A row of `run_events`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct EventRow {
    pub(crate) attempt: i32,
    pub(crate) sequence: i64,
    #[sqlx(rename = "type")]
    pub(crate) kind: String,
    pub(crate) body: Value,
}

/// A row of `messages`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct MessageRow {
    pub(crate) id: Uuid,
    pub(crate) role: String,
    pub(crate) message_type: Option<String>,
    pub(crate) text_content: Option<String>,
    pub(crate) tool_calls: Value,
    pub(crate) tool_outputs: Value,
}

/// The run's row.
pub(crate) async fn row(pool: &PgPool, run: Uuid) -> Result<Row> {
    sqlx::query_as("SELECT * FROM workflow_runs WHERE id = $1")
        .bind(run)
        .fetch_optional(pool)
        .await?
        .with_context(|| format!("the ledger has no row of run {run}"))
}

/// The run's events, in order.
pub(crate) async fn events(pool: &PgPool, run: Uuid) -> Result<Vec<EventRow>> {
    let sql = "SELECT attempt, sequence, type, body FROM run_events WHERE run_id = $1 ORDER BY attempt, sequence";
    Ok(sqlx::query_as(sql).bind(run).fetch_all(pool).await?)
}

/// What the run committed, as the patch that is kept of it.
pub(crate) async fn patch(pool: &PgPool, run: Uuid) -> Result<Vec<u8>> {
    let sql =
        "SELECT patch FROM run_patches WHERE run_id = $1 AND part = 'committed' AND NOT truncated";
    sqlx::query_scalar(sql)
        .bind(run)
        .fetch_optional(pool)
        .await?
        .with_context(|| format!("the ledger has no whole patch of run {run}"))
}

/// The run's messages, in the order in which they were said.
pub(crate) async fn messages(pool: &PgPool, run: Uuid) -> Result<Vec<MessageRow>> {
    let sql = "SELECT id, role, message_type, text_content, tool_calls, tool_outputs FROM messages \
               WHERE run_id = $1 ORDER BY created_at, sequence";
    Ok(sqlx::query_as(sql).bind(run).fetch_all(pool).await?)
}

/// Requests without an end, over all attempts.
pub(crate) async fn estimated_requests(pool: &PgPool, run: Uuid) -> Result<i64> {
    let sql =
        "SELECT coalesce(sum(estimated_requests), 0)::bigint FROM run_attempts WHERE run_id = $1";
    Ok(sqlx::query_scalar(sql).bind(run).fetch_one(pool).await?)
}

/// Every attempt's events run from 1 on without a gap, and end with the seal where one is told of.
pub(crate) fn contiguous(events: &[EventRow]) -> Result<()> {
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    for event in events {
        let before = last.insert(event.attempt, event.sequence).unwrap_or(0);
        ensure!(
            event.sequence == before + 1,
            "attempt {} goes from event {before} to {} ({})",
            event.attempt,
            event.sequence,
            event.kind
        );
    }
    Ok(())
}

/// What the events' bodies hold: as the wire has them, whatever of it the ledger keeps in columns.
pub(crate) fn of_kind<'a>(
    events: &'a [EventRow],
    kind: &'a str,
) -> impl Iterator<Item = &'a EventRow> {
    events.iter().filter(move |event| event.kind == kind)
}
