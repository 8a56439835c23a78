//! From the journal to the server: batches, back-off, acknowledgements. It owns no event: it reads
//! them from the file, so that a server that is away for hours costs no memory, and a lost attempt's
//! journal is handed in the same way as this one's.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use url::Url;
use uuid::Uuid;

use super::files;
use super::journal::{Durable, Reader};
use crate::wire::{
    Batch, BatchAccepted, CheckoutProgress, Event, EventBody, MAX_BATCH_EVENTS, POD_RUN_HEADER,
};

/// Where a batch is closed, well below the server's limit.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// First and longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Most that is passed on of the server's sentence.
const MAX_WHY: usize = 300;

/// Whose events these are: the file `run.json` beside a run's journals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunFile {
    pub(super) run_id: Uuid,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) session_id: Uuid,
    pub(super) session_name: String,
    /// HEAD before the run's first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) initial_commit: Option<String>,
}

/// The way to the server.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    client: reqwest::Client,
    base: Url,
    token: PathBuf,
    /// The run that this pod, and so the token, is of.
    own: Arc<RunFile>,
}

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// No token, or none that can be read.
    #[error("the token can't be read")]
    Token(#[source] io::Error),
    /// No answer.
    #[error("the server did not answer")]
    Request(#[source] reqwest::Error),
    /// An answer, but not the one.
    #[error("the server answered {0}{1}")]
    Refused(StatusCode, String),
    /// An answer that can't be understood.
    #[error("the server's answer can't be understood")]
    Answer,
}

impl Uplink {
    /// To `base`, with the token of that file, which is `own`'s pod's, over `tls`.
    pub(super) fn new(
        base: Url,
        token: PathBuf,
        own: Arc<RunFile>,
        tls: rustls::ClientConfig,
    ) -> Result<Self, super::Error> {
        let client = super::tls::client(tls)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(super::Error::Client)?;
        Ok(Self {
            client,
            base,
            token,
            own,
        })
    }

    async fn send(&self, run: &RunFile, batch: &Batch) -> Result<u64, SendError> {
        let body = self.post(run, "events", batch).await?;
        let accepted: BatchAccepted =
            serde_json::from_slice(&body).map_err(|_| SendError::Answer)?;
        Ok(accepted.acknowledged)
    }

    /// Tells how far this pod's checkout has come.
    pub(super) async fn tell_progress(&self, progress: &CheckoutProgress) -> Result<(), SendError> {
        self.post(&self.own, "checkout", progress).await.map(drop)
    }

    async fn post(
        &self,
        run: &RunFile,
        what: &str,
        content: &impl Serialize,
    ) -> Result<Vec<u8>, SendError> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend([
                "v1",
                "namespaces",
                &run.namespace,
                "runs",
                &run.name,
                what,
            ]);
        }
        // Read each time: the kubelet replaces it before it expires.
        let token = tokio::fs::read_to_string(&self.token)
            .await
            .map_err(SendError::Token)?;
        let mut request = self
            .client
            .post(url)
            .bearer_auth(token.trim())
            .json(content);
        if run.run_id != self.own.run_id {
            request = request.header(POD_RUN_HEADER, &self.own.name);
        }
        let mut response = request.send().await.map_err(SendError::Request)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(SendError::Request)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(SendError::Answer);
            }
        }
        if !status.is_success() {
            return Err(SendError::Refused(status, why(&body)));
        }
        Ok(body)
    }
}

impl SendError {
    /// The server has read the batch and will not take it, however often it comes.
    fn is_for_good(&self) -> bool {
        let for_good = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE];
        matches!(self, Self::Refused(status, _) if for_good.contains(status))
    }
}

