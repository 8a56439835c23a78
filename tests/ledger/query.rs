//! What people ask of the ledger, and what they are told.

use std::collections::HashSet;

use runledger::api::run::Phase;
use runledger::ledger::query::{
    Action, Completion, Deed, Direction, Order, RunFilter, SessionState, Subject, Word,
};
use runledger::report::{FileLine, Kind, Report};
use runledger::wire::{EventBody, MessageKind, Role};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::database::{Database, migrated};
use crate::random::Random;
use crate::shapes::{
    TARGET, at, batch, ended, events, message, record, run_id, running, session_id, usage,
};

const ORDERS: [(Order, &str); 8] = [
    (Order::CreatedAt, "created_at"),
    (Order::CompletedAt, "completed_at"),
    (Order::DurationSeconds, "duration_seconds"),
    (Order::WorkflowName, "workflow_name"),
    (Order::Status, "status"),
    (Order::CostEstimate, "cost_estimate"),
    (Order::TotalTokens, "total_tokens"),
    (Order::GitBranch, "git_branch"),
];

/// So many runs of two namespaces, three users and three sessions, with ties and with values missing, as
/// chance has them.
async fn runs_by_chance(db: &Database, count: usize, seed: usize) {
    let sql = format!(
        "INSERT INTO users (id) SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid FROM generate_series(1, 3) n;
         INSERT INTO sessions (id) SELECT id FROM users;
         INSERT INTO workflow_runs (id, run_id, namespace, name, workflow_name, task_input, status, created_at,
             completed_at, duration_seconds, cost_estimate, input_tokens, total_tokens, git_branch, user_id, session_id)
         SELECT md5(n || 'id{seed}')::uuid, 'r' || n, 'n' || c % 2, 'r' || n, 'w' || c % 3, 'task', s,
                timestamptz '2026-01-01' + make_interval(secs => c % 40),
                CASE WHEN s IN ('completed', 'failed', 'killed')
                     THEN timestamptz '2026-02-01' + make_interval(secs => c % 7) END,
                nullif(c % 5, 0), nullif(c % 6, 0) / 3.0, c % 4, c % 4, nullif('b' || c % 4, 'b0'),
                CASE WHEN d % 4 > 0 THEN ('00000000-0000-0000-0000-00000000000' || d % 4)::uuid END,
                CASE WHEN d / 4 % 4 > 0 THEN ('00000000-0000-0000-0000-00000000000' || d / 4 % 4)::uuid END
         FROM generate_series(1, {count}) AS n,
              LATERAL (SELECT ('x' || left(md5(n || 'c{seed}'), 7))::bit(28)::int AS c) h,
              LATERAL (SELECT ('x' || left(md5(n || 'd{seed}'), 7))::bit(28)::int AS d) i,
              LATERAL (SELECT (ARRAY['completed', 'running', 'pending', 'failed', 'killed'])[1 + d / 16 % 5] AS s) t"
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&db.pool)
        .await
        .unwrap();
    let labels = "INSERT INTO run_labels SELECT id, 'team', git_branch, namespace, created_at
                  FROM workflow_runs WHERE git_branch IS NOT NULL";
    sqlx::raw_sql(labels).execute(&db.pool).await.unwrap();
}

/// All pages of a list, one after the other.
async fn paged(
    db: &Database,
    filter: &RunFilter,
    order: Order,
    direction: Direction,
    size: u32,
) -> Vec<Uuid> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = db
            .ledger
            .runs(filter, order, direction, after.as_ref(), size)
            .await
            .unwrap();
        all.extend(page.runs.iter().map(|run| run.id));
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

#[tokio::test]
async fn pages_in_every_order_show_each_run_once_and_in_its_place() {
    let mut random = Random::seeded("pages_in_every_order");
    let db = migrated().await;
    runs_by_chance(&db, 150, random.below(1_000_000)).await;
    for (order, column) in ORDERS {
        for (direction, word) in [
            (Direction::Descending, "DESC"),
            (Direction::Ascending, "ASC"),
        ] {
            // Those without a value are last, and among themselves by id.
            let sql = format!(
                "SELECT id FROM workflow_runs ORDER BY {column} {word} NULLS LAST,
                 CASE WHEN {column} IS NOT NULL THEN id END {word}, id DESC"
            );
            let expected: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_all(&db.pool)
                .await
                .unwrap();
            let size = 1 + random.below(60) as u32;
            let got = paged(&db, &RunFilter::default(), order, direction, size).await;
            assert_eq!(got, expected, "{column} {word}, {size} a page");
        }
    }
}

