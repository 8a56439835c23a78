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
const AS_TEXT: &str = "
    DO $$ DECLARE c record; BEGIN
        ALTER TABLE messages DROP CONSTRAINT messages_usage_check;
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
        database_url: url.to_owned(),
        wait: 10,
        ..Args::default()
    };
    let report = import_legacy(&migrate, &args, &mut out).await?;
    Ok((report, String::from_utf8(out).unwrap()))
}

async fn as_expected(pool: &PgPool) {
    let wrong: Vec<String> = sqlx::query_scalar(EXPECTED).fetch_all(pool).await.unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_hundred_thousand_rows_become_runs_as_the_table_says() {
    let (url, pool) = earlier("import", 100_000).await;
    up(&url).await;
    let start = std::time::Instant::now();
    let (report, out) = import(&url, ImportArgs::default()).await.unwrap();
    eprintln!("{out}imported in {:?}", start.elapsed());
    run(&pool, "CREATE SCHEMA old; CREATE VIEW old.sessions AS SELECT * FROM public.sessions;
                CREATE VIEW old.workflow_processes AS SELECT * FROM public.workflow_processes; ANALYZE").await;
    as_expected(&pool).await;
    let (sessions, processes) = (report.of(SESSIONS), report.of(PROCESSES));
    assert_eq!(processes.read, 50_000);
    assert_eq!(processes.read, processes.imported + processes.merged);
    assert_eq!(sessions.skipped, 0);
    assert_eq!(
        one(&pool, "SELECT count(*) FROM workflow_runs").await,
        (sessions.imported + processes.imported).to_string()
    );
    // Sessions that are there are joined, others kept.
    assert_eq!(
        one(
            &pool,
            "SELECT count(*) FROM workflow_runs r JOIN workflow_processes p USING (run_id)
                    WHERE p.session_id = 'no-uuid' AND r.run_id LIKE 'proc-%'
                      AND r.metadata #>> '{legacy,session_id}' IS DISTINCT FROM 'no-uuid'"
        )
        .await,
        "0"
    );
    let rows = "SELECT md5(string_agg(to_jsonb(r)::text, '' ORDER BY run_id)) FROM workflow_runs r";
    let before = one(&pool, rows).await;
    let (again, _) = import(&url, ImportArgs::default()).await.unwrap();
    assert_eq!(one(&pool, rows).await, before);
    for source in [SESSIONS, PROCESSES] {
        let count = again.of(source);
        assert_eq!((count.imported, count.skipped), (0, 0), "{source}");
    }
}
