//! The untrusted half of a run's pod (`runledger agent`), PID 1 of the main container in any image:
//! it drives the Claude CLI over stream-json, tells the supervisor every line, and goes last. It
//! holds no secret and decides nothing: what its lines are worth is the supervisor's business.

mod cli;
mod link;
mod outbox;
mod output;
mod processes;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::link::{Heard, Link};
use self::outbox::Outbox;
use self::output::Output;
use self::processes::{Exit, Running};
use crate::pod::{paths, ports};
use crate::wire::door::{End, FromAgent, Start};

/// How long a CLI may take to exit after its result.
const AFTER_RESULT: Duration = Duration::from_secs(10);
/// The steps by which a CLI is stopped: within 5 s it is gone.
const STOP_STEPS: [(Duration, Signal); 2] = [
    (Duration::from_millis(2000), Signal::SIGTERM),
    (Duration::from_millis(1500), Signal::SIGKILL),
];
/// How long the supervisor may be away, at the start, at work and at the end: the kubelet backs off up to 5 minutes
/// before it starts it again, and a run whose seal is still to come is lost with its agent.
const AWAY: Duration = Duration::from_secs(360);
/// How long output may still come after the last process has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// `runledger agent`
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder that every path of the pod is below.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
    /// Port of the metering proxy.
    #[arg(long, default_value_t = ports::PROXY, hide = true)]
    proxy_port: u16,
    /// Port of the door.
    #[arg(long, default_value_t = ports::DOOR, hide = true)]
    door_port: u16,
    /// The Claude CLI.
    #[arg(long, default_value = "claude", hide = true)]
    claude: PathBuf,
}

