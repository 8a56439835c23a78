//! How deep and how large JSON may be that the agent or the model sent, so that whoever reads it next
//! neither gives up nor runs out of memory.

use serde_json::Value;

/// Deepest JSON that is passed on as it came. Readers give up at 127 levels, and what is passed on is
/// wrapped in some more.
pub const MAX_DEPTH: usize = 64;

/// Whether a value is nested deeper than [`MAX_DEPTH`], so that the next reader might refuse it.
pub fn is_too_deep(value: &Value) -> bool {
    fn deeper(value: &Value, left: usize) -> bool {
        let Some(left) = left.checked_sub(1) else {
            return true;
        };
        match value {
            Value::Array(items) => items.iter().any(|item| deeper(item, left)),
            Value::Object(fields) => fields.values().any(|field| deeper(field, left)),
            _ => false,
        }
    }
    deeper(value, MAX_DEPTH)
}

/// Most values in JSON that is taken from the agent or the model: each takes some eighty bytes of
/// memory, and two of text.
pub const MAX_VALUES: usize = 200_000;

/// Whether JSON holds more than [`MAX_VALUES`] values, told before it is parsed.
pub fn has_too_many_values(json: &[u8]) -> bool {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values > MAX_VALUES
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings_only() {
        let zeros = |n| format!("[{}]", vec!["0"; n].join(","));
        assert!(!has_too_many_values(zeros(MAX_VALUES).as_bytes()));
        assert!(has_too_many_values(zeros(MAX_VALUES + 1).as_bytes()));
        let text = r#"\"[,{\\"#.repeat(MAX_VALUES);
        assert!(!has_too_many_values(format!("[\"{text}\"]").as_bytes()));
    }

    #[test]
    fn a_value_is_too_deep_from_one_level_past_the_limit_on() {
        let nested = |levels| (1..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert!(!is_too_deep(&nested(MAX_DEPTH)));
        assert!(is_too_deep(&nested(MAX_DEPTH + 1)));
    }
}
