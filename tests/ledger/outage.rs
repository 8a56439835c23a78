//! Postgres going away is a matter of waiting, never of losing or doubling.

use std::time::Duration;

use runledger::api::run::Phase;
use runledger::wire::Event;

use crate::database::{Database, Server, open, up};
use crate::shapes::{TARGET, at, batch, ended, events, usage};

/// A server of the test's own, and a run of which some events are stored there, and those are not all.
async fn begun() -> (Server, Database, Vec<Event>) {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    up(&server.url).await;
    let db = open(server.url.clone()).await;
    let all = events(1, 3);
    db.ledger
        .store(TARGET, &batch(1, &all[..5]), at(30))
        .await
        .unwrap();
    (server, db, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_stopped_calls_fail_as_transient_and_go_on_when_it_is_back() {
    let (mut server, db, all) = begun().await;
    server.tell("stop");
    // They end, however busy the machine is.
    let patience = Duration::from_secs(900);
    let stored = tokio::time::timeout(patience, db.ledger.store(TARGET, &batch(1, &all), at(30)))
        .await
        .unwrap()
        .unwrap_err();
    let record = ended(Phase::Completed, 1, usage(3));
    let mirrored = tokio::time::timeout(patience, db.ledger.mirror(&record))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        stored.is_transient() && mirrored.is_transient(),
        "{stored:?} {mirrored:?}"
    );
    server.tell("start");
    // The connections that the pool still holds are dead: nothing of that shows.
    let answer = db
        .ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(3)))
        .await
        .unwrap();
    assert_eq!(answer.acknowledged, all.len() as u64);
    let counts = "SELECT (SELECT count(*) FROM run_events), (SELECT status FROM workflow_runs), \
                  (SELECT message_count FROM sessions)";
    let row: (i64, String, i32) = sqlx::query_as(counts).fetch_one(&db.pool).await.unwrap();
    assert_eq!(row, (all.len() as i64, "completed".to_owned(), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_two_calls_is_not_noticed() {
    let (mut server, db, all) = begun().await;
    server.tell("stop");
    server.tell("start");
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(3)))
        .await
        .unwrap();
}
