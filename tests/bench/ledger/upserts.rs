//! The controller's status upserts of distinct runs, beside pgbench's update of one row by its key: in
//! turn, and the best round of each counts.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use runledger::api::run::Phase;
use runledger::ledger::Ledger;
use runledger::ledger::records::RunRecord;
use tokio::process::Command;
use uuid::Uuid;

use crate::server::Server;
use crate::table::Table;

/// Writers at a time.
const WRITERS: usize = 8;
/// Runs of each in one round.
const RUNS: usize = 3000;
/// Rounds of both.
const ROUNDS: usize = 2;

pub(crate) async fn measure(server: &Server, table: &mut Table) -> Result<()> {
    let ledger = Arc::new(Ledger::connect(&server.url)?);
    pgbench(&server.url, "--initialize --quiet --scale=10").await?;
    let (mut upserts, mut reference) = (0.0_f64, 0.0_f64);
    for round in 0..ROUNDS {
        // Made first, so that what is measured is the upsert of a run that is there.
        write(&ledger, round, |record| record).await?;
        reference = reference.max(updates(&server.url).await?);
        let running = write(&ledger, round, |record| RunRecord {
            phase: Phase::Running,
            reason: Some("AgentRunning".to_owned()),
            attempt: 1,
            started_at: Some(record.created_at + SignedDuration::from_secs(5)),
            ..record
        });
        upserts = upserts.max(running.await?);
    }
    table.rate(
        "status upserts of distinct runs, 8 writers",
        0.5,
        upserts,
        ("pgbench, one row by its key", reference),
    );
    ledger.close().await;
    Ok(())
}

/// Upserts every run of the round once, and answers how many per second.
async fn write(
    ledger: &Arc<Ledger>,
    round: usize,
    as_it_is: fn(RunRecord) -> RunRecord,
) -> Result<f64> {
    let began = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let ledger = ledger.clone();
            let first = (round * WRITERS + writer) * RUNS;
            tokio::spawn(async move {
                for run in first..first + RUNS {
                    ledger.mirror(&as_it_is(record(run))).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    let all = u32::try_from(WRITERS * RUNS)?;
    Ok(f64::from(all) / began.elapsed().as_secs_f64())
}

/// Rate of `UPDATE … WHERE primary key = …` with as many clients.
async fn updates(url: &str) -> Result<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/ledger/update.sql");
    let words = format!(
        "--client={WRITERS} --jobs=2 --protocol=prepared --time=10 --no-vacuum --scale=10 --file={}",
        script.display()
    );
    let printed = pgbench(url, &words).await?;
    let tps = printed.lines().find_map(|line| line.strip_prefix("tps = "));
    let tps = tps
        .and_then(|line| line.split(' ').next())
        .with_context(|| printed.clone())?;
    Ok(tps.parse()?)
}

async fn pgbench(url: &str, words: &str) -> Result<String> {
    let output = Command::new("pgbench")
        .args(words.split(' '))
        .arg(url)
        .kill_on_drop(true)
        .output()
        .await
        .context("pgbench (Debian: postgresql-contrib)")?;
    ensure!(
        output.status.success(),
        "pgbench: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn record(number: usize) -> RunRecord {
    let created_at = Timestamp::from_second(1_790_000_000).unwrap()
        + SignedDuration::from_secs(i64::try_from(number).unwrap());
    RunRecord {
        run_id: Uuid::from_u128(0xa000_0000 + number as u128),
        namespace: "upserts".to_owned(),
        name: format!("run-{number}"),
        workflow_name: format!("workflow-{}", number % 20),
        task: Some(
            "The parser drops the last line of a file without a newline. Fix it, with a test."
                .to_owned(),
        ),
        session_id: runledger::ids::session("upserts", &format!("session-{number}")),
        session_name: format!("session-{number}"),
        repository: Some("https://git.example.com/team/parser.git".to_owned()),
        branch: Some("main".to_owned()),
        phase: Phase::Pending,
        reason: Some("Scheduling".to_owned()),
        message: None,
        attempt: 0,
        created_at,
        started_at: None,
        completed_at: None,
        workspace_id: Some(Uuid::from_u128(0xb000_0000 + number as u128)),
        workspace_persistent: true,
        workspace_path: Some(format!("pvc://upserts/workspace-{number}/work")),
        labels: [("team".to_owned(), "red".to_owned())].into(),
        agent_image: Some("registry.example.com/agent:1".to_owned()),
        settings: serde_json::json!({"maxTurns": 50})
            .as_object()
            .unwrap()
            .clone(),
        model: Some("claude-sonnet".to_owned()),
        usage: None,
        earlier: vec![],
        changes: None,
        transcript_missing_from: None,
        kill: None,
    }
}
