//! Rows that a batch becomes, within its transaction: events, messages, tools, what each model used,
//! and the attempt's figures. Which those are is decided in `effects`; that each is written once, by
//! the key of its event.

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::Error;
use super::effects::{RequestRow, Stored, UNKNOWN_MODEL, WORKFLOW_START};
use crate::wire::Batch;

/// Key of an attempt's rows.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) run: Uuid,
    pub(super) attempt: i32,
}

/// Stores what isn't stored yet, and answers the sequences of that, rising.
pub(super) async fn insert_events(
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
pub(super) async fn insert_messages(
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
        "WITH known AS (
             SELECT count(*) AS n FROM messages WHERE id = ANY ($3)
         ), session AS (
             UPDATE sessions SET
                 message_count = message_count + cardinality($3) - known.n::int,
                 last_position = last_position + cardinality($3),
                 metadata = metadata || jsonb_build_object('run_id', $2::uuid)
             FROM known WHERE id = $1
             RETURNING last_position - cardinality($3) AS position
         )
         INSERT INTO messages AS m (id, session_id, run_id, position, sequence, role, message_type, text_content,
                               raw_payload, tool_calls, tool_outputs, usage, created_at)
         SELECT u.id, $1, $2, session.position + u.n, u.sequence, u.role, u.kind, u.text,
                u.raw, u.calls, u.outputs, u.usage, u.at
         FROM session, unnest($3::uuid[], $4::bigint[], $5::text[], $6::text[], $7::text[],
                              $8::jsonb[], $9::jsonb[], $10::jsonb[], $11::jsonb[], $12::timestamptz[])
              WITH ORDINALITY AS u (id, sequence, role, kind, text, raw, calls, outputs, usage, at, n)
         -- Said in two attempts (the task is), it was said first when it was said first, also
         -- where the later attempt's word came before.
         ON CONFLICT (id) DO UPDATE SET
             created_at = EXCLUDED.created_at,
             sequence = EXCLUDED.sequence,
             raw_payload = m.raw_payload || EXCLUDED.raw_payload
         WHERE m.run_id = EXCLUDED.run_id AND EXCLUDED.created_at < m.created_at",
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

/// Counts the calls of tools among the new events.
pub(super) async fn insert_tools(
    tx: &mut Transaction<'_, Postgres>,
    stored: &Stored,
    attempt: Attempt,
    new: &[i64],
) -> Result<(), Error> {
    let (tools, ats): (Vec<String>, Vec<jiff_sqlx::Timestamp>) = stored
        .messages(new)
        .into_iter()
        .flat_map(|(event, message)| {
            let at = event.at.to_sqlx();
            message.tools.iter().map(move |tool| (tool.clone(), at))
        })
        .unzip();
    if tools.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO run_tools AS t (run_id, tool, calls, first_at)
         SELECT $1, u.tool, count(*), min(u.at)
         FROM unnest($2::text[], $3::timestamptz[]) AS u (tool, at) GROUP BY u.tool
         ON CONFLICT (run_id, tool) DO UPDATE SET
             calls = t.calls + EXCLUDED.calls,
             first_at = least(t.first_at, EXCLUDED.first_at)",
        attempt.run,
        &tools,
        ats as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Adds the new requests to what their models used, at the price of their day. Answers the models
/// that have none.
pub(super) async fn insert_requests(
    tx: &mut Transaction<'_, Postgres>,
    stored: &Stored,
    attempt: Attempt,
    new: &[i64],
) -> Result<Vec<String>, Error> {
    let requests = stored.requests(new);
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let ats: Vec<jiff_sqlx::Timestamp> = requests.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    let models: Vec<String> = requests.iter().map(|(_, r)| r.model.clone()).collect();
    let column =
        |of: fn(&RequestRow) -> i64| requests.iter().map(|(_, r)| of(r)).collect::<Vec<_>>();
    // A request that nothing was used by (it was refused) has no price and needs none.
    let rows = sqlx::query!(
        "INSERT INTO run_model_usage AS m
             (run_id, attempt, model, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
              requests, estimated_requests, api_milliseconds, first_at, cost_micro_usd)
         SELECT $1, $2, u.model, sum(u.input)::bigint, sum(u.output)::bigint, sum(u.cache_read)::bigint,
                sum(u.cache_creation)::bigint, count(*), sum(u.estimated)::bigint, sum(u.milliseconds)::bigint,
                min(u.at), CASE WHEN bool_and(c.cost IS NOT NULL) THEN sum(c.cost) END
         FROM unnest($3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                     $9::bigint[], $10::bigint[])
              AS u (model, at, input, output, cache_read, cache_creation, estimated, milliseconds)
         CROSS JOIN LATERAL (SELECT runledger_cost(
              u.model, u.at, u.input, u.output, u.cache_read, u.cache_creation) AS cost) c
         GROUP BY u.model
         ON CONFLICT (run_id, attempt, model) DO UPDATE SET
             input_tokens = m.input_tokens + EXCLUDED.input_tokens,
             output_tokens = m.output_tokens + EXCLUDED.output_tokens,
             cache_read_tokens = m.cache_read_tokens + EXCLUDED.cache_read_tokens,
             cache_creation_tokens = m.cache_creation_tokens + EXCLUDED.cache_creation_tokens,
             requests = m.requests + EXCLUDED.requests,
             estimated_requests = m.estimated_requests + EXCLUDED.estimated_requests,
             api_milliseconds = m.api_milliseconds + EXCLUDED.api_milliseconds,
             first_at = least(m.first_at, EXCLUDED.first_at),
             cost_micro_usd = m.cost_micro_usd + EXCLUDED.cost_micro_usd
         RETURNING model, cost_micro_usd IS NULL AS \"unpriced!\"",
        attempt.run,
        attempt.attempt,
        &models,
        ats as _,
        &column(|r| r.input),
        &column(|r| r.output),
        &column(|r| r.cache_read),
        &column(|r| r.cache_creation),
        &column(|r| i64::from(r.estimated)),
        &column(|r| r.milliseconds),
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows
        .into_iter()
        .filter(|row| row.unpriced && row.model != UNKNOWN_MODEL)
        .map(|row| row.model)
        .collect())
}

/// Moves the attempt's row on, of which the database makes the run's, and answers how far its events
/// are stored without a gap.
pub(super) async fn update_attempt(
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
             -- The event knows more than the pod's termination message, which came to the controller.
             changes = coalesce(coalesce(a.changes, '{}') || $15, a.changes),
             model = CASE WHEN $16::bigint > a.model_sequence THEN $17 ELSE a.model END,
             model_sequence = greatest(a.model_sequence, $16),
             result = CASE WHEN $18::bigint > a.result_sequence THEN $19 ELSE a.result END,
             result_sequence = greatest(a.result_sequence, $18),
             sealed_sequence = coalesce(a.sealed_sequence, $20),
             cli_version = CASE WHEN $21::text IS NOT NULL THEN $21 ELSE a.cli_version END,
             told_requests = a.told_requests + $22,
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
        change.cli_version,
        i64::try_from(stored.requests(new).len()).unwrap_or(i64::MAX),
    )
    .fetch_one(&mut **tx)
    .await?;
    Ok(u64::try_from(acknowledged).unwrap_or_default())
}
