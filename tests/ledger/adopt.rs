//! `runledger migrate` on databases of the earlier system: its tables are joined, its readers and
//! writers go on.

use runledger::ledger::migrate::{Args, Error, migrate};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::database::{self, empty};

const TABLES: &str = include_str!("earlier.sql");
const RUNS: &str = include_str!("earlier_runs.sql");

async fn told(url: &str, dry_run: bool) -> Result<String, Error> {
    let mut out = Vec::new();
    let args = Args {
        connection: runledger::ledger::connection::Connection::to(url),
        wait: 30,
        dry_run,
        ..Args::default()
    };
    migrate(&args, &mut out)
        .await
        .map(|()| String::from_utf8(out).unwrap())
}

/// A database with the scripts run on it.
async fn earlier(scripts: &[&str]) -> (String, PgPool) {
    let url = empty().await;
    let pool = PgPool::connect(&url).await.unwrap();
    for script in scripts {
        run(&pool, script).await;
    }
    (url, pool)
}

async fn run(pool: &PgPool, sql: &str) {
    pool.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await
        .unwrap();
}

async fn lines(pool: &PgPool, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_all(pool)
        .await
        .unwrap()
}

/// Columns, indexes, constraints and triggers of the shared tables, by what they say.
async fn shape(pool: &PgPool) -> Vec<String> {
    lines(
        pool,
        "WITH t AS (SELECT oid, relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
                    AND relname IN ('users', 'agents', 'sessions', 'messages', 'workflow_runs'))
         SELECT format('%s.%s %s%s', relname, attname, CASE WHEN atttypid IN ('text'::regtype, 'varchar'::regtype)
                       THEN 'text' ELSE format_type(atttypid, atttypmod) END, CASE WHEN attnotnull THEN ' NOT NULL' END)
         FROM t JOIN pg_attribute a ON attrelid = t.oid AND attnum > 0 AND NOT attisdropped
         UNION ALL
         SELECT format('%s %s valid=%s', relname, replace(pg_get_indexdef(indexrelid), 'public.', ''), indisvalid)
         FROM t JOIN pg_index ON indrelid = t.oid
         UNION ALL
         SELECT format('%s %s', relname, pg_get_constraintdef(k.oid)) FROM t JOIN pg_constraint k ON conrelid = t.oid
         UNION ALL
         SELECT format('%s %s', relname, tgname) FROM t JOIN pg_trigger g ON tgrelid = t.oid
         WHERE NOT tgisinternal AND tgname NOT LIKE '%updated_at'",
    )
    .await
}

/// What the earlier system asks, and says, in its own words; run by a role that owns nothing.
const READS: &[&str] = &[
    "SELECT to_jsonb(u)::text FROM (SELECT id, email, phone_number, user_data, created_at, updated_at FROM users) u",
    "SELECT to_jsonb(a)::text FROM (SELECT id, name, type, model, description, version, config, active, run_id, created_at
         FROM agents) a",
    "SELECT to_jsonb(s)::text FROM (SELECT id, user_id, agent_id, agent_name, name, platform, metadata, created_at,
         updated_at, run_finished_at, message_count FROM sessions) s",
    "SELECT to_jsonb(m)::text FROM (SELECT id, session_id, user_id, agent_id, role, text_content, media_url, mime_type,
         message_type, raw_payload, tool_calls, tool_outputs, context, system_prompt, user_feedback, flagged,
         channel_payload, usage, updated_at FROM messages) m",
    "SELECT id::text FROM sessions WHERE name = 'talk 3' AND user_id = '00000000-0000-4000-8000-000000000002'",
    "SELECT count(*)::text FROM messages WHERE session_id = '10000000-0000-4000-8000-000000000003'",
];
const RUN_READS: &[&str] = &[
    "SELECT to_jsonb(r)::text FROM (SELECT id, run_id, workflow_name, agent_type, ai_model, task_input, session_name,
         status, result, error_message, completed_at, duration_seconds, workspace_path, cost_estimate,
         input_tokens, total_tokens, updated_at FROM workflow_runs) r",
    "SELECT run_id FROM workflow_runs WHERE session_id = '10000000-0000-4000-8000-000000000006' ORDER BY created_at DESC",
    "SELECT run_id FROM workflow_runs WHERE user_id = '00000000-0000-4000-8000-000000000003'",
    "SELECT run_id FROM workflow_runs WHERE status = 'killed' AND run_id LIKE 'run_%'",
    "SELECT sum(total_tokens)::text FROM workflow_runs WHERE metadata ? 'n'",
];
/// The columns that came later.
const BRANCHES: &str = "
    ALTER TABLE sessions ADD parent_session_id uuid REFERENCES sessions (id) ON DELETE CASCADE,
        ADD branch_point_message_id uuid REFERENCES messages (id) ON DELETE SET NULL,
        ADD branch_type text, ADD is_main_branch boolean DEFAULT true;
    UPDATE sessions SET parent_session_id = '10000000-0000-4000-8000-000000000001', branch_type = 'retry', is_main_branch = false,
        branch_point_message_id = '20000000-0000-4000-8000-000000000014' WHERE name = 'talk 4'";
