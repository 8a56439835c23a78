//! A run's row only moves forward, whoever writes it and in whatever order.

use runledger::api::run::Phase;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::database::{Database, assert_same, migrated};
use crate::random::Random;
use crate::shapes::{TARGET, at, batch, ended, events, record, run_id, running, usage};

#[tokio::test]
async fn a_run_is_mirrored_whole() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    db.ledger.mirror(&running(1)).await.unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    let row = db
        .one(
            "SELECT (run_id = id::text, namespace, name, workflow_name, agent_type, ai_model, task_input, session_name,
                     git_branch, git_diff_files_changed, git_pushed_branch, status, reason, attempt,
                     duration_seconds, temp_workspace, cost_estimate, input_tokens, total_tokens, turns, error_message)
             FROM workflow_runs",
        )
        .await
        .unwrap();
    assert_eq!(
        row,
        "(t,ns,demo,builder,claude,claude-x,\"Say hello.\",talk,main,3,work,completed,Completed,1,65,f,0.032560,20,240,2,)"
    );
    assert_eq!(db.one("SELECT name FROM sessions").await.unwrap(), "talk");
}

#[tokio::test]
async fn records_in_any_order_come_to_the_same_row() {
    let mut random = Random::seeded("records_in_any_order");
    let mut recovering = running(2);
    recovering.earlier = vec![runledger::wire::EarlierAttempt {
        attempt: 1,
        usage: usage(3),
    }];
    let all = [
        record(),
        running(1),
        recovering,
        ended(Phase::Failed, 2, usage(2)),
    ];
    let mut first = None;
    for _ in 0..6 {
        let db = migrated().await;
        let mut records = [all.clone(), all.clone()].concat();
        random.shuffle(&mut records);
        for record in &records {
            db.ledger.mirror(record).await.unwrap();
        }
        let now = db.everything().await;
        assert_same(first.get_or_insert_with(|| now.clone()), &now, "");
    }
    let row = first.unwrap();
    assert!(
        row.contains("\"error_message\": \"How it ended.\"") && row.contains("\"turns\": 5"),
        "{row}"
    );
}

#[tokio::test]
async fn an_end_is_final_whatever_is_said_later() {
    for phase in [Phase::Completed, Phase::Failed, Phase::Killed] {
        let db = migrated().await;
        db.ledger.mirror(&ended(phase, 1, usage(1))).await.unwrap();
        let before = db.everything().await;
        for late in [
            record(),
            running(1),
            ended(Phase::Completed, 1, usage(1)),
            ended(Phase::Failed, 1, usage(1)),
            ended(Phase::Killed, 1, usage(1)),
        ] {
            let mut late = late;
            late.completed_at = late.completed_at.map(|_| at(500));
            late.started_at = late.started_at.map(|_| at(400));
            db.ledger.mirror(&late).await.unwrap();
            assert_eq!(
                db.everything().await,
                before,
                "{phase:?} then {:?}",
                late.phase
            );
        }
    }
}

#[tokio::test]
async fn figures_that_come_after_the_end_still_count() {
    let db = migrated().await;
    db.ledger
        .mirror(&ended(Phase::Killed, 2, usage(1)))
        .await
        .unwrap();
    db.ledger
        .store(TARGET, &batch(1, &events(1, 4)), at(80))
        .await
        .unwrap();
    let row = db
        .one("SELECT (status, turns, total_tokens, cost_estimate) FROM workflow_runs")
        .await;
    assert_eq!(row.unwrap(), "(killed,5,600,0.081400)");
}

/// What the database answers to a foreign writer.
async fn answer(db: &Database, sql: &str) -> Option<String> {
    sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(&db.pool)
        .await
        .err()
        .and_then(|error| {
            error
                .as_database_error()?
                .code()
                .map(|code| code.into_owned())
        })
}

