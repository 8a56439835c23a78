//! The CLI's output: each line of stdout goes to the supervisor, the end of stderr into the report,
//! and what a person should see into the container's log.

use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::outbox::Outbox;
use crate::wire::door::{ALTERED, FromAgent, MAX_LINE};
use crate::wire::{has_too_many_values, is_too_deep};

/// Longest line that is read whole; of a longer one, or one that does not fit its frame, the
/// beginning is told.
const LONGEST: usize = MAX_LINE - 64 * 1024;
/// What is left of such a line.
const BEGINNING: usize = 64 * 1024;
/// What is kept of stderr.
const STDERR: usize = 2 * 1024;

/// Readers of both streams.
#[derive(Debug)]
pub(super) struct Output {
    result: watch::Receiver<bool>,
    stdout: JoinHandle<()>,
    stderr: JoinHandle<()>,
    last: watch::Receiver<String>,
}

impl Output {
    /// Reads until both streams end.
    pub(super) fn read(
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        outbox: Arc<Outbox>,
    ) -> Self {
        let (result_seen, result) = watch::channel(false);
        let (words, last) = watch::channel(String::new());
        Self {
            result,
            stdout: tokio::spawn(tell(stdout, outbox, result_seen)),
            stderr: tokio::spawn(keep(stderr, words)),
            last,
        }
    }

