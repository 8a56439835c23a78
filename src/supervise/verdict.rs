//! How a run ended: from what the book says to an outcome, a reason and a sentence, and the
//! termination message that fits where Kubernetes keeps it. Pure.

use super::book::{Book, LastResult, Unwritable};
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
    if let Some(why) = &book.unwritable {
        return unwritable(why);
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
fn unwritable(why: &Unwritable) -> Verdict {
    let cause = &why.cause;
    if why.full {
        let message = format!(
            "The run was stopped because its workspace has no room left for its journal ({cause})."
        );
        return Verdict::new(Outcome::Failed, reasons::OUT_OF_DISK, message);
    }
    let message = format!("The run was stopped because its journal can't be written ({cause}).");
    Verdict::new(Outcome::Failed, reasons::VOLUME, message)
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
    let mut end = message.len().saturating_sub(excess + '…'.len_utf8());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    if end > 0 {
        message.push('…');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::{Changes, EarlierAttempt, Usage};

    fn result(subtype: &str, is_error: bool) -> LastResult {
        LastResult {
            subtype: subtype.into(),
            is_error,
            text: "API Error: 500\nmore".into(),
            session_cost_micro_usd: 0,
        }
    }

    fn exited(code: i32) -> End {
        End {
            exit_code: Some(code),
            ..End::default()
        }
    }

    fn verdict(result: Option<LastResult>, end: Option<End>) -> (Outcome, &'static str) {
        let book = Book {
            connected_at: Some(jiff::Timestamp::UNIX_EPOCH),
            result,
            end,
            ..Book::default()
        };
        let verdict = judge(&book);
        (verdict.outcome, verdict.reason)
    }

    #[test]
    fn only_a_result_that_is_a_success_completes_a_run() {
        let done = Some(result("success", false));
        assert_eq!(
            verdict(done.clone(), Some(exited(0))),
            (Outcome::Completed, reasons::COMPLETED)
        );
        assert_eq!(
            verdict(done.clone(), Some(exited(1))),
            (Outcome::Failed, reasons::AGENT_CRASHED)
        );
        assert_eq!(
            verdict(done, None),
            (Outcome::Failed, reasons::AGENT_CRASHED)
        );
        assert_eq!(
            verdict(Some(result("success", true)), Some(exited(1))),
            (Outcome::Failed, reasons::MODEL_ERROR)
        );
        assert_eq!(
            verdict(Some(result("error_max_turns", true)), Some(exited(1))),
            (Outcome::Failed, reasons::MAX_TURNS_REACHED)
        );
        assert_eq!(
            verdict(None, Some(exited(0))),
            (Outcome::Failed, reasons::AGENT_CRASHED)
        );
    }

    #[test]
    fn a_cli_that_lingers_after_its_success_and_is_killed_has_done_its_task() {
        let end = End {
            signal: Some(9),
            ..End::default()
        };
        assert_eq!(
            verdict(Some(result("success", false)), Some(end)).0,
            Outcome::Completed
        );
    }

    #[test]
    fn a_pod_that_was_told_to_stop_says_so_whatever_the_cli_made_of_it() {
        let end = End {
            terminated: true,
            ..exited(1)
        };
        let interrupted = Some(result("error_during_execution", true));
        assert_eq!(
            verdict(interrupted, Some(end.clone())),
            (Outcome::Stopped, reasons::KILLED)
        );
        assert_eq!(
            verdict(None, Some(end)),
            (Outcome::Stopped, reasons::KILLED)
        );
        assert_eq!(judge(&Book::default()).outcome, Outcome::Stopped);
    }

    #[test]
    fn a_time_out_is_told_from_a_kill_though_both_stop_the_agent() {
        let book = Book {
            timed_out: true,
            end: Some(End {
                terminated: true,
                ..exited(1)
            }),
            ..Book::default()
        };
        assert_eq!(judge(&book).reason, reasons::TIMEOUT);
    }

    #[test]
    fn a_journal_that_could_not_be_written_is_the_reason_whatever_the_agent_reports() {
        let of = |full| {
            let why = Unwritable {
                cause: "No space left on device".into(),
                full,
            };
            judge(&Book {
                unwritable: Some(why),
                end: Some(End {
                    terminated: true,
                    ..exited(1)
                }),
                ..Book::default()
            })
        };
        assert_eq!(of(true).reason, reasons::OUT_OF_DISK);
        assert!(of(true).message.contains("No space left on device"));
        assert_eq!(
            (of(false).outcome, of(false).reason),
            (Outcome::Failed, reasons::VOLUME)
        );
    }

    #[test]
    fn out_of_memory_counts_only_where_it_ended_the_cli() {
        let killed = End {
            signal: Some(9),
            out_of_memory: true,
            ..End::default()
        };
        assert_eq!(verdict(None, Some(killed)).1, reasons::OUT_OF_MEMORY);
        let child = End {
            out_of_memory: true,
            ..exited(1)
        };
        assert_eq!(
            verdict(Some(result("error_max_turns", true)), Some(child)).1,
            reasons::MAX_TURNS_REACHED
        );
    }

    #[test]
    fn the_last_words_of_a_crashed_cli_are_in_the_message() {
        let book = Book {
            connected_at: Some(jiff::Timestamp::UNIX_EPOCH),
            end: Some(End {
                stderr: "warning\nFatal: no such model\n\n".into(),
                ..exited(3)
            }),
            ..Book::default()
        };
        let message = judge(&book).message;
        assert!(
            message.contains("exit code 3") && message.ends_with("Fatal: no such model"),
            "{message}"
        );
    }

    #[test]
    fn a_termination_message_always_fits_and_stays_json() {
        let earlier = (1..=5)
            .map(|attempt| EarlierAttempt {
                attempt,
                usage: Usage::default(),
            })
            .collect();
        let long = Termination {
            outcome: Outcome::Failed,
            reason: reasons::AGENT_CRASHED.into(),
            message: "é\"\u{1}".repeat(3000),
            usage: Usage::default(),
            earlier,
            model: Some("m".repeat(200)),
            git: Some(Changes {
                repository: "https://x.example/".to_owned() + &"r".repeat(300),
                ..Changes::default()
            }),
            sequence: 9,
            acknowledged: 3,
        };
        let absurd = Termination {
            git: Some(Changes {
                repository: "r".repeat(3000),
                ..Changes::default()
            }),
            ..long.clone()
        };
        for case in [long, absurd] {
            let body = fit(case);
            assert!(body.len() <= MAX_TERMINATION_BYTES, "{}", body.len());
            let read: Termination = serde_json::from_slice(&body).unwrap();
            assert_eq!((read.sequence, read.acknowledged), (9, 3));
        }
    }

    #[test]
    fn a_short_termination_message_is_left_as_it_is() {
        let short = Termination {
            outcome: Outcome::Completed,
            reason: reasons::COMPLETED.into(),
            message: "Done.".into(),
            usage: Usage::default(),
            earlier: Vec::new(),
            model: None,
            git: None,
            sequence: 1,
            acknowledged: 1,
        };
        let read: Termination = serde_json::from_slice(&fit(short.clone())).unwrap();
        assert_eq!(read, short);
    }
}
