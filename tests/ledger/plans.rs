//! Each hot query finds its index, by the same plan at ten thousand rows and at a million, asked by a
//! role that owns nothing. The plans are those of the statements as the repository sends them:
//! Postgres itself tells each after it ran (auto_explain).

use std::fmt;
use std::sync::{Arc, Mutex};

use runledger::api::run::Phase;
use runledger::ledger::connection::Connection;
use runledger::ledger::migrate::{Args, migrate};
use runledger::ledger::query::{
    Direction, MessageKey, Order, RunFilter, RunKey, SessionKey, Subject,
};
use runledger::ledger::records::RunRecord;
use runledger::ledger::{Ledger, report};
use runledger::wire::{Event, EventBody};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use uuid::Uuid;

use crate::database::migrated;
use crate::shapes::{TARGET, at, batch, events, running};

/// Keeps what Postgres tells of its plans.
#[derive(Clone, Default)]
struct Plans(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Plans {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut told = Told(String::new());
        event.record(&mut told);
        if let Some(at) = told.0.find('{').filter(|_| told.0.contains("\"Plan\"")) {
            let plan: Value =
                serde_json::from_str(&told.0[at..told.0.rfind('}').unwrap() + 1]).unwrap();
            let mut short = String::new();
            shorten(&plan["Plan"], &mut short);
            self.0.lock().unwrap().push(short);
        }
    }
}

struct Told(String);

impl Visit for Told {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.push_str(value);
        }
    }
}

/// The nodes of a plan, and the indexes that they use.
fn shorten(node: &Value, into: &mut String) {
    into.push_str(node["Node Type"].as_str().unwrap());
    for name in ["Index Name", "Relation Name"] {
        if let Some(name) = node[name].as_str() {
            into.push_str(&format!(" {name}"));
            break;
        }
    }
    let below = node["Plans"].as_array();
    if let Some(below) = below {
        into.push('(');
        for (n, node) in below.iter().enumerate() {
            if n > 0 {
                into.push_str(", ");
            }
            shorten(node, into);
        }
        into.push(')');
    }
}

