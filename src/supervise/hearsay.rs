//! What the agent says: lines of the CLI's stream-json become events. It owns the rules of what is
//! believed. A message that passed the meter is told in the meter's words, once; what did not pass
//! is told in the agent's, and marked so.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::book::Answer;
use super::cost;
use super::journal::{Draft, Journal, Pending};
use crate::ids;
use crate::wire::door::ALTERED;
use crate::wire::{EventBody, Message, MessageKind, Role, Source, is_too_deep};

/// Largest message; longer texts in it are cut.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Longest text of a result: with every character escaped it still fits a batch.
const CUT_RESULT: usize = 512 * 1024;
/// Longest name of a model, or of a kind of result.
const LONGEST_WORD: usize = 200;
/// Largest cost of a session that is believed, in micro-USD: a million dollars.
const LARGEST_COST: u64 = 1_000_000_000_000;
/// What is left of a text that is cut.
const CUT_TEXT: usize = 64 * 1024;

/// Writes down what comes through one connection of the door.
#[derive(Debug)]
pub(super) struct Scribe {
    pub(super) journal: Arc<Journal>,
    pub(super) run: Uuid,
    held: Option<Held>,
}

/// A message of the agent's own telling, whose lines may not all have come.
#[derive(Debug)]
struct Held {
    api_id: String,
    number: u64,
    model: Option<String>,
    text: String,
    tool_calls: Vec<Value>,
    altered: bool,
}

/// What a line was made into.
#[derive(Debug)]
pub(super) struct Taken {
    /// The agent's last line that is dealt with once `pending` is on the disk.
    pub(super) number: u64,
    /// The record.
    pub(super) pending: Pending,
}

impl Scribe {
    /// For one connection: lines that were held for the one before come again.
    pub(super) fn new(journal: Arc<Journal>, run: Uuid) -> Self {
        Self {
            journal,
            run,
            held: None,
        }
    }

    /// Number that the next line must have.
    pub(super) fn expects(&self) -> u64 {
        let held = self.held.as_ref().map_or(0, |held| held.number);
        self.journal.read(|book| book.line).max(held) + 1
    }

    /// Takes a line of stream-json.
    pub(super) async fn take(&mut self, number: u64, line: &Value) -> Vec<Taken> {
        if is_too_deep(line) {
            return self.unreadable(number);
        }
        let api_id = line["message"]["id"].as_str();
        let mut taken: Vec<_> = match &self.held {
            Some(held) if line["type"] != "assistant" || api_id != Some(&held.api_id) => {
                self.release().into_iter().collect()
            }
            _ => Vec::new(),
        };
        match (line["type"].as_str(), api_id) {
            (Some("assistant"), Some(id)) => taken.extend(self.assistant(number, id, line).await),
            (Some("user"), _) => taken.push(self.tool_results(number, line)),
            (Some("result"), _) => taken.push(self.result(number, line)),
            (Some("system"), _) if line["subtype"] == "init" => {
                taken.push(self.version(number, line));
            }
            (Some("raw"), _) => {
                let text = head(&line["text"]);
                tracing::info!(text, "the CLI said something that can't be read");
                let bytes = line["bytes"].as_u64().unwrap_or_default();
                let why = format!(
                    "The CLI said something that is not JSON, or is too long: {bytes} bytes that begin with: {text}"
                );
                taken.push(self.omitted(number, why));
            }
            _ => taken.push(self.nothing(number)),
        }
        taken
    }

    /// Passes over a line that can't be read, so that what follows is not held up.
    pub(super) fn unreadable(&mut self, number: u64) -> Vec<Taken> {
        tracing::warn!(
            number,
            "a line of the agent can't be read; it is passed over"
        );
        let held = self.release();
        let why = "A line of the agent's can't be read.".to_owned();
        held.into_iter()
            .chain([self.omitted(number, why)])
            .collect()
    }

    /// Tells what was held back.
    pub(super) fn release(&mut self) -> Option<Taken> {
        let held = self.held.take()?;
        let mut message = Message {
            id: ids::message(self.run, &held.api_id),
            role: Role::Assistant,
            kind: MessageKind::Assistant,
            text: held.text,
            tool_calls: held.tool_calls,
            tool_outputs: Vec::new(),
            model: held.model,
            tokens: None,
            source: Source::Agent,
            altered: held.altered,
        };
        fit(&mut message);
        Some(self.tell(held.number, message))
    }

    async fn assistant(&mut self, number: u64, api_id: &str, line: &Value) -> Option<Taken> {
        // The CLI tells of a block before the message has ended; the meter's word is worth the wait.
        self.journal
            .wait_for(|book| (!book.is_streaming(api_id)).then_some(()))
            .await;
        let id = ids::message(self.run, api_id);
        if self.journal.read(|book| book.told.contains(&id)) {
            return Some(self.nothing(number));
        }
        if let Some(answer) = self.journal.read(|book| book.answer(api_id).cloned()) {
            return Some(self.tell(number, metered(id, answer)));
        }
        self.hold(number, api_id, line);
        None
    }

    fn hold(&mut self, number: u64, api_id: &str, line: &Value) {
        let held = self.held.get_or_insert_with(|| Held {
            api_id: api_id.to_owned(),
            number,
            model: line["message"]["model"]
                .as_str()
                .filter(|model| model.len() <= LONGEST_WORD)
                .map(str::to_owned),
            text: String::new(),
            tool_calls: Vec::new(),
            altered: false,
        });
        held.number = number;
        held.altered |= is_altered(line);
        for block in line["message"]["content"].as_array().into_iter().flatten() {
            match block["type"].as_str() {
                Some("text") => {
                    if !held.text.is_empty() {
                        held.text.push('\n');
                    }
                    held.text
                        .push_str(block["text"].as_str().unwrap_or_default());
                }
                Some(kind) if kind.ends_with("tool_use") => held.tool_calls.push(block.clone()),
                _ => {}
            }
        }
    }

