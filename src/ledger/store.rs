//! Events → ledger: a batch in one transaction, keyed by (run, attempt, sequence), so that the same
//! event sent twice changes nothing. Locks are taken in one order everywhere: the run, its attempts,
//! the session.

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::effects::{Stored, WORKFLOW_START};
use super::{Error, Ledger, clean};
use crate::wire::{Batch, BatchAccepted};

/// The run that a batch belongs to, as its sender was checked for it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl Ledger {
    /// Stores a batch whose sender has been checked. `now` decides the day of an attempt whose first
    /// event this is.
    pub async fn store(
        &self,
        target: Target<'_>,
        batch: &Batch,
        now: Timestamp,
    ) -> Result<BatchAccepted, Error> {
        let stored = Stored::of(batch)?;
        let today = now.to_zoned(TimeZone::UTC).date();
        Self::tries(|| async {
            self.ensure_partition(today).await?;
            let mut day = today;
            match self.write_batch(target, batch, &stored, &mut day).await {
                // The attempt's own partition is gone, or this one was made in another life of the database.
                Err(error) if error.code().as_deref() == Some("23514") => {
                    *self.partition.lock().await = None;
                    self.ensure_partition(day).await?;
                    self.write_batch(target, batch, &stored, &mut day).await
                }
                other => other,
            }
        })
        .await
    }

    /// Makes the day's partition in a transaction of its own, before any lock is held.
    async fn ensure_partition(&self, day: Date) -> Result<(), Error> {
        let mut known = self.partition.lock().await;
        if *known != Some(day) {
            sqlx::query!("SELECT runledger_event_partition($1)", day.to_sqlx() as _)
                .execute(&self.pool)
                .await?;
            *known = Some(day);
        }
        Ok(())
    }

    async fn write_batch(
        &self,
        target: Target<'_>,
        batch: &Batch,
        stored: &Stored,
        day: &mut Date,
    ) -> Result<BatchAccepted, Error> {
        let mut tx = self.pool.begin().await?;
        let attempt = Attempt {
            run: batch.run_id,
            attempt: stored.attempt,
        };
        *day = open(&mut tx, target, batch, attempt, *day).await?;
        let new = insert_events(&mut tx, stored, attempt, *day).await?;
        insert_messages(&mut tx, batch, stored, &new).await?;
        let acknowledged = update_attempt(&mut tx, stored, attempt, *day, &new).await?;
        tx.commit().await?;
        Ok(BatchAccepted { acknowledged })
    }
}

#[derive(Clone, Copy)]
struct Attempt {
    run: Uuid,
    attempt: i32,
}

/// Locks the run's row, making a stub of it where events come before the mirror, and answers the day
/// of the attempt.
async fn open(
    tx: &mut Transaction<'_, Postgres>,
    target: Target<'_>,
    batch: &Batch,
    attempt: Attempt,
    today: Date,
) -> Result<Date, Error> {
    let found = lock(tx, attempt).await?;
    let (session, day) = match found {
        Some((session, Some(day))) => (session, day),
        _ => {
            make(tx, target, batch, attempt, today).await?;
            match lock(tx, attempt).await? {
                Some((session, Some(day))) => (session, day),
                _ => return Err(Error::Database(sqlx::Error::RowNotFound)),
            }
        }
    };
    match session {
        Some(session) if session != batch.session_id => Err(Error::Refused(format!(
            "the run belongs to session {session}, not to {}",
            batch.session_id
        ))),
        _ => Ok(day),
    }
}

/// The run's session and the attempt's day, with the run's row locked; nothing where it isn't there.
async fn lock(
    tx: &mut Transaction<'_, Postgres>,
    attempt: Attempt,
) -> Result<Option<(Option<Uuid>, Option<Date>)>, Error> {
    let row = sqlx::query!(
        r#"SELECT r.session_id,
                  (SELECT a.started_day FROM run_attempts a
                   WHERE a.run_id = r.id AND a.attempt = $2) AS "day: jiff_sqlx::Date"
           FROM workflow_runs r WHERE r.id = $1 FOR NO KEY UPDATE OF r"#,
        attempt.run,
        attempt.attempt,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.map(|row| (row.session_id, row.day.map(|day| day.to_jiff()))))
}