#[tokio::test]
async fn a_foreign_writer_cannot_turn_a_run_back() {
    let db = migrated().await;
    db.ledger
        .store(TARGET, &batch(1, &events(1, 2)), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Killed, 1, usage(2)))
        .await
        .unwrap();
    let before = db.everything().await;
    for set in [
        "status = 'completed'",
        "status = 'running'",
        "status = 'pending'",
        "input_tokens = 0, total_tokens = total_tokens - input_tokens",
        "output_tokens = output_tokens - 1, total_tokens = total_tokens - 1",
        "cache_read_tokens = 0, total_tokens = total_tokens - cache_read_tokens",
        "cache_creation_tokens = 0, total_tokens = total_tokens - cache_creation_tokens",
        "turns = 0",
        "attempt = 0",
        "cost_estimate = NULL",
        "cost_estimate = 0.000001",
        "task_input = 'another'",
        "workflow_name = 'another'",
        "created_at = now()",
        "started_at = NULL",
        "completed_at = now()",
        "run_id = 'another'",
        "namespace = NULL",
        "namespace = NULL, total_tokens = 0",
        "namespace = 'another'",
    ] {
        let code = answer(&db, &format!("UPDATE workflow_runs SET {set}")).await;
        assert_eq!(code.as_deref(), Some("RL001"), "{set}");
    }
    for set in [
        "input_tokens = 0",
        "cost_micro_usd = NULL",
        "turns = 0",
        "requests = 0",
        "acknowledged = 0",
        "told_requests = told_requests - 1",
        "model_sequence = model_sequence - 1",
        "result_sequence = result_sequence - 1",
        "cost_sequence = cost_sequence - 1",
        "sealed_sequence = 1",
        "started_day = '2020-01-01'",
        "attempt = 9",
    ] {
        let code = answer(&db, &format!("UPDATE run_attempts SET {set}")).await;
        assert_eq!(code.as_deref(), Some("RL001"), "{set}");
    }
    for set in ["status = 'done'", "turns = -1"] {
        let code = answer(&db, &format!("UPDATE workflow_runs SET {set}")).await;
        assert!(code.is_some(), "{set}");
    }
    // What is no number would be greater than any, and every sum that it is in.
    let of_a_model = |cost: &str, input: &str| {
        format!(
            "model_usage = '{{\"m\": {{\"cost\": \"{cost}\", \"input\": \"{input}\", \"output\": 0, \"cache_read\": 0,
                                  \"cache_creation\": 0, \"unpriced\": false}}}}'"
        )
    };
    for set in [
        "total_tokens = total_tokens + 1",
        "metadata = '[]'",
        "cost_estimate = 'NaN'",
        &of_a_model("NaN", "0"),
        &of_a_model("0", "-Infinity"),
    ] {
        let code = answer(&db, &format!("UPDATE workflow_runs SET {set}")).await;
        assert_eq!(code.as_deref(), Some("23514"), "{set}");
    }
    assert_eq!(db.everything().await, before);
}

#[tokio::test]
async fn a_row_that_cannot_be_true_is_refused_whoever_writes_it() {
    let db = migrated().await;
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO workflow_runs (id, run_id, namespace, workflow_name, task_input, {columns})
             VALUES (gen_random_uuid(), gen_random_uuid()::text, 'ns', 'w', 't', {values})"
        )
    };
    for (columns, values) in [
        ("git_commits", "-1"),
        ("git_diff_added_lines", "-1"),
        ("git_diff_removed_lines", "-1"),
        ("git_diff_files_changed", "-1"),
        ("attempt", "-1"),
        ("duration_seconds", "-1"),
        ("input_tokens, total_tokens", "-1, -1"),
        ("output_tokens, total_tokens", "-1, -1"),
        ("cache_read_tokens, total_tokens", "-1, -1"),
        ("cache_creation_tokens, total_tokens", "-1, -1"),
        ("input_tokens", "1"),
        ("turns", "-1"),
        ("transcript_missing_from", "0"),
        ("cost_estimate", "-1"),
        ("cost_estimate", "'NaN'"),
        ("cost_source", "'sdk'"),
        ("cost_source, cost_estimate", "'guess', 1"),
        ("metadata", "'[]'"),
        ("settings", "'[]'"),
        ("model_usage", "'[]'"),
        ("status", "'done'"),
        ("status", "'completed'"),
        ("status", "'failed'"),
        ("status", "'killed'"),
    ] {
        let code = answer(&db, &insert(columns, values)).await;
        assert_eq!(code.as_deref(), Some("23514"), "{columns}: {values}");
    }
    // Nothing is asked of what isn't known.
    for (columns, values) in [
        ("duration_seconds, transcript_missing_from", "NULL, NULL"),
        ("cost_estimate, cost_source", "NULL, NULL"),
        ("cost_estimate, cost_source", "0, NULL"),
        ("cost_estimate, cost_source", "0, 'mixed'"),
        ("transcript_missing_from", "1"),
        ("status, completed_at", "'killed', now()"),
    ] {
        assert_eq!(
            answer(&db, &insert(columns, values)).await,
            None,
            "{columns}"
        );
    }
}

