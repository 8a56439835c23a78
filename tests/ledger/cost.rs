//! What a run costs: the SDK's figure where there is one, else tokens × price of the day.

use std::fmt;
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use runledger::ledger::prices::{self, command};
use runledger::wire::{Event, EventBody, Termination, Usage};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::database::{Database, assert_same, migrated};
use crate::random::Random;
use crate::shapes::{TARGET, at, batch, events, running, usage};

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
        if let EventBody::AgentResult {
            session_cost_micro_usd,
            ..
        } = &mut event.body
        {
            *session_cost_micro_usd = None;
        }
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
    let (prices, all) = at_two_prices();
    load(&db, &prices).await;
    store(&db, 1, &all).await;
    // 131.25 micro-dollars, and twice 9101.25.
    let models = "SELECT (model, requests, cost_micro_usd) FROM run_model_usage";
    assert_eq!(db.one(models).await.unwrap(), "(claude-x,3,18333.750000)");
}

/// Prices that change within a run: its first request is from before, two are from after.
fn at_two_prices() -> (String, Vec<Event>) {
    let later = PRICES
        .replace("2026-01-01", "2026-07-01")
        .replace("input: 3,", "input: 900,");
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
    (format!("{PRICES}{later}"), all)
}

#[tokio::test]
async fn a_price_that_is_loaded_late_counts_for_each_request_at_its_own_moment() {
    let db = migrated().await;
    let (prices, all) = at_two_prices();
    store(&db, 1, &all).await;
    assert_eq!(db.one(COST).await.unwrap(), "(,)");
    assert_eq!(load(&db, &prices).await.runs, 1);
    assert_eq!(db.one(COST).await.unwrap(), "(0.018334,prices)");
}

#[tokio::test]
async fn a_price_that_is_loaded_once_the_events_are_gone_counts_as_when_the_model_was_first_asked()
{
    let db = migrated().await;
    let (prices, all) = at_two_prices();
    store(&db, 1, &all).await;
    sqlx::query("DELETE FROM run_events")
        .execute(&db.pool)
        .await
        .unwrap();
    assert_eq!(load(&db, &prices).await.runs, 1);
    // Three times 131.25 micro-dollars.
    assert_eq!(db.one(COST).await.unwrap(), "(0.000394,prices)");
}

/// A result that covers `covered` of the attempt's requests, then the others, and nothing more: its pod
/// was killed.
fn killed_after_a_result(covered: u32, requests: u32) -> Vec<Event> {
    let all = events(1, requests);
    let result = events(1, covered).swap_remove(3 * covered as usize + 3);
    assert!(matches!(result.body, EventBody::AgentResult { .. }));
    let (before, after) = all.split_at(2 + 3 * covered as usize);
    let after = &after[..3 * (requests - covered) as usize];
    let mut all = [before, &[result], after].concat();
    for (event, sequence) in all.iter_mut().zip(1..) {
        event.sequence = sequence;
        if let EventBody::RequestEnded {
            request,
            usage: told,
            ..
        } = &mut event.body
        {
            told.cost_micro_usd = (*request > u64::from(covered))
                .then(|| usage(covered).cost_micro_usd)
                .flatten();
        }
    }
    all
}

#[tokio::test]
async fn what_was_used_after_the_last_result_costs_tokens_times_price() {
    let db = migrated().await;
    let all = killed_after_a_result(2, 3);
    store(&db, 1, &all[..9]).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.032560,sdk)");
    store(&db, 1, &all).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.032560,partial)");
    assert_eq!(load(&db, PRICES).await.runs, 1);
    // And 131.25 micro-dollars.
    assert_eq!(db.one(COST).await.unwrap(), "(0.032691,mixed)");
    let later =
        "SELECT (later_input_tokens, later_cost_micro_usd, input_tokens) FROM run_model_usage";
    assert_eq!(db.one(later).await.unwrap(), "(10,131.250000,30)");
    let mut result = events(1, 3).swap_remove(12);
    result.sequence = all.len() as u64 + 1;
    store(&db, 1, &[result]).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.048840,sdk)");
}

#[tokio::test]
async fn a_result_that_names_no_cost_covers_nothing() {
    let db = migrated().await;
    load(&db, PRICES).await;
    let mut all = killed_after_a_result(1, 2);
    let mut result = without_cost(1, 2).swap_remove(9);
    result.sequence = all.len() as u64 + 1;
    if let EventBody::AgentResult { usage: told, .. } = &mut result.body {
        told.cost_micro_usd = usage(1).cost_micro_usd;
    }
    all.push(result);
    store(&db, 1, &all).await;
    assert_eq!(db.one(COST).await.unwrap(), "(0.016411,mixed)");
}

#[tokio::test]
async fn what_a_cost_covers_is_the_same_in_whatever_order_and_however_often_events_come() {
    let mut random = Random::seeded("what_a_cost_covers");
    let mut all = killed_after_a_result(1, 3);
    let mut second = events(1, 2).swap_remove(9);
    second.sequence = all.len() as u64 + 1;
    let mut fourth = events(1, 4).swap_remove(12);
    fourth.sequence = second.sequence + 1;
    if let EventBody::RequestEnded { usage: told, .. } = &mut fourth.body {
        told.cost_micro_usd = usage(2).cost_micro_usd;
    }
    all.extend([second, fourth]);
    let expected = migrated().await;
    load(&expected, PRICES).await;
    expected.ledger.mirror(&running(1)).await.unwrap();
    store(&expected, 1, &all).await;
    let expected = expected.everything().await;
    for _ in 0..3 {
        let db = migrated().await;
        load(&db, PRICES).await;
        db.ledger.mirror(&running(1)).await.unwrap();
        let mut left = [&all[..], &all[..]].concat();
        while !left.is_empty() {
            let mut some = Vec::new();
            for _ in 0..(1 + random.below(3)).min(left.len()) {
                some.push(left.swap_remove(random.below(left.len())));
            }
            some.sort_by_key(|event| event.sequence);
            some.dedup_by_key(|event| event.sequence);
            store(&db, 1, &some).await;
        }
        store(&db, 1, &all).await;
        assert_same(&db.everything().await, &expected, "in another order");
    }
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

/// The words of warnings, while it is there.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::WARN {
            let mut said = Said(String::new());
            event.record(&mut said);
            self.0.lock().unwrap().push(said.0);
        }
    }
}

struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

#[tokio::test]
async fn a_model_without_a_price_is_warned_of_once_and_many_of_them_by_one_last_word() {
    let db = migrated().await;
    let warnings = Warnings::default();
    // While there is but one subscriber, what another thread comes by first would be switched off for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _told =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
    for attempt in [1, 2] {
        store(&db, attempt, &without_cost(attempt, 2)).await;
        store(&db, attempt, &without_cost(attempt, 2)).await;
    }
    let told = std::mem::take(&mut *warnings.0.lock().unwrap());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("no price is known") && told[0].contains("claude-x"),
        "{told:?}"
    );
    let mut many = without_cost(3, 110);
    for event in &mut many {
        if let EventBody::RequestEnded { request, model, .. } = &mut event.body {
            *model = Some(format!("model-{request}"));
        }
    }
    store(&db, 3, &many).await;
    store(&db, 4, &without_cost(4, 1)).await;
    let told = std::mem::take(&mut *warnings.0.lock().unwrap());
    assert_eq!(told.len(), 100, "{told:?}");
    let last = told.last().unwrap();
    assert!(last.contains("runledger prices list"), "{last}");
    load(&db, PRICES).await;
    store(&db, 5, &without_cost(5, 1)).await;
    assert_eq!(warnings.0.lock().unwrap().len(), 0);
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
