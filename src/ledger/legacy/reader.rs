//! Reads values of a row's or an entry's keys, and loses none: one that is there and can't be read is
//! kept under `unreadable`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::values;

/// Reads from one map, keeps in the other.
pub(super) struct Reader<'a> {
    from: &'a Map<String, Value>,
    legacy: &'a mut Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(from: &'a Map<String, Value>, legacy: &'a mut Map<String, Value>) -> Self {
        Self { from, legacy }
    }

    pub(super) fn get<T>(&mut self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.from.get(key).filter(|value| !value.is_null())?;
        let known = read(value);
        if known.is_none() && value.as_str() != Some("") {
            let entry = self.legacy.entry("unreadable").or_insert_with(|| json!({}));
            if let Some(map) = entry.as_object_mut() {
                map.insert(key.to_owned(), value.clone());
            }
        }
        known
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.from.get(key).and_then(values::text)
    }

    pub(super) fn time(&mut self, key: &str) -> Option<Timestamp> {
        self.get(key, values::time)
    }

    pub(super) fn count(&mut self, key: &str) -> Option<i64> {
        self.get(key, values::count)
    }
}
