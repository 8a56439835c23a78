//! What the controller costs and how fast it is, beside what Kubernetes' own Job controller costs on the
//! same machine in the same run. Nothing about time is asserted; that every run has its one row, and how
//! often the API server is written to for it, is.
//!
//! `make bench-controller [N=1000] [POLICY=off]` runs it. It stands on a cluster and a Postgres of its own, and leaves
//! nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod audit;
mod cluster;
mod kinds;
mod ledger;
#[path = "../machine.rs"]
mod machine;
mod measure;
mod process;
#[path = "../procfs.rs"]
mod procfs;
mod report;
mod watch;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use cluster::{Cluster, JOB_CONTROLLER, wait};
use kinds::Kind;
use ledger::Ledger;
use measure::{Arrival, Measured, measure};
use process::{Machine, Process};
use report::{Report, Runs};

/// How many come one by one.
const STEADY: usize = 50;
/// How many come as others are done, at most.
const TURNS: usize = 500;
/// What is not the cluster's own, as the table of processes calls it.
const BENCH: &str = "the benchmark itself";
const RUNLEDGER: &str = "runledger controller";
/// Argument: as on a cluster that has no MutatingAdmissionPolicies.
const WITHOUT_POLICY: &str = "without-policy";
/// Most writes for a run on an emptyDir.
const MOST_WRITES: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    let usage = "usage: bench-controller [NUMBER OF OBJECTS] [without-policy]";
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let with_policy = arguments.pop_if(|last| last == WITHOUT_POLICY).is_none();
    let count = match &arguments[..] {
        [] => 1000,
        [count] => count.parse().context(usage)?,
        _ => bail!(usage),
    };
    ensure!((1..=20_000).contains(&count), "N is from 1 to 20000");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let name = format!("bench-{}", std::process::id());
    let mut terminate = signal(SignalKind::terminate())?;
    // Children are started here, in the main thread: they end when it does.
    let result = tokio::select! {
        result = bench(&root, &name, count, with_policy) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("told to stop")),
    };
    let down = Cluster::down(&root, &name).await;
    result?;
    down
}

async fn bench(root: &Path, name: &str, count: usize, with_policy: bool) -> Result<()> {
    let began = Instant::now();
    let say = |what: &str| eprintln!("[{:3.0} s] {what}", began.elapsed().as_secs_f64());
    say("a cluster and a Postgres are brought up");
    let machine = machine::line(root)?;
    let ledger = Ledger::start(root).await?;
    let cluster = Cluster::up(root, name).await?;
    let kubeconfig = cluster.install(with_policy).await?;
    let _kwok = cluster.feign_node().await?;
    let folder = cluster.variable("RUNLEDGER_CLUSTER_DIR")?;
    let processes = [(BENCH, std::process::id()), ("Postgres", ledger.process()?)];
    let busy = Machine::of(folder, &processes).await?;
    let manager = Process::component("kube-controller-manager", folder).await?;
    let audit_log = Path::new(cluster.variable("RUNLEDGER_AUDIT_LOG")?).to_owned();

    let one = |kind, namespace: &'static str, count, of| {
        measure(&cluster, kind, namespace, count, Arrival::Burst, &busy, of)
    };
    let arriving = |kind, namespace: &'static str, arrival| {
        let count = match arrival {
            Arrival::Turns => count.min(TURNS),
            _ => STEADY,
        };
        measure(&cluster, kind, namespace, count, arrival, &busy, None)
    };
    let steady = |kind, namespace| arriving(kind, namespace, Arrival::Steady);
    let turns = |kind, namespace| arriving(kind, namespace, Arrival::Turns);
    // What is done once (connections, first lists) is done for one object that isn't measured.
    one(Kind::Pod, "warm-pods", 1, None).await?;
    say(&format!("{count} pods"));
    let pods = one(Kind::Pod, "bench-pods", count, None).await?;
    cluster.clear("bench-pods").await?;

    one(Kind::Job, "warm-jobs", 1, None).await?;
    say(&format!("{count} Jobs"));
    let jobs = one(Kind::Job, "bench-jobs", count, Some(manager)).await?;
    let job_writes: usize = audit::writes(&audit_log, JOB_CONTROLLER, "bench-jobs")?
        .values()
        .sum();
    let steady_jobs = steady(Kind::Job, "steady-jobs").await?;
    cluster.clear("steady-jobs").await?;
    let turns_jobs = turns(Kind::Job, "turns-jobs").await?;
    cluster.clear("turns-jobs").await?;
    cluster.clear("bench-jobs").await?;

    let controller_log = cluster.file("controller.log")?;
    let mut controller = start_controller(&kubeconfig, &ledger, &controller_log, with_policy)?;
    let watched = Process::of(controller.id().context("the controller has ended")?).await?;
    let runs = async {
        if with_policy {
            let what = "the controller has bound the policy";
            wait(what, async || {
                Kind::is_held(&cluster.client, "default").await
            })
            .await?;
        }
        one(Kind::Run, "warm-runs", 1, None).await?;
        say(&format!("{count} WorkflowRuns"));
        let busy = busy.with(RUNLEDGER, watched);
        let (kind, of) = (Kind::Run, Some(watched));
        let runs = measure(
            &cluster,
            kind,
            "bench-runs",
            count,
            Arrival::Burst,
            &busy,
            of,
        )
        .await?;
        let steady_runs = steady(Kind::Run, "steady-runs").await?;
        anyhow::Ok((runs, steady_runs, turns(Kind::Run, "turns-runs").await?))
    };
    let (runs, steady_runs, turns_runs) = runs.await.inspect_err(|_| {
        let log = std::fs::read_to_string(&controller_log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(30);
        eprintln!(
            "the controller's log ends with\n{}",
            lines[last..].join("\n")
        );
    })?;
    let judged = judge(&runs, &ledger, &audit_log, watched).await?;

    cluster.namespace("learn").await?;
    kinds::learn_pod_of_a_run(&cluster.client, "learn").await?;
    controller.kill().await?;
    // Once more: a machine that others share is not as fast now as it was then.
    say(&format!("{count} Jobs again"));
    let jobs_again = one(Kind::Job, "bench-jobs-again", count, Some(manager)).await?;
    cluster.clear("bench-jobs-again").await?;
    cluster.clear("steady-runs").await?;
    cluster.clear("turns-runs").await?;
    cluster.clear("bench-runs").await?;
    one(Kind::JobOfRunPod, "warm-big-jobs", 1, None).await?;
    say(&format!("{count} Jobs of a run's pod"));
    let big_jobs = one(Kind::JobOfRunPod, "bench-big-jobs", count, Some(manager)).await?;
    let report = Report {
        machine,
        with_policy,
        kubernetes: cluster.version().await?,
        postgres: ledger.version.clone(),
        runs: judged,
        #[allow(clippy::cast_precision_loss)]
        job_writes: job_writes as f64 / count as f64,
        measured: [pods, jobs, runs, jobs_again, big_jobs],
        steady: [steady_jobs, steady_runs],
        turns: [turns_jobs, turns_runs],
    };
    say("done");
    println!("{report}");
    Ok(())
}

