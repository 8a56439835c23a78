use super::*;

fn event(sequence: u64, body: EventBody) -> Record {
    Record {
        events: vec![Event {
            sequence,
            at: Timestamp::UNIX_EPOCH,
            body,
        }],
        ..Record::default()
    }
}

fn note(note: Note) -> Record {
    Record {
        notes: vec![note],
        ..Record::default()
    }
}

fn tokens(input: u64, output: u64) -> Tokens {
    Tokens {
        input,
        output,
        ..Tokens::default()
    }
}

#[test]
fn a_request_without_an_end_is_closed_with_what_its_head_said() {
    let mut book = Book::default();
    book.apply(&event(
        1,
        EventBody::RequestStarted {
            request: 1,
            bytes: 400,
        },
    ));
    book.apply(&note(Note::Seen {
        request: 1,
        seen: Seen {
            message_id: Some("msg_1".into()),
            model: Some("m".into()),
            tokens: tokens(42, 1),
        },
    }));
    assert!(book.is_streaming("msg_1"));
    let ended = book
        .lost_request(Timestamp::UNIX_EPOCH)
        .expect("one is open");
    book.apply(&event(2, ended));
    assert_eq!(book.usage.tokens, tokens(42, 1));
    assert_eq!(book.usage.estimated_requests, 1);
    assert_eq!(book.model.as_deref(), Some("m"));
    assert!(book.lost_request(Timestamp::UNIX_EPOCH).is_none());
}

#[test]
fn a_request_of_which_nothing_came_is_estimated_from_its_size() {
    let mut book = Book::default();
    book.apply(&event(
        1,
        EventBody::RequestStarted {
            request: 1,
            bytes: 400,
        },
    ));
    let Some(EventBody::RequestEnded {
        status,
        tokens: spent,
        estimated,
        ..
    }) = book.lost_request(Timestamp::UNIX_EPOCH)
    else {
        panic!("one is open")
    };
    assert_eq!((status, spent, estimated), (None, tokens(100, 0), true));
}

#[test]
fn the_cost_of_a_resumed_session_is_what_was_added_to_it() {
    let mut book = Book::default();
    book.apply(&note(Note::Baseline {
        cost_micro_usd: 16_280,
    }));
    assert_eq!(
        book.usage_with_result(Some(20_000), 2).cost_micro_usd,
        Some(20_000)
    );
    book.apply(&note(Note::Began { resumed: true }));
    let usage = book.usage_with_result(Some(32_560), 2);
    assert_eq!((usage.cost_micro_usd, usage.turns), (Some(16_280), 2));
}

/// Takes a result in that says so of the session's cost, and answers what the attempt has cost.
fn cost_after(book: &mut Book, session_cost_micro_usd: Option<u64>) -> Option<u64> {
    let result = EventBody::AgentResult {
        subtype: "success".into(),
        is_error: false,
        text: String::new(),
        session_cost_micro_usd,
        usage: book.usage_with_result(session_cost_micro_usd, 1),
    };
    let record = event(book.sequence + 1, result);
    book.apply(&record);
    book.usage.cost_micro_usd
}

#[test]
fn a_result_that_names_no_cost_makes_none_of_it_and_takes_none_back() {
    let mut book = Book::default();
    book.apply(&note(Note::Baseline {
        cost_micro_usd: 16_280,
    }));
    book.apply(&note(Note::Began { resumed: true }));
    assert_eq!(cost_after(&mut book, None), None);
    assert_eq!(book.session_cost_micro_usd, None);
    assert_eq!(cost_after(&mut book, Some(16_290)), Some(10));
    assert_eq!(cost_after(&mut book, None), Some(10));
    assert_eq!(
        (book.session_cost_micro_usd, book.usage.turns),
        (Some(16_290), 3)
    );
}

#[test]
fn a_sessions_cost_below_what_it_was_before_was_counted_anew() {
    let mut book = Book::default();
    book.apply(&note(Note::Baseline {
        cost_micro_usd: 16_280,
    }));
    book.apply(&note(Note::Began { resumed: true }));
    assert_eq!(cost_after(&mut book, Some(9_000)), Some(9_000));
    assert_eq!(cost_after(&mut book, Some(20_000)), Some(20_000));
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let sealed = Termination {
        outcome: crate::wire::Outcome::Completed,
        reason: "Completed".into(),
        message: String::new(),
        usage: Usage::default(),
        earlier: Vec::new(),
        model: None,
        git: None,
        sequence: 8,
        acknowledged: 5,
    };
    let mut events = event(
        7,
        EventBody::RequestStarted {
            request: 1,
            bytes: 2,
        },
    )
    .events;
    events.extend(event(8, EventBody::Sealed(sealed)).events);
    let record = Record {
        events,
        line: Some(3),
        notes: vec![Note::Began { resumed: true }, Note::TimedOut],
    };
    let line = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
}