/// The server's sentence, as far as it is one.
fn why(body: &[u8]) -> String {
    let parsed = serde_json::from_slice::<serde_json::Value>(body).ok();
    let sentence = parsed.as_ref().and_then(|body| body["error"].as_str());
    let sentence = sentence.map(|text| &text[..text.floor_char_boundary(MAX_WHY)]);
    sentence
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

/// One attempt's journal on its way to the server.
#[derive(Debug)]
pub(super) struct Tail {
    run: Arc<RunFile>,
    attempt: u32,
    journal: PathBuf,
    reader: Option<Reader>,
    /// Read, and not yet acknowledged; with the bytes of its record.
    queue: VecDeque<(Event, usize)>,
    /// Most events of the next batch: fewer once one was refused.
    limit: usize,
    acknowledged: watch::Sender<u64>,
}

/// Where the acknowledged sequence of a journal is kept.
fn acked_file(journal: &Path) -> PathBuf {
    journal.with_extension("acked")
}

/// The acknowledged sequence of a journal, as far as it is known.
pub(super) fn acked(journal: &Path) -> u64 {
    std::fs::read_to_string(acked_file(journal))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

impl Tail {
    /// Of the journal at that path; goes on where the last supervisor was.
    pub(super) fn new(run: Arc<RunFile>, attempt: u32, journal: PathBuf) -> Self {
        let (acknowledged, _) = watch::channel(acked(&journal));
        Self {
            run,
            attempt,
            journal,
            reader: None,
            queue: VecDeque::new(),
            limit: MAX_BATCH_EVENTS,
            acknowledged,
        }
    }

    /// Highest sequence that the server has.
    pub(super) fn acknowledged(&self) -> watch::Receiver<u64> {
        self.acknowledged.subscribe()
    }

    /// Sends what is on the disk as it comes, for ever.
    pub(super) async fn follow(mut self, uplink: Uplink, mut durable: watch::Receiver<Durable>) {
        loop {
            let now = *durable.borrow_and_update();
            self.deliver(&uplink, now).await;
            if durable.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends everything up to `durable`, however long it takes.
    pub(super) async fn deliver(&mut self, uplink: &Uplink, durable: Durable) {
        let mut pause = BACK_OFF.0;
        let mut told = String::new();
        while *self.acknowledged.borrow() < durable.sequence {
            match self.step(uplink, durable).await {
                Ok(()) => pause = BACK_OFF.0,
                Err(error) => {
                    let cause = super::repository::sentence(&*error);
                    if cause != told {
                        // Once for each cause: it may go on for hours.
                        let (run, attempt) = (&self.run.name, self.attempt);
                        tracing::warn!(run, attempt, cause, "events wait to be sent");
                        told = cause;
                    }
                    // Jitter, from the random bits of a UUID: many pods wait for one server.
                    let jitter = (Uuid::new_v4().as_u128() % 50) as u32;
                    tokio::time::sleep(pause * (75 + jitter) / 100).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    async fn step(
        &mut self,
        uplink: &Uplink,
        durable: Durable,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.fill(durable)?;
        let batch = self.batch();
        let last = batch.events.last().map_or(0, |event| event.sequence);
        let stored = match uplink.send(&self.run, &batch).await {
            Err(error) if error.is_for_good() => {
                let single = batch.events.len() == 1;
                if !single {
                    // One of them it is: what can be stored is stored without it.
                    self.limit = batch.events.len() / 2;
                    return Ok(());
                }
                self.send_placeholder(uplink, batch, error).await?
            }
            sent => sent?,
        };
        self.limit = (self.limit * 2).min(MAX_BATCH_EVENTS);
        if stored < last {
            // The server lacks something that it once acknowledged: from there on once more.
            self.reader = None;
            self.queue.clear();
        }
        self.acknowledged.send_replace(stored);
        files::replace(&acked_file(&self.journal), stored.to_string().as_bytes())?;
        if stored < last {
            return Err(format!("it stored up to {stored} of {last}").into());
        }
        Ok(())
    }

    /// Says in the place of an event that the server does not take that it does not. Where that is
    /// refused too, it is not the event's fault, and the event stays.
    async fn send_placeholder(
        &self,
        uplink: &Uplink,
        mut batch: Batch,
        error: SendError,
    ) -> Result<u64, SendError> {
        for event in &mut batch.events {
            event.body = EventBody::Omitted {
                why: format!("The event is in the journal, but not here: {error}"),
            };
        }
        let sequence = batch.events.first().map_or(0, |event| event.sequence);
        let stored = uplink.send(&self.run, &batch).await?;
        let (run, attempt) = (&self.run.name, self.attempt);
        tracing::error!(run, attempt, sequence, %error, "an event that the server does not take was left out");
        Ok(stored)
    }

    /// Reads on in the journal until a batch is full.
    fn fill(&mut self, durable: Durable) -> io::Result<()> {
        let acknowledged = *self.acknowledged.borrow();
        self.queue
            .retain(|(event, _)| event.sequence > acknowledged);
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.journal)?);
        }
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        // What an earlier try has read counts too: a server that is away must not make batches grow.
        let mut bytes: usize = self.queue.iter().map(|(_, size)| size).sum();
        while self.queue.len() < MAX_BATCH_EVENTS && bytes < BATCH_BYTES {
            let before = reader.position();
            let Some(events) = reader.next(durable.bytes)? else {
                break;
            };
            let size = usize::try_from(reader.position() - before).unwrap_or(usize::MAX);
            for event in events {
                if event.sequence > acknowledged {
                    bytes = bytes.saturating_add(size);
                    self.queue.push_back((event, size));
                }
            }
        }
        Ok(())
    }

    fn batch(&self) -> Batch {
        Batch {
            run_id: self.run.run_id,
            attempt: self.attempt,
            session_id: self.run.session_id,
            session_name: self.run.session_name.clone(),
            events: self
                .queue
                .iter()
                .take(self.limit)
                .map(|(event, _)| event.clone())
                .collect(),
        }
    }
}
