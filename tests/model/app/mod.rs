//! The routes of the scripted model and what they share. Which scenario and turn a request asks
//! for is `choose`'s business, the answer's bytes are `answer`'s, the record of what was sent `log`'s.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

mod answer;
mod choose;
pub(crate) mod log;
pub(crate) mod scenario;

use choose::{Choice, Kind};
use log::{Log, Open, Record};
use scenario::{Scenario, Turn, Usage};

/// What a request without tools (the CLI's own small questions, such as a title) is answered with.
const SIDE_USAGE: Usage = Usage {
    input: 50,
    output: 10,
    cache_read: 0,
    cache_creation: 0,
};
/// What is answered once a scenario has no turn left.
const OVER_USAGE: Usage = Usage {
    input: 20,
    output: 5,
    cache_read: 0,
    cache_creation: 0,
};
/// Larger than any conversation of a test.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// The model's state: its scenarios, how often each turn was tried, and what it has sent.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    scenarios: HashMap<String, Scenario>,
    api_key: Option<String>,
    log: Log,
    tries: Mutex<HashMap<String, usize>>,
    number: AtomicU64,
}

impl App {
    /// A model with these scenarios. `print` writes every record to stdout as well.
    pub(crate) fn new(
        scenarios: HashMap<String, Scenario>,
        api_key: Option<String>,
        print: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            scenarios,
            api_key,
            log: Log::new(print),
            tries: Mutex::default(),
            number: AtomicU64::new(0),
        }))
    }

    fn open(&self, record: Record) -> Open {
        let number = self.0.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.log.open(Record { number, ..record })
    }

    /// How often this turn was asked for before. A restart of the model forgets it, which costs
    /// one more error and nothing else.
    fn earlier_tries(&self, choice: &Choice) -> usize {
        let mut tries = self.0.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let count = tries.entry(choice.retry_key.clone()).or_default();
        *count += 1;
        *count - 1
    }
}

/// The routes. Whatever is not the Messages API is refused, and recorded as such.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/log",
            get(|State(app): State<App>| async move { Json(app.0.log.records(None)) }),
        )
        .route("/log/{key}", get(read_log))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

async fn read_log(State(app): State<App>, Path(key): Path<String>) -> Json<Vec<Record>> {
    Json(app.0.log.records(Some(&key)))
}

async fn unknown(State(app): State<App>, method: Method, uri: Uri) -> Response {
    let path = format!("{method} {}", uri.path());
    let open = app.open(Record {
        kind: "unknown".into(),
        path,
        ..Record::default()
    });
    refuse(
        open,
        StatusCode::NOT_FOUND,
        "not_found_error",
        "no such path",
        None,
    )
}

async fn messages(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let (request, mut record) = match admit(&app, "/v1/messages", &headers, &body) {
        Ok(admitted) => admitted,
        Err(refused) => return *refused,
    };
    let choice = choose::choose(&request);
    record.scenario = choice.scenario.clone();
    record.tag = choice.tag.clone();
    record.key = choice.key().to_owned();
    record.turn = choice.turn;
    record.stream = request["stream"].as_bool().unwrap_or(false);
    if choice.kind == Kind::Side {
        record.kind = "side".into();
        let turn = Turn::said("A scripted task", SIDE_USAGE);
        return answer::answer(app.open(record), &turn, 0).await;
    }
    record.kind = "turn".into();
    let Some(scenario) = app.0.scenarios.get(&choice.scenario) else {
        let text = format!("there is no scenario {:?}", choice.scenario);
        let open = app.open(record);
        return refuse(
            open,
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            &text,
            None,
        );
    };
    let turn = match scenario.turn(choice.turn) {
        Some(turn) => turn.for_tag(choice.tag.as_deref().unwrap_or("")),
        None => Turn::said("Done.", OVER_USAGE),
    };
    let earlier = app.earlier_tries(&choice);
    record.attempt = earlier + 1;
    let open = app.open(record);
    tokio::time::sleep(Duration::from_millis(turn.delay_ms)).await;
    match turn.error(earlier) {
        Some(error) => {
            let status =
                StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            refuse(
                open,
                status,
                error.kind(),
                &error.message,
                error.retry_after,
            )
        }
        None => answer::answer(open, &turn, choice.turn).await,
    }
}

async fn count_tokens(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let (request, mut record) = match admit(&app, "/v1/messages/count_tokens", &headers, &body) {
        Ok(admitted) => admitted,
        Err(refused) => return *refused,
    };
    let choice = choose::choose(&request);
    record.kind = "count_tokens".into();
    record.scenario = choice.scenario.clone();
    record.tag = choice.tag.clone();
    record.key = choice.key().to_owned();
    let mut open = app.open(record);
    open.finish(200, Usage::default(), true);
    Json(json!({ "input_tokens": body.len() / 4 })).into_response()
}

/// The parsed request and a record of it, or the refusal of a wrong key or body.
fn admit(
    app: &App,
    path: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<(Value, Record), Box<Response>> {
    let mut record = Record {
        path: path.into(),
        kind: "refused".into(),
        ..Record::default()
    };
    let given = headers.get("x-api-key").and_then(|v| v.to_str().ok());
    if app.0.api_key.is_some() && app.0.api_key.as_deref() != given {
        let open = app.open(record);
        return Err(Box::new(refuse(
            open,
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "invalid x-api-key",
            None,
        )));
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(request) if request["messages"].is_array() => {
            record.model = request["model"].as_str().unwrap_or("").to_owned();
            Ok((request, record))
        }
        _ => Err(Box::new(refuse(
            app.open(record),
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "messages: Field required",
            None,
        ))),
    }
}

/// An error in the API's shape.
fn refuse(
    mut open: Open,
    status: StatusCode,
    kind: &str,
    message: &str,
    retry_after: Option<u32>,
) -> Response {
    open.finish(status.as_u16(), Usage::default(), true);
    let body = json!({
        "type": "error",
        "error": { "type": kind, "message": message },
        "request_id": format!("req_{}", open.number()),
    });
    let mut response = (status, Json(body)).into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}