/// A run as a plain question sees it.
#[derive(sqlx::FromRow)]
struct Plain {
    id: Uuid,
    namespace: String,
    status: String,
    workflow_name: String,
    user_id: Option<Uuid>,
    session_id: Option<Uuid>,
    git_branch: Option<String>,
    second: i32,
}

#[tokio::test]
async fn every_filter_lets_through_what_a_plain_question_does() {
    type Case = (&'static str, fn(&mut RunFilter), fn(&Plain) -> bool);
    let cases: [Case; 14] = [
        ("all", |_| (), |_| true),
        (
            "namespace",
            |f| f.namespace = Some("n1".to_owned()),
            |r| r.namespace == "n1",
        ),
        (
            "pending",
            |f| f.phase = Some(Phase::Pending),
            |r| r.status == "pending",
        ),
        (
            "running",
            |f| f.phase = Some(Phase::Running),
            |r| r.status == "running",
        ),
        (
            "completed",
            |f| f.phase = Some(Phase::Completed),
            |r| r.status == "completed",
        ),
        (
            "failed",
            |f| f.phase = Some(Phase::Failed),
            |r| r.status == "failed",
        ),
        (
            "killed",
            |f| f.phase = Some(Phase::Killed),
            |r| r.status == "killed",
        ),
        (
            "workflow",
            |f| f.workflow_name = Some("w2".to_owned()),
            |r| r.workflow_name == "w2",
        ),
        (
            "branch",
            |f| f.git_branch = Some("b1".to_owned()),
            |r| r.git_branch.as_deref() == Some("b1"),
        ),
        (
            "user",
            |f| f.user_id = Some(Uuid::from_u128(1)),
            |r| r.user_id == Some(Uuid::from_u128(1)),
        ),
        (
            "session",
            |f| f.session_id = Some(Uuid::from_u128(2)),
            |r| r.session_id == Some(Uuid::from_u128(2)),
        ),
        // Both ends are in.
        (
            "time",
            |f| {
                f.created_after = Some("2026-01-01T00:00:10Z".parse().unwrap());
                f.created_before = Some("2026-01-01T00:00:20Z".parse().unwrap());
            },
            |r| (10..=20).contains(&r.second),
        ),
        (
            "label",
            |f| f.label = Some(("team".to_owned(), "b2".to_owned())),
            |r| r.git_branch.as_deref() == Some("b2"),
        ),
        (
            "label of a namespace, by status",
            |f| {
                f.label = Some(("team".to_owned(), "b2".to_owned()));
                f.namespace = Some("n0".to_owned());
                f.phase = Some(Phase::Failed);
            },
            |r| {
                r.git_branch.as_deref() == Some("b2") && r.namespace == "n0" && r.status == "failed"
            },
        ),
    ];
    let mut random = Random::seeded("every_filter");
    let db = migrated().await;
    runs_by_chance(&db, 300, random.below(1_000_000)).await;
    let rows: Vec<Plain> = sqlx::query_as(
        "SELECT id, namespace, status, workflow_name, user_id, session_id, git_branch,
                extract(second FROM created_at)::int AS second FROM workflow_runs",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    for (name, of, plain) in cases {
        let mut filter = RunFilter::default();
        of(&mut filter);
        let expected: HashSet<Uuid> = rows.iter().filter(|r| plain(r)).map(|r| r.id).collect();
        assert!(!expected.is_empty(), "{name}: nothing to be found");
        for (order, column) in ORDERS {
            let got = paged(&db, &filter, order, Direction::Descending, 23).await;
            assert_eq!(got.len(), expected.len(), "{name} by {column}");
            assert_eq!(
                got.into_iter().collect::<HashSet<_>>(),
                expected,
                "{name} by {column}"
            );
        }
    }
}

#[tokio::test]
async fn the_estimate_is_about_right_without_a_count() {
    let db = migrated().await;
    runs_by_chance(&db, 3000, 1).await;
    sqlx::query("ANALYZE").execute(&db.pool).await.unwrap();
    let all = db
        .ledger
        .runs_estimate(&RunFilter::default())
        .await
        .unwrap();
    assert!((2500..=3500).contains(&all), "{all}");
    let some = RunFilter {
        phase: Some(Phase::Completed),
        ..RunFilter::default()
    };
    let some = db.ledger.runs_estimate(&some).await.unwrap();
    assert!((400..=900).contains(&some), "{some}");
}

#[tokio::test]
async fn a_status_answer_tells_turns_tokens_tools_files_and_how_it_ended() {
    let db = migrated().await;
    assert_eq!(db.ledger.run_status(run_id()).await.unwrap(), None);
    db.ledger.mirror(&running(1)).await.unwrap();
    let live = db.ledger.run_status(run_id()).await.unwrap().unwrap();
    assert_eq!((live.completion, live.cost), (None, None));
    assert_eq!(live.current_phase.as_deref(), Some("AgentRunning"));
    let mut all = events(1, 2);
    all[7].body = calls("x", &["Write", "Read", "Bash"]);
    let mut report = Report::default();
    for (path, kind) in [
        ("old.rs", Kind::Modified),
        ("new.rs", Kind::Added),
        ("gone.rs", Kind::Deleted),
        ("moved.rs", Kind::Renamed),
    ] {
        report.committed.push(FileLine {
            name: path.as_bytes().into(),
            kind,
            ..FileLine::default()
        });
    }
    if let Some(EventBody::Sealed(sealed)) = all.last_mut().map(|event| &mut event.body) {
        sealed.git.as_mut().unwrap().stats = Some(Box::new(report));
    }
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    let status = db.ledger.run_status(run_id()).await.unwrap().unwrap();
    assert_eq!(status.tools_used, ["Bash", "Write", "Read"]);
    assert_eq!(status.files_created, ["new.rs"]);
    assert_eq!(status.files_changed, ["old.rs", "moved.rs"]);
    assert_eq!(
        (status.turns, status.max_turns, status.commits),
        (2, Some(5), 2)
    );
    assert_eq!(
        (
            status.total_tokens,
            status.input_tokens,
            status.output_tokens,
            status.cache_created,
            status.cache_read
        ),
        (240, 20, 6, 14, 200)
    );
    assert_eq!(status.cache_efficiency().unwrap().to_string(), "0.8547");
    assert_eq!(status.cost.unwrap().to_string(), "0.032560");
    assert_eq!(status.completion, Some(Completion::CompletedSuccessfully));
    assert_eq!(status.api_milliseconds, 10);
    let diff = db.ledger.run_diff(run_id()).await.unwrap().unwrap();
    assert_eq!(
        (diff.files_changed, diff.added_lines, diff.removed_lines),
        (3, 40, 2)
    );
    assert_eq!(diff.pushed_branch.as_deref(), Some("work"));
    let run = db.ledger.run(run_id()).await.unwrap().unwrap();
    assert_eq!(
        (run.task_input.as_str(), run.result.as_deref()),
        ("Say hello.", Some("Done in attempt 1."))
    );
}

/// A message that calls these tools.
fn calls(key: &str, tools: &[&str]) -> EventBody {
    let mut said = message(key, Role::Assistant, MessageKind::Assistant, "Now I work.");
    let call =
        |name| serde_json::json!({"type": "tool_use", "id": "t2", "name": name, "input": {}});
    said.tool_calls = tools.iter().map(call).collect();
    EventBody::Message(said)
}

#[tokio::test]
async fn tools_are_told_in_the_order_of_first_use_whatever_the_clock_did_and_a_call_said_again_is_one()
 {
    let db = migrated().await;
    // The first word of them calls Bash.
    let mut all = events(1, 4);
    all[4].body = calls("a", &["Write", "Alpha", "Bash", "Write"]);
    all[7].body = calls("b", &["Zed"]);
    all[10].body = calls("c", &["Agent", "Bash"]);
    // Said again, in a later event of its own.
    all[13].body = calls("c", &["Agent", "Bash"]);
    // The clock goes back by a day before the third, and on by two before the last of them.
    all[10].at = at(-86_400);
    all[13].at = at(86_400);
    for part in [&all[13..], &all[5..12], &all[..9], &all[..]] {
        db.ledger
            .store(TARGET, &batch(1, part), at(30))
            .await
            .unwrap();
    }
    let status = db.ledger.run_status(run_id()).await.unwrap().unwrap();
    assert_eq!(
        status.tools_used,
        ["Bash", "Write", "Alpha", "Zed", "Agent"]
    );
    let counts = "SELECT string_agg(tool || calls, ' ' ORDER BY tool) FROM run_tools";
    assert_eq!(
        db.one(counts).await.unwrap(),
        "Agent1 Alpha1 Bash3 Write2 Zed1"
    );
    let mut second = events(2, 1);
    second[4].body = calls("d", &["Bash", "Early"]);
    second[4].at = at(-172_800);
    db.ledger
        .store(TARGET, &batch(2, &second), at(30))
        .await
        .unwrap();
    let status = db.ledger.run_status(run_id()).await.unwrap().unwrap();
    assert_eq!(
        status.tools_used,
        ["Bash", "Write", "Alpha", "Zed", "Agent", "Early"],
        "the first attempt comes first"
    );
}

#[tokio::test]
async fn max_turns_and_errors_are_no_success() {
    for (phase, reason, completion) in [
        (
            Phase::Failed,
            "MaxTurnsReached",
            Completion::MaxTurnsReached,
        ),
        (Phase::Failed, "ModelError", Completion::Failed),
        (Phase::Killed, "Killed", Completion::Failed),
    ] {
        let db = migrated().await;
        let mut end = ended(phase, 1, usage(1));
        end.reason = Some(reason.to_owned());
        db.ledger.mirror(&end).await.unwrap();
        let status = db.ledger.run_status(run_id()).await.unwrap().unwrap();
        assert_eq!(status.completion, Some(completion), "{reason}");
    }
}

fn word(id: u128, text: &str) -> Word {
    Word {
        id: Uuid::from_u128(id),
        namespace: "ns".to_owned(),
        session_id: session_id(),
        run_id: Some(run_id()),
        actor: "ann@example".to_owned(),
        user_id: None,
        text: text.to_owned(),
    }
}

#[tokio::test]
async fn a_humans_word_is_in_the_conversation_and_the_audit_and_never_touches_the_run() {
    let db = migrated().await;
    db.ledger.mirror(&running(1)).await.unwrap();
    let all = events(1, 2);
    db.ledger
        .store(TARGET, &batch(1, &all[..5]), at(30))
        .await
        .unwrap();
    // Not even by a write that changes nothing: the row's version and its time stay.
    let row = "SELECT (r.xmin, r.ctid, r.*) FROM workflow_runs r";
    let before = db.one(row).await;
    db.ledger
        .say(&word(1, "Also say goodbye.\0"))
        .await
        .unwrap();
    db.ledger
        .say(&word(1, "Also say goodbye.\0"))
        .await
        .unwrap();
    assert_eq!(db.one(row).await, before);
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    let said = db
        .ledger
        .messages_after(session_id(), 2, 100)
        .await
        .unwrap();
    let told: Vec<_> = said
        .iter()
        .map(|m| {
            (
                m.position.unwrap(),
                m.kind.clone().unwrap(),
                m.text.clone().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (
                3,
                "intervention".to_owned(),
                "Also say goodbye.\u{fffd}".to_owned()
            ),
            (4, "assistant".to_owned(), "Hello.".to_owned()),
        ]
    );
    let audit = db
        .ledger
        .audit_of(Subject::Session(session_id()), None, 10)
        .await
        .unwrap();
    assert_eq!(audit.len(), 1);
    assert_eq!(
        (
            audit[0].actor.as_str(),
            audit[0].action.as_str(),
            audit[0].allowed
        ),
        ("ann@example", "write", true)
    );
    assert_eq!(
        db.one("SELECT message_count FROM sessions").await.unwrap(),
        "4"
    );
    for (wrong, says) in [
        (
            Word {
                namespace: "other".to_owned(),
                ..word(2, "hi")
            },
            "the namespace has no such session",
        ),
        (word(3, " "), "a message has 1 to 262144 bytes"),
        (
            word(4, &"x".repeat(262_145)),
            "a message has 1 to 262144 bytes",
        ),
    ] {
        assert_eq!(db.ledger.say(&wrong).await.unwrap_err().to_string(), says);
    }
}

#[tokio::test]
async fn a_conversation_goes_across_runs_and_pages_show_each_message_once() {
    let db = migrated().await;
    db.ledger
        .store(TARGET, &batch(1, &events(1, 6)), at(30))
        .await
        .unwrap();
    db.ledger
        .store(TARGET, &batch(2, &events(2, 6)), at(30))
        .await
        .unwrap();
    let mut second = record();
    second.run_id = Uuid::from_u128(8);
    db.ledger.mirror(&second).await.unwrap();
    db.ledger.say(&word(1, "And now?")).await.unwrap();
    // All at the same moment: what came first in its attempt is still first.
    sqlx::query("UPDATE messages SET created_at = '2026-01-01' WHERE created_at > now() - interval '1 year'")
        .execute(&db.pool)
        .await
        .unwrap();
    let mut before = None;
    let mut all = Vec::new();
    loop {
        let page = db
            .ledger
            .conversation(session_id(), before, 4)
            .await
            .unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.key());
        all.extend(
            page.iter()
                .map(|m| (m.created_at, m.sequence.unwrap_or(0), m.id)),
        );
    }
    let mut sorted = all.clone();
    sorted.sort_by(|a, b| b.cmp(a));
    assert_eq!(all, sorted);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 14);
}

