//! A state that is recorded at one moment and saved later, if the parts that were not copied have not changed.

use super::behind::pin;
use super::gather::Pins;
use super::lazy::AllSeen;
use super::plan::Plan;
use super::samples::{Sampled, Samples};
use crate::dtype::TensorSpec;
use crate::error::{BoxError, Error, Result};
use crate::graph::{Seen, TensorBytes, TensorLeaf, TensorTarget, ValueApply, ValueLeaf, changed_meanwhile};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors that are not in plain memory, such as the random state, are copied up to this length.
const COPIED: u64 = 64 << 10;

/// The values and the small state of a plan at one moment, and what is needed to detect changes of its tensors.
pub(crate) struct Noted {
    plan: Arc<Plan>,
    seen: AllSeen,
    values: BTreeMap<String, Json>,
    /// By place in `Plan::tensors`.
    copies: BTreeMap<usize, Vec<u8>>,
    watched: Watched,
}

/// How the tensors of a plan are watched.
struct Watched {
    /// The places of those that are copied.
    copied: Vec<usize>,
    /// The memory of the others, as far as it can be held.
    pins: Pins,
    samples: Samples,
    /// The places of those that report nothing.
    untold: Vec<usize>,
}

impl Watched {
    fn new(plan: &Plan, seen: &[Seen]) -> Result<Watched> {
        let mut watched =
            Watched { copied: Vec::new(), pins: Pins::default(), samples: Samples::default(), untold: Vec::new() };
        let mut sampled = Vec::new();
        for (place, tensor) in plan.tensors.iter().enumerate() {
            let is_small = tensor.spec.bytes().is_some_and(|bytes| bytes <= COPIED);
            if is_small && !tensor.leaf.is_plain_memory() {
                watched.copied.push(place);
                watched.pins.fresh.push(None);
                continue;
            }
            if tensor.exclusive.is_some() {
                // Its writer reports every change.
                watched.pins.fresh.push(None);
                continue;
            }
            let pin = pin(tensor)?;
            if pin.as_ref().is_some_and(|pin| pin.memory().is_some()) {
                sampled.push(place);
            } else if seen[place].version().is_none() {
                watched.untold.push(place);
            }
            watched.pins.fresh.push(pin);
        }
        let sampled = sampled.into_iter().map(|place: usize| {
            let tensor = &plan.tensors[place];
            (place, &tensor.spec, tensor.address, false)
        });
        let sampled = Sampled::new(sampled, plan.tensors.len());
        watched.samples = Samples::take(Samples::default(), &sampled, &watched.pins);
        Ok(watched)
    }
}

impl Noted {
    /// Records the state of a plan, with its tensors as [`seen`](Plan::look). `before` is the previous record.
    pub(crate) fn take(plan: Arc<Plan>, seen: AllSeen, before: Option<Noted>) -> Result<Noted> {
        let moment = plan.moment()?;
        let values = plan.values()?;
        let watched = match before.filter(|before| Arc::ptr_eq(&before.plan, &plan)) {
            Some(Noted { mut watched, .. }) => {
                watched.samples.look_again(&watched.pins);
                watched
            }
            None => Watched::new(&plan, &seen)?,
        };
        let copy = |&place: &usize| {
            let tensor = &plan.tensors[place];
            let mut bytes = vec![0; tensor.spec.bytes().unwrap_or_default() as usize];
            let copied = tensor.leaf.copy_to(&tensor.spec, &mut bytes);
            copied.map(|()| (place, bytes)).map_err(|reason| Error::object(&tensor.key, reason))
        };
        let copies = watched.copied.iter().map(copy).collect::<Result<_>>()?;
        match plan.changed_since(&moment)? {
            Some(key) => Err(changed_meanwhile(&key)),
            None => Ok(Noted { plan, seen, values, copies, watched }),
        }
    }

    /// Returns the recorded state for a save. Tensors that were not copied are the live ones.
    ///
    /// # Errors
    /// Returns the key of a tensor that has changed, or for which that is unknown.
    pub(crate) fn into_plan(self) -> Result<Result<(Arc<Plan>, AllSeen), String>> {
        // A step that ends from here on is noticed when the tensors were read. Values that belong to the tensors, such as a
        // learning rate, may have been set since the state was recorded.
        let moment = self.plan.moment()?;
        let now = self.plan.look();
        let Watched { pins, samples, untold, .. } = &self.watched;
        let differs = |place: &usize| {
            let (leaf, then, now) = (&self.plan.tensors[*place].leaf, &self.seen[*place], &now[*place]);
            let is_undone = || then.version().zip(now.version()).is_some_and(|(then, now)| leaf.is_undone(then, now));
            !self.copies.contains_key(place)
                && (then.generation() != now.generation() || then.version() != now.version() && !is_undone())
        };
        let changed = (0..self.plan.tensors.len()).find(differs);
        let changed = changed.or_else(|| samples.changed(pins)).or_else(|| untold.first().copied());
        if let Some(place) = changed {
            return Ok(Err(self.plan.tensors[place].key.clone()));
        }
        let mut seen = now;
        self.copies.keys().for_each(|&place| seen[place] = self.seen[place]);
        let leaf = |(place, bytes): (usize, Vec<u8>)| {
            let spec = self.plan.tensors[place].spec.clone();
            (place, Arc::new(Copied { spec, bytes }) as Arc<dyn TensorLeaf>)
        };
        let copies = self.copies.into_iter().map(leaf).collect();
        let value = |(key, value): (String, Json)| (key, Arc::new(Fixed(value)) as Arc<dyn ValueLeaf>);
        let values = self.values.into_iter().map(value).collect();
        Ok(Ok((Arc::new(self.plan.with_leaves(moment, copies, values)), Arc::new(seen))))
    }
}

/// A recorded tensor.
struct Copied {
    spec: TensorSpec,
    bytes: Vec<u8>,
}

impl TensorLeaf for Copied {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(self.spec.clone())
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        Ok(Box::new(self.bytes.clone()))
    }

    fn copy_to(&self, _spec: &TensorSpec, target: &mut [u8]) -> Result<(), BoxError> {
        target.copy_from_slice(&self.bytes);
        Ok(())
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        Err("it is a copy".into())
    }
}

/// A recorded value.
struct Fixed(Json);

impl ValueLeaf for Fixed {
    fn save(&self) -> Result<Json, BoxError> {
        Ok(self.0.clone())
    }

    fn load(&self, _saved: &Json) -> Result<ValueApply, BoxError> {
        Err("it is a copy".into())
    }
}
