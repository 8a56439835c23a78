//! Reads a response of the Messages API while it passes: usage, model, text and tool calls, from
//! server-sent events or one JSON body. It owns no connection; the proxy feeds it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::book::{Answer, RequestOutcome, Seen};
use crate::wire::{Tokens, has_too_many_values, is_too_deep};

/// Most that is kept of one server-sent event, of one JSON body, and of one message's content: more
/// than the largest message that is told. Many responses come at once.
const MAX_KEPT: usize = 4 * 1024 * 1024;

/// Reader of one response.
#[derive(Debug)]
pub(crate) struct Meter {
    status: u16,
    form: Form,
    seen: Option<Seen>,
    blocks: BTreeMap<u64, Block>,
    kept: usize,
    /// Something of what was said is not kept.
    cut: bool,
    complete: bool,
}

#[derive(Debug)]
enum Form {
    Events(EventStream),
    Json(Vec<u8>),
    Opaque,
}

#[derive(Debug, Default)]
struct Block {
    /// As it started, without what is filled in by and by.
    start: Value,
    text: String,
    input: String,
}

impl Meter {
    /// For a response with that status and content type.
    pub(crate) fn new(status: u16, content_type: &str) -> Self {
        let form = if !(200..300).contains(&status) {
            Form::Opaque
        } else if content_type.starts_with("text/event-stream") {
            Form::Events(EventStream::default())
        } else if content_type.starts_with("application/json") {
            Form::Json(Vec::new())
        } else {
            Form::Opaque
        };
        Self {
            status,
            form,
            seen: None,
            blocks: BTreeMap::new(),
            kept: 0,
            cut: false,
            complete: false,
        }
    }

    /// Takes a chunk in. True when the response's head has just come to be known.
    pub(crate) fn feed(&mut self, chunk: &[u8]) -> bool {
        let before = self.seen.is_some();
        match &mut self.form {
            Form::Events(stream) => {
                for data in stream.feed(chunk) {
                    if !has_too_many_values(&data)
                        && let Ok(event) = serde_json::from_slice(&data)
                    {
                        self.event(&event);
                    } else {
                        self.cut = true;
                    }
                }
            }
            Form::Json(body) => {
                if body.len() + chunk.len() <= MAX_KEPT {
                    body.extend_from_slice(chunk);
                }
            }
            Form::Opaque => {}
        }
        !before && self.seen.is_some()
    }

    /// The whole response has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What the head said.
    pub(crate) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// The body has ended.
    pub(crate) fn finish(&mut self) {
        let Form::Json(body) = &self.form else { return };
        if has_too_many_values(body) {
            return;
        }
        let Ok(message) = serde_json::from_slice::<Value>(body) else {
            return;
        };
        if message["type"] != "message" {
            return;
        }
        self.head(&message);
        for (index, block) in (0..).zip(message["content"].as_array().into_iter().flatten()) {
            self.start_block(index, block);
        }
        self.complete = true;
    }

    /// How the request ended, as far as the response tells. `bytes` is the request's size.
    pub(crate) fn outcome(&self, bytes: u64) -> RequestOutcome {
        let refused = !(200..300).contains(&self.status);
        let seen = match &self.seen {
            Some(seen) => self.with_estimated_output(seen),
            None if refused => Seen::default(),
            None => Seen {
                tokens: super::book::estimated_input(bytes),
                ..Seen::default()
            },
        };
        RequestOutcome {
            status: Some(self.status),
            seen,
            estimated: !self.complete && !refused,
        }
    }

    /// A stream that was cut has not said how much it put out; what came is a better guess than
    /// the figure of its head.
    fn with_estimated_output(&self, seen: &Seen) -> Seen {
        let mut seen = seen.clone();
        if !self.complete {
            seen.tokens.output = seen.tokens.output.max(self.kept as u64 / 4);
        }
        seen
    }

