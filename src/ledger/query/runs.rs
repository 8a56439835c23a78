//! Lists of runs, by every filter and order that `filter` has.

use jiff::Timestamp;
use rust_decimal::Decimal;
use uuid::Uuid;

use super::filter::{Direction, Order, RunFilter, RunKey, Terms};
use super::size;
use crate::ledger::{Error, Ledger};

/// A page of runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPage {
    /// Its runs.
    pub runs: Vec<RunSummary>,
    /// Where the next page begins; nothing where this is the last.
    pub next: Option<RunKey>,
}

/// A run in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Its `metadata.uid`.
    pub id: Uuid,
    /// Its cluster, where that is known.
    pub cluster: Option<String>,
    /// Its namespace; nothing in rows that are not ours.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its workflow.
    pub workflow_name: String,
    /// Its status, in the ledger's words.
    pub status: String,
    /// Why, in one word.
    pub reason: Option<String>,
    /// Number of its pod.
    pub attempt: i32,
    /// Its session.
    pub session_id: Option<Uuid>,
    /// Name of that.
    pub session_name: Option<String>,
    /// Who asked for it.
    pub user_id: Option<Uuid>,
    /// Its repository.
    pub git_repo: Option<String>,
    /// Its branch.
    pub git_branch: Option<String>,
    /// HEAD after it.
    pub final_commit_hash: Option<String>,
    /// Files that differ.
    pub files_changed: i64,
    /// Lines added.
    pub added_lines: i64,
    /// Lines removed.
    pub removed_lines: i64,
    /// The model that answered, else the one that was asked for.
    pub ai_model: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its agent first started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// From start to end.
    pub duration_seconds: Option<i32>,
    /// US dollars; unknown where absent.
    pub cost: Option<Decimal>,
    /// Whose figure that is: `sdk`, `prices`, `mixed` or `partial`.
    pub cost_source: Option<String>,
    /// All its tokens.
    pub total_tokens: i64,
    /// The SDK's number of turns.
    pub turns: i64,
}

/// A row as the database gives it.
struct Row {
    id: Uuid,
    cluster: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    workflow_name: String,
    status: String,
    reason: Option<String>,
    attempt: i32,
    session_id: Option<Uuid>,
    session_name: Option<String>,
    user_id: Option<Uuid>,
    git_repo: Option<String>,
    git_branch: Option<String>,
    final_commit_hash: Option<String>,
    git_diff_files_changed: i64,
    git_diff_added_lines: i64,
    git_diff_removed_lines: i64,
    ai_model: Option<String>,
    created_at: jiff_sqlx::Timestamp,
    started_at: Option<jiff_sqlx::Timestamp>,
    completed_at: Option<jiff_sqlx::Timestamp>,
    duration_seconds: Option<i32>,
    cost_estimate: Option<Decimal>,
    cost_source: Option<String>,
    total_tokens: i64,
    turns: i64,
    key: Option<String>,
}

/// The statement of a list: `$from` is where runs come from, `$which` looks at the label and at what
/// comes after the key (`$11`, `$12`), `$order` is the order.
macro_rules! list {
    ($ledger:expr, $t:expr, $key:literal, $from:literal, [$($which:literal)+], [$($order:literal)+]) => {{
        let t = $t;
        sqlx::query_as!(
            Row,
            r#"SELECT r.id, r.cluster, r.namespace, r.name, r.workflow_name, r.status, r.reason, r.attempt,
                      r.session_id, r.session_name, r.user_id, r.git_repo, r.git_branch, r.final_commit_hash,
                      r.git_diff_files_changed, r.git_diff_added_lines, r.git_diff_removed_lines, r.ai_model,
                      r.created_at AS "created_at: jiff_sqlx::Timestamp",
                      r.started_at AS "started_at: jiff_sqlx::Timestamp",
                      r.completed_at AS "completed_at: jiff_sqlx::Timestamp",
                      r.duration_seconds, r.cost_estimate, r.cost_source, r.total_tokens, r.turns, "#
                + $key
                + "::text AS key FROM "
                + $from
                + r#" WHERE ($1::text IS NULL OR r.namespace = $1)
                        AND ($2::text IS NULL OR r.status = $2)
                        AND ($3::text IS NULL OR r.workflow_name = $3)
                        AND ($4::uuid IS NULL OR r.user_id = $4)
                        AND ($5::uuid IS NULL OR r.session_id = $5)
                        AND ($6::text IS NULL OR r.git_branch = $6)
                        AND ($7::timestamptz IS NULL OR r.created_at >= $7)
                        AND ($8::timestamptz IS NULL OR r.created_at <= $8)
                        AND "#
                $(+ $which)+
                + " ORDER BY "
                $(+ $order)+
                + " LIMIT $13",
            t.namespace,
            t.status,
            t.workflow_name,
            t.user_id,
            t.session_id,
            t.git_branch,
            t.created_after as _,
            t.created_before as _,
            t.label_key,
            t.label_value,
            t.value,
            t.id,
            t.limit,
        )
        .fetch_all(&$ledger.readers)
        .await
    }};
}

