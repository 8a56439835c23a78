//! Rows that a batch becomes, within its transaction: events, messages, tools, what each model used,
//! and the attempt's figures. Which those are is decided in `effects`; that each is written once, by
//! the key of its event.
//!
//! Nothing is asked row by row. What is there already is known before: a batch that goes on where its
//! attempt's events end has nothing of it, of any other it is read. Where that turns out not to be so
//! (another stored the same at that moment) the statement fails as a whole, and is tried with what is
//! there then.

mod known;

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff_sqlx::ToSqlx;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

pub(super) use self::known::Known;
use super::Error;
use super::effects::{EventRow, MessageRow, RequestRow, Stored, UNKNOWN_MODEL, WORKFLOW_START};
use crate::wire::Batch;

/// Key of an attempt's rows.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) run: Uuid,
    pub(super) attempt: i32,
}

/// What was stored.
pub(super) struct Inserted {
    /// Sequences of events that had not had their effect yet, rising.
    pub(super) new: Vec<i64>,
    /// Up to where the attempt's events are stored without a gap.
    pub(super) acknowledged: u64,
    /// Models of requests that have no price.
    pub(super) unpriced: Vec<String>,
}

/// Stores what isn't known: the events; the messages among them, counted in their session; the calls
/// of tools; what requests used, at the price of their day. Moves the attempt's row on, of which the
/// database makes the run's. Fails with a unique violation where an event or message is there that is
/// not known.
pub(super) async fn insert(
    tx: &mut Transaction<'_, Postgres>,
    batch: &Batch,
    stored: &Stored,
    attempt: Attempt,
    day: Date,
    known: &Known,
) -> Result<Inserted, Error> {
    let mut told = stored.sequences();
    told.retain(|sequence| known.sequences.binary_search(sequence).is_err());
    // What was stored before and is gone with its partition has had its effect.
    let new: Vec<i64> = told
        .iter()
        .copied()
        .filter(|s| *s > known.acknowledged)
        .collect();
    let reached = (known.acknowledged + 1..)
        .zip(&new)
        .take_while(|(next, sequence)| next == *sequence)
        .last()
        .map_or(known.acknowledged, |(next, _)| next);
    let ahead = &new[new.partition_point(|sequence| *sequence <= reached)..];

    let events: Vec<_> = stored.among(&told).collect();
    let ats: Vec<jiff_sqlx::Timestamp> = events.iter().map(|e| e.at.to_sqlx()).collect();
    let kinds: Vec<&str> = events.iter().map(|e| &*e.told.kind).collect();
    let bodies: Vec<&str> = events.iter().map(|e| &*e.told.body).collect();
    let altered: Vec<bool> = events.iter().map(|e| e.told.altered).collect();

    let mut said = stored.messages(&new);
    let tools = tools(&said);
    said.retain(|(_, message)| !known.messages.contains(&message.id));
    let ids: Vec<Uuid> = said.iter().map(|(_, m)| m.id).collect();
    let said_sequences: Vec<i64> = said.iter().map(|(e, _)| e.sequence).collect();
    let said_ats: Vec<jiff_sqlx::Timestamp> = said.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    let text = |of: fn(&MessageRow) -> &str| said.iter().map(|(_, m)| of(m)).collect::<Vec<_>>();

    let tool_names: Vec<&str> = tools.keys().copied().collect();
    let tool_calls: Vec<i64> = tools.values().map(|(calls, _)| *calls).collect();
    let tool_ats: Vec<jiff_sqlx::Timestamp> = tools.values().map(|(_, at)| at.to_sqlx()).collect();

    let requests = stored.requests(&new);
    let request_ats: Vec<jiff_sqlx::Timestamp> =
        requests.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    let models: Vec<&str> = requests.iter().map(|(_, r)| &*r.model).collect();
    let column =
        |of: fn(&RequestRow) -> i64| requests.iter().map(|(_, r)| of(r)).collect::<Vec<_>>();

    let change = stored.change(&new);
    let figures = change.figures;
    let (model_sequence, model) = change.model.unzip();
    let (result_sequence, result) = change.result.unzip();
    let row = sqlx::query!(
        r#"WITH told AS (
             INSERT INTO run_events (run_id, attempt, sequence, started_day, at, type, body, altered)
             -- Not from unnest, where each array would become a table first: that took most of the time.
             SELECT $1, $2, unnest($4::bigint[]), $3, unnest($5::timestamptz[]), unnest($6::text[]),
                    unnest($7::text[])::jsonb, unnest($8::bool[])
         ), session AS (
             UPDATE sessions SET
                 message_count = message_count + cardinality($10::uuid[]),
                 last_position = last_position + cardinality($10::uuid[]),
                 metadata = metadata || jsonb_build_object('run_id', $1::uuid)
             WHERE id = $9 AND cardinality($10::uuid[]) > 0
             RETURNING last_position - cardinality($10::uuid[]) AS position
         ), said AS (
             INSERT INTO messages (id, session_id, run_id, position, sequence, role, message_type,
                                   text_content, raw_payload, tool_calls, tool_outputs, usage, created_at)
             SELECT unnest($10::uuid[]), $9, $1, session.position + generate_series(1, cardinality($10::uuid[])),
                    unnest($11::bigint[]), unnest($12::text[]), unnest($13::text[]), unnest($14::text[]),
                    unnest($15::text[])::jsonb, unnest($16::text[])::jsonb, unnest($17::text[])::jsonb,
                    unnest($18::text[])::jsonb, unnest($19::timestamptz[])
             FROM session
         ), tools AS (
             INSERT INTO run_tools AS t (run_id, tool, calls, first_at)
             SELECT $1, unnest($20::text[]), unnest($21::bigint[]), unnest($22::timestamptz[])
             ON CONFLICT (run_id, tool) DO UPDATE SET
                 calls = t.calls + EXCLUDED.calls,
                 first_at = least(t.first_at, EXCLUDED.first_at)
         ), priced AS (
             -- Priced together where the prices are the same, which they are between two of their dates.
             SELECT u.model, sum(u.input)::bigint AS input, sum(u.output)::bigint AS output,
                    sum(u.cache_read)::bigint AS cache_read, sum(u.cache_creation)::bigint AS cache_creation,
                    count(*) AS requests, sum(u.estimated) AS estimated, sum(u.milliseconds) AS milliseconds,
                    min(u.at) AS first_at, max(u.at) AS last_at
             FROM unnest($23::text[], $24::timestamptz[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[],
                         $29::bigint[], $30::bigint[])
                  AS u (model, at, input, output, cache_read, cache_creation, estimated, milliseconds)
             GROUP BY u.model, width_bucket(u.at, ARRAY(SELECT DISTINCT valid_from FROM model_prices ORDER BY 1))
         ), used AS (
             -- What nothing was used of (a request may be refused) has no price and needs none.
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
             RETURNING model, cost_micro_usd IS NULL AS unpriced
         )
         UPDATE run_attempts a SET
             input_tokens = greatest(a.input_tokens, $31),
             output_tokens = greatest(a.output_tokens, $32),
             cache_read_tokens = greatest(a.cache_read_tokens, $33),
             cache_creation_tokens = greatest(a.cache_creation_tokens, $34),
             cost_micro_usd = greatest(a.cost_micro_usd, $35),
             turns = greatest(a.turns, $36),
             requests = greatest(a.requests, $37),
             estimated_requests = greatest(a.estimated_requests, $38),
             repository = coalesce(a.repository, $39),
             branch = coalesce(a.branch, $40),
             initial_commit = coalesce(a.initial_commit, $41),
             -- The event knows more than the pod's termination message, which came to the controller.
             changes = coalesce(coalesce(a.changes, '{}') || $42, a.changes),
             model = CASE WHEN $43::bigint > a.model_sequence THEN $44 ELSE a.model END,
             model_sequence = greatest(a.model_sequence, $43),
             result = CASE WHEN $45::bigint > a.result_sequence THEN $46 ELSE a.result END,
             result_sequence = greatest(a.result_sequence, $45),
             sealed_sequence = coalesce(a.sealed_sequence, $47),
             cli_version = CASE WHEN $48::text IS NOT NULL THEN $48 ELSE a.cli_version END,
             told_requests = a.told_requests + cardinality($23::text[]),
             -- What this statement inserts it can't see: that is counted up to $49, and beyond it in $50.
             acknowledged = runledger_stored_up_to($1, $2, $3, greatest(a.acknowledged, $49), $50)
         WHERE a.run_id = $1 AND a.attempt = $2
         RETURNING a.acknowledged, ARRAY(SELECT u.model FROM used u WHERE u.unpriced) AS "unpriced!""#,
        attempt.run,
        attempt.attempt,
        day.to_sqlx() as _,
        &told,
        ats as _,
        &kinds as &[&str],
        &bodies as &[&str],
        &altered,
        batch.session_id,
        &ids,
        &said_sequences,
        &text(|m| m.role) as &[&str],
        &text(|m| m.kind) as &[&str],
        &text(|m| &m.text) as &[&str],
        &text(|m| &m.raw_payload) as &[&str],
        &text(|m| &m.tool_calls) as &[&str],
        &text(|m| &m.tool_outputs) as &[&str],
        &text(|m| &m.usage) as &[&str],
        said_ats as _,
        &tool_names as &[&str],
        &tool_calls,
        tool_ats as _,
        &models as &[&str],
        request_ats as _,
        &column(|r| r.input),
        &column(|r| r.output),
        &column(|r| r.cache_read),
        &column(|r| r.cache_creation),
        &column(|r| i64::from(r.estimated)),
        &column(|r| r.milliseconds),
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
        reached,
        ahead,
    )
    .fetch_one(&mut **tx)
    .await?;
    let mut unpriced = row.unpriced;
    unpriced.retain(|model| model != UNKNOWN_MODEL);
    Ok(Inserted {
        new,
        acknowledged: u64::try_from(row.acknowledged).unwrap_or_default(),
        unpriced,
    })
}

