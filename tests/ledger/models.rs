//! What each model used and cost: of a run that used several, in its row, in the rollups and in the report.

use clap::Parser as _;
use runledger::api::run::Phase;
use runledger::ledger::{prices, report};
use runledger::wire::{Event, EventBody, Termination};
use serde_json::{Value, json};

use crate::database::{Database, migrated};
use crate::shapes::{TARGET, at, batch, ended, events, usage};

/// Of three equal requests, the first is claude-small's; the SDK names one cost for all (or none).
fn of_two_models(sdk: bool) -> Vec<Event> {
    let mut all = events(1, 3);
    for event in &mut all {
        match &mut event.body {
            EventBody::RequestEnded {
                request: 1,
                model,
                usage,
                ..
            } => {
                *model = Some("claude-small".to_owned());
                usage.cost_micro_usd = usage.cost_micro_usd.filter(|_| sdk);
            }
            EventBody::RequestEnded { usage, .. }
            | EventBody::AgentResult { usage, .. }
            | EventBody::Sealed(Termination { usage, .. }) => {
                usage.cost_micro_usd = usage.cost_micro_usd.filter(|_| sdk);
            }
            _ => {}
        }
    }
    all
}

/// claude-small for a quarter of claude-x.
const SMALL: &str =
    "{model: claude-small, from: 2026-01-01, input: 1, output: 1, cacheRead: 1, cacheCreation: 1}";
const X: &str =
    "{model: claude-x, from: 2026-01-01, input: 4, output: 4, cacheRead: 4, cacheCreation: 4}";

async fn load(db: &Database, yaml: &str) {
    let prices = prices::read(&format!("- {yaml}")).unwrap();
    db.ledger.load_prices(&prices).await.unwrap();
}

async fn store(db: &Database, events: &[Event]) {
    db.ledger
        .store(TARGET, &batch(1, events), at(30))
        .await
        .unwrap();
}

/// Each model's input tokens and cost, and whether all of that is known.
async fn told(db: &Database) -> Value {
    let of = "SELECT jsonb_object_agg(key, jsonb_build_array(value -> 'input', value -> 'cost', value -> 'unpriced'))
              FROM workflow_runs, jsonb_each(model_usage)";
    serde_json::from_str(&db.one(of).await.unwrap()).unwrap()
}

#[tokio::test]
async fn the_sdks_cost_is_shared_out_as_the_prices_say() {
    let db = migrated().await;
    load(&db, SMALL).await;
    load(&db, X).await;
    store(&db, &of_two_models(true)).await;
    // 48840 micro-dollars, of which claude-x has eight parts of nine.
    assert_eq!(
        told(&db).await,
        json!({"claude-small": [10, 0.005427, false], "claude-x": [20, 0.043413, false]})
    );
}

#[tokio::test]
async fn shares_are_rounded_so_that_they_come_to_the_cost() {
    let db = migrated().await;
    load(&db, SMALL).await;
    load(&db, &SMALL.replace("claude-small", "claude-x")).await;
    let mut all = of_two_models(true);
    all.truncate(8);
    for event in &mut all {
        if let EventBody::RequestEnded { usage, .. } = &mut event.body {
            usage.cost_micro_usd = Some(5);
        }
    }
    store(&db, &all).await;
    assert_eq!(
        told(&db).await,
        json!({"claude-small": [10, 0.000_002, false], "claude-x": [10, 0.000_003, false]})
    );
}

#[tokio::test]
async fn without_the_sdks_cost_each_has_its_own_and_one_without_a_price_has_none() {
    let db = migrated().await;
    load(&db, SMALL).await;
    store(&db, &of_two_models(false)).await;
    assert_eq!(
        told(&db).await,
        json!({"claude-small": [10, 0.00012, false], "claude-x": [20, null, true]})
    );
    load(&db, X).await;
    assert_eq!(told(&db).await["claude-x"], json!([20, 0.00096, false]));
}

#[tokio::test]
async fn a_cost_that_cannot_be_shared_out_is_nobodys() {
    let db = migrated().await;
    load(&db, SMALL).await;
    store(&db, &of_two_models(true)).await;
    assert_eq!(
        told(&db).await,
        json!({
            "": [0, 0.04884, false],
            "claude-small": [10, null, true],
            "claude-x": [20, null, true],
        })
    );
}