/// Runs that have a value in the column, ordered by it.
macro_rules! by {
    ($ledger:expr, $t:expr, $direction:expr, $column:literal, $type:literal) => {
        match $direction {
            Direction::Descending => list!(
                $ledger, $t, $column, "workflow_runs r",
                ["($9::text IS NULL OR EXISTS (SELECT FROM run_labels l
                   WHERE l.run_id = r.id AND l.key = $9 AND l.value = $10)) AND "
                 $column " IS NOT NULL AND ($11::text IS NULL OR (" $column ", r.id) < ($11::text::" $type ", $12::uuid))"],
                [$column " DESC, r.id DESC"]
            ),
            Direction::Ascending => list!(
                $ledger, $t, $column, "workflow_runs r",
                ["($9::text IS NULL OR EXISTS (SELECT FROM run_labels l
                   WHERE l.run_id = r.id AND l.key = $9 AND l.value = $10)) AND "
                 $column " IS NOT NULL AND ($11::text IS NULL OR (" $column ", r.id) > ($11::text::" $type ", $12::uuid))"],
                [$column ", r.id"]
            ),
        }
    };
}

/// Runs that have no value in the column.
macro_rules! without {
    ($ledger:expr, $t:expr, $column:literal) => {
        list!(
            $ledger, $t, $column, "workflow_runs r",
            ["($9::text IS NULL OR EXISTS (SELECT FROM run_labels l
               WHERE l.run_id = r.id AND l.key = $9 AND l.value = $10)) AND "
             $column " IS NULL AND $11::text IS NULL AND ($12::uuid IS NULL OR r.id < $12)"],
            ["r.id DESC"]
        )
    };
}