/// How often each tool is called in those messages, and when first.
fn tools<'a>(messages: &[(&EventRow, &'a MessageRow)]) -> BTreeMap<&'a str, (i64, Timestamp)> {
    let mut tools = BTreeMap::new();
    for (event, message) in messages {
        for tool in &message.tools {
            let (calls, first) = tools.entry(&**tool).or_insert((0, event.at));
            *calls += 1;
            *first = event.at.min(*first);
        }
    }
    tools
}

/// What concerns few batches: a message that was there before was said first when it was said first,
/// also where the later attempt's word came before (the task is said in each), and the task fills in
/// the run's.
pub(super) async fn tell_again(
    tx: &mut Transaction<'_, Postgres>,
    batch: &Batch,
    stored: &Stored,
    known: &Known,
    new: &[i64],
) -> Result<(), Error> {
    if known.messages.is_empty() && !stored.says_the_task() {
        return Ok(());
    }
    for (event, message) in stored.messages(new) {
        if known.messages.contains(&message.id) {
            sqlx::query!(
                "UPDATE messages SET created_at = $3, sequence = $4, raw_payload = raw_payload || $5::text::jsonb
                 WHERE id = $1 AND run_id = $2 AND $3 < created_at",
                message.id,
                batch.run_id,
                event.at.to_sqlx() as _,
                event.sequence,
                message.raw_payload,
            )
            .execute(&mut **tx)
            .await?;
        }
        if message.kind == WORKFLOW_START {
            sqlx::query!(
                "UPDATE workflow_runs SET task_input = $2 WHERE id = $1 AND task_input = runledger_no_task()",
                batch.run_id,
                message.text,
            )
            .execute(&mut **tx)
            .await?;
        }
    }
    Ok(())
}
