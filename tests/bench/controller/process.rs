//! Processes: started so that they end when this one does, however that is; and what they have used.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

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
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            // A process that has just ended has none.
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split('\0');
            if words.nth(1) == Some(name) && words.any(|word| word.contains(folder)) {
                return Self::of(pid).await;
            }
        }
        bail!("no {name} of the cluster in {folder} runs");
    }

    /// Seconds of CPU that it has used, in its own code and in the kernel.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // Its second field is a name that may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let ticks: f64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        Ok(ticks / self.ticks_per_second)
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
