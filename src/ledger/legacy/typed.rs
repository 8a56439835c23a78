//! A row of another database in the types of the ledger's columns. Nothing of it is lost: what can't be
//! read as its column's type, and what has no column, is kept beside. Pure.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::facts::{self, Status};
use super::tables::{Kind, Table, is_known};
use super::values;
use crate::ledger::clean;

/// Longest text of a column that is indexed or bounded.
const MAX_NAME: usize = 255;
/// Digits of a cost behind the point.
const SCALE: u32 = 6;

/// A row as it is written: its columns, and under `lost` what none of them takes.
#[derive(Debug)]
pub(super) struct Typed {
    pub(super) values: Value,
    /// Columns that must have a value and had none.
    pub(super) empty: Vec<&'static str>,
    /// Columns that the ledger doesn't have.
    pub(super) unknown: Vec<String>,
}

/// Reads a row. An error says why there can be no such row.
pub(super) fn read(
    table: &Table,
    row: &Map<String, Value>,
    agents: &BTreeMap<String, i32>,
) -> Result<Typed, &'static str> {
    if table.name == "workflow_runs" && row.get("namespace").is_some_and(|n| !n.is_null()) {
        return Err("the run is another Runledger's own");
    }
    let mut values = Map::new();
    let mut lost = Map::new();
    for (column, kind) in table.columns {
        let Some(value) = row.get(*column).filter(|value| !value.is_null()) else {
            continue;
        };
        if !kind.is_text() && value.as_str() == Some("") {
            continue;
        }
        let read = kind.read(value, agents);
        if read.is_none() && *column == "id" {
            return Err("its id is no UUID");
        }
        if read.as_ref().is_none_or(|read| kind.alters(value, read)) {
            lost.insert((*column).to_owned(), value.clone());
        }
        if let Some(read) = read {
            values.insert((*column).to_owned(), read);
        }
    }
    let empty = table
        .required
        .iter()
        .filter(|column| !values.contains_key(**column))
        .copied()
        .collect();
    let mut unknown = Vec::new();
    for (column, value) in row.iter().filter(|(column, _)| !is_known(table, column)) {
        if !value.is_null() {
            unknown.push(column.clone());
            lost.insert(column.clone(), value.clone());
        }
    }
    let mut values = Value::Object(values);
    let mut lost = Value::Object(lost);
    // Not `||`: both are to be cleaned.
    if clean::value(&mut values) | clean::value(&mut lost) {
        lost["altered"] = json!(true);
    }
    values["lost"] = lost;
    Ok(Typed {
        values,
        empty,
        unknown,
    })
}

impl Kind {
    fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Name)
    }

    /// The value in the column's type, if it can be one.
    fn read(self, value: &Value, agents: &BTreeMap<String, i32>) -> Option<Value> {
        match self {
            Self::Uuid => Uuid::parse_str(value.as_str()?.trim())
                .ok()
                .map(|id| json!(id)),
            Self::Text => Some(json!(whole(value))),
            Self::Name => Some(json!(clean::cut(&whole(value), MAX_NAME))),
            Self::Count => values::count(value)
                .and_then(|n| i32::try_from(n).ok())
                .map(|n| json!(n)),
            Self::Big => values::count(value).map(|n| json!(n)),
            Self::Cost => facts::cost(value).map(|cost| json!(cost.round_dp(SCALE).to_string())),
            Self::Flag => values::flag(value).map(|flag| json!(flag)),
            Self::Time => values::time(value).map(|time| json!(time)),
            Self::Json => Some(match value.as_str() {
                Some(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
                None => value.clone(),
            }),
            Self::Object => values::object(value).map(Value::Object),
            Self::Status => value
                .as_str()
                .map(|word| json!(Status::of(word).unwrap_or(Status::Failed).word())),
            Self::Agent => values::text(value)
                .and_then(|id| agents.get(&id))
                .map(|id| json!(id)),
        }
    }

    /// Whether what was read says less than the value did.
    fn alters(self, value: &Value, read: &Value) -> bool {
        match self {
            Self::Name => read.as_str() != Some(&whole(value)),
            Self::Status => read != value,
            Self::Count | Self::Big | Self::Cost => {
                let said = |value: &Value| values::decimal(value).map(|n: Decimal| n.normalize());
                said(read) != said(value)
            }
            _ => false,
        }
    }
}

fn whole(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::tables::TABLES;
    use super::*;

    fn typed(table: &str, row: Value) -> Result<Typed, &'static str> {
        let table = TABLES.iter().find(|t| t.name == table).unwrap();
        read(table, row.as_object().unwrap(), &BTreeMap::new())
    }

    #[test]
    fn what_no_column_takes_as_it_is_is_kept_beside() {
        let id = "30000000-0000-4000-8000-000000000001";
        let row = typed(
            "workflow_runs",
            json!({
                "id": id, "run_id": "r", "status": "timeout", "total_tokens": "-1", "input_tokens": 17.5,
                "cost_estimate": "0.12345678", "session_name": "n".repeat(300), "session_id": "talk",
                "git_diff_stats": "[]", "started_by": "cron", "nothing": null, "completed_at": "",
            }),
        )
        .unwrap();
        assert_eq!(
            row.values,
            json!({
                "id": id, "run_id": "r", "status": "failed", "input_tokens": 17, "cost_estimate": "0.123457",
                "session_name": "n".repeat(255),
                "lost": {
                    "status": "timeout", "total_tokens": "-1", "input_tokens": 17.5, "cost_estimate": "0.12345678",
                    "session_name": "n".repeat(300), "session_id": "talk", "git_diff_stats": "[]",
                    "started_by": "cron",
                },
            })
        );
        assert_eq!(row.empty, ["workflow_name", "task_input"]);
        assert_eq!(row.unknown, ["started_by"]);
    }

    #[test]
    fn usage_that_is_no_object_is_kept_beside_and_not_made_an_empty_one_unsaid() {
        let id = "20000000-0000-4000-8000-000000000001";
        for odd in [json!([1]), json!(7), json!("[1]"), json!("words")] {
            let row = typed("messages", json!({"id": id, "role": "user", "usage": odd})).unwrap();
            assert_eq!(row.values["lost"]["usage"], odd);
            assert_eq!(row.values.get("usage"), None);
        }
        let row = typed(
            "messages",
            json!({"id": id, "role": "user", "usage": "{\"a\": 1}"}),
        )
        .unwrap();
        assert_eq!(row.values["usage"], json!({"a": 1}));
        assert_eq!(row.values["lost"], json!({}));
    }

    #[test]
    fn a_row_that_can_not_be_is_told_why() {
        assert_eq!(
            typed("users", json!({"id": "me"})).unwrap_err(),
            "its id is no UUID"
        );
        assert_eq!(
            typed("workflow_runs", json!({"id": "x", "namespace": "ns"})).unwrap_err(),
            "the run is another Runledger's own"
        );
    }
}
