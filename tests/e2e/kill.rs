//! Signals to processes inside the suite's own cluster, found by the pod that they belong to.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::World;

/// A process of a pod, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: Vec<String>,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {self:?}"))
    }

    /// Whether it is still there, stopped or not, and no zombie.
    pub(crate) fn lives(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    }

    /// Whether it is `runledger <subcommand>`.
    pub(crate) fn is_runledger(&self, subcommand: &str) -> bool {
        let program = self
            .command
            .first()
            .map(|path| Path::new(path).file_name().unwrap_or_default());
        program.is_some_and(|name| name == "runledger")
            && self.command.iter().any(|word| word == subcommand)
    }

    /// Whether it is the CLI.
    pub(crate) fn is_claude(&self) -> bool {
        let exe = std::fs::read_link(format!("/proc/{}/exe", self.pid)).unwrap_or_default();
        exe.to_string_lossy().contains("claude")
    }
}

/// Every process of a pod of this cluster. The pod's uid is in its cgroup's path.
pub(crate) fn processes(pod_uid: &str) -> Vec<Process> {
    let underscored = pod_uid.replace('-', "_");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if !cgroup.contains(pod_uid) && !cgroup.contains(&underscored) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = command
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        found.push(Process { pid, command });
    }
    found
}

/// The one process of a pod that is `runledger <subcommand>`.
pub(crate) fn runledger(pod_uid: &str, subcommand: &str) -> Result<Process> {
    let all = processes(pod_uid);
    match all.iter().find(|process| process.is_runledger(subcommand)) {
        Some(process) => Ok(process.clone()),
        None => bail!("pod {pod_uid} has no process `runledger {subcommand}`: {all:?}"),
    }
}

/// Kills `runledger <subcommand>` in every pod of the product, as a power cut would.
pub(crate) async fn product(world: &World, subcommand: &str) -> Result<usize> {
    let pods = world.api::<k8s_openapi::api::core::v1::Pod>(crate::world::SYSTEM);
    let mut killed = 0;
    for pod in pods.list(&kube::api::ListParams::default()).await? {
        let uid = pod.metadata.uid.unwrap_or_default();
        for process in processes(&uid)
            .iter()
            .filter(|process| process.is_runledger(subcommand))
        {
            process.signal(Signal::SIGKILL)?;
            world.restarts.killed(&uid);
            killed += 1;
        }
    }
    Ok(killed)
}
