//! Events are stored once each, whatever the network made of their batches.

use std::sync::Arc;

use runledger::api::run::Phase;
use runledger::ledger::Error;
use runledger::wire::{EventBody, MessageKind, Role};
use serde_json::json;

use crate::database::{assert_same, migrated};
use crate::random::Random;
use crate::shapes::{TARGET, at, batch, ended, events, message, record, run_id, usage};

#[tokio::test]
async fn a_batch_sent_twice_changes_nothing() {
    let db = migrated().await;
    let batch = batch(1, &events(1, 3));
    let first = db.ledger.store(TARGET, &batch, at(30)).await.unwrap();
    assert_eq!(first.acknowledged, batch.events.len() as u64);
    let before = db.everything().await;
    let second = db
        .ledger
        .store(TARGET, &batch, at(99_999_999))
        .await
        .unwrap();
    assert_eq!((second, db.everything().await), (first, before));
    assert_eq!(
        db.one("SELECT (message_count, metadata ->> 'run_id') FROM sessions")
            .await
            .unwrap(),
        format!("(4,{})", run_id())
    );
}

#[tokio::test]
async fn batches_torn_doubled_shuffled_and_sent_at_once_come_to_the_same_rows() {
    let mut random = Random::seeded("batches_torn");
    let mut first = None;
    for round in 0..5 {
        let db = Arc::new(migrated().await);
        let mut sends = vec![];
        for attempt in [1, 2] {
            let all = events(attempt, 12);
            let mut covered = 0;
            while covered < all.len() {
                let next = (covered + 1 + random.below(9)).min(all.len());
                // Reaching back over what was sent before, as after a lost answer.
                let from = covered - random.below(covered.min(4) + 1);
                sends.push(batch(attempt, &all[from..next]));
                covered = next;
            }
        }
        sends.extend(sends.clone());
        if round > 0 {
            random.shuffle(&mut sends);
        }
        let tasks: Vec<_> = sends
            .chunks(sends.len().div_ceil(4))
            .map(|chunk| {
                let (db, chunk) = (db.clone(), chunk.to_vec());
                tokio::spawn(async move {
                    for batch in chunk {
                        db.ledger.store(TARGET, &batch, at(30)).await.unwrap();
                    }
                })
            })
            .collect();
        db.ledger
            .mirror(&ended(Phase::Completed, 2, usage(12)))
            .await
            .unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        for attempt in [1, 2] {
            let answer = db
                .ledger
                .store(TARGET, &batch(attempt, &[]), at(30))
                .await
                .unwrap();
            assert_eq!(answer.acknowledged, events(attempt, 12).len() as u64);
        }
        let now = db.everything().await;
        assert_same(
            first.get_or_insert_with(|| now.clone()),
            &now,
            &format!("round {round}"),
        );
        assert_eq!(
            db.one("SELECT (turns, total_tokens, cost_estimate, result) FROM workflow_runs")
                .await
                .unwrap(),
            "(24,2880,0.390720,\"Done in attempt 2.\")"
        );
        assert_eq!(
            db.one("SELECT message_count FROM sessions").await.unwrap(),
            "25"
        );
    }
}

#[tokio::test]
async fn events_before_the_mirror_make_a_stub_that_the_mirror_completes() {
    let (stub, mirrored) = (migrated().await, migrated().await);
    let batch = batch(1, &events(1, 2)[2..]);
    stub.ledger.store(TARGET, &batch, at(30)).await.unwrap();
    assert_eq!(
        stub.one("SELECT (workflow_name, task_input, status) FROM workflow_runs")
            .await
            .unwrap(),
        "(unknown,\"(the task is not known yet)\",pending)"
    );
    stub.ledger.mirror(&record()).await.unwrap();
    mirrored.ledger.mirror(&record()).await.unwrap();
    mirrored.ledger.store(TARGET, &batch, at(30)).await.unwrap();
    assert_same(&stub.everything().await, &mirrored.everything().await, "");
    assert_eq!(
        stub.one("SELECT (workflow_name, task_input) FROM workflow_runs")
            .await
            .unwrap(),
        "(builder,\"Say hello.\")"
    );
}