async fn make(
    tx: &mut Transaction<'_, Postgres>,
    target: Target<'_>,
    batch: &Batch,
    attempt: Attempt,
    today: Date,
) -> Result<(), Error> {
    let session_name = clean::cut(&clean::text(&batch.session_name).0, 255);
    // The session of a run that was deleted from under it comes back with its next words.
    sqlx::query!(
        "WITH session AS (
             INSERT INTO sessions (id, namespace, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
         )
         INSERT INTO workflow_runs AS r
             (id, run_id, namespace, name, workflow_name, agent_type, task_input,
              session_id, session_name, attempt, created_at)
         VALUES ($4, $4::uuid::text, $2, $5, 'unknown', 'claude', runledger_no_task(), $1, $3, $6, now())
         ON CONFLICT (id) DO UPDATE SET
             session_id = coalesce(r.session_id, EXCLUDED.session_id),
             session_name = coalesce(r.session_name, EXCLUDED.session_name)",
        batch.session_id,
        target.namespace,
        session_name,
        attempt.run,
        target.name,
        attempt.attempt,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO run_attempts AS a (run_id, attempt, started_day) VALUES ($1, $2, $3)
         ON CONFLICT (run_id, attempt) DO UPDATE SET started_day = coalesce(a.started_day, EXCLUDED.started_day)",
        attempt.run,
        attempt.attempt,
        today.to_sqlx() as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Stores what isn't stored yet, and answers the sequences of that, rising.
async fn insert_events(
    tx: &mut Transaction<'_, Postgres>,
    stored: &Stored,
    attempt: Attempt,
    day: Date,
) -> Result<Vec<i64>, Error> {
    if stored.events.is_empty() {
        return Ok(Vec::new());
    }
    let events = &stored.events;
    let sequences: Vec<i64> = events.iter().map(|e| e.sequence).collect();
    let ats: Vec<jiff_sqlx::Timestamp> = events.iter().map(|e| e.at.to_sqlx()).collect();
    let kinds: Vec<String> = events.iter().map(|e| e.kind.clone()).collect();
    let bodies: Vec<Value> = events.iter().map(|e| e.body.clone()).collect();
    let altered: Vec<bool> = events.iter().map(|e| e.altered).collect();
    let mut new = sqlx::query_scalar!(
        "INSERT INTO run_events (run_id, attempt, sequence, started_day, at, type, body, altered)
         SELECT $1, $2, u.sequence, $3, u.at, u.type, u.body, u.altered
         FROM unnest($4::bigint[], $5::timestamptz[], $6::text[], $7::jsonb[], $8::bool[])
              AS u (sequence, at, type, body, altered)
         ON CONFLICT DO NOTHING
         RETURNING sequence",
        attempt.run,
        attempt.attempt,
        day.to_sqlx() as _,
        &sequences,
        ats as _,
        &kinds,
        &bodies,
        &altered,
    )
    .fetch_all(&mut **tx)
    .await?;
    new.sort_unstable();
    Ok(new)
}

/// Stores the messages among the new events and counts them in their session; the task fills in the
/// run's.
async fn insert_messages(
    tx: &mut Transaction<'_, Postgres>,
    batch: &Batch,
    stored: &Stored,
    new: &[i64],
) -> Result<(), Error> {
    let rows = stored.messages(new);
    if rows.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = rows.iter().map(|(_, m)| m.id).collect();
    let sequences: Vec<i64> = rows.iter().map(|(e, _)| e.sequence).collect();
    let roles: Vec<String> = rows.iter().map(|(_, m)| m.role.to_owned()).collect();
    let kinds: Vec<String> = rows.iter().map(|(_, m)| m.kind.to_owned()).collect();
    let texts: Vec<String> = rows.iter().map(|(_, m)| m.text.clone()).collect();
    let raw: Vec<Value> = rows.iter().map(|(_, m)| m.raw_payload.clone()).collect();
    let calls: Vec<Value> = rows.iter().map(|(_, m)| m.tool_calls.clone()).collect();
    let outputs: Vec<Value> = rows.iter().map(|(_, m)| m.tool_outputs.clone()).collect();
    let usages: Vec<Value> = rows.iter().map(|(_, m)| m.usage.clone()).collect();
    let ats: Vec<jiff_sqlx::Timestamp> = rows.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    sqlx::query!(
        "WITH stored AS (
             INSERT INTO messages AS m (id, session_id, run_id, sequence, role, message_type, text_content,
                                   raw_payload, tool_calls, tool_outputs, usage, created_at)
             SELECT u.id, $1, $2, u.sequence, u.role, u.kind, u.text,
                    u.raw, u.calls, u.outputs, u.usage, u.at
             FROM unnest($3::uuid[], $4::bigint[], $5::text[], $6::text[], $7::text[],
                         $8::jsonb[], $9::jsonb[], $10::jsonb[], $11::jsonb[], $12::timestamptz[])
                  AS u (id, sequence, role, kind, text, raw, calls, outputs, usage, at)
             -- Said in two attempts (the task is), it was said first when it was said first, also
             -- where the later attempt's word came before.
             ON CONFLICT (id) DO UPDATE SET
                 created_at = EXCLUDED.created_at,
                 sequence = EXCLUDED.sequence,
                 raw_payload = m.raw_payload || EXCLUDED.raw_payload
             WHERE m.run_id = EXCLUDED.run_id AND EXCLUDED.created_at < m.created_at
             RETURNING xmax = 0 AS new
         )
         UPDATE sessions SET
             message_count = message_count + (SELECT count(*) FROM stored WHERE new)::int,
             metadata = metadata || jsonb_build_object('run_id', $2::uuid)
         WHERE id = $1 AND EXISTS (SELECT FROM stored WHERE new)",
        batch.session_id,
        batch.run_id,
        &ids,
        &sequences,
        &roles,
        &kinds,
        &texts,
        &raw,
        &calls,
        &outputs,
        &usages,
        ats as _,
    )
    .execute(&mut **tx)
    .await?;
    if let Some((_, task)) = rows.iter().find(|(_, m)| m.kind == WORKFLOW_START) {
        sqlx::query!(
            "UPDATE workflow_runs SET task_input = $2 WHERE id = $1 AND task_input = runledger_no_task()",
            batch.run_id,
            task.text,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Moves the attempt's row on, of which the database makes the run's, and answers how far its events
/// are stored without a gap.
async fn update_attempt(
    tx: &mut Transaction<'_, Postgres>,
    stored: &Stored,
    attempt: Attempt,
    day: Date,
    new: &[i64],
) -> Result<u64, Error> {
    let change = stored.change(new);
    let figures = change.figures;
    let (model_sequence, model) = change.model.unzip();
    let (result_sequence, result) = change.result.unzip();
    let acknowledged = sqlx::query_scalar!(
        "UPDATE run_attempts a SET
             input_tokens = greatest(a.input_tokens, $4),
             output_tokens = greatest(a.output_tokens, $5),
             cache_read_tokens = greatest(a.cache_read_tokens, $6),
             cache_creation_tokens = greatest(a.cache_creation_tokens, $7),
             cost_micro_usd = greatest(a.cost_micro_usd, $8),
             turns = greatest(a.turns, $9),
             requests = greatest(a.requests, $10),
             estimated_requests = greatest(a.estimated_requests, $11),
             repository = coalesce(a.repository, $12),
             branch = coalesce(a.branch, $13),
             initial_commit = coalesce(a.initial_commit, $14),
             changes = coalesce(a.changes, $15),
             model = CASE WHEN $16::bigint > a.model_sequence THEN $17 ELSE a.model END,
             model_sequence = greatest(a.model_sequence, $16),
             result = CASE WHEN $18::bigint > a.result_sequence THEN $19 ELSE a.result END,
             result_sequence = greatest(a.result_sequence, $18),
             sealed_sequence = coalesce(a.sealed_sequence, $20),
             acknowledged = (
                 SELECT coalesce(max(s.sequence), a.acknowledged)
                 FROM (SELECT e.sequence, row_number() OVER (ORDER BY e.sequence) AS n
                       FROM run_events e
                       WHERE e.run_id = $1 AND e.attempt = $2 AND e.started_day = $3
                         AND e.sequence > a.acknowledged) s
                 WHERE s.sequence = a.acknowledged + s.n)
         WHERE a.run_id = $1 AND a.attempt = $2
         RETURNING a.acknowledged",
        attempt.run,
        attempt.attempt,
        day.to_sqlx() as _,
        figures.input,
        figures.output,
        figures.cache_read,
        figures.cache_creation,
        figures.cost,
        figures.turns,
        figures.requests,
        figures.estimated,
        change.repository,
        change.branch,
        change.initial_commit,
        change.changes,
        model_sequence,
        model,
        result_sequence,
        result,
        change.sealed,
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(u64::try_from(acknowledged).unwrap_or_default())
}