#[tokio::test]
async fn a_huge_message_is_shown_in_part_and_says_so() {
    let db = migrated().await;
    let mut all = events(1, 1);
    let mut huge = message(
        "x",
        Role::Assistant,
        MessageKind::ToolResult,
        &"ä".repeat(5_000_000),
    );
    huge.tool_outputs = vec![serde_json::json!({"content": "y".repeat(1_000_000)})];
    all[2].body = EventBody::Message(huge);
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    let said = db
        .ledger
        .conversation(session_id(), None, 100)
        .await
        .unwrap();
    let shown = said.iter().find(|m| m.cut).unwrap();
    assert_eq!(shown.text.as_ref().unwrap().chars().count(), 65_536);
    assert_eq!(shown.tool_outputs, None);
    assert_eq!(
        db.one("SELECT max(length(text_content)) FROM messages")
            .await
            .unwrap(),
        "5000000"
    );
}

#[tokio::test]
async fn sessions_say_how_they_stand() {
    let db = migrated().await;
    let state = async || db.ledger.sessions("ns", None, 10).await.unwrap()[0].state;
    db.ledger.mirror(&record()).await.unwrap();
    assert_eq!(state().await, SessionState::Working);
    let mut stuck = record();
    stuck.reason = Some("MissingSecret".to_owned());
    db.ledger.mirror(&stuck).await.unwrap();
    assert_eq!(state().await, SessionState::NeedsHelp);
    assert_eq!(
        db.ledger.waiting_for_a_person("ns", 10).await.unwrap(),
        [(run_id(), "MissingSecret".to_owned())]
    );
    db.ledger
        .store(TARGET, &batch(1, &events(1, 1)), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(1)))
        .await
        .unwrap();
    assert_eq!(state().await, SessionState::YourTurn);
    assert_eq!(db.ledger.waiting_for_a_person("ns", 10).await.unwrap(), []);
    db.ledger.say(&word(1, "And now?")).await.unwrap();
    let session = &db.ledger.sessions("ns", None, 10).await.unwrap()[0];
    assert_eq!(session.state, SessionState::Unanswered);
    assert_eq!(
        (session.last_role.as_deref(), session.last_text.as_deref()),
        (Some("user"), Some("And now?"))
    );
    assert_eq!((session.message_count, session.last_position), (3, 3));
    assert_eq!(
        db.ledger
            .sessions("ns", Some(session.key()), 10)
            .await
            .unwrap(),
        []
    );
    assert_eq!(db.ledger.sessions("other", None, 10).await.unwrap(), []);
    let (cost, all) = db.ledger.session_cost(session_id()).await.unwrap();
    assert_eq!(
        (cost.unwrap().to_string().as_str(), all),
        ("0.016280", true)
    );
}

