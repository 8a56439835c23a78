use serde_json::json;

use super::super::book::{Note, Seen};
use super::super::journal::Reader;
use super::*;
use crate::wire::Tokens;

struct Fixture {
    dir: tempfile::TempDir,
    journal: Arc<Journal>,
    scribe: Scribe,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(&dir.path().join("1.journal")).unwrap());
    let scribe = Scribe::new(journal.clone(), Uuid::from_u128(1));
    Fixture {
        dir,
        journal,
        scribe,
    }
}

impl Fixture {
    async fn say(&mut self, lines: &[Value]) -> u64 {
        let mut last = 0;
        for line in lines {
            for mut taken in self.scribe.take(self.scribe.expects(), line).await {
                taken.pending.durable().await;
                last = taken.number;
            }
        }
        last
    }

    fn messages(&self) -> Vec<Message> {
        let mut reader = Reader::open(&self.dir.path().join("1.journal")).unwrap();
        let durable = self.journal.durable().borrow().bytes;
        let mut found = Vec::new();
        while let Some(events) = reader.next(durable).unwrap() {
            found.extend(events.into_iter().filter_map(|event| match event.body {
                EventBody::Message(message) => Some(message),
                _ => None,
            }));
        }
        found
    }
}

fn assistant(id: &str, block: Value) -> Value {
    json!({"type":"assistant","message":{"id":id,"model":"m","content":[block],"usage":{"output_tokens":1}}})
}

fn text(text: &str) -> Value {
    json!({"type":"text","text":text})
}

fn answer(id: &str) -> Answer {
    Answer {
        message_id: id.into(),
        model: Some("meter-model".into()),
        text: "as metered".into(),
        tool_calls: vec![json!({"type":"tool_use","id":"t1","name":"Bash","input":{}})],
        tokens: Tokens {
            output: 25,
            ..Tokens::default()
        },
        altered: false,
    }
}

#[tokio::test]
async fn a_message_that_passed_the_meter_is_told_once_and_in_its_words() {
    let mut f = fixture();
    f.journal
        .append(|_| Draft::note(Note::Answer(answer("msg_1"))))
        .durable()
        .await;
    let lines = [
        assistant("msg_1", text("forged")),
        assistant("msg_1", json!({"type":"tool_use","id":"t1"})),
    ];
    assert_eq!(f.say(&lines).await, 2);
    let [message] = f.messages().try_into().unwrap();
    assert_eq!(
        (message.text.as_str(), message.source),
        ("as metered", Source::Meter)
    );
    assert_eq!(message.tokens.unwrap().output, 25);
    assert_eq!(message.tool_calls.len(), 1);
}

#[tokio::test]
async fn lines_of_one_message_that_the_meter_never_saw_become_one_message_without_tokens() {
    let mut f = fixture();
    let call = json!({"type":"tool_use","id":"t9","name":"Bash","input":{}});
    assert_eq!(
        f.say(&[assistant("x", text("a")), assistant("x", call)])
            .await,
        0,
        "held back, so not acknowledged"
    );
    assert_eq!(f.say(&[json!({"type":"system"})]).await, 3);
    let [message] = f.messages().try_into().unwrap();
    assert_eq!(
        (message.text.as_str(), message.source, message.tokens),
        ("a", Source::Agent, None)
    );
    assert_eq!(message.tool_calls.len(), 1);
}

#[tokio::test]
async fn a_line_about_a_message_still_on_its_way_waits_for_the_meter() {
    let mut f = fixture();
    f.journal
        .append(|_| {
            Draft::event(EventBody::RequestStarted {
                request: 1,
                bytes: 1,
            })
        })
        .durable()
        .await;
    let seen = Seen {
        message_id: Some("msg_1".into()),
        ..Seen::default()
    };
    f.journal
        .append(|_| {
            Draft::note(Note::Seen {
                request: 1,
                seen: seen.clone(),
            })
        })
        .durable()
        .await;
    let journal = f.journal.clone();
    let ended = async {
        journal
            .append(|book| Draft {
                events: vec![book.request_ended(
                    1,
                    &super::super::book::RequestOutcome {
                        seen,
                        ..Default::default()
                    },
                    jiff::Timestamp::now(),
                )],
                notes: vec![Note::Answer(answer("msg_1"))],
                line: None,
            })
            .durable()
            .await;
    };
    let lines = [assistant("msg_1", text("early"))];
    tokio::join!(f.say(&lines), ended);
    assert_eq!(f.messages()[0].source, Source::Meter);
}

