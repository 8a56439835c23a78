//! A report as a table, as JSON and as CSV. Names in it were chosen by strangers: in a table nothing
//! of them reaches the terminal but what can be seen, and no spreadsheet takes one for a formula.

use std::fmt::Write as _;

use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::command::Report;
use super::{By, Durations, Key, Line};

type Timed = (Line, Option<Durations>);
/// Its name, and what it is of a line.
type Figure = (&'static str, fn(&Timed) -> Value);

impl By {
    fn heading(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Namespace => "namespace",
            Self::Workflow => "workflow",
            Self::Model => "model",
            Self::Repository => "repository",
        }
    }

    /// What the line is about, in this respect; the empty text where its runs have none.
    fn of(self, key: &Key) -> String {
        match self {
            Self::Day => key.day.map(|day| day.to_string()),
            Self::Namespace => key.namespace.clone(),
            Self::Workflow => key.workflow.clone(),
            Self::Model => key.model.clone(),
            Self::Repository => key.repository.clone(),
        }
        .unwrap_or_default()
    }
}

/// For a person.
pub(super) fn table(report: &Report) -> String {
    let query = &report.query;
    let Some(total) = &report.total else {
        return format!(
            "no runs were created from {} to {} (UTC){}\n",
            query.since,
            query.until,
            filters(report)
        );
    };
    let mut rows = vec![headings(report)];
    for (line, took) in &report.lines {
        let names = query.by.iter().map(|by| seen(&by.of(&line.key)));
        rows.push(names.chain(cells(line, took.as_ref())).collect());
    }
    if report.lines.len() > 1 {
        let names = query.by.iter().enumerate().map(|(i, _)| match i {
            0 => "TOTAL".to_owned(),
            _ => String::new(),
        });
        rows.push(names.chain(cells(&total.0, total.1.as_ref())).collect());
    }
    let mut text = format!(
        "runs created from {} to {} (UTC){}\n",
        query.since,
        query.until,
        filters(report)
    );
    let names = query.by.len();
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|i| {
            rows.iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in &rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            let _ = if i < names {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if total.0.unknown_cost > 0 {
        let _ = writeln!(
            text,
            "cost: not known, or not wholly, of {} of {} runs",
            total.0.unknown_cost, total.0.runs
        );
    }
    text
}

fn headings(report: &Report) -> Vec<String> {
    let names = report.query.by.iter().map(|by| by.heading().to_uppercase());
    let figures = [
        "RUNS",
        "SUCCESS",
        "COST USD",
        "PER LINE",
        "INPUT",
        "OUTPUT",
        "CACHE READ",
        "CACHE MADE",
        "FROM CACHE",
        "LINES",
        "P50",
        "P95",
        "P99",
    ];
    names.chain(figures.map(str::to_owned)).collect()
}

fn cells(line: &Line, took: Option<&Durations>) -> [String; 13] {
    let took = |of: fn(&Durations) -> i32| took.map_or_else(none, |took| seconds(of(took)));
    [
        line.runs.to_string(),
        line.success_rate.map_or_else(none, percent),
        cost(line.cost, line.unknown_cost),
        line.cost_per_line
            .map_or_else(none, |cost| format!("{cost:.6}")),
        line.input_tokens.to_string(),
        line.output_tokens.to_string(),
        line.cache_read_tokens.to_string(),
        line.cache_creation_tokens.to_string(),
        line.cache_efficiency.map_or_else(none, percent),
        format!("+{} -{}", line.added_lines, line.removed_lines),
        took(|took| took.p50),
        took(|took| took.p95),
        took(|took| took.p99),
    ]
}

fn none() -> String {
    "-".to_owned()
}

fn cost(known: Option<Decimal>, unknown: i64) -> String {
    match known {
        None => "unknown".to_owned(),
        Some(cost) if unknown > 0 => format!("≥{cost:.6}"),
        Some(cost) => format!("{cost:.6}"),
    }
}

fn percent(share: Decimal) -> String {
    format!("{:.1}%", (share * Decimal::ONE_HUNDRED).round_dp(1))
}

fn seconds(seconds: i32) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest:02}s"),
        _ => format!("{hours}h{minutes:02}m"),
    }
}

