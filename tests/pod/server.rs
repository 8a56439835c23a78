//! A server that takes batches as the real one does, over TLS, and remembers every event.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use runledger::wire::{Batch, BatchAccepted, Event, EventBody, Message, POD_RUN_HEADER};
use uuid::Uuid;

pub(crate) const TOKEN: &str = "token-of-the-pod";

#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Inner>);

#[derive(Default)]
struct Inner {
    away: AtomicBool,
    /// A text that no batch may hold.
    hated: Mutex<Option<String>>,
    batches: Mutex<Vec<Batch>>,
    events: Mutex<BTreeMap<(Uuid, u32), BTreeMap<u64, Event>>>,
    pod_runs: Mutex<BTreeMap<Uuid, Option<String>>>,
}

impl Server {
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/v1/namespaces/{namespace}/runs/{name}/events", post(take))
            .layer(axum::extract::DefaultBodyLimit::max(64 * 1024 * 1024))
            .with_state(self.clone())
    }

    /// Answers 503 from now on, or no longer.
    pub(crate) fn go_away(&self, away: bool) {
        self.0.away.store(away, Ordering::Relaxed);
    }

    /// Refuses every batch that holds this text for good, as 400.
    pub(crate) fn refuse(&self, text: &str) {
        *self.0.hated.lock().unwrap() = Some(text.to_owned());
    }

    /// Events of an attempt, in order.
    pub(crate) fn events(&self, run: Uuid, attempt: u32) -> Vec<Event> {
        let events = self.0.events.lock().unwrap();
        let of_attempt = events.get(&(run, attempt));
        of_attempt
            .map(|e| e.values().cloned().collect())
            .unwrap_or_default()
    }

    /// The run whose pod said that it hands in what this run had left; nothing where it was its own.
    pub(crate) fn handed_in_by(&self, run: Uuid) -> Option<String> {
        self.0.pod_runs.lock().unwrap().get(&run).cloned().flatten()
    }

    /// Messages of an attempt, in order.
    pub(crate) fn messages(&self, run: Uuid, attempt: u32) -> Vec<Message> {
        let message = |event: Event| match event.body {
            EventBody::Message(message) => Some(message),
            _ => None,
        };
        self.events(run, attempt)
            .into_iter()
            .filter_map(message)
            .collect()
    }
}

async fn take(
    State(server): State<Server>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(batch): Json<Batch>,
) -> Result<Json<BatchAccepted>, StatusCode> {
    assert_eq!((namespace.as_str(), name.as_str()), ("ns", "a-run"));
    if server.0.away.load(Ordering::Relaxed) {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let hated = server.0.hated.lock().unwrap().clone();
    if hated.is_some_and(|text| serde_json::to_string(&batch).unwrap().contains(&text)) {
        return Err(StatusCode::BAD_REQUEST);
    }
    if headers["authorization"] != format!("Bearer {TOKEN}") {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let pod_run = headers
        .get(POD_RUN_HEADER)
        .map(|name| name.to_str().unwrap().to_owned());
    server
        .0
        .pod_runs
        .lock()
        .unwrap()
        .insert(batch.run_id, pod_run);
    let mut all = server.0.events.lock().unwrap();
    let events = all.entry((batch.run_id, batch.attempt)).or_default();
    for event in &batch.events {
        if let Some(known) = events.insert(event.sequence, event.clone()) {
            assert_eq!(
                &known, event,
                "an event was sent again with another content"
            );
        }
    }
    let acknowledged = (1..)
        .take_while(|n| events.contains_key(n))
        .last()
        .unwrap_or(0);
    server.0.batches.lock().unwrap().push(batch);
    Ok(Json(BatchAccepted { acknowledged }))
}
