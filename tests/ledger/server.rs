//! The server's door over HTTP, with a stand-in for the API server only where its faults are shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::StatusCode;
use runledger::api::run::Phase;
use runledger::server::{Answer, Claim, Cluster, Fault, Run, State, Told, router};
use runledger::wire::{Batch, EventBody, MAX_BATCH_BYTES, POD_RUN_HEADER};
use serde_json::{Value, json};
use std::sync::Mutex;
use uuid::Uuid;

use crate::database::{Database, migrated};
use crate::shapes::{batch, ended, events, record, run_id, session_id, usage};

/// Knows one token per pod, and what runs it was told.
#[derive(Default)]
struct Fake {
    runs: Mutex<Vec<(String, Run)>>,
    away: AtomicBool,
    reviews: AtomicUsize,
    told: Mutex<Vec<Told>>,
}

impl Cluster for Fake {
    fn review(&self, token: String) -> BoxFuture<'_, Result<Answer, Fault>> {
        Box::pin(async move {
            self.reviews.fetch_add(1, Ordering::Relaxed);
            if self.away.load(Ordering::Relaxed) {
                return Err(Fault("gone".to_owned()));
            }
            Ok(match token.split_once('/') {
                Some((namespace, pod)) => Ok(Claim {
                    namespace: namespace.to_owned(),
                    pod_uid: pod.to_owned(),
                }),
                None => Err("the token is not valid for this server"),
            })
        })
    }

    fn run(&self, _: String, name: String) -> BoxFuture<'_, Result<Option<Run>, Fault>> {
        Box::pin(async move {
            let runs = self.runs.lock().unwrap();
            Ok(runs
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, run)| run.clone()))
        })
    }

    fn tell(&self, told: Told) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            self.told.lock().unwrap().push(told);
            Ok(())
        })
    }
}

struct Door {
    db: Database,
    fake: Arc<Fake>,
    address: String,
    client: reqwest::Client,
}

async fn door() -> Door {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let db = migrated().await;
    let fake = Arc::new(Fake::default());
    let ledger = runledger::ledger::Ledger::connect(&db.url).unwrap();
    let state = Arc::new(State::new(Arc::new(ledger), fake.clone()));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        axum_server::from_tcp(listener)
            .unwrap()
            .serve(router(state).into_make_service())
            .await
    });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let door = Door {
        db,
        fake,
        address,
        client,
    };
    door.add("demo", run(run_id(), "pod-1"));
    door
}

fn run(uid: Uuid, pod: &str) -> Run {
    Run {
        uid,
        pod_uid: Some(pod.to_owned()),
        attempt: 1,
        session_id: Some(session_id()),
        workspace: Some("w".to_owned()),
        ended: false,
    }
}

impl Door {
    fn add(&self, name: &str, run: Run) {
        let mut runs = self.fake.runs.lock().unwrap();
        runs.retain(|(known, _)| known != name);
        runs.push((name.to_owned(), run));
    }

    fn post(&self, path: &str, token: &str) -> reqwest::RequestBuilder {
        let request = self.client.post(format!("{}{path}", self.address));
        if token.is_empty() {
            request
        } else {
            request.bearer_auth(token)
        }
    }

    async fn send(&self, token: &str, batch: &Batch) -> (StatusCode, Value) {
        answer(
            self.post("/v1/namespaces/ns/runs/demo/events", token)
                .json(batch),
        )
        .await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, response.json().await.unwrap_or_default())
}

#[tokio::test]
async fn the_runs_pod_hands_in_its_events_and_is_told_how_far() {
    let door = door().await;
    let batch = batch(1, &events(1, 2));
    for _ in 0..3 {
        let (status, body) = door.send("ns/pod-1", &batch).await;
        assert_eq!(
            (status, body),
            (StatusCode::OK, json!({"acknowledged": batch.events.len()}))
        );
    }
    assert_eq!(
        door.fake.reviews.load(Ordering::Relaxed),
        1,
        "the answer is remembered"
    );
    assert_eq!(
        door.db
            .one("SELECT count(*) FROM run_events")
            .await
            .unwrap(),
        batch.events.len().to_string()
    );
}

