//! A message as its row: what is hostile in it made storable, and said so.

use serde::Serialize;
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

/// What `raw_payload` holds.
#[derive(Serialize)]
struct RawPayload {
    source: &'static str,
    attempt: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Whether it is not whole as it was said: U+0000 was replaced, or its supervisor says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    altered: bool,
}

/// What `usage` holds, in the model's own words.
#[derive(Serialize)]
struct MessageUsage {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation_input_tokens: u64,
}

/// Reads it. What can't be true of it is an error that names it.
pub(super) fn message_row(message: &Message, attempt: i32) -> Result<MessageRow, &'static str> {
    let model = name("its model", message.model.as_deref(), figures::MAX_NAME)?;
    let (text, text_altered) = clean::text(&message.text);
    let json = |list| clean::json(list).map_err(|_| "its tools");
    let (tool_calls, calls_altered) = json(&message.tool_calls)?;
    let (tool_outputs, outputs_altered) = json(&message.tool_outputs)?;
    let mut tools_altered = false;
    let tools = message
        .tool_calls
        .iter()
        .filter_map(|call| call["name"].as_str())
        .map(|tool| {
            tools_altered |= tool.chars().count() > LONGEST_TOOL;
            clean::cut(&clean::text(tool).0, LONGEST_TOOL)
        })
        .collect();
    let raw_payload = RawPayload {
        source: source(message.source),
        attempt,
        model,
        altered: message.altered
            || text_altered
            || calls_altered
            || outputs_altered
            || tools_altered,
    };
    let usage = match message.tokens {
        Some(tokens) => {
            Figures::of(&crate::wire::Usage {
                tokens,
                ..Default::default()
            })?;
            let usage = MessageUsage {
                input_tokens: tokens.input,
                output_tokens: tokens.output,
                cache_read_input_tokens: tokens.cache_read,
                cache_creation_input_tokens: tokens.cache_creation,
            };
            serde_json::to_string(&usage).map_err(|_| "its tokens")?
        }
        None => "{}".to_owned(),
    };
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
        raw_payload: serde_json::to_string(&raw_payload).map_err(|_| "its source")?,
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