    /// The message, if the whole response has come.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let seen = self.seen.as_ref().filter(|_| self.complete)?;
        let mut texts = Vec::new();
        let mut tool_calls = Vec::new();
        for block in self.blocks.values() {
            match block.start["type"].as_str() {
                Some("text") => texts.push(block.text.as_str()),
                Some(kind) if kind.ends_with("tool_use") => tool_calls.push(block.tool_use()),
                _ => {}
            }
        }
        Some(Answer {
            message_id: seen.message_id.clone()?,
            model: seen.model.clone(),
            text: texts.join("\n"),
            tool_calls,
            tokens: seen.tokens,
            altered: self.cut,
        })
    }

    fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some("message_start") => self.head(&event["message"]),
            Some("content_block_start") => {
                if let Some(index) = event["index"].as_u64() {
                    self.start_block(index, &event["content_block"]);
                }
            }
            Some("content_block_delta") => self.delta(event),
            Some("message_delta") => {
                if let Some(seen) = &mut self.seen {
                    count(&mut seen.tokens, &event["usage"]);
                }
            }
            Some("message_stop") => self.complete = self.seen.is_some(),
            _ => {}
        }
    }

    fn head(&mut self, message: &Value) {
        let mut seen = Seen {
            message_id: short(&message["id"]),
            model: short(&message["model"]),
            tokens: Tokens::default(),
        };
        count(&mut seen.tokens, &message["usage"]);
        self.seen = Some(seen);
    }

    fn start_block(&mut self, index: u64, start: &Value) {
        let text = start["text"].as_str().unwrap_or_default().to_owned();
        if self.keep(text.len() + start.to_string().len()) {
            let block = Block {
                start: start.clone(),
                text,
                input: String::new(),
            };
            self.blocks.insert(index, block);
        }
    }

    fn delta(&mut self, event: &Value) {
        let delta = &event["delta"];
        let text = delta["text"].as_str().unwrap_or_default();
        let input = delta["partial_json"].as_str().unwrap_or_default();
        let thought = delta["thinking"].as_str().unwrap_or_default();
        if !self.keep(text.len() + input.len() + thought.len()) {
            return;
        }
        let Some(block) = event["index"]
            .as_u64()
            .and_then(|i| self.blocks.get_mut(&i))
        else {
            return;
        };
        block.text.push_str(text);
        block.input.push_str(input);
    }

    fn keep(&mut self, bytes: usize) -> bool {
        let fits = self.kept + bytes <= MAX_KEPT;
        if fits {
            self.kept += bytes;
        } else {
            self.cut = true;
        }
        fits
    }
}

impl Block {
    fn tool_use(&self) -> Value {
        let mut call = self.start.clone();
        if !self.input.is_empty() {
            call["input"] = serde_json::from_str::<Value>(&self.input)
                .ok()
                .filter(|input| !is_too_deep(input))
                // Cut off in the middle, perhaps: still what was said.
                .unwrap_or_else(|| Value::String(self.input.clone()));
        }
        call
    }
}

/// Ids and model names are columns elsewhere: an upstream that sends longer ones is not believed.
fn short(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|s| !s.is_empty() && s.len() <= 200)
        .map(str::to_owned)
}

/// Usage in the API is cumulative: each figure that is there replaces the last.
fn count(tokens: &mut Tokens, usage: &Value) {
    let figures = [
        ("input_tokens", &mut tokens.input),
        ("output_tokens", &mut tokens.output),
        ("cache_read_input_tokens", &mut tokens.cache_read),
        ("cache_creation_input_tokens", &mut tokens.cache_creation),
    ];
    for (name, figure) in figures {
        if let Some(value) = usage[name].as_u64() {
            *figure = value;
        }
    }
}

/// Splits a byte stream into the data of server-sent events.
#[derive(Debug, Default)]
struct EventStream {
    line: Vec<u8>,
    data: Vec<u8>,
}

impl EventStream {
    fn feed(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for part in chunk.split_inclusive(|b| *b == b'\n') {
            if self.line.len() + part.len() <= MAX_KEPT {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                found.extend(self.end_line(line.trim_ascii_end()));
            }
        }
        found
    }

