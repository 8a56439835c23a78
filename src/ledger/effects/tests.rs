use uuid::Uuid;

use super::*;
use crate::wire::{Message, MessageKind, Role, Source, Tokens, Usage};

fn batch(events: Vec<Event>) -> Batch {
    Batch {
        run_id: Uuid::nil(),
        attempt: 1,
        session_id: Uuid::nil(),
        session_name: "s".to_owned(),
        events,
    }
}

fn ended(sequence: u64, input: u64, model: &str) -> Event {
    Event {
        sequence,
        at: Timestamp::UNIX_EPOCH,
        body: EventBody::RequestEnded {
            request: sequence,
            status: Some(200),
            model: Some(model.to_owned()),
            message_id: None,
            tokens: Tokens::default(),
            estimated: false,
            milliseconds: 1,
            usage: Usage {
                tokens: Tokens {
                    input,
                    ..Tokens::default()
                },
                ..Usage::default()
            },
        },
    }
}

#[test]
fn only_new_events_have_effects_and_the_last_model_counts() {
    let stored = Stored::of(&batch(vec![
        ended(1, 5, "a"),
        ended(2, 9, "b"),
        ended(4, 7, "c"),
    ]))
    .unwrap();
    let change = stored.change(&[1, 2]);
    assert_eq!(
        (change.figures.input, change.model),
        (9, Some((2, "b".to_owned())))
    );
    assert_eq!(stored.change(&[]), AttemptChange::default());
}

#[test]
fn sequences_that_do_not_rise_are_refused() {
    for sequences in [[2, 2], [2, 1], [0, 1]] {
        let events = sequences.map(|sequence| ended(sequence, 1, "m")).to_vec();
        assert!(
            matches!(Stored::of(&batch(events)), Err(Error::Refused(_))),
            "{sequences:?}"
        );
    }
}

#[test]
fn a_number_that_cannot_be_true_is_refused_with_its_name() {
    let error = Stored::of(&batch(vec![ended(1, u64::MAX, "m")])).unwrap_err();
    assert_eq!(error.to_string(), "event 1: input tokens can't be true");
}

#[test]
fn a_message_with_a_nul_is_marked_as_altered() {
    let message = Message {
        id: Uuid::nil(),
        role: Role::Assistant,
        kind: MessageKind::Assistant,
        text: "a\0b".to_owned(),
        tool_calls: vec![json!({"input": "\0"})],
        tool_outputs: vec![],
        model: None,
        tokens: None,
        source: Source::Meter,
        altered: false,
    };
    let row = message_row(&message, 1).unwrap();
    assert_eq!(row.text, "a\u{fffd}b");
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(json(&row.raw_payload)["altered"], json!(true));
    assert_eq!(json(&row.tool_calls)[0]["input"], json!("\u{fffd}"));
}
