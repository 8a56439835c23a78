//! `runledger migrate import-legacy --from`: the tables of another database, brought over row by row.

use runledger::ledger::legacy::ImportArgs;
use runledger::ledger::migrate::Error;
use sqlx::PgPool;

use crate::database::{copy_of, empty, up};
use crate::import::{AS_TEXT, import, one, run};

const TABLES: &str = include_str!("earlier.sql");
const RUNS: &str = include_str!("earlier_runs.sql");

/// Numbers of agents are others here.
const ROWS: [&str; 4] = [
    "SELECT md5(string_agg(to_jsonb(t)::text, '' ORDER BY id)) FROM users t",
    "SELECT md5(string_agg((to_jsonb(t) - 'agent_id' - 'last_position' || jsonb_build_object('agent',
         (SELECT name FROM agents a WHERE a.id = t.agent_id)))::text, '' ORDER BY id)) FROM sessions t",
    "SELECT md5(string_agg((to_jsonb(t) - 'agent_id' - 'position' || jsonb_build_object('agent',
         (SELECT name FROM agents a WHERE a.id = t.agent_id)))::text, '' ORDER BY id)) FROM messages t",
    "SELECT md5(string_agg(to_jsonb(t)::text, '' ORDER BY id)) FROM workflow_runs t",
];

async fn rows(pool: &PgPool) -> Vec<String> {
    let mut all = Vec::new();
    for query in ROWS {
        all.push(one(pool, query).await);
    }
    all
}

fn from(url: &str) -> ImportArgs {
    ImportArgs {
        from: Some(url.to_owned()),
        ..ImportArgs::default()
    }
}

async fn ledger() -> (String, PgPool) {
    let url = empty().await;
    up(&url).await;
    let pool = PgPool::connect(&url).await.unwrap();
    (url, pool)
}

async fn earlier(scripts: &[&str]) -> (String, PgPool) {
    let url = empty().await;
    let pool = PgPool::connect(&url).await.unwrap();
    for script in scripts {
        run(&pool, script).await;
    }
    (url, pool)
}

#[tokio::test]
async fn rows_of_another_database_become_what_they_become_where_their_tables_are_joined() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    pool.close().await;
    let there = copy_of(url.rsplit_once('/').unwrap().1).await;
    up(&url).await;
    let pool = PgPool::connect(&url).await.unwrap();
    let wanted = rows(&pool).await;
    let source = PgPool::connect(&there).await.unwrap();
    for form in ["", AS_TEXT] {
        run(&source, form).await;
        let (here, pool) = ledger().await;
        let (report, out) = import(&here, from(&there)).await.unwrap();
        let count = |rows: u64, imported: u64| (rows, imported, rows - imported, 0);
        let of = |name: &str| {
            let count = report.of(name);
            (count.read, count.imported, count.unchanged, count.skipped)
        };
        assert_eq!(of("workflow_runs (copied)"), count(1000, 1000), "{out}");
        assert_eq!(of("messages (copied)"), count(2000, 2000), "{out}");
        assert_eq!(rows(&pool).await, wanted, "{form}");
        let (again, out) = import(&here, from(&there)).await.unwrap();
        assert_eq!(again.of("workflow_runs (copied)").unchanged, 1000, "{out}");
        assert_eq!(rows(&pool).await, wanted);
    }
}

