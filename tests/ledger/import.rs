//! `runledger migrate import-legacy`, on databases of the earlier system that chance has made.

use runledger::ledger::legacy::{ImportArgs, LOGS, PROCESSES, Report, SESSIONS};
use runledger::ledger::migrate::{Args, Error, import_legacy};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::database::{empty, up};
use crate::random::Random;

const TABLES: &str = include_str!("earlier.sql");
const ROWS: &str = include_str!("legacy_rows.sql");
const EXPECTED: &str = include_str!("legacy_expected.sql");

/// As some installations hold them.
pub(crate) const AS_TEXT: &str = "
    DO $$ DECLARE c record; BEGIN
        ALTER TABLE messages DROP CONSTRAINT messages_usage_check;
        DROP INDEX IF EXISTS idx_workflow_runs_metadata;
        FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint WHERE contype = 'f' LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname);
        END LOOP;
        FOR c IN SELECT table_name AS t, column_name AS n FROM information_schema.columns
                 WHERE table_schema = 'public' AND data_type IN ('uuid', 'jsonb', 'timestamp with time zone', 'boolean') LOOP
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I DROP DEFAULT, ALTER COLUMN %2$I TYPE text USING %2$I::text', c.t, c.n);
        END LOOP;
    END $$;";

pub(crate) async fn run(pool: &PgPool, sql: &str) {
    pool.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await
        .unwrap();
}

pub(crate) async fn one(pool: &PgPool, sql: &str) -> String {
    sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(format!("SELECT ({sql})::text")))
        .fetch_one(pool)
        .await
        .unwrap()
        .unwrap_or_default()
}

/// A database with so many rows of the earlier system.
pub(crate) async fn earlier(test: &str, rows: u32) -> (String, PgPool) {
    let seed = Random::seeded(test).below(1_000_000);
    let url = empty().await;
    let pool = PgPool::connect(&url).await.unwrap();
    run(&pool, TABLES).await;
    run(
        &pool,
        &format!(
            "CREATE FUNCTION seed() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT {seed}::bigint';
             CREATE FUNCTION rows() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT {rows}'; {ROWS}"
        ),
    )
    .await;
    (url, pool)
}

pub(crate) async fn import(url: &str, args: ImportArgs) -> Result<(Report, String), Error> {
    let mut out = Vec::new();
    let migrate = Args {
        connection: runledger::ledger::connection::Connection::to(url),
        wait: 10,
        ..Args::default()
    };
    let report = import_legacy(&migrate, &args, &mut out).await?;
    Ok((report, String::from_utf8(out).unwrap()))
}