#[tokio::test]
async fn results_of_tools_are_the_agents_word() {
    let mut f = fixture();
    let line = json!({"type":"user","message":{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"ok"}]}});
    f.say(&[line.clone(), line]).await;
    let [message] = f.messages().try_into().unwrap();
    assert_eq!(
        (message.kind, message.source),
        (MessageKind::ToolResult, Source::Agent)
    );
    assert_eq!(message.tool_outputs[0]["content"], "ok");
}

#[tokio::test]
async fn a_result_carries_turns_and_the_cost_of_this_attempt() {
    let mut f = fixture();
    for note in [
        Note::Baseline {
            cost_micro_usd: 16_280,
        },
        Note::Began { resumed: true },
    ] {
        f.journal.append(|_| Draft::note(note)).durable().await;
    }
    f.say(&[json!({"type":"result","subtype":"success","is_error":false,"num_turns":2,"total_cost_usd":0.03256,"result":"done"})]).await;
    let usage = f.journal.read(|book| book.usage);
    assert_eq!((usage.cost_micro_usd, usage.turns), (Some(16_280), 2));
}

#[tokio::test]
async fn a_result_without_a_cost_that_can_be_true_says_nothing_of_it() {
    let mut f = fixture();
    let result = |cost: Value| json!({"type":"result","num_turns":1,"total_cost_usd":cost});
    for cost in [Value::Null, json!(-1), json!("3"), json!(1_000_001)] {
        f.say(&[result(cost)]).await;
    }
    f.say(&[json!({"type":"result","num_turns":1})]).await;
    let (usage, cost) = f
        .journal
        .read(|book| (book.usage, book.session_cost_micro_usd));
    assert_eq!((usage.cost_micro_usd, usage.turns, cost), (None, 5, None));
    f.say(&[result(json!(0))]).await;
    assert_eq!(f.journal.read(|book| book.usage.cost_micro_usd), Some(0));
}

#[tokio::test]
async fn the_cli_is_named_once_and_again_when_it_is_another() {
    let mut f = fixture();
    let init =
        |version: &str| json!({"type":"system","subtype":"init","claude_code_version":version});
    let other = json!({"type":"system","subtype":"status"});
    f.say(&[init("2.1.330"), other, init("2.1.330"), init("")])
        .await;
    assert_eq!(f.journal.read(|book| book.sequence), 1);
    f.say(&[init("2.2.0")]).await;
    let known = f
        .journal
        .read(|book| (book.sequence, book.cli_version.clone()));
    assert_eq!(known, (2, Some("2.2.0".to_owned())));
}

#[test]
fn a_message_that_is_too_long_is_cut_to_fit_an_event() {
    let mut message = metered(Uuid::nil(), answer("x"));
    message.text = "é".repeat(MAX_MESSAGE);
    message.tool_outputs = vec![json!({"content":[{"text":"y".repeat(MAX_MESSAGE)}]})];
    fit(&mut message);
    assert!(size(&message) <= MAX_MESSAGE);
    assert!(message.text.ends_with("bytes)") && message.altered);
}

#[test]
fn blocks_that_are_left_out_are_counted_in_the_text() {
    let mut message = metered(Uuid::nil(), answer("x"));
    let block = json!({"type": "tool_result", "content": "y".repeat(30)});
    message.tool_outputs = vec![block; 100_000];
    fit(&mut message);
    assert!(size(&message) <= MAX_MESSAGE);
    let left_out = 100_000 - message.tool_outputs.len();
    assert!(left_out > 0 && message.altered);
    assert_eq!(
        message.text,
        format!("as metered… ({left_out} blocks of tools are left out)")
    );
}

#[tokio::test]
async fn what_the_agent_had_to_alter_or_nobody_can_read_is_told_as_such() {
    let mut f = fixture();
    let result = json!({"type":"tool_result","tool_use_id":"t1","content":"\u{fffd}"});
    let mut altered = json!({"type":"user","message":{"content":[result]}});
    altered[ALTERED] = json!(true);
    let mut held = assistant("x", text("a"));
    held[ALTERED] = json!(true);
    let raw = json!({"type":"raw","bytes":70_000,"text":"Segmentation fault"});
    f.say(&[altered, held, assistant("x", text("b")), raw])
        .await;
    let told: Vec<_> = f.messages().iter().map(|m| (m.kind, m.altered)).collect();
    assert_eq!(
        told,
        [
            (MessageKind::ToolResult, true),
            (MessageKind::Assistant, true)
        ]
    );
    let journal = std::fs::read_to_string(f.dir.path().join("1.journal")).unwrap();
    assert!(
        journal.contains("70000 bytes that begin with: Segmentation fault"),
        "{journal}"
    );
}
