//! What several bring at the same moment, and what was brought before, is stored once. The ledger guesses
//! of a batch that seems to be an attempt's next that nothing of it is there: wrong guesses are made here.

use std::sync::Arc;
use std::time::Duration;

use runledger::ledger::Ledger;
use runledger::wire::{EventBody, MessageKind};

use crate::database::{Database, assert_same, migrated};
use crate::shapes::{TARGET, at, batch, events, record};

/// Waits until so many others wait for a lock.
async fn until_they_wait(db: &Database, others: u32) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let until = async {
        while db.one(waiting).await.unwrap() != others.to_string() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let patience = Duration::from_secs(120);
    tokio::time::timeout(patience, until).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waited_for_the_same_events_stores_none_of_them_again() {
    let db = Arc::new(migrated().await);
    db.ledger.mirror(&record()).await.unwrap();
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM workflow_runs FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let all = events(1, 3);
    let tasks: Vec<_> = [&all[..7], &all[..5], &all]
        .map(|events| {
            let (db, batch) = (db.clone(), batch(1, events));
            tokio::spawn(async move { db.ledger.store(TARGET, &batch, at(30)).await })
        })
        .into();
    until_they_wait(&db, 3).await;
    holder.rollback().await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(
        db.one("SELECT (count(*), max(sequence)) FROM run_events")
            .await
            .unwrap(),
        format!("({},{})", all.len(), all.len())
    );
    assert_eq!(
        db.one("SELECT (message_count, last_position) FROM sessions")
            .await
            .unwrap(),
        "(4,4)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_another_brings_at_the_same_moment_is_stored_once() {
    let db = Arc::new(migrated().await);
    let all = events(1, 1);
    let said = all.iter().find_map(|event| match &event.body {
        EventBody::Message(message) if message.kind != MessageKind::WorkflowStart => {
            Some(message.id)
        }
        _ => None,
    });
    db.ledger.mirror(&record()).await.unwrap();
    let mut other = db.pool.begin().await.unwrap();
    // Of no session, so that nothing but the message is waited for.
    sqlx::query("INSERT INTO messages (id, role, text_content) VALUES ($1, 'user', 'before')")
        .bind(said)
        .execute(&mut *other)
        .await
        .unwrap();
    let task = tokio::spawn({
        let db = db.clone();
        async move { db.ledger.store(TARGET, &batch(1, &all), at(30)).await }
    });
    until_they_wait(&db, 1).await;
    other.commit().await.unwrap();
    task.await.unwrap().unwrap();
    let texts = "SELECT string_agg(text_content, ',') FROM messages WHERE text_content = 'before'";
    assert_eq!(db.one(texts).await.unwrap(), "before");
    let counted =
        "SELECT (s.message_count, (SELECT count(*) FROM messages m WHERE m.session_id = s.id))
                   FROM sessions s";
    let counted = db.one(counted).await.unwrap();
    assert!(counted == "(1,1)", "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_to_which_the_same_batch_is_the_next_store_it_once() {
    let (db, alone) = (migrated().await, migrated().await);
    let all = events(1, 3);
    for db in [&db, &alone] {
        db.ledger.mirror(&record()).await.unwrap();
        db.ledger
            .store(TARGET, &batch(1, &all[..2]), at(30))
            .await
            .unwrap();
    }
    alone
        .ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM workflow_runs FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    // All of them see what is acknowledged now before they wait, and believe it when they go on.
    let tasks: Vec<_> = [&all[2..], &all[2..], &all[2..7], &all[2..5]]
        .map(|events| {
            let (ledger, batch) = (Ledger::connect(&db.url).unwrap(), batch(1, events));
            tokio::spawn(async move { ledger.store(TARGET, &batch, at(30)).await })
        })
        .into();
    until_they_wait(&db, 4).await;
    holder.rollback().await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_same(&db.everything().await, &alone.everything().await, "");
    assert_eq!(
        db.one("SELECT (message_count, last_position) FROM sessions")
            .await
            .unwrap(),
        "(4,4)"
    );
}

#[tokio::test]
async fn a_message_that_comes_again_in_a_later_event_is_stored_once() {
    let db = migrated().await;
    let mut all = events(1, 2);
    let said: Vec<usize> = (0..all.len())
        .filter(
            |n| matches!(&all[*n].body, EventBody::Message(m) if m.kind == MessageKind::Assistant),
        )
        .collect();
    all[said[1]].body = all[said[0]].body.clone();
    let next = said[0] + 1;
    for part in [&all[..next], &all[next..]] {
        db.ledger
            .store(TARGET, &batch(1, part), at(30))
            .await
            .unwrap();
    }
    let counted = "SELECT (s.message_count, s.last_position, (SELECT count(*) FROM messages),
                           (SELECT count(*) FROM run_events), (SELECT acknowledged FROM run_attempts))
                   FROM sessions s";
    assert_eq!(
        db.one(counted).await.unwrap(),
        format!("(2,2,2,{0},{0})", all.len())
    );
}

#[tokio::test]
async fn what_came_ahead_is_acknowledged_with_what_it_goes_on_from() {
    let db = migrated().await;
    let all = events(1, 3);
    let store = async |events: &[_]| {
        let answer = db.ledger.store(TARGET, &batch(1, events), at(30)).await;
        usize::try_from(answer.unwrap().acknowledged).unwrap()
    };
    assert_eq!(store(&all[..2]).await, 2);
    // Two islands, with an event missing between them.
    assert_eq!(store(&[&all[4..6], &all[7..9]].concat()).await, 2);
    // Both sides of each island.
    let around = [&all[2..4], &all[6..7], &all[9..10]].concat();
    assert_eq!(store(&around).await, 10);
    assert_eq!(store(&all[10..]).await, all.len());
}
