//! What was said in a session: across its runs, by the agent and by humans. A human's word is a row of
//! `messages` and of the audit; no run's row knows of it.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use uuid::Uuid;

use super::audit::{self, Action, Deed, Subject};
use super::size;
use crate::ledger::{Error, Ledger, clean};

/// `message_type` of a human's later word.
pub(super) const INTERVENTION: &str = "intervention";
/// Longest word that a human can say, in bytes.
const MAX_WORD: usize = 256 * 1024;
/// Most of a message that a page shows, in characters; JSON beyond as many bytes is left out.
const MAX_SHOWN: i32 = 64 * 1024;

/// A message of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Its id.
    pub id: Uuid,
    /// The run that it belongs to; nothing where a human spoke between two.
    pub run_id: Option<Uuid>,
    /// Order of arrival in its session; nothing in rows from before.
    pub position: Option<i64>,
    /// Sequence of its event in the run's attempt.
    pub sequence: Option<i64>,
    /// Who speaks: `user` or `assistant`.
    pub role: String,
    /// `workflow_start`, `assistant`, `tool_result`, `intervention`, …
    pub kind: Option<String>,
    /// Which human, where that is known.
    pub user_id: Option<Uuid>,
    /// The text.
    pub text: Option<String>,
    /// Calls of tools.
    pub tool_calls: Option<Value>,
    /// Their results.
    pub tool_outputs: Option<Value>,
    /// There is more of it than is shown here.
    pub cut: bool,
    /// When it was said.
    pub created_at: Timestamp,
}

/// Where a page of a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageKey {
    /// When its last message was said.
    pub created_at: Timestamp,
    /// The sequence of that.
    pub sequence: Option<i64>,
    /// Its id.
    pub id: Uuid,
}

impl Said {
    /// Where the page ends, if this is its last message.
    pub fn key(&self) -> MessageKey {
        MessageKey {
            created_at: self.created_at,
            sequence: self.sequence,
            id: self.id,
        }
    }
}

/// A human's word into a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its id: the same one twice is said once.
    pub id: Uuid,
    /// Namespace of the session.
    pub namespace: String,
    /// The session.
    pub session_id: Uuid,
    /// The run that it is meant for, where one is under way.
    pub run_id: Option<Uuid>,
    /// Who speaks, as the cluster knows them.
    pub actor: String,
    /// And as the users' table does.
    pub user_id: Option<Uuid>,
    /// What they say.
    pub text: String,
}

struct Row {
    id: Uuid,
    run_id: Option<Uuid>,
    position: Option<i64>,
    sequence: Option<i64>,
    role: String,
    kind: Option<String>,
    user_id: Option<Uuid>,
    text: Option<String>,
    tool_calls: Option<Value>,
    tool_outputs: Option<Value>,
    cut: bool,
    created_at: jiff_sqlx::Timestamp,
}

