//! Values as the earlier system wrote them, of any type and spelling: numbers in strings, times with
//! and without a zone, JSON inside text. Pure. What can't be read is the caller's to keep and to tell.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::{Map, Value};

/// An object, also one inside a text.
pub(super) fn object(value: &Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Some(map),
            // A text that was put into a text.
            Ok(Value::String(inner)) => serde_json::from_str(&inner).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// A text that is not empty; other values in JSON's words.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.trim().is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// What something is called by: a text or number, without blanks at its ends.
pub(super) fn name(value: &Value) -> Option<String> {
    match value {
        Value::String(_) | Value::Number(_) => text(value).map(|text| text.trim().to_owned()),
        _ => None,
    }
}

/// A decimal number.
pub(super) fn decimal(value: &Value) -> Option<Decimal> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().trim_start_matches('$').to_owned(),
        _ => return None,
    };
    Decimal::from_str(&text)
        .or_else(|_| Decimal::from_scientific(&text))
        .ok()
}

/// A count: whole, and not below 0.
pub(super) fn count(value: &Value) -> Option<i64> {
    let number = decimal(value)?;
    number.trunc().to_i64().filter(|n| *n >= 0)
}

/// Yes or no.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => Some(number.as_f64()? != 0.0),
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "1" => Some(true),
            "false" | "f" | "no" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// The earliest time that a row of the earlier system can have, and the latest that Postgres is given.
const TIMES: std::ops::RangeInclusive<i64> = 0..=4_102_444_800;

/// A time: with a zone, without one (then UTC), or in seconds or milliseconds since 1970.
pub(super) fn time(value: &Value) -> Option<Timestamp> {
    spelled(value).filter(|time| TIMES.contains(&time.as_second()))
}

fn spelled(value: &Value) -> Option<Timestamp> {
    if let Some(number) = decimal(value) {
        let milliseconds = if number.abs() < Decimal::from(100_000_000_000_i64) {
            number.checked_mul(Decimal::from(1000))?
        } else {
            number
        };
        return Timestamp::from_millisecond(milliseconds.trunc().to_i64()?).ok();
    }
    let text = value.as_str()?.trim();
    let spelled = text.replacen(' ', "T", 1);
    Timestamp::from_str(&spelled).ok().or_else(|| {
        let there = DateTime::from_str(&spelled).ok()?;
        there.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_read_in_every_spelling_and_nonsense_in_none() {
        for spelled in [
            json!("2025-03-01T10:00:00Z"),
            json!("2025-03-01T10:00:00+00:00"),
            json!("2025-03-01 10:00:00+00"),
            json!("2025-03-01T10:00:00.000000"),
            json!("2025-03-01 10:00:00"),
            json!("2025-03-01T12:00:00+02:00"),
            json!(1_740_823_200),
            json!(1_740_823_200_000_i64),
            json!("1740823200.25"),
        ] {
            let read = time(&spelled).unwrap_or_else(|| panic!("{spelled}"));
            assert_eq!(read.as_second(), 1_740_823_200, "{spelled}");
        }
        for nonsense in [
            json!("yesterday"),
            json!(null),
            json!(""),
            json!([]),
            json!(1e30),
        ] {
            assert_eq!(time(&nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn numbers_are_read_from_texts_and_never_below_zero() {
        assert_eq!(count(&json!("17")), Some(17));
        assert_eq!(count(&json!(17.9)), Some(17));
        assert_eq!(count(&json!(-1)), None);
        assert_eq!(count(&json!("1e30")), None);
        assert_eq!(decimal(&json!("$0.0123")).unwrap().to_string(), "0.0123");
        assert_eq!(decimal(&json!(1e-7)).unwrap().to_string(), "0.0000001");
        assert_eq!(decimal(&json!("NaN")), None);
    }

    #[test]
    fn json_is_found_inside_texts() {
        assert_eq!(object(&json!("{\"a\": 1}")).unwrap()["a"], json!(1));
        assert_eq!(object(&json!("\"{\\\"a\\\": 1}\"")).unwrap()["a"], json!(1));
        assert_eq!(object(&json!("{'a': 1}")), None);
    }
}
