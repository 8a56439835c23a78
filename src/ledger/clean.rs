//! What Postgres can't store: U+0000 has no place in `text` or `jsonb`. It is replaced by U+FFFD,
//! and whoever stores the result marks it as altered.

use serde_json::Value;

/// The text without U+0000, and whether it held any.
pub(super) fn text(text: &str) -> (String, bool) {
    if text.contains('\0') {
        (text.replace('\0', "\u{fffd}"), true)
    } else {
        (text.to_owned(), false)
    }
}

/// Cleans in place, keys too; says whether anything was replaced.
pub(super) fn value(value: &mut Value) -> bool {
    match value {
        Value::String(s) => {
            let held = s.contains('\0');
            if held {
                *s = s.replace('\0', "\u{fffd}");
            }
            held
        }
        // Not `any`: every element is to be cleaned.
        Value::Array(list) => list.iter_mut().fold(false, |held, v| self::value(v) | held),
        Value::Object(map) => {
            let mut held = map
                .values_mut()
                .fold(false, |held, v| self::value(v) | held);
            if map.keys().any(|key| key.contains('\0')) {
                held = true;
                *map = std::mem::take(map)
                    .into_iter()
                    .map(|(key, v)| (key.replace('\0', "\u{fffd}"), v))
                    .collect();
            }
            held
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The JSON of what is known to have one, without U+0000, and whether it held any.
pub(super) fn json(of: &impl serde::Serialize) -> Result<(String, bool), serde_json::Error> {
    let text = serde_json::to_string(of)?;
    // A look for the letters is cheap. What has them may still mean a backslash that was escaped.
    if !text.contains("\\u0000") {
        return Ok((text, false));
    }
    let mut value = serde_json::to_value(of)?;
    let held = self::value(&mut value);
    Ok((value.to_string(), held))
}

/// A text that stands for itself alone: clean and of at most `max` characters, and where that changed it,
/// its end says so.
pub(super) fn marked(given: &str, max: usize) -> String {
    let (clean, altered) = text(given);
    let whole = clean.chars().count();
    let note = match (whole > max, altered) {
        (true, _) => format!("… (cut; {whole} characters)"),
        (false, true) => " (altered: held U+0000)".to_owned(),
        (false, false) => return clean,
    };
    let room = max.saturating_sub(note.chars().count());
    let mut kept = cut(&clean, room);
    kept.push_str(&note);
    kept
}

/// The text's first `max` characters: for columns that are bounded or indexed.
pub(super) fn cut(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_nul_is_replaced_in_keys_and_depths() {
        let mut v = json!({"a\0": ["\0", {"b": "x\0y"}, 1], "c": "\0"});
        assert!(value(&mut v));
        assert_eq!(
            v,
            json!({"a\u{fffd}": ["\u{fffd}", {"b": "x\u{fffd}y"}, 1], "c": "\u{fffd}"})
        );
        assert!(!value(&mut v));
    }

    #[test]
    fn json_is_altered_only_where_it_means_a_nul() {
        for (given, expected) in [
            (json!(["a", 1]), (r#"["a",1]"#, false)),
            (json!(["\0"]), ("[\"\u{fffd}\"]", true)),
            (json!(["\\u0000"]), (r#"["\\u0000"]"#, false)),
        ] {
            let (text, altered) = super::json(&given).unwrap();
            assert_eq!((&*text, altered), expected);
        }
    }

    #[test]
    fn a_text_that_was_changed_says_so_at_its_end() {
        assert_eq!(marked("as it is", 8), "as it is");
        assert_eq!(marked("a\0b", 40), "a\u{fffd}b (altered: held U+0000)");
        let long = marked(&"ä".repeat(300), 40);
        assert_eq!(long.chars().count(), 40);
        assert!(long.ends_with("ä… (cut; 300 characters)"), "{long}");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("äöü", 2), "äö");
    }
}
