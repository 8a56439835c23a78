//! Sessions of a namespace, as a page of chats shows them, and what waits for a human.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use rust_decimal::Decimal;
use uuid::Uuid;

use super::size;
use crate::ledger::{Error, Ledger};
use crate::names::reasons;

/// Reasons of a pending run that only a person can do something about.
const FOR_A_PERSON: [&str; 6] = [
    reasons::MISSING_SECRET,
    reasons::MISSING_CONFIG_MAP,
    reasons::MISSING_STORAGE_CLASS,
    reasons::AUTHENTICATION_FAILED,
    reasons::HOST_NOT_ALLOWED,
    reasons::POD_REFUSED,
];
/// Most that is shown of a last message, in characters.
const MAX_LAST: i32 = 300;

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// No run of it is known.
    Empty,
    /// A run of it is under way.
    Working,
    /// A run of it waits for what only a person can do; its reason says what.
    NeedsHelp,
    /// Its last run has ended, and nobody has said a word since.
    YourTurn,
    /// A human has said a word since its last run ended, which no run has taken up.
    Unanswered,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: Option<String>,
    /// How it stands.
    pub state: SessionState,
    /// Messages in it.
    pub message_count: i32,
    /// Highest position among them: what is after it has not been seen.
    pub last_position: i64,
    /// When something was last said or done in it.
    pub updated_at: Timestamp,
    /// Who spoke last.
    pub last_role: Option<String>,
    /// The beginning of what they said.
    pub last_text: Option<String>,
    /// Its latest run.
    pub run_id: Option<Uuid>,
    /// The status of that.
    pub run_status: Option<String>,
    /// And why, in one word.
    pub run_reason: Option<String>,
}

/// Where a page of sessions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// `updated_at` of the last session.
    pub updated_at: Timestamp,
    /// Its id.
    pub id: Uuid,
}

impl SessionSummary {
    /// Where the page ends, if this is its last session.
    pub fn key(&self) -> SessionKey {
        SessionKey {
            updated_at: self.updated_at,
            id: self.id,
        }
    }
}

impl Ledger {
    /// Sessions of a namespace, those first in which something happened last, after that one.
    pub async fn sessions(
        &self,
        namespace: &str,
        after: Option<SessionKey>,
        asked: u32,
    ) -> Result<Vec<SessionSummary>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query!(
                r#"SELECT s.id, s.name, coalesce(s.message_count, 0) AS "message_count!", s.last_position,
                          s.updated_at AS "updated_at: jiff_sqlx::Timestamp",
                          m.role AS "last_role?", m.text AS last_text, m.message_type AS "last_type?",
                          m.created_at AS "last_at?: jiff_sqlx::Timestamp",
                          r.id AS "run_id?", r.status AS "run_status?", r.reason AS run_reason,
                          r.completed_at AS "run_completed_at?: jiff_sqlx::Timestamp"
                   FROM sessions s
                   LEFT JOIN LATERAL (
                       SELECT l.role, left(l.text_content, $5) AS text, l.message_type, l.created_at
                       FROM messages l WHERE l.session_id = s.id
                       ORDER BY l.created_at DESC, l.sequence DESC LIMIT 1
                   ) m ON true
                   LEFT JOIN LATERAL (
                       SELECT w.id, w.status, w.reason, w.completed_at
                       FROM workflow_runs w WHERE w.session_id = s.id
                       ORDER BY w.created_at DESC, w.id DESC LIMIT 1
                   ) r ON true
                   WHERE s.namespace = $1
                     AND ($2::timestamptz IS NULL OR (s.updated_at, s.id) < ($2, $3::uuid))
                   ORDER BY s.updated_at DESC, s.id DESC LIMIT $4"#,
                namespace,
                after.map(|key| key.updated_at.to_sqlx()) as _,
                after.map(|key| key.id),
                size(asked),
                MAX_LAST,
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows
                .into_iter()
                .map(|row| {
                    let said_since = row.last_type.as_deref() == Some(super::messages::INTERVENTION)
                        && row.last_at.map(jiff_sqlx::Timestamp::to_jiff)
                            >= row.run_completed_at.map(jiff_sqlx::Timestamp::to_jiff);
                    SessionSummary {
                        state: state(
                            row.run_status.as_deref(),
                            row.run_reason.as_deref(),
                            said_since,
                        ),
                        id: row.id,
                        name: row.name,
                        message_count: row.message_count,
                        last_position: row.last_position,
                        updated_at: row.updated_at.to_jiff(),
                        last_role: row.last_role,
                        last_text: row.last_text,
                        run_id: row.run_id,
                        run_status: row.run_status,
                        run_reason: row.run_reason,
                    }
                })
                .collect())
        })
        .await
    }

    /// Runs of a namespace that wait for what only a person can do, the oldest first: run and reason.
    pub async fn waiting_for_a_person(
        &self,
        namespace: &str,
        asked: u32,
    ) -> Result<Vec<(Uuid, String)>, Error> {
        let reasons = FOR_A_PERSON.map(str::to_owned);
        Self::tries(|| async {
            let rows = sqlx::query!(
                r#"SELECT id, reason AS "reason!" FROM workflow_runs
                   WHERE namespace = $1 AND status IN ('pending', 'running') AND reason = ANY ($2)
                   ORDER BY created_at, id LIMIT $3"#,
                namespace,
                &reasons,
                size(asked)
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows.into_iter().map(|row| (row.id, row.reason)).collect())
        })
        .await
    }

    /// What a session's runs have cost together, and whether that is all of it: a run whose cost is
    /// unknown or known in part makes it less.
    pub async fn session_cost(&self, session: Uuid) -> Result<(Option<Decimal>, bool), Error> {
        Self::tries(|| async {
            let row = sqlx::query!(
                r#"SELECT sum(cost_estimate) AS cost,
                          coalesce(bool_and(cost_source IS DISTINCT FROM 'partial'
                              AND (cost_estimate IS NOT NULL OR total_tokens = 0)), true) AS "all!"
                   FROM workflow_runs WHERE session_id = $1"#,
                session
            )
            .fetch_one(&self.readers)
            .await?;
            Ok((row.cost, row.all))
        })
        .await
    }
}

fn state(status: Option<&str>, reason: Option<&str>, said_since: bool) -> SessionState {
    match status {
        None => SessionState::Empty,
        Some("pending" | "running") if reason.is_some_and(|r| FOR_A_PERSON.contains(&r)) => {
            SessionState::NeedsHelp
        }
        Some("pending" | "running") => SessionState::Working,
        Some(_) if said_since => SessionState::Unanswered,
        Some(_) => SessionState::YourTurn,
    }
}
