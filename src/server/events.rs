//! `POST /v1/namespaces/{namespace}/runs/{name}/events`: a batch of a run's events. The token is
//! judged before the body is read, and only so many bodies are held at once.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State as Shared};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Semaphore;

use super::access::{Batched, Claim};
use super::cluster::{Cluster, Fault};
use super::guard::{Guard, Pass};
use super::tell::{self, Told};
use crate::ids;
use crate::ledger::{self, Ledger, Target};
use crate::wire::{Batch, BatchAccepted, CheckoutProgress, MAX_BATCH_BYTES, POD_RUN_HEADER};

/// Batches worked on at once: each may hold [`MAX_BATCH_BYTES`], and a few times that once parsed.
const AT_ONCE: usize = 8;
/// Reviews of tokens at once.
const REVIEWS_AT_ONCE: usize = 64;
/// Longest wait for one's turn.
const TURN: Duration = Duration::from_secs(15);
/// Longest time for a body to arrive.
const BODY: Duration = Duration::from_secs(30);
/// Largest body that says how far a checkout has come, in bytes.
const MAX_PROGRESS: usize = 4096;
/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// What all requests share.
pub struct State {
    ledger: Arc<Ledger>,
    guard: Guard,
    cluster: Arc<dyn Cluster>,
    turns: Semaphore,
    reviews: Semaphore,
}

impl State {
    /// Stores into this ledger what this cluster's tokens allow.
    pub fn new(ledger: Arc<Ledger>, cluster: Arc<dyn Cluster>) -> Self {
        Self {
            ledger,
            guard: Guard::new(cluster.clone()),
            cluster,
            turns: Semaphore::new(AT_ONCE),
            reviews: Semaphore::new(REVIEWS_AT_ONCE),
        }
    }

    /// Nobody waits for an Event.
    fn tell(&self, told: Told) {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            if let Err(fault) = cluster.tell(told).await {
                tracing::debug!(%fault, "an Event was not taken");
            }
        });
    }
}

