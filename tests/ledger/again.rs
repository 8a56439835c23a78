//! A run that was written before is not written whole again on its way to its end. Its row comes to be the
//! same.

use std::collections::BTreeMap;

use runledger::api::run::Phase;
use runledger::ids;
use runledger::ledger::Ledger;
use runledger::ledger::records::{Kill, KillRequest, RunRecord};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};
use uuid::Uuid;

use crate::database::{Database, assert_same, migrated};
use crate::random::Random;
use crate::shapes::{TARGET, at, batch, ended, events, record, run_id, running, session_id, usage};

/// A database that counts the statements which write runs whole.
async fn counting() -> Database {
    let db = migrated().await;
    db.pool
        .execute(
            "CREATE SEQUENCE whole;
             CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
                 $$ BEGIN PERFORM nextval('whole'); RETURN NULL; END $$;
             CREATE TRIGGER counted AFTER INSERT ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION counted();",
        )
        .await
        .unwrap();
    db
}

async fn whole(db: &Database) -> String {
    db.one("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM whole")
        .await
        .unwrap()
}

#[tokio::test]
async fn a_run_on_its_way_is_written_whole_once_and_again_at_its_end() {
    let db = counting().await;
    let waiting = RunRecord {
        reason: Some("Image".to_owned()),
        ..record()
    };
    for (record, times) in [
        (record(), "1"),
        (waiting, "1"),
        (running(1), "1"),
        (running(2), "1"),
        (ended(Phase::Completed, 2, usage(1)), "2"),
        (ended(Phase::Completed, 2, usage(1)), "3"),
    ] {
        db.ledger.mirror(&record).await.unwrap();
        assert_eq!(whole(&db).await, times, "{record:?}");
    }
    let another = Ledger::connect(&db.url).unwrap();
    another.mirror(&record()).await.unwrap();
    assert_eq!(whole(&db).await, "4");
}