#[tokio::test]
async fn metadata_is_merged_whoever_writes_it() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    assert_eq!(
        answer(&db, "UPDATE workflow_runs SET metadata = '{\"theirs\": 1}'").await,
        None
    );
    assert_eq!(
        answer(&db, "UPDATE workflow_runs SET metadata = '{\"other\": 2}'").await,
        None
    );
    db.ledger.mirror(&running(1)).await.unwrap();
    let metadata = db.one("SELECT metadata FROM workflow_runs").await.unwrap();
    assert_eq!(metadata, "{\"other\": 2, \"theirs\": 1}");
}

#[tokio::test]
async fn rows_of_others_move_forward_too_and_keep_metadata_that_is_no_object() {
    let db = migrated().await;
    let insert =
        "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, total_tokens, metadata)
                  VALUES (gen_random_uuid(), 'theirs', 'w', 't', 9, '[1]')";
    assert_eq!(answer(&db, insert).await, None);
    let fall = "UPDATE workflow_runs SET total_tokens = 8";
    assert_eq!(answer(&db, fall).await.as_deref(), Some("RL001"));
    for (set, kept) in [
        ("total_tokens = 10", "[1]"),
        ("metadata = '[1, 2]'", "[1, 2]"),
        ("metadata = NULL", "{}"),
        ("metadata = '{\"a\": 1}'", "{\"a\": 1}"),
        ("metadata = 'null'", "{\"a\": 1}"),
        ("metadata = '{\"b\": 2}'", "{\"a\": 1, \"b\": 2}"),
    ] {
        let update = format!("UPDATE workflow_runs SET {set}");
        assert_eq!(answer(&db, &update).await, None, "{set}");
        let metadata = db.one("SELECT metadata FROM workflow_runs").await;
        assert_eq!(metadata.as_deref(), Some(kept), "{set}");
    }
    let array = "UPDATE workflow_runs SET metadata = '[3]'";
    assert_eq!(answer(&db, array).await.as_deref(), Some("RL001"));
}

#[tokio::test]
async fn no_sum_is_spoilt_by_what_is_no_number() {
    let db = migrated().await;
    db.ledger
        .store(TARGET, &batch(1, &events(1, 2)), at(30))
        .await
        .unwrap();
    for write in [
        "UPDATE run_model_usage SET cost_micro_usd = 'NaN'",
        "INSERT INTO model_prices (pattern, kind, valid_from, usd_per_million) VALUES ('m', 'input', now(), 'NaN')",
        "INSERT INTO run_rollup_deltas SELECT day, by_model, namespace, workflow_name, model, repository, 0, 0, 0, 0,
             0, 'Infinity', 0, 0, 0, 0, 0, 0, 0, 0 FROM run_rollup_deltas LIMIT 1",
    ] {
        assert_eq!(answer(&db, write).await.as_deref(), Some("23514"), "{write}");
    }
}

#[tokio::test]
async fn a_session_is_one_per_namespace_and_name() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    let mut elsewhere = record();
    elsewhere.run_id = Uuid::from_u128(8);
    elsewhere.namespace = "other".to_owned();
    elsewhere.session_id = runledger::ids::session("other", "talk");
    db.ledger.mirror(&elsewhere).await.unwrap();
    let mut same = record();
    same.run_id = Uuid::from_u128(9);
    db.ledger.mirror(&same).await.unwrap();
    assert_eq!(db.one("SELECT count(*) FROM sessions").await.unwrap(), "2");
    let twice =
        "INSERT INTO sessions (id, namespace, name) VALUES (gen_random_uuid(), 'ns', 'talk')";
    assert_eq!(answer(&db, twice).await.as_deref(), Some("23505"));
    // Rows of others may repeat a name.
    for _ in 0..2 {
        let theirs = "INSERT INTO sessions (id, name) VALUES (gen_random_uuid(), 'talk')";
        assert_eq!(answer(&db, theirs).await, None);
    }
}

#[tokio::test]
async fn a_figure_that_cannot_be_true_is_named_and_the_end_is_still_recorded() {
    let db = migrated().await;
    let mut wrong = ended(Phase::Completed, 1, usage(1));
    wrong.usage.as_mut().unwrap().tokens.output = u64::MAX;
    wrong.task = Some("nul: \0".to_owned());
    db.ledger.mirror(&wrong).await.unwrap();
    assert_eq!(
        db.one("SELECT (status, total_tokens, task_input, run_id) FROM workflow_runs")
            .await
            .unwrap(),
        format!("(completed,0,\"nul: \u{fffd}\",{})", run_id())
    );
    assert_eq!(
        db.one("SELECT metadata FROM workflow_runs").await.unwrap(),
        "{\"altered\": true, \"refused\": \"output tokens\"}"
    );
}