/// A hundred namespaces, ten workflows, a session for ten runs, a label each; one session has a tenth of
/// all messages. Made without triggers, and indexed once the rows are there.
async fn fill(pool: &PgPool, from: usize, to: usize) {
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i
         WHERE indrelid = ANY ('{workflow_runs, sessions, messages, run_labels}'::regclass[])
           AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let id = |n: &str, of: &str| {
        format!(
            "translate('00000000-0000-0000-0000-', '0', '{of}')::text || lpad(to_hex({n}), 12, '0')"
        )
    };
    let id = |n: &str, of: &str| format!("({})::uuid", id(n, of));
    let (run, session, session_of, message) = (
        id("n", "0"),
        id("n / 10", "5"),
        id("CASE WHEN n % 10 = 0 THEN 1 ELSE n / 10 END", "5"),
        id("n", "6"),
    );
    let mut script =
        "SET session_replication_role = replica; SET maintenance_work_mem = '128MB';".to_owned();
    for (name, _) in &indexes {
        script.push_str(&format!("DROP INDEX {name};"));
    }
    script.push_str(&format!(
        "INSERT INTO sessions (id, namespace, name, updated_at)
         SELECT {session}, 'n' || n / 10 % 100, 's' || n, timestamptz '2026-01-01' + make_interval(secs => n)
         FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO workflow_runs (id, run_id, namespace, name, workflow_name, task_input, status, reason, created_at,
             completed_at, session_id, git_branch, user_id, workspace_id, cluster, workspace_persistent)
         SELECT {run}, 'r' || n, 'n' || n / 10 % 100, 'r', 'w' || n % 10, 't', s, 'Workspace',
                timestamptz '2026-01-01' + make_interval(secs => n), now(), {session}, 'b' || n % 100,
                CASE WHEN n % 50 = 0 THEN {id_of_user} END, 'w' || n / 20, 'c', n % 100 > 0
         FROM generate_series({from}, {to} - 1) AS n,
              LATERAL (SELECT CASE WHEN n % 331 = 0 THEN 'pending' WHEN n % 13 = 0 THEN 'failed'
                                   ELSE 'completed' END AS s) t;
         UPDATE workflow_runs SET workspace_cleaned_up = true
         WHERE NOT workspace_persistent AND created_at < timestamptz '2026-01-01' + make_interval(secs => {to} * 0.99);
         INSERT INTO run_labels
         SELECT {run}, 'team', 't' || n % 47, 'n' || n / 10 % 100, timestamptz '2026-01-01' + make_interval(secs => n)
         FROM generate_series({from}, {to} - 1) AS n;
         INSERT INTO messages (id, session_id, sequence, position, role, created_at)
         SELECT {message}, {session_of}, n + 1, n + 1, 'user', timestamptz '2026-01-01' + make_interval(secs => n)
         FROM generate_series({from}, {to} - 1) AS n;
         INSERT INTO run_tools SELECT {run}, 'Bash', 1, now() FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO run_model_usage
         SELECT {run}, 1, 'm', 1, 1, 1, 1, 1, 0, 1, CASE WHEN n % 1000 > 0 THEN 1 END, now()
         FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO workspaces (id, cluster, namespace, name, created_at, removed_at)
         SELECT {run}, 'c', 'n3', 'w', '2026-01-01', CASE WHEN n % 1000 > 0 THEN timestamptz '2026-02-01' END
         FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO run_patches (run_id, part, attempt, sequence, at, patch, files, binary_files, left_out)
         SELECT {run}, 'committed', 1, 1, now(), 'x', 1, 0, 0 FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO audit (actor, action, allowed, namespace, run_id, session_id)
         SELECT 'ann', 'kill', true, 'n' || n % 100, {run}, {session} FROM generate_series({from}, {to} - 1, 10) AS n;
         SELECT runledger_event_partition('2026-09-21');
         INSERT INTO run_attempts (run_id, attempt, started_day)
         SELECT {run}, 1, '2026-09-21' FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO run_events (run_id, attempt, sequence, started_day, at, type, body)
         SELECT {run}, 1, 1, '2026-09-21', now(), 'omitted', '{{}}' FROM generate_series({from}, {to} - 1, 10) AS n;
         INSERT INTO run_rollups (day, by_model, namespace, workflow_name, model, repository, runs, completed, failed,
             killed, unknown_cost, cost, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
             added_lines, removed_lines, costed, costed_lines)
         SELECT date '2023-01-01' + n, by_model, 'n' || c % 10, 'w' || c / 10, CASE WHEN by_model THEN 'm' ELSE '' END,
                '', 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2
         FROM generate_series(0, 999) AS n, generate_series(0, 49) AS c, (VALUES (true), (false)) AS b (by_model)
         ON CONFLICT DO NOTHING;
         INSERT INTO run_rollup_sums TABLE run_rollups_summed ON CONFLICT DO NOTHING;",
        id_of_user = id("n % 100", "7"),
    ));
    for (_, definition) in &indexes {
        script.push_str(&format!("{definition};"));
    }
    script.push_str("SET session_replication_role = origin; VACUUM ANALYZE;");
    for statement in script.split(';').filter(|s| !s.trim().is_empty()) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}

/// The server's and the controller's role, with the rights that `runledger migrate` gives them; both are
/// told their plans.
async fn roles(pool: &PgPool, url: &str) -> [Ledger; 2] {
    let database = url.rsplit_once('/').unwrap().1;
    let roles = ["server", "controller"].map(|part| format!("{part}_of_{database}"));
    for role in &roles {
        for statement in [
            format!("CREATE ROLE {role} LOGIN"),
            format!("ALTER ROLE {role} SET session_preload_libraries = 'auto_explain'"),
            format!("ALTER ROLE {role} SET auto_explain.log_min_duration = 0"),
            format!("ALTER ROLE {role} SET auto_explain.log_format = 'json'"),
            format!("ALTER ROLE {role} SET auto_explain.log_level = 'notice'"),
        ] {
            sqlx::query(AssertSqlSafe(statement))
                .execute(pool)
                .await
                .unwrap();
        }
    }
    let mut args = Args {
        connection: Connection::to(url),
        ..Args::default()
    };
    args.roles.server_role = Some(roles[0].clone());
    args.roles.controller_role = Some(roles[1].clone());
    migrate(&args, &mut Vec::new()).await.unwrap();
    roles.map(|role| {
        let url = url.replace("//runledger@", &format!("//{role}@"));
        Ledger::connect(&url).unwrap().of_cluster("c".to_owned())
    })
}

/// The events of another run than those that are there, with words of its own.
fn of_a_run(number: u128) -> Vec<Event> {
    let mut all = events(1, 2);
    for (event, n) in all.iter_mut().zip(0..) {
        if let EventBody::Message(message) = &mut event.body {
            message.id = Uuid::from_u128((number << 64) + n);
        }
    }
    all
}