/// The earlier rows in a schema of their own, and how the earlier system spelled times.
const OLD: &str = "
    CREATE SCHEMA old;
    CREATE VIEW old.sessions AS SELECT * FROM public.sessions;
    CREATE VIEW old.workflow_processes AS SELECT * FROM public.workflow_processes;
    CREATE FUNCTION old.time_of(value jsonb) RETURNS timestamptz LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN value IS NULL THEN NULL
                    WHEN jsonb_typeof(value) = 'number' THEN to_timestamp((value #>> '{}')::bigint)
                    WHEN value #>> '{}' ~ '(Z|\\+00(:00)?)$' THEN (value #>> '{}')::timestamptz
                    ELSE (value #>> '{}')::timestamp AT TIME ZONE 'UTC' END $$;
    ANALYZE";

/// Runs but for what says how they were spelled there, and when they were written.
const SAME: &str = "SELECT md5(string_agg((to_jsonb(r) - 'updated_at' #- '{metadata,legacy,read}'
                        #- '{metadata,legacy,last_heartbeat}')::text, '' ORDER BY run_id)) FROM workflow_runs r
                    WHERE run_id <> 'run-nul'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_rows_become_the_same_runs_as_the_table_says_native_and_as_text() {
    let (native, pool) = earlier("import", 100_000).await;
    pool.close().await;
    let (text, from) = earlier_copy(&native).await;
    let pool = PgPool::connect(&native).await.unwrap();
    let other = tokio::spawn(as_text(text, from));
    up(&native).await;
    let start = std::time::Instant::now();
    let (report, out) = import(&native, ImportArgs::default()).await.unwrap();
    eprintln!("{out}imported in {:?}", start.elapsed());
    run(&pool, OLD).await;
    let mut alone = pool.acquire().await.unwrap();
    // Nobody knows how many rows its parts have: joined row by row it would take hours.
    alone.execute("SET enable_nestloop = off").await.unwrap();
    let wrong: Vec<String> = sqlx::query_scalar(EXPECTED)
        .fetch_all(&mut *alone)
        .await
        .unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (sessions, processes) = (report.of(SESSIONS), report.of(PROCESSES));
    assert_eq!(processes.read, 50_000);
    assert_eq!(processes.read, processes.imported + processes.merged);
    assert_eq!(sessions.skipped, 0);
    assert_eq!(
        one(&pool, "SELECT count(*) FROM workflow_runs").await,
        (sessions.imported + processes.imported).to_string()
    );
    let other = other.await.unwrap();
    assert_eq!(one(&pool, SAME).await, one(&other, SAME).await);
    eprintln!("both in {:?}", start.elapsed());
}

/// The rows as text in another database, imported.
async fn as_text(from: String, source: PgPool) -> PgPool {
    run(&source, AS_TEXT).await;
    let odd = "INSERT INTO sessions (id, name, metadata, created_at, updated_at) VALUES
        ('50000000-0000-4000-8000-000000000001', 'nul', '{\"agent_type\": \"claude-code\", \"run_id\": \"run-nul\",
           \"final_result\": \"a\\u0000b\", \"run_status\": \"completed\"}', 'yesterday', '2025-01-01T00:00:00'),
        ('50000000-0000-4000-8000-000000000002', 'broken', '{''agent_type'': ''claude-code''}', '', '')";
    run(&source, odd).await;
    let url = empty().await;
    up(&url).await;
    let pool = PgPool::connect(&url).await.unwrap();
    let start = std::time::Instant::now();
    let (report, out) = import(&url, there(&from)).await.unwrap();
    eprintln!("{out}copied and imported in {:?}", start.elapsed());
    assert_eq!(report.of(SESSIONS).skipped, 1, "{out}");
    assert_eq!(report.of(PROCESSES).read, 50_000);
    assert!(out.contains("metadata is not a JSON object (for example session:50000000-0000-4000-8000-000000000002)"), "{out}");
    assert_eq!(
        one(&pool, "SELECT format('%s %s %s %s', result, status, created_at > now() - interval '1 hour', (metadata -> 'legacy') - 'read')
                    FROM workflow_runs WHERE run_id = 'run-nul'").await,
        "a\u{fffd}b completed t {\"altered\": true, \"agent_type\": \"claude-code\", \"unreadable\": {\"created_at\": \"yesterday\"}}"
    );
    copied(&source, &pool).await;
    pool
}

fn there(from: &str) -> ImportArgs {
    ImportArgs {
        from: Some(from.to_owned()),
        ..ImportArgs::default()
    }
}

/// Everything but when it was written.
const ALL: &str = "SELECT md5(string_agg((to_jsonb(r) - 'updated_at')::text, '' ORDER BY run_id)) FROM workflow_runs r";

#[tokio::test]
async fn an_import_that_is_repeated_changes_nothing_and_says_so() {
    let (url, pool) = earlier("repeat", 2_000).await;
    up(&url).await;
    let (first, _) = import(&url, ImportArgs::default()).await.unwrap();
    let before = one(&pool, ALL).await;
    let (again, out) = import(&url, ImportArgs::default()).await.unwrap();
    assert_eq!(one(&pool, ALL).await, before);
    for source in [SESSIONS, PROCESSES] {
        let (first, again) = (first.of(source), again.of(source));
        assert_eq!((again.imported, again.skipped), (0, 0), "{out}");
        assert_eq!(again.read, first.read);
    }
}

#[tokio::test]
async fn an_import_that_dies_after_any_batch_goes_on_where_it_was() {
    let (url, pool) = earlier("death", 3_000).await;
    up(&url).await;
    pool.close().await;
    let (whole, wanted) = (earlier_copy(&url).await, ALL);
    let pool = PgPool::connect(&url).await.unwrap();
    import(&whole.0, ImportArgs::default()).await.unwrap();
    run(
        &pool,
        "CREATE SEQUENCE killer_count; CREATE TABLE killer (n bigint); INSERT INTO killer VALUES (0);
         CREATE FUNCTION killer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
             IF nextval('killer_count') = (SELECT n FROM killer) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER killer AFTER INSERT ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION killer()",
    )
    .await;
    let mut deaths = 0;
    loop {
        // Within the second batch that is written: it is gone, the first stays.
        run(
            &pool,
            "UPDATE killer SET n = 2; SELECT setval('killer_count', 1, false)",
        )
        .await;
        match import(&url, ImportArgs::default()).await {
            Ok(_) => break,
            Err(Error::Legacy(_)) => deaths += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(deaths > 1, "{deaths}");
    assert_eq!(one(&pool, wanted).await, one(&whole.1, wanted).await);
}

/// A database like that one.
async fn earlier_copy(url: &str) -> (String, PgPool) {
    let name = url.rsplit_once('/').unwrap().1;
    let copy = crate::database::copy_of(name).await;
    let pool = PgPool::connect(&copy).await.unwrap();
    (copy, pool)
}

/// Users, agents, sessions and messages are here as they are there.
async fn copied(from: &PgPool, to: &PgPool) {
    for (query, also) in [
        ("SELECT md5(string_agg(concat_ws('|', id::text, email, updated_at::timestamptz), ',' ORDER BY id::text)) FROM users", ""),
        ("SELECT md5(string_agg(concat_ws('|', name, model), ',' ORDER BY name)) FROM agents", ""),
        (
            "SELECT md5(string_agg(concat_ws('|', s.id::text, user_id::text, a.name, s.name, s.updated_at::timestamptz, message_count),
                 ',' ORDER BY s.id::text)) FROM sessions s LEFT JOIN agents a ON a.id = s.agent_id",
            " WHERE s.id::text NOT LIKE '50%'",
        ),
        (
            "SELECT md5(string_agg(concat_ws('|', m.id::text, session_id::text, role, text_content, tool_calls::jsonb,
                 m.updated_at::timestamptz), ',' ORDER BY m.id::text)) FROM messages m",
            "",
        ),
    ] {
        let query = format!("{query}{also}");
        assert_eq!(one(to, &query).await, one(from, &query).await, "{query}");
    }
    assert_eq!(
        one(
            to,
            "SELECT metadata -> 'lost' ->> 'created_at' FROM sessions WHERE name = 'nul'"
        )
        .await,
        "yesterday"
    );
}

#[tokio::test]
async fn log_files_add_what_tables_lack_and_make_runs_of_their_own() {
    let url = empty().await;
    let pool = PgPool::connect(&url).await.unwrap();
    run(&pool, TABLES).await;
    run(&pool, "CREATE TABLE workflow_processes (run_id varchar(255) PRIMARY KEY, status text, workflow_name text,
                    started_at timestamptz, last_heartbeat timestamptz, updated_at timestamptz, host text, spare text);
                INSERT INTO workflow_processes VALUES ('p1', 'running', 'builder', '2025-06-01 00:00Z', '2025-06-01 00:01Z', '2025-06-01 00:01Z', 'node-7', NULL);
                UPDATE sessions SET metadata = '{\"agent_type\": \"claude-code\", \"run_id\": \"s1\", \"workflow_name\": \"surgeon\",
                    \"claude_session_id\": \"c-1\", \"run_status\": \"completed\"}' WHERE name = 'talk 3' AND id::text LIKE '%3'").await;
    up(&url).await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "run_p1.log",
        "{\"timestamp\": \"2025-06-01T00:00:01\", \"run_id\": \"p1\", \"event_type\": \"workflow_started\", \"data\": {\"request\": {\"message\": \"From the log\"}}}\n\
         not json\n\n\
         {\"timestamp\": \"2025-06-01T00:00:02\", \"run_id\": \"p1\", \"event_type\": \"tool_failed\", \"data\": {\"error\": \"of a tool\"}}\n\
         {\"timestamp\": \"2025-06-01T00:05:00\", \"run_id\": \"p1\", \"event_type\": \"workflow_completed\", \"data\": {\"input_tokens\": 12}}\n",
    );
    write(
        "surgeon_c-1.log",
        "{\"timestamp\": \"2025-06-02T00:00:00Z\", \"run_id\": \"s1\", \"event_type\": \"run_result\", \"data\": {\"total_cost_usd\": 0.25}}\n",
    );
    write(
        "run_only-log.log",
        "{\"timestamp\": \"2025-06-03T00:00:00Z\", \"event_type\": \"run_killed\", \"data\": {}}\n",
    );
    write("reviewer_c-9.log", "nothing\n");
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("run_link.log")).unwrap();
    let no_text = std::os::unix::ffi::OsStrExt::from_bytes(b"run_\xff.log");
    std::fs::write(dir.path().join::<&std::ffi::OsStr>(no_text), "").unwrap();
    let args = ImportArgs {
        logs: Some(dir.path().to_owned()),
        ..ImportArgs::default()
    };
    let (report, out) = import(&url, args.clone()).await.unwrap();
    let logs = report.of(LOGS);
    assert_eq!(
        (logs.read, logs.imported, logs.merged, logs.skipped),
        (6, 1, 2, 3),
        "{out}"
    );
    assert!(
        out.contains("its name is not UTF-8 (for example run_\u{fffd}.log)"),
        "{out}"
    );
    assert_eq!(
        one(
            &pool,
            "SELECT metadata #> '{legacy,process}' FROM workflow_runs WHERE run_id = 'p1'"
        )
        .await,
        r#"{"host": "node-7"}"#,
        "a column of somebody's own is kept"
    );
    assert!(
        out.contains("note: 2 lines of log files were no entries"),
        "{out}"
    );
    let told = one(
        &pool,
        "SELECT string_agg(format('%s %s %s %s %s %s', run_id, status, task_input, input_tokens, cost_estimate, duration_seconds), '; ' ORDER BY run_id)
         FROM workflow_runs",
    )
    .await;
    assert_eq!(
        told,
        "only-log killed (the task is not known yet) 0  0; p1 completed From the log 12  300; s1 completed (the task is not known yet) 0 0.250000 "
    );
    let before = one(&pool, ALL).await;
    let (again, _) = import(&url, args).await.unwrap();
    assert_eq!(again.of(LOGS).imported + again.of(LOGS).merged, 0);
    assert_eq!(one(&pool, ALL).await, before);
}

#[tokio::test]
async fn what_is_missing_is_told_before_anything_is_read() {
    let url = empty().await;
    let behind = import(&url, ImportArgs::default()).await.unwrap_err();
    assert!(matches!(behind, Error::Behind), "{behind}");
    up(&url).await;
    let args = ImportArgs {
        logs: Some("/nowhere/at/all".into()),
        ..ImportArgs::default()
    };
    let error = import(&url, args).await.unwrap_err();
    assert_eq!(error.to_string(), "folder /nowhere/at/all can't be listed");
    let args = ImportArgs {
        from: Some("postgres://u:hunter2@h".to_owned()),
        ..ImportArgs::default()
    };
    let error = import(&url, args).await.unwrap_err().to_string();
    assert!(
        error.contains("it names no database") && !error.contains("hunter2"),
        "{error}"
    );
}