    fn tool_results(&self, number: u64, line: &Value) -> Taken {
        let blocks = line["message"]["content"].as_array();
        let outputs: Vec<_> = blocks
            .into_iter()
            .flatten()
            .filter(|block| block["type"] == "tool_result")
            .cloned()
            .collect();
        let Some(key) = outputs
            .first()
            .and_then(|block| block["tool_use_id"].as_str())
        else {
            return self.nothing(number);
        };
        let mut message = Message {
            id: ids::message(self.run, key),
            role: Role::User,
            kind: MessageKind::ToolResult,
            text: String::new(),
            tool_calls: Vec::new(),
            tool_outputs: outputs,
            model: None,
            tokens: None,
            source: Source::Agent,
            altered: is_altered(line),
        };
        fit(&mut message);
        self.tell(number, message)
    }

    fn result(&self, number: u64, line: &Value) -> Taken {
        let cost = cost::micro_usd(&line["total_cost_usd"]).filter(|cost| *cost <= LARGEST_COST);
        let turns = line["num_turns"]
            .as_u64()
            .and_then(|n| u32::try_from(n).ok());
        let mut text = line["result"].as_str().unwrap_or_default().to_owned();
        cut(&mut text, CUT_RESULT);
        let mut subtype = line["subtype"].as_str().unwrap_or("unknown").to_owned();
        cut(&mut subtype, LONGEST_WORD);
        let pending = self.journal.append(|book| {
            let body = EventBody::AgentResult {
                subtype,
                is_error: line["is_error"].as_bool().unwrap_or(false),
                text,
                session_cost_micro_usd: cost,
                usage: book.usage_with_result(cost, turns.unwrap_or(0)),
            };
            Draft {
                events: vec![body],
                line: Some(number),
                ..Draft::default()
            }
        });
        Taken { number, pending }
    }

    fn tell(&self, number: u64, message: Message) -> Taken {
        let pending = self.journal.append(|book| Draft {
            events: if book.told.contains(&message.id) {
                Vec::new()
            } else {
                vec![EventBody::Message(message)]
            },
            line: Some(number),
            ..Draft::default()
        });
        Taken { number, pending }
    }

    /// The CLI says which one it is at the head of each turn; once is enough.
    fn version(&self, number: u64, line: &Value) -> Taken {
        let mut version = line["claude_code_version"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        cut(&mut version, LONGEST_WORD);
        let pending = self.journal.append(|book| Draft {
            events: if version.is_empty() || book.cli_version.as_deref() == Some(version.as_str()) {
                Vec::new()
            } else {
                vec![EventBody::AgentStarted { version }]
            },
            line: Some(number),
            ..Draft::default()
        });
        Taken { number, pending }
    }

    /// What can't be told is named in its place.
    fn omitted(&self, number: u64, why: String) -> Taken {
        let pending = self.journal.append(|_| Draft {
            events: vec![EventBody::Omitted { why }],
            line: Some(number),
            ..Draft::default()
        });
        Taken { number, pending }
    }

    fn nothing(&self, number: u64) -> Taken {
        let pending = self.journal.append(|_| Draft {
            line: Some(number),
            ..Draft::default()
        });
        Taken { number, pending }
    }
}

fn metered(id: Uuid, answer: Answer) -> Message {
    let mut message = Message {
        id,
        role: Role::Assistant,
        kind: MessageKind::Assistant,
        text: answer.text,
        tool_calls: answer.tool_calls,
        tool_outputs: Vec::new(),
        model: answer.model,
        tokens: Some(answer.tokens),
        source: Source::Meter,
        altered: answer.altered,
    };
    fit(&mut message);
    message
}

fn head(text: &Value) -> &str {
    let text = text.as_str().unwrap_or_default();
    &text[..text.floor_char_boundary(2048)]
}

/// Whether the agent had to put something else in the place of what no text can hold.
fn is_altered(line: &Value) -> bool {
    line[ALTERED] == true
}

/// Cuts what is too long for one event: first every long text, then, if that was not enough, the
/// blocks' number. Says so in each text that was cut, and at the end of the message's own.
fn fit(message: &mut Message) {
    if size(message) <= MAX_MESSAGE {
        return;
    }
    message.altered = true;
    cut(&mut message.text, CUT_TEXT);
    for block in message
        .tool_calls
        .iter_mut()
        .chain(&mut message.tool_outputs)
    {
        cut_texts(block);
    }
    let mut excess = size(message).saturating_sub(MAX_MESSAGE - CUT_TEXT);
    let mut left_out = 0;
    while excess > 0
        && let Some(block) = message
            .tool_outputs
            .pop()
            .or_else(|| message.tool_calls.pop())
    {
        // The comma behind it, too.
        excess = excess.saturating_sub(size(&block) + 1);
        left_out += 1;
    }
    if left_out > 0 {
        let note = format!("… ({left_out} blocks of tools are left out)");
        message.text.push_str(&note);
    }
}

fn size(of: &impl Serialize) -> usize {
    serde_json::to_vec(of).map_or(0, |bytes| bytes.len())
}

fn cut_texts(value: &mut Value) {
    match value {
        Value::String(text) => cut(text, CUT_TEXT),
        Value::Array(items) => items.iter_mut().for_each(cut_texts),
        Value::Object(fields) => fields.values_mut().for_each(cut_texts),
        _ => {}
    }
}

fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let whole = text.len();
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(&format!("… (cut; {whole} bytes)"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