const BRANCH_READS: &[&str] = &[
    "SELECT to_jsonb(s)::text FROM (SELECT id, parent_session_id, branch_point_message_id, branch_type, is_main_branch
         FROM sessions) s",
    "WITH RECURSIVE below AS (
         SELECT id FROM sessions WHERE id = '10000000-0000-4000-8000-000000000001'
         UNION SELECT s.id FROM sessions s JOIN below b ON s.parent_session_id = b.id)
     SELECT id::text FROM below",
];
const BRANCH_WRITES: &[&str] = &[
    "INSERT INTO sessions (id, name, parent_session_id, branch_point_message_id, branch_type, is_main_branch)
     VALUES (gen_random_uuid(), 'talk 4', '10000000-0000-4000-8000-000000000003', '20000000-0000-4000-8000-000000000014',
         'retry', false)",
    "UPDATE sessions SET is_main_branch = NOT is_main_branch WHERE id = '10000000-0000-4000-8000-000000000004'",
];
/// `{n}` is 1 before migrate, and 2 after it.
const WRITES: &[&str] = &[
    "INSERT INTO users (id, email) VALUES (gen_random_uuid(), gen_random_uuid()::text)",
    "INSERT INTO agents (name, type, model) VALUES (gen_random_uuid()::text, 'claude', 'm')",
    "UPDATE agents SET run_id = run_id + 1 WHERE name = 'agent1'",
    "INSERT INTO sessions (id, user_id, agent_id, agent_name, name, platform, metadata, message_count)
     VALUES (gen_random_uuid(), NULL, 1, 'agent1', 'talk 3', 'claude-code', NULL, NULL)",
    "UPDATE sessions SET metadata = '{\"run_status\": \"completed\"}', run_finished_at = now()
     WHERE id = '10000000-0000-4000-8000-000000000007'",
    "INSERT INTO messages (id, session_id, role, text_content, message_type, raw_payload, tool_calls, usage)
     VALUES (gen_random_uuid(), '10000000-0000-4000-8000-000000000007', 'user', 'hi', 'text', '{}', NULL, '{}')",
    "DELETE FROM messages WHERE id = '20000000-0000-4000-8000-00000000000{n}'",
];
const RUN_WRITES: &[&str] = &[
    "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, session_id, user_id, status, total_tokens,
         input_tokens, metadata)
     VALUES (gen_random_uuid(), gen_random_uuid()::text, 'builder', 'task', '10000000-0000-4000-8000-000000000007',
         NULL, 'completed', 77, 5, NULL)",
    "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, session_id, user_id, created_at)
     VALUES (gen_random_uuid(), gen_random_uuid()::text, 'builder', 'task', '99999999-0000-4000-8000-000000000007',
         '99999999-0000-4000-8000-000000000008', NULL)",
    "UPDATE workflow_runs SET status = 'completed', completed_at = now(), cost_estimate = 9, total_tokens = 100000
     WHERE run_id = 'run_{n}5'",
];

async fn as_stranger(url: &str) -> PgPool {
    let owner = PgPool::connect(url).await.unwrap();
    run(
        &owner,
        "DO $$ BEGIN CREATE ROLE earlier LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO earlier;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO earlier",
    )
    .await;
    PgPool::connect(&url.replace("//runledger@", "//earlier@"))
        .await
        .unwrap()
}