#[tokio::test]
async fn what_is_too_long_for_the_audit_is_cut_and_says_so() {
    let db = migrated().await;
    let deed = Deed {
        actor: "ann".to_owned(),
        action: Action::Kill,
        allowed: false,
        namespace: "ns".to_owned(),
        subject: Subject::Run(run_id()),
        detail: Some("not ".repeat(1000)),
    };
    db.ledger.audit(&deed).await.unwrap();
    let told = db.ledger.audit_of_namespace("ns", None, 10).await.unwrap();
    let detail = told[0].detail.as_deref().unwrap();
    assert_eq!(detail.chars().count(), 2000);
    assert!(detail.ends_with("… (cut; 4000 characters)"), "{detail}");
}

#[tokio::test]
async fn every_attempt_at_a_kill_is_in_the_audit_let_or_not() {
    let db = migrated().await;
    for (actor, allowed) in [("mallory", false), ("ann", true)] {
        let deed = Deed {
            actor: actor.to_owned(),
            action: Action::Kill,
            allowed,
            namespace: "ns".to_owned(),
            subject: Subject::Run(run_id()),
            detail: (!allowed).then(|| "not the owner".to_owned()),
        };
        db.ledger.audit(&deed).await.unwrap();
    }
    let all = db.ledger.audit_of_namespace("ns", None, 10).await.unwrap();
    let told: Vec<_> = all.iter().map(|e| (e.actor.as_str(), e.allowed)).collect();
    assert_eq!(told, [("ann", true), ("mallory", false)]);
    let earlier = db
        .ledger
        .audit_of(Subject::Run(run_id()), Some(all[0].id), 10)
        .await
        .unwrap();
    assert_eq!(earlier, all[1..]);
}