fn start_controller(
    kubeconfig: &Path,
    ledger: &Ledger,
    log: &Path,
    with_policy: bool,
) -> Result<Child> {
    // Taken and given back: nobody else is likely to take just this one in between.
    let health = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut controller = process::tied(env!("CARGO_BIN_EXE_runledger"));
    controller.args([
        "controller",
        "--image=registry.example.com/runledger:1",
        "--agent-image=registry.example.com/agent:1",
        "--server-url=https://runledger-server.runledger-system.svc:8443",
        &format!("--listen={health}"),
    ]);
    if with_policy {
        controller.arg("--admission-policy=v1beta1");
    }
    controller
        .env("KUBECONFIG", kubeconfig)
        .env("DATABASE_URL", &ledger.url)
        .env("RUST_LOG", "info");
    process::start(&mut controller, log)
}

/// What has to hold of the runs, and what is measured of nothing else.
async fn judge(
    runs: &Measured,
    ledger: &Ledger,
    audit_log: &Path,
    controller: Process,
) -> Result<Runs> {
    let finals = ledger.finals("bench-runs", runs.count).await?;
    let mut to_row: Vec<f64> = runs
        .lives
        .iter()
        .filter_map(|(name, life)| Some((finals.get(name)? - life.pod_ended?).max(0.0)))
        .collect();
    to_row.sort_by(f64::total_cmp);
    ensure!(to_row.len() == runs.count, "{} rows in time", to_row.len());
    let mut writes = HashMap::<String, usize>::new();
    for (name, count) in audit::writes(audit_log, cluster::CONTROLLER, "bench-runs")? {
        // A pod's name is its run's and the attempt.
        let run = name.split('-').next().unwrap_or_default().to_owned();
        *writes.entry(run).or_default() += count;
    }
    let total: usize = writes.values().sum();
    let most = writes.iter().max_by_key(|(_, count)| **count);
    let (worst, most) = most.context("the audit log shows no write")?;
    ensure!(
        writes.len() == runs.count,
        "writes for {} runs",
        writes.len()
    );
    ensure!(
        *most <= MOST_WRITES,
        "run {worst} cost {most} writes to the API server; {MOST_WRITES} are allowed"
    );
    Ok(Runs {
        to_row,
        peak_memory: controller.peak_memory()?,
        #[allow(clippy::cast_precision_loss)]
        writes: total as f64 / runs.count as f64,
        most_writes: *most,
    })
}
