//! `runledger prune`: what is too old goes, and nothing that somebody still needs.

use clap::Parser as _;
use jiff::Timestamp;
use runledger::api::run::Phase;
use runledger::ledger::{Target, prune};
use runledger::wire::Batch;
use uuid::Uuid;

use crate::database::{Database, migrated};
use crate::shapes::{at, batch, ended, events, record, run_id, running, usage};

/// `runledger prune`, as it is typed.
#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: prune::Args,
}

/// `now` is so many days after the day on which all runs of these tests begin.
async fn answer(db: &Database, days: i64, words: &str) -> Result<String, prune::Failure> {
    let words = ["prune", "--database-url", &db.url]
        .into_iter()
        .chain(words.split_whitespace());
    let args = Command::parse_from(words).args;
    let mut out = Vec::new();
    prune::run_to(&args, after(days), &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

fn after(days: i64) -> Timestamp {
    at(86_400 * days)
}

async fn prune(db: &Database, days: i64, words: &str) -> String {
    answer(db, days, words).await.unwrap()
}

/// Three runs of a session each: one that ended and one that is under way, both of the first day, and
/// one that ended ten days later.
async fn three_runs() -> Database {
    let db = migrated().await;
    for (n, day, end) in [(1, 0, true), (2, 0, false), (3, 10, true)] {
        let namespace = "ns";
        let session_name = format!("talk-{n}");
        let session_id = runledger::ids::session(namespace, &session_name);
        let id = Uuid::from_u128(n);
        let mut all = events(1, 2);
        for event in &mut all {
            event.at = after(day);
            if let runledger::wire::EventBody::Message(message) = &mut event.body {
                message.id = runledger::ids::message(id, &message.id.to_string());
            }
        }
        let batch = Batch {
            run_id: id,
            session_id,
            session_name: session_name.clone(),
            ..batch(1, &all)
        };
        let target = Target {
            namespace,
            name: "demo",
        };
        db.ledger.store(target, &batch, after(day)).await.unwrap();
        let mut record = if end {
            ended(Phase::Completed, 1, usage(2))
        } else {
            running(1)
        };
        record.run_id = id;
        record.session_id = session_id;
        record.session_name = session_name;
        record.created_at = after(day);
        record.started_at = Some(after(day));
        record.completed_at = record.completed_at.map(|_| after(day));
        db.ledger.mirror(&record).await.unwrap();
    }
    db
}

/// Runs, messages by run, partitions and sessions that are left.
async fn left(db: &Database) -> String {
    db.one(
        "SELECT concat_ws(' | ',
            (SELECT string_agg(right(id::text, 1), ' ' ORDER BY id) FROM workflow_runs),
            (SELECT string_agg(DISTINCT right(s.name, 1), ' ') FROM messages m JOIN sessions s ON s.id = m.session_id),
            (SELECT string_agg(DISTINCT right(run_id::text, 1), ' ') FROM run_events),
            (SELECT string_agg(right(name, 1), ' ' ORDER BY name) FROM sessions))",
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn a_partition_with_events_of_an_unfinished_run_is_never_dropped() {
    let db = three_runs().await;
    let kept = "run_events: the day 2026-09-21 is kept: an unfinished run began then\n";
    assert_eq!(
        prune(&db, 400, "--events 5 --dry-run").await,
        format!("{kept}run_events: the day 2026-10-01 would be dropped\n")
    );
    assert_eq!(left(&db).await, "1 2 3 | 1 2 3 | 1 2 3 | 1 2 3");
    let dropped = prune(&db, 400, "--events 5").await;
    assert_eq!(
        dropped,
        format!("{kept}run_events: the day 2026-10-01 dropped\n")
    );
    assert_eq!(left(&db).await, "1 2 3 | 1 2 3 | 1 2 | 1 2 3");
    let drop = "SELECT runledger_drop_event_partition('2026-09-21')";
    let refused = sqlx::query(drop).execute(&db.pool).await.unwrap_err();
    let says = "events of 2026-09-21 are kept: an unfinished run began then";
    assert!(
        refused.to_string().contains(says),
        "whoever asks: {refused}"
    );
    let mut end = ended(Phase::Killed, 1, usage(2));
    end.run_id = Uuid::from_u128(2);
    db.ledger.mirror(&end).await.unwrap();
    assert_eq!(
        prune(&db, 400, "--events 5").await,
        "run_events: the day 2026-09-21 dropped\n"
    );
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'run_events'::regclass";
    assert_eq!(db.one(partitions).await.unwrap(), "0");
    assert_eq!(
        prune(&db, 400, "--events 5").await,
        "run_events: no day before 2027-10-21 dropped\n"
    );
}

#[tokio::test]
async fn patches_can_go_before_their_runs_but_not_those_of_unfinished_ones() {
    let db = three_runs().await;
    let left =
        "SELECT string_agg(DISTINCT ltrim(right(run_id::text, 4), '0'), ' ') FROM run_patches";
    assert_eq!(
        prune(&db, 15, "--patches 10 --dry-run").await,
        "run_patches: 2 rows from before 2026-09-26 would be deleted\n"
    );
    assert_eq!(db.one(left).await.unwrap(), "1 2 3");
    prune(&db, 15, "--patches 10").await;
    assert_eq!(db.one(left).await.unwrap(), "2 3");
    assert_eq!(
        db.one("SELECT count(*) FROM workflow_runs").await.unwrap(),
        "3"
    );
}

#[tokio::test]
async fn events_are_kept_to_the_day() {
    let db = three_runs().await;
    assert_eq!(
        prune(&db, 12, "--events 2").await,
        "run_events: the day 2026-09-21 is kept: an unfinished run began then\n\
         run_events: no day before 2026-10-01 dropped\n"
    );
    assert!(
        prune(&db, 13, "--events 2")
            .await
            .ends_with("the day 2026-10-01 dropped\n")
    );
}

#[tokio::test]
async fn messages_and_runs_go_by_age_but_not_those_under_way_and_the_report_keeps_its_sums() {
    let db = three_runs().await;
    // Of the earlier system: it has a time of its end, and yet it runs.
    sqlx::query(
        "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, status, created_at, completed_at)
         VALUES ($1, 'other', 'w', 't', 'running', '2026-01-01', '2026-01-01')",
    )
    .bind(Uuid::from_u128(4))
    .execute(&db.pool)
    .await
    .unwrap();
    let report =
        "SELECT (sum(runs), sum(completed), sum(cost), sum(input_tokens)) FROM run_rollups_live";
    let before = db.one(report).await;
    let words = "--events 5 --messages 5 --runs 5 --sessions 5";
    let dry = prune(&db, 12, &format!("{words} --dry-run")).await;
    assert!(
        dry.contains("messages: 3 rows from before 2026-09-28 would be deleted\n"),
        "{dry}"
    );
    assert!(
        dry.contains("workflow_runs: 1 rows from before 2026-09-28 would be deleted\n"),
        "{dry}"
    );
    assert_eq!(left(&db).await, "1 2 3 4 | 1 2 3 | 1 2 3 | 1 2 3");
    let done = prune(&db, 12, words).await;
    assert!(
        done.contains("workflow_runs: 1 rows from before 2026-09-28 deleted\n"),
        "{done}"
    );
    // The session was touched now, not then.
    assert!(done.contains("sessions: 0 rows"), "{done}");
    assert_eq!(left(&db).await, "2 3 4 | 2 3 | 1 2 3 | 1 2 3");
    assert_eq!(db.one(report).await, before);
    // What is left is still compared; what is gone is not counted as missing.
    let comparison = db.ledger.compare_rollups(true).await.unwrap();
    assert_eq!(comparison.differ, 0, "{comparison:?}");
    assert_eq!(comparison.from.unwrap().to_string(), "2026-09-28");
    assert_eq!(db.one(report).await, before);
    sqlx::raw_sql(
        "ALTER TABLE sessions DISABLE TRIGGER USER; UPDATE sessions SET updated_at = '2026-09-21'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert!(prune(&db, 12, words).await.contains("sessions: 1 rows"));
    assert_eq!(left(&db).await, "2 3 4 | 2 3 | 1 2 3 | 2 3");
}

#[tokio::test]
async fn a_run_that_is_deleted_otherwise_is_not_counted_any_more() {
    let db = three_runs().await;
    sqlx::query("DELETE FROM workflow_runs WHERE id = $1")
        .bind(Uuid::from_u128(1))
        .execute(&db.pool)
        .await
        .unwrap();
    let runs = "SELECT sum(runs) FROM run_rollups_live WHERE NOT by_model";
    assert_eq!(db.one(runs).await.unwrap(), "2");
    assert_eq!(db.ledger.compare_rollups(false).await.unwrap().differ, 0);
}

#[tokio::test]
async fn sessions_and_messages_of_others_and_branches_stay() {
    let db = migrated().await;
    sqlx::raw_sql(
        "INSERT INTO sessions (id, namespace, name, updated_at) VALUES
             ('00000000-0000-0000-0000-000000000001', NULL, 'theirs', '2020-01-01'),
             ('00000000-0000-0000-0000-000000000002', 'ns', 'parent', '2020-01-01');
         INSERT INTO sessions (id, namespace, name, updated_at, parent_session_id) VALUES
             ('00000000-0000-0000-0000-000000000003', 'ns', 'branch', '2020-01-01', '00000000-0000-0000-0000-000000000002');
         INSERT INTO messages (id, session_id, role, created_at) VALUES
             (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'user', '2020-01-01'),
             (gen_random_uuid(), '00000000-0000-0000-0000-000000000003', 'user', '2020-01-01');
         INSERT INTO audit (at, actor, action, allowed, namespace, run_id)
             SELECT d::timestamptz, 'a', 'kill', true, 'ns', gen_random_uuid()
             FROM (VALUES ('2020-01-01'), ('2026-09-20')) v (d);
         ALTER TABLE sessions DISABLE TRIGGER USER;
         UPDATE sessions SET updated_at = '2020-01-01'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let names = "SELECT string_agg(name, ' ' ORDER BY id) FROM sessions";
    assert_eq!(
        prune(&db, 1, "--sessions 30 --audit 30").await,
        "sessions: 0 rows from before 2026-08-23 deleted\naudit: 1 rows from before 2026-08-23 deleted\n"
    );
    let done = prune(&db, 1, "--messages 30 --sessions 30").await;
    assert_eq!(
        done,
        "messages: 1 rows from before 2026-08-23 deleted\nsessions: 1 rows from before 2026-08-23 deleted\n"
    );
    assert_eq!(db.one(names).await.unwrap(), "theirs parent");
    // The branch is gone now.
    prune(&db, 1, "--sessions 30").await;
    assert_eq!(db.one(names).await.unwrap(), "theirs");
}

#[tokio::test]
async fn more_than_one_stretch_of_a_table_is_looked_through() {
    let db = migrated().await;
    sqlx::raw_sql(
        "INSERT INTO audit (at, actor, action, allowed, namespace, run_id, detail)
         SELECT date '2020-01-01' + n % 2 * 3000, 'a', 'kill', true, 'ns', gen_random_uuid(), repeat('x', 1500)
         FROM generate_series(1, 2000) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert!(
        prune(&db, 1, "--audit 30")
            .await
            .starts_with("audit: 1000 rows")
    );
    assert_eq!(db.one("SELECT count(*) FROM audit").await.unwrap(), "1000");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_sentence() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    for (words, sentence) in [
        ("", "nothing is too old without an age"),
        (
            "--runs 5 --events 6",
            "--events must be no more days than --runs",
        ),
    ] {
        let error = answer(&db, 400, words).await.unwrap_err();
        assert!(error.to_string().starts_with(sentence), "{error}");
    }
    for words in [
        "prune --runs 5",
        "prune --events 0",
        "prune --events -1",
        "prune --events all",
    ] {
        Command::try_parse_from(words.split(' ')).unwrap_err();
    }
    let there = db.one("SELECT id FROM workflow_runs").await.unwrap();
    assert_eq!(there, run_id().to_string());
}