    /// Resolves once the CLI has given its result.
    pub(super) async fn result(&self) {
        let mut result = self.result.clone();
        if result.wait_for(|seen| *seen).await.is_err() && !*result.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the end of both streams; the end of stderr.
    pub(super) async fn drain(self) -> String {
        let _ = self.stdout.await;
        let _ = self.stderr.await;
        self.last.borrow().clone()
    }
}

async fn tell(stdout: pipe::Receiver, outbox: Arc<Outbox>, result: watch::Sender<bool>) {
    let mut lines = Lines::new(stdout);
    while let Some(bytes) = lines.next().await {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let line = parse(&bytes);
        let is_result = line["type"] == "result";
        if !outbox
            .push(|number| FromAgent::Line {
                number,
                line: line.clone(),
            })
            .await
        {
            let line = raw(&bytes);
            outbox
                .push(|number| FromAgent::Line {
                    number,
                    line: line.clone(),
                })
                .await;
        }
        if is_result {
            result.send_replace(true);
        }
    }
}

/// A line of stream-json; anything else is wrapped, so that it is not lost.
fn parse(bytes: &[u8]) -> Value {
    let parsed = Some(bytes)
        .filter(|bytes| !has_too_many_values(bytes))
        .and_then(|bytes| serde_json::from_slice(bytes).ok().or_else(|| mend(bytes)))
        .filter(|line: &Value| line.is_object() && !is_too_deep(line));
    parsed.unwrap_or_else(|| {
        log(bytes);
        raw(bytes)
    })
}

/// A line that can be read but for what no text can hold: bytes that are not UTF-8, or half of a
/// surrogate pair (JavaScript cuts texts there). U+FFFD stands in its place, and the line says so.
fn mend(bytes: &[u8]) -> Option<Value> {
    let line = without_half_pairs(&String::from_utf8_lossy(bytes));
    let mut line: Value = serde_json::from_str(&line).ok()?;
    line.as_object_mut()?
        .insert(ALTERED.to_owned(), json!(true));
    Some(line)
}

/// JSON with `\ufffd` for each escape that is half of a surrogate pair without the other half.
fn without_half_pairs(json: &str) -> String {
    let mut mended = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let whole = match unit(rest) {
            Some(0xd800..=0xdbff)
                if matches!(rest.get(6..).and_then(unit), Some(0xdc00..=0xdfff)) =>
            {
                12
            }
            Some(0xd800..=0xdfff) => {
                mended.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            // Another escape: its second character begins none.
            None => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&rest[..whole]);
        rest = &rest[whole..];
    }
    mended.push_str(rest);
    mended
}

/// The UTF-16 unit of the escape that this begins with.
fn unit(json: &str) -> Option<u16> {
    let digits = json.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

fn raw(bytes: &[u8]) -> Value {
    let beginning = &bytes[..bytes.len().min(BEGINNING)];
    json!({"type": "raw", "bytes": bytes.len(), "text": String::from_utf8_lossy(beginning)})
}

async fn keep(stderr: pipe::Receiver, words: watch::Sender<String>) {
    let mut lines = Lines::new(stderr);
    while let Some(bytes) = lines.next().await {
        log(&bytes);
        let line = String::from_utf8_lossy(&bytes).into_owned();
        words.send_modify(|last| {
            last.push_str(&line);
            last.push('\n');
            let excess = last.len().saturating_sub(STDERR);
            last.drain(..last.ceil_char_boundary(excess));
        });
    }
}

/// To the container's log, where `kubectl logs` finds it.
fn log(bytes: &[u8]) {
    let mut log = std::io::stderr().lock();
    let _ = log.write_all(&bytes[..bytes.len().min(BEGINNING)]);
    let _ = log.write_all(b"\n");
}

/// Lines of a stream, cut where they are too long.
struct Lines {
    stream: BufReader<pipe::Receiver>,
}

impl Lines {
    fn new(stream: pipe::Receiver) -> Self {
        Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
        }
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let read = self.read_some(&mut line, LONGEST).await;
        if read == 0 {
            return None;
        }
        if line.ends_with(b"\n") {
            line.pop();
        } else if read == LONGEST {
            self.skip_rest().await;
        }
        Some(line)
    }

    async fn skip_rest(&mut self) {
        let mut skipped = Vec::new();
        loop {
            skipped.clear();
            if self.read_some(&mut skipped, BEGINNING).await == 0 || skipped.ends_with(b"\n") {
                return;
            }
        }
    }

    async fn read_some(&mut self, line: &mut Vec<u8>, limit: usize) -> usize {
        let mut limited = (&mut self.stream).take(limit as u64);
        match limited.read_until(b'\n', line).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "the CLI's output can't be read");
                0
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_line_that_is_not_json_or_not_utf8_is_wrapped_and_not_lost() {
        let (mut write, read) = pipe::pipe().unwrap();
        let outbox = Arc::new(Outbox::default());
        let (seen, result) = watch::channel(false);
        write
            .write_all(b"hello \xff\n\n{\"type\":\"result\"}\nlast")
            .await
            .unwrap();
        drop(write);
        tell(read, outbox.clone(), seen).await;
        let texts: Vec<_> = [
            outbox.after(0).await,
            outbox.after(1).await,
            outbox.after(2).await,
        ]
        .iter()
        .map(|(_, line)| serde_json::from_slice::<Value>(line).unwrap()["line"].clone())
        .collect();
        assert_eq!(
            texts[0],
            json!({"type": "raw", "bytes": 7, "text": "hello \u{fffd}"})
        );
        assert_eq!(texts[1], json!({"type": "result"}));
        assert_eq!(texts[2]["text"], "last");
        assert!(*result.borrow());
    }

    #[test]
    fn what_no_text_can_hold_is_replaced_in_its_line_which_says_so() {
        for (line, says) in [
            (&br#"{"a":"x\ud83dy"}"#[..], "x\u{fffd}y"),
            (br#"{"a":"\ude00\ud83d"}"#, "\u{fffd}\u{fffd}"),
            (br#"{"a":"\ud83d\ud83d\ude00"}"#, "\u{fffd}😀"),
            (br#"{"a":"\\ud83d \n \ud83d"}"#, "\\ud83d \n \u{fffd}"),
            (b"{\"a\":\"\xff\"}", "\u{fffd}"),
        ] {
            let expected = json!({"a": says, (ALTERED): true});
            assert_eq!(parse(line), expected, "{}", line.escape_ascii());
        }
        let whole = br#"{"a":"\ud83d\ude00 \\"}"#;
        assert_eq!(parse(whole), json!({"a": "😀 \\"}));
        for broken in [
            &br#"{"a":"\ud83"#[..],
            br#"{"a":"\"#,
            br#"{"a":"\u+123\ud83d"}"#,
        ] {
            assert_eq!(parse(broken)["type"], "raw", "{}", broken.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_told_by_its_beginning() {
        let (mut write, read) = pipe::pipe().unwrap();
        let outbox = Arc::new(Outbox::default());
        let (seen, _) = watch::channel(false);
        let long = vec![b'x'; MAX_LINE + 10];
        let writing = tokio::spawn(async move {
            write.write_all(&long).await.unwrap();
            write.write_all(b"\n{\"type\":\"system\"}\n").await.unwrap();
        });
        tell(read, outbox.clone(), seen).await;
        writing.await.unwrap();
        let first: Value = serde_json::from_slice(&outbox.after(0).await.1).unwrap();
        assert_eq!(first["line"]["text"].as_str().unwrap().len(), BEGINNING);
        let second: Value = serde_json::from_slice(&outbox.after(1).await.1).unwrap();
        assert_eq!(second["line"]["type"], "system");
    }

    #[tokio::test]
    async fn of_stderr_only_the_end_is_kept() {
        let (mut write, read) = pipe::pipe().unwrap();
        let (words, last) = watch::channel(String::new());
        let writing = tokio::spawn(async move {
            for _ in 0..500 {
                write.write_all("é warning\n".as_bytes()).await.unwrap();
            }
            write.write_all(b"fatal: the end\n").await.unwrap();
        });
        keep(read, words).await;
        writing.await.unwrap();
        assert!(last.borrow().ends_with("fatal: the end\n") && last.borrow().len() <= STDERR);
    }
}
