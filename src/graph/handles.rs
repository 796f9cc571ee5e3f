//! `Counter` and `Value`: shared handles to small values.

use super::leaf::{ValueApply, ValueLeaf};
use super::node::{Node, Trackable};
use crate::error::BoxError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// A counter that is saved with the model, such as the step or the epoch. Clones share the count.
///
/// Steps are `u64` throughout this crate: here, in [`CheckpointManager::save_at`](crate::CheckpointManager::save_at),
/// in schedules, and in manifests. For a number that can be negative, use a [`Value<i64>`](Value).
///
/// ```
/// use tch_checkpoint::Counter;
/// let step = Counter::new(0);
/// step.increment();
/// assert_eq!(step.get(), 1);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Creates a counter that starts at `value`.
    #[must_use]
    pub fn new(value: u64) -> Counter {
        Counter(Arc::new(AtomicU64::new(value)))
    }

    /// Returns the count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sets the count.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::SeqCst);
    }

    /// Adds one and returns the new count. Saturates at [`u64::MAX`].
    pub fn increment(&self) -> u64 {
        let next = |count: u64| Some(count.saturating_add(1));
        let before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        before.unwrap_or_else(|count| count).saturating_add(1)
    }
}

impl ValueLeaf for Counter {
    fn save(&self) -> Result<serde_json::Value, BoxError> {
        Ok(self.get().into())
    }

    fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError> {
        let value = saved.as_u64().ok_or_else(|| {
            format!("a counter needs a whole number of 0 or more, the checkpoint has {}", kind(saved))
        })?;
        let counter = self.clone();
        Ok(Box::new(move || counter.set(value)))
    }
}

impl Trackable for Counter {
    fn node(&self) -> Node {
        Node::value(self.clone())
    }
}

/// A value of any serde type that is saved with the model. Clones share the value. It is saved as JSON, with exact
/// floats; values that JSON cannot represent (NaN, infinities, maps with keys other than text) are saved as CBOR in
/// hexadecimal. A save reads back what it is about to write: a value that its own type cannot deserialize is an error.
/// As everywhere in serde, `Some` of something that is saved as `null`, such as `Some(None)` or `Some(())`, is restored as
/// `None`.
///
/// ```
/// use tch_checkpoint::Value;
/// let best_loss = Value::new(f64::INFINITY);
/// best_loss.set(0.25);
/// assert_eq!(best_loss.get(), 0.25);
/// best_loss.update(|loss| *loss /= 2.0);
/// ```
pub struct Value<T>(Arc<Shared<T>>);

struct Shared<T> {
    value: Mutex<T>,
    /// The thread that is running [`Value::update`].
    updated_by: Mutex<Option<ThreadId>>,
}

impl<T> Value<T> {
    /// Creates a handle to `value`.
    pub fn new(value: T) -> Value<T> {
        Value(Arc::new(Shared { value: Mutex::new(value), updated_by: Mutex::new(None) }))
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        *self.lock() = value;
    }

    /// Changes the value in place. The value is locked while `change` runs: a save or a restore inside `change` is an
    /// error. `change` must not call [`get`](Value::get), [`set`](Value::set) or `update` of this value, or print it: each of
    /// them, and a restore on another thread, waits until `change` has returned.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.lock();
        *self.updated_by() = Some(thread::current().id());
        let _ends = Ends(&self.0.updated_by);
        change(&mut value)
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to lock the value once more.
    fn refuse_during_update(&self, what: &str) -> Result<(), BoxError> {
        if *self.updated_by() == Some(thread::current().id()) {
            return Err(format!("it is being updated by this thread; {what} after `Value::update` has returned").into());
        }
        Ok(())
    }

