//! The state of another tool's optimizer in the layout of `optim`.

use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name;
use crate::source::{TensorSource, VerifiedBy, check_range, check_target};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// The state of another tool's optimizer in the layout of `optim`: `optimizer/algorithm`, `optimizer/param_groups`,
/// `optimizer/state/VARIABLE/SLOT` and so on.
///
/// It is a [`TensorSource`]: [`Merged`](crate::map::Merged) adds the weights, and
/// [`NameMap::apply_to_optimizer`](crate::map::NameMap::apply_to_optimizer) gives it other names and layouts.
#[derive(Debug)]
pub struct OptimizerState<'a> {
    source: &'a dyn TensorSource,
    name: String,
    tensors: BTreeMap<String, TensorSpec>,
    from: BTreeMap<String, Elements>,
    values: BTreeMap<String, Value>,
    steps: f32,
}

/// The origin of the elements of a slot.
#[derive(Debug)]
pub(super) enum Elements {
    /// The tensor of this key in the source.
    Tensor(String),
    /// The same, each element multiplied by a number: `F32` or `F64`.
    Scaled(String, f64),
    /// A count of steps, which tools record in several ways.
    Count(f32),
}

impl<'a> OptimizerState<'a> {
    /// Creates a state without variables, under the key `name`.
    pub(super) fn new(source: &'a dyn TensorSource, name: &str) -> OptimizerState<'a> {
        let (tensors, from, values) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        OptimizerState { source, name: name.to_string(), tensors, from, values, steps: 0.0 }
    }

    /// Adds a slot of a variable.
    ///
    /// # Errors
    /// [`Error::Object`] if the source cannot read it: without it, the variable would count as one that was never
    /// stepped.
    pub(super) fn add(&mut self, variable: &str, slot: &str, elements: Elements) -> Result<()> {
        let spec = match &elements {
            Elements::Count(count) => {
                self.steps = self.steps.max(*count);
                TensorSpec::new(Dtype::F32, [])
            }
            Elements::Tensor(key) | Elements::Scaled(key, _) => match self.source.tensors().get(key) {
                Some(spec) => spec.clone(),
                None => {
                    let reason = self.source.unreadable().get(key);
                    return Err(lost(key, reason.map_or("there is no such tensor", String::as_str)));
                }
            },
        };
        let key = name::key([&*self.name, "state", variable, slot]);
        self.tensors.insert(key.clone(), spec);
        self.from.insert(key, elements);
        Ok(())
    }

    /// Sets the algorithm and the options of its groups, and the number of steps unless the slots count them.
    pub(super) fn set_options(&mut self, algorithm: &str, groups: Vec<Value>, steps: Option<u64>) {
        let defaults = groups.first().cloned().unwrap_or(json!({}));
        let steps = steps.unwrap_or(self.steps as u64);
        let values: [(&str, Value); 4] = [
            ("algorithm", algorithm.into()),
            ("defaults", defaults),
            ("param_groups", groups.into()),
            ("steps", steps.into()),
        ];
        self.values = values.into_iter().map(|(part, value)| (name::key([&*self.name, part]), value)).collect();
    }

    fn elements(&self, key: &str) -> Result<&Elements> {
        self.from.get(key).ok_or_else(|| Error::object(key, "the state of the optimizer has no such tensor"))
    }
}

/// Refuses a state of which the source cannot read a part, at `place` or below: a variable without slots would count as
/// one that was never stepped, and a hyperparameter that is left out has a default.
pub(super) fn check_readable(source: &dyn TensorSource, place: &str) -> Result<()> {
    let inside = format!("{place}/");
    let own = source.unreadable().get_key_value(place);
    let below = source.unreadable().range(inside.clone()..).next().filter(|(key, _)| key.starts_with(&inside));
    own.or(below).map_or(Ok(()), |(key, reason)| Err(lost(key, reason)))
}

/// Returns the error for a part of the state that cannot be read.
fn lost(key: &str, reason: &str) -> Error {
    Error::object(key, format!("it is a part of the optimizer's state and cannot be read: {reason}"))
}

/// Multiplies elements by a number.
fn scale(key: &str, dtype: Dtype, factor: f64, bytes: &mut [u8]) -> Result<()> {
    match dtype {
        Dtype::F32 => {
            for bytes in bytes.as_chunks_mut::<4>().0 {
                *bytes = ((f64::from(f32::from_le_bytes(*bytes)) * factor) as f32).to_le_bytes();
            }
        }
        Dtype::F64 => {
            for bytes in bytes.as_chunks_mut::<8>().0 {
                *bytes = (f64::from_le_bytes(*bytes) * factor).to_le_bytes();
            }
        }
        other => return Err(Error::object(key, format!("a slot of type {other} cannot be scaled, only F32 and F64"))),
    }
    Ok(())
}

/// Returns the number that a tensor of one element holds.
pub(super) fn number(source: &dyn TensorSource, key: &str) -> Result<Option<f64>> {
    let Some(spec) = source.tensors().get(key) else { return Ok(None) };
    let mut bytes = vec![0; spec.bytes().filter(|&bytes| bytes <= 8).unwrap_or(0) as usize];
    if !bytes.is_empty() {
        source.read(key, &mut bytes)?;
    }
    let first = |bytes: &[u8]| -> Option<f64> {
        Some(match spec.dtype {
            Dtype::F32 => f32::from_le_bytes(*bytes.first_chunk()?).into(),
            Dtype::F64 => f64::from_le_bytes(*bytes.first_chunk()?),
            Dtype::I64 => i64::from_le_bytes(*bytes.first_chunk()?) as f64,
            Dtype::I32 => i32::from_le_bytes(*bytes.first_chunk()?).into(),
            _ => return None,
        })
    };
    match first(&bytes) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::object(key, format!("one number is expected, it is {spec}"))),
    }
}

impl TensorSource for OptimizerState<'_> {
    fn format(&self) -> &'static str {
        self.source.format()
    }

    fn path(&self) -> &Location {
        self.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.tensors
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        match self.from.get(key) {
            Some(Elements::Tensor(from) | Elements::Scaled(from, _)) => self.source.verified_by(from),
            _ => VerifiedBy::Nothing,
        }
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let elements = self.elements(key)?;
        let spec = &self.tensors[key];
        check_target(key, spec, target.len())?;
        match elements {
            Elements::Tensor(from) => self.source.read(from, target),
            Elements::Scaled(from, factor) => {
                self.source.read(from, target)?;
                scale(key, spec.dtype, *factor, target)
            }
            Elements::Count(count) => {
                target.copy_from_slice(&count.to_le_bytes());
                Ok(())
            }
        }
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let elements = self.elements(key)?;
        let spec = &self.tensors[key];
        check_range(key, spec, &range, target.len())?;
        match elements {
            Elements::Tensor(from) => self.source.read_range(from, range, target),
            Elements::Scaled(from, factor) => {
                self.source.read_range(from, range, target)?;
                scale(key, spec.dtype, *factor, target)
            }
            Elements::Count(_) if range.is_empty() => Ok(()),
            Elements::Count(_) => self.read(key, target),
        }
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        match self.elements(key)? {
            Elements::Tensor(from) | Elements::Scaled(from, _) => self.source.ensure_readable(from),
            Elements::Count(_) => Ok(true),
        }
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        match self.elements(key)? {
            Elements::Tensor(from) | Elements::Scaled(from, _) => self.source.verify_tensor(from),
            Elements::Count(_) => Ok(()),
        }
    }

    fn verify(&self) -> Result<()> {
        self.source.verify()
    }
}
