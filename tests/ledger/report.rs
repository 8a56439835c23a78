//! `runledger report`: the figures, and how they are printed.

use clap::Parser as _;
use jiff::Timestamp;
use runledger::ledger::report;
use serde_json::{Value, json};

use crate::database::{Database, empty, migrated};

/// `runledger report`, as it is typed.
#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: report::Args,
}

async fn answer(url: &str, words: &[&str]) -> Result<String, report::Failure> {
    let url = ["--database-url", url];
    let words = ["report"].iter().chain(words).chain(&url);
    let args = Command::parse_from(words).args;
    let mut out = Vec::new();
    let now: Timestamp = "2026-03-31T12:00:00Z".parse().unwrap();
    report::run_to(&args, now, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

async fn printed(db: &Database, words: &[&str]) -> String {
    answer(&db.url, words).await.unwrap()
}

/// Three runs of one workflow, of which one's cost is unknown, one of another, one of no known cost
/// at all, one too early.
async fn some_runs() -> Database {
    let db = migrated().await;
    sqlx::raw_sql(
        "INSERT INTO workflow_runs (id, run_id, namespace, workflow_name, ai_model, git_repo, task_input, status,
             created_at, started_at, completed_at, duration_seconds, cost_estimate,
             input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens, total_tokens,
             git_diff_added_lines, git_diff_removed_lines)
         SELECT gen_random_uuid(), r.n::text, r.namespace, r.workflow, r.model, r.repo, 't', r.status,
                r.at::timestamptz, r.at::timestamptz, r.at::timestamptz + r.took * interval '1 second', r.took, r.cost,
                r.tokens, r.tokens, r.tokens * 8, r.tokens, r.tokens * 11, r.added, r.removed
         FROM (VALUES
             (1, 'a', 'builder', 'claude-x', 'https://git/one', 'completed', '2026-03-30 23:59:59+00', 60, 0.1::numeric, 100, 10, 10),
             (2, 'a', 'builder', 'claude-x', 'https://git/one', 'failed', '2026-03-31 00:00:00+00', 3700, 0.2, 200, 0, 0),
             (3, 'b', 'builder', 'claude-y', NULL, 'completed', '2026-03-31 01:00:00+00', 61, NULL, 300, 5, 5),
             (4, 'b', 'reviewer', 'claude-y', 'https://git/\"two\",', 'killed', '2026-03-02 00:00:00+00', 5, 1.000001, 7, 1, 0),
             (5, 'b', '=evil()', E'\\x1b[31mred', NULL, 'completed', '2026-03-15 00:00:00+00', 5, NULL, 1, 0, 0),
             (6, 'b', 'reviewer', 'claude-y', NULL, 'completed', '2026-03-01 23:59:59+00', 5, 100, 7, 0, 0)
         ) AS r (n, namespace, workflow, model, repo, status, at, took, cost, tokens, added, removed);
         INSERT INTO workflow_runs (id, run_id, namespace, workflow_name, task_input, created_at)
         VALUES (gen_random_uuid(), '7', 'b', 'reviewer', 't', '2026-03-31 02:00:00+00')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db
}

#[tokio::test]
async fn a_table_is_by_workflow_over_thirty_days_with_what_cost_most_first() {
    let db = some_runs().await;
    let table = "\
runs created from 2026-03-02 to 2026-03-31 (UTC)
WORKFLOW  RUNS  SUCCESS   COST USD  PER LINE  INPUT  OUTPUT  CACHE READ  CACHE MADE  FROM CACHE   LINES  P50    P95    P99
reviewer     2     0.0%   1.000001  1.000001      7       7          56           7       80.0%   +1 -0   5s     5s     5s
builder      3    66.7%  ≥0.300000  0.015000    600     600        4800         600       80.0%  +15 -15  1m01s  1h01m  1h01m
";
    let printed = printed(&db, &[]).await;
    assert_eq!(shape(&printed), shape(&(table.to_owned() + "\
=evil()      1   100.0%    unknown         -      1       1           8           1       80.0%   +0 -0   5s     5s     5s
TOTAL        6    60.0%  ≥1.300001  0.061905    608     608        4864         608       80.0%  +16 -15  1m00s  1h01m  1h01m
cost: not known, or not wholly, of 2 of 6 runs
")));
    let widths: Vec<_> = printed
        .lines()
        .skip(1)
        .take(5)
        .map(|l| l.chars().count())
        .collect();
    assert!(
        widths.windows(2).all(|pair| pair[0] == pair[1]),
        "{printed}"
    );
}

/// The words, whatever stands between them.
fn shape(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

#[tokio::test]
async fn json_has_every_figure_money_as_text_and_what_is_not_known_as_null() {
    let db = some_runs().await;
    let words = ["--by", "day,model", "--since", "2026-03-31", "-o", "json"];
    let document: Value = serde_json::from_str(&printed(&db, &words).await).unwrap();
    assert_eq!(document["since"], "2026-03-31");
    let lines = document["lines"].as_array().unwrap();
    let models: Vec<&Value> = lines.iter().map(|line| &line["model"]).collect();
    assert_eq!(
        models,
        [&json!("claude-x"), &Value::Null, &json!("claude-y")]
    );
    assert_eq!(
        lines[0],
        json!({
            "day": "2026-03-31", "model": "claude-x", "runs": 1, "completed": 0, "failed": 1, "killed": 0,
            "success_rate": "0.0000", "cost_usd": "0.200000", "runs_of_unknown_cost": 0, "cost_per_line_usd": null,
            "input_tokens": 200, "output_tokens": 200, "cache_read_tokens": 1600, "cache_creation_tokens": 200,
            "cache_efficiency": "0.8000", "added_lines": 0, "removed_lines": 0,
            "duration_p50_seconds": 3700, "duration_p95_seconds": 3700, "duration_p99_seconds": 3700,
        })
    );
    // Under way, and nothing used: it cost nothing so far, which is known.
    assert_eq!(
        (&lines[1]["cost_usd"], &lines[1]["success_rate"]),
        (&json!("0.000000"), &Value::Null)
    );
    assert_eq!(
        (&lines[2]["cost_usd"], &lines[2]["runs_of_unknown_cost"]),
        (&Value::Null, &json!(1))
    );
    assert_eq!(document["total"]["runs"], 3);
}

#[tokio::test]
async fn csv_is_quoted_and_no_name_is_a_formula() {
    let db = some_runs().await;
    let words = [
        "--by",
        "workflow,repository",
        "--namespace",
        "b",
        "-o",
        "csv",
    ];
    let printed = printed(&db, &words).await;
    let lines: Vec<&str> = printed.split_terminator("\r\n").collect();
    assert!(
        lines[0].starts_with("workflow,repository,runs,completed,"),
        "{printed}"
    );
    assert_eq!(
        lines[1],
        "reviewer,\"https://git/\"\"two\"\",\",1,0,0,1,0.0000,1.000001,0,1.000001,7,7,56,7,0.8000,1,0,5,5,5"
    );
    assert!(
        lines[2..].contains(&"'=evil(),,1,1,0,0,1.0000,,1,,1,1,8,1,0.8000,0,0,5,5,5"),
        "{printed}"
    );
    assert_eq!(lines.len(), 5, "{printed}");
}

#[tokio::test]
async fn names_reach_a_terminal_without_its_commands() {
    let db = some_runs().await;
    let table = printed(&db, &["--by", "model"]).await;
    assert!(
        table.contains("\u{fffd}[31mred") && !table.contains('\u{1b}'),
        "{table}"
    );
}

#[tokio::test]
async fn one_line_for_all_and_each_filter() {
    let db = some_runs().await;
    for (words, runs) in [
        (&["--by", "none"][..], 6),
        (&["--by", "none", "--namespace", "a"], 2),
        (&["--by", "none", "--workflow", "builder"], 3),
        (&["--by", "none", "--model", "claude-y"], 2),
        (&["--by", "none", "--repository", "https://git/one"], 2),
        (&["--by", "none", "--since", "2026-03-01"], 7),
        (&["--by", "none", "--until", "2026-03-30"], 4),
    ] {
        let words = [words, &["-o", "json"]].concat();
        let document: Value = serde_json::from_str(&printed(&db, &words).await).unwrap();
        assert_eq!(document["total"]["runs"], runs, "{words:?}");
    }
}

#[tokio::test]
async fn an_empty_ledger_and_a_wrong_question_are_answered_with_a_sentence() {
    let db = migrated().await;
    assert_eq!(
        printed(&db, &["-n", "team"]).await,
        "no runs were created from 2026-03-02 to 2026-03-31 (UTC), namespace team\n"
    );
    let document: Value = serde_json::from_str(&printed(&db, &["-o", "json"]).await).unwrap();
    assert_eq!(
        (&document["lines"], &document["total"]),
        (&json!([]), &Value::Null)
    );
    assert_eq!(printed(&db, &["-o", "csv"]).await.lines().count(), 1);
    let error = answer(&db.url, &["--since", "2026-03-05", "--until", "2026-03-04"])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "--until 2026-03-04 is before --since 2026-03-05"
    );
    let error = answer(&empty().await, &[]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "this database holds no ledger, or an older one: `runledger migrate` makes it"
    );
    let error = Command::try_parse_from(["report", "--since", "yesterday"]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("invalid value 'yesterday' for '--since"),
        "{error}"
    );
}
