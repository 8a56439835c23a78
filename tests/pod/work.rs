//! Runs that do their task, with the real CLI.

use runledger::wire::{EventBody, MessageKind, Outcome, Role, Source, Tokens};

use crate::harness::{Pod, World, claude, tokens_of};

const TWO_TURNS: &str = r#"
turns:
  - text: I write a file.
    tools:
      - name: Bash
        input: {command: "echo hello > made.txt && cat made.txt", description: Write it}
    usage: {input: 120, output: 30, cache_creation: 2000}
  - text: It is written.
    errors:
      - {status: 529, tries: 1, retry_after: 1, message: Overloaded}
    usage: {input: 40, output: 20, cache_read: 2000}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_done_metered_told_and_sealed_before_the_agent_goes() {
    let Some(claude) = claude() else { return };
    let world = World::new(TWO_TURNS).await;
    let mut pod = Pod::new(&world, "Write a file.", claude);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(
        (code, termination.outcome),
        (Some(0), Outcome::Completed),
        "{}",
        termination.message
    );
    assert_eq!(
        std::fs::read_to_string(pod.root.join("workspace/made.txt")).unwrap(),
        "hello\n"
    );

    // Every token that the model says it sent, by kind; the refusal cost nothing.
    let sent = world.sent().await;
    let expected = sent.iter().fold(Tokens::default(), |sum, record| {
        sum + tokens_of(&record["usage"])
    });
    assert_eq!(termination.usage.tokens, expected);
    assert!(sent.iter().any(|record| record["status"] == 529));
    let metered = sent
        .iter()
        .filter(|record| record["path"] == "/v1/messages")
        .count();
    assert_eq!(termination.usage.requests as usize, metered);
    assert_eq!(termination.usage.estimated_requests, 0);
    assert_eq!(termination.usage.turns, 2);
    assert!(
        termination
            .usage
            .cost_micro_usd
            .is_some_and(|cost| cost > 0)
    );
    assert_eq!(termination.acknowledged, termination.sequence);

    let events = world.server.events(pod.assignment.run_id, 1);
    assert!(matches!(events[0].body, EventBody::AttemptStarted { .. }));
    assert!(matches!(events.last().unwrap().body, EventBody::Sealed(_)));
    assert_eq!(events.last().unwrap().sequence, termination.sequence);
    let messages = world.server.messages(pod.assignment.run_id, 1);
    let kinds: Vec<_> = messages
        .iter()
        .map(|m| (m.role, m.kind, m.source))
        .collect();
    assert_eq!(
        kinds,
        [
            (Role::User, MessageKind::WorkflowStart, Source::Supervisor),
            (Role::Assistant, MessageKind::Assistant, Source::Meter),
            (Role::User, MessageKind::ToolResult, Source::Agent),
            (Role::Assistant, MessageKind::Assistant, Source::Meter),
        ]
    );
    assert_eq!(messages[0].text, "Write a file.");
    assert_eq!(messages[1].text, "I write a file.");
    assert_eq!(messages[1].tokens.unwrap().output, 30);
    assert_eq!(messages[1].tool_calls[0]["name"], "Bash");
    assert!(
        messages[2].tool_outputs[0]["content"]
            .to_string()
            .contains("hello")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_of_a_session_takes_it_up_and_costs_only_what_it_adds() {
    let Some(claude) = claude() else { return };
    let world =
        World::new("{repeat: true, turns: [{text: Well., usage: {input: 1000, output: 100}}]}")
            .await;
    let mut pod = Pod::new(&world, "Say something.", claude);
    pod.start().await;
    let (_, first) = pod.finish().await;
    let mut pod = pod.next_run();
    pod.start().await;
    let (code, second) = pod.finish().await;
    assert_eq!(code, Some(0), "{}", second.message);
    let events = world.server.events(pod.assignment.run_id, 1);
    let session_cost = events.iter().find_map(|event| match &event.body {
        EventBody::AgentResult {
            session_cost_micro_usd,
            ..
        } => *session_cost_micro_usd,
        _ => None,
    });
    let costs = [
        first.usage.cost_micro_usd.unwrap(),
        second.usage.cost_micro_usd.unwrap(),
    ];
    assert_eq!(
        session_cost,
        Some(costs[0] + costs[1]),
        "the session's cost is the runs' sum"
    );
    let runs = pod.root.join("state/runs");
    assert_eq!(
        std::fs::read_dir(runs).unwrap().count(),
        1,
        "the first run's journal is handed in and gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pod_was_lost_before_a_word_was_said_begins_anew() {
    let Some(claude) = claude() else { return };
    let world = World::new("turns: [{text: Well., usage: {input: 10, output: 1}}]").await;
    let mut pod = Pod::new(&world, "Say something.", claude);
    // Where the CLI keeps what is said in that folder, and what it writes first.
    let slug = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let project: String = pod
        .root
        .join("workspace")
        .display()
        .to_string()
        .chars()
        .map(slug)
        .collect();
    let transcript = format!(
        "home/agent/.claude/projects/{project}/{}.jsonl",
        pod.assignment.session_id
    );
    pod.write(
        &transcript,
        "{\"type\":\"queue-operation\",\"operation\":\"enqueue\"}\n",
    );
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(code, Some(0), "{}", termination.message);
}