#[tokio::test]
async fn a_task_that_only_the_supervisor_knows_comes_with_its_first_message() {
    let db = migrated().await;
    let mut without = record();
    without.task = None;
    db.ledger.mirror(&without).await.unwrap();
    db.ledger
        .store(TARGET, &batch(1, &events(1, 1)), at(30))
        .await
        .unwrap();
    db.ledger.mirror(&without).await.unwrap();
    assert_eq!(
        db.one("SELECT task_input FROM workflow_runs")
            .await
            .unwrap(),
        "Say hello."
    );
}

#[tokio::test]
async fn controller_and_server_write_the_same_figures_in_any_order() {
    let mut random = Random::seeded("controller_and_server");
    let mut first = None;
    for _ in 0..6 {
        let db = migrated().await;
        let all = events(1, 3);
        let mut steps = [0, 1, 2, 3];
        random.shuffle(&mut steps);
        for step in steps {
            match step {
                0 => db
                    .ledger
                    .mirror(&ended(Phase::Completed, 1, usage(3)))
                    .await
                    .unwrap(),
                1 => db.ledger.mirror(&record()).await.unwrap(),
                2 => drop(
                    db.ledger
                        .store(TARGET, &batch(1, &all[..5]), at(30))
                        .await
                        .unwrap(),
                ),
                _ => drop(
                    db.ledger
                        .store(TARGET, &batch(1, &all[5..]), at(30))
                        .await
                        .unwrap(),
                ),
            }
        }
        let now = db.everything().await;
        assert_same(
            first.get_or_insert_with(|| now.clone()),
            &now,
            &format!("{steps:?}"),
        );
    }
    assert!(first.unwrap().contains("\"total_tokens\": 360"));
}

#[tokio::test]
async fn a_gap_is_not_acknowledged_until_it_is_filled() {
    let db = migrated().await;
    let all = events(1, 3);
    let (from, to) = (4, all.len());
    let ahead = db
        .ledger
        .store(TARGET, &batch(1, &all[from..]), at(30))
        .await
        .unwrap();
    assert_eq!(ahead.acknowledged, 0);
    let begun = db
        .ledger
        .store(TARGET, &batch(1, &all[..2]), at(30))
        .await
        .unwrap();
    assert_eq!(begun.acknowledged, 2);
    let whole = db
        .ledger
        .store(TARGET, &batch(1, &all[2..from]), at(30))
        .await
        .unwrap();
    assert_eq!(whole.acknowledged, to as u64);
}

#[tokio::test]
async fn an_attempt_stays_in_the_partition_of_the_day_it_began() {
    let db = migrated().await;
    let all = events(1, 2);
    db.ledger
        .store(TARGET, &batch(1, &all[..3]), at(0))
        .await
        .unwrap();
    let next_day = at(86_400);
    db.ledger
        .store(TARGET, &batch(1, &all), next_day)
        .await
        .unwrap();
    db.ledger
        .store(TARGET, &batch(2, &events(2, 1)), next_day)
        .await
        .unwrap();
    let days = "SELECT string_agg(attempt || ' ' || day || ' ' || n, ', ' ORDER BY attempt)
                FROM (SELECT attempt, tableoid::regclass::text AS day, count(*) AS n FROM run_events GROUP BY 1, 2) s";
    let first = at(0).to_zoned(jiff::tz::TimeZone::UTC).date();
    let name = |day: jiff::civil::Date| day.strftime("run_events_%Y%m%d").to_string();
    assert_eq!(
        db.one(days).await.unwrap(),
        format!(
            "1 {} {}, 2 {} {}",
            name(first),
            all.len(),
            name(first.tomorrow().unwrap()),
            events(2, 1).len()
        )
    );
}

