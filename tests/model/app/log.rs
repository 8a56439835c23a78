//! The record of what the model has sent: tests compare the ledger's tokens with it. A response
//! that its peer cut off is recorded with what had been sent by then.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::scenario::Usage;

/// One response.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Record {
    /// Counts requests from 1, in order of arrival.
    pub(crate) number: u64,
    /// The tag, else the scenario.
    pub(crate) key: String,
    pub(crate) scenario: String,
    pub(crate) tag: Option<String>,
    /// `turn`, `side`, `count_tokens`, `refused` or `unknown`.
    pub(crate) kind: String,
    pub(crate) path: String,
    /// Turn of the scenario, from 0.
    pub(crate) turn: usize,
    /// Try of the turn, from 1.
    #[serde(rename = "try")]
    pub(crate) attempt: usize,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) message_id: Option<String>,
    pub(crate) status: u16,
    pub(crate) usage: Usage,
    /// False where the response was cut off, by either side.
    pub(crate) complete: bool,
    /// Requests of the same key that were being answered when this one came, itself included.
    pub(crate) in_flight: usize,
    /// Milliseconds since 1970.
    pub(crate) started: u128,
    /// Milliseconds since 1970.
    pub(crate) ended: u128,
}

/// All of them.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Shared>);

#[derive(Default)]
struct Shared {
    print: bool,
    records: Mutex<Vec<Record>>,
    open: Mutex<std::collections::HashMap<String, Arc<AtomicUsize>>>,
}

impl Log {
    pub(crate) fn new(print: bool) -> Self {
        Self(Arc::new(Shared {
            print,
            ..Shared::default()
        }))
    }

    /// A response begins.
    pub(crate) fn open(&self, mut record: Record) -> Open {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let in_flight = open.entry(record.key.clone()).or_default().clone();
        record.in_flight = in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        record.started = now();
        Open {
            log: self.clone(),
            record,
            in_flight,
            written: false,
        }
    }

    /// What was sent so far, of one key or of all, in order of their ends.
    pub(crate) fn records(&self, key: Option<&str>) -> Vec<Record> {
        let records = self
            .0
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = |record: &&Record| key.is_none_or(|key| record.key == key);
        records.iter().filter(wanted).cloned().collect()
    }

    fn write(&self, record: Record) {
        if self.0.print
            && let Ok(line) = serde_json::to_string(&record)
        {
            // With stdout gone there is nobody left to tell.
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
        let mut records = self
            .0
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        records.push(record);
    }
}

/// A response on its way. Dropped before its end, it is recorded as cut.
pub(crate) struct Open {
    log: Log,
    record: Record,
    in_flight: Arc<AtomicUsize>,
    written: bool,
}

impl Open {
    pub(crate) fn number(&self) -> u64 {
        self.record.number
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn begun(&mut self, status: u16, message_id: &str) {
        self.record.status = status;
        self.record.message_id = Some(message_id.to_owned());
    }

    /// The peer has been told of this usage.
    pub(crate) fn told(&mut self, usage: Usage) {
        self.record.usage = usage;
    }

    pub(crate) fn finish(&mut self, status: u16, usage: Usage, complete: bool) {
        self.record.status = status;
        self.record.usage = usage;
        self.record.complete = complete;
        self.write();
    }

    fn write(&mut self) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.record.ended = now();
        self.log.write(self.record.clone());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.write();
    }
}

fn now() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}