async fn answers(pool: &PgPool, queries: &[&str]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for query in queries {
        let mut answer: Vec<Option<String>> =
            sqlx::query_scalar(AssertSqlSafe((*query).to_owned()))
                .fetch_all(pool)
                .await
                .unwrap_or_else(|e| panic!("{query}: {e}"));
        if !query.contains("ORDER BY") {
            answer.sort();
        }
        all.push(answer.into_iter().map(Option::unwrap_or_default).collect());
    }
    all
}

fn same(after: &[Vec<String>], before: &[Vec<String>]) {
    for (after, before) in after.iter().zip(before) {
        crate::database::assert_same(&before.join("\n"), &after.join("\n"), "before and after");
    }
}

async fn write(pool: &PgPool, n: u32, statements: &[&str]) {
    for statement in statements {
        let done = pool
            .execute(AssertSqlSafe(statement.replace("{n}", &n.to_string())))
            .await
            .unwrap_or_else(|e| panic!("{statement}: {e}"));
        assert_eq!(done.rows_affected(), 1, "{statement}");
    }
}

#[tokio::test]
async fn readers_and_writers_of_the_earlier_tables_go_on_and_no_row_changes() {
    for (scripts, reads, writes) in [
        (&[TABLES][..], READS.to_vec(), WRITES.to_vec()),
        (
            &[TABLES, BRANCHES],
            [READS, BRANCH_READS].concat(),
            [WRITES, BRANCH_WRITES].concat(),
        ),
    ] {
        let (url, _pool) = earlier(scripts).await;
        let earlier = as_stranger(&url).await;
        write(&earlier, 1, &writes).await;
        let before = answers(&earlier, &reads).await;
        told(&url, false).await.unwrap();
        same(&answers(&earlier, &reads).await, &before);
        write(&earlier, 2, &writes).await;
        assert_eq!(
            told(&url, false).await.unwrap(),
            "nothing to apply: the ledger is up to date\n"
        );
    }
}

#[tokio::test]
async fn readers_and_writers_of_the_earlier_runs_go_on_and_what_cannot_be_typed_is_kept() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    let earlier = as_stranger(&url).await;
    write(&earlier, 1, RUN_WRITES).await;
    let before = answers(&earlier, RUN_READS).await;
    let told_first = told(&url, false).await.unwrap();
    assert!(told_first.contains("applied 0001 ledger"), "{told_first}");
    let covered: Vec<_> = told_first
        .lines()
        .filter(|line| line.starts_with("note: index "))
        .collect();
    assert_eq!(
        covered,
        [
            "note: index idx_workflow_runs_session_id of workflow_runs finds nothing that workflow_runs_session_id \
          doesn't find, and costs each write: DROP INDEX CONCURRENTLY idx_workflow_runs_session_id once nobody \
          needs it by its name",
            "note: index idx_workflow_runs_workspace_id of workflow_runs finds nothing that workflow_runs_workspace_id \
          doesn't find, and costs each write: DROP INDEX CONCURRENTLY idx_workflow_runs_workspace_id once nobody \
          needs it by its name"
        ],
        "and neither those of other columns, nor partial ones, nor of another kind"
    );
    assert!(
        told_first.contains(
            "note: session_id of 167 rows of workflow_runs is no UUID (\"talk-1\" is one)"
        ),
        "{told_first}"
    );
    same(&answers(&earlier, RUN_READS).await, &before);
    write(&earlier, 2, RUN_WRITES).await;
    let odd = lines(
        &pool,
        "SELECT format('%s %s %s %s', run_id, session_id, user_id, metadata) FROM workflow_runs
         WHERE run_id IN ('run_1', 'run_2', 'run_7', 'run_9') ORDER BY run_id",
    )
    .await;
    assert_eq!(
        odd,
        [
            r#"run_1   {"n": 1, "legacy": {"user_id": "somebody", "session_id": "talk-1"}}"#,
            r#"run_2  00000000-0000-4000-8000-000000000003 {"n": 2, "legacy": {"session_id": "99999999-0000-4000-8000-000000000001"}}"#,
            r#"run_7  00000000-0000-4000-8000-000000000008 {"legacy": {"session_id": "talk-7"}}"#,
            r#"run_9 10000000-0000-4000-8000-00000000000a  {"n": 9, "legacy": {"user_id": "somebody"}}"#,
        ]
    );
    assert_eq!(
        told(&url, false).await.unwrap(),
        "nothing to apply: the ledger is up to date\n"
    );
}