#[tokio::test]
async fn a_runs_owner_is_told_what_its_checkout_left_or_saved_and_how_far_it_has_come() {
    let door = door().await;
    let mut batch = batch(1, &events(1, 1));
    let notes = vec![
        "Submodules are left uninitialised: a.".to_owned(),
        "ö".repeat(900),
    ];
    for event in &mut batch.events {
        if let EventBody::AttemptStarted { notes: told, .. } = &mut event.body {
            told.clone_from(&notes);
        }
    }
    for _ in 0..2 {
        assert_eq!(door.send("ns/pod-1", &batch).await.0, StatusCode::OK);
    }
    let told = || door.fake.told.lock().unwrap().clone();
    let deadline = Instant::now() + Duration::from_secs(5);
    while told().len() < 4 {
        assert!(Instant::now() < deadline, "{:?}", told());
        tokio::task::yield_now().await;
    }
    let (mut first, mut again) = (told(), Vec::new());
    first.sort_by(|a, b| a.key.cmp(&b.key));
    for pair in first.chunks(2) {
        assert_eq!(pair[0], pair[1], "told twice, it is one Event");
        again.push(pair[0].clone());
    }
    assert_eq!((again[0].run.as_str(), again[0].uid), ("demo", run_id()));
    assert_eq!(again[0].message, notes[0]);
    assert_eq!(
        again[1].message,
        "ö".repeat(500),
        "as long as an Event may be"
    );

    let progress = json!({"runId": run_id(), "attempt": 1, "sessionId": session_id(),
        "receivedObjects": 5, "totalObjects": 9, "receivedBytes": 3 << 20});
    let post = |token: &str, body: &Value| {
        answer(
            door.post("/v1/namespaces/ns/runs/demo/checkout", token)
                .json(body),
        )
    };
    assert_eq!(post("ns/pod-1", &progress).await.0, StatusCode::NO_CONTENT);
    assert_eq!(post("ns/pod-2", &progress).await.0, StatusCode::FORBIDDEN);
    assert_eq!(
        post("other/pod-1", &progress).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post("ns/pod-1", &json!({})).await.0,
        StatusCode::BAD_REQUEST
    );
    let deadline = Instant::now() + Duration::from_secs(5);
    while told().len() < 5 {
        assert!(Instant::now() < deadline, "{:?}", told());
        tokio::task::yield_now().await;
    }
    let last = told().pop().unwrap();
    assert!(last.message.contains("5 of 9 objects, 3 MiB"), "{last:?}");
}

#[tokio::test]
async fn nobody_else_hands_in_anything() {
    let door = door().await;
    let good = batch(1, &events(1, 1));
    let mut other_run = good.clone();
    other_run.run_id = Uuid::from_u128(1);
    let mut future = good.clone();
    future.attempt = 2;
    let mut misnamed = good.clone();
    misnamed.session_name = "another".to_owned();
    let mut other_session = misnamed.clone();
    other_session.session_id = runledger::ids::session("ns", "another");
    for (token, batch, expected) in [
        ("", &good, StatusCode::UNAUTHORIZED),
        ("nonsense", &good, StatusCode::UNAUTHORIZED),
        ("other/pod-1", &good, StatusCode::FORBIDDEN),
        ("ns/pod-2", &good, StatusCode::FORBIDDEN),
        ("ns/pod-1", &other_run, StatusCode::FORBIDDEN),
        ("ns/pod-1", &future, StatusCode::FORBIDDEN),
        ("ns/pod-1", &misnamed, StatusCode::BAD_REQUEST),
        ("ns/pod-1", &other_session, StatusCode::FORBIDDEN),
    ] {
        let (status, body) = door.send(token, batch).await;
        assert_eq!(status, expected, "{token} {body}");
        assert!(
            body["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{body}"
        );
    }
    assert_eq!(
        door.db
            .one("SELECT count(*) FROM run_events")
            .await
            .unwrap(),
        "0"
    );
}

#[tokio::test]
async fn a_new_pods_first_batch_is_taken_as_soon_as_the_status_names_it() {
    let door = door().await;
    let batch = batch(1, &events(1, 1));
    assert_eq!(door.send("ns/pod-2", &batch).await.0, StatusCode::FORBIDDEN);
    door.add("demo", run(run_id(), "pod-2"));
    let deadline = Instant::now() + Duration::from_secs(1);
    while door.send("ns/pod-2", &batch).await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "a no is not remembered for long");
    }
}

