//! A Postgres that lives as long as the tests do, and a database of its own for each test.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use runledger::ledger::{Ledger, migrate};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

/// A server. Its script removes it when our end of its input closes, which the end of this process
/// does, whatever that end is.
pub(crate) struct Server {
    pub(crate) url: String,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _script: Child,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/postgres starts");
        let input = script.stdin.take().unwrap();
        let mut output = BufReader::new(script.stdout.take().unwrap());
        let mut url = String::new();
        output.read_line(&mut url).unwrap();
        assert!(url.starts_with("postgres://"), "Postgres did not start");
        Self {
            url: url.trim().to_owned(),
            input,
            output,
            _script: script,
        }
    }

    /// `stop` (as a crash would) or `start`.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), "done", "{command}");
    }
}

/// The one that tests share.
fn shared() -> &'static str {
    static SERVER: OnceLock<Server> = OnceLock::new();
    &SERVER.get_or_init(Server::start).url
}

/// A database of a test.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
    pub(crate) ledger: Ledger,
}

/// An empty database.
pub(crate) async fn empty() -> String {
    create("").await
}

/// A database like that of this name.
pub(crate) async fn copy_of(name: &str) -> String {
    create(&format!("TEMPLATE {name}")).await
}

/// A database with the migrations applied.
pub(crate) async fn migrated() -> Database {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE
        .get_or_init(|| async {
            let url = empty().await;
            up(&url).await;
            url.rsplit_once('/').unwrap().1.to_owned()
        })
        .await;
    open(create(&format!("TEMPLATE {template}")).await).await
}

/// Applies the migrations.
pub(crate) async fn up(url: &str) {
    let args = migrate::Args {
        connection: runledger::ledger::connection::Connection::to(url),
        wait: 10,
        ..Default::default()
    };
    migrate::migrate(&args, &mut Vec::new()).await.unwrap();
}

pub(crate) async fn open(url: String) -> Database {
    Database {
        pool: PgPool::connect(&url).await.unwrap(),
        ledger: Ledger::connect(&url).unwrap(),
        url,
    }
}

async fn create(options: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let server = tokio::task::spawn_blocking(shared).await.unwrap();
    let mut connection = PgConnection::connect(server).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name} {options}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    format!("{}/{name}", server.rsplit_once('/').unwrap().0)
}

impl Database {
    /// A single value, as text.
    pub(crate) async fn one(&self, sql: &str) -> Option<String> {
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({sql})::text")))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Everything that is known, less what tells only when it was written.
    pub(crate) async fn everything(&self) -> String {
        let mut all = String::new();
        for (table, order) in [
            ("sessions", "id"),
            ("workflow_runs", "id"),
            ("run_attempts", "run_id, attempt"),
            ("run_events", "run_id, attempt, sequence"),
            ("messages", "id"),
            ("run_model_usage", "run_id, attempt, model"),
            ("run_tools", "run_id, tool"),
            ("run_labels", "run_id, key"),
            ("run_patches", "run_id, part"),
        ] {
            let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
                "SELECT jsonb_pretty(to_jsonb(t) - 'updated_at' - 'received_at'
                        - 'position' - 'last_position'
                        - CASE WHEN '{table}' IN ('sessions', 'run_attempts') THEN 'created_at' ELSE '' END)
                 FROM {table} t ORDER BY {order}"
            )))
            .fetch_all(&self.pool)
            .await
            .unwrap();
            all.push_str(&format!("{table}\n{}\n", rows.join("\n")));
        }
        all
    }
}

/// Both are the same; shows the lines that differ where they aren't.
pub(crate) fn assert_same(one: &str, other: &str, when: &str) {
    let differ: Vec<_> = one
        .lines()
        .zip(other.lines())
        .filter(|(a, b)| a != b)
        .take(10)
        .collect();
    assert!(one == other, "{when}: {differ:#?}");
}
