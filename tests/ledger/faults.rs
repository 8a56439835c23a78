//! Bad input and a database in trouble: a correct row, or a clear sentence.

use jiff::SignedDuration;
use runledger::api::run::Phase;
use runledger::ledger::query::Word;
use runledger::wire::{Event, EventBody, MessageKind, Role};
use serde_json::json;
use uuid::Uuid;

use crate::database::{Database, migrated};
use crate::shapes::{
    TARGET, at, batch, ended, events, message, record, run_id, running, session_id, usage,
};

/// Lets two writes of runs and sessions fail as one that lost against another does, from each restart of
/// `tries` on.
async fn with_conflicts(db: &Database) {
    sqlx::raw_sql(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             -- A sequence goes on though its transaction is undone.
             IF nextval('tries') <= 2 THEN
                 RAISE EXCEPTION 'lost against another' USING ERRCODE = TG_ARGV[0];
             END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER conflict AFTER INSERT OR UPDATE ON workflow_runs
             FOR EACH STATEMENT EXECUTE FUNCTION conflict('40001');
         CREATE TRIGGER conflict AFTER UPDATE ON sessions
             FOR EACH STATEMENT EXECUTE FUNCTION conflict('40P01');",
    )
    .execute(&db.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn what_loses_against_another_is_tried_again_and_written_once() {
    let (troubled, calm) = (migrated().await, migrated().await);
    with_conflicts(&troubled).await;
    let word = Word {
        id: Uuid::from_u128(1),
        namespace: "ns".to_owned(),
        session_id: session_id(),
        run_id: None,
        actor: "ann".to_owned(),
        user_id: None,
        text: "Go on.".to_owned(),
    };
    let troubles = async |db: &Database| {
        let again = "ALTER SEQUENCE IF EXISTS tries RESTART";
        sqlx::raw_sql(again).execute(&db.pool).await.unwrap();
    };
    for db in [&troubled, &calm] {
        troubles(db).await;
        db.ledger.mirror(&record()).await.unwrap();
        troubles(db).await;
        db.ledger
            .store(TARGET, &batch(1, &events(1, 2)), at(30))
            .await
            .unwrap();
        troubles(db).await;
        db.ledger.say(&word).await.unwrap();
        troubles(db).await;
        db.ledger
            .mirror(&ended(Phase::Completed, 1, usage(2)))
            .await
            .unwrap();
        sqlx::query("UPDATE messages SET created_at = '2026-01-01' WHERE id = $1")
            .bind(word.id)
            .execute(&db.pool)
            .await
            .unwrap();
    }
    let tries: i64 = sqlx::query_scalar("SELECT last_value FROM tries")
        .fetch_one(&troubled.pool)
        .await
        .unwrap();
    assert!(tries > 2, "{tries}");
    crate::database::assert_same(&troubled.everything().await, &calm.everything().await, "");
    assert_eq!(
        troubled.one("SELECT count(*) FROM audit").await.unwrap(),
        "1"
    );
}

#[tokio::test]
async fn connections_that_were_cut_are_not_noticed() {
    let db = migrated().await;
    let all = events(1, 3);
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    db.ledger.mirror(&record()).await.unwrap();
    for end in [5, 8, all.len()] {
        db.one(cut).await;
        db.ledger
            .store(TARGET, &batch(1, &all[..end]), at(30))
            .await
            .unwrap();
        db.one(cut).await;
        assert!(db.ledger.run(run_id()).await.unwrap().is_some());
        db.one(cut).await;
        db.ledger.mirror(&running(1)).await.unwrap();
    }
    assert_eq!(
        db.one("SELECT count(*) FROM run_events").await.unwrap(),
        all.len().to_string()
    );
}

#[tokio::test]
async fn a_clock_that_goes_backwards_makes_no_negative_time_and_loses_nothing() {
    let db = migrated().await;
    let mut all = events(1, 3);
    for (n, event) in all.iter_mut().enumerate() {
        event.at = at(1000) - SignedDuration::from_hours(24 * n as i64);
    }
    // The day of an attempt is that of its first batch, whatever the clocks say later.
    for (part, now) in [(&all[..4], at(86_400)), (&all[4..], at(-86_400 * 3))] {
        db.ledger.store(TARGET, &batch(1, part), now).await.unwrap();
    }
    let mut end = ended(Phase::Completed, 1, usage(3));
    end.completed_at = Some(at(-500));
    db.ledger.mirror(&end).await.unwrap();
    assert_eq!(
        db.one("SELECT (status, duration_seconds, completed_at < started_at) FROM workflow_runs")
            .await
            .unwrap(),
        "(completed,0,t)"
    );
    assert_eq!(
        db.one("SELECT (count(*), count(DISTINCT started_day)) FROM run_events")
            .await
            .unwrap(),
        format!("({},1)", all.len())
    );
    let said = db
        .ledger
        .messages_after(session_id(), 0, 100)
        .await
        .unwrap();
    assert!(said.is_sorted_by_key(|m| m.position));
    assert_eq!(said.len(), 4);
}

#[tokio::test]
async fn fifty_thousand_tool_calls_are_counted_one_by_one() {
    let db = migrated().await;
    let names = ["Read", "Bash", "Edit", "Grep"];
    let mut sequence = 0;
    for part in 0..20 {
        let said: Vec<Event> = (0..500)
            .map(|n| {
                sequence += 1;
                let key = format!("m{part}-{n}");
                let mut one = message(&key, Role::Assistant, MessageKind::Assistant, "");
                one.tool_calls = (0..5)
                    .map(|call| json!({"type": "tool_use", "name": names[(n + call) % 4], "input": {"n": n}}))
                    .collect();
                Event {
                    sequence,
                    at: at(sequence as i64),
                    body: EventBody::Message(one),
                }
            })
            .collect();
        let answer = db
            .ledger
            .store(TARGET, &batch(1, &said), at(30))
            .await
            .unwrap();
        assert_eq!(answer.acknowledged, sequence);
    }
    assert_eq!(
        db.one("SELECT (sum(calls), count(*)) FROM run_tools")
            .await
            .unwrap(),
        "(50000,4)"
    );
    let status = db.ledger.run_status(run_id()).await.unwrap().unwrap();
    assert_eq!(status.tools_used.len(), 4);
    assert_eq!(
        db.one("SELECT (message_count, last_position) FROM sessions")
            .await
            .unwrap(),
        "(10000,10000)"
    );
}

#[tokio::test]
async fn what_is_no_text_to_postgres_is_stored_altered_and_says_so() {
    let db = migrated().await;
    // What is not UTF-8 is no JSON either; nothing of it comes this far but its replacement.
    let bytes = [b"a\xff\xfeb\0c".as_slice(), &[0xed, 0xa0, 0x80]].concat();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut wrong = record();
    wrong.task = Some(text.clone());
    wrong.labels = [("k".to_owned(), "a\0b".to_owned())].into();
    wrong.settings.insert("a\0".to_owned(), json!("\0"));
    db.ledger.mirror(&wrong).await.unwrap();
    assert_eq!(
        db.one("SELECT (task_input, metadata, settings -> E'a\u{fffd}') FROM workflow_runs")
            .await
            .unwrap(),
        format!(
            "({},\"{{\"\"altered\"\": true}}\",\"\"\"\u{fffd}\"\"\")",
            text.replace('\0', "\u{fffd}")
        )
    );
    assert_eq!(
        db.one("SELECT value FROM run_labels").await.unwrap(),
        "a\u{fffd}b"
    );
}

#[tokio::test]
async fn a_message_of_ten_megabytes_is_stored_whole_and_once() {
    let db = migrated().await;
    let mut all = events(1, 1);
    let text = "Ünd noch ein Wort. ".repeat(10 * 1024 * 1024 / 20);
    let size = text.chars().count();
    for event in &mut all {
        if let EventBody::Message(message) = &mut event.body {
            message.text.clone_from(&text);
        }
    }
    for _ in 0..2 {
        db.ledger
            .store(TARGET, &batch(1, &all), at(30))
            .await
            .unwrap();
    }
    let stored = "SELECT string_agg(length(text_content)::text, ' ') FROM messages";
    assert_eq!(db.one(stored).await.unwrap(), format!("{size} {size}"));
}

#[tokio::test]
async fn names_that_the_cluster_allows_are_stored_whole_and_what_is_altered_says_so() {
    let db = migrated().await;
    let altered = "SELECT metadata ->> 'altered' FROM workflow_runs";
    let mut long = running(1);
    long.agent_image = Some("i".repeat(512));
    long.model = Some("m".repeat(256));
    db.ledger.mirror(&long).await.unwrap();
    let lengths = "SELECT (length(agent_image), length(ai_model)) FROM workflow_runs";
    assert_eq!(db.one(lengths).await.unwrap(), "(512,256)");
    assert_eq!(db.one(altered).await, None);
    type Change = fn(&mut runledger::ledger::records::RunRecord);
    let changes: [Change; 4] = [
        |r| r.agent_image = Some("i".repeat(1025)),
        |r| r.settings = json!({"model": "a\0b"}).as_object().unwrap().clone(),
        |r| r.session_name = "s".repeat(256),
        |r| {
            *r = ended(Phase::Completed, 1, usage(1));
            r.changes.as_mut().unwrap().branch = "a\0b".to_owned();
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let db = migrated().await;
        let mut record = running(1);
        change(&mut record);
        db.ledger.mirror(&record).await.unwrap();
        assert_eq!(db.one(altered).await.as_deref(), Some("true"), "{n}");
    }
}

#[tokio::test]
async fn a_message_that_its_supervisor_calls_altered_is_marked_as_such() {
    let db = migrated().await;
    let mut all = events(1, 2);
    let mut said = message("x", Role::User, MessageKind::ToolResult, "half");
    said.altered = true;
    all[4].body = EventBody::Message(said);
    let mut calls = message("y", Role::Assistant, MessageKind::Assistant, "");
    calls.tool_calls = vec![json!({"type": "tool_use", "name": "x".repeat(201)})];
    all[7].body = EventBody::Message(calls);
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    let marked = "SELECT string_agg(coalesce(raw_payload ->> 'altered', '-'), ' ' ORDER BY sequence) FROM messages";
    assert_eq!(db.one(marked).await.unwrap(), "- true true");
}

#[tokio::test]
async fn a_session_name_that_no_cluster_has_is_refused() {
    let db = migrated().await;
    for name in ["a\0b".to_owned(), "x".repeat(256)] {
        let mut named = batch(1, &events(1, 1));
        named.session_name = name;
        let error = db.ledger.store(TARGET, &named, at(30)).await.unwrap_err();
        assert_eq!(error.to_string(), "its session's name can't be true");
    }
}
