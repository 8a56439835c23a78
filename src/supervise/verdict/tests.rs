use super::*;
use crate::wire::{Changes, EarlierAttempt, Usage};

fn result(subtype: &str, is_error: bool) -> LastResult {
    LastResult {
        subtype: subtype.into(),
        is_error,
        text: "API Error: 500\nmore".into(),
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
        let why = GivenUp::Unwritable {
            cause: "No space left on device".into(),
            full,
        };
        judge(&Book {
            given_up: Some(why),
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