#[tokio::test]
async fn a_joined_database_has_all_that_a_new_one_has() {
    let fresh = database::migrated().await;
    let wanted = shape(&fresh.pool).await;
    let (url, pool) = earlier(&[TABLES, BRANCHES, RUNS]).await;
    let out = told(&url, false).await.unwrap();
    let there = shape(&pool).await;
    let missing: Vec<_> = wanted.iter().filter(|line| !there.contains(line)).collect();
    assert!(missing.is_empty(), "{missing:#?}\n{there:#?}\n{out}");
    let left = lines(
        &pool,
        "SELECT conname::text FROM pg_constraint WHERE NOT convalidated
         UNION ALL SELECT attname FROM pg_attribute WHERE attname LIKE 'runledger_%' AND NOT attisdropped
             AND attrelid = 'workflow_runs'::regclass",
    )
    .await;
    assert_eq!(left, [""; 0], "{out}");
}

#[tokio::test]
async fn a_dry_run_tells_every_step_and_takes_none() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    let before = shape(&pool).await;
    let out = told(&url, true).await.unwrap();
    for step in [
        "would add wider columns to workflow_runs for ",
        "would fill them in the other rows, 5000 rows at a time",
        "would build index messages_session_id_created_at on messages",
        "would add to sessions: namespace",
        "would build index runledger_",
        "would apply 0001 ledger, in one transaction:",
        "    CREATE TABLE run_attempts (",
        "    -- Volumes with a life of their own.",
        "note: session_id of 167 rows of workflow_runs is no UUID",
    ] {
        assert!(out.contains(step), "{step}: {out}");
    }
    assert_eq!(shape(&pool).await, before);
    assert_eq!(
        lines(
            &pool,
            "SELECT relname::text FROM pg_class WHERE relname LIKE '_sqlx%'"
        )
        .await,
        [""; 0]
    );
}

/// Tables as text, as some installations have them.
const TEXT: &str = "
    CREATE TABLE users (id text PRIMARY KEY, email text, user_data text, created_at text, updated_at text);
    CREATE TABLE sessions (id text PRIMARY KEY, user_id text, name text, metadata text, created_at text, updated_at text);
    CREATE TABLE messages (id text PRIMARY KEY, session_id text, role text NOT NULL, usage text);";