async fn store(ledger: &Ledger, number: u128, events: &[Event]) {
    let mut batch = batch(1, events);
    batch.run_id = Uuid::from_u128(number << 64);
    ledger.store(TARGET, &batch, at(30)).await.unwrap();
}

/// Asks every hot question, and gives the plans by name.
async fn ask(
    [ledger, controller]: &[Ledger; 2],
    plans: &Plans,
    rows: u64,
) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    let mut keep = |name: &'static str| {
        let told = std::mem::take(&mut *plans.0.lock().unwrap());
        all.push((name, told.join("; ")));
    };
    let of = |change: &dyn Fn(&mut RunFilter)| {
        let mut filter = RunFilter::default();
        change(&mut filter);
        filter
    };
    let namespace = |f: &mut RunFilter| f.namespace = Some("n3".to_owned());
    let session: Uuid = "55555555-5555-5555-5555-000000000001".parse().unwrap();
    let ordinary: Uuid = "55555555-5555-5555-5555-000000000064".parse().unwrap();
    let middle = jiff::Timestamp::from_second(1_767_225_600 + rows as i64 / 2).unwrap();
    let key = RunKey {
        value: Some(middle.to_string()),
        id: Uuid::from_u128(9),
    };
    let lists: Vec<(&'static str, RunFilter, Option<&RunKey>)> = vec![
        ("all runs", of(&|_| ()), None),
        ("runs of a namespace", of(&namespace), None),
        (
            "runs of a namespace, a later page",
            of(&namespace),
            Some(&key),
        ),
        (
            "runs by status",
            of(&|f| {
                namespace(f);
                f.phase = Some(Phase::Completed);
            }),
            None,
        ),
        (
            "runs by status, a later page",
            of(&|f| {
                namespace(f);
                f.phase = Some(Phase::Completed);
            }),
            Some(&key),
        ),
        (
            "runs by label",
            of(&|f| {
                namespace(f);
                f.label = Some(("team".to_owned(), "t3".to_owned()));
            }),
            None,
        ),
        (
            "runs by label, a later page",
            of(&|f| {
                namespace(f);
                f.label = Some(("team".to_owned(), "t3".to_owned()));
            }),
            Some(&key),
        ),
        (
            "runs of a session",
            of(&|f| f.session_id = Some(ordinary)),
            None,
        ),
        (
            "runs of a workflow",
            of(&|f| f.workflow_name = Some("w3".to_owned())),
            None,
        ),
        (
            "runs of a branch",
            of(&|f| f.git_branch = Some("b3".to_owned())),
            None,
        ),
        (
            "runs of a user",
            of(&|f| f.user_id = Some("77777777-7777-7777-7777-000000000032".parse().unwrap())),
            None,
        ),
    ];
    // Connections log what they do to begin with, too.
    ledger.session_cost(session).await.unwrap();
    ledger.workspaces_there().await.unwrap();
    store(ledger, 1, &of_a_run(1)).await;
    controller.mirror(&running(1)).await.unwrap();
    plans.0.lock().unwrap().clear();
    for (name, filter, after) in lists {
        ledger
            .runs(&filter, Order::CreatedAt, Direction::Descending, after, 20)
            .await
            .unwrap();
        keep(name);
    }
    let run = Uuid::from_u128(7);
    ledger.run(run).await.unwrap().unwrap();
    keep("one run");
    ledger.run_status(run).await.unwrap().unwrap();
    keep("status of a run");
    ledger.run_diff(run).await.unwrap().unwrap();
    keep("changes of a run");
    ledger.run_patch(run).await.unwrap();
    keep("patch of a run");
    ledger.conversation(session, None, 100).await.unwrap();
    keep("a long conversation's end");
    let before = MessageKey {
        created_at: middle,
        sequence: Some(1),
        id: run,
    };
    ledger
        .conversation(session, Some(before), 100)
        .await
        .unwrap();
    keep("a long conversation's middle");
    ledger
        .messages_after(session, rows as i64 / 2, 100)
        .await
        .unwrap();
    keep("what is new in a conversation");
    ledger.sessions("n3", None, 3).await.unwrap();
    keep("sessions");
    let key = SessionKey {
        updated_at: middle,
        id: session,
    };
    ledger.sessions("n3", Some(key), 3).await.unwrap();
    keep("sessions, a later page");
    ledger.waiting_for_a_person("n3", 20).await.unwrap();
    keep("what waits for a person");
    ledger.session_cost(ordinary).await.unwrap();
    keep("cost of a session");
    ledger.audit_of_namespace("n3", None, 20).await.unwrap();
    keep("audit of a namespace");
    ledger.audit_of(Subject::Run(run), None, 20).await.unwrap();
    keep("audit of a run");
    ledger
        .audit_of(Subject::Session(ordinary), None, 20)
        .await
        .unwrap();
    keep("audit of a session");
    ledger.unpriced_models().await.unwrap();
    keep("what has no price");
    ledger.workspaces_there().await.unwrap();
    keep("workspaces that are there");
    ledger.ended_on_volumes_of_pods().await.unwrap();
    keep("volumes of pods");
    ledger
        .ended_on_the_workspace_of("n3", run, Uuid::from_u128(8))
        .await
        .unwrap();
    keep("runs of one workspace");
    for (name, order) in [
        ("runs of a session by end", Order::CompletedAt),
        ("runs of a session by duration", Order::DurationSeconds),
        ("runs of a session by workflow", Order::WorkflowName),
        ("runs of a session by status", Order::Status),
        ("runs of a session by cost", Order::CostEstimate),
        ("runs of a session by tokens", Order::TotalTokens),
        ("runs of a session by branch", Order::GitBranch),
    ] {
        let filter = of(&|f| f.session_id = Some(ordinary));
        ledger
            .runs(&filter, order, Direction::Descending, None, 20)
            .await
            .unwrap();
        keep(name);
    }
    let month = report::Query {
        since: jiff::civil::date(2024, 6, 1),
        until: jiff::civil::date(2024, 6, 30),
        namespace: None,
        workflow: None,
        model: None,
        repository: None,
        by: vec![report::By::Workflow, report::By::Model],
    };
    ledger.report(&month).await.unwrap();
    keep("cost of a month by workflow and model");
    let first = of_a_run(u128::from(rows));
    for (name, part) in [("first events", &first[..4]), ("all events", &first[..])] {
        store(ledger, u128::from(rows), part).await;
        keep(name);
    }
    let record = RunRecord {
        run_id: Uuid::from_u128(u128::from(rows) << 64),
        ..running(1)
    };
    controller.mirror(&record).await.unwrap();
    keep("a run of the controller");
    all
}

