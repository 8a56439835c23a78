//! Events and messages through the repository, beside a bare COPY of the same rows into tables with the
//! same columns, checks and indexes: one writer each.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use runledger::ids;
use runledger::ledger::Target;
use runledger::wire::{
    Batch, Event, EventBody, MAX_BATCH_EVENTS, Message, MessageKind, Role, Source, Tokens, Usage,
};
use serde_json::json;
use sqlx::postgres::PgPoolCopyExt as _;
use uuid::Uuid;

use crate::server::Server;
use crate::table::Table;

/// Runs that speak.
const RUNS: u128 = 20;
/// Requests of each; four events for one, and the task: four batches that are full but for three events.
const REQUESTS: u64 = 499;

pub(crate) async fn measure(server: &Server, table: &mut Table) -> Result<()> {
    let of_runs = |runs: std::ops::Range<u128>| runs.flat_map(batches).collect::<Vec<Batch>>();
    let (alone, together) = (of_runs(0..RUNS), of_runs(RUNS..2 * RUNS));
    // What is done once (connections, the day's partition) is done for a run that isn't measured.
    store(server, &batches(2 * RUNS)[..2], 2).await?;
    let first = rows(server).await?;
    let began = Instant::now();
    store(server, &alone, 1).await?;
    let took_alone = began.elapsed();
    let rows_alone = rows(server).await? - first;
    let began = Instant::now();
    store(server, &together, 2).await?;
    let took_together = began.elapsed();
    let all = rows(server).await?;
    for again in [&alone, &together] {
        store(server, again, 1).await?;
    }
    ensure!(rows(server).await? == all, "told again, it is there twice");
    let copied = copy(server).await?;
    let copies = ("COPY", all / copied.as_secs_f64());
    for (what, rows, took) in [
        (
            "event and message rows, in batches of 500 events",
            rows_alone,
            took_alone,
        ),
        (
            "the same, the next batch on its way while one is stored",
            all - first - rows_alone,
            took_together,
        ),
    ] {
        table.rate(what, 0.5, rows / took.as_secs_f64(), copies);
    }
    Ok(())
}

/// Stores them in their order, so many at once.
async fn store(server: &Server, batches: &[Batch], at_once: usize) -> Result<()> {
    let target = Target {
        namespace: "events",
        name: "run",
    };
    let now = Timestamp::now();
    let stores: Vec<_> = batches
        .iter()
        .map(|batch| server.ledger.store(target, batch, now))
        .collect();
    let mut stored = futures::stream::iter(stores).buffered(at_once);
    while stored.try_next().await?.is_some() {}
    Ok(())
}

/// Rows of events and messages.
async fn rows(server: &Server) -> Result<f64> {
    let events = server.count("SELECT count(*) FROM run_events").await?;
    let messages = server.count("SELECT count(*) FROM messages").await?;
    ensure!(
        events > 0 && messages > 0,
        "{events} events, {messages} messages"
    );
    Ok(f64::from(u32::try_from(events + messages)?))
}

/// Copies the rows of both tables; how long it took to put them in.
async fn copy(server: &Server) -> Result<Duration> {
    let mut rows = Vec::new();
    for out in [
        "COPY (TABLE run_events) TO STDOUT",
        "COPY messages TO STDOUT",
    ] {
        let mut stream = server.pool.copy_out_raw(out).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.try_next().await? {
            bytes.extend_from_slice(&part);
        }
        rows.push(bytes);
    }
    server
        .run(
            "CREATE TABLE bare_events (LIKE run_events INCLUDING ALL);
             CREATE TABLE bare_messages (LIKE messages INCLUDING ALL)",
        )
        .await?;
    let began = Instant::now();
    for (into, bytes) in [
        "COPY bare_events FROM STDIN",
        "COPY bare_messages FROM STDIN",
    ]
    .into_iter()
    .zip(rows)
    {
        let mut copy = server.pool.copy_in_raw(into).await?;
        // Not one message of hundreds of megabytes.
        for part in bytes.chunks(1 << 20) {
            copy.send(part).await?;
        }
        copy.finish().await?;
    }
    let copied = began.elapsed();
    server
        .run("DROP TABLE bare_events, bare_messages; TRUNCATE run_events; TRUNCATE sessions, workflow_runs CASCADE")
        .await?;
    server.run("VACUUM ANALYZE").await?;
    Ok(copied)
}

/// What one run says.
fn batches(number: u128) -> Vec<Batch> {
    let run_id = Uuid::from_u128(0xe000 + number);
    let session_name = format!("session-{number}");
    let session_id = ids::session("events", &session_name);
    let mut bodies = vec![EventBody::Message(message(
        run_id,
        0,
        MessageKind::WorkflowStart,
    ))];
    for request in 1..=REQUESTS {
        bodies.push(EventBody::RequestStarted {
            request,
            bytes: 40_000,
        });
        bodies.push(EventBody::RequestEnded {
            request,
            status: Some(200),
            model: Some("claude-sonnet".to_owned()),
            message_id: Some(format!("msg_{number}_{request}")),
            tokens: TOKENS,
            estimated: false,
            milliseconds: 4000,
            usage: usage(request),
        });
        bodies.push(EventBody::Message(message(
            run_id,
            request * 2,
            MessageKind::Assistant,
        )));
        bodies.push(EventBody::Message(message(
            run_id,
            request * 2 + 1,
            MessageKind::ToolResult,
        )));
    }
    let began = Timestamp::now();
    let events: Vec<Event> = bodies
        .into_iter()
        .zip(1_u64..)
        .map(|(body, sequence)| Event {
            sequence,
            at: began + SignedDuration::from_millis(sequence.cast_signed()),
            body,
        })
        .collect();
    events
        .chunks(MAX_BATCH_EVENTS)
        .map(|events| Batch {
            run_id,
            attempt: 1,
            session_id,
            session_name: session_name.clone(),
            events: events.to_vec(),
        })
        .collect()
}

const TOKENS: Tokens = Tokens {
    input: 12,
    output: 350,
    cache_read: 21_000,
    cache_creation: 900,
};

fn usage(requests: u64) -> Usage {
    Usage {
        tokens: Tokens {
            input: TOKENS.input * requests,
            output: TOKENS.output * requests,
            cache_read: TOKENS.cache_read * requests,
            cache_creation: TOKENS.cache_creation * requests,
        },
        cost_micro_usd: None,
        turns: u32::try_from(requests).unwrap(),
        requests: u32::try_from(requests).unwrap(),
        estimated_requests: 0,
    }
}

fn message(run: Uuid, number: u64, kind: MessageKind) -> Message {
    let said =
        "The parser drops the last line of a file that has no newline at its end. ".repeat(6);
    let call = json!({"type": "tool_use", "id": format!("toolu_{number}"), "name": "Bash", "input": {"command": "cargo test --lib parser"}});
    let output = json!({"type": "tool_result", "tool_use_id": format!("toolu_{number}"), "content": "test result: ok. 57 passed; 0 failed\n".repeat(12)});
    let is_assistant = kind == MessageKind::Assistant;
    Message {
        id: ids::message(run, &number.to_string()),
        role: if is_assistant {
            Role::Assistant
        } else {
            Role::User
        },
        kind,
        text: said,
        tool_calls: if is_assistant { vec![call] } else { vec![] },
        tool_outputs: if kind == MessageKind::ToolResult {
            vec![output]
        } else {
            vec![]
        },
        model: is_assistant.then(|| "claude-sonnet".to_owned()),
        tokens: is_assistant.then_some(TOKENS),
        source: Source::Meter,
        altered: false,
    }
}
