//! The seal: the last thing that a supervisor does for a run, in the order that nothing can be lost
//! by. Every step may be made twice: a supervisor that is killed in the middle starts over.

use std::time::Duration;

use tokio::time::Instant;

use super::book::{Book, GivenUp};
use super::journal::Draft;
use super::repository::Repository;
use super::verdict::{self, Verdict};
use super::work::Work;
use crate::git::Head;
use crate::names::reasons;
use crate::pod::{PushAssignment, RepositoryAssignment};
use crate::wire::patch::{Patch, PatchText};
use crate::wire::{Changes, EventBody, Outcome, Termination};

/// How long the seal may take, part by part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    git: Duration,
    patch: Duration,
    journal: Duration,
    flush: Duration,
}

impl Limits {
    /// A run that ended by itself has time.
    pub(super) fn ended(flush_seconds: u64) -> Self {
        Self {
            git: Duration::from_secs(300),
            patch: Duration::from_secs(30),
            journal: Duration::from_secs(60),
            flush: Duration::from_secs(flush_seconds),
        }
    }

    /// A disk that has taken nothing for long is not waited for once more.
    fn for_disk(self, writable: bool) -> Self {
        Self {
            journal: if writable {
                self.journal
            } else {
                Duration::from_secs(5)
            },
            ..self
        }
    }

    /// A pod that is being stopped has its grace period, of which the agent has used some.
    pub(super) fn stopping(flush_seconds: u64) -> Self {
        Self {
            git: Duration::from_secs(12),
            patch: Duration::from_secs(3),
            journal: Duration::from_secs(5),
            flush: Duration::from_secs(flush_seconds.min(15)),
        }
    }
}

impl Work {
    /// Seals the run and says how it ended.
    pub(super) async fn seal(&self, hurry: bool) -> Termination {
        let flush = self.assignment.flush_timeout_seconds;
        let limits = if hurry {
            Limits::stopping(flush)
        } else {
            Limits::ended(flush)
        };
        let limits = limits.for_disk(self.journal.read(|book| !is_unwritable(book)));
        let ended = self.end_requests();
        if tokio::time::timeout(super::proxy::AFTER_HANG_UP + limits.journal, ended)
            .await
            .is_err()
        {
            tracing::error!("requests without an end could not be written to the journal");
        }
        let mut verdict = self.journal.read(verdict::judge);
        let changes = self.deliver(&mut verdict, limits).await;
        tracing::info!(
            reason = verdict.reason,
            sentence = verdict.message,
            "sealing the run"
        );

        let acknowledged = *self.acknowledged.borrow();
        let mut pending = self.journal.append(|book| {
            let termination = Termination {
                outcome: verdict.outcome,
                reason: verdict.reason.to_owned(),
                message: verdict.message.clone(),
                usage: book.usage,
                earlier: self.left.earlier.clone(),
                model: book.model.clone(),
                git: changes,
                sequence: book.sequence + 1,
                acknowledged,
            };
            Draft::event(EventBody::Sealed(termination))
        });
        if tokio::time::timeout(limits.journal, pending.durable())
            .await
            .is_err()
        {
            tracing::error!("the seal could not be written to the journal");
        }
        self.flush(limits.flush).await;
        self.sealed()
    }

    /// The seal as it stands in the journal, with what the server has acknowledged since.
    pub(super) fn sealed(&self) -> Termination {
        let sealed = self.journal.read(|book| book.sealed.clone());
        let mut termination =
            sealed.unwrap_or_else(|| super::stopped_early("The run was not sealed."));
        termination.acknowledged = (*self.acknowledged.borrow()).min(termination.sequence);
        termination
    }

    /// Requests that outlived the agent are read to their end for a moment, then estimated.
    async fn end_requests(&self) {
        let grace = super::proxy::AFTER_HANG_UP + Duration::from_secs(1);
        let none_open = self
            .journal
            .wait_for(|book| book.open.is_empty().then_some(()));
        if tokio::time::timeout(grace, none_open).await.is_err() {
            self.estimate_open_requests().await;
        }
    }

