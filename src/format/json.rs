//! JSON as used by the format: no duplicate keys, bounded, and with one way to write a value.

use super::{FormatError, damaged};
use crate::name::shown;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, de};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// The maximum nesting depth of a value.
pub(super) const MAX_DEPTH: usize = 100;

/// The maximum number of numbers, texts, lists and so on in all values of a manifest together.
pub(super) const MAX_NODES: usize = 10_000_000;

/// The maximum memory of a text, in bytes per byte of text, in addition to [`MEMORY_BESIDE`].
const MEMORY_TIMES: usize = 64;
const MEMORY_BESIDE: usize = 16 << 20;

/// The maximum number of entries of a map: files, tensors, metrics, a header's texts.
pub(super) const MAX_ENTRIES: usize = 4_000_000;

/// Appends `item` to `text` as JSON, without white space.
pub(super) fn append<T: Serialize + ?Sized>(text: &mut Vec<u8>, item: &T) -> Result<(), String> {
    serde_json::to_writer(text, item).map_err(|e| e.to_string())
}

/// Appends `"name":{` and the entries, each on its own line, in the order of the map, and `},`.
pub(super) fn append_map<V>(
    text: &mut Vec<u8>,
    name: &str,
    map: &BTreeMap<String, V>,
    mut append_entry: impl FnMut(&mut Vec<u8>, &V) -> Result<(), String>,
) -> Result<(), String> {
    append(text, name)?;
    text.extend_from_slice(b":{\n");
    for (i, (key, entry)) in map.iter().enumerate() {
        if i > 0 {
            text.extend_from_slice(b",\n");
        }
        append(text, key)?;
        text.push(b':');
        append_entry(text, entry)?;
    }
    text.extend_from_slice(if map.is_empty() { b"},\n" } else { b"\n},\n" });
    Ok(())
}

/// An object with any keys, without duplicates.
pub(super) struct Unique<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = BTreeMap<String, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format!("a list has more than {MAX_ENTRIES} entries")));
                    }
                    entries.push(entry);
                }
                unique(entries).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData)).map(Unique)
    }
}

/// Reads [`Unique`], for `deserialize_with`.
pub(super) fn unique_map<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, V>, D::Error> {
    Unique::deserialize(deserializer).map(|entries| entries.0)
}

/// A metric: a finite number, or the text `NaN`, `Infinity` or `-Infinity`, since JSON has no such numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric(pub f64);

const NON_FINITE: [(&str, f64); 3] = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let same = |value: f64| if value.is_nan() { self.0.is_nan() } else { value == self.0 };
        match NON_FINITE.iter().find(|(_, value)| same(*value)) {
            Some((text, _)) => serializer.serialize_str(text),
            None => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Metric;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or the text NaN, Infinity or -Infinity")
            }
            fn visit_f64<E>(self, value: f64) -> Result<Metric, E> {
                Ok(Metric(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Metric, E> {
                let known = NON_FINITE.iter().find(|(known, _)| *known == text);
                known.map(|(_, value)| Metric(*value)).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// Writes metrics, for `serialize_with`.
pub(super) fn write_metrics<S: Serializer>(metrics: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|(name, value)| (name, Metric(*value))))
}

/// Reads metrics without duplicates, for `deserialize_with`.
pub(super) fn read_metrics<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let metrics = Unique::<Metric>::deserialize(deserializer)?.0;
    Ok(metrics.into_iter().map(|(name, value)| (name, value.0)).collect())
}

/// Returns the entries as a map, or an error if a key appears twice.
fn unique<V>(mut entries: Vec<(String, V)>) -> Result<BTreeMap<String, V>, String> {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("the key {} appears twice", shown(&pair[0].0))),
        None => Ok(entries.into_iter().collect()),
    }
}

/// Values by key, without duplicate keys at any depth.
pub(super) struct Values(pub BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = BTreeMap<String, Value>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let left = Cell::new(MAX_NODES);
                let mut entries = Vec::new();
                while let Some(key) = access.next_key()? {
                    entries.push((key, access.next_value_seed(Strict { left: &left })?));
                }
                unique(entries).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_map(Entries).map(Values)
    }
}

/// Reads a [`Value`] without duplicate keys. (`Value`'s own reader silently takes the last one.)
#[derive(Clone, Copy)]
struct Strict<'a> {
    /// The number of nodes that are left.
    left: &'a Cell<usize>,
}

/// The form in which `serde_json` passes numbers if a crate in the program enables its feature `arbitrary_precision`.
const ARBITRARY_PRECISION: &str = "$serde_json::private::Number";

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(too_many_parts()))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = serde_json::Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if key == ARBITRARY_PRECISION {
                let number: serde_json::Number =
                    serde_json::from_str(&access.next_value::<String>()?).map_err(A::Error::custom)?;
                return Ok(Value::Number(number));
            }
            let value = access.next_value_seed(self)?;
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} appears twice", shown(&key))));
            }
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

/// The remedy for a value that is too large or has too many parts.
const AS_A_TENSOR: &str = "track it as a tensor";

fn too_many_parts() -> String {
    format!("the values have more than {MAX_NODES} parts; {AS_A_TENSOR}")
}

/// Checks that the values of this JSON take memory in proportion to its text, before allocating them. A list of objects
/// with one short entry each takes about 100 times its text.
pub(super) fn check_memory(text: &[u8]) -> Result<(), FormatError> {
    if memory(text) <= MEMORY_BESIDE + MEMORY_TIMES * text.len() {
        return Ok(());
    }
    Err(damaged(format!(
        "its objects are too small: they would take more than {MEMORY_TIMES} times the memory of their text; \
         for large lists of small objects, {AS_A_TENSOR}"
    )))
}

/// Estimates the memory that a JSON text takes when it is read, as specified in `docs/format.md`.
pub(super) fn memory(text: &[u8]) -> usize {
    let mut memory = 0;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        memory += match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
                0
            }
            b'{' if bytes.peek() != Some(&b'}') => 640,
            b'[' if bytes.peek() != Some(&b']') => 128,
            b',' => 64,
            b':' => 32,
            _ => 0,
        };
    }
    memory
}

/// Subtracts the parts of a value from `left`. Returns what exceeds the limit, if anything.
pub(super) fn check_bounds(value: &Value, left: &mut usize, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("it nests deeper than {MAX_DEPTH}; {AS_A_TENSOR}"));
    }
    *left = left.checked_sub(1).ok_or_else(too_many_parts)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_bounds(item, left, depth + 1)),
        Value::Object(entries) => entries.values().try_for_each(|value| check_bounds(value, left, depth + 1)),
        // Only with serde_json's `arbitrary_precision` can a number be neither.
        Value::Number(n) if !(n.is_i64() || n.is_u64() || n.as_f64().is_some_and(f64::is_finite)) => {
            Err(format!("the number {n} is out of range"))
        }
        _ => Ok(()),
    }
}

/// Returns a value as JSON text, without white space, in which the keys of all objects are sorted.
pub(crate) fn canonical(value: &Value) -> String {
    // A value always has a text.
    serde_json::to_string(&Sorted(value)).unwrap_or_else(|_| value.to_string())
}

/// A value whose objects are written with sorted keys, whatever order `serde_json` keeps.
pub(super) struct Sorted<'a>(pub &'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Sorted(item))?;
                }
                list.end()
            }
            Value::Object(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by_key(|(key, _)| *key);
                let mut object = serializer.serialize_map(Some(sorted.len()))?;
                for (key, value) in sorted {
                    object.serialize_entry(key, &Sorted(value))?;
                }
                object.end()
            }
            other => other.serialize(serializer),
        }
    }
}