fn filters(report: &Report) -> String {
    let query = &report.query;
    [
        ("namespace", &query.namespace),
        ("workflow", &query.workflow),
        ("model", &query.model),
        ("repository", &query.repository),
    ]
    .into_iter()
    .filter_map(|(what, only)| Some(format!(", {what} {}", seen(only.as_deref()?))))
    .collect()
}

/// The text as a terminal may have it.
fn seen(text: &str) -> String {
    if text.is_empty() {
        return none();
    }
    text.chars()
        .map(|c| if is_unseen(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Controls, and what turns the direction of writing.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// For a program.
pub(super) fn json(report: &Report) -> String {
    let query = &report.query;
    let figures = |timed: &Timed| FIGURES.map(|(name, of)| (name.to_owned(), of(timed)));
    let line = |timed: &Timed| {
        let names = query.by.iter().map(|by| {
            let name = by.of(&timed.0.key);
            let name = (!name.is_empty()).then_some(name);
            (by.heading().to_owned(), json!(name))
        });
        Value::Object(names.chain(figures(timed)).collect())
    };
    let document = json!({
        "since": query.since.to_string(),
        "until": query.until.to_string(),
        "lines": report.lines.iter().map(line).collect::<Vec<_>>(),
        "total": report.total.as_ref().map(|total| Value::Object(figures(total).into_iter().collect())),
    });
    format!("{document:#}\n")
}

/// A line's figures by name, in order. Decimals are texts, so that no reader rounds them.
const FIGURES: [Figure; 18] = [
    ("runs", |(line, _)| json!(line.runs)),
    ("completed", |(line, _)| json!(line.completed)),
    ("failed", |(line, _)| json!(line.failed)),
    ("killed", |(line, _)| json!(line.killed)),
    ("success_rate", |(line, _)| decimal(line.success_rate, 4)),
    ("cost_usd", |(line, _)| decimal(line.cost, 6)),
    ("runs_of_unknown_cost", |(line, _)| json!(line.unknown_cost)),
    ("cost_per_line_usd", |(line, _)| {
        decimal(line.cost_per_line, 6)
    }),
    ("input_tokens", |(line, _)| json!(line.input_tokens)),
    ("output_tokens", |(line, _)| json!(line.output_tokens)),
    ("cache_read_tokens", |(line, _)| {
        json!(line.cache_read_tokens)
    }),
    ("cache_creation_tokens", |(line, _)| {
        json!(line.cache_creation_tokens)
    }),
    ("cache_efficiency", |(line, _)| {
        decimal(line.cache_efficiency, 4)
    }),
    ("added_lines", |(line, _)| json!(line.added_lines)),
    ("removed_lines", |(line, _)| json!(line.removed_lines)),
    ("duration_p50_seconds", |(_, took)| {
        json!(took.as_ref().map(|took| took.p50))
    }),
    ("duration_p95_seconds", |(_, took)| {
        json!(took.as_ref().map(|took| took.p95))
    }),
    ("duration_p99_seconds", |(_, took)| {
        json!(took.as_ref().map(|took| took.p99))
    }),
];

/// With all its digits, also where it is zero.
fn decimal(value: Option<Decimal>, digits: usize) -> Value {
    json!(value.map(|value| format!("{value:.digits$}")))
}

/// For a spreadsheet: what is not known, and what runs have none of, is empty.
pub(super) fn csv(report: &Report) -> String {
    let by = &report.query.by;
    let mut text = String::new();
    let mut row = |cells: Vec<String>| {
        text.push_str(&cells.join(","));
        // As RFC 4180 has it.
        text.push_str("\r\n");
    };
    let headings = by.iter().map(|by| by.heading());
    row(headings
        .chain(FIGURES.map(|(name, _)| name))
        .map(str::to_owned)
        .collect());
    for timed in &report.lines {
        let names = by.iter().map(|by| field(&by.of(&timed.0.key)));
        let figures = FIGURES.map(|(_, of)| match of(timed) {
            Value::Null => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        });
        row(names.chain(figures).collect());
    }
    text
}

/// Quoted where it has to be. A spreadsheet would run what begins like a formula: it gets an apostrophe.
fn field(text: &str) -> String {
    let text = match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') => format!("'{text}"),
        _ => text.to_owned(),
    };
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}
