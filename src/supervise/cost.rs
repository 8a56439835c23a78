//! Money: from the SDK's dollars to integer micro-dollars, and what a session has cost so far.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rust_decimal::prelude::{Decimal, RoundingStrategy, ToPrimitive};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A JSON number of dollars in micro-dollars, rounded half to even. The number's shortest decimal
/// form is taken, digit by digit: it is never calculated with as a float.
pub(crate) fn micro_usd(value: &Value) -> Option<u64> {
    let number = value.as_number()?;
    let digits = match number.as_f64() {
        Some(float) if !number.is_u64() && !number.is_i64() => format!("{float}"),
        _ => number.to_string(),
    };
    let dollars: Decimal = digits.parse().ok()?;
    dollars
        .checked_mul(Decimal::from(1_000_000_u32))?
        .round_dp_with_strategy(0, RoundingStrategy::MidpointNearestEven)
        .to_u64()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionCost {
    cost_micro_usd: u64,
}

fn file(state: &Path, session: Uuid) -> PathBuf {
    state.join("sessions").join(format!("{session}.json"))
}

/// What the session had cost when its last result came; nothing if none is known.
pub(crate) fn of_session(state: &Path, session: Uuid) -> u64 {
    fs::read(file(state, session))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<SessionCost>(&bytes).ok())
        .map_or(0, |cost| cost.cost_micro_usd)
}

/// Writes down what the session has cost.
pub(crate) fn set_of_session(state: &Path, session: Uuid, cost_micro_usd: u64) -> io::Result<()> {
    fs::create_dir_all(state.join("sessions"))?;
    let body = serde_json::to_vec(&SessionCost { cost_micro_usd })?;
    super::files::replace(&file(state, session), &body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn dollars_become_micro_dollars_digit_by_digit() {
        let cases = [
            ("0.01628", Some(16_280)),
            ("0.016280000000000003", Some(16_280)),
            ("0", Some(0)),
            ("3", Some(3_000_000)),
            ("1e-7", Some(0)),
            ("0.0000005", Some(0)),
            ("0.0000015", Some(2)),
            ("0.0000025", Some(2)),
            ("123456.789", Some(123_456_789_000)),
            ("-1", None),
            ("1e300", None),
            ("\"1\"", None),
        ];
        for (json, expected) in cases {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!(micro_usd(&value), expected, "{json}");
        }
    }

    #[test]
    fn a_session_remembers_what_it_has_cost() {
        let dir = tempfile::tempdir().unwrap();
        let session = Uuid::from_u128(7);
        assert_eq!(of_session(dir.path(), session), 0);
        set_of_session(dir.path(), session, 16_280).unwrap();
        set_of_session(dir.path(), session, 32_560).unwrap();
        assert_eq!(of_session(dir.path(), session), 32_560);
    }
}