impl Args {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Why an agent ended without the supervisor's word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process can't be closed to others of its user.
    #[error("the agent can't be made undumpable")]
    Dumpable(#[source] nix::Error),
    /// No nonce, no door.
    #[error("the nonce of the supervisor's door can't be read")]
    Nonce(#[source] io::Error),
    /// Signals can't be received.
    #[error("signals can't be received")]
    Signal(#[source] io::Error),
    /// The CLI.
    #[error("the CLI can't be started")]
    Start(#[source] io::Error),
    /// The supervisor is gone for good.
    #[error("the supervisor has been away for {0} s")]
    Lost(u64),
}

/// Runs the agent; returns its exit code, as the supervisor said it.
pub async fn run(args: Args) -> Result<u8, Error> {
    // The shell of the model runs as the same user: it must not read the nonces in our memory.
    nix::sys::prctl::set_dumpable(false).map_err(Error::Dumpable)?;
    let terminate = terminate()?;
    let nonce = link::take_nonce(&args.path(paths::NONCE))
        .await
        .map_err(Error::Nonce)?;
    let outbox = Arc::new(Outbox::default());
    let (heard_by, heard) = watch::channel(Heard::nothing());
    let link = Link {
        port: args.door_port,
        nonce,
        outbox: outbox.clone(),
        heard: heard_by,
    };
    tokio::spawn(link.run());
    let start = tokio::select! {
        start = told(&heard, |heard| heard.start.clone()) => start,
        () = away(&heard, AWAY) => return Err(Error::Lost(AWAY.as_secs())),
    };
    let resumed = cli::has_transcript(&args.path(paths::HOME), start.session_id);
    outbox
        .push(|number| FromAgent::Began { number, resumed })
        .await;
    let end = drive(&args, &start, resumed, &outbox, &heard, terminate).await?;
    outbox
        .push(|number| FromAgent::Ended {
            number,
            end: end.clone(),
        })
        .await;
    tokio::select! {
        code = told(&heard, |heard| heard.sealed) => Ok(u8::try_from(code).unwrap_or(1)),
        () = away(&heard, AWAY) => Err(Error::Lost(AWAY.as_secs())),
    }
}

/// From the start of the CLI until it and every other process are gone.
async fn drive(
    args: &Args,
    start: &Start,
    resumed: bool,
    outbox: &Arc<Outbox>,
    heard: &watch::Receiver<Heard>,
    terminate: watch::Receiver<bool>,
) -> Result<End, Error> {
    let oom_before = processes::oom_kills();
    let (running, streams) = match processes::start(cli::command(args, start, resumed)) {
        Ok(started) => started,
        Err(Error::Start(error)) => {
            let stderr = format!("{} can't be started: {error}", args.claude.display());
            return Ok(End {
                stderr,
                ..End::default()
            });
        }
        Err(error) => return Err(error),
    };
    let (stdin, lines) = mpsc::channel(4);
    let writing = tokio::spawn(write(streams.stdin, lines));
    let _ = stdin.send(cli::user_line(&start.task)).await;
    let output = Output::read(streams.stdout, streams.stderr, outbox.clone());

    let stopping = async {
        tokio::select! {
            () = terminated(terminate) => "SIGTERM",
            () = told(heard, |heard| heard.stop.then_some(())) => "the supervisor's word",
            _ = told(heard, |heard| heard.sealed) => "the seal",
            () = away(heard, AWAY) => "the loss of the supervisor",
        }
    };
    let watched = watch_over(&running, stdin, &output, stopping).await;
    running.end_all();
    writing.abort();
    let stderr = timeout(DRAIN, output.drain()).await.unwrap_or_default();
    let killed = watched.exit.signal == Some(Signal::SIGKILL as i32) && !watched.killed;
    let out_of_memory = match (oom_before, processes::oom_kills()) {
        (Some(before), Some(after)) => after > before,
        // No counter to ask: what else kills so?
        _ => killed,
    };
    Ok(End {
        exit_code: watched.exit.code,
        signal: watched.exit.signal,
        out_of_memory,
        terminated: watched.stopped,
        stderr,
    })
}

struct Watched {
    exit: Exit,
    /// The agent was told to stop it.
    stopped: bool,
    /// The agent killed it.
    killed: bool,
}

/// Until the CLI has ended: by itself, after its result, or because it is to stop.
async fn watch_over(
    running: &Running,
    stdin: mpsc::Sender<Vec<u8>>,
    output: &Output,
    stopping: impl Future<Output = &'static str>,
) -> Watched {
    tokio::pin!(stopping);
    let by_itself = |exit| Watched {
        exit,
        stopped: false,
        killed: false,
    };
    tokio::select! {
        exit = running.ended() => return by_itself(exit),
        () = output.result() => {}
        cause = &mut stopping => {
            tracing::info!(cause, "stopping the CLI");
            return stop(running, stdin).await;
        }
    }
    // One task, one result: a CLI whose stdin is closed exits.
    drop(stdin);
    tokio::select! {
        exit = running.ended() => by_itself(exit),
        _ = &mut stopping => end(running).await,
        () = sleep(AFTER_RESULT) => {
            tracing::warn!("the CLI did not exit after its result and is killed");
            running.signal(Signal::SIGKILL);
            Watched { killed: true, ..by_itself(running.ended().await) }
        }
    }
}

/// Asks the CLI to stop, then makes it.
async fn stop(running: &Running, stdin: mpsc::Sender<Vec<u8>>) -> Watched {
    // It may not read any more: nothing waits for that.
    let _ = stdin.try_send(cli::interrupt_line());
    drop(stdin);
    end(running).await
}

async fn end(running: &Running) -> Watched {
    let mut killed = false;
    let stopped = |exit, killed| Watched {
        exit,
        stopped: true,
        killed,
    };
    for (patience, signal) in STOP_STEPS {
        if let Ok(exit) = timeout(patience, running.ended()).await {
            return stopped(exit, killed);
        }
        killed = signal == Signal::SIGKILL;
        running.signal(signal);
    }
    stopped(running.ended().await, killed)
}

/// Writes lines to the CLI's stdin, and closes it once the sender is gone.
async fn write(mut stdin: pipe::Sender, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if let Err(error) = stdin.write_all(&line).await {
            tracing::debug!(%error, "the CLI does not read any more");
            return;
        }
    }
}

fn terminate() -> Result<watch::Receiver<bool>, Error> {
    let mut signals = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let (told, terminate) = watch::channel(false);
    tokio::spawn(async move {
        signals.recv().await;
        told.send_replace(true);
        std::future::pending::<()>().await;
    });
    Ok(terminate)
}

async fn terminated(mut terminate: watch::Receiver<bool>) {
    if terminate.wait_for(|terminated| *terminated).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the supervisor has said it.
async fn told<T>(heard: &watch::Receiver<Heard>, look: impl Fn(&Heard) -> Option<T>) -> T {
    let mut heard = heard.clone();
    loop {
        if let Some(found) = look(&heard.borrow_and_update()) {
            return found;
        }
        if heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Resolves once the supervisor has been away for that long.
async fn away(heard: &watch::Receiver<Heard>, limit: Duration) {
    let mut heard = heard.clone();
    loop {
        let since = heard.borrow_and_update().lost_since;
        let over = async {
            match since {
                Some(since) => sleep_until(since + limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = heard.changed() => if changed.is_err() {
                // The link is gone: nobody will ever come back.
                sleep_until(Instant::now() + limit).await;
                return;
            }
        }
    }
}
