//! A message as its row: what is hostile in it made storable, and said so.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{LONGEST_TOOL, WORKFLOW_START, name};
use crate::ledger::clean;
use crate::ledger::figures::{self, Figures};
use crate::wire::{Message, MessageKind, Role, Source};

/// A row of `messages`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::ledger) struct MessageRow {
    pub(in crate::ledger) id: Uuid,
    pub(in crate::ledger) role: &'static str,
    pub(in crate::ledger) kind: &'static str,
    pub(in crate::ledger) text: String,
    /// JSON of an object, and so is the usage; of lists the calls and what came of them.
    pub(in crate::ledger) raw_payload: String,
    pub(in crate::ledger) tool_calls: String,
    pub(in crate::ledger) tool_outputs: String,
    pub(in crate::ledger) usage: String,
    /// Names of the tools that it calls, for `run_tools`.
    pub(in crate::ledger) tools: Vec<String>,
}

/// Reads it. What can't be true of it is an error that names it.
pub(super) fn message_row(message: &Message, attempt: i32) -> Result<MessageRow, &'static str> {
    let mut raw_payload = Map::new();
    raw_payload.insert("source".to_owned(), json!(source(message.source)));
    raw_payload.insert("attempt".to_owned(), json!(attempt));
    if let Some(model) = name("its model", message.model.as_deref(), figures::MAX_NAME)? {
        raw_payload.insert("model".to_owned(), json!(model));
    }
    let (text, text_altered) = clean::text(&message.text);
    let json = |list| clean::json(list).map_err(|_| "its tools");
    let (tool_calls, calls_altered) = json(&message.tool_calls)?;
    let (tool_outputs, outputs_altered) = json(&message.tool_outputs)?;
    if text_altered || calls_altered || outputs_altered {
        raw_payload.insert("altered".to_owned(), json!(true));
    }
    let usage = match message.tokens {
        Some(tokens) => {
            Figures::of(&crate::wire::Usage {
                tokens,
                ..Default::default()
            })?;
            json!({
                "input_tokens": tokens.input,
                "output_tokens": tokens.output,
                "cache_read_input_tokens": tokens.cache_read,
                "cache_creation_input_tokens": tokens.cache_creation,
            })
            .to_string()
        }
        None => "{}".to_owned(),
    };
    let tools = message
        .tool_calls
        .iter()
        .filter_map(|call| call["name"].as_str())
        .map(|tool| clean::cut(&clean::text(tool).0, LONGEST_TOOL))
        .collect();
    Ok(MessageRow {
        id: message.id,
        tools,
        role: match message.role {
            Role::User => "user",
            Role::Assistant => "assistant",
        },
        kind: match message.kind {
            MessageKind::WorkflowStart => WORKFLOW_START,
            MessageKind::Assistant => "assistant",
            MessageKind::ToolResult => "tool_result",
        },
        text,
        raw_payload: Value::Object(raw_payload).to_string(),
        tool_calls,
        tool_outputs,
        usage,
    })
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Supervisor => "supervisor",
        Source::Meter => "meter",
        Source::Agent => "agent",
    }
}