#[tokio::test]
async fn what_cannot_be_joined_is_left_alone_and_told_in_a_sentence() {
    for (script, sentence) in [
        (TEXT, "import-legacy --from"),
        (
            "CREATE TABLE sessions (id uuid PRIMARY KEY, metadata json)",
            "sessions.metadata is json, and should be jsonb",
        ),
        (
            "CREATE TABLE users (id bigint PRIMARY KEY)",
            "users.id is bigint, and should be uuid",
        ),
        (
            "CREATE TABLE users (id uuid)",
            "users.id is not a primary key",
        ),
        (
            "CREATE TABLE messages (id uuid PRIMARY KEY)",
            "messages has no column role",
        ),
        (
            "CREATE VIEW sessions AS SELECT 1 AS id",
            "sessions is not an ordinary table",
        ),
        // What is ours alone, too, before anything is added to what we share.
        (
            &format!("{TABLES}; CREATE TABLE audit (what text); CREATE SEQUENCE run_labels"),
            "table audit is there already; sequence run_labels is there already",
        ),
        (
            &format!("{TABLES}; CREATE INDEX messages_run_id ON users (email); CREATE VIEW run_rollups_live AS SELECT 1"),
            "index messages_run_id is there already; view run_rollups_live is there already",
        ),
        (
            &format!("{TABLES}; CREATE TYPE workspaces AS ENUM (); CREATE FUNCTION runledger_price() RETURNS int
                      LANGUAGE sql AS 'SELECT 1'"),
            "function runledger_price is there already; type workspaces is there already",
        ),
    ] {
        let (url, pool) = earlier(&[script]).await;
        let all = "SELECT attrelid::regclass || '.' || attname FROM pg_attribute ORDER BY 1";
        let before = lines(&pool, all).await;
        for dry_run in [true, false] {
            let error = told(&url, dry_run).await.unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
            assert!(error.contains("Nothing was changed"), "{error}");
        }
        assert_eq!(lines(&pool, all).await, before);
    }
}

#[tokio::test]
async fn what_hangs_on_columns_that_change_hangs_on_the_new_ones() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    run(
        &pool,
        "CREATE INDEX by_user ON workflow_runs (user_id, status) INCLUDE (session_name)
             WHERE session_id IS NOT NULL AND metadata ->> 'session_id' IS NULL;
         CREATE UNIQUE INDEX \"Each once\" ON workflow_runs (run_id, (total_tokens + input_tokens));
         ALTER TABLE workflow_runs ADD CONSTRAINT once UNIQUE (user_id, run_id),
             ADD CONSTRAINT \"some tokens\" CHECK (output_tokens <= total_tokens OR output_tokens < 20),
             ALTER cost_estimate SET DEFAULT 0.5, ALTER input_tokens SET DEFAULT 7;
         CREATE INDEX lower_session ON workflow_runs (lower(session_id));
         COMMENT ON COLUMN workflow_runs.session_id IS 'who''s talking'",
    )
    .await;
    let hanging = "
        SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE conrelid = 'workflow_runs'::regclass AND (conname IN ('once', 'some tokens') OR conname LIKE '%tokens_check')
        UNION ALL SELECT pg_get_indexdef(indexrelid) || indisvalid FROM pg_index WHERE indrelid = 'workflow_runs'::regclass
            AND indexrelid::regclass::text IN ('by_user', '\"Each once\"', 'idx_workflow_runs_session_id', 'once')
        UNION ALL SELECT format('%s %s', attname, pg_get_expr(adbin, adrelid)) FROM pg_attrdef JOIN pg_attribute
            ON attrelid = adrelid AND attnum = adnum WHERE adrelid = 'workflow_runs'::regclass
            AND attname IN ('cost_estimate', 'input_tokens')
        UNION ALL SELECT col_description(attrelid, attnum) FROM pg_attribute
            WHERE attrelid = 'workflow_runs'::regclass AND attname = 'session_id'
        ORDER BY 1";
    let before = lines(&pool, hanging).await;
    assert_eq!(before.len(), 12, "{before:#?}");
    told(&url, false).await.unwrap();
    assert_eq!(lines(&pool, hanging).await, before);
    let refused = pool
        .execute("INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, total_tokens) VALUES (gen_random_uuid(), 'x', 'w', 't', -1)")
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("workflow_runs_total_tokens_check"),
        "{refused}"
    );
}

#[tokio::test]
async fn what_can_not_hang_on_columns_that_change_is_named_before_anything_is_changed() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    run(
        &pool,
        "CREATE VIEW by_session AS SELECT session_id, count(*) FROM workflow_runs GROUP BY 1;
         CREATE POLICY own ON workflow_runs USING (user_id = current_user);
         ALTER TABLE workflow_runs ADD both_tokens int GENERATED ALWAYS AS (input_tokens + output_tokens) STORED;
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER moved AFTER UPDATE OF session_id ON workflow_runs FOR EACH ROW EXECUTE FUNCTION nothing();
         CREATE FUNCTION spent() RETURNS numeric LANGUAGE sql BEGIN ATOMIC SELECT sum(cost_estimate) FROM workflow_runs; END;
         CREATE TABLE people (name varchar(255) PRIMARY KEY);
         ALTER TABLE workflow_runs ADD CONSTRAINT known FOREIGN KEY (user_id) REFERENCES people NOT VALID,
             ADD CONSTRAINT named CHECK (session_id <> 'none'), ALTER user_id SET DEFAULT 'nobody';
         CREATE INDEX by_start ON workflow_runs (session_id varchar_pattern_ops)",
    )
    .await;
    let before = shape(&pool).await;
    for dry in [true, false] {
        let error = told(&url, dry).await.unwrap_err();
        let Error::Hangs(what) = &error else {
            panic!("{error}");
        };
        for user in [
            "by_session on session_id",
            "policy own on table workflow_runs on user_id",
            "column both_tokens of table workflow_runs on input_tokens",
            "trigger moved on table workflow_runs on session_id",
            "function spent() on cost_estimate",
            "constraint known on table workflow_runs on user_id",
            "default of user_id: ",
            "index by_start: operator class \"varchar_pattern_ops\" does not accept data type uuid",
        ] {
            assert!(what.contains(user), "{user}: {what}");
        }
        assert_eq!(shape(&pool).await, before);
    }
}

