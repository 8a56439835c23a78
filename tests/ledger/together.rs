//! Runs that are mirrored at about the same time share a statement, and nothing else: what befalls one of
//! them is not noticed by the others.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use runledger::api::run::Phase;
use runledger::ids;
use runledger::ledger::records::{Kill, KillRequest, RunRecord};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::database::{Database, assert_same, migrated};
use crate::shapes::{ended, record, running, usage};

/// Longest wait for what comes at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// Another run, of one of seven sessions.
fn of_run(number: u32, record: RunRecord) -> RunRecord {
    let session_name = format!("talk-{}", number % 7);
    let usage = record.usage.map(|_| usage(number % 5));
    let labels = (0..number % 3).map(|n| (format!("k{n}"), format!("{number}")));
    RunRecord {
        run_id: Uuid::from_u128(0x100 + u128::from(number)),
        name: format!("run-{number}"),
        session_id: ids::session("ns", &session_name),
        session_name,
        usage,
        labels: labels.collect(),
        ..record
    }
}

/// What becomes of a run.
fn life(number: u32) -> [RunRecord; 3] {
    let end = match number % 3 {
        0 => Phase::Completed,
        1 => Phase::Failed,
        _ => Phase::Killed,
    };
    let mut end = of_run(number, ended(end, 1, usage(1)));
    end.labels.remove("k0");
    end.kill = (number % 3 == 2).then_some(Kill {
        request: KillRequest::Deletion,
        at: None,
        manager: None,
    });
    [of_run(number, record()), of_run(number, running(1)), end]
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_at_once_come_to_the_same_rows_as_one_after_the_other() {
    let (together, alone) = (Arc::new(migrated().await), migrated().await);
    let tasks = (0..60).map(|number| {
        let db = Arc::clone(&together);
        tokio::spawn(async move {
            for record in life(number) {
                db.ledger.mirror(&record).await.unwrap();
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    for record in (0..60).flat_map(life) {
        alone.ledger.mirror(&record).await.unwrap();
    }
    assert_same(&together.everything().await, &alone.everything().await, "");
    let killed = "SELECT (count(*), count(DISTINCT run_id)) FROM audit WHERE action = 'kill'";
    assert_eq!(together.one(killed).await.unwrap(), "(20,20)");
    let differ = "SELECT count(*) FROM runledger_rollup_differences()";
    assert_eq!(together.one(differ).await.unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_share_a_statement() {
    let db = migrated().await;
    db.pool
        .execute(
            "CREATE SEQUENCE statements;
             CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;
             CREATE TRIGGER counted AFTER INSERT ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION counted();",
        )
        .await
        .unwrap();
    let of_one_session: Vec<_> = (0..60).map(|n| of_run(n * 7, record())).collect();
    let mut before = 0;
    // On a machine that is busy with other things a write may be given up, and all do it alone.
    for _ in 0..20 {
        for written in join_all(of_one_session.iter().map(|r| db.ledger.mirror(r))).await {
            written.unwrap();
        }
        let statements = db.one("SELECT last_value FROM statements").await.unwrap();
        let statements: u32 = statements.parse().unwrap();
        if statements - before < 30 {
            let runs = db.one("SELECT count(*) FROM workflow_runs").await.unwrap();
            assert_eq!(runs, "60");
            return;
        }
        before = statements;
    }
    panic!("each of 60 runs had a statement of its own");
}

#[tokio::test]
async fn one_that_cannot_be_written_spoils_no_others() {
    let db = migrated().await;
    let records: Vec<_> = (0..40)
        .map(|number| {
            let mut record = of_run(number, record());
            if number % 20 == 3 {
                record.reason = Some("a\0b".to_owned());
            }
            record
        })
        .collect();
    let written = join_all(records.iter().map(|record| db.ledger.mirror(record))).await;
    for (number, written) in written.into_iter().enumerate() {
        match written {
            Ok(()) => assert_ne!(number % 20, 3),
            Err(error) => assert!(
                number % 20 == 3 && error.is_of_content(),
                "{number}: {error}"
            ),
        }
    }
    assert_eq!(
        db.one("SELECT count(*) FROM workflow_runs").await.unwrap(),
        "38"
    );
}

#[tokio::test]
async fn a_run_that_somebody_holds_holds_up_no_other_of_its_session() {
    let db = Arc::new(migrated().await);
    let of_one_session = |n: u32, record| of_run(n * 7, record);
    for number in 0..10 {
        let record = of_one_session(number, record());
        db.ledger.mirror(&record).await.unwrap();
    }
    let mut holder = db.pool.begin().await.unwrap();
    let held = of_one_session(0, running(1));
    sqlx::query("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE")
        .bind(held.run_id)
        .execute(&mut *holder)
        .await
        .unwrap();
    let waits = tokio::spawn({
        let db = Arc::clone(&db);
        async move { db.ledger.mirror(&held).await }
    });
    let others = (1..10).map(|number| {
        let db = Arc::clone(&db);
        async move { db.ledger.mirror(&of_one_session(number, running(1))).await }
    });
    let others = tokio::time::timeout(PATIENCE, join_all(others)).await;
    for written in others.unwrap() {
        written.unwrap();
    }
    assert!(!waits.is_finished());
    holder.rollback().await.unwrap();
    waits.await.unwrap().unwrap();
    assert_eq!(running_runs(&db).await, "10");
}

#[tokio::test]
async fn a_connection_that_dies_while_several_are_written_is_not_noticed() {
    let db = migrated().await;
    for number in 0..20 {
        let record = of_run(number, record());
        db.ledger.mirror(&record).await.unwrap();
    }
    db.pool
        .execute(
            "CREATE SEQUENCE tries;
             CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                 IF nextval('tries') <= 2 THEN
                     PERFORM pg_terminate_backend(pg_backend_pid());
                 END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER dies AFTER UPDATE ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION dies();",
        )
        .await
        .unwrap();
    let records: Vec<_> = (0..20).map(|n| of_run(n, running(1))).collect();
    for written in join_all(records.iter().map(|r| db.ledger.mirror(r))).await {
        written.unwrap();
    }
    assert_eq!(running_runs(&db).await, "20");
}

#[tokio::test]
async fn after_the_end_nobody_is_left_waiting() {
    let db = migrated().await;
    db.ledger.close().await;
    let records: Vec<_> = (0..20).map(|n| of_run(n, record())).collect();
    let all = join_all(records.iter().map(|r| db.ledger.mirror(r)));
    for written in tokio::time::timeout(PATIENCE, all).await.unwrap() {
        assert!(written.unwrap_err().is_transient());
    }
}

async fn running_runs(db: &Database) -> String {
    db.one("SELECT count(*) FROM workflow_runs WHERE status = 'running'")
        .await
        .unwrap()
}