#[tokio::test]
async fn whatever_else_changes_on_the_way_is_written() {
    type Change = fn(&mut RunRecord);
    let changes: [Change; 9] = [
        |r| r.labels = [("team".to_owned(), "blue".to_owned())].into(),
        |r| r.model = Some("claude-y".to_owned()),
        |r| r.agent_image = Some("registry.example/agent:2".to_owned()),
        |r| r.settings = json!({"maxTurns": 6}).as_object().unwrap().clone(),
        |r| r.workspace_path = Some("pvc://ns/other/work".to_owned()),
        |r| r.branch = Some("topic".to_owned()),
        |r| r.workspace_persistent = false,
        |r| r.usage = Some(usage(1)),
        |r| {
            r.kill = Some(Kill {
                request: KillRequest::Deletion,
                at: None,
                manager: None,
            });
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let db = counting().await;
        db.ledger.mirror(&record()).await.unwrap();
        let mut changed = running(1);
        change(&mut changed);
        let before = db.everything().await;
        db.ledger.mirror(&changed).await.unwrap();
        assert_eq!(whole(&db).await, "2", "{n}");
        assert_ne!(db.everything().await, before);
    }
}

#[tokio::test]
async fn a_run_whose_row_is_not_there_any_more_is_written_whole_again() {
    for (lost, times) in [
        // A database that was restored from before the run.
        ("DELETE FROM workflow_runs", "2"),
        ("DELETE FROM sessions", "2"),
        // The events may come first then.
        ("stub", "3"),
    ] {
        let db = counting().await;
        db.ledger.mirror(&record()).await.unwrap();
        if lost == "stub" {
            db.pool.execute("DELETE FROM workflow_runs").await.unwrap();
            let first = batch(1, &events(1, 2)[..2]);
            db.ledger.store(TARGET, &first, at(30)).await.unwrap();
        } else {
            db.pool
                .execute(AssertSqlSafe(lost.to_owned()))
                .await
                .unwrap();
        }
        db.ledger.mirror(&running(1)).await.unwrap();
        assert_eq!(whole(&db).await, times, "{lost}");
        let row = db
            .one("SELECT (r.status, r.workflow_name, r.session_name, r.session_id, s.name, l.value)
                  FROM workflow_runs r JOIN sessions s ON s.id = r.session_id JOIN run_labels l ON l.run_id = r.id")
            .await;
        let expected = format!("(running,builder,talk,{},talk,red)", session_id());
        assert_eq!(row.as_deref(), Some(&*expected), "{lost}");
    }
}

#[tokio::test]
async fn what_was_written_before_a_write_that_failed_is_not_believed_to_be_there() {
    let db = counting().await;
    db.ledger.mirror(&record()).await.unwrap();
    let mut fails = running(1);
    fails.labels = BTreeMap::new();
    fails.reason = Some("a\0b".to_owned());
    db.ledger.mirror(&fails).await.unwrap_err();
    let before: u32 = whole(&db).await.parse().unwrap();
    db.ledger.mirror(&running(1)).await.unwrap();
    assert_eq!(whole(&db).await, (before + 1).to_string());
    db.ledger.mirror(&running(2)).await.unwrap();
    assert_eq!(whole(&db).await, (before + 1).to_string());
}

#[tokio::test]
async fn its_plan_is_good_for_many_rows_though_made_while_there_was_none() {
    let db = migrated().await;
    let mut connection = db.pool.acquire().await.unwrap();
    let statement = include_str!("../../src/ledger/mirror_again.sql");
    let settings =
        "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; PREPARE again AS ";
    connection
        .execute(AssertSqlSafe(format!("{settings}{statement}")))
        .await
        .unwrap();
    let plan: Vec<String> =
        sqlx::query_scalar("EXPLAIN EXECUTE again ('{}', '{}', '{}', '{}', '{}')")
            .persistent(false)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let plan = plan.join("\n");
    assert!(
        plan.contains("Index Scan using workflow_runs_pkey")
            && plan.contains("Index Cond: (id = g.id)"),
        "{plan}"
    );
}

#[tokio::test]
async fn new_runs_and_many_on_their_way_can_be_written_at_once() {
    let db = counting().await;
    let of = |number: u32, record: RunRecord| RunRecord {
        run_id: Uuid::from_u128(u128::from(number)),
        ..record
    };
    let mirror = |records: Vec<RunRecord>| {
        let db = &db;
        async move {
            let all = records.iter().map(|record| db.ledger.mirror(record));
            for written in futures::future::join_all(all).await {
                written.unwrap();
            }
        }
    };
    mirror((0..40).map(|n| of(n, record())).collect()).await;
    let mixed = (0..60).map(|n| of(n, if n % 3 == 0 { running(1) } else { record() }));
    mirror(mixed.collect()).await;
    let runs =
        db.one("SELECT (count(*), count(*) FILTER (WHERE status = 'running')) FROM workflow_runs");
    assert_eq!(runs.await.unwrap(), "(60,20)");
}

/// Something that befalls runs: mostly a record, else the word of another writer.
async fn befall(db: &Database, ledger: &Ledger, what: &What) {
    match what {
        What::Record(record) => ledger.mirror(record).await.unwrap(),
        What::Events(attempt, requests) => {
            let batch = batch(*attempt, &events(*attempt, *requests));
            db.ledger.store(TARGET, &batch, at(30)).await.unwrap();
        }
        What::VolumeGone => db
            .ledger
            .workspaces_gone(&[Uuid::from_u128(99)], at(60))
            .await
            .unwrap(),
        What::RunLost => {
            let lost = sqlx::query("DELETE FROM workflow_runs WHERE id = $1").bind(run_id());
            lost.execute(&db.pool).await.unwrap();
        }
        What::SessionLost => {
            let lost = sqlx::query("DELETE FROM sessions WHERE id = $1").bind(session_id());
            lost.execute(&db.pool).await.unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum What {
    Record(Box<RunRecord>),
    Events(u32, u32),
    VolumeGone,
    RunLost,
    SessionLost,
}

impl What {
    fn any(random: &mut Random) -> Self {
        match random.below(16) {
            0 => Self::Events(1 + random.below(2) as u32, 1 + random.below(3) as u32),
            1 if random.below(3) == 0 => Self::VolumeGone,
            2 if random.below(3) == 0 => Self::RunLost,
            3 if random.below(3) == 0 => Self::SessionLost,
            _ => Self::Record(Box::new(any_record(random))),
        }
    }
}

/// Mostly of one run and with what it had before, as records are; in no order.
fn any_record(random: &mut Random) -> RunRecord {
    let attempt = random.below(3) as u32;
    let mut record = match random.below(12) {
        0..=3 => record(),
        4..=9 => running(attempt),
        10 => RunRecord {
            earlier: vec![runledger::wire::EarlierAttempt {
                attempt: 1,
                usage: usage(2),
            }],
            ..running(2)
        },
        _ => RunRecord {
            completed_at: Some(at(75)),
            ..ended(Phase::Failed, attempt.max(1), usage(attempt))
        },
    };
    if random.below(3) == 0 {
        record.run_id = Uuid::from_u128(8);
        record.session_name = "other".to_owned();
        record.session_id = ids::session("ns", "other");
    }
    if random.below(4) == 0 {
        record.reason = [None, Some("Image".to_owned())][random.below(2)].clone();
    }
    if random.below(4) == 0 {
        record.started_at = [None, Some(at(20))][random.below(2)];
    }
    if random.below(6) == 0 {
        record.labels = (0..random.below(3))
            .map(|n| (format!("k{n}"), random.below(2).to_string()))
            .collect();
    }
    if random.below(6) == 0 {
        record.model = [None, Some("claude-z".to_owned())][random.below(2)].clone();
    }
    if random.below(8) == 0 {
        record.settings = json!({"timeout": random.below(2)})
            .as_object()
            .unwrap()
            .clone();
    }
    record
}

/// Everything but when events made a stub: the only times with a fraction of a second.
async fn seen(db: &Database) -> String {
    let all = db.everything().await;
    let lines = all
        .lines()
        .filter(|line| !(line.contains("\"created_at\"") && line.contains('.')));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_row_is_the_same_as_if_every_record_had_been_written_whole() {
    let mut random = Random::seeded("a_row_is_the_same_as_if_every_record_had_been_written_whole");
    for life in 0..3 {
        let (again, whole) = (migrated().await, migrated().await);
        let mut told = Vec::new();
        for _ in 0..25 {
            let what = What::any(&mut random);
            befall(&again, &again.ledger, &what).await;
            // It remembers nothing.
            let new = Ledger::connect(&whole.url).unwrap();
            befall(&whole, &new, &what).await;
            new.close().await;
            told.push(what);
            let (again, whole) = (seen(&again).await, seen(&whole).await);
            assert_same(&again, &whole, &format!("life {life}: {told:#?}"));
        }
    }
}
