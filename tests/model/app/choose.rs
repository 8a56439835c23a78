//! Which scenario and which turn a request asks for, read off the request alone, so that retries,
//! resumed sessions and a restarted model get the same answer.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A turn of a conversation.
    Turn,
    /// One of the CLI's own small questions: it has no tools.
    Side,
}

/// The part of a scenario that a request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) kind: Kind,
    /// `default` without a marker.
    pub(crate) scenario: String,
    /// The free word after `#`.
    pub(crate) tag: Option<String>,
    /// Answers that the model has given since the marker.
    pub(crate) turn: usize,
    /// The same for each try of the same turn of the same conversation.
    pub(crate) retry_key: String,
}

impl Choice {
    /// What tests group by: the tag, else the scenario.
    pub(crate) fn key(&self) -> &str {
        self.tag.as_deref().unwrap_or(&self.scenario)
    }
}

/// Reads `[scenario: NAME #TAG]` off the last user text that has one; a conversation's later texts
/// without a marker go on with that scenario.
pub(crate) fn choose(request: &Value) -> Choice {
    let messages = request["messages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let marked = messages.iter().enumerate().rev().find_map(|(at, message)| {
        let found = texts(message).into_iter().rev().find_map(marker)?;
        (message["role"] == "user").then_some((at, found))
    });
    let (start, (scenario, tag)) = marked.unwrap_or((0, ("default".into(), None)));
    let turn = messages
        .iter()
        .skip(start)
        .filter(|message| message["role"] == "assistant")
        .count();
    let has_tools = request["tools"]
        .as_array()
        .is_some_and(|tools| !tools.is_empty());
    let mut hasher = DefaultHasher::new();
    messages.first().map(Value::to_string).hash(&mut hasher);
    let retry_key = format!("{scenario}#{tag:?}/{start}/{turn}/{:x}", hasher.finish());
    Choice {
        kind: if has_tools { Kind::Turn } else { Kind::Side },
        scenario,
        tag,
        turn,
        retry_key,
    }
}

/// The texts of a message; results of tools don't count, since they may quote anything.
fn texts(message: &Value) -> Vec<&str> {
    match &message["content"] {
        Value::String(text) => vec![text],
        Value::Array(blocks) => blocks
            .iter()
            .filter(|block| block["type"] == "text")
            .filter_map(|block| block["text"].as_str())
            .collect(),
        _ => Vec::new(),
    }
}

/// The last marker of a text.
fn marker(text: &str) -> Option<(String, Option<String>)> {
    let (_, rest) = text.rsplit_once("[scenario:")?;
    let (inside, _) = rest.split_once(']')?;
    match inside.split_once('#') {
        Some((name, tag)) => Some((name.trim().into(), Some(tag.trim().into()))),
        None => Some((inside.trim().into(), None)),
    }
}
