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

#[tokio::test]
async fn what_uses_the_earlier_rows_is_listed_and_keeps_everything() {
    let (url, pool) = imported("users").await;
    run(
        &pool,
        "CREATE VIEW busy AS SELECT run_id FROM workflow_processes WHERE status = 'running';
         CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM workflow_processes;
         CREATE TABLE notes (run_id varchar(255) REFERENCES workflow_processes (run_id));
         CREATE FUNCTION stale() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM workflow_processes';
         CREATE VIEW ended AS SELECT id, metadata ->> 'run_status' AS status FROM sessions;
         CREATE VIEW themes AS SELECT id, metadata ->> 'theme' AS theme FROM sessions;
         CREATE FUNCTION cost(uuid) RETURNS text LANGUAGE plpgsql AS
             'BEGIN RETURN (SELECT metadata ->> ''total_cost_usd'' FROM sessions WHERE id = $1); END';
         CREATE INDEX by_status ON sessions ((metadata ->> 'run_status'))",
    )
    .await;
    let error = dropped(&url, false).await.unwrap_err().to_string();
    for user in [
        "function stale()",
        "view counts",
        "view busy",
        "foreign key notes_run_id_fkey of notes",
        "function cost(uuid)",
        "index by_status",
        "view ended",
    ] {
        assert!(error.contains(user), "{user}: {error}");
    }
    assert!(
        !error.contains("themes") && !error.contains("runledger_"),
        "{error}"
    );
    assert_eq!(one(&pool, PROCESSES).await, "workflow_processes");
    run(
        &pool,
        "DROP VIEW busy, ended; DROP MATERIALIZED VIEW counts; DROP TABLE notes; DROP FUNCTION stale, cost; DROP INDEX by_status",
    )
    .await;
    dropped(&url, false).await.unwrap();
}
