//! Rollups are what a recount of the runs says, at every moment, whoever writes the runs and however
//! many do at once.

use std::sync::Arc;

use clap::Parser as _;
use runledger::api::run::Phase;
use runledger::ledger::records::RunRecord;
use runledger::ledger::{Target, rollup};
use runledger::wire::{Batch, EventBody};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::database::{Database, assert_same, migrated};
use crate::random::Random;
use crate::shapes::{at, batch, ended, events, record, running, usage};

/// The rollups, and the same counted from the runs by other means: each as lines of text.
async fn kept_and_counted(db: &Database) -> (String, String) {
    let kept = "SELECT string_agg(l::text, E'\n' ORDER BY l::text) FROM (
            SELECT day, by_model, namespace, workflow_name, model, repository, runs, completed, failed, killed,
                   unknown_cost, cost::numeric(30, 6), input_tokens, output_tokens, cache_read_tokens,
                   cache_creation_tokens, added_lines, removed_lines, costed::numeric(30, 6), costed_lines
            FROM run_rollups_live WHERE runs <> 0) l";
    let counted = "WITH parts AS (
            SELECT r, false AS by_model, '' AS model, r.cost_estimate AS cost, r.input_tokens AS input,
                   r.output_tokens AS output, r.cache_read_tokens AS cache_read, r.cache_creation_tokens AS cache_creation,
                   cost_source = 'partial' OR cost_estimate IS NULL AND (total_tokens > 0 OR status = 'completed'
                       OR namespace IS NULL AND status IN ('failed', 'killed')) AS unknown
            FROM workflow_runs r
            UNION ALL
            SELECT r, true, coalesce(m.key, r.ai_model, ''), CASE WHEN m.key IS NULL THEN r.cost_estimate ELSE m.cost END,
                   coalesce(m.input, r.input_tokens), coalesce(m.output, r.output_tokens),
                   coalesce(m.cache_read, r.cache_read_tokens), coalesce(m.cache_creation, r.cache_creation_tokens),
                   coalesce(m.unpriced, cost_source = 'partial' OR cost_estimate IS NULL AND (total_tokens > 0
                       OR status = 'completed' OR namespace IS NULL AND status IN ('failed', 'killed')))
            FROM workflow_runs r LEFT JOIN LATERAL (
                SELECT e.key, f.* FROM jsonb_each(r.model_usage) e, jsonb_to_record(e.value) AS f
                    (cost numeric, input bigint, output bigint, cache_read bigint, cache_creation bigint, unpriced bool)
            ) m ON true)
        SELECT string_agg(l::text, E'\n' ORDER BY l::text) FROM (
            SELECT to_char((r).created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), by_model, coalesce((r).namespace, ''),
                   (r).workflow_name, model, coalesce((r).git_repo, ''), count(*),
                   count(*) FILTER (WHERE (r).status = 'completed'), count(*) FILTER (WHERE (r).status = 'failed'),
                   count(*) FILTER (WHERE (r).status = 'killed'), count(*) FILTER (WHERE unknown),
                   coalesce(sum(cost), 0)::numeric(30, 6), sum(input), sum(output), sum(cache_read), sum(cache_creation),
                   sum((r).git_diff_added_lines), sum((r).git_diff_removed_lines),
                   coalesce(sum((r).cost_estimate), 0)::numeric(30, 6),
                   coalesce(sum((r).git_diff_added_lines + (r).git_diff_removed_lines)
                            FILTER (WHERE (r).cost_estimate IS NOT NULL), 0)
            FROM parts GROUP BY 1, 2, 3, 4, 5, 6) l";
    (
        db.one(kept).await.unwrap_or_default(),
        db.one(counted).await.unwrap_or_default(),
    )
}

async fn assert_exact(db: &Database, when: &str) {
    let (kept, counted) = kept_and_counted(db).await;
    assert_same(&kept, &counted, when);
    let comparison = db.ledger.compare_rollups(false).await.unwrap();
    assert!(comparison.is_exact(), "{when}: {comparison:?}");
    let not_all = "SELECT jsonb_agg(r) FROM workflow_runs r, LATERAL (
            SELECT sum((value ->> 'cost')::numeric) AS cost,
                   sum((value ->> 'input')::bigint + (value ->> 'output')::bigint
                       + (value ->> 'cache_read')::bigint + (value ->> 'cache_creation')::bigint) AS tokens
            FROM jsonb_each(r.model_usage)) m
        WHERE r.model_usage <> '{}' AND (m.cost, m.tokens) IS DISTINCT FROM (r.cost_estimate, r.total_tokens)";
    assert_eq!(
        db.one(not_all).await,
        None,
        "{when}: the models come to the run"
    );
}

