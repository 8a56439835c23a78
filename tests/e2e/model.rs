//! The scripted model's own record of what it sent: the source that tokens are checked against.

use anyhow::{Context, Result};
use runledger::wire::Tokens;
use serde::Deserialize;

use crate::stage::STAGE;
use crate::world::World;

/// One response of the model.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Sent {
    pub(crate) kind: String,
    pub(crate) path: String,
    pub(crate) scenario: String,
    pub(crate) turn: usize,
    #[serde(rename = "try")]
    pub(crate) attempt: usize,
    pub(crate) message_id: Option<String>,
    pub(crate) model: String,
    pub(crate) status: u16,
    pub(crate) usage: Kinds,
    pub(crate) complete: bool,
    pub(crate) in_flight: usize,
}

/// Tokens in the model's words.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Kinds {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_creation: u64,
}

impl From<Kinds> for Tokens {
    fn from(kinds: Kinds) -> Self {
        Self {
            input: kinds.input,
            output: kinds.output,
            cache_read: kinds.cache_read,
            cache_creation: kinds.cache_creation,
        }
    }
}

/// What was sent under a tag, in order of the responses' ends; under any where absent.
pub(crate) async fn sent(world: &World, tag: Option<&str>) -> Result<Vec<Sent>> {
    let key = tag.map(|tag| format!("/{tag}")).unwrap_or_default();
    let path = format!("/api/v1/namespaces/{STAGE}/services/https:model:443/proxy/log{key}");
    let request = http::Request::get(path).body(Vec::new())?;
    world
        .kube
        .request(request)
        .await
        .context("reading the model's log")
}

/// The sum of what was sent whole.
pub(crate) fn total(sent: &[Sent]) -> Tokens {
    sent.iter()
        .filter(|response| response.complete)
        .fold(Tokens::default(), |sum, response| {
            sum + response.usage.into()
        })
}

/// What the CLI asks for these tokens of this model, in micro-USD: its own price list.
pub(crate) fn price(model: &str, tokens: Tokens) -> Option<u64> {
    // Micro-USD per million tokens are USD per token times 10^12: input, output, read, written.
    let (input, output, read, written) = match model {
        model if model.contains("haiku-4-5") => (1_000_000, 5_000_000, 100_000, 1_250_000),
        model if model.contains("sonnet-4") => (3_000_000, 15_000_000, 300_000, 3_750_000),
        model if model.contains("opus-4-5") => (5_000_000, 25_000_000, 500_000, 6_250_000),
        _ => return None,
    };
    let sum = tokens.input * input
        + tokens.output * output
        + tokens.cache_read * read
        + tokens.cache_creation * written;
    Some(sum / 1_000_000)
}
