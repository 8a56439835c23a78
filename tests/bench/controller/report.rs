//! What is printed: the table, and what it was measured on, to be quoted together.

use std::collections::BTreeSet;
use std::fmt;

use crate::kinds::Kind;
use crate::measure::{CREATORS, Measured};

/// The process whose CPU limits all kinds.
const API_SERVER: &str = "kube-apiserver";

/// All that was measured.
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) with_policy: bool,
    pub(crate) kubernetes: String,
    pub(crate) postgres: String,
    /// In the order in which it was: Jobs before the runs and after.
    pub(crate) measured: [Measured; 5],
    /// Jobs and runs that come one by one.
    pub(crate) steady: [Measured; 2],
    /// Jobs and runs that come as others are done.
    pub(crate) turns: [Measured; 2],
    pub(crate) job_writes: f64,
    pub(crate) runs: Runs,
}

/// What is measured of runs alone.
pub(crate) struct Runs {
    /// From the end of the pod to the final row, in seconds, in order.
    pub(crate) to_row: Vec<f64>,
    /// Of the controller, in MiB.
    pub(crate) peak_memory: f64,
    /// Writes to the API server for a run.
    pub(crate) writes: f64,
    /// The most of them for one run.
    pub(crate) most_writes: usize,
}

/// The value below which that part of them lies, in milliseconds.
fn percentile(ordered: &[f64], part: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let at = (part * ordered.len() as f64).ceil() as usize;
    ordered
        .get(at.saturating_sub(1))
        .map_or(f64::NAN, |seconds| seconds * 1000.0)
}

fn both(ordered: &[f64]) -> String {
    if ordered.is_empty() {
        return "–".to_owned();
    }
    format!(
        "{:.0} / {:.0}",
        percentile(ordered, 0.5),
        percentile(ordered, 0.99)
    )
}

impl Report {
    /// Which process the machine's time went into.
    fn processes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n| CPU, ms each |")?;
        for measured in &self.measured {
            write!(f, " {} |", measured.kind.title())?;
        }
        write!(f, "\n|---|")?;
        for _ in &self.measured {
            write!(f, "---:|")?;
        }
        let names: BTreeSet<&String> = self.measured.iter().flat_map(|m| m.shares.keys()).collect();
        for name in names {
            #[allow(clippy::cast_precision_loss)]
            let each: Vec<f64> = self
                .measured
                .iter()
                .map(|m| m.shares.get(name).unwrap_or(&0.0) * 1000.0 / m.count as f64)
                .collect();
            // Who had nothing to do with any of them is not worth a line.
            if each.iter().all(|ms| *ms < 0.25) {
                continue;
            }
            write!(f, "\n| {name} |")?;
            for ms in each {
                write!(f, " {ms:.1} |")?;
            }
        }
        writeln!(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, jobs, runs, jobs_again, _] = &self.measured;
        let rate_of_jobs = f64::midpoint(jobs.rate, jobs_again.rate);
        writeln!(
            f,
            "`make bench-controller N={}{}`: {}.",
            runs.count,
            if self.with_policy { "" } else { " POLICY=off" },
            self.machine
        )?;
        writeln!(
            f,
            "Kubernetes {}, Postgres {}, runledger {} ({} profile); {CREATORS} creators; pods of a feigned node, which complete at once.\n",
            self.kubernetes,
            self.postgres,
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) {
                "dev"
            } else {
                "release"
            }
        )?;
        writeln!(
            f,
            "| | done per second | × Job | object to pod, p50 / p99 ms | controller's CPU, ms each | API server's CPU, ms each | controller's writes each |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
        for measured in &self.measured {
            #[allow(clippy::cast_precision_loss)]
            let each = |seconds: f64| seconds * 1000.0 / measured.count as f64;
            let controller = measured
                .controller_cpu
                .map(|cpu| format!("{:.1}", each(cpu)));
            let writes = match measured.kind {
                Kind::Pod => "–".to_owned(),
                Kind::Job | Kind::JobOfRunPod => format!("{:.1}", self.job_writes),
                Kind::Run => format!("{:.1}", self.runs.writes),
            };
            writeln!(
                f,
                "| {} | {:.1} | {:.2} | {} | {} | {:.1} | {writes} |",
                measured.kind.title(),
                measured.rate,
                measured.rate / rate_of_jobs,
                both(&measured.to_pod),
                controller.unwrap_or_else(|| "–".to_owned()),
                each(measured.shares.get(API_SERVER).copied().unwrap_or(f64::NAN)),
            )?;
        }
        self.processes(f)?;
        let [steady_jobs, steady_runs] = &self.steady;
        writeln!(
            f,
            "\nWhere {} come one by one, a fifth of a second apart, it is {} ms from object to pod (p50 / p99) for a Job and {} ms for a run.",
            steady_runs.count,
            both(&steady_jobs.to_pod),
            both(&steady_runs.to_pod),
        )?;
        let [turns_jobs, turns_runs] = &self.turns;
        writeln!(
            f,
            "Where each of the {CREATORS} asks for its next once its last is done ({} in all), it is {} ms for a Job and {} ms for a run, of which {:.1} and {:.1} are done per second.",
            turns_runs.count,
            both(&turns_jobs.to_pod),
            both(&turns_runs.to_pod),
            turns_jobs.rate,
            turns_runs.rate,
        )?;
        writeln!(
            f,
            "\nRunledger's controller: {:.0} MiB at its peak; from the end of a pod to the final row in Postgres {} ms (p50 / p99); at most {} writes for one run; each of the {} runs has its one row. A Job's controller is kube-controller-manager, with all else that it does meanwhile.",
            self.runs.peak_memory,
            both(&self.runs.to_row),
            self.runs.most_writes,
            runs.count,
        )
    }
}