/// Runs with a label of a namespace, by age: its index has them in that order already.
macro_rules! labelled {
    ($ledger:expr, $t:expr, $direction:expr) => {
        match $direction {
            Direction::Descending => list!(
                $ledger, $t, "l.created_at", "run_labels l JOIN workflow_runs r ON r.id = l.run_id",
                ["l.namespace = $1 AND l.key = $9 AND l.value = $10
                  AND ($11::text IS NULL OR (l.created_at, l.run_id) < ($11::text::timestamptz, $12::uuid))"],
                ["l.created_at DESC, l.run_id DESC"]
            ),
            Direction::Ascending => list!(
                $ledger, $t, "l.created_at", "run_labels l JOIN workflow_runs r ON r.id = l.run_id",
                ["l.namespace = $1 AND l.key = $9 AND l.value = $10
                  AND ($11::text IS NULL OR (l.created_at, l.run_id) > ($11::text::timestamptz, $12::uuid))"],
                ["l.created_at, l.run_id"]
            ),
        }
    };
}

impl Ledger {
    /// A page of the runs that pass the filter, after that key.
    pub async fn runs(
        &self,
        filter: &RunFilter,
        order: Order,
        direction: Direction,
        after: Option<&RunKey>,
        asked: u32,
    ) -> Result<RunPage, Error> {
        let limit = size(asked);
        let valued = after.is_none_or(|key| key.value.is_some());
        let mut rows = Vec::new();
        if valued {
            rows = Self::tries(|| async {
                Ok(self
                    .valued(Terms::of(filter, after, limit + 1), order, direction)
                    .await?)
            })
            .await?;
        }
        let missing = limit + 1 - i64::try_from(rows.len()).unwrap_or(limit + 1);
        if missing > 0 {
            // Those without a value come after all that have one.
            let after = after.filter(|_| !valued);
            let rest = Self::tries(|| async {
                Ok(self
                    .valueless(Terms::of(filter, after, missing), order)
                    .await?)
            })
            .await?;
            rows.extend(rest);
        }
        let full = usize::try_from(limit).unwrap_or(usize::MAX);
        let next = (rows.len() > full)
            .then(|| rows.get(full - 1))
            .flatten()
            .map(|row| RunKey {
                value: row.key.clone(),
                id: row.id,
            });
        rows.truncate(full);
        Ok(RunPage {
            runs: rows.into_iter().map(RunSummary::from).collect(),
            next,
        })
    }

    async fn valued(
        &self,
        t: Terms<'_>,
        order: Order,
        direction: Direction,
    ) -> Result<Vec<Row>, sqlx::Error> {
        match order {
            Order::CreatedAt if t.label_key.is_some() && t.namespace.is_some() => {
                labelled!(self, t, direction)
            }
            Order::CreatedAt => by!(self, t, direction, "r.created_at", "timestamptz"),
            Order::CompletedAt => by!(self, t, direction, "r.completed_at", "timestamptz"),
            Order::DurationSeconds => by!(self, t, direction, "r.duration_seconds", "int"),
            Order::WorkflowName => by!(self, t, direction, "r.workflow_name", "text"),
            Order::Status => by!(self, t, direction, "r.status", "text"),
            Order::CostEstimate => by!(self, t, direction, "r.cost_estimate", "numeric"),
            Order::TotalTokens => by!(self, t, direction, "r.total_tokens", "bigint"),
            Order::GitBranch => by!(self, t, direction, "r.git_branch", "text"),
        }
    }

    async fn valueless(&self, t: Terms<'_>, order: Order) -> Result<Vec<Row>, sqlx::Error> {
        match order {
            Order::CompletedAt => without!(self, t, "r.completed_at"),
            Order::DurationSeconds => without!(self, t, "r.duration_seconds"),
            Order::CostEstimate => without!(self, t, "r.cost_estimate"),
            Order::GitBranch => without!(self, t, "r.git_branch"),
            Order::CreatedAt | Order::WorkflowName | Order::Status | Order::TotalTokens => {
                Ok(Vec::new())
            }
        }
    }

    /// About how many runs pass the filter, as the planner guesses from its statistics: nothing is
    /// counted.
    pub async fn runs_estimate(&self, filter: &RunFilter) -> Result<u64, Error> {
        let plan = Self::tries(|| async {
            let t = Terms::of(filter, None, 0);
            // Not checked at build time, which EXPLAIN has no columns for; the tests run it.
            Ok(sqlx::query_scalar::<_, serde_json::Value>(ESTIMATE)
                .bind(t.namespace)
                .bind(t.status)
                .bind(t.workflow_name)
                .bind(t.user_id)
                .bind(t.session_id)
                .bind(t.git_branch)
                .bind(t.created_after)
                .bind(t.created_before)
                .bind(t.label_key)
                .bind(t.label_value)
                .fetch_one(&self.readers)
                .await?)
        })
        .await?;
        Ok(plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or_default())
    }
}

const ESTIMATE: &str = "EXPLAIN (FORMAT JSON) SELECT FROM workflow_runs r
    WHERE ($1::text IS NULL OR r.namespace = $1)
      AND ($2::text IS NULL OR r.status = $2)
      AND ($3::text IS NULL OR r.workflow_name = $3)
      AND ($4::uuid IS NULL OR r.user_id = $4)
      AND ($5::uuid IS NULL OR r.session_id = $5)
      AND ($6::text IS NULL OR r.git_branch = $6)
      AND ($7::timestamptz IS NULL OR r.created_at >= $7)
      AND ($8::timestamptz IS NULL OR r.created_at <= $8)
      AND ($9::text IS NULL OR r.id IN (SELECT l.run_id FROM run_labels l
           WHERE l.key = $9 AND l.value = $10 AND ($1::text IS NULL OR l.namespace = $1)))";

impl From<Row> for RunSummary {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            cluster: row.cluster,
            namespace: row.namespace,
            name: row.name,
            workflow_name: row.workflow_name,
            status: row.status,
            reason: row.reason,
            attempt: row.attempt,
            session_id: row.session_id,
            session_name: row.session_name,
            user_id: row.user_id,
            git_repo: row.git_repo,
            git_branch: row.git_branch,
            final_commit_hash: row.final_commit_hash,
            files_changed: row.git_diff_files_changed,
            added_lines: row.git_diff_added_lines,
            removed_lines: row.git_diff_removed_lines,
            ai_model: row.ai_model,
            created_at: row.created_at.to_jiff(),
            started_at: row.started_at.map(jiff_sqlx::Timestamp::to_jiff),
            completed_at: row.completed_at.map(jiff_sqlx::Timestamp::to_jiff),
            duration_seconds: row.duration_seconds,
            cost: row.cost_estimate,
            cost_source: row.cost_source,
            total_tokens: row.total_tokens,
            turns: row.turns,
        }
    }
}
