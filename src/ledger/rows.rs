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
    said.retain(|(_, message)| !known.messages.contains(&message.id));
    let tools = tools(&said);
    let ids: Vec<Uuid> = said.iter().map(|(_, m)| m.id).collect();
    let said_sequences: Vec<i64> = said.iter().map(|(e, _)| e.sequence).collect();
    let said_ats: Vec<jiff_sqlx::Timestamp> = said.iter().map(|(e, _)| e.at.to_sqlx()).collect();
    let text = |of: fn(&MessageRow) -> &str| said.iter().map(|(_, m)| of(m)).collect::<Vec<_>>();

    let tool_names: Vec<&str> = tools.keys().copied().collect();
    let tool_calls: Vec<i64> = tools.values().map(|tool| tool.calls).collect();
    let tool_ats: Vec<jiff_sqlx::Timestamp> = tools.values().map(|t| t.at.to_sqlx()).collect();
    let tool_sequences: Vec<i64> = tools.values().map(|tool| tool.sequence).collect();
    let tool_places: Vec<i64> = tools.values().map(|tool| tool.place).collect();

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
    let row = sqlx::query_file!(
        "src/ledger/rows/insert.sql",
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
        &tool_sequences,
        &tool_places,
        change.cost_sequence,
    )
    .fetch_one(&mut **tx)
    .await?;
    // Requests after a result that named a cost are not in that.
    if row.cost_sequence > 0 && (!requests.is_empty() || change.cost_sequence.is_some()) {
        sqlx::query_file!(
            "src/ledger/rows/later.sql",
            attempt.run,
            attempt.attempt,
            day.to_sqlx() as _,
            row.cost_sequence,
            UNKNOWN_MODEL,
        )
        .execute(&mut **tx)
        .await?;
    }
    let mut unpriced = row.unpriced;
    unpriced.retain(|model| model != UNKNOWN_MODEL);
    Ok(Inserted {
        new,
        acknowledged: u64::try_from(row.acknowledged).unwrap_or_default(),
        unpriced,
    })
}

/// How often a tool is called, and where first: in which event, and where in its message.
struct ToolUse {
    calls: i64,
    at: Timestamp,
    sequence: i64,
    place: i64,
}

/// What those messages, in order of sequence, call.
fn tools<'a>(messages: &[(&EventRow, &'a MessageRow)]) -> BTreeMap<&'a str, ToolUse> {
    let mut tools = BTreeMap::new();
    for (event, message) in messages {
        for (tool, place) in message.tools.iter().zip(1..) {
            let used = tools.entry(&**tool).or_insert(ToolUse {
                calls: 0,
                at: event.at,
                sequence: event.sequence,
                place,
            });
            used.calls += 1;
            used.at = event.at.min(used.at);
        }
    }
    tools
}

/// The calls of a message that was there before are counted; perhaps it is said earlier here.
async fn use_again(
    tx: &mut Transaction<'_, Postgres>,
    run: Uuid,
    attempt: i32,
    event: &EventRow,
    message: &MessageRow,
) -> Result<(), Error> {
    let told = [(event, message)];
    let tools = tools(&told);
    if tools.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = tools.keys().copied().collect();
    let places: Vec<i64> = tools.values().map(|tool| tool.place).collect();
    sqlx::query!(
        "UPDATE run_tools t SET first_at = least(t.first_at, $2),
                first_use = least(t.first_use, ARRAY[$3::bigint, $4, u.place])
         FROM unnest($5::text[], $6::bigint[]) AS u (tool, place)
         WHERE t.run_id = $1 AND t.tool = u.tool",
        run,
        event.at.to_sqlx() as _,
        i64::from(attempt),
        event.sequence,
        &names as &[&str],
        &places,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
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
            use_again(tx, batch.run_id, stored.attempt, event, message).await?;
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
