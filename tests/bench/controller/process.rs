//! Processes: started so that they end when this one does, however that is; and what they have used.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::procfs;

/// A command that the kernel kills when the thread that starts it ends: to be started by the main one.
pub(crate) fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Starts it with its output in that file.
pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Child> {
    let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
    let child = command.stdout(log.try_clone()?).stderr(log).spawn();
    child.context("starting a process (setpriv is of the package util-linux)")
}

/// Runs a command to its end and returns its standard output.
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    let what = format!("{:?}", command.as_std().get_program());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    let output = child.wait_with_output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what} ended with {}:\n{text}", output.status);
    }
    Ok(text)
}

/// A process that is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pid: u32,
    ticks_per_second: f64,
}

impl Process {
    /// That one.
    pub(crate) async fn of(pid: u32) -> Result<Self> {
        let ticks = output(Command::new("getconf").arg("CLK_TCK")).await?;
        Ok(Self {
            pid,
            ticks_per_second: ticks.trim().parse().context("CLK_TCK")?,
        })
    }

    /// The component of the cluster whose files are in that folder.
    pub(crate) async fn component(name: &str, folder: &str) -> Result<Self> {
        match components(folder)?.get(name) {
            Some(pid) => Self::of(*pid).await,
            None => bail!("no {name} of the cluster in {folder} runs"),
        }
    }

    /// Seconds of CPU that it has used, in its own code and in the kernel.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let ticks: u64 = procfs::stat(self.pid)?.iter().skip(11).take(2).sum();
        #[allow(clippy::cast_precision_loss)]
        Ok(ticks as f64 / self.ticks_per_second)
    }

    /// The most memory that it has ever had, in MiB.
    pub(crate) fn peak_memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("/proc/PID/status names no VmHWM")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}

/// The components of the cluster whose files are in that folder.
fn components(folder: &str) -> Result<BTreeMap<String, u32>> {
    let mut all = BTreeMap::new();
    for pid in procfs::processes()? {
        // A process that has just ended has none.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        let [program, arguments @ ..] = words.as_slice() else {
            continue;
        };
        let program = program.rsplit('/').next().unwrap_or_default();
        // Kubernetes' own are one binary, which is told what it is to be.
        let name = match (program, arguments) {
            ("kube", [name, ..]) => name,
            _ => program,
        };
        if arguments.iter().any(|word| word.contains(folder)) {
            all.insert(name.to_owned(), pid);
        }
    }
    Ok(all)
}

/// All that takes the machine's time while something is measured, by what it is.
#[derive(Clone)]
pub(crate) struct Machine {
    parts: BTreeMap<String, u32>,
    ticks_per_second: f64,
}

/// Seconds of CPU by who used them.
pub(crate) type Shares = BTreeMap<String, f64>;

impl Machine {
    /// The cluster whose files are in that folder, and these processes with all that they start.
    pub(crate) async fn of(folder: &str, others: &[(&str, u32)]) -> Result<Self> {
        let mut parts = components(folder)?;
        parts.extend(others.iter().map(|(name, pid)| ((*name).to_owned(), *pid)));
        let ticks_per_second = Process::of(std::process::id()).await?.ticks_per_second;
        Ok(Self {
            parts,
            ticks_per_second,
        })
    }

    /// The same, and that process.
    pub(crate) fn with(&self, name: &str, process: Process) -> Self {
        let mut machine = self.clone();
        machine.parts.insert(name.to_owned(), process.pid);
        machine
    }

    /// What each has used until now, and what the machine was busy with besides.
    pub(crate) fn shares(&self) -> Result<Shares> {
        let mut stats = BTreeMap::new();
        for pid in procfs::processes()? {
            // It may have ended meanwhile.
            if let Ok(stat) = procfs::stat(pid) {
                stats.insert(pid, stat);
            }
        }
        let field = |pid: u32, field: usize| stats.get(&pid).and_then(|stat| stat.get(field));
        let mut shares = Shares::new();
        let mut known = 0.0;
        for (name, root) in &self.parts {
            let own = |pid: u32| {
                std::iter::successors(Some(pid), |pid| {
                    let parent = u32::try_from(*field(*pid, 1)?).ok()?;
                    // What is started by one part may be another.
                    (!self.parts.values().any(|part| part == pid)).then_some(parent)
                })
                .any(|pid| pid == *root)
            };
            // With the children that have ended.
            let ticks: u64 = stats
                .iter()
                .filter(|(pid, _)| own(**pid))
                .flat_map(|(_, stat)| stat.iter().skip(11).take(4))
                .sum();
            #[allow(clippy::cast_precision_loss)]
            let seconds = ticks as f64 / self.ticks_per_second;
            known += seconds;
            shares.insert(name.clone(), seconds);
        }
        shares.insert(REST.to_owned(), self.busy()? - known);
        Ok(shares)
    }

    /// How long the machine's cores were busy.
    fn busy(&self) -> Result<f64> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let all = stat.lines().next().context("/proc/stat")?;
        let ticks: Vec<f64> = all
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        // user, nice, system, idle, iowait, irq, softirq
        let busy = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at));
        Ok(busy.sum::<f64>() / self.ticks_per_second)
    }
}

/// What is none of the parts of a [`Machine`].
pub(crate) const REST: &str = "all else on the machine";