    /// What the agent left in the repository, and its push, if that is wanted.
    async fn deliver(&self, verdict: &mut Verdict, limits: Limits) -> Option<Changes> {
        let (repository, assigned) = self
            .repository
            .as_ref()
            .zip(self.assignment.repository.as_ref())?;
        let initial = self
            .journal
            .read(|book| book.started.clone())
            .and_then(|s| s.initial_commit);
        let (head, mut changes) = match repository.look(initial.clone(), limits.git).await {
            Ok(found) => found,
            Err(cause) => {
                tracing::error!(cause, "the repository can't be read after the agent");
                let message =
                    format!("What the agent left in the repository can't be read: {cause}");
                fail(verdict, reasons::CHECKOUT_FAILED, &message);
                return None;
            }
        };
        self.keep_patch(repository, initial, &head, limits).await;
        if let Some((push, commit)) = wanted_push(assigned, verdict).zip(head.commit) {
            let branch = push.branch.clone();
            match repository.push(commit, push, limits.git).await {
                Ok(()) => changes.pushed = Some(branch),
                Err(why) => {
                    tracing::error!(cause = why.message, branch, "the push failed");
                    let message = format!(
                        "The branch {branch} could not be pushed: {}; the commits are in the workspace.",
                        why.message
                    );
                    changes.undelivered = Some(why.reason.to_owned());
                    fail(verdict, why.reason, &message);
                }
            }
        }
        Some(changes)
    }

    /// Journals what changed as a patch, before a push that may take long. A seal that starts over says
    /// it once more; a disk that takes nothing keeps its last room for the seal.
    async fn keep_patch(
        &self,
        repository: &Repository,
        initial: Option<String>,
        head: &Head,
        limits: Limits,
    ) {
        let is_unwritable = self.journal.read(is_unwritable);
        let patch = if is_unwritable {
            Err("the volume takes nothing more".to_owned())
        } else {
            let made = repository.patch(initial.clone(), head.clone(), limits.patch);
            made.await
        };
        let patch = patch.unwrap_or_else(|cause| {
            tracing::warn!(cause, "the run's patch can't be made");
            Patch {
                initial_commit: initial,
                final_commit: head.commit.clone(),
                committed: PatchText::unknown(cause.clone()),
                uncommitted: PatchText::unknown(cause),
            }
        });
        self.journal
            .append(|_| Draft::event(EventBody::Patch(Box::new(patch))));
    }

    /// Waits until the server has everything of this run, but no longer than that.
    async fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        // What is not on the disk is not sent, and so not waited for.
        let sequence = self.journal.durable().borrow().sequence;
        let own = self.left.own.iter().cloned();
        for (mut acknowledged, last) in own.chain([(self.acknowledged.clone(), sequence)]) {
            let arrived = acknowledged.wait_for(|acknowledged| *acknowledged >= last);
            if tokio::time::timeout_at(deadline, arrived).await.is_err() {
                tracing::warn!(
                    last,
                    "the server does not have every event; they stay on the volume"
                );
            }
        }
    }
}

fn is_unwritable(book: &Book) -> bool {
    matches!(book.given_up, Some(GivenUp::Unwritable { .. }))
}

fn wanted_push(assigned: &RepositoryAssignment, verdict: &Verdict) -> Option<PushAssignment> {
    let push = assigned.push.as_ref()?;
    let wanted = push.always || verdict.outcome == Outcome::Completed;
    wanted.then(|| push.clone())
}

/// A run that was done fails; one that was not keeps its own reason.
fn fail(verdict: &mut Verdict, reason: &'static str, message: &str) {
    if verdict.outcome == Outcome::Completed {
        verdict.outcome = Outcome::Failed;
        verdict.reason = reason;
        verdict.message = message.to_owned();
    } else {
        verdict.message = format!("{} {message}", verdict.message);
    }
}
