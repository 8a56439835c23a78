//! A Postgres of the benchmark's own, with the ledger in it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use runledger::ledger::{Ledger, migrate};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Its script removes it when our end of its input closes, which the end of this process does.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) ledger: Ledger,
    pub(crate) pool: PgPool,
    _script: Child,
}

impl Server {
    pub(crate) async fn start(root: &Path) -> Result<Self> {
        let mut script = Command::new(root.join("tests/postgres"))
            // What a server that holds millions of rows would be given; a quarter of the memory, as Postgres' manual has it.
            .args(["-c", "shared_buffers=6GB", "-c", "max_wal_size=8GB"])
            // As everywhere but in tests: what is committed is on the disk, for ours as for the reference.
            .args(["-c", "fsync=on", "-c", "full_page_writes=on"])
            .args([
                "-c",
                "maintenance_work_mem=512MB",
                "-c",
                "checkpoint_timeout=1h",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        let output = script.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut url).await?;
        let url = url.trim().to_owned();
        ensure!(url.starts_with("postgres://"), "Postgres did not start");
        migrate::migrate(&migrate_args(&url), &mut Vec::new()).await?;
        Ok(Self {
            ledger: Ledger::connect(&url)?,
            pool: PgPoolOptions::new()
                .max_connections(1)
                .connect(&url)
                .await?,
            url,
            _script: script,
        })
    }

    pub(crate) async fn version(&self) -> Result<String> {
        let version = sqlx::query_scalar("SHOW server_version").fetch_one(&self.pool);
        Ok(version.await?)
    }

    /// Statements whose results nobody wants.
    pub(crate) async fn run(&self, sql: &'static str) -> Result<()> {
        sqlx::raw_sql(sql).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }
}

fn migrate_args(url: &str) -> migrate::Args {
    use clap::Parser as _;
    migrate::Args::parse_from(["migrate", "--database-url", url])
}
