//! The processes of the agent's container. As PID 1 the agent inherits every orphan: it reaps them
//! all along, and ends every one before it reports.

use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Error;

/// How the CLI ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// The CLI's process.
#[derive(Debug)]
pub(super) struct Running {
    group: Pid,
    /// How it ended, once it has.
    pub(super) exit: watch::Receiver<Option<Exit>>,
}

/// The CLI's streams.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

/// Starts the CLI, and a reaper for it and for every orphan.
pub(super) fn start(mut command: Command) -> Result<(Running, Streams), Error> {
    let mut sigchld = signal(SignalKind::child()).map_err(Error::Signal)?;
    let mut child = command.spawn().map_err(Error::Start)?;
    let group = i32::try_from(child.id())
        .map(Pid::from_raw)
        .unwrap_or(Pid::from_raw(0));
    let streams = streams(&mut child).map_err(Error::Start)?;
    let (ended, exit) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            reap(group, &ended);
            if sigchld.recv().await.is_none() {
                return;
            }
        }
    });
    Ok((Running { group, exit }, streams))
}

fn streams(child: &mut Child) -> std::io::Result<Streams> {
    let missing = || std::io::Error::other("a pipe is missing");
    Ok(Streams {
        stdin: pipe::Sender::from_owned_fd(child.stdin.take().ok_or_else(missing)?.into())?,
        stdout: pipe::Receiver::from_owned_fd(child.stdout.take().ok_or_else(missing)?.into())?,
        stderr: pipe::Receiver::from_owned_fd(child.stderr.take().ok_or_else(missing)?.into())?,
    })
}

/// Takes the end of every child that has ended; that of the CLI is told.
fn reap(cli: Pid, ended: &watch::Sender<Option<Exit>>) {
    loop {
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (
                pid,
                Exit {
                    code: Some(code),
                    signal: None,
                },
            ),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (
                pid,
                Exit {
                    code: None,
                    signal: Some(signal as i32),
                },
            ),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "processes can't be reaped");
                return;
            }
        };
        if pid == cli {
            ended.send_replace(Some(exit));
        }
    }
}

impl Running {
    /// Sends a signal to the CLI's process group.
    pub(super) fn signal(&self, signal: Signal) {
        if self.exit.borrow().is_none() {
            let _ = killpg(self.group, signal);
        }
    }

    /// Resolves once the CLI has ended.
    pub(super) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => (*exit).unwrap_or(Exit {
                code: None,
                signal: None,
            }),
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends every other process: of the container as its PID 1, else of the CLI's group.
    pub(super) fn end_all(&self) {
        let sent = if std::process::id() == 1 {
            kill(Pid::from_raw(-1), Signal::SIGKILL)
        } else {
            killpg(self.group, Signal::SIGKILL)
        };
        if let Err(error) = sent
            && error != Errno::ESRCH
        {
            tracing::warn!(%error, "the remaining processes can't be ended");
        }
    }
}

/// Out-of-memory kills that the container's cgroup has counted; nothing where that can't be read.
pub(super) fn oom_kills() -> Option<u64> {
    [
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ]
    .iter()
    .find_map(|path| oom_kills_in(&std::fs::read_to_string(path).ok()?))
}

fn oom_kills_in(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_kills_are_read_from_either_version_of_cgroups() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!((oom_kills_in(v2), oom_kills_in(v1)), (Some(1), Some(3)));
        assert_eq!(oom_kills_in("oom_kill_disable 0\n"), None);
    }
}