#[tokio::test]
async fn hot_queries_find_their_index_and_have_the_same_plan_at_any_size() {
    let db = migrated().await;
    let ledgers = roles(&db.pool, &db.url).await;
    let controller = &ledgers[1];
    let plans = Plans::default();
    // While there is but one subscriber, a place in the code that another thread comes by first (a
    // notice in another test) would be switched off for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _told =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(plans.clone()));
    fill(&db.pool, 0, 10_000).await;
    let small = ask(&ledgers, &plans, 10_000).await;
    let began = std::time::Instant::now();
    fill(&db.pool, 10_000, 1_000_000).await;
    eprintln!("a million rows took {:?}", began.elapsed());
    let large = ask(&ledgers, &plans, 1_000_000).await;
    let wrong: Vec<_> = small
        .iter()
        .zip(&large)
        .filter(|((_, small), (_, large))| {
            // Small, and read whole: what was not folded yet, and the prices.
            let of_large_tables = large
                .replace("Seq Scan run_rollup_deltas", "")
                .replace("Seq Scan model_prices", "");
            small != large || !large.contains("Index") || of_large_tables.contains("Seq Scan")
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Written once for a volume, by whatever way the index is read.
    let gone = [Uuid::from_u128(8)];
    controller.workspaces_gone(&gone, at(0)).await.unwrap();
    let written = plans.0.lock().unwrap().join("; ");
    let used: Vec<&str> = large
        .iter()
        .map(|(_, plan)| plan)
        .chain([&written])
        .flat_map(|plan| plan.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        .collect();
    let idle: Vec<String> = indexes_without_a_rule(&db.pool)
        .await
        .into_iter()
        .filter(|name| !used.contains(&name.as_str()))
        .collect();
    assert_eq!(idle, [""; 0], "no hot query uses them");
}

/// Indexes that no constraint stands on, nor the end of what a foreign key points at.
async fn indexes_without_a_rule(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE c.relnamespace = 'public'::regnamespace AND NOT i.indisunique
           AND NOT EXISTS (SELECT FROM pg_constraint k
                           WHERE k.conrelid = i.indrelid AND k.contype = 'f' AND k.conkey = ARRAY[i.indkey[0]])",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn every_index_says_what_it_is_for() {
    let db = migrated().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         WHERE c.relnamespace = 'public'::regnamespace AND obj_description(c.oid, 'pg_class') IS NULL
           AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid)
           AND c.relname NOT LIKE '\\_sqlx%'",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(silent, [""; 0]);
}
