//! Rows that a batch becomes, within its transaction: events, messages, tools, what each model used,
//! and the attempt's figures. Which those are is decided in `effects`; that each is written once, by
//! the key of its event.

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::Error;
use super::effects::{MessageRow, RequestRow, Stored, UNKNOWN_MODEL, WORKFLOW_START};
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
    let kinds: Vec<&str> = events.iter().map(|e| &*e.told.kind).collect();
    let bodies: Vec<&str> = events.iter().map(|e| &*e.told.body).collect();
    let altered: Vec<bool> = events.iter().map(|e| e.told.altered).collect();
    let mut new = sqlx::query_scalar!(
        "INSERT INTO run_events (run_id, attempt, sequence, started_day, at, type, body, altered)
         -- Not from unnest, where each array would become a table first: that took most of the time.
         SELECT $1, $2, unnest($4::bigint[]), $3, unnest($5::timestamptz[]), unnest($6::text[]),
                unnest($7::text[])::jsonb, unnest($8::bool[])
         ON CONFLICT DO NOTHING
         RETURNING sequence",
        attempt.run,
        attempt.attempt,
        day.to_sqlx() as _,
        &sequences,
        ats as _,
        &kinds as &[&str],
        &bodies as &[&str],
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
    let text = |of: fn(&MessageRow) -> &str| rows.iter().map(|(_, m)| of(m)).collect::<Vec<_>>();
    let ats: Vec<jiff_sqlx::Timestamp> = rows.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    let new = sqlx::query_scalar!(
        r#"WITH session AS (
             UPDATE sessions SET
                 message_count = message_count + cardinality($3::uuid[]),
                 last_position = last_position + cardinality($3::uuid[]),
                 metadata = metadata || jsonb_build_object('run_id', $2::uuid)
             WHERE id = $1
             RETURNING last_position - cardinality($3::uuid[]) AS position
         ), said AS (
             INSERT INTO messages AS m (id, session_id, run_id, position, sequence, role, message_type,
                                        text_content, raw_payload, tool_calls, tool_outputs, usage, created_at)
             -- Not from unnest, as above.
             SELECT unnest($3::uuid[]), $1, $2, session.position + generate_series(1, cardinality($3::uuid[])),
                    unnest($4::bigint[]), unnest($5::text[]), unnest($6::text[]), unnest($7::text[]),
                    unnest($8::text[])::jsonb, unnest($9::text[])::jsonb, unnest($10::text[])::jsonb,
                    unnest($11::text[])::jsonb, unnest($12::timestamptz[])
             FROM session
             -- Said in two attempts (the task is), it was said first when it was said first, also
             -- where the later attempt's word came before.
             ON CONFLICT (id) DO UPDATE SET
                 created_at = EXCLUDED.created_at,
                 sequence = EXCLUDED.sequence,
                 raw_payload = m.raw_payload || EXCLUDED.raw_payload
             WHERE m.run_id = EXCLUDED.run_id AND EXCLUDED.created_at < m.created_at
             -- A row that was there before has been locked for its update.
             RETURNING m.xmax = 0 AS new
         )
         SELECT count(*) FILTER (WHERE new) AS "new!" FROM said"#,
        batch.session_id,
        batch.run_id,
        &ids,
        &sequences,
        &text(|m| m.role) as &[&str],
        &text(|m| m.kind) as &[&str],
        &text(|m| &m.text) as &[&str],
        &text(|m| &m.raw_payload) as &[&str],
        &text(|m| &m.tool_calls) as &[&str],
        &text(|m| &m.tool_outputs) as &[&str],
        &text(|m| &m.usage) as &[&str],
        ats as _,
    )
    .fetch_one(&mut **tx)
    .await?;
    let known = rows.len() - usize::try_from(new).unwrap_or_default();
    if known > 0 {
        sqlx::query!(
            "UPDATE sessions SET message_count = message_count - $2 WHERE id = $1",
            batch.session_id,
            i32::try_from(known).unwrap_or(i32::MAX),
        )
        .execute(&mut **tx)
        .await?;
    }
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
    // Priced together where the prices are the same, which they are between two of their dates. What
    // nothing was used of (a request may be refused) has no price and needs none.
    let rows = sqlx::query!(
        "WITH priced AS (
             SELECT u.model, sum(u.input)::bigint AS input, sum(u.output)::bigint AS output,
                    sum(u.cache_read)::bigint AS cache_read, sum(u.cache_creation)::bigint AS cache_creation,
                    count(*) AS requests, sum(u.estimated) AS estimated, sum(u.milliseconds) AS milliseconds,
                    min(u.at) AS first_at, max(u.at) AS last_at
             FROM unnest($3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                         $9::bigint[], $10::bigint[])
                  AS u (model, at, input, output, cache_read, cache_creation, estimated, milliseconds)
             GROUP BY u.model, width_bucket(u.at, ARRAY(SELECT DISTINCT valid_from FROM model_prices ORDER BY 1))
         )
         INSERT INTO run_model_usage AS m
             (run_id, attempt, model, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
              requests, estimated_requests, api_milliseconds, first_at, cost_micro_usd)
         SELECT $1, $2, p.model, sum(p.input)::bigint, sum(p.output)::bigint, sum(p.cache_read)::bigint,
                sum(p.cache_creation)::bigint, sum(p.requests)::bigint, sum(p.estimated)::bigint,
                sum(p.milliseconds)::bigint, min(p.first_at),
                CASE WHEN bool_and(c.cost IS NOT NULL) THEN sum(c.cost) END
         FROM priced p CROSS JOIN LATERAL (SELECT runledger_cost(
              p.model, p.last_at, p.input, p.output, p.cache_read, p.cache_creation) AS cost) c
         GROUP BY p.model
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
