//! How a run ended: from what the book says to an outcome, a reason and a sentence, and the
//! termination message that fits where Kubernetes keeps it. Pure.

use super::book::{Book, GivenUp, LastResult};
use crate::names::reasons;
use crate::wire::door::End;
use crate::wire::{MAX_TERMINATION_BYTES, Outcome, Termination};

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// For the controller.
    pub(crate) outcome: Outcome,
    /// One of [`reasons`].
    pub(crate) reason: &'static str,
    /// For a person.
    pub(crate) message: String,
}

impl Verdict {
    fn new(outcome: Outcome, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            outcome,
            reason,
            message: message.into(),
        }
    }
}

/// Judges an attempt that is over: the agent has reported its end, or will not any more.
pub(crate) fn judge(book: &Book) -> Verdict {
    let end = book.end.as_ref();
    if let Some(result) = &book.result
        && is_done(result, end)
    {
        return Verdict::new(
            Outcome::Completed,
            reasons::COMPLETED,
            "The agent finished its task.",
        );
    }
    if let Some(why) = &book.given_up {
        return given_up(why);
    }
    if book.timed_out {
        return Verdict::new(
            Outcome::Failed,
            reasons::TIMEOUT,
            "The run was stopped because limits.timeout had passed.",
        );
    }
    let Some(end) = end else {
        return without_end(book);
    };
    if end.terminated {
        return Verdict::new(
            Outcome::Stopped,
            reasons::KILLED,
            "The pod was told to stop before the agent had ended.",
        );
    }
    if end.out_of_memory && (book.result.is_none() || end.signal == Some(SIGKILL)) {
        return Verdict::new(
            Outcome::Failed,
            reasons::OUT_OF_MEMORY,
            "The agent's container ran out of memory; podTemplate.resources.limits.memory sets its limit.",
        );
    }
    match &book.result {
        Some(result) => from_result(result, end),
        None => Verdict::new(
            Outcome::Failed,
            reasons::AGENT_CRASHED,
            format!(
                "The CLI ended without a result ({}).{}",
                exit(end),
                last_words(end)
            ),
        ),
    }
}

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// The task is done if the SDK says so and the CLI did not fail after it. A CLI that lingers after
/// its result is killed by the agent: that takes nothing from what was done.
fn is_done(result: &LastResult, end: Option<&End>) -> bool {
    let ended_well = end.is_some_and(|end| end.exit_code == Some(0) || end.signal.is_some());
    result.subtype == "success" && !result.is_error && ended_well
}

/// Nothing was done after this that could have been told of, whatever else was reported.
fn given_up(why: &GivenUp) -> Verdict {
    let (reason, message) = match why {
        GivenUp::Unwritable { cause, full: true } => (
            reasons::OUT_OF_DISK,
            format!(
                "The run was stopped because its workspace has no room left for its journal ({cause})."
            ),
        ),
        GivenUp::Unwritable { cause, full: false } => (
            reasons::VOLUME,
            format!("The run was stopped because its journal can't be written ({cause})."),
        ),
        GivenUp::PortTaken { port } => (
            reasons::PORT_TAKEN,
            format!(
                "A process of the agent took the supervisor's port {port} while that was being \
                 restarted; the run can't be followed any further."
            ),
        ),
    };
    Verdict::new(Outcome::Failed, reason, message)
}

fn without_end(book: &Book) -> Verdict {
    if book.connected_at.is_none() {
        return Verdict::new(
            Outcome::Stopped,
            reasons::KILLED,
            "The pod was stopped before the agent had started.",
        );
    }
    Verdict::new(
        Outcome::Failed,
        reasons::AGENT_CRASHED,
        "The agent's container ended without a report.",
    )
}

fn from_result(result: &LastResult, end: &End) -> Verdict {
    let text = first_line(&result.text);
    match result.subtype.as_str() {
        "error_max_turns" => Verdict::new(
            Outcome::Failed,
            reasons::MAX_TURNS_REACHED,
            "The agent used up agent.maxTurns before its task was done.",
        ),
        "success" if result.is_error => Verdict::new(
            Outcome::Failed,
            reasons::MODEL_ERROR,
            format!("The model's API failed: {text}"),
        ),
        "success" => Verdict::new(
            Outcome::Failed,
            reasons::AGENT_CRASHED,
            format!(
                "The CLI failed after its result ({}).{}",
                exit(end),
                last_words(end)
            ),
        ),
        other => Verdict::new(
            Outcome::Failed,
            reasons::AGENT_CRASHED,
            format!(
                "The CLI gave up with {other} ({}).{}{}",
                exit(end),
                last_words(end),
                if text.is_empty() {
                    String::new()
                } else {
                    format!(" {text}")
                }
            ),
        ),
    }
}

fn exit(end: &End) -> String {
    match (end.exit_code, end.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it could not be started".to_owned(),
    }
}

fn last_words(end: &End) -> String {
    end.stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(|line| format!(" Its last words: {}", line.trim()))
        .unwrap_or_default()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The termination message: JSON of at most [`MAX_TERMINATION_BYTES`]. The sentence is cut first,
/// then the oldest of the earlier attempts are left to the ledger, which has them too.
pub(crate) fn fit(mut termination: Termination) -> Vec<u8> {
    // There is no room for it here; the event has it.
    if let Some(git) = &mut termination.git {
        git.stats = None;
    }
    loop {
        let body = serde_json::to_vec(&termination).unwrap_or_default();
        let Some(excess) = body
            .len()
            .checked_sub(MAX_TERMINATION_BYTES)
            .filter(|n| *n > 0)
        else {
            return body;
        };
        if termination.message.is_empty() && termination.earlier.is_empty() {
            shorten(&mut termination);
        } else if termination.message.len() > 80 || termination.earlier.is_empty() {
            cut(&mut termination.message, excess);
        } else {
            termination.earlier.remove(0);
        }
    }
}

/// Only names of absurd length are left: the controller knows the repository's from the spec.
fn shorten(termination: &mut Termination) {
    match &mut termination.git {
        Some(git) if !git.repository.is_empty() => git.repository.clear(),
        Some(_) => termination.git = None,
        None => termination.model = None,
    }
}

/// Takes at least `excess` bytes off the end, at a character's boundary.
fn cut(message: &mut String, excess: usize) {
    let end = message.floor_char_boundary(message.len().saturating_sub(excess + '…'.len_utf8()));
    message.truncate(end);
    if end > 0 {
        message.push('…');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
