//! A run, its records and its events, as controller and supervisor would make them.

use jiff::{SignedDuration, Timestamp};
use runledger::api::run::Phase;
use runledger::ids;
use runledger::ledger::Target;
use runledger::ledger::records::RunRecord;
use runledger::wire::patch::{Patch, PatchText};
use runledger::wire::{
    Batch, Changes, Event, EventBody, Message, MessageKind, Outcome, Role, Source, Termination,
    Tokens, Usage,
};
use serde_json::json;
use uuid::Uuid;

pub(crate) const TARGET: Target<'static> = Target {
    namespace: "ns",
    name: "demo",
};

pub(crate) fn run_id() -> Uuid {
    Uuid::from_u128(7)
}

pub(crate) fn session_id() -> Uuid {
    ids::session("ns", "talk")
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

/// The run as it is just after it was accepted.
pub(crate) fn record() -> RunRecord {
    RunRecord {
        run_id: run_id(),
        namespace: "ns".to_owned(),
        name: "demo".to_owned(),
        workflow_name: "builder".to_owned(),
        task: Some("Say hello.".to_owned()),
        session_id: session_id(),
        session_name: "talk".to_owned(),
        repository: Some("https://git.example/demo.git".to_owned()),
        branch: None,
        phase: Phase::Pending,
        reason: Some("Scheduling".to_owned()),
        message: None,
        attempt: 0,
        created_at: at(0),
        started_at: None,
        completed_at: None,
        workspace_id: Some(Uuid::from_u128(99)),
        workspace_persistent: true,
        workspace_path: Some("pvc://ns/workspace-talk/work".to_owned()),
        labels: [("team".to_owned(), "red".to_owned())].into(),
        agent_image: Some("registry.example/agent:1".to_owned()),
        settings: json!({"maxTurns": 5}).as_object().unwrap().clone(),
        model: None,
        usage: None,
        earlier: vec![],
        changes: None,
        transcript_missing_from: None,
        kill: None,
    }
}

pub(crate) fn running(attempt: u32) -> RunRecord {
    RunRecord {
        phase: Phase::Running,
        reason: Some("AgentRunning".to_owned()),
        attempt,
        started_at: Some(at(10)),
        ..record()
    }
}

/// The run's end, with what its last attempt's termination message said.
pub(crate) fn ended(phase: Phase, attempt: u32, usage: Usage) -> RunRecord {
    RunRecord {
        phase,
        reason: Some(format!("{phase:?}")),
        message: Some("How it ended.".to_owned()),
        completed_at: Some(at(75)),
        usage: Some(usage),
        changes: Some(changes()),
        model: Some("claude-x".to_owned()),
        branch: Some("main".to_owned()),
        ..running(attempt)
    }
}

pub(crate) fn changes() -> Changes {
    Changes {
        repository: "https://git.example/demo.git".to_owned(),
        branch: "main".to_owned(),
        initial_commit: "a".repeat(40),
        final_commit: "b".repeat(40),
        commits: 2,
        files: 3,
        added: 40,
        removed: 2,
        pushed: Some("work".to_owned()),
        undelivered: None,
        stats: None,
    }
}

/// What an attempt changed.
pub(crate) fn patch(attempt: u32) -> Patch {
    let text = |text: &str| PatchText {
        text: format!("{text} in attempt {attempt}\n").into_bytes(),
        files: 1,
        size: Some(20),
        ..PatchText::default()
    };
    Patch {
        initial_commit: Some("a".repeat(40)),
        final_commit: Some("b".repeat(40)),
        committed: text("committed"),
        uncommitted: text("left"),
    }
}

/// What an attempt has used after so many requests.
pub(crate) fn usage(requests: u32) -> Usage {
    let n = u64::from(requests);
    Usage {
        tokens: Tokens {
            input: 10 * n,
            output: 3 * n,
            cache_read: 100 * n,
            cache_creation: 7 * n,
        },
        cost_micro_usd: Some(16_280 * n),
        turns: requests,
        requests,
        estimated_requests: 0,
    }
}

/// All events of an attempt of so many requests: start, task, requests with their words, result, seal.
pub(crate) fn events(attempt: u32, requests: u32) -> Vec<Event> {
    let mut bodies = vec![
        EventBody::AttemptStarted {
            repository: Some("https://git.example/demo.git".to_owned()),
            branch: Some("main".to_owned()),
            initial_commit: Some("a".repeat(40)),
            notes: vec!["Submodules are left uninitialised: vendor/lib.".to_owned()],
        },
        EventBody::Message(message(
            "task",
            Role::User,
            MessageKind::WorkflowStart,
            "Say hello.",
        )),
    ];
    for n in 1..=requests {
        bodies.push(EventBody::RequestStarted {
            request: u64::from(n),
            bytes: 1000,
        });
        bodies.push(EventBody::RequestEnded {
            request: u64::from(n),
            status: Some(200),
            model: Some("claude-x".to_owned()),
            message_id: Some(format!("msg_{attempt}_{n}")),
            tokens: usage(1).tokens,
            estimated: false,
            milliseconds: 5,
            usage: usage(n),
        });
        let key = format!("msg_{attempt}_{n}");
        bodies.push(EventBody::Message(message(
            &key,
            Role::Assistant,
            MessageKind::Assistant,
            "Hello.",
        )));
    }
    bodies.push(EventBody::AgentStarted {
        version: "2.1.330".to_owned(),
    });
    bodies.push(EventBody::AgentResult {
        subtype: "success".to_owned(),
        is_error: false,
        text: format!("Done in attempt {attempt}."),
        session_cost_micro_usd: Some(16_280 * u64::from(requests)),
        usage: usage(requests),
    });
    bodies.push(EventBody::Patch(Box::new(patch(attempt))));
    bodies.push(EventBody::Sealed(Termination {
        outcome: Outcome::Completed,
        reason: "Completed".to_owned(),
        message: "Done.".to_owned(),
        usage: usage(requests),
        earlier: vec![],
        model: Some("claude-x".to_owned()),
        git: Some(changes()),
        sequence: bodies.len() as u64 + 1,
        acknowledged: 0,
    }));
    bodies
        .into_iter()
        .zip(1..)
        .map(|(body, sequence)| Event {
            sequence,
            at: at(1000 * i64::from(attempt) + sequence as i64),
            body,
        })
        .collect()
}

pub(crate) fn message(key: &str, role: Role, kind: MessageKind, text: &str) -> Message {
    Message {
        id: ids::message(run_id(), key),
        role,
        kind,
        text: text.to_owned(),
        tool_calls: vec![
            json!({"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}),
        ],
        tool_outputs: vec![],
        model: Some("claude-x".to_owned()),
        tokens: Some(usage(1).tokens),
        source: Source::Meter,
        altered: false,
    }
}

pub(crate) fn batch(attempt: u32, events: &[Event]) -> Batch {
    Batch {
        run_id: run_id(),
        attempt,
        session_id: session_id(),
        session_name: "talk".to_owned(),
        events: events.to_vec(),
    }
}
