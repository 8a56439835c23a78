//! What a run costs: the SDK's figure where there is one, else tokens × price of the day.

use clap::Parser as _;
use runledger::ledger::prices::{self, command};
use runledger::wire::{Event, EventBody, Termination, Usage};

use crate::database::{Database, migrated};
use crate::shapes::{TARGET, at, batch, events, usage};

const PRICES: &str = "
- {model: 'claude-*', from: 2026-01-01, input: 100, output: 100, cacheRead: 100, cacheCreation: 100}
- {model: 'claude-x', from: 2026-01-01, input: 3, output: 15, cacheRead: 0.30, cacheCreation: 3.75}
";
const COST: &str = "SELECT (cost_estimate, cost_source) FROM workflow_runs";

/// The attempt's events, as of a CLI that names no cost.
fn without_cost(attempt: u32, requests: u32) -> Vec<Event> {
    let less = |usage: &mut Usage| usage.cost_micro_usd = None;
    let mut all = events(attempt, requests);
    for event in &mut all {
        match &mut event.body {
            EventBody::RequestEnded { usage, .. }
            | EventBody::AgentResult { usage, .. }
            | EventBody::Sealed(Termination { usage, .. }) => less(usage),
            _ => {}
        }
    }
    all
}

async fn store(db: &Database, attempt: u32, events: &[Event]) {
    db.ledger
        .store(TARGET, &batch(attempt, events), at(30))
        .await
        .unwrap();
}

async fn load(db: &Database, yaml: &str) -> prices::Loaded {
    db.ledger
        .load_prices(&prices::read(yaml).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn the_sdks_figure_counts_where_it_gave_one() {
    let db = migrated().await;
    load(&db, PRICES).await;
    store(&db, 1, &events(1, 2)).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.032560,sdk)");
    // 10 input, 3 output, 100 cache read, 7 cache creation, twice, in micro-dollars.
    let models = "SELECT (model, input_tokens, requests, api_milliseconds, cost_micro_usd) FROM run_model_usage";
    assert_eq!(
        db.one(models).await.unwrap(),
        "(claude-x,20,2,10,262.500000)"
    );
}

#[tokio::test]
async fn without_the_sdks_figure_it_is_tokens_times_price_and_the_longest_name_counts() {
    let db = migrated().await;
    load(&db, PRICES).await;
    let all = without_cost(1, 2);
    store(&db, 1, &all[..5]).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.000131,prices)");
    store(&db, 1, &all).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.000263,prices)");
}

#[tokio::test]
async fn the_sdks_figure_takes_the_place_of_the_estimate_though_it_is_lower() {
    let db = migrated().await;
    load(
        &db,
        "- {model: '*', from: 2026-01-01, input: 90000, output: 0, cacheRead: 0, cacheCreation: 0}",
    )
    .await;
    let mut all = events(1, 1);
    if let EventBody::RequestEnded { usage, .. } = &mut all[3].body {
        usage.cost_micro_usd = None;
    }
    store(&db, 1, &all[..5]).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.900000,prices)");
    store(&db, 1, &all).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.016280,sdk)");
    store(&db, 2, &without_cost(2, 1)).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.916280,mixed)");
}

#[tokio::test]
async fn the_price_of_the_day_counts() {
    let db = migrated().await;
    let later = PRICES
        .replace("2026-01-01", "2036-01-01")
        .replace("input: 3,", "input: 900,");
    load(&db, &format!("{PRICES}{later}")).await;
    store(&db, 1, &without_cost(1, 2)).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.000263,prices)");
}

#[tokio::test]
async fn each_request_of_a_batch_costs_what_its_own_moment_says() {
    let db = migrated().await;
    let later = PRICES
        .replace("2026-01-01", "2026-07-01")
        .replace("input: 3,", "input: 900,");
    load(&db, &format!("{PRICES}{later}")).await;
    let mut all = without_cost(1, 3);
    let moments = [
        "2026-06-30T23:59:59.999999Z",
        "2026-07-01T00:00:00Z",
        "2026-07-01T00:00:01Z",
    ];
    let ends = all
        .iter_mut()
        .filter(|event| matches!(event.body, EventBody::RequestEnded { .. }));
    for (event, moment) in ends.zip(moments) {
        event.at = moment.parse().unwrap();
    }
    store(&db, 1, &all).await;
    // 131.25 micro-dollars, and twice 9101.25.
    let models = "SELECT (model, requests, cost_micro_usd) FROM run_model_usage";
    assert_eq!(db.one(models).await.unwrap(), "(claude-x,3,18333.750000)");
}

