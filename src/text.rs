//! How messages show names and texts from files, which can have any length: shortened, and by component.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Returns the key of the component that `key` is in.
pub(crate) fn component(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

/// Quotes a name for a message, shortened to [`MAX_SHOWN`] bytes.
pub(crate) fn shown(name: &str) -> impl fmt::Display {
    struct Shown<'a>(&'a str);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let short = start_of(self.0, MAX_SHOWN);
            write!(f, "{short:?}")?;
            if short.len() < self.0.len() { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
        }
    }
    Shown(name)
}

/// Returns the JSON of a value with the keys of all objects sorted, whatever order the program's `serde_json` keeps.
pub(crate) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entries = sorted.into_iter().map(|(key, value)| format!("{}:{}", json!(key), canonical(value)));
            format!("{{{}}}", entries.collect::<Vec<String>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<String>>().join(",")),
        other => other.to_string(),
    }
}

/// The maximum length of a name in a message, in bytes.
const MAX_SHOWN: usize = 300;

/// Returns at most the first `bytes` bytes of a text.
fn start_of(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// Returns a message of at most about [`MAX_MESSAGE`] bytes, because messages of other libraries may quote a file
/// completely.
pub(crate) fn short_message(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let length = message.len();
        message.truncate(start_of(&message, MAX_MESSAGE).len());
        message.push_str(&format!("… ({length} bytes)"));
    }
    message
}

/// The maximum length of a message about a file, in bytes.
const MAX_MESSAGE: usize = 2000;

/// The maximum number of names per kind in a message.
pub(crate) const SHOWN: usize = 10;

/// Returns the first of several names, for a message.
pub(crate) fn listed<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = names.len();
    let shown: Vec<_> = names.by_ref().take(SHOWN).map(|name| shown(name).to_string()).collect();
    let more = count - shown.len();
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seal has its digest, so it must never change.
    #[test]
    fn the_keys_of_objects_are_sorted_at_every_depth() {
        let value = json!({"b": [1, {"z": 0.5, "y": "\n"}], "a": {"d": null, "c": -0.0}});
        assert_eq!(canonical(&value), r#"{"a":{"c":-0.0,"d":null},"b":[1,{"y":"\n","z":0.5}]}"#);
        assert_eq!(canonical(&json!({})), "{}");
    }
}