    fn end_line(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        if line.is_empty() {
            return (!self.data.is_empty()).then(|| std::mem::take(&mut self.data));
        }
        if let Some(data) = line.strip_prefix(b"data:")
            && self.data.len() + data.len() <= MAX_KEPT
        {
            self.data.extend_from_slice(data.trim_ascii_start());
            self.data.push(b'\n');
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\r\n",
        r#"data: {"type":"message_start","message":{"id":"msg_1","model":"m-1","usage":{"input_tokens":10,"cache_read_input_tokens":5,"cache_creation_input_tokens":3,"output_tokens":1}}}"#,
        "\r\n\r\n: ping\n",
        r#"data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        "\n\n",
        r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hé"}}"#,
        "\n\n",
        r#"data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t1","name":"Bash","input":{}}}"#,
        "\n\n",
        r#"data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"command\":"}}"#,
        "\n\n",
        r#"data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"\"ls\"}"}}"#,
        "\n\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":25}}"#,
        "\n\n",
        r#"data: {"type":"message_stop"}"#,
        "\n\n"
    );

    #[test]
    fn a_stream_reads_the_same_in_chunks_of_any_size() {
        for size in [1, 2, 7, 64, STREAM.len()] {
            let mut meter = Meter::new(200, "text/event-stream; charset=utf-8");
            for chunk in STREAM.as_bytes().chunks(size) {
                meter.feed(chunk);
            }
            assert!(meter.is_complete(), "chunks of {size}");
            let answer = meter.answer().unwrap();
            assert_eq!(answer.text, "Hé");
            assert_eq!(
                answer.tool_calls,
                [json!({"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls"}})]
            );
            let expected = Tokens {
                input: 10,
                output: 25,
                cache_read: 5,
                cache_creation: 3,
            };
            assert_eq!(answer.tokens, expected);
            assert!(!meter.outcome(0).estimated);
        }
    }

    #[test]
    fn a_stream_that_was_cut_is_estimated_with_what_its_head_said() {
        let mut meter = Meter::new(200, "text/event-stream");
        let half = STREAM
            .find("content_block_stop")
            .unwrap_or(STREAM.len() / 2);
        assert!(meter.feed(&STREAM.as_bytes()[..half]));
        meter.finish();
        let outcome = meter.outcome(4000);
        assert!(outcome.estimated);
        assert_eq!(
            (outcome.seen.tokens.input, outcome.seen.tokens.cache_read),
            (10, 5)
        );
        assert!(outcome.seen.tokens.output >= 1);
        assert_eq!(meter.answer(), None);
    }

    #[test]
    fn a_tools_input_that_is_cut_off_is_kept_as_it_came() {
        let mut meter = Meter::new(200, "text/event-stream");
        let cut = STREAM.replace(r#""partial_json":"\"ls\"}""#, r#""partial_json":"\"l""#);
        assert_ne!(cut, STREAM);
        meter.feed(cut.as_bytes());
        let answer = meter.answer().unwrap();
        assert_eq!(answer.tool_calls[0]["input"], "{\"command\":\"l");
        assert!(!answer.altered);
    }

    #[test]
    fn what_is_not_kept_of_an_answer_makes_it_an_altered_one() {
        for lost in [
            format!(
                "data: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"text\":\"{}\"}}}}\n\n",
                "x".repeat(MAX_KEPT - 100)
            ),
            "data: {\"type\":\"content_blo\n\n".to_owned(),
        ] {
            let mut meter = Meter::new(200, "text/event-stream");
            let (head, rest) = STREAM.split_at(
                STREAM
                    .find("data: {\"type\":\"content_block_delta\"")
                    .unwrap(),
            );
            meter.feed(head.as_bytes());
            meter.feed(lost.as_bytes());
            meter.feed(lost.as_bytes());
            meter.feed(rest.as_bytes());
            assert!(meter.answer().unwrap().altered);
        }
    }

    #[test]
    fn a_refusal_costs_nothing_and_is_no_estimate() {
        let mut meter = Meter::new(529, "application/json");
        meter.feed(br#"{"type":"error"}"#);
        meter.finish();
        let outcome = meter.outcome(4000);
        assert_eq!((outcome.seen.tokens.total(), outcome.estimated), (0, false));
        assert_eq!(outcome.status, Some(529));
    }

    #[test]
    fn a_response_in_one_body_counts_like_a_stream() {
        let mut meter = Meter::new(200, "application/json");
        let body = json!({"type":"message","id":"msg_2","model":"m","content":[{"type":"text","text":"hi"}],
            "usage":{"input_tokens":7,"output_tokens":2}});
        meter.feed(body.to_string().as_bytes());
        meter.finish();
        let answer = meter.answer().unwrap();
        assert_eq!((answer.text.as_str(), answer.tokens.total()), ("hi", 9));
    }

    #[test]
    fn a_success_that_says_nothing_is_estimated_from_the_request() {
        let mut meter = Meter::new(200, "text/event-stream");
        meter.feed(b"data: {\"type\":\"error\"}\n\n");
        let outcome = meter.outcome(4000);
        assert_eq!((outcome.seen.tokens.input, outcome.estimated), (1000, true));
    }
}