#[tokio::test]
async fn an_unknown_model_has_an_unknown_cost_until_its_price_is_loaded() {
    let db = migrated().await;
    load(
        &db,
        "- {model: other, from: 2026-01-01, input: 1, output: 1, cacheRead: 1, cacheCreation: 1}",
    )
    .await;
    store(&db, 1, &without_cost(1, 2)).await;
    assert_eq!(db.one(COST).await.unwrap(), "(,)");
    store(&db, 2, &events(2, 1)).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.016280,partial)");
    assert_eq!(
        db.ledger.unpriced_models().await.unwrap()[0].model,
        "claude-x"
    );
    let loaded = load(&db, PRICES).await;
    assert_eq!((loaded.written, loaded.runs), (8, 1));
    assert_eq!(db.one(COST).await.unwrap(), "(0.016543,mixed)");
    let again = load(&db, PRICES).await;
    assert_eq!((again.written, again.runs), (0, 0));
    assert_eq!(db.ledger.unpriced_models().await.unwrap(), []);
}

#[tokio::test]
async fn events_that_come_again_after_their_partition_is_gone_are_not_counted_again() {
    let db = migrated().await;
    let all = events(1, 3);
    store(&db, 1, &all).await;
    let before = "SELECT string_agg(t::text, ' ') FROM (SELECT m::text AS t FROM run_model_usage m
                  UNION ALL SELECT u::text FROM run_tools u) s";
    let counted = db.one(before).await;
    let day = at(0).to_zoned(jiff::tz::TimeZone::UTC).date();
    let drop = format!("DROP TABLE {}", day.strftime("run_events_%Y%m%d"));
    sqlx::query(sqlx::AssertSqlSafe(drop))
        .execute(&db.pool)
        .await
        .unwrap();
    store(&db, 1, &all).await;
    assert_eq!(db.one(before).await, counted);
    assert_eq!(
        db.one("SELECT turns FROM workflow_runs").await.unwrap(),
        "3"
    );
    assert_eq!(usage(3).turns, 3);
}

/// What `runledger prices …` says.
async fn told(arguments: &[&str]) -> String {
    let args = command::Args::try_parse_from([&["prices"], arguments].concat()).unwrap();
    let mut out = Vec::new();
    match command::tell(args, &mut out).await {
        Ok(()) => String::from_utf8(out).unwrap(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_command_checks_loads_and_lists() {
    let db = migrated().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prices.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, PRICES).unwrap();
    assert_eq!(
        told(&["check", path]).await,
        format!("{path}: 2 prices, all well\n")
    );
    let url = ["--database-url", db.url.as_str()];
    let none = told(&[&["list"], &url[..]].concat()).await;
    assert!(none.starts_with("no prices: "), "{none}");
    store(&db, 1, &without_cost(1, 1)).await;
    assert_eq!(
        told(&[&["list"], &url[..]].concat())
            .await
            .lines()
            .last()
            .unwrap(),
        "no price: claude-x (used in 1 attempts)"
    );
    assert_eq!(
        told(&[&["load", path], &url[..]].concat()).await,
        "8 figures new or changed; the cost of 1 runs worked out\n"
    );
    assert_eq!(
        told(&[&["list"], &url[..]].concat()).await,
        "MODEL     FROM        INPUT  OUTPUT  CACHE READ  CACHE CREATION\n\
         claude-*  2026-01-01  100    100     100         100\n\
         claude-x  2026-01-01  3      15      0.3         3.75\n"
    );
    let missing = told(&["check", "/nowhere/prices.yaml"]).await;
    assert!(
        missing.starts_with("/nowhere/prices.yaml can't be read: "),
        "{missing}"
    );
    std::fs::write(&file, "- model: [").unwrap();
    let broken = told(&["load", path, "--database-url", ""]).await;
    assert!(broken.starts_with("the prices can't be read: "), "{broken}");
}
