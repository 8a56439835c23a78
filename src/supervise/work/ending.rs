//! Until when the agent works: by itself, until its time is up, its journal's disk is full or the pod
//! is stopped. What is made of the end is the seal's business.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{Work, terminated};
use crate::supervise::book::{Book, GivenUp, Note};
use crate::supervise::journal::Draft;

/// How long an agent that was told to stop may take to report.
const AFTER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the reason for it may take to reach the disk.
const AFTER_NOTE: Duration = Duration::from_secs(5);
/// The same under SIGTERM: its grace period is running.
const AFTER_TERM: Duration = Duration::from_secs(12);
/// How long an agent that is not connected may take to come back under SIGTERM.
const RECONNECT: Duration = Duration::from_secs(10);

impl Work {
    /// Until the agent has reported its end, or will not any more. True when the pod is being
    /// stopped, so that there is no time to lose.
    pub(super) async fn wait_for_end(&self, connected: watch::Receiver<bool>) -> bool {
        tokio::select! {
            () = self.ended() => {}
            () = self.deadline() => self.stop_agent(Note::TimedOut).await,
            trouble = self.journal.unwritable() => {
                tracing::error!(cause = trouble.cause, "the journal can't be written; ending the run");
                let (cause, full) = (trouble.cause, trouble.full);
                let why = GivenUp::Unwritable { cause, full };
                self.stop_agent(Note::GivenUp(why)).await;
            }
            () = terminated(self.terminate.clone()) => {
                self.orders.send_modify(|orders| orders.stop = true);
                self.wait_under_term(connected).await;
            }
        }
        let told_to_stop = |book: &Book| book.end.as_ref().is_some_and(|end| end.terminated);
        let by_us = |book: &Book| book.timed_out || book.given_up.is_some();
        *self.terminate.borrow() || (!self.journal.read(by_us) && self.journal.read(told_to_stop))
    }

    /// Has the agent stopped, for a reason of this pod's own.
    async fn stop_agent(&self, why: Note) {
        let mut noted = self.journal.append(|_| Draft::note(why));
        // A disk that takes nothing more must not keep the agent running.
        let _ = tokio::time::timeout(AFTER_NOTE, noted.durable()).await;
        self.orders.send_modify(|orders| orders.stop = true);
        let _ = tokio::time::timeout(AFTER_TIMEOUT, self.ended()).await;
    }

    async fn ended(&self) {
        self.journal
            .wait_for(|book| book.end.is_some().then_some(()))
            .await;
    }

    /// When `limits.timeout` has passed since the agent first connected.
    async fn deadline(&self) {
        let Some(seconds) = self.assignment.timeout_seconds else {
            return std::future::pending().await;
        };
        let connected_at = self.journal.wait_for(|book| book.connected_at).await;
        let passed = Timestamp::now().duration_since(connected_at).unsigned_abs();
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(passed)).await;
    }

    /// SIGTERM comes once the agent's container is gone, or when the node wants the pod away.
    async fn wait_under_term(&self, mut connected: watch::Receiver<bool>) {
        if self.journal.read(|book| book.connected_at.is_none()) {
            return;
        }
        let gone = async {
            loop {
                if connected.wait_for(|connected| !connected).await.is_err() {
                    return;
                }
                let back = connected.wait_for(|connected| *connected);
                if tokio::time::timeout(RECONNECT, back).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.ended() => {}
            () = gone => {}
            () = tokio::time::sleep(AFTER_TERM) => {}
        }
    }
}