impl Ledger {
    /// A session's conversation, across its runs and with what humans said, the latest first, before
    /// that message.
    pub async fn conversation(
        &self,
        session: Uuid,
        before: Option<MessageKey>,
        asked: u32,
    ) -> Result<Vec<Said>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query_as!(
                Row,
                r#"SELECT id, run_id, position, sequence, role, message_type AS kind, user_id,
                          left(text_content, $6) AS text,
                          CASE WHEN octet_length(tool_calls::text) <= $6 THEN tool_calls END AS tool_calls,
                          CASE WHEN octet_length(tool_outputs::text) <= $6 THEN tool_outputs END AS tool_outputs,
                          (coalesce(length(text_content), 0) > $6 OR coalesce(octet_length(tool_calls::text), 0) > $6
                           OR coalesce(octet_length(tool_outputs::text), 0) > $6) AS "cut!",
                          created_at AS "created_at: jiff_sqlx::Timestamp"
                   FROM messages
                   WHERE session_id = $1 AND ($2::timestamptz IS NULL
                         OR (created_at, coalesce(sequence, 0), id) < ($2, coalesce($3::bigint, 0), $4::uuid))
                   ORDER BY created_at DESC, coalesce(sequence, 0) DESC, id DESC LIMIT $5"#,
                session,
                before.map(|key| key.created_at.to_sqlx()) as _,
                before.and_then(|key| key.sequence),
                before.map(|key| key.id),
                size(asked),
                MAX_SHOWN,
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows.into_iter().map(Said::from).collect())
        })
        .await
    }

    /// What came into a session after that position, in the order of arrival: who asks again with the
    /// last one's position misses nothing.
    pub async fn messages_after(
        &self,
        session: Uuid,
        position: i64,
        asked: u32,
    ) -> Result<Vec<Said>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query_as!(
                Row,
                r#"SELECT id, run_id, position, sequence, role, message_type AS kind, user_id,
                          left(text_content, $4) AS text,
                          CASE WHEN octet_length(tool_calls::text) <= $4 THEN tool_calls END AS tool_calls,
                          CASE WHEN octet_length(tool_outputs::text) <= $4 THEN tool_outputs END AS tool_outputs,
                          (coalesce(length(text_content), 0) > $4 OR coalesce(octet_length(tool_calls::text), 0) > $4
                           OR coalesce(octet_length(tool_outputs::text), 0) > $4) AS "cut!",
                          created_at AS "created_at: jiff_sqlx::Timestamp"
                   FROM messages WHERE session_id = $1 AND position > $2 ORDER BY position LIMIT $3"#,
                session,
                position,
                size(asked),
                MAX_SHOWN,
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows.into_iter().map(Said::from).collect())
        })
        .await
    }

    /// Stores a human's word, and who said it. The same word twice changes nothing. No run's row is
    /// written.
    pub async fn say(&self, word: &Word) -> Result<(), Error> {
        if word.text.trim().is_empty() || word.text.len() > MAX_WORD {
            return Err(Error::Refused(format!(
                "a message has 1 to {MAX_WORD} bytes"
            )));
        }
        let (text, altered) = clean::text(&word.text);
        let raw = if altered {
            serde_json::json!({"altered": true})
        } else {
            serde_json::json!({})
        };
        let deed = Deed {
            actor: word.actor.clone(),
            action: Action::Write,
            allowed: true,
            namespace: word.namespace.clone(),
            subject: Subject::Session(word.session_id),
            detail: Some(word.id.to_string()),
        };
        Self::tries(|| async {
            let mut tx = self.pool.begin().await?;
            let there = sqlx::query_scalar!(
                "SELECT id FROM sessions WHERE id = $1 AND namespace = $2 FOR NO KEY UPDATE",
                word.session_id,
                word.namespace
            )
            .fetch_optional(&mut *tx)
            .await?;
            if there.is_none() {
                return Err(Error::Refused("the namespace has no such session".to_owned()));
            }
            let new = sqlx::query!(
                "INSERT INTO messages (id, session_id, run_id, user_id, role, message_type, text_content,
                                       raw_payload, position)
                 SELECT $1, s.id, $3, $4, 'user', $5, $6, $7, s.last_position + 1
                 FROM sessions s WHERE s.id = $2
                 ON CONFLICT DO NOTHING",
                word.id,
                word.session_id,
                word.run_id,
                word.user_id,
                INTERVENTION,
                text,
                raw,
            )
            .execute(&mut *tx)
            .await?
            .rows_affected();
            if new > 0 {
                sqlx::query!(
                    "UPDATE sessions SET message_count = coalesce(message_count, 0) + 1,
                            last_position = last_position + 1 WHERE id = $1",
                    word.session_id
                )
                .execute(&mut *tx)
                .await?;
                audit::write(&mut tx, &deed).await?;
            }
            tx.commit().await?;
            Ok(())
        })
        .await
    }
}

impl From<Row> for Said {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            run_id: row.run_id,
            position: row.position,
            sequence: row.sequence,
            role: row.role,
            kind: row.kind,
            user_id: row.user_id,
            text: row.text,
            tool_calls: row.tool_calls,
            tool_outputs: row.tool_outputs,
            cut: row.cut,
            created_at: row.created_at.to_jiff(),
        }
    }
}
