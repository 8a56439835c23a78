//! An event as it is kept: its type, and the rest of it as JSON.

use serde_json::Value;

use crate::ledger::clean;
use crate::wire::EventBody;

/// What a row of `run_events` holds of its event.
#[derive(Debug, PartialEq)]
pub(in crate::ledger) struct Told {
    pub(in crate::ledger) kind: String,
    /// JSON of an object.
    pub(in crate::ledger) body: String,
    pub(in crate::ledger) altered: bool,
}

impl Told {
    pub(super) fn of(body: &EventBody) -> Result<Self, &'static str> {
        let json = match body {
            // The patch itself is kept once, in its own table.
            EventBody::Patch(patch) => {
                clean::json(&EventBody::Patch(Box::new(patch.without_text())))
            }
            body => clean::json(body),
        };
        let (json, altered) = json.map_err(|_| "its body")?;
        let (kind, body) = match split(&json) {
            Some((kind, rest)) => {
                let (kind, rest) = (kind.to_owned(), json.len() - rest.len());
                let mut body = json;
                body.replace_range(..rest, "{");
                (kind, body)
            }
            None => parse(&json).ok_or("its type")?,
        };
        Ok(Self {
            kind,
            body,
            altered,
        })
    }
}

/// The type at the head of its JSON, where it is written, and what follows the brace that the rest
/// begins with.
fn split(json: &str) -> Option<(&str, &str)> {
    let (kind, rest) = json.strip_prefix(r#"{"type":""#)?.split_once('"')?;
    let rest = match rest.strip_prefix(',') {
        Some(rest) => rest,
        None => Some(rest).filter(|rest| *rest == "}")?,
    };
    (!kind.contains('\\')).then_some((kind, rest))
}

/// The same for JSON that was written in any order.
fn parse(json: &str) -> Option<(String, String)> {
    let Ok(Value::Object(mut map)) = serde_json::from_str(json) else {
        return None;
    };
    let kind = map.shift_remove("type")?;
    Some((kind.as_str()?.to_owned(), Value::Object(map).to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_type_is_taken_off_wherever_it_stands_and_whatever_follows() {
        for (given, kind, body) in [
            (r#"{"type":"a"}"#, "a", json!({})),
            (r#"{"type":"a","b":"}"}"#, "a", json!({"b": "}"})),
            (
                r#"{"b":{"type":"c"},"type":"a"}"#,
                "a",
                json!({"b": {"type": "c"}}),
            ),
            (r#"{"type":"\u0061","b":1}"#, "a", json!({"b": 1})),
        ] {
            let (found, rest) = split(given)
                .map(|(kind, rest)| (kind.to_owned(), format!("{{{rest}")))
                .or_else(|| parse(given))
                .unwrap();
            assert_eq!(found, kind);
            assert_eq!(serde_json::from_str::<Value>(&rest).unwrap(), body);
        }
    }

    #[test]
    fn what_is_written_of_an_event_begins_with_its_type() {
        let body = EventBody::Omitted {
            why: "a\0b".to_owned(),
        };
        let json = serde_json::to_string(&body).unwrap();
        assert!(split(&json).is_some(), "{json}");
        let told = Told::of(&body).unwrap();
        assert_eq!((&*told.kind, told.altered), ("omitted", true));
        assert_eq!(
            serde_json::from_str::<Value>(&told.body).unwrap(),
            json!({"why": "a\u{fffd}b"})
        );
    }
}
