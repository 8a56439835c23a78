//! Rows by the million, made by the server itself: what is measured is how they are found.

use anyhow::Result;
use sqlx::AssertSqlSafe;

use crate::server::Server;

/// How many.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) scale: f64,
    pub(crate) runs: i32,
    pub(crate) messages: i32,
}

/// Namespaces that they are spread over.
pub(crate) const NAMESPACES: u32 = 50;
/// Sessions.
pub(crate) const SESSIONS: i32 = 1000;

impl Size {
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn of(scale: f64) -> Self {
        Self {
            scale,
            runs: (scale * 1e6) as i32,
            messages: (scale.min(1.0) * 1e7) as i32,
        }
    }
}

pub(crate) async fn fill(server: &Server, size: Size) -> Result<()> {
    // As an import would: no triggers, indexes made at the end, and the rollups counted then.
    server.run("SET session_replication_role = replica").await?;
    server.run("CREATE TEMP TABLE kept AS
        SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i
        WHERE i.indrelid IN ('workflow_runs'::regclass, 'messages'::regclass, 'run_labels'::regclass) AND NOT i.indisunique;
        DO $$ DECLARE k record; BEGIN FOR k IN SELECT * FROM kept LOOP EXECUTE 'DROP INDEX ' || k.name; END LOOP; END $$").await?;
    let fill = |sql: &str| {
        let sql = sql
            .replace("{runs}", &size.runs.to_string())
            .replace("{messages}", &size.messages.to_string())
            .replace("{namespaces}", &NAMESPACES.to_string())
            .replace("{sessions}", &SESSIONS.to_string());
        async move {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&server.pool)
                .await
        }
    };
    fill(SESSIONS_AND_RUNS).await?;
    fill(LABELS).await?;
    fill(MESSAGES).await?;
    server.run("DO $$ DECLARE k record; BEGIN FOR k IN SELECT * FROM kept LOOP EXECUTE k.definition; END LOOP; END $$;
        DROP TABLE kept; SET session_replication_role = origin").await?;
    server.ledger.compare_rollups(true).await?;
    server.ledger.fold_rollups().await?;
    server.run("VACUUM ANALYZE").await?;
    // As of a server that has been up for a while: what the disk takes is not the ledger's.
    server.run("CREATE EXTENSION pg_prewarm;
        SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace").await
}

/// Over a year, most of them ended, each status in each namespace often enough for a page; small md5s
/// stand for ids, so that they lie in no order.
const SESSIONS_AND_RUNS: &str = "
INSERT INTO sessions (id, namespace, name)
SELECT md5('session' || s)::uuid, 'ns-' || s % {namespaces}, 'session-' || s FROM generate_series(1, {sessions}) s;
INSERT INTO workflow_runs (id, run_id, namespace, name, workflow_name, agent_type, ai_model, task_input,
    session_id, session_name, git_repo, git_branch, status, reason, attempt, created_at, started_at, completed_at,
    duration_seconds, cost_estimate, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
    total_tokens, turns, git_diff_added_lines, git_diff_removed_lines)
SELECT md5('run' || r)::uuid, md5('run' || r)::uuid::text, 'ns-' || r / 1000 % {namespaces}, 'run-' || r,
    'workflow-' || r % 20, 'claude', 'model-' || r % 4, 'Fix the parser, with a test.',
    md5('session' || 1 + r % {sessions})::uuid, 'session-' || 1 + r % {sessions},
    'https://git.example.com/team/repository-' || r % 100, 'branch-' || r % 100,
    CASE WHEN r % 100 = 0 THEN 'running' WHEN r % 10 < 8 THEN 'completed' WHEN r % 10 = 8 THEN 'failed' ELSE 'killed' END,
    'Completed', 1, at, at, CASE WHEN r % 100 <> 0 THEN at + interval '5 minutes' END,
    CASE WHEN r % 100 <> 0 THEN 10 + r % 3000 END, (r % 5000) / 1000.0, 1, 2, 3, 4, 10, 7, r % 100, r % 50
FROM (SELECT r, now() - r * (interval '365 days' / {runs}) AS at FROM generate_series(1, {runs}) r) made";

const LABELS: &str = "
INSERT INTO run_labels (run_id, key, value, namespace, created_at)
SELECT id, 'team', 'team-' || abs(hashtext(run_id)) % 20, namespace, created_at FROM workflow_runs";

const MESSAGES: &str = "
INSERT INTO messages (id, session_id, role, message_type, text_content, position, sequence, created_at)
SELECT md5('message' || m)::uuid, md5('session' || 1 + m % {sessions})::uuid, 'assistant', 'assistant',
    'The parser drops the last line of a file.', m / {sessions} + 1, m / {sessions} + 1,
    now() - ({messages} - m) * (interval '365 days' / {messages})
FROM generate_series(1, {messages}) m";
