//! The ledger of the measurement: a Postgres of its own, which notes when each row became final, and
//! what has to hold of the rows.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use runledger::ledger::migrate;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::kinds::{TASK, TOKENS};

/// Its script removes it when our end of its input closes.
pub(crate) struct Ledger {
    pub(crate) url: String,
    pub(crate) version: String,
    pool: PgPool,
    script: Child,
}

const NOTE_ENDS: &str = "
CREATE TABLE bench_ends (run_id uuid NOT NULL, at timestamptz NOT NULL);
CREATE FUNCTION bench_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IN ('completed', 'failed', 'killed')
       AND (TG_OP = 'INSERT' OR OLD.status IS DISTINCT FROM NEW.status) THEN
        INSERT INTO bench_ends VALUES (NEW.id, clock_timestamp());
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bench_end AFTER INSERT OR UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION bench_end();
";

impl Ledger {
    /// Starts it, with the schema in it.
    pub(crate) async fn start(root: &Path) -> Result<Self> {
        let mut script = Command::new(root.join("tests/postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        let output = script.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut url).await?;
        let url = url.trim().to_owned();
        ensure!(url.starts_with("postgres://"), "Postgres did not start");
        let args = migrate::Args {
            connection: runledger::ledger::connection::Connection::to(&url),
            wait: 30,
            ..Default::default()
        };
        migrate::migrate(&args, &mut Vec::new()).await?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect(&url)
            .await?;
        sqlx::raw_sql(NOTE_ENDS).execute(&pool).await?;
        let version = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&pool)
            .await?;
        Ok(Self {
            url,
            version,
            pool,
            script,
        })
    }

    /// The process that has started it.
    pub(crate) fn process(&self) -> Result<u32> {
        self.script.id().context("Postgres has ended")
    }

    /// When each run's row became final, by name, once it is sure that every run has one row, that it
    /// says what the run's pod said, and that it became final once.
    pub(crate) async fn finals(
        &self,
        namespace: &str,
        count: usize,
    ) -> Result<HashMap<String, f64>> {
        let count = i64::try_from(count)?;
        let rows: (i64, i64, i64) = sqlx::query_as(
            "SELECT count(*), count(DISTINCT (run_id, name)),
                    count(*) FILTER (WHERE status = 'completed' AND task_input = $2 AND total_tokens = $3
                        AND cost_estimate = 0.048840 AND turns = 7 AND attempt = 1
                        AND git_diff_files_changed = 3 AND started_at IS NOT NULL
                        AND completed_at >= started_at)
             FROM workflow_runs WHERE namespace = $1",
        )
        .bind(namespace)
        .bind(TASK)
        .bind(i64::try_from(TOKENS.total())?)
        .fetch_one(&self.pool)
        .await?;
        ensure!(
            rows == (count, count, count),
            "of {count} runs, (rows, runs in them, rows as they should be): {rows:?}"
        );
        let attempts: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM run_attempts a JOIN workflow_runs r ON r.id = a.run_id
             WHERE r.namespace = $1",
        )
        .bind(namespace)
        .fetch_one(&self.pool)
        .await?;
        ensure!(attempts == count, "{attempts} attempts of {count} runs");
        let finals: Vec<(String, f64)> = sqlx::query_as(
            "SELECT r.name, extract(epoch FROM e.at)::float8
             FROM bench_ends e JOIN workflow_runs r ON r.id = e.run_id WHERE r.namespace = $1",
        )
        .bind(namespace)
        .fetch_all(&self.pool)
        .await?;
        let ends = finals.len();
        let finals: HashMap<_, _> = finals.into_iter().collect();
        ensure!(
            i64::try_from(ends)? == count && finals.len() == ends,
            "{ends} ends of {} runs",
            finals.len()
        );
        Ok(finals)
    }
}
