//! Scenarios: what the model says, turn by turn, as YAML files have it. No HTTP here.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Tokens by kind, in the words of our ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cache_read: u64,
    pub(crate) cache_creation: u64,
}

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    turns: Vec<Turn>,
    /// After the last turn comes the first again, without end.
    #[serde(default)]
    repeat: bool,
}

/// One answer of the model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Turn {
    /// What it says before its tool calls.
    pub(crate) text: String,
    /// Say it this often, one chunk each; for streams that take long.
    pub(crate) times: Option<usize>,
    /// Its tool calls.
    pub(crate) tools: Vec<Tool>,
    pub(crate) usage: Usage,
    /// Before the first byte, on every try.
    pub(crate) delay_ms: u64,
    /// Before each event of the stream but the first.
    pub(crate) chunk_delay_ms: u64,
    /// Errors that come first.
    pub(crate) errors: Vec<ModelError>,
    /// Cut the connection after this many events of the stream, on the first try only.
    pub(crate) cut_after: Option<usize>,
    /// Never go on after this many events of the stream; 0 does not answer at all.
    pub(crate) hang_after: Option<usize>,
}

/// A call of one of the CLI's tools.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) input: Value,
}

/// An error instead of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelError {
    pub(crate) status: u16,
    /// For this many tries; for every one where absent.
    pub(crate) tries: Option<usize>,
    /// Header `retry-after`, in seconds.
    pub(crate) retry_after: Option<u32>,
    #[serde(default)]
    pub(crate) message: String,
}

impl ModelError {
    /// The API's word for the status.
    pub(crate) fn kind(&self) -> &'static str {
        match self.status {
            400 => "invalid_request_error",
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            529 => "overloaded_error",
            _ => "api_error",
        }
    }
}

impl Scenario {
    /// The turn of that number, from 0.
    pub(crate) fn turn(&self, number: usize) -> Option<&Turn> {
        if self.repeat && !self.turns.is_empty() {
            return self.turns.get(number % self.turns.len());
        }
        self.turns.get(number)
    }
}

impl Turn {
    /// A plain answer.
    pub(crate) fn said(text: &str, usage: Usage) -> Self {
        Self {
            text: text.into(),
            usage,
            ..Self::default()
        }
    }

    /// The error that this try gets, if any.
    pub(crate) fn error(&self, earlier_tries: usize) -> Option<&ModelError> {
        let mut upto = 0;
        self.errors.iter().find(|error| match error.tries {
            None => true,
            Some(tries) => {
                upto += tries;
                earlier_tries < upto
            }
        })
    }

    /// With `{tag}` filled in, so that a subagent's prompt can carry its run's tag.
    pub(crate) fn for_tag(&self, tag: &str) -> Self {
        let mut turn = self.clone();
        turn.text = turn.text.replace("{tag}", tag);
        for tool in &mut turn.tools {
            fill(&mut tool.input, tag);
        }
        turn
    }
}

fn fill(value: &mut Value, tag: &str) {
    match value {
        Value::String(text) => *text = text.replace("{tag}", tag),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, tag)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, tag)),
        _ => {}
    }
}

/// Every `<name>.yaml` of a directory (a mounted ConfigMap's hidden directories are passed over).
pub(crate) fn read_all(directory: &Path) -> anyhow::Result<HashMap<String, Scenario>> {
    let mut scenarios = HashMap::new();
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("can't list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let Some(name) = name.strip_suffix(".yaml").filter(|n| !n.starts_with('.')) else {
            continue;
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let scenario = serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is no scenario", path.display()))?;
        scenarios.insert(name.to_owned(), scenario);
    }
    Ok(scenarios)
}