#[tokio::test]
async fn partitions_are_made_by_many_at_once_and_come_back_when_dropped() {
    let db = Arc::new(migrated().await);
    let tasks: Vec<_> = (1..=8u32)
        .map(|attempt| {
            let db = db.clone();
            tokio::spawn(async move {
                let day = at(i64::from(attempt % 3) * 86_400);
                db.ledger
                    .store(TARGET, &batch(attempt, &events(attempt, 1)), day)
                    .await
                    .unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'run_events'::regclass";
    assert_eq!(db.one(partitions).await.unwrap(), "3");
    let day = at(0).to_zoned(jiff::tz::TimeZone::UTC).date();
    let drop = format!("DROP TABLE {}", day.strftime("run_events_%Y%m%d"));
    sqlx::query(sqlx::AssertSqlSafe(drop))
        .execute(&db.pool)
        .await
        .unwrap();
    db.ledger
        .store(TARGET, &batch(3, &events(3, 1)), at(86_400))
        .await
        .unwrap();
    assert_eq!(db.one(partitions).await.unwrap(), "3");
}

#[tokio::test]
async fn nul_is_replaced_and_marked() {
    let db = migrated().await;
    let mut all = events(1, 1);
    let mut said = message("x", Role::Assistant, MessageKind::ToolResult, "a\0b");
    said.tool_outputs = vec![json!({"content": "\u{0}", "k\u{0}": 1})];
    all[2].body = EventBody::Message(said);
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    assert_eq!(
        db.one("SELECT (text_content, tool_outputs, raw_payload) FROM messages WHERE message_type = 'tool_result'")
            .await
            .unwrap(),
        "(a\u{fffd}b,\"[{\"\"k\u{fffd}\"\": 1, \"\"content\"\": \"\"\u{fffd}\"\"}]\",\
         \"{\"\"model\"\": \"\"claude-x\"\", \"\"source\"\": \"\"meter\"\", \"\"altered\"\": true, \"\"attempt\"\": 1}\")"
    );
    assert_eq!(
        db.one("SELECT string_agg(sequence::text, ',') FROM run_events WHERE altered")
            .await
            .unwrap(),
        "3"
    );
}

#[tokio::test]
async fn a_number_that_cannot_be_true_refuses_the_whole_batch() {
    let db = migrated().await;
    let mut all = events(1, 1);
    if let EventBody::RequestEnded { usage, .. } = &mut all[3].body {
        usage.tokens.input = u64::MAX;
    }
    let error = db
        .ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Refused(why) if why == "event 4: input tokens can't be true"),
        "{error}"
    );
    assert_eq!(
        db.one("SELECT count(*) FROM workflow_runs").await.unwrap(),
        "0"
    );
}

#[tokio::test]
async fn a_batch_for_another_session_than_the_runs_is_refused() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    let mut other = batch(1, &events(1, 1));
    other.session_name = "another".to_owned();
    other.session_id = runledger::ids::session("ns", "another");
    let error = db.ledger.store(TARGET, &other, at(30)).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(db.one("SELECT count(*) FROM messages").await.unwrap(), "0");
}

#[tokio::test]
async fn the_row_says_from_where_on_the_transcript_is_missing_until_it_is_handed_in() {
    let db = migrated().await;
    let all = events(1, 3);
    db.ledger
        .store(TARGET, &batch(1, &all[..4]), at(30))
        .await
        .unwrap();
    let mut end = ended(Phase::Completed, 1, usage(3));
    end.transcript_missing_from = Some(5);
    db.ledger.mirror(&end).await.unwrap();
    let missing = "SELECT transcript_missing_from FROM workflow_runs";
    assert_eq!(db.one(missing).await.as_deref(), Some("5"));
    db.ledger
        .store(TARGET, &batch(1, &all[4..7]), at(30))
        .await
        .unwrap();
    assert_eq!(db.one(missing).await.as_deref(), Some("8"));
    db.ledger
        .store(TARGET, &batch(1, &all[7..]), at(30))
        .await
        .unwrap();
    assert_eq!(db.one(missing).await, None);
    db.ledger.mirror(&end).await.unwrap();
    assert_eq!(db.one(missing).await, None);
}
