//! Patches of runs: kept once, exactly, the last word of the last attempt; read back by whoever asks.

use clap::Parser as _;
use runledger::api::run::Phase;
use runledger::changes;
use runledger::wire::Event;
use runledger::wire::EventBody;
use runledger::wire::patch::{MAX_PATCH_BYTES, Patch, PatchText};

use crate::database::{Database, migrated};
use crate::shapes::{TARGET, at, batch, ended, events, patch, record, run_id, usage};

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: changes::Args,
}

/// `runledger changes`, as it is typed.
async fn answer(db: &Database, words: &str) -> Result<Vec<u8>, String> {
    let words = ["changes", "--database-url", &db.url]
        .into_iter()
        .chain(words.split_whitespace());
    let args = Command::try_parse_from(words)
        .map_err(|e| e.to_string())?
        .args;
    changes::answer(&args).await.map_err(|e| e.to_string())
}

async fn store(db: &Database, attempt: u32, events: &[Event]) {
    db.ledger
        .store(TARGET, &batch(attempt, events), at(30))
        .await
        .unwrap();
}

fn event(sequence: u64, patch: Patch) -> Event {
    Event {
        sequence,
        at: at(sequence as i64),
        body: EventBody::Patch(Box::new(patch)),
    }
}

#[tokio::test]
async fn a_patch_comes_out_as_it_went_in_byte_for_byte() {
    let db = migrated().await;
    assert_eq!(db.ledger.run_patch(run_id()).await.unwrap(), None);
    let text: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sent = Patch {
        initial_commit: None,
        final_commit: Some("b".repeat(40)),
        committed: PatchText {
            text,
            files: 2,
            binary: 1,
            left_out: 3,
            size: Some(5_000_000),
            unknown: None,
        },
        uncommitted: PatchText::unknown("no \0 index".to_owned()),
    };
    store(&db, 1, &[event(1, sent.clone())]).await;
    let mut kept = db.ledger.run_patch(run_id()).await.unwrap().unwrap();
    // What Postgres can't hold in a text is replaced there.
    let why = kept.uncommitted.unknown.replace("no \0 index".to_owned());
    assert_eq!(why.unwrap(), "no \u{fffd} index (altered: held U+0000)");
    assert_eq!(kept, sent);
    // The event itself keeps the figures and not the patch once more.
    let body = db.one("SELECT body FROM run_events").await.unwrap();
    assert!(
        body.contains("\"leftOut\": 3") && body.len() < 500,
        "{body}"
    );
    assert_eq!(
        db.one("SELECT string_agg(part || ' ' || truncated, ', ' ORDER BY part) FROM run_patches")
            .await
            .unwrap(),
        "committed true, uncommitted true"
    );
}

#[tokio::test]
async fn the_last_word_of_the_last_attempt_counts_whatever_comes_late() {
    let db = migrated().await;
    let of = |name: &str| Patch {
        committed: PatchText {
            text: name.as_bytes().to_vec(),
            ..PatchText::default()
        },
        ..Patch::default()
    };
    let kept = async || {
        let kept = db.ledger.run_patch(run_id()).await.unwrap().unwrap();
        String::from_utf8(kept.committed.text).unwrap()
    };
    // A seal that was begun twice, handed in twice, and out of order.
    store(&db, 2, &[event(2, of("second")), event(3, of("third"))]).await;
    assert_eq!(kept().await, "third");
    store(&db, 2, &[event(1, of("first")), event(2, of("second"))]).await;
    assert_eq!(kept().await, "third");
    store(&db, 1, &[event(9, of("of the lost attempt"))]).await;
    assert_eq!(kept().await, "third");
    store(&db, 3, &[event(1, of("of the next attempt"))]).await;
    assert_eq!(kept().await, "of the next attempt");
}

#[tokio::test]
async fn a_patch_that_no_supervisor_makes_is_refused() {
    let db = migrated().await;
    let mut patch = Patch::default();
    patch.committed.text = vec![b'x'; 2 * MAX_PATCH_BYTES + 1];
    let batch = batch(1, &[event(1, patch)]);
    let refused = db.ledger.store(TARGET, &batch, at(30)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "event 1: its patch's length can't be true"
    );
}

#[tokio::test]
async fn a_run_is_read_at_a_shell_when_nothing_but_the_ledger_is_left() {
    let db = migrated().await;
    db.ledger.mirror(&record()).await.unwrap();
    let text = |answer: Vec<u8>| String::from_utf8(answer).unwrap();
    let missing = answer(&db, "--run ns/demo -o patch").await.unwrap_err();
    assert_eq!(missing, "the ledger has no patch of run ns/demo");
    let missing = answer(&db, "--run demo").await.unwrap_err();
    assert_eq!(missing, "the ledger has no run demo");
    let missing = answer(&db, "--run ns/demo").await.unwrap_err();
    assert_eq!(
        missing,
        "the ledger has no report of changes of run ns/demo"
    );

    let mut all = events(1, 1);
    if let EventBody::Sealed(sealed) = &mut all.last_mut().unwrap().body {
        let report = runledger::report::Report {
            branch: Some("work".to_owned()),
            ..Default::default()
        };
        sealed.git.as_mut().unwrap().stats = Some(Box::new(report));
    }
    store(&db, 1, &all).await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(1)))
        .await
        .unwrap();
    let kept = patch(1);
    for name in ["ns/demo".to_owned(), run_id().to_string()] {
        let ask = async |words: &str| answer(&db, &format!("--run {name} {words}")).await.unwrap();
        assert_eq!(ask("-o patch").await, kept.committed.text);
        assert_eq!(ask("-o patch --uncommitted").await, kept.uncommitted.text);
        let report = text(ask("").await);
        assert!(
            report.starts_with("nothing on work, since nothing\n"),
            "{report}"
        );
        let json: serde_json::Value = serde_json::from_slice(&ask("-o json").await).unwrap();
        assert_eq!(json["branch"], "work");
    }
    for (words, why) in [
        ("--run ns/demo --since HEAD", "cannot be used with"),
        ("--run ns/demo /srv", "cannot be used with"),
        ("", "--since"),
        ("--run ns/demo --uncommitted", "goes with -o patch"),
    ] {
        let refused = answer(&db, words).await.unwrap_err();
        assert!(refused.contains(why), "{words}: {refused}");
    }
}

#[tokio::test]
async fn patches_go_with_their_run_and_no_row_is_left_of_them() {
    let db = migrated().await;
    store(&db, 1, &events(1, 1)).await;
    let count = "SELECT count(*) FROM run_patches";
    assert_eq!(db.one(count).await.unwrap(), "2");
    sqlx::query("DELETE FROM workflow_runs")
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(db.one(count).await.unwrap(), "0");
}
