//! The trusted half of a run's pod (`runledger supervise`), a native sidecar that may be killed at
//! any instant: it holds every secret, checks out, meters, journals, reports, seals and pushes. What
//! it must not forget is in its journal before anybody is told. The agent is the other half.

mod book;
mod config;
mod cost;
mod door;
mod files;
mod handover;
mod hearsay;
mod install;
mod journal;
mod meter;
mod proxy;
mod repository;
mod seal;
mod tls;
mod uplink;
mod verdict;
mod work;

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use config::Args;

use crate::names::reasons;
use crate::pod::paths;
use crate::wire::{Outcome, Termination, Usage};

/// Why a supervisor can't go on, as the controller is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Stop {
    outcome: Outcome,
    reason: &'static str,
    message: String,
}

/// Why a supervisor ended without a seal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// As told to the controller.
    #[error(transparent)]
    Stop(#[from] Stop),
    /// SIGTERM before the agent could start.
    #[error("the pod was stopped before its checkout was there")]
    Stopped,
    /// The folder of journals.
    #[error("the workspace's state folder can't be used")]
    State(#[source] io::Error),
    /// The binary, in the folder that the agent sees.
    #[error("the agent's program can't be written")]
    Install(#[source] io::Error),
    /// The door's first nonce.
    #[error("the door's nonce can't be written")]
    Nonce(#[source] io::Error),
    /// A port of the pod is taken.
    #[error("port {0} can't be listened on")]
    Listen(u16, #[source] io::Error),
    /// SIGTERM can't be waited for.
    #[error("signals can't be received")]
    Signal(#[source] io::Error),
    /// `ANTHROPIC_API_KEY` is no header.
    #[error("the key ANTHROPIC_API_KEY of agent.secretName can't be sent in a header")]
    Key,
    /// A PEM bundle.
    #[error("a CA bundle of the assignment holds no certificate that can be used")]
    Certificate,
    /// TLS itself.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
    /// An HTTP client.
    #[error("an HTTP client can't be made")]
    Client(#[source] reqwest::Error),
    /// A blocking task ended in a panic.
    #[error("a task ended badly")]
    Task(#[source] tokio::task::JoinError),
}

impl Error {
    /// What the controller is told.
    fn stop(&self) -> Stop {
        let (outcome, reason) = match self {
            Self::Stop(stop) => return stop.clone(),
            Self::Stopped => (Outcome::Stopped, reasons::KILLED),
            Self::Key => (Outcome::Waiting, reasons::MISSING_SECRET),
            Self::Certificate | Self::Tls(_) => (Outcome::Failed, reasons::INVALID_SPEC),
            Self::State(_)
            | Self::Install(_)
            | Self::Nonce(_)
            | Self::Listen(..)
            | Self::Signal(_)
            | Self::Client(_)
            | Self::Task(_) => (Outcome::Waiting, reasons::VOLUME),
        };
        Stop {
            outcome,
            reason,
            message: repository::sentence(self),
        }
    }
}

/// Runs the supervisor of a pod until the pod is stopped.
pub async fn run(args: Args) -> Result<(), Error> {
    let (told, terminate) = watch::channel(false);
    let mut signals = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    tokio::spawn(async move {
        signals.recv().await;
        told.send_replace(true);
        // Kept, so that nobody mistakes its end for a signal.
        std::future::pending::<()>().await;
    });
    let worked = match work::Work::open(args.clone(), terminate) {
        Ok(work) => work.run().await,
        Err(error) => Err(error),
    };
    match worked {
        Ok(_) => Ok(()),
        Err(error) => {
            let stop = error.stop();
            let termination = Termination {
                outcome: stop.outcome,
                reason: stop.reason.to_owned(),
                ..stopped_early(&stop.message)
            };
            write_termination(&args, &termination);
            if matches!(error, Error::Stopped) {
                Ok(())
            } else {
                Err(error)
            }
        }
    }
}

/// A termination of an attempt in which nothing was done.
fn stopped_early(message: &str) -> Termination {
    Termination {
        outcome: Outcome::Stopped,
        reason: reasons::KILLED.to_owned(),
        message: message.to_owned(),
        usage: Usage::default(),
        earlier: Vec::new(),
        model: None,
        git: None,
        sequence: 0,
        acknowledged: 0,
    }
}

/// In place: Kubernetes mounts this one file.
fn write_termination(args: &Args, termination: &Termination) {
    let body = verdict::fit(termination.clone());
    if let Err(error) = std::fs::write(args.path(paths::TERMINATION), body) {
        tracing::error!(%error, "the termination message can't be written");
    }
}
