//! What a list of runs is asked for: filters, order, and where the page before ended.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use uuid::Uuid;

use crate::api::run::Phase;
use crate::ledger::records::status;

/// Which runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Of this namespace; of all where absent.
    pub namespace: Option<String>,
    /// In this phase.
    pub phase: Option<Phase>,
    /// Of this workflow.
    pub workflow_name: Option<String>,
    /// Asked for by this user.
    pub user_id: Option<Uuid>,
    /// Of this session.
    pub session_id: Option<Uuid>,
    /// On this branch.
    pub git_branch: Option<String>,
    /// Created then or later.
    pub created_after: Option<Timestamp>,
    /// Created then or before.
    pub created_before: Option<Timestamp>,
    /// With this label: key and value.
    pub label: Option<(String, String)>,
}

/// What a list is ordered by. Runs without a value come last, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// When it was created.
    #[default]
    CreatedAt,
    /// When it ended.
    CompletedAt,
    /// How long it took.
    DurationSeconds,
    /// Name of its workflow.
    WorkflowName,
    /// Its status, by name.
    Status,
    /// What it cost.
    CostEstimate,
    /// All its tokens.
    TotalTokens,
    /// Its branch.
    GitBranch,
}

/// Direction of an [`Order`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Greatest, or latest, first.
    #[default]
    Descending,
    /// Least, or earliest, first.
    Ascending,
}

/// Where a page ended: the next one begins after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunKey {
    /// The run's value of the order's column, as the database writes it.
    pub value: Option<String>,
    /// The run.
    pub id: Uuid,
}

/// The filter in the database's terms.
pub(super) struct Terms<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) status: Option<&'static str>,
    pub(super) workflow_name: Option<&'a str>,
    pub(super) user_id: Option<Uuid>,
    pub(super) session_id: Option<Uuid>,
    pub(super) git_branch: Option<&'a str>,
    pub(super) created_after: Option<jiff_sqlx::Timestamp>,
    pub(super) created_before: Option<jiff_sqlx::Timestamp>,
    pub(super) label_key: Option<&'a str>,
    pub(super) label_value: Option<&'a str>,
    pub(super) value: Option<&'a str>,
    pub(super) id: Option<Uuid>,
    pub(super) limit: i64,
}

impl<'a> Terms<'a> {
    /// With the end of the page before, and the most rows.
    pub(super) fn of(filter: &'a RunFilter, after: Option<&'a RunKey>, limit: i64) -> Self {
        let label = filter.label.as_ref();
        Self {
            namespace: filter.namespace.as_deref(),
            status: filter.phase.map(status),
            workflow_name: filter.workflow_name.as_deref(),
            user_id: filter.user_id,
            session_id: filter.session_id,
            git_branch: filter.git_branch.as_deref(),
            created_after: filter.created_after.map(ToSqlx::to_sqlx),
            created_before: filter.created_before.map(ToSqlx::to_sqlx),
            label_key: label.map(|(key, _)| key.as_str()),
            label_value: label.map(|(_, value)| value.as_str()),
            value: after.and_then(|key| key.value.as_deref()),
            id: after.map(|key| key.id),
            limit,
        }
    }
}