/// Why a batch was not taken.
#[derive(Debug)]
enum Refusal {
    Unauthenticated(&'static str),
    Forbidden(&'static str),
    Malformed(String),
    TooLarge,
    TooSlow,
    Busy,
    Cluster(Fault),
    Ledger(ledger::Error),
}

pub(super) async fn accept(
    Shared(state): Shared<Arc<State>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match take(&state, &namespace, &name, &headers, body).await {
        Ok(accepted) => Json(accepted).into_response(),
        Err(refusal) => {
            refusal.log(&namespace, &name);
            refusal.into_response()
        }
    }
}

async fn take(
    state: &State,
    namespace: &str,
    name: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<BatchAccepted, Refusal> {
    let claim = authenticate(state, headers).await?;
    if claim.namespace != namespace {
        return Err(Refusal::Forbidden("the token is of another namespace"));
    }
    let _turn = tokio::time::timeout(TURN, state.turns.acquire())
        .await
        .map_err(|_| Refusal::Busy)?
        .map_err(|_| Refusal::Busy)?;
    let batch = read(body).await?;
    let batched = Batched {
        run: batch.run_id,
        attempt: batch.attempt,
        session: batch.session_id,
    };
    if ids::session(namespace, &batch.session_name) != batch.session_id {
        return Err(Refusal::Malformed(
            "sessionId is not that of the session of this name".to_owned(),
        ));
    }
    authorize(state, &claim, name, headers, batched).await?;
    let target = Target { namespace, name };
    let accepted = state
        .ledger
        .store(target, &batch, Timestamp::now())
        .await
        .map_err(Refusal::Ledger)?;
    if !headers.contains_key(POD_RUN_HEADER) {
        for told in tell::of_batch(target, &batch) {
            state.tell(told);
        }
    }
    Ok(accepted)
}

/// How far a checkout has come, of a pod that has no event to hand in yet.
pub(super) async fn progress(
    Shared(state): Shared<Arc<State>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let taken = async {
        let claim = authenticate(&state, &headers).await?;
        if claim.namespace != namespace {
            return Err(Refusal::Forbidden("the token is of another namespace"));
        }
        let bytes = tokio::time::timeout(BODY, to_bytes(body, MAX_PROGRESS))
            .await
            .map_err(|_| Refusal::TooSlow)?
            .map_err(|_| Refusal::TooLarge)?;
        let progress: CheckoutProgress =
            serde_json::from_slice(&bytes).map_err(|e| Refusal::Malformed(e.to_string()))?;
        let batched = Batched {
            run: progress.run_id,
            attempt: progress.attempt,
            session: progress.session_id,
        };
        authorize(&state, &claim, &name, &HeaderMap::new(), batched).await?;
        let (namespace, name) = (namespace.as_str(), name.as_str());
        state.tell(tell::of_progress(Target { namespace, name }, &progress));
        Ok(StatusCode::NO_CONTENT)
    };
    match taken.await {
        Ok(status) => status.into_response(),
        Err(refusal) => {
            refusal.log(&namespace, &name);
            refusal.into_response()
        }
    }
}

async fn authenticate(state: &State, headers: &HeaderMap) -> Result<Claim, Refusal> {
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN)
        .ok_or(Refusal::Unauthenticated("a bearer token is needed"))?;
    let _turn = tokio::time::timeout(TURN, state.reviews.acquire())
        .await
        .map_err(|_| Refusal::Busy)?
        .map_err(|_| Refusal::Busy)?;
    state
        .guard
        .claim(token)
        .await
        .map_err(Refusal::Cluster)?
        .map_err(Refusal::Unauthenticated)
}

async fn authorize(
    state: &State,
    claim: &Claim,
    name: &str,
    headers: &HeaderMap,
    batch: Batched,
) -> Result<(), Refusal> {
    let pod_run =
        match headers.get(POD_RUN_HEADER) {
            None => None,
            Some(value) => Some(value.to_str().map_err(|_| {
                Refusal::Malformed(format!("{POD_RUN_HEADER} is not a run's name"))
            })?),
        };
    // Names go into the API server's paths.
    for name in std::iter::once(name).chain(pod_run) {
        if !is_object_name(name) {
            return Err(Refusal::Malformed(format!("{name:?} is not a run's name")));
        }
    }
    let pass = state
        .guard
        .pass(claim, name, pod_run, batch)
        .await
        .map_err(Refusal::Cluster)?;
    match pass {
        Pass::Yes => Ok(()),
        Pass::No(why) => Err(Refusal::Forbidden(why)),
        Pass::AskLedger(pod_run) => {
            let ended = state
                .ledger
                .ended_on_the_workspace_of(&claim.namespace, batch.run, pod_run)
                .await
                .map_err(Refusal::Ledger)?;
            if ended {
                Ok(())
            } else {
                Err(Refusal::Forbidden(
                    "the ledger knows no ended run of this uid on the workspace",
                ))
            }
        }
    }
}

/// The batch, read in time and within its size.
async fn read(body: Body) -> Result<Batch, Refusal> {
    let bytes = tokio::time::timeout(BODY, to_bytes(body, MAX_BATCH_BYTES))
        .await
        .map_err(|_| Refusal::TooSlow)?
        // A connection cut in mid-body answers nobody, so the limit is all that is left to say.
        .map_err(|_| Refusal::TooLarge)?;
    // Parsing megabytes would hold up the other connections of this thread.
    tokio::task::spawn_blocking(move || serde_json::from_slice(&bytes))
        .await
        .map_err(|error| Refusal::Malformed(error.to_string()))?
        .map_err(|error| Refusal::Malformed(format!("the batch can't be read: {error}")))
}

/// A DNS subdomain, as the API server wants names.
fn is_object_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && name
            .split('.')
            .all(|part| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-'))
}

impl Refusal {
    fn log(&self, namespace: &str, run: &str) {
        match self {
            Self::Cluster(fault) => {
                tracing::warn!(namespace, run, %fault, "a token can't be reviewed")
            }
            Self::Ledger(error) => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::warn!(namespace, run, %error, cause, "a batch can't be stored");
            }
            other => tracing::info!(namespace, run, refusal = ?other, "a batch is refused"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let away = |what: &str| (StatusCode::SERVICE_UNAVAILABLE, what.to_owned());
        let (status, sentence) = match self {
            Self::Unauthenticated(why) => (StatusCode::UNAUTHORIZED, why.to_owned()),
            Self::Forbidden(why) => (StatusCode::FORBIDDEN, why.to_owned()),
            Self::Malformed(why) | Self::Ledger(ledger::Error::Refused(why)) => {
                (StatusCode::BAD_REQUEST, why)
            }
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a batch has at most {MAX_BATCH_BYTES} bytes"),
            ),
            Self::TooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "the batch came too slowly".to_owned(),
            ),
            Self::Busy => away("the server is busy"),
            Self::Cluster(_) => away("the API server can't be asked"),
            Self::Ledger(error) if error.is_of_content() => (
                StatusCode::BAD_REQUEST,
                "the ledger can't hold what is in the batch".to_owned(),
            ),
            Self::Ledger(_) => away("the ledger can't be written"),
        };
        let mut response = (status, Json(json!({ "error": sentence }))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, axum::http::HeaderValue::from_static("2"));
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_api_server_would_take_reach_its_paths() {
        for name in ["a", "a-1", "a.b", "0"] {
            assert!(is_object_name(name), "{name}");
        }
        for name in [
            "",
            "..",
            "a/b",
            "A",
            "a..b",
            "-a",
            "a-",
            "%2e",
            "a?b",
            &"a".repeat(254),
        ] {
            assert!(!is_object_name(name), "{name}");
        }
    }
}
