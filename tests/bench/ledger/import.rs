//! The import of the earlier system's rows, in a process of its own, whose memory is watched: a tenth
//! of the rows beside all of them shows whether it grows with them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser as _;
use runledger::ledger::{legacy, migrate};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::process::Command;

use crate::server::Server;
use crate::table::Table;

const ROWS: u32 = 100_000;
/// The word that makes this program the process that imports.
pub(crate) const WORD: &str = "import";

pub(crate) async fn measure(server: &Server, table: &mut Table) -> Result<()> {
    let (_, tenth) = import(server, "earlier_tenth", ROWS / 10).await?;
    let (took, whole) = import(server, "earlier", ROWS).await?;
    table.row(
        &format!("import of {ROWS} legacy rows"),
        "≤ 60 s, memory flat",
        format!("{:.1} s, {whole:.0} MiB at most", took.as_secs_f64()),
        format!("a tenth of them: {tenth:.0} MiB"),
        format!("{:.2}", whole / tenth),
    );
    Ok(())
}

/// How long it took, and the most memory that it had, in MiB.
async fn import(server: &Server, database: &str, rows: u32) -> Result<(Duration, f64)> {
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {database}")))
        .execute(&server.pool)
        .await?;
    let (base, _) = server
        .url
        .rsplit_once('/')
        .context("no database in the URL")?;
    let url = format!("{base}/{database}");
    let mut connection = PgConnection::connect(&url).await?;
    let tables = include_str!("../../ledger/earlier.sql");
    let oddities = include_str!("../../ledger/legacy_rows.sql");
    let script = format!(
        "{tables}; CREATE FUNCTION seed() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 1::bigint';
         CREATE FUNCTION rows() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT {rows}'; {oddities}"
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(&mut connection)
        .await?;
    sqlx::raw_sql("ANALYZE").execute(&mut connection).await?;
    connection.close().await?;
    migrate::migrate(
        &migrate::Args::parse_from(["migrate", "--database-url", &url]),
        &mut Vec::new(),
    )
    .await?;
    let output = Command::new(std::env::current_exe()?)
        .args([WORD, &url])
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let (seconds, memory) = text.trim().split_once(' ').context(text.clone())?;
    Ok((Duration::from_secs_f64(seconds.parse()?), memory.parse()?))
}

/// Imports, and prints the seconds that it took and the MiB that it had at most.
pub(crate) async fn run(url: &str) -> Result<()> {
    let began = Instant::now();
    let args = migrate::Args::parse_from(["migrate", "--database-url", url]);
    migrate::import_legacy(&args, &legacy::ImportArgs::default(), &mut std::io::sink()).await?;
    let took = began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?;
    println!("{took} {}", kib.parse::<f64>()? / 1024.0);
    Ok(())
}