#[tokio::test]
async fn a_copy_that_dies_after_any_batch_goes_on_where_it_was() {
    let (there, _) = earlier(&[TABLES, RUNS]).await;
    let (whole, wanted) = ledger().await;
    import(&whole, from(&there)).await.unwrap();
    let (here, pool) = ledger().await;
    run(
        &pool,
        "CREATE SEQUENCE killer_count; CREATE TABLE killer (n bigint); INSERT INTO killer VALUES (0);
         CREATE FUNCTION killer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
             IF nextval('killer_count') = (SELECT n FROM killer) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NULL;
         END $$;
         DO $$ DECLARE t text; BEGIN
             FOREACH t IN ARRAY ARRAY['users', 'agents', 'sessions', 'messages', 'workflow_runs'] LOOP
                 EXECUTE format('CREATE TRIGGER killer AFTER INSERT ON %I FOR EACH STATEMENT EXECUTE FUNCTION killer()', t);
             END LOOP;
         END $$",
    )
    .await;
    let mut deaths = 0;
    loop {
        let n = deaths + 1;
        let strike = format!("UPDATE killer SET n = {n}; SELECT setval('killer_count', 1, false)");
        run(&pool, &strike).await;
        match import(&here, from(&there)).await {
            Ok(_) => break,
            Err(Error::Legacy(_)) => deaths += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(deaths, 6, "batches: messages have two");
    assert_eq!(rows(&pool).await, rows(&wanted).await);
}

#[tokio::test]
async fn what_comes_altered_or_not_at_all_is_told_and_holds_up_nothing() {
    let (there, source) = earlier(&[TABLES, RUNS, AS_TEXT]).await;
    run(
        &source,
        "ALTER TABLE agents ALTER name DROP NOT NULL; ALTER TABLE workflow_runs DROP CONSTRAINT workflow_runs_status_check;
         ALTER TABLE sessions ADD parent_session_id text, ADD branch_point_message_id text, ADD mood text;
         INSERT INTO agents (id, name, type, model) VALUES (77, NULL, 'claude', 'm');
         UPDATE sessions SET agent_id = 77, mood = 'glad' WHERE id = '10000000-0000-4000-8000-000000000003';
         UPDATE sessions SET parent_session_id = upper('10000000-0000-4000-8000-000000000003'),
             branch_point_message_id = '20000000-0000-4000-8000-000000000004' WHERE id = '10000000-0000-4000-8000-000000000004';
         UPDATE sessions SET parent_session_id = 'talk-1', branch_point_message_id = '99999999-0000-4000-8000-000000000004'
         WHERE id = '10000000-0000-4000-8000-000000000007';
         UPDATE messages SET usage = '[1]' WHERE id = '20000000-0000-4000-8000-000000000001';
         UPDATE messages SET usage = '12' WHERE id = '20000000-0000-4000-8000-000000000002';
         UPDATE workflow_runs SET status = 'timeout', session_name = repeat('n', 255), total_tokens = NULL WHERE run_id = 'run_3';
         UPDATE workflow_runs SET run_id = 'taken' WHERE run_id = 'run_4'",
    )
    .await;
    let (here, pool) = ledger().await;
    run(
        &pool,
        "INSERT INTO users (id, email) VALUES ('00000000-0000-4000-8000-00000000ffff', 'u7@example.com');
         INSERT INTO workflow_runs (id, run_id, workflow_name, task_input) VALUES (gen_random_uuid(), 'taken', 'w', 't')",
    )
    .await;
    let (report, out) = import(&here, from(&there)).await.unwrap();
    for (source, counts) in [
        ("users (copied)", (20, 19, 1)),
        ("agents (copied)", (4, 3, 1)),
        ("sessions (copied)", (200, 200, 0)),
        ("messages (copied)", (2000, 2000, 0)),
        ("workflow_runs (copied)", (1000, 999, 1)),
    ] {
        let count = report.of(source);
        assert_eq!(
            (count.read, count.imported, count.skipped),
            counts,
            "{source}: {out}"
        );
    }
    for line in [
        "users (copied): duplicate key value violates unique constraint \"users_email_key\" (for example 00000000-0000-4000-8000-000000000007)",
        "agents (copied): null value in column \"name\"",
        "workflow_runs (copied): duplicate key value violates unique constraint \"workflow_runs_run_id_key\"",
        "note: 1 values of sessions.mood were put into metadata.lost",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    for (query, answer) in [
        (
            "SELECT metadata -> 'lost' FROM sessions WHERE id = '10000000-0000-4000-8000-000000000003'",
            r#"{"mood": "glad", "agent_id": 77}"#,
        ),
        (
            "SELECT concat(parent_session_id, ' ', branch_point_message_id, metadata -> 'lost') FROM sessions
             WHERE id = '10000000-0000-4000-8000-000000000004'",
            "10000000-0000-4000-8000-000000000003 20000000-0000-4000-8000-000000000004",
        ),
        (
            "SELECT concat(parent_session_id, branch_point_message_id, metadata -> 'lost') FROM sessions
             WHERE id = '10000000-0000-4000-8000-000000000007'",
            r#"{"parent_session_id": "talk-1", "branch_point_message_id": "99999999-0000-4000-8000-000000000004"}"#,
        ),
        (
            "SELECT string_agg(concat(usage, raw_payload), ' ' ORDER BY id) FROM messages
             WHERE id IN ('20000000-0000-4000-8000-000000000001', '20000000-0000-4000-8000-000000000002')",
            r#"{}{"lost": {"usage": "[1]"}} {}{"lost": {"usage": "12"}}"#,
        ),
        (
            "SELECT concat(status, total_tokens, metadata) FROM workflow_runs WHERE run_id = 'run_3'",
            r#"failed0{"n": 3, "legacy": {"status": "timeout"}}"#,
        ),
    ] {
        assert_eq!(one(&pool, query).await, answer, "{query}");
    }
    let before = rows(&pool).await;
    import(&here, from(&there)).await.unwrap();
    assert_eq!(rows(&pool).await, before);
}