#[tokio::test]
async fn rows_that_policies_hide_from_migrate_are_not_missed_but_told() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    run(
        &pool,
        "DO $$ BEGIN CREATE ROLE keeper LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         GRANT CREATE ON SCHEMA public TO keeper;
         ALTER TABLE users OWNER TO keeper; ALTER TABLE agents OWNER TO keeper; ALTER TABLE sessions OWNER TO keeper;
         ALTER TABLE messages OWNER TO keeper; ALTER TABLE workflow_runs OWNER TO keeper;
         ALTER TABLE workflow_runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    .await;
    let error = told(&url.replace("//runledger@", "//keeper@"), false)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Hidden(user, tables) if user == "keeper" && tables == "workflow_runs"),
        "{error}"
    );
}

#[tokio::test]
async fn tables_of_another_owner_are_told_before_anything_is_done() {
    let (url, pool) = earlier(&[TABLES]).await;
    run(
        &pool,
        "DO $$ BEGIN CREATE ROLE other LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         GRANT CREATE ON SCHEMA public TO other; GRANT SELECT ON ALL TABLES IN SCHEMA public TO other",
    )
    .await;
    let error = told(&url.replace("//runledger@", "//other@"), false)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to runledger"), "{error}");
}

#[tokio::test]
async fn rows_that_break_a_rule_are_told_and_hold_up_nothing() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    run(
        &pool,
        "ALTER TABLE workflow_runs DROP CONSTRAINT workflow_runs_duration_seconds_check;
                UPDATE workflow_runs SET duration_seconds = -1 WHERE run_id = 'run_3'",
    )
    .await;
    let out = told(&url, false).await.unwrap();
    assert!(
        out.contains("don't keep workflow_runs_figures_check"),
        "{out}"
    );
    assert!(
        pool.execute(
            "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, duration_seconds)
                      VALUES (gen_random_uuid(), 'x', 'w', 't', -1)"
        )
        .await
        .is_err()
    );
    run(
        &pool,
        "UPDATE workflow_runs SET duration_seconds = 0 WHERE run_id = 'run_3'",
    )
    .await;
    let again = told(&url, false).await.unwrap();
    assert_eq!(again, "nothing to apply: the ledger is up to date\n");
}

#[tokio::test]
async fn a_cost_that_is_no_number_is_not_known_and_spoils_no_sum() {
    let (url, pool) = earlier(&[TABLES, RUNS]).await;
    run(
        &pool,
        "UPDATE workflow_runs SET cost_estimate = 'NaN' WHERE run_id = 'run_2'",
    )
    .await;
    told(&url, false).await.unwrap();
    let sums = lines(
        &pool,
        "SELECT (SELECT sum(cost_estimate) = (SELECT sum(cost) FROM run_rollups_live WHERE NOT by_model)
                 FROM workflow_runs)::text
         UNION ALL SELECT (cost_estimate IS NULL)::text FROM workflow_runs WHERE run_id = 'run_2'",
    )
    .await;
    assert_eq!(sums, ["true", "true"]);
}

#[tokio::test]
async fn a_half_applied_migration_is_told() {
    let (url, pool) = earlier(&[]).await;
    told(&url, false).await.unwrap();
    run(
        &pool,
        "UPDATE _sqlx_migrations SET success = false WHERE version = 1",
    )
    .await;
    assert!(matches!(
        told(&url, false).await,
        Err(Error::HalfApplied(1))
    ));
}

/// Ends the connection after its n-th command that defines something, and after the n-th batch.
const KILLER: &str = "
    CREATE SEQUENCE killer_count; CREATE TABLE killer (n bigint); INSERT INTO killer VALUES (0);
    CREATE FUNCTION killer_strike() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('killer_count') = (SELECT n FROM killer) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    END $$;
    CREATE FUNCTION killer_define() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM killer_strike(); END $$;
    CREATE FUNCTION killer_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM killer_strike(); RETURN NULL; END $$;
    CREATE TRIGGER killer AFTER UPDATE ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION killer_change();
    CREATE TRIGGER killer AFTER UPDATE ON messages FOR EACH STATEMENT EXECUTE FUNCTION killer_change();
    CREATE TRIGGER killer AFTER UPDATE ON users FOR EACH STATEMENT EXECUTE FUNCTION killer_change();
    CREATE TRIGGER killer AFTER UPDATE ON agents FOR EACH STATEMENT EXECUTE FUNCTION killer_change();
    CREATE TRIGGER killer AFTER UPDATE ON sessions FOR EACH STATEMENT EXECUTE FUNCTION killer_change();
    -- So that there are batches of each table.
    ALTER TABLE users ALTER created_at DROP NOT NULL; ALTER TABLE sessions ALTER updated_at DROP NOT NULL;
    CREATE EVENT TRIGGER killer ON ddl_command_end EXECUTE FUNCTION killer_define();";

