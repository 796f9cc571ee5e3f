//! Values of plain Python objects: `None`, booleans, numbers, texts, and lists and dictionaries of them.

use crate::graph::decode;
use ciborium::Value;
use std::cmp::Ordering;

/// Returns a saved value, or the reason why it is not plain.
pub(super) fn plain(saved: &serde_json::Value) -> Result<Value, String> {
    let mut value = decode(saved)?;
    make_plain(&mut value)?;
    Ok(value)
}

/// Sorts the entries of dictionaries, whatever order the program's `serde_json` keeps.
pub(super) fn make_plain(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) => Ok(()),
        Value::Array(items) => items.iter_mut().try_for_each(make_plain),
        Value::Map(entries) => {
            for (key, value) in entries.iter_mut() {
                if !matches!(key, Value::Integer(_) | Value::Text(_)) {
                    return Err("a key of it is neither an integer nor a text".to_string());
                }
                make_plain(value)?;
            }
            entries.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
            Ok(())
        }
        Value::Bytes(_) => Err("it has bytes, which not every version of torch reads".to_string()),
        other if integer(other).is_some() => Ok(()),
        _ => Err("it has something that is no number, text, list or dictionary".to_string()),
    }
}

/// An integer of at most 128 bits.
pub(super) enum Integer {
    Signed(i128),
    /// Above all of `i128`.
    Larger(u128),
}

/// Returns the integer that `value` is, if it is one.
pub(super) fn integer(value: &Value) -> Option<Integer> {
    match value {
        Value::Integer(value) => Some(Integer::Signed((*value).into())),
        Value::Tag(..) => {
            let signed = value.deserialized().map(Integer::Signed);
            signed.or_else(|_| value.deserialized().map(Integer::Larger)).ok()
        }
        _ => None,
    }
}