    fn updated_by(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.0.updated_by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends an update, even if it panics.
struct Ends<'a>(&'a Mutex<Option<ThreadId>>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<T: Clone> Value<T> {
    /// Returns a copy of the value.
    #[must_use]
    pub fn get(&self) -> T {
        self.lock().clone()
    }
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Value(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&*self.lock()).finish()
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> ValueLeaf for Value<T> {
    fn save(&self) -> Result<serde_json::Value, BoxError> {
        self.refuse_during_update("save")?;
        let saved = encode(&*self.lock())?;
        // Not every type can deserialize what it serializes, and CBOR is only read to a limited depth.
        match decode::<T>(&saved) {
            Ok(_) => Ok(saved),
            Err(reason) => {
                let advice = match saved.get(CBOR) {
                    Some(_) => "nest it less, or track it as a tensor",
                    None => {
                        "its `Deserialize` must read whatever its `Serialize` writes; a field with `skip_serializing_if` \
                         needs `#[serde(default)]`"
                    }
                };
                Err(format!("the value could not be restored, so it is not saved: {reason}; {advice}").into())
            }
        }
    }

    fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError> {
        self.refuse_during_update("restore")?;
        let value: T = decode(saved).map_err(|reason| match reason.contains("missing field") {
            // serde's message for a struct that has gained a field.
            true => format!("{reason}; a field that was added since needs `#[serde(default)]`"),
            false => reason,
        })?;
        let handle = self.clone();
        Ok(Box::new(move || handle.set(value)))
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Trackable for Value<T> {
    fn node(&self) -> Node {
        Node::value(self.clone())
    }
}

/// Returns the kind of a saved value, without quoting text that may be long.
fn kind(saved: &serde_json::Value) -> String {
    use serde_json::Value as Json;
    match saved {
        Json::Null | Json::Bool(_) | Json::Number(_) => saved.to_string(),
        Json::String(_) => "a text".to_string(),
        Json::Array(_) => "a list".to_string(),
        Json::Object(_) => "an object".to_string(),
    }
}

/// The only key of the JSON object that represents a value in CBOR.
const CBOR: &str = "$cbor";

/// Encodes a value as JSON, or as CBOR inside JSON if JSON cannot represent it.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<serde_json::Value, String> {
    let failed = |e: &dyn fmt::Display| format!("the value cannot be serialized: {e}");
    let mut cbor = ciborium::Value::serialized(value).map_err(|e| failed(&e))?;
    if fits_json(&cbor) {
        return serde_json::to_value(value).map_err(|e| failed(&e));
    }
    sort(&mut cbor);
    let mut bytes = Vec::new();
    ciborium::into_writer(&cbor, &mut bytes).map_err(|e| failed(&e))?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(serde_json::json!({ CBOR: hex }))
}

/// Decodes what [`encode`] returned.
pub(crate) fn decode<T: DeserializeOwned>(saved: &serde_json::Value) -> Result<T, String> {
    let failed = |e: &dyn fmt::Display| format!("the saved value does not fit the type: {e}");
    let hex = saved.as_object().filter(|object| object.len() == 1).and_then(|object| object.get(CBOR)?.as_str());
    let Some(hex) = hex else {
        return T::deserialize(saved).map_err(|e| failed(&e));
    };
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> =
        hex.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect();
    let bytes = bytes.ok_or_else(|| failed(&"bad hexadecimal text"))?;
    ciborium::from_reader(bytes.as_slice()).map_err(|e| failed(&e))
}

/// Sorts the entries of maps by key, so that equal values have equal bytes.
fn sort(value: &mut ciborium::Value) {
    match value {
        ciborium::Value::Array(items) => items.iter_mut().for_each(sort),
        ciborium::Value::Map(entries) => {
            entries.iter_mut().for_each(|(key, value)| {
                sort(key);
                sort(value);
            });
            entries.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        }
        ciborium::Value::Tag(_, inner) => sort(inner),
        _ => {}
    }
}

/// Returns `true` if JSON represents the value without loss.
fn fits_json(value: &ciborium::Value) -> bool {
    use ciborium::Value as Cbor;
    match value {
        Cbor::Integer(n) => i64::try_from(*n).is_ok() || u64::try_from(*n).is_ok(),
        Cbor::Float(x) => x.is_finite(),
        Cbor::Bool(_) | Cbor::Null | Cbor::Text(_) => true,
        Cbor::Array(items) => items.iter().all(fits_json),
        Cbor::Map(entries) => {
            entries.iter().all(|(key, value)| matches!(key, Cbor::Text(key) if key != CBOR) && fits_json(value))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn round_trip<T: Serialize + DeserializeOwned + Send + Clone + 'static>(value: T) -> T {
        let saved = Value::new(value.clone()).save().unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let other = Value::new(value);
        other.load(&serde_json::from_str(&text).unwrap()).unwrap()();
        other.get()
    }

    #[test]
    fn values_come_back_bit_for_bit() {
        for x in [0.1, -0.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, 1.0 / 3.0] {
            assert_eq!(round_trip(x).to_bits(), x.to_bits());
            assert_eq!(round_trip((x, "t".to_string())).0.to_bits(), x.to_bits());
        }
        assert!(round_trip(f64::NAN).is_nan());
        assert_eq!(round_trip(f32::MAX), f32::MAX);
        assert_eq!(round_trip(u64::MAX), u64::MAX);
        assert_eq!(round_trip(u128::MAX), u128::MAX);
        assert_eq!(
            round_trip(Some(BTreeMap::from([((1, 2), "x".to_string())]))),
            Some(BTreeMap::from([((1, 2), "x".to_string())]))
        );
        assert_eq!(round_trip(BTreeMap::from([("$cbor".to_string(), "00".to_string())])).len(), 1);
    }

    #[test]
    fn a_map_gives_the_same_bytes_whatever_its_order() {
        let map = |order: &[u64]| {
            Value::new(order.iter().map(|&n| (n, f64::NAN)).collect::<std::collections::HashMap<_, _>>())
        };
        let numbers: Vec<u64> = (0..50).collect();
        let reversed: Vec<u64> = (0..50).rev().collect();
        assert_eq!(map(&numbers).save().unwrap(), map(&reversed).save().unwrap());
    }

    /// A list in a list in a list …
    #[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Deep(f64, Vec<Deep>);

    #[test]
    fn a_value_too_deep_to_be_read_is_refused_when_it_is_saved() {
        let deep = |levels: usize| (0..levels).fold(Deep(f64::NAN, vec![]), |inner, _| Deep(0.0, vec![inner]));
        for levels in [10, 100] {
            let saved = Value::new(deep(levels)).save().unwrap();
            Value::new(deep(0)).load(&saved).unwrap()();
        }
        for levels in [130, 300] {
            let refusal = Value::new(deep(levels)).save().unwrap_err().to_string();
            assert!(refusal.contains("nest it less"), "{refusal}");
        }
    }

    #[derive(Serialize, serde::Deserialize)]
    struct History {
        step: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        losses: Vec<f64>,
    }

    #[derive(Serialize, serde::Deserialize)]
    struct Defaulted {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        losses: Vec<f64>,
    }

    #[test]
    fn a_value_that_its_type_does_not_read_is_refused_when_it_is_saved() {
        let history = Value::new(History { step: 1, losses: vec![] });
        let refusal = history.save().unwrap_err().to_string();
        assert!(refusal.contains("missing field `losses`") && refusal.contains("#[serde(default)]"), "{refusal}");
        for loss in [0.5, f64::NAN] {
            history.update(|history| history.losses = vec![loss]);
            history.load(&history.save().unwrap()).unwrap()();
            assert_eq!(history.update(|history| (history.step, history.losses.len())), (1, 1));
        }
        Value::new(Defaulted { losses: vec![] }).save().unwrap();
    }

    #[test]
    fn a_counter_stays_at_the_highest() {
        let counter = Counter::new(u64::MAX - 1);
        assert_eq!([counter.increment(), counter.increment(), counter.get()], [u64::MAX; 3]);
    }

    #[test]
    fn a_value_of_another_type_is_refused_and_nothing_changes() {
        let count = Value::new(7u8);
        let refusal = count.load(&serde_json::json!("seven")).err().unwrap().to_string();
        assert!(refusal.contains("does not fit"), "{refusal}");
        assert!(count.load(&serde_json::json!({ "$cbor": "zz" })).is_err());
        assert_eq!(count.get(), 7);
        for refused in [serde_json::json!(1.5), serde_json::json!(-1)] {
            assert!(Counter::new(1).load(&refused).err().unwrap().to_string().contains("0 or more"));
        }
    }
}