/// One thing that a writer does.
enum Write {
    Mirror(Box<RunRecord>),
    Store(Box<Batch>, &'static str),
    Foreign(String),
    Fold,
    Prices,
}

const NAMESPACES: [&str; 2] = ["ns", "other"];

fn history(random: &mut Random) -> Vec<Write> {
    let mut writes = Vec::new();
    for number in 0..12 {
        let id = Uuid::from_u128(1000 + number);
        let namespace = NAMESPACES[random.below(2)];
        let model = [None, Some("claude-x"), Some("claude-y")][random.below(3)];
        let day = 86_400 * random.below(3) as i64;
        let last = [
            Phase::Running,
            Phase::Completed,
            Phase::Failed,
            Phase::Killed,
        ][random.below(4)];
        let requests = random.below(4) as u32;
        let known = random.below(4) > 0;
        let of_this = |from: RunRecord| {
            let mut usage = from.usage;
            if let Some(usage) = usage.as_mut().filter(|_| !known) {
                usage.cost_micro_usd = None;
            }
            Write::Mirror(Box::new(RunRecord {
                run_id: id,
                namespace: namespace.to_owned(),
                name: format!("run-{number}"),
                workflow_name: ["builder", "surgeon"][number as usize % 2].to_owned(),
                session_id: runledger::ids::session(namespace, "talk"),
                created_at: at(day),
                model: model.map(str::to_owned),
                usage,
                ..from
            }))
        };
        writes.push(of_this(record()));
        writes.push(of_this(running(1)));
        writes.push(of_this(match last {
            Phase::Running => running(2),
            end => ended(end, 1, usage(requests)),
        }));
        let mut all = events(1, requests);
        for event in &mut all {
            if let EventBody::RequestEnded { model, .. } = &mut event.body {
                *model =
                    [None, Some("claude-x"), Some("claude-z")][random.below(3)].map(str::to_owned);
            }
        }
        let of_its_session = all
            .into_iter()
            .filter(|event| known && !matches!(event.body, EventBody::Message(_)))
            .collect::<Vec<_>>();
        for part in of_its_session.chunks(3) {
            let batch = Batch {
                run_id: id,
                session_id: runledger::ids::session(namespace, "talk"),
                ..batch(1, part)
            };
            writes.push(Write::Store(Box::new(batch), namespace));
        }
        let foreign = Uuid::from_u128(2000 + number);
        writes.push(Write::Foreign(format!(
            "INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, status, completed_at, created_at)
             VALUES ('{foreign}', '{foreign}', 'legacy', 't', 'failed', now(), '2026-09-0{} 23:59:59+00')",
            1 + random.below(9)
        )));
        writes.push(Write::Foreign(format!(
            "UPDATE workflow_runs SET cost_estimate = {}.5, git_diff_added_lines = 3 WHERE id = '{foreign}'",
            random.below(1000)
        )));
        if random.below(3) == 0 {
            writes.push(Write::Foreign(format!(
                "DELETE FROM workflow_runs WHERE id = '{foreign}'"
            )));
        }
        writes.push(Write::Fold);
    }
    writes.push(Write::Prices);
    random.shuffle(&mut writes);
    writes
}

async fn write(db: &Database, write: Write) {
    match write {
        Write::Mirror(record) => db.ledger.mirror(&record).await.unwrap(),
        Write::Store(batch, namespace) => {
            let target = Target {
                namespace,
                name: "demo",
            };
            db.ledger.store(target, &batch, at(30)).await.unwrap();
        }
        Write::Foreign(sql) => {
            sqlx::query(AssertSqlSafe(sql))
                .execute(&db.pool)
                .await
                .unwrap();
        }
        Write::Prices => {
            let prices = "- {model: claude-*, from: 2026-01-01, input: 3, output: 15.1, cacheRead: 0.3, cacheCreation: 4}";
            let prices = runledger::ledger::prices::read(prices).unwrap();
            db.ledger.load_prices(&prices).await.unwrap();
        }
        Write::Fold => {
            db.ledger.fold_rollups().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_by_many_at_once_keep_the_rollups_what_a_recount_says() {
    let mut random = Random::seeded("random_writes_by_many_at_once");
    let db = Arc::new(migrated().await);
    let mut writers: [Vec<Write>; 4] = std::array::from_fn(|_| Vec::new());
    for write in history(&mut random) {
        writers[random.below(4)].push(write);
    }
    let tasks = writers.map(|writes| {
        let db = db.clone();
        tokio::spawn(async move {
            for one in writes {
                write(&db, one).await;
            }
        })
    });
    // Readers find them exact at any moment, not only at the end.
    while tasks.iter().any(|task| !task.is_finished()) {
        let comparison = db.ledger.compare_rollups(false).await.unwrap();
        assert!(comparison.is_exact(), "{comparison:?}");
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_exact(&db, "before folding").await;
    db.ledger.fold_rollups().await.unwrap();
    assert_eq!(
        db.one("SELECT count(*) FROM run_rollup_deltas")
            .await
            .unwrap(),
        "0"
    );
    assert_exact(&db, "folded").await;
    let empty = "SELECT count(*) FROM run_rollups WHERE runs = 0";
    assert_eq!(
        db.one(empty).await.unwrap(),
        "0",
        "nothing stays of what is gone"
    );
}

#[tokio::test]
async fn the_same_writes_in_any_order_come_to_the_same_rollups() {
    let mut random = Random::seeded("the_same_writes_in_any_order");
    for _ in 0..3 {
        let db = migrated().await;
        for (number, one) in history(&mut random).into_iter().enumerate() {
            write(&db, one).await;
            if number % 20 == 0 {
                assert_exact(&db, &format!("after write {number}")).await;
            }
        }
        assert_exact(&db, "at the end").await;
    }
}

/// `runledger rollups`, as it is typed.
#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: rollup::Args,
}

async fn rollups(db: &Database, words: &[&str]) -> (u8, String) {
    let url = ["--database-url", &db.url];
    let words = ["rollups"].iter().chain(words).chain(&url);
    let args = Command::parse_from(words).args;
    let mut out = Vec::new();
    let status = rollup::run_to(&args, &mut out).await.unwrap();
    (status, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn rebuild_says_what_differed_puts_it_right_and_says_so_by_its_status() {
    let db = migrated().await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    assert_eq!(
        rollups(&db, &["rebuild"]).await,
        (0, "the rollups are what the runs say\n".to_owned())
    );
    sqlx::raw_sql(
        "UPDATE run_rollups SET runs = runs + 1, cost = cost - 1;
         INSERT INTO run_rollups SELECT day, by_model, namespace, workflow_name, E'\\x1b[31m', repository, runs, completed,
             failed, killed, unknown_cost, cost, input_tokens, output_tokens, cache_read_tokens,
             cache_creation_tokens, added_lines, removed_lines, costed, costed_lines FROM run_rollups WHERE by_model",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let found = "they said too little by\n  \
        2026-09-21 ns builder (all models) https://git.example/demo.git: -1 runs, 0 tokens, 1.000000 USD\n  \
        2026-09-21 ns builder \\u{1b}[31m https://git.example/demo.git: -2 runs, -240 tokens, 0.967440 USD\n  \
        2026-09-21 ns builder claude-x https://git.example/demo.git: -1 runs, 0 tokens, 1.000000 USD\n";
    let dry = (
        3,
        format!("3 sums of rollups differ\n3 rollups differ; {found}"),
    );
    assert_eq!(rollups(&db, &["rebuild", "--dry-run"]).await, dry);
    assert_eq!(
        rollups(&db, &["rebuild", "--dry-run"]).await,
        dry,
        "it changed nothing"
    );
    let done = format!(
        "3 sums of rollups differed and were put right\n3 rollups differed and were put right; {found}"
    );
    let done = (3, done);
    assert_eq!(rollups(&db, &["rebuild"]).await, done);
    assert_eq!(rollups(&db, &["rebuild"]).await.0, 0);
    assert_exact(&db, "rebuilt").await;
}

#[tokio::test]
async fn sums_of_rollups_that_somebody_wrote_into_are_put_right() {
    let db = migrated().await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    db.ledger.fold_rollups().await.unwrap();
    for spoil in [
        "UPDATE run_rollup_sums SET cost = cost + 1 WHERE by_model",
        "DELETE FROM run_rollup_sums WHERE by_model",
    ] {
        sqlx::raw_sql(spoil).execute(&db.pool).await.unwrap();
        let dry = (3, "1 sums of rollups differ\n".to_owned());
        assert_eq!(rollups(&db, &["rebuild", "--dry-run"]).await, dry);
        let done = (
            3,
            "1 sums of rollups differed and were put right\n".to_owned(),
        );
        assert_eq!(rollups(&db, &["rebuild"]).await, done);
        assert_exact(&db, spoil).await;
    }
}

#[tokio::test]
async fn runs_that_were_there_before_the_rollups_are_counted_once() {
    let db = migrated().await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    sqlx::raw_sql("TRUNCATE run_rollups, run_rollup_sums, run_rollup_deltas")
        .execute(&db.pool)
        .await
        .unwrap();
    let migration = include_str!("../../migrations/0011_rollups_of_existing_runs.sql");
    for _ in 0..2 {
        sqlx::raw_sql(migration).execute(&db.pool).await.unwrap();
        assert_exact(&db, "migrated").await;
    }
}

#[tokio::test]
async fn words_of_any_length_and_script_fit() {
    let db = migrated().await;
    let long: String = (0..5000u32)
        .filter_map(|n| char::from_u32(0x20000 + n * 7))
        .collect();
    sqlx::query(
        "INSERT INTO workflow_runs (id, run_id, namespace, workflow_name, ai_model, git_repo, task_input)
         VALUES (gen_random_uuid(), 'x', left($1, 70), left($1, 400), $1, $1, 't')",
    )
    .bind(&long)
    .execute(&db.pool)
    .await
    .unwrap();
    db.ledger.fold_rollups().await.unwrap();
    assert_eq!(
        db.one("SELECT sum(runs) FROM run_rollups").await.unwrap(),
        "2"
    );
}

#[tokio::test]
async fn a_row_from_before_the_ledger_with_nothing_in_it_is_counted() {
    let db = migrated().await;
    sqlx::raw_sql(
        "SET session_replication_role = replica;
         ALTER TABLE workflow_runs ALTER status DROP NOT NULL, ALTER created_at DROP NOT NULL,
             ALTER input_tokens DROP NOT NULL, ALTER git_diff_added_lines DROP NOT NULL;
         INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, status, created_at, input_tokens,
             git_diff_added_lines)
         VALUES (gen_random_uuid(), 'x', 'w', 't', NULL, NULL, NULL, NULL);
         SET session_replication_role = origin",
    )
    .execute(&mut *db.pool.acquire().await.unwrap())
    .await
    .unwrap();
    assert_eq!(db.ledger.compare_rollups(true).await.unwrap().differ, 2);
    assert_eq!(db.ledger.compare_rollups(true).await.unwrap().differ, 0);
    sqlx::query("UPDATE workflow_runs SET turns = 1, input_tokens = 5, total_tokens = 5")
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(db.ledger.compare_rollups(false).await.unwrap().differ, 0);
    let row =
        db.one("SELECT (runs, input_tokens, added_lines) FROM run_rollups_live WHERE runs = 1 AND NOT by_model");
    assert_eq!(row.await.unwrap(), "(1,5,0)");
}

#[tokio::test]
async fn a_writer_of_runs_needs_no_right_on_the_rollups() {
    let db = migrated().await;
    sqlx::raw_sql(
        "CREATE ROLE only_runs_writer; GRANT SELECT, INSERT, UPDATE ON workflow_runs TO only_runs_writer",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::raw_sql(
        "SET ROLE only_runs_writer;
         INSERT INTO workflow_runs (id, run_id, workflow_name, task_input) VALUES (gen_random_uuid(), 'x', 'w', 't');
         UPDATE workflow_runs SET turns = 3, input_tokens = 5, total_tokens = 5;
         RESET ROLE",
    )
    .execute(&mut *db.pool.acquire().await.unwrap())
    .await
    .unwrap();
    assert_exact(&db, "written by another role").await;
    sqlx::raw_sql("DROP OWNED BY only_runs_writer; DROP ROLE only_runs_writer")
        .execute(&db.pool)
        .await
        .unwrap();
}
