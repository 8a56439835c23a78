//! kill -9 at any moment, a server that is away, pods that are lost: nothing is lost or doubled.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runledger::ids;
use runledger::wire::{Event, EventBody, Message, MessageKind, Outcome, Source, Tokens};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Pod, World, claude, eventually, shell_cli, tokens_of};

/// Eight tool calls, with streams slow enough to be killed in.
fn many_turns() -> String {
    let mut turns = String::from("turns:\n");
    for n in 1..=8 {
        turns += &format!(
            "  - text: Step {n} of the work, said at some length so that it can be cut.\n    \
             chunk_delay_ms: 60\n    \
             tools: [{{name: Bash, input: {{command: 'echo result-{n}', description: Step}}}}]\n    \
             usage: {{input: {}, output: {}, cache_read: 7}}\n",
            100 + n,
            10 + n
        );
    }
    turns + "  - {text: All steps are done., usage: {input: 50, output: 9}}\n"
}

/// A small generator, so that a failure can be had again from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_killed_at_random_moments_loses_and_doubles_nothing() {
    let Some(claude) = claude() else { return };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    let seed = std::env::var("RUNLEDGER_SEED").map_or(now, |seed| seed.parse().unwrap());
    eprintln!("RUNLEDGER_SEED={seed}");
    let mut random = Random(seed);
    let world = World::new(&many_turns()).await;
    let mut pod = Pod::new(&world, "Do eight steps.", claude);
    pod.start().await;
    let mut kills = 0;
    while pod.is_agent_running() && kills < 6 {
        // The moment of a kill is the test's input, not something to wait for.
        tokio::time::sleep(Duration::from_millis(300 + random.below(1500))).await;
        pod.kill_supervisor();
        kills += 1;
        pod.start_supervisor();
    }
    let (code, termination) = pod.finish().await;
    eprintln!("{kills} kills, {:?}", termination.usage);
    assert_eq!(
        (code, termination.outcome),
        (Some(0), Outcome::Completed),
        "{}",
        termination.message
    );
    let events = world.server.events(pod.assignment.run_id, 1);
    check(&events);
    assert_eq!(termination.sequence, events.len() as u64);
    assert_eq!(termination.acknowledged, termination.sequence);
    check_against_the_model(&events, &world.sent().await);

    let messages = world.server.messages(pod.assignment.run_id, 1);
    let ids: HashSet<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(ids.len(), messages.len(), "no message is told twice");
    check_against_the_transcript(&pod, &messages);
    let last = messages.last().unwrap();
    assert_eq!(
        (last.text.as_str(), last.source),
        ("All steps are done.", Source::Meter)
    );
}

/// Everything that the CLI wrote into its own transcript is told, and nothing else. (A message that
/// was cut off in mid-stream stands there too: the CLI goes on after what it has of it.)
fn check_against_the_transcript(pod: &Pod, messages: &[Message]) {
    let run = pod.assignment.run_id;
    let transcript = pod.transcript();
    let blocks = transcript.iter().filter(|line| line["type"] == "user");
    let results: HashSet<_> = blocks
        .flat_map(|line| line["message"]["content"].as_array().into_iter().flatten())
        .filter_map(|block| Some(ids::message(run, block["tool_use_id"].as_str()?)))
        .collect();
    assert_eq!(ids_of(messages, MessageKind::ToolResult), results);
    let answers = transcript.iter().filter(|line| line["type"] == "assistant");
    let answers: HashSet<_> = answers
        .filter_map(|line| Some(ids::message(run, line["message"]["id"].as_str()?)))
        .collect();
    assert_eq!(ids_of(messages, MessageKind::Assistant), answers);
    assert!(
        results.len() >= 2,
        "most of the work was done between the kills"
    );
}

fn ids_of(messages: &[Message], kind: MessageKind) -> HashSet<Uuid> {
    let of_kind = messages.iter().filter(|message| message.kind == kind);
    of_kind.map(|message| message.id).collect()
}

/// What holds of every attempt that was sealed.
fn check(events: &[Event]) {
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=events.len() as u64).collect::<Vec<_>>());
    let mut open = HashSet::new();
    let mut sum = Tokens::default();
    let mut ended = 0;
    for event in events {
        match &event.body {
            EventBody::RequestStarted { request, .. } => {
                assert!(open.insert(*request), "started twice")
            }
            EventBody::RequestEnded {
                request,
                tokens,
                usage,
                ..
            } => {
                assert!(open.remove(request), "ended without a start, or twice");
                sum = sum + *tokens;
                ended += 1;
                assert_eq!((usage.tokens, usage.requests), (sum, ended));
            }
            EventBody::Sealed(termination) => assert_eq!(termination.usage.tokens, sum),
            _ => {}
        }
    }
    assert!(open.is_empty(), "a request has no end: {open:?}");
    assert!(matches!(events.last().unwrap().body, EventBody::Sealed(_)));
}

