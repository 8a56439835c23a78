//! The repository's part in a run: when it is checked out, what it is asked at the end, and how its
//! failures are told. How git works is `crate::git`'s business.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::config::{self, Args};
use super::{Error, Stop};
use crate::git::{self, Access, CheckedOut, Head, Place, Target, Wanted};
use crate::names::reasons;
use crate::pod::{PushAssignment, RepositoryAssignment, paths};
use crate::wire::patch::{MAX_PATCH_BYTES, Patch};
use crate::wire::{Changes, Outcome};

/// Most bytes of contents that are read for a run's patch.
const MAX_PATCH_READ: u64 = 256 * 1024 * 1024;

/// The repository of this run.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    place: Place,
    wanted: Wanted,
    access: Access,
}

impl Repository {
    /// As assigned to that run, with its Secret, if there is one.
    pub(super) fn new(
        args: &Args,
        run: Uuid,
        assigned: &RepositoryAssignment,
    ) -> Result<Self, Stop> {
        let mut access = if assigned.has_secret {
            config::git_secret(args, &assigned.url)?
        } else {
            Access::default()
        };
        let place = Place {
            trusted: args.path(paths::STATE).join("git"),
            worktree: args.path(paths::WORK),
        };
        if let Some(ca) = &assigned.ca {
            access.ca_files.push(place.trusted.join("ca-bundle.crt"));
            leave(&place.trusted, "ca-bundle.crt", ca)?;
        }
        if let Some(hosts) = config::known_hosts(args).filter(|_| assigned.has_secret) {
            let home = place.trusted.join("ssh");
            leave(&home.join(".ssh"), "known_hosts", &hosts)?;
            access.ssh_home = Some(home);
        }
        Ok(Self {
            place,
            wanted: Wanted {
                url: assigned.url.clone(),
                reference: assigned.branch.clone(),
                depth: assigned.depth,
                run,
                on_reuse: assigned.on_reuse,
                progress: Arc::default(),
            },
            access,
        })
    }

    /// How far the checkout has come.
    pub(super) fn progress(&self) -> Arc<git::Progress> {
        self.wanted.progress.clone()
    }

    /// Makes the checkout; given up as soon as `stop` resolves.
    pub(super) async fn checkout(
        &self,
        stop: impl Future<Output = ()>,
    ) -> Result<CheckedOut, Error> {
        let cancel = Arc::new(AtomicBool::new(false));
        let (this, cancelled) = (self.clone(), cancel.clone());
        let mut work = tokio::task::spawn_blocking(move || {
            git::checkout(&this.place, &this.wanted, &this.access, &cancelled)
        });
        let done = tokio::select! {
            done = &mut work => done,
            () = stop => {
                cancel.store(true, Ordering::Relaxed);
                return Err(Error::Stopped);
            }
        };
        done.map_err(Error::Task)?.map_err(|error| {
            Error::Stop(from_git(
                &error,
                self.access.password.is_some() || self.access.private_key.is_some(),
            ))
        })
    }

    /// Where the agent's HEAD is, and what changed.
    pub(super) async fn look(
        &self,
        initial: Option<String>,
        limit: Duration,
    ) -> Result<(Head, Changes), String> {
        let this = self.clone();
        let work = move || {
            let head = git::take_over(&this.place)?;
            let changes = git::changes(&this.place, &this.wanted.url, initial.as_deref(), &head)?;
            Ok((head, changes))
        };
        within(limit, work).await
    }

    /// What changed, as patches. Once half of its time is over it leaves the rest out, and says so.
    pub(super) async fn patch(
        &self,
        initial: Option<String>,
        head: Head,
        limit: Duration,
    ) -> Result<Patch, String> {
        let place = self.place.clone();
        let limits = git::Limits {
            bytes: MAX_PATCH_BYTES,
            read: MAX_PATCH_READ,
            until: Some(Instant::now() + limit / 2),
        };
        within(limit, move || {
            git::patch(&place, initial.as_deref(), &head, limits)
        })
        .await
    }

    /// Pushes the final commit. A host that does not answer is asked again while there is time.
    pub(super) async fn push(
        &self,
        commit: String,
        push: PushAssignment,
        limit: Duration,
    ) -> Result<(), Undelivered> {
        let until = Instant::now() + limit;
        let mut pause = Duration::from_secs(1);
        loop {
            let (this, commit, push) = (self.clone(), commit.clone(), push.clone());
            let work = move || {
                let target = Target {
                    branch: &push.branch,
                    allowed: &push.allow_protected,
                };
                let pushed =
                    git::push(&this.place, &this.wanted.url, &commit, target, &this.access);
                Ok(pushed.map_err(|error| (error.is_retryable(), Undelivered::from(&error))))
            };
            let left = until.saturating_duration_since(Instant::now());
            let (again, undelivered) = match within(left, work).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failed)) => failed,
                Err(message) => (false, Undelivered::other(message)),
            };
            if !again || Instant::now() + pause >= until {
                return Err(undelivered);
            }
            tracing::warn!(why = undelivered.message, "the push is tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }
}

/// Why a push did not come about.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// `PushConflict` or `PushFailed`.
    pub(super) reason: &'static str,
    /// The cause.
    pub(super) message: String,
}

impl Undelivered {
    fn other(message: String) -> Self {
        Self {
            reason: reasons::PUSH_FAILED,
            message,
        }
    }
}

impl From<&git::Error> for Undelivered {
    fn from(error: &git::Error) -> Self {
        match error.reason() {
            reasons::PUSH_CONFLICT => Self {
                reason: reasons::PUSH_CONFLICT,
                message: sentence(error),
            },
            _ => Self::other(sentence(error)),
        }
    }
}

/// Leaves what the git library reads from files, where only we can write.
fn leave(folder: &Path, name: &str, text: &str) -> Result<(), Stop> {
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join(name), text))
        .map_err(|e| Stop {
            outcome: Outcome::Waiting,
            reason: reasons::VOLUME,
            message: format!("{name} can't be written to the workspace: {e}."),
        })
}

async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, git::Error> + Send + 'static,
) -> Result<T, String> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => Err(sentence(&error)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
    }
}

/// A password that is refused, or a host's key that is not known, can be set right in its Secret; that one is wanted and the run names
/// no Secret can't be cured by waiting.
fn from_git(error: &git::Error, has_secret: bool) -> Stop {
    let in_secret = [reasons::AUTHENTICATION_FAILED, reasons::HOST_KEY_UNKNOWN];
    let curable = has_secret && in_secret.contains(&error.reason());
    Stop {
        outcome: if error.is_retryable() || curable {
            Outcome::Waiting
        } else {
            Outcome::Failed
        },
        reason: error.reason(),
        message: sentence(error),
    }
}

/// The whole chain of an error, once.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
