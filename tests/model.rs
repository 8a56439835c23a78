//! The scripted model over HTTP: what tests and demo rely on when they compare figures with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

#[path = "model/app/mod.rs"]
mod app;

/// A model with the scenarios of the demo on a port of its own.
struct Model {
    url: String,
    client: reqwest::Client,
}

impl Model {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model/scenarios");
        let scenarios = app::scenario::read_all(&directory).unwrap();
        let app = app::App::new(scenarios, Some("right".into()), false);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app::router(app)).await });
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Self { url, client }
    }

    async fn ask(&self, messages: Value, stream: bool) -> reqwest::Response {
        let body = json!({
            "model": "claude-test", "max_tokens": 100, "stream": stream, "messages": messages,
            "tools": [{ "name": "Bash", "input_schema": {} }],
        });
        let request = self.client.post(format!("{}/v1/messages", self.url));
        let request = request.header("x-api-key", "right").json(&body);
        request.send().await.unwrap()
    }

    async fn log(&self, key: &str) -> Vec<Value> {
        let log = self.client.get(format!("{}/log/{key}", self.url));
        let log: Value = log.send().await.unwrap().json().await.unwrap();
        log.as_array().unwrap().clone()
    }
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": [{ "type": "text", "text": text }] })
}

fn assistant() -> Value {
    json!({ "role": "assistant", "content": [{ "type": "text", "text": "so" }] })
}

/// The events of a stream: the name of each must be its data's type.
fn events(body: &str) -> Vec<Value> {
    let parse = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        data
    };
    body.split_terminator("\n\n").map(parse).collect()
}

#[tokio::test]
async fn a_stream_adds_up_to_the_scenarios_turn_and_its_usage() {
    let model = Model::start().await;
    let response = model.ask(json!([user("[scenario: happy #a]")]), true).await;
    let events = events(&response.text().await.unwrap());
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 210);
    assert_eq!(events[0]["message"]["usage"]["output_tokens"], 1);
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let delta = &events[events.len() - 2];
    assert_eq!(delta["delta"]["stop_reason"], "tool_use");
    assert_eq!(delta["usage"]["output_tokens"], 90);
    let deltas = events.iter().filter(|event| event["index"] == 2);
    let pieces: String = deltas
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    let input: Value = serde_json::from_str(&pieces).unwrap();
    assert!(input["command"].as_str().unwrap().starts_with("git add"));
    let log = model.log("a").await;
    assert_eq!(log.len(), 1);
    assert_eq!(
        log[0]["usage"],
        json!({ "input": 210, "output": 90, "cache_read": 0, "cache_creation": 3000 })
    );
    assert_eq!(log[0]["complete"], true);
}

#[tokio::test]
async fn the_turn_follows_from_the_conversation_alone() {
    let model = Model::start().await;
    let earlier = [
        user("[scenario: happy #old]"),
        assistant(),
        user("[scenario: default #new]"),
    ];
    let conversation = [&earlier[..], &[assistant(), user("go on")]].concat();
    let answer = model.ask(json!(conversation), false).await;
    let answer: Value = answer.json().await.unwrap();
    assert!(
        answer["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("I have looked")
    );
    assert_eq!(answer["stop_reason"], "end_turn");
    let over = [&conversation[..], &[assistant(), user("and now?")]].concat();
    let answer: Value = model.ask(json!(over), false).await.json().await.unwrap();
    assert_eq!(answer["content"][0]["text"], "Done.");
    let log = model.log("new").await;
    assert_eq!((&log[0]["turn"], &log[1]["turn"]), (&json!(1), &json!(2)));
}

#[tokio::test]
async fn errors_come_first_with_retry_after_and_the_answer_then() {
    let model = Model::start().await;
    let ask = || model.ask(json!([user("[scenario: limited]")]), true);
    let first = ask().await;
    assert_eq!(
        (first.status().as_u16(), &first.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    let second = ask().await;
    assert_eq!(second.status().as_u16(), 529);
    let error: Value = second.json().await.unwrap();
    assert_eq!(error["error"]["type"], "overloaded_error");
    assert_eq!(ask().await.status().as_u16(), 200);
    let tries: Vec<_> = model
        .log("limited")
        .await
        .iter()
        .map(|r| r["try"].clone())
        .collect();
    assert_eq!(tries, [1, 2, 3]);
}

#[tokio::test]
async fn a_cut_stream_breaks_off_once_and_is_recorded_with_what_was_sent() {
    let model = Model::start().await;
    let ask = || model.ask(json!([user("[scenario: cut]")]), true);
    assert!(ask().await.text().await.is_err());
    let whole = ask().await.text().await.unwrap();
    assert!(whole.contains("message_stop"));
    let log = model.log("cut").await;
    assert_eq!(
        (&log[0]["complete"], &log[0]["usage"]["output"]),
        (&json!(false), &json!(1))
    );
    assert_eq!(
        (&log[1]["complete"], &log[1]["usage"]["output"]),
        (&json!(true), &json!(33))
    );
}

#[tokio::test]
async fn a_stuck_stream_begins_and_is_recorded_when_its_reader_leaves() {
    let model = Model::start().await;
    let response = model.ask(json!([user("[scenario: stuck]")]), true).await;
    let mut stream = response.bytes_stream();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    let recorded = async {
        loop {
            let log = model.log("stuck").await;
            if let Some(record) = log.first() {
                break record.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let record = tokio::time::timeout(Duration::from_secs(10), recorded)
        .await
        .unwrap();
    assert_eq!(
        (&record["complete"], &record["usage"]["cache_read"]),
        (&json!(false), &json!(128))
    );
}

#[tokio::test]
async fn requests_are_answered_side_by_side() {
    let model = Model::start().await;
    let ask = || async {
        let response = model
            .ask(json!([user("[scenario: helper #both]")]), true)
            .await;
        response.text().await.unwrap()
    };
    tokio::join!(ask(), ask());
    let log = model.log("both").await;
    assert!(log.iter().any(|record| record["in_flight"] == 2), "{log:?}");
}

#[tokio::test]
async fn a_wrong_key_and_other_paths_are_refused() {
    let model = Model::start().await;
    let post = |path: &str| model.client.post(format!("{}{path}", model.url));
    let body = json!({ "messages": [user("hello")] });
    let wrong = post("/v1/messages")
        .header("x-api-key", "wrong")
        .json(&body);
    assert_eq!(wrong.send().await.unwrap().status().as_u16(), 401);
    let batches = post("/v1/messages/batches")
        .header("x-api-key", "right")
        .json(&body);
    assert_eq!(batches.send().await.unwrap().status().as_u16(), 404);
    let count = post("/v1/messages/count_tokens")
        .header("x-api-key", "right")
        .json(&body);
    let count: Value = count.send().await.unwrap().json().await.unwrap();
    assert!(count["input_tokens"].as_u64().unwrap() > 0);
}