#[tokio::test]
async fn what_an_ended_run_left_on_the_workspace_is_handed_in_by_the_next_runs_pod() {
    let door = door().await;
    let next = Uuid::from_u128(2);
    door.add("next", run(next, "pod-2"));
    let batch = batch(1, &events(1, 1));
    let hand_in = || {
        door.post("/v1/namespaces/ns/runs/demo/events", "ns/pod-2")
            .header(POD_RUN_HEADER, "next")
            .json(&batch)
    };
    assert_eq!(
        answer(hand_in()).await.0,
        StatusCode::FORBIDDEN,
        "it has not ended"
    );

    // Its resource is gone, and the ledger has not heard of it.
    door.fake
        .runs
        .lock()
        .unwrap()
        .retain(|(name, _)| name != "demo");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (status, body) = answer(hand_in()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
        if body["error"] == "the ledger knows no ended run of this uid on the workspace" {
            break;
        }
        assert!(Instant::now() < deadline, "{body}");
    }

    // The ledger knows that it ended on the same volume.
    door.db
        .ledger
        .mirror(&ended(Phase::Killed, 1, usage(1)))
        .await
        .unwrap();
    let mut mine = record();
    (mine.run_id, mine.name) = (next, "next".to_owned());
    door.db.ledger.mirror(&mine).await.unwrap();
    let (status, body) = answer(hand_in()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(
        door.db
            .one("SELECT count(DISTINCT run_id) FROM run_events")
            .await
            .unwrap(),
        "1"
    );
}

#[tokio::test]
async fn what_is_no_batch_is_refused_with_a_sentence() {
    let door = door().await;
    let path = "/v1/namespaces/ns/runs/demo/events";
    let post = |body: Vec<u8>| door.post(path, "ns/pod-1").body(body);
    assert_eq!(answer(post(b"{".to_vec())).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        answer(post(vec![b' '; MAX_BATCH_BYTES + 1])).await.0,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let mut huge = batch(1, &events(1, 1));
    huge.events[0].sequence = u64::MAX;
    let (status, body) = door.send("ns/pod-1", &huge).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    let odd = door.post("/v1/namespaces/ns/runs/..%2f..%2fx/events", "ns/pod-1");
    assert_eq!(
        answer(odd.json(&batch(1, &[]))).await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn with_the_api_server_or_the_ledger_away_the_pod_is_asked_to_come_again() {
    let door = door().await;
    door.fake.away.store(true, Ordering::Relaxed);
    let response = door
        .post("/v1/namespaces/ns/runs/demo/events", "ns/pod-1")
        .json(&batch(1, &[]))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    door.fake.away.store(false, Ordering::Relaxed);

    sqlx::raw_sql("ALTER TABLE run_events RENAME TO hidden")
        .execute(&door.db.pool)
        .await
        .unwrap();
    let (status, body) = door.send("ns/pod-1", &batch(1, &events(1, 1))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    sqlx::raw_sql("ALTER TABLE hidden RENAME TO run_events")
        .execute(&door.db.pool)
        .await
        .unwrap();
    assert_eq!(
        door.send("ns/pod-1", &batch(1, &events(1, 1))).await.0,
        StatusCode::OK
    );
}
