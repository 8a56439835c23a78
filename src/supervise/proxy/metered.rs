//! A request of the model's API in the journal: from before it is forwarded to its end, with what the
//! meter read of its response.

use std::sync::Arc;

use http::header;
use jiff::Timestamp;

use crate::supervise::book::{Note, RequestOutcome, Seen, estimated_input};
use crate::supervise::journal::{Draft, Journal};
use crate::supervise::meter::Meter;
use crate::wire::{EventBody, Tokens};

/// A request in the journal.
pub(super) struct Metered {
    journal: Arc<Journal>,
    request: u64,
    bytes: u64,
    meter: Option<Meter>,
    ended: bool,
}

impl Metered {
    /// Journals that the request starts, and waits until that is on the disk.
    pub(super) async fn start(journal: Arc<Journal>, bytes: u64) -> Self {
        let mut request = 0;
        let mut pending = journal.append(|book| {
            request = book.requests + 1;
            Draft::event(EventBody::RequestStarted { request, bytes })
        });
        pending.durable().await;
        Self {
            journal,
            request,
            bytes,
            meter: None,
            ended: false,
        }
    }

    pub(super) fn head(&mut self, response: &reqwest::Response) {
        let content_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        self.meter = Some(Meter::new(response.status().as_u16(), content_type));
    }

    /// The whole response has come.
    pub(super) fn is_complete(&self) -> bool {
        self.meter.as_ref().is_some_and(Meter::is_complete)
    }

    pub(super) fn feed(&mut self, chunk: &[u8]) {
        let Some(meter) = &mut self.meter else { return };
        if meter.feed(chunk)
            && let Some(seen) = meter.seen()
        {
            let note = Note::Seen {
                request: self.request,
                seen: seen.clone(),
            };
            // Nothing waits for it: it only makes the estimate after a crash better.
            drop(self.journal.append(|_| Draft::note(note)));
        }
    }

    pub(super) async fn end(&mut self) {
        let Some(meter) = &mut self.meter else { return };
        if self.ended {
            return;
        }
        meter.finish();
        let outcome = meter.outcome(self.bytes);
        let notes = meter.answer().map(Note::Answer).into_iter().collect();
        self.journal_end(&outcome, notes).await;
    }

    pub(super) async fn lost(&mut self, never_sent: bool) {
        let tokens = if never_sent {
            Tokens::default()
        } else {
            estimated_input(self.bytes)
        };
        let outcome = RequestOutcome {
            status: None,
            seen: Seen {
                tokens,
                ..Seen::default()
            },
            estimated: !never_sent,
        };
        self.journal_end(&outcome, Vec::new()).await;
    }

    async fn journal_end(&mut self, outcome: &RequestOutcome, notes: Vec<Note>) {
        self.ended = true;
        let request = self.request;
        let mut pending = self.journal.append(|book| {
            if !book.open.contains_key(&request) {
                // The seal did not wait for it any longer.
                return Draft::default();
            }
            Draft {
                events: vec![book.request_ended(request, outcome, Timestamp::now())],
                notes,
                line: None,
            }
        });
        pending.durable().await;
    }
}
