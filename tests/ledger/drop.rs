//! `runledger migrate drop-legacy`: all of it goes, or nothing.

use runledger::ledger::legacy::ImportArgs;
use runledger::ledger::migrate::{Args, Error, drop_legacy};
use sqlx::PgPool;

use crate::database::up;
use crate::import::{earlier, import, one, run};

async fn dropped(url: &str, dry_run: bool) -> Result<String, Error> {
    let mut out = Vec::new();
    let args = Args {
        connection: runledger::ledger::connection::Connection::to(url),
        wait: 10,
        dry_run,
        ..Args::default()
    };
    drop_legacy(&args, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

/// A ledger with earlier rows, none of which is of a run that still runs.
async fn imported(test: &str) -> (String, PgPool) {
    let (url, pool) = earlier(test, 1_000).await;
    run(
        &pool,
        "UPDATE workflow_processes SET last_heartbeat = '2025-06-01' WHERE last_heartbeat > now()",
    )
    .await;
    up(&url).await;
    import(&url, ImportArgs::default()).await.unwrap();
    (url, pool)
}

const PROCESSES: &str = "to_regclass('workflow_processes')";
const FACTS: &str = "SELECT count(*) FROM sessions WHERE metadata ->> 'agent_type' = 'claude-code' AND metadata ? 'model_used'";
const OTHERS: &str = "SELECT md5(string_agg((to_jsonb(s) - 'metadata')::text || (metadata ->> 'theme'), '' ORDER BY id)) FROM sessions s";
const RUNS: &str =
    "SELECT md5(string_agg(to_jsonb(r)::text, '' ORDER BY run_id)) FROM workflow_runs r";

#[tokio::test]
async fn once_all_is_imported_the_earlier_rows_go_and_nothing_else() {
    let (url, pool) = imported("drop").await;
    let (others, runs) = (one(&pool, OTHERS).await, one(&pool, RUNS).await);
    let dry = dropped(&url, true).await.unwrap();
    assert!(dry.contains("would drop table workflow_processes"), "{dry}");
    assert_eq!(one(&pool, PROCESSES).await, "workflow_processes");
    assert_ne!(one(&pool, FACTS).await, "0");
    let out = dropped(&url, false).await.unwrap();
    assert!(out.ends_with("drop table workflow_processes\n"), "{out}");
    assert_eq!(one(&pool, PROCESSES).await, "");
    assert_eq!(one(&pool, FACTS).await, "0");
    assert_eq!(one(&pool, OTHERS).await, others);
    assert_eq!(one(&pool, RUNS).await, runs);
    assert_eq!(
        one(&pool, "SELECT metadata ->> 'run_id' FROM sessions WHERE metadata ->> 'run_id' = 'not-ours' LIMIT 1").await,
        "not-ours"
    );
    let again = dropped(&url, false).await.unwrap();
    assert!(again.starts_with("nothing to remove"), "{again}");
}

#[tokio::test]
async fn what_is_not_in_the_ledger_as_it_is_now_keeps_everything() {
    let (url, pool) = imported("keep").await;
    let mend = "UPDATE sessions SET metadata = metadata || '{\"final_result\": \"later\"}'
                WHERE id = (SELECT id FROM sessions WHERE metadata ? 'model_used' ORDER BY id LIMIT 1)";
    for (change, sentence) in [
        (
            "INSERT INTO workflow_processes (run_id, status) VALUES ('late', 'completed')",
            "1 rows of workflow_processes were not imported, or have changed since (run import-legacy): late",
        ),
        (
            "UPDATE workflow_processes SET pid = -1 WHERE run_id = 'proc-1'",
            "1 rows of workflow_processes were not imported, or have changed since (run import-legacy): proc-1",
        ),
        (mend, "1 sessions hold facts of runs that were not imported"),
    ] {
        run(&pool, change).await;
        let error = dropped(&url, false).await.unwrap_err().to_string();
        assert!(
            error.starts_with("nothing was removed") && error.contains(sentence),
            "{error}"
        );
        assert_eq!(one(&pool, PROCESSES).await, "workflow_processes");
        import(&url, ImportArgs::default()).await.unwrap();
    }
    run(
        &pool,
        "INSERT INTO workflow_processes (run_id, status) VALUES ('alive', 'running')",
    )
    .await;
    import(&url, ImportArgs::default()).await.unwrap();
    let error = dropped(&url, false).await.unwrap_err().to_string();
    assert!(
        error.contains("1 runs of the earlier system were still running at the last import"),
        "{error}"
    );
    run(
        &pool,
        "UPDATE workflow_processes SET status = 'completed' WHERE run_id = 'alive'",
    )
    .await;
    import(&url, ImportArgs::default()).await.unwrap();
    dropped(&url, false).await.unwrap();
}

/// What uses the earlier rows, and what it is called in the list.
const USERS: &[(&str, &str)] = &[
    ("CREATE VIEW busy AS SELECT run_id FROM workflow_processes WHERE status = 'running'", "view busy"),
    ("CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM workflow_processes", "view counts"),
    (
        "CREATE TABLE notes (run_id varchar(255) REFERENCES workflow_processes (run_id))",
        "constraint notes_run_id_fkey on table notes",
    ),
    (
        "CREATE FUNCTION stale() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM workflow_processes'",
        "function stale()",
    ),
    (
        "CREATE FUNCTION ended_one() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM workflow_processes; END",
        "function ended_one()",
    ),
    (
        "CREATE FUNCTION pid_of(p workflow_processes) RETURNS int LANGUAGE sql AS 'SELECT $1.pid'",
        "function pid_of(workflow_processes)",
    ),
    ("CREATE TABLE kept (p workflow_processes[])", "column p of table kept"),
    ("CREATE POLICY seen ON users USING (EXISTS (SELECT FROM workflow_processes))", "policy seen on table users"),
    ("CREATE VIEW ended AS SELECT id, metadata ->> 'run_status' AS status FROM sessions", "view ended"),
    (
        "CREATE VIEW whole AS SELECT id, metadata AS m FROM sessions;
         CREATE VIEW on_whole AS SELECT id, m #>> '{request,message}' AS task FROM whole",
        "view on_whole",
    ),
    (
        "CREATE VIEW by_path AS SELECT id FROM sessions WHERE metadata @? '$.total_turns ? (@ > 3)'",
        "view by_path",
    ),
    (
        "CREATE VIEW apart AS SELECT x.* FROM sessions, jsonb_to_record(metadata) AS x (run_status text)",
        "view apart",
    ),
    (
        "CREATE FUNCTION cost(uuid) RETURNS text LANGUAGE plpgsql AS
             'BEGIN RETURN (SELECT metadata ->> ''total_cost_usd'' FROM sessions WHERE id = $1); END'",
        "function cost(uuid)",
    ),
    (
        "CREATE FUNCTION tokens(uuid) RETURNS text LANGUAGE sql
             BEGIN ATOMIC SELECT metadata ->> 'total_tokens' FROM sessions WHERE id = $1; END",
        "function tokens(uuid)",
    ),
    (
        "CREATE FUNCTION hears() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM NEW.metadata ->> ''success''; RETURN NEW; END';
         CREATE TRIGGER hears AFTER DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION hears()",
        "function hears()",
    ),
    (
        "CREATE FUNCTION silent() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER heard AFTER UPDATE ON sessions FOR EACH ROW WHEN (NEW.metadata ->> 'error' <> '')
             EXECUTE FUNCTION silent()",
        "trigger heard on sessions",
    ),
    (
        "CREATE POLICY ours ON sessions USING (metadata ->> 'workflow_name' = 'builder')",
        "policy ours on sessions",
    ),
    (
        "ALTER TABLE sessions ADD CONSTRAINT turned CHECK (metadata ->> 'total_turns' <> 'x') NOT VALID",
        "constraint turned of sessions",
    ),
    (
        "ALTER TABLE sessions ADD model text GENERATED ALWAYS AS (metadata ->> 'model_used') STORED",
        "column model of sessions",
    ),
    (
        "CREATE STATISTICS guessed ON (metadata ->> 'git_branch'), platform FROM sessions",
        "statistics guessed",
    ),
    ("CREATE INDEX by_status ON sessions ((metadata ->> 'run_status'))", "index by_status"),
];

#[tokio::test]
async fn what_uses_the_earlier_rows_is_listed_and_keeps_everything() {
    let (url, pool) = imported("users").await;
    run(
        &pool,
        "CREATE VIEW themes AS SELECT id, metadata ->> 'theme' AS theme FROM sessions",
    )
    .await;
    let (of_processes, of_facts) = USERS.split_at(8);
    for users in [of_processes, of_facts] {
        for (script, _) in users {
            run(&pool, script).await;
        }
        let error = dropped(&url, false).await.unwrap_err().to_string();
        for (_, user) in users {
            assert!(error.contains(user), "{user}: {error}");
        }
        assert!(
            !error.contains("themes") && !error.contains("runledger_"),
            "{error}"
        );
        assert_eq!(one(&pool, PROCESSES).await, "workflow_processes");
        assert_ne!(one(&pool, FACTS).await, "0");
        run(
            &pool,
            "DROP VIEW IF EXISTS busy, ended, whole, on_whole, by_path, apart; DROP MATERIALIZED VIEW IF EXISTS counts;
             DROP TABLE IF EXISTS notes, kept; DROP POLICY IF EXISTS seen ON users; DROP POLICY IF EXISTS ours ON sessions;
             DROP FUNCTION IF EXISTS stale, ended_one, pid_of, cost, tokens;
             DROP FUNCTION IF EXISTS hears, silent CASCADE; ALTER TABLE sessions DROP CONSTRAINT IF EXISTS turned,
             DROP COLUMN IF EXISTS model; DROP STATISTICS IF EXISTS guessed; DROP INDEX IF EXISTS by_status",
        )
        .await;
    }
    dropped(&url, false).await.unwrap();
}

#[tokio::test]
async fn blanks_around_a_runs_id_are_no_part_of_it_and_keep_nothing() {
    let (url, pool) = imported("blanks").await;
    run(
        &pool,
        "INSERT INTO workflow_processes (run_id, status, workflow_name) VALUES (E'\\tblank-1 ', 'completed', 'builder');
         INSERT INTO sessions (id, metadata) VALUES
             ('50000000-0000-4000-8000-000000000001', '{\"agent_type\": \"claude-code\", \"run_id\": \" blank-1\\n\"}'),
             ('50000000-0000-4000-8000-000000000002', '{\"agent_type\": \"claude-code\", \"run_id\": \"  \", \"success\": true}'),
             ('50000000-0000-4000-8000-000000000003', '{\"agent_type\": \"claude-code\", \"run_id\": {\"a\": 1}, \"success\": true}')",
    )
    .await;
    import(&url, ImportArgs::default()).await.unwrap();
    assert_eq!(
        one(&pool, "SELECT string_agg(concat_ws(' ', run_id, workflow_name), ', ' ORDER BY run_id) FROM workflow_runs
                    WHERE run_id LIKE '%blank%' OR run_id LIKE 'session_5%'").await,
        "blank-1 builder, session_50000000-0000-4000-8000-000000000002 unknown, \
         session_50000000-0000-4000-8000-000000000003 unknown"
    );
    dropped(&url, false).await.unwrap();
}