/// The first request is claude-small's, and a result covers both that and claude-x's next; then claude-x
/// is asked once more.
fn with_a_result_in_between() -> Vec<Event> {
    let mut all = of_two_models(true);
    let mut result = events(1, 2).swap_remove(9);
    result.sequence = 9;
    all.truncate(11);
    all.insert(8, result);
    for (event, sequence) in all.iter_mut().zip(1..) {
        event.sequence = sequence;
        if let EventBody::RequestEnded { usage: told, .. } = &mut event.body {
            told.cost_micro_usd = usage(2).cost_micro_usd;
        }
    }
    all
}

#[tokio::test]
async fn what_came_after_the_result_is_not_shared_out_but_costs_its_model_its_price() {
    let db = migrated().await;
    load(&db, SMALL).await;
    load(&db, X).await;
    store(&db, &with_a_result_in_between()).await;
    // 32560 micro-dollars, of which claude-x has four parts of five, and 120 times 4.
    assert_eq!(
        told(&db).await,
        json!({"claude-small": [10, 0.006512, false], "claude-x": [20, 0.026528, false]})
    );
    let cost = "SELECT (cost_estimate, cost_source) FROM workflow_runs";
    assert_eq!(db.one(cost).await.unwrap(), "(0.033040,mixed)");
}

#[tokio::test]
async fn what_came_after_the_result_is_unknown_without_a_price_and_says_so() {
    let db = migrated().await;
    load(&db, SMALL).await;
    store(&db, &with_a_result_in_between()).await;
    assert_eq!(
        told(&db).await,
        json!({
            "": [0, 0.03256, false],
            "claude-small": [10, null, true],
            "claude-x": [20, null, true],
        })
    );
}

#[tokio::test]
async fn tokens_of_requests_that_are_not_told_are_nobodys_until_they_are() {
    let db = migrated().await;
    let all = events(1, 2);
    store(&db, &all[..4]).await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    assert_eq!(
        told(&db).await,
        json!({"": [10, null, false], "claude-x": [10, 0.03256, false]})
    );
    store(&db, &all).await;
    assert_eq!(told(&db).await, json!({"claude-x": [20, 0.03256, false]}));
}

#[tokio::test]
async fn a_request_that_is_told_after_a_later_one_still_counts() {
    let db = migrated().await;
    load(&db, SMALL).await;
    load(&db, X).await;
    let all = of_two_models(false);
    store(&db, &all[..2]).await;
    store(&db, &all[5..]).await;
    // Less than what is known already in every figure of its own.
    store(&db, &all[2..5]).await;
    assert_eq!(
        told(&db).await,
        json!({"claude-small": [10, 0.00012, false], "claude-x": [20, 0.00096, false]})
    );
    let cost = db.one("SELECT cost_estimate FROM workflow_runs").await;
    assert_eq!(cost.unwrap(), "0.001080");
}

/// `runledger report`, as it is typed.
#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: report::Args,
}

async fn lines(db: &Database, words: &str) -> Value {
    let url = ["--database-url", &db.url, "-o", "json"];
    let words = ["report"]
        .into_iter()
        .chain(words.split_whitespace())
        .chain(url);
    let args = Command::parse_from(words).args;
    let mut out = Vec::new();
    report::run_to(&args, at(0), &mut out).await.unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[tokio::test]
async fn a_report_by_model_counts_a_run_for_each_and_the_total_counts_it_once() {
    let db = migrated().await;
    load(&db, SMALL).await;
    load(&db, X).await;
    store(&db, &of_two_models(true)).await;
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(3)))
        .await
        .unwrap();
    let by_model = lines(&db, "--by model").await;
    let figures = |line: &Value| {
        [
            "model",
            "runs",
            "completed",
            "cost_usd",
            "input_tokens",
            "cost_per_line_usd",
            "duration_p50_seconds",
        ]
        .map(|figure| line[figure].clone())
    };
    let told: Vec<_> = by_model["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(figures)
        .collect();
    let (name, rest) = (|name: &str| json!(name), json!("0.001163"));
    assert_eq!(
        told,
        [
            [
                name("claude-x"),
                json!(1),
                json!(1),
                json!("0.043413"),
                json!(20),
                rest.clone(),
                json!(65)
            ],
            [
                name("claude-small"),
                json!(1),
                json!(1),
                json!("0.005427"),
                json!(10),
                rest.clone(),
                json!(65)
            ],
        ]
    );
    let total = [
        Value::Null,
        json!(1),
        json!(1),
        json!("0.048840"),
        json!(30),
        rest,
        json!(65),
    ];
    assert_eq!(figures(&by_model["total"]), total);
    let of_one = lines(&db, "--by none --model claude-small").await;
    assert_eq!(of_one["total"]["cost_usd"], "0.005427");
    assert_eq!(lines(&db, "--by workflow").await["lines"][0]["runs"], 1);
}
