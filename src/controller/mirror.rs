//! Brings runs into the ledger. What is under way is queued, one record for each run and the latest
//! wins, so that a ledger that is away holds nothing up; a final row is awaited for some seconds.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::ledger::records::RunRecord;
use crate::ledger::{Error, Ledger};

/// How long a final row is awaited.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a ledger that was away is not asked again, so that many runs can end meanwhile.
const TRUCE: Duration = Duration::from_secs(3);
/// Writers of queued records.
const WRITERS: usize = 2;

/// The way into the ledger.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    ledger: Arc<Ledger>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<HashMap<Uuid, Box<RunRecord>>>,
    filled: Notify,
    away_since: Mutex<Option<Instant>>,
}

impl Mirror {
    /// Starts the writers.
    pub(super) fn start(ledger: Arc<Ledger>) -> Self {
        let mirror = Self {
            ledger,
            shared: Arc::default(),
        };
        for _ in 0..WRITERS {
            tokio::spawn(mirror.clone().write_queued());
        }
        mirror
    }

    /// Queues the record, instead of an older one of the same run.
    pub(super) fn later(&self, record: Box<RunRecord>) {
        let mut queue = self
            .shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queue.insert(record.run_id, record);
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// Writes the final record; says whether it is in the ledger.
    pub(super) async fn now(&self, record: &RunRecord) -> bool {
        if self.is_away() {
            return false;
        }
        self.take(record.run_id);
        let written = tokio::time::timeout(PATIENCE, self.ledger.mirror(record)).await;
        match written {
            Ok(Ok(())) => {
                self.set_back();
                true
            }
            Ok(Err(error)) => {
                self.complain(record, &error);
                false
            }
            Err(_) => {
                self.set_away();
                tracing::warn!(run = %record.name, "the ledger did not take a final row in time");
                false
            }
        }
    }

    fn take(&self, run: Uuid) -> Option<Box<RunRecord>> {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&run)
    }

    /// Whether the ledger was away a moment ago. Once that is over, one caller finds out how it is
    /// now; the others hold on to what was known until that one is back.
    fn is_away(&self) -> bool {
        let mut away = self
            .shared
            .away_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match *away {
            None => false,
            Some(since) if since.elapsed() < TRUCE => true,
            Some(_) => {
                *away = Some(Instant::now() + PATIENCE);
                false
            }
        }
    }

    fn set_back(&self) {
        *self
            .shared
            .away_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn set_away(&self) {
        *self
            .shared
            .away_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn complain(&self, record: &RunRecord, error: &Error) {
        if error.is_transient() {
            self.set_away();
        }
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(namespace = %record.namespace, run = %record.name, %error, cause, "not mirrored");
    }

    async fn write_queued(self) {
        loop {
            let next = {
                let mut queue = self
                    .shared
                    .queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let run = queue.keys().next().copied();
                run.and_then(|run| queue.remove(&run))
            };
            let Some(record) = next else {
                self.shared.filled.notified().await;
                continue;
            };
            let Err(error) = self.ledger.mirror(&record).await else {
                continue;
            };
            self.complain(&record, &error);
            if error.is_transient() {
                // A newer record of the run may have come meanwhile.
                self.shared
                    .queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(record.run_id)
                    .or_insert(record);
                tokio::time::sleep(TRUCE).await;
            }
        }
    }
}