#[tokio::test]
async fn a_migration_that_dies_after_any_statement_is_finished_by_the_next() {
    let (url, pool) = earlier(&[TABLES, RUNS, KILLER]).await;
    let earlier = as_stranger(&url).await;
    let before = answers(&earlier, READS).await;
    let runs = answers(&earlier, RUN_READS).await;
    let mut deaths = 0;
    loop {
        run(
            &pool,
            &format!(
                "UPDATE killer SET n = {}; SELECT setval('killer_count', 1, false)",
                deaths + 1
            ),
        )
        .await;
        match told(&url, false).await {
            Ok(_) => break,
            Err(Error::Database(_) | Error::Failed(_)) => deaths += 1,
            Err(other) => panic!("after {deaths} deaths: {other}"),
        }
    }
    eprintln!("died {deaths} times");
    assert!(deaths > 50);
    run(
        &pool,
        "DROP EVENT TRIGGER killer; DROP FUNCTION killer_change CASCADE",
    )
    .await;
    assert_eq!(
        told(&url, false).await.unwrap(),
        "nothing to apply: the ledger is up to date\n"
    );
    same(&answers(&earlier, READS).await, &before);
    same(&answers(&earlier, RUN_READS).await, &runs);
    let wanted = shape(&database::migrated().await.pool).await;
    let there = shape(&pool).await;
    let missing: Vec<_> = wanted.iter().filter(|line| !there.contains(line)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Ends migrate while an index is being built, which waits for whoever looks at the database as it was.
#[tokio::test]
async fn an_index_that_was_half_built_when_migrate_died_is_removed_and_built_again() {
    for scripts in [&[TABLES][..], &[TABLES, RUNS]] {
        let (url, pool) = earlier(scripts).await;
        let mut long = PgConnection::connect(&url).await.unwrap();
        long.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
            .await
            .unwrap();
        let migrating = tokio::spawn({
            let url = url.clone();
            async move { told(&url, false).await }
        });
        let half = "SELECT pg_terminate_backend(a.pid)::text FROM pg_index i, pg_stat_activity a
                    WHERE NOT i.indisvalid AND a.datname = current_database() AND a.wait_event_type = 'Lock'
                      AND a.query LIKE 'CREATE %INDEX CONCURRENTLY%'";
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while lines(&pool, half).await.is_empty() {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert!(matches!(migrating.await.unwrap(), Err(Error::Database(_))));
        long.execute("COMMIT").await.unwrap();
        let out = told(&url, false).await.unwrap();
        assert!(out.contains("remove the half-built index "), "{out}");
        let left = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid
                    UNION ALL SELECT relname::text FROM pg_class WHERE relname ~ 'runledger_[0-9]'";
        assert_eq!(lines(&pool, left).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_long_query_of_others_is_waited_for_and_holds_up_nobody_else() {
    let (url, pool) = earlier(&[TABLES]).await;
    let mut long = PgConnection::connect(&url).await.unwrap();
    long.execute("BEGIN; SELECT count(*) FROM sessions")
        .await
        .unwrap();
    let migrating = tokio::spawn({
        let url = url.clone();
        async move { told(&url, false).await }
    });
    // Somebody queues behind us now and then, for no longer than our patience.
    let waits =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while sqlx::query_scalar::<_, i64>(waits)
        .fetch_one(&pool)
        .await
        .unwrap()
        == 0
    {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    pool.execute("SELECT count(*) FROM sessions").await.unwrap();
    assert!(!migrating.is_finished());
    long.execute("COMMIT").await.unwrap();
    let out = migrating.await.unwrap().unwrap();
    assert!(out.contains("waiting for a lock"), "{out}");
}
