//! The bytes of an answer: a stream of server-sent events as the Messages API sends them, or one
//! JSON document, with the turn's delays, cuts and hangs.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures::stream;
use serde_json::{Value, json};
use uuid::Uuid;

use super::log::Open;
use super::scenario::{Turn, Usage};

/// Characters of text or JSON in one event.
const CHUNK: usize = 40;

/// One event of a stream, and the usage that its reader knows of from then on.
struct Event {
    data: Value,
    usage: Option<Usage>,
}

/// Answers with the turn. What was sent is recorded, also when the peer goes away.
pub(crate) async fn answer(mut open: Open, turn: &Turn, number: usize) -> Response {
    let message_id = format!("msg_{}", Uuid::new_v4().simple());
    if turn.hang_after == Some(0) {
        return std::future::pending().await;
    }
    open.begun(200, &message_id);
    let model = open.record().model.clone();
    let first_try = open.record().attempt <= 1;
    let cut_after = turn.cut_after.filter(|_| first_try);
    if !open.record().stream {
        let blocks = blocks(turn, number);
        let mut message = message_start(&message_id, &model, turn.usage);
        message["content"] = blocks.into();
        message["stop_reason"] = stop_reason(turn).into();
        message["usage"] = usage_json(turn.usage);
        let bytes = Bytes::from(message.to_string());
        return document(open, turn, bytes, cut_after.is_some());
    }
    let events = events(turn, number, &message_id, &model);
    let script = Script {
        open,
        events,
        sent: 0,
        delay: Duration::from_millis(turn.chunk_delay_ms),
        cut_after,
        hang_after: turn.hang_after,
    };
    let body = Body::from_stream(stream::unfold(Some(script), next));
    respond("text/event-stream; charset=utf-8", body)
}

/// A stream that is being sent.
struct Script {
    open: Open,
    events: VecDeque<Event>,
    sent: usize,
    delay: Duration,
    cut_after: Option<usize>,
    hang_after: Option<usize>,
}

async fn next(script: Option<Script>) -> Option<(io::Result<Bytes>, Option<Script>)> {
    let mut script = script?;
    if script.cut_after.is_some_and(|events| script.sent >= events) {
        return Some((Err(io::ErrorKind::ConnectionReset.into()), None));
    }
    if script
        .hang_after
        .is_some_and(|events| script.sent >= events)
    {
        std::future::pending::<()>().await;
    }
    if script.sent > 0 {
        tokio::time::sleep(script.delay).await;
    }
    let event = script.events.pop_front()?;
    script.sent += 1;
    if let Some(usage) = event.usage {
        script.open.told(usage);
    }
    if script.events.is_empty() {
        // Before the last bytes go out: whoever has read them may ask for the log at once.
        let usage = script.open.record().usage;
        script.open.finish(200, usage, true);
    }
    let name = event.data["type"].as_str().unwrap_or("message");
    let bytes = Bytes::from(format!("event: {name}\ndata: {}\n\n", event.data));
    Some((Ok(bytes), Some(script)))
}

fn document(mut open: Open, turn: &Turn, bytes: Bytes, cut: bool) -> Response {
    if !cut {
        open.finish(200, turn.usage, true);
        return respond("application/json", Body::from(bytes));
    }
    let half = bytes.slice(..bytes.len() / 2);
    let parts = [
        Ok(half),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ];
    respond("application/json", Body::from_stream(stream::iter(parts)))
}

fn respond(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    let value = axum::http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_creation,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    })
}

fn message_start(id: &str, model: &str, usage: Usage) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": model,
        "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": usage_json(usage),
    })
}

fn stop_reason(turn: &Turn) -> &'static str {
    if turn.tools.is_empty() {
        "end_turn"
    } else {
        "tool_use"
    }
}

/// The turn's content, whole.
fn blocks(turn: &Turn, number: usize) -> Vec<Value> {
    let mut blocks = Vec::new();
    let text = turn.text.repeat(turn.times.unwrap_or(1));
    if !text.is_empty() {
        blocks.push(json!({ "type": "text", "text": text }));
    }
    for tool in &turn.tools {
        let id = format!("toolu_{number:04}_{}", Uuid::new_v4().simple());
        blocks.push(json!({
            "type": "tool_use", "id": id, "name": tool.name, "input": tool.input,
        }));
    }
    blocks
}

/// The turn as the API streams it: the usage comes first with one output token, whole at the end.
fn events(turn: &Turn, number: usize, message_id: &str, model: &str) -> VecDeque<Event> {
    let at_start = Usage {
        output: turn.usage.output.min(1),
        ..turn.usage
    };
    let start = message_start(message_id, model, at_start);
    let mut events = VecDeque::from([
        Event {
            data: json!({ "type": "message_start", "message": start }),
            usage: Some(at_start),
        },
        quiet(json!({ "type": "ping" })),
    ]);
    for (index, block) in blocks(turn, number).into_iter().enumerate() {
        events.extend(block_events(turn, index, block).into_iter().map(quiet));
    }
    events.push_back(Event {
        data: json!({
            "type": "message_delta",
            "delta": { "stop_reason": stop_reason(turn), "stop_sequence": null },
            "usage": usage_json(turn.usage),
        }),
        usage: Some(turn.usage),
    });
    events.push_back(quiet(json!({ "type": "message_stop" })));
    events
}

fn quiet(data: Value) -> Event {
    Event { data, usage: None }
}

fn block_events(turn: &Turn, index: usize, mut block: Value) -> Vec<Value> {
    let (deltas, kind, field) = if block["type"] == "text" {
        let text = block["text"].as_str().unwrap_or("");
        let pieces = match turn.times {
            Some(_) => vec![turn.text.clone(); turn.times.unwrap_or(1)],
            None => chunks(text),
        };
        block["text"] = "".into();
        (pieces, "text_delta", "text")
    } else {
        let input = block["input"].to_string();
        block["input"] = json!({});
        (chunks(&input), "input_json_delta", "partial_json")
    };
    let start = json!({ "type": "content_block_start", "index": index, "content_block": block });
    let delta = |piece: String| {
        json!({
            "type": "content_block_delta", "index": index,
            "delta": { "type": kind, field: piece },
        })
    };
    let stop = json!({ "type": "content_block_stop", "index": index });
    let deltas = deltas.into_iter().map(delta);
    std::iter::once(start).chain(deltas).chain([stop]).collect()
}

fn chunks(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(CHUNK)
        .map(|chunk| chunk.iter().collect())
        .collect()
}