/// Every request that was not cut off counts exactly what the model says it sent.
fn check_against_the_model(events: &[Event], sent: &[Value]) {
    let sent: BTreeMap<_, _> = sent
        .iter()
        .filter_map(|record| Some((record["message_id"].as_str()?.to_owned(), record)))
        .collect();
    for event in events {
        let EventBody::RequestEnded {
            message_id: Some(id),
            tokens,
            estimated,
            ..
        } = &event.body
        else {
            continue;
        };
        let record = sent.get(id).expect("the model knows its messages");
        if !estimated {
            assert_eq!(*tokens, tokens_of(&record["usage"]), "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_attempt_is_told_by_the_next_one_which_goes_on_in_its_conversation() {
    let Some(claude) = claude() else { return };
    let world = World::new(&many_turns()).await;
    let mut pod = Pod::new(&world, "Do eight steps.", claude);
    pod.start().await;
    let run = pod.assignment.run_id;
    let told = |attempt| world.server.messages(run, attempt);
    eventually("two results of tools", async || {
        told(1)
            .iter()
            .filter(|m| m.kind == MessageKind::ToolResult)
            .count()
            == 2
    })
    .await;
    let mut pod = pod.next_attempt();
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(code, Some(0), "{}", termination.message);
    let lost = world.server.events(run, 1);
    let usage = lost.iter().rev().find_map(|event| match &event.body {
        EventBody::RequestEnded { usage, .. } => Some(*usage),
        _ => None,
    });
    let [earlier] = termination.earlier.try_into().unwrap();
    assert_eq!((earlier.attempt, Some(earlier.usage)), (1, usage));
    assert!(
        !lost
            .iter()
            .any(|event| matches!(event.body, EventBody::Sealed(_)))
    );
    check(&world.server.events(run, 2));
    let ids = |attempt| -> HashSet<_> { told(attempt).iter().map(|m| m.id).collect() };
    assert_eq!(
        ids(1).intersection(&ids(2)).count(),
        1,
        "the task, and nothing else, is told by both"
    );
    let resumed = pod.root.join("home/agent/.claude/projects");
    assert_eq!(std::fs::read_dir(resumed).unwrap().count(), 1);
}

const DONE: &str = r#"read task; echo '{"type":"result","subtype":"success","is_error":false,"num_turns":1,"total_cost_usd":0.5,"result":"ok"}'; cat > /dev/null"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_that_was_away_lacks_is_handed_in_by_the_next_run() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), DONE));
    pod.assign(|assignment| assignment.flush_timeout_seconds = 1);
    world.server.go_away(true);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.acknowledged), (Some(0), 0));
    let first = pod.assignment.run_id;
    assert!(world.server.events(first, 1).is_empty());

    world.server.go_away(false);
    let mut pod = pod.next_run();
    pod.start().await;
    let (_, termination) = pod.finish().await;
    assert_eq!(termination.acknowledged, termination.sequence);
    check(&world.server.events(first, 1));
    // Its token is the next run's: the server is told whose.
    assert_eq!(world.server.handed_in_by(first).as_deref(), Some("a-run"));
    assert_eq!(world.server.handed_in_by(pod.assignment.run_id), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_killed_after_its_seal_tells_the_agent_at_once_and_seals_no_second_time() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), DONE));
    pod.assign(|assignment| assignment.flush_timeout_seconds = 600);
    world.server.go_away(true);
    pod.start().await;
    let journal = pod
        .root
        .join(format!("state/runs/{}/1.journal", pod.assignment.run_id));
    eventually("the seal in the journal", async || {
        std::fs::read_to_string(&journal)
            .unwrap()
            .contains(r#""type":"sealed""#)
    })
    .await;
    assert!(pod.is_agent_running(), "the seal still waits for its flush");
    assert_eq!(pod.termination(), None);
    pod.kill_supervisor();
    pod.start_supervisor();
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(0), Outcome::Completed));
    assert_eq!(termination.usage.cost_micro_usd, Some(500_000));
    assert_eq!(
        std::fs::read_to_string(&journal)
            .unwrap()
            .matches(r#""type":"sealed""#)
            .count(),
        1
    );
}
