//! The metering proxy: the agent's way to the model, and nothing else's. It owns the key and the
//! one upstream, journals each request before it is forwarded and again when it has ended, and
//! hands every byte through as it comes.

mod metered;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use url::Url;

use self::metered::Metered;
use super::journal::Journal;
use crate::listen::Bounds;

/// Largest request body, as the API's own limit.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// How long a response that nobody reads any more is read to its end, so that its usage is exact.
pub(super) const AFTER_HANG_UP: Duration = Duration::from_secs(5);
/// Longest silence of the upstream.
const SILENCE: Duration = Duration::from_secs(600);
/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that may be on their way at once.
const MAX_REQUESTS: usize = 32;
/// Bytes of bodies that may be in memory at once: the supervisor's limit is small, and every body is
/// held until its request has ended.
const MAX_BODIES: usize = 128 * 1024 * 1024;
/// What room for bodies is counted in, in bytes.
const UNIT: usize = 64 * 1024;
/// Longest wait for room.
const TURN: Duration = Duration::from_secs(10);
/// Requests of the CLI and of whatever else is in the agent's container. An idle connection stays
/// longer than any client keeps one.
const BOUNDS: Bounds = Bounds {
    connections: 256,
    first_request: Duration::from_secs(10),
    next_request: Duration::from_secs(300),
};
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
    bodies: Arc<Semaphore>,
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
            bodies: Arc::new(Semaphore::new(MAX_BODIES / UNIT)),
        })
    }

    /// Serves for ever.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let app = axum::Router::new().fallback(handle).with_state(self);
        let server = BOUNDS.of(axum_server::Server::<SocketAddr>::from_listener(listener));
        if let Err(error) = server.serve(app.into_make_service()).await {
            tracing::error!(%error, "the metering proxy ended");
        }
    }

    /// Waits for its turn to hold a body of that length.
    async fn memory_for(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(length.div_ceil(UNIT)).ok()?;
        let turn = self.bodies.clone().acquire_many_owned(units);
        tokio::time::timeout(TURN, turn).await.ok()?.ok()
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
    // One that does not say how long it is may be of any length.
    let length = content_length(&parts.headers).unwrap_or(MAX_BODY);
    if length > MAX_BODY {
        return too_large();
    }
    let Some(memory) = proxy.memory_for(length).await else {
        return refusal(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "The requests that are on their way are too large for one more.",
        );
    };
    let collected = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, length)).await;
    let Ok(Ok(body)) = collected else {
        return too_large();
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
        _memory: memory,
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

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn too_large() -> Response {
    refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        "request_too_large",
        "The request's body is larger than 32 MiB, or did not come.",
    )
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
    /// For the body, which is kept until the request has ended.
    _memory: OwnedSemaphorePermit,
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
            if metered.is_complete() {
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
