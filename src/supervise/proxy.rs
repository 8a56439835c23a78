//! The metering proxy: the agent's way to the model, and nothing else's. It owns the key and the
//! one upstream, journals each request before it is forwarded and again when it has ended, and
//! hands every byte through as it comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use url::Url;

use super::book::{Note, RequestOutcome, Seen, estimated_input};
use super::journal::{Draft, Journal};
use super::meter::Meter;
use crate::wire::EventBody;

/// Largest request body, as the API's own limit.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// How long a response that nobody reads any more is read to its end, so that its usage is exact.
pub(super) const AFTER_HANG_UP: Duration = Duration::from_secs(5);
/// Longest silence of the upstream.
const SILENCE: Duration = Duration::from_secs(600);
/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that may be on their way at once; each may hold a body in memory.
const MAX_REQUESTS: usize = 32;
/// What of the client's headers goes on, beside `anthropic-*`.
const FORWARDED: [HeaderName; 3] = [header::CONTENT_TYPE, header::ACCEPT, header::USER_AGENT];
/// What of the upstream's headers does not come back: they speak of the connection, not the message.
const NOT_RETURNED: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "set-cookie",
];

/// The proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    journal: Arc<Journal>,
    client: reqwest::Client,
    base: Url,
    key: HeaderValue,
    room: Arc<Semaphore>,
}

impl Proxy {
    /// To `base`, with `key`, over `tls`.
    pub(super) fn new(
        journal: Arc<Journal>,
        base: Url,
        key: &str,
        tls: rustls::ClientConfig,
    ) -> Result<Self, super::Error> {
        let mut key = HeaderValue::from_str(key).map_err(|_| super::Error::Key)?;
        key.set_sensitive(true);
        let client = super::tls::client(tls)
            .read_timeout(SILENCE)
            .build()
            .map_err(super::Error::Client)?;
        Ok(Self {
            journal,
            client,
            base,
            key,
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
        })
    }

    /// Serves for ever.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let app = axum::Router::new().fallback(handle).with_state(self);
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the metering proxy ended");
        }
    }

    fn upstream(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        url.set_query(query);
        url
    }
}

async fn handle(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let metered = match parts.uri.path() {
        "/v1/messages" => true,
        "/v1/messages/count_tokens" => false,
        _ => {
            return refusal(
                StatusCode::FORBIDDEN,
                "permission_error",
                "Only /v1/messages and /v1/messages/count_tokens pass here.",
            );
        }
    };
    if parts.method != Method::POST {
        return refusal(
            StatusCode::FORBIDDEN,
            "permission_error",
            "Only POST passes here.",
        );
    }
    let Ok(room) = proxy.room.clone().try_acquire_owned() else {
        return refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "Too many requests are on their way already.",
        );
    };
    let collected = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await;
    let Ok(Ok(body)) = collected else {
        return refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            "The request's body is larger than 32 MiB, or did not come.",
        );
    };
    if proxy.journal.read(|book| book.sealed.is_some()) {
        return refusal(
            StatusCode::FORBIDDEN,
            "permission_error",
            "The run is sealed.",
        );
    }
    let request = proxy
        .client
        .post(proxy.upstream(parts.uri.path(), parts.uri.query()))
        .headers(forwarded(&parts.headers))
        .header("x-api-key", proxy.key.clone());

    let bytes = body.len() as u64;
    let meter = if metered {
        Some(Metered::start(proxy.journal.clone(), bytes).await)
    } else {
        None
    };
    let (head, head_came) = oneshot::channel();
    let (chunks, body_comes) = mpsc::channel(16);
    let exchange = Exchange {
        chunks,
        meter,
        _room: room,
    };
    // A task of its own: should the client hang up, the usage is still read.
    tokio::spawn(exchange.run(request.body(body), head));
    match head_came.await {
        Ok(head) => respond(head, body_comes),
        Err(_) => refusal(
            StatusCode::BAD_GATEWAY,
            "api_error",
            "The model's API could not be reached.",
        ),
    }
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        if name.as_str().starts_with("anthropic-") || FORWARDED.contains(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    kept
}

fn respond(head: Head, body: mpsc::Receiver<io::Result<Bytes>>) -> Response {
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    *response.status_mut() = head.status;
    for (name, value) in &head.headers {
        if !NOT_RETURNED.contains(&name.as_str()) {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    response
}

/// An error in the API's own form.
fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
}

/// One request on its way to the model and back.
struct Exchange {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    meter: Option<Metered>,
    _room: OwnedSemaphorePermit,
}

impl Exchange {
    async fn run(mut self, request: reqwest::RequestBuilder, head: oneshot::Sender<Head>) {
        let hang_up = hang_up(self.chunks.clone());
        tokio::pin!(hang_up);
        let sent = tokio::select! {
            sent = request.send() => sent,
            () = &mut hang_up => return self.lost(false).await,
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => {
                // The URL says nothing that the configuration does not.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the model's API failed"
                );
                return self.lost(error.is_connect()).await;
            }
        };
        if let Some(metered) = &mut self.meter {
            metered.head(&response);
        }
        let _ = head.send(Head {
            status: response.status(),
            headers: response.headers().clone(),
        });
        loop {
            let chunk = tokio::select! {
                chunk = response.chunk() => chunk,
                () = &mut hang_up => break,
            };
            match chunk {
                Ok(Some(chunk)) => self.pass(chunk).await,
                Ok(None) => {
                    self.end().await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the model's response was cut off"
                    );
                    break;
                }
            }
        }
        self.end().await;
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        let _ = self.chunks.send(Err(cut)).await;
    }

    /// The usage is journalled before the last chunk goes on, so that whatever the agent says of
    /// the message comes after it.
    async fn pass(&mut self, chunk: Bytes) {
        if let Some(metered) = &mut self.meter {
            metered.feed(&chunk);
            if metered.meter.as_ref().is_some_and(Meter::is_complete) {
                metered.end().await;
            }
        }
        let _ = self.chunks.send(Ok(chunk)).await;
    }

    async fn end(&mut self) {
        if let Some(metered) = &mut self.meter {
            metered.end().await;
        }
    }

    /// No response came; a request that was never sent has cost nothing.
    async fn lost(self, never_sent: bool) {
        if let Some(mut metered) = self.meter {
            metered.lost(never_sent).await;
        }
    }
}

/// Resolves some time after the client has gone away.
async fn hang_up(chunks: mpsc::Sender<io::Result<Bytes>>) {
    chunks.closed().await;
    tokio::time::sleep(AFTER_HANG_UP).await;
}

/// A request in the journal.
struct Metered {
    journal: Arc<Journal>,
    request: u64,
    bytes: u64,
    meter: Option<Meter>,
    ended: bool,
}

impl Metered {
    /// Journals that the request starts, and waits until that is on the disk.
    async fn start(journal: Arc<Journal>, bytes: u64) -> Self {
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

    fn head(&mut self, response: &reqwest::Response) {
        let content_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        self.meter = Some(Meter::new(response.status().as_u16(), content_type));
    }

    fn feed(&mut self, chunk: &[u8]) {
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

    async fn end(&mut self) {
        let Some(meter) = &mut self.meter else { return };
        if self.ended {
            return;
        }
        meter.finish();
        let outcome = meter.outcome(self.bytes);
        let notes = meter.answer().map(Note::Answer).into_iter().collect();
        self.journal_end(&outcome, notes).await;
    }

    async fn lost(&mut self, never_sent: bool) {
        let tokens = if never_sent {
            crate::wire::Tokens::default()
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
