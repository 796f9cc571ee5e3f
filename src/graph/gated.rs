//! What shows whether a writer of this crate has changed tensors while they were read: the values that change together with
//! them, such as an optimizer's number of steps, and counts of other changes.

use super::gate::Guarded;
use super::leaf::ValueLeaf;
use super::node::Node;
use super::walk::{Leaf, LeafObject, Walked, walk};
use crate::error::{Error, Result};
use crate::name;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The values of objects with a gate, and their counts of changes.
#[derive(Clone, Default)]
pub(crate) struct Gated {
    values: Vec<(String, Arc<dyn ValueLeaf>)>,
    changes: Vec<(String, Arc<AtomicU64>)>,
}

/// What a [`Gated`] showed at one moment.
#[derive(Clone, Default)]
pub(crate) struct Moment {
    /// The values, by key.
    pub values: BTreeMap<String, Json>,
    changes: Vec<u64>,
}

/// Returns the error of a save or copy during which a writer on another thread changed the object or value `key`.
pub(crate) fn changed_meanwhile(key: &str) -> Error {
    let reason = "a step on another thread changed it while the state was being copied: nothing was saved. Call saves \
                  and steps on one thread, or hold a lock around each";
    Error::object(key, reason)
}

impl Walked {
    /// Returns what is [guarded](super::Collection::guarded), with the keys of the collections.
    pub(crate) fn guarded(&self) -> Vec<(String, Guarded)> {
        let all = self.collections.iter().zip(&self.collection_keys);
        all.filter_map(|(collection, key)| Some((key.clone(), collection.guarded()?))).collect()
    }
}

impl Gated {
    /// Returns what shows changes of `guarded` tensors, among these leaves.
    pub(crate) fn among(guarded: &[(String, Guarded)], leaves: &[Leaf]) -> Gated {
        let mut above = HashSet::new();
        for (key, guarded) in guarded {
            above.insert(key.clone());
            if let Some((object, _)) = key.rsplit_once('/') {
                above.extend(guarded.values_beside.iter().map(|value| name::join(object, value)));
            }
        }
        let is_gated = |key: &str| {
            let ends = key.match_indices('/').map(|(end, _)| end).chain([key.len()]);
            ends.map(|end| &key[..end]).any(|part| above.contains(part))
        };
        let values = leaves.iter().filter_map(|leaf| match &leaf.object {
            LeafObject::Value(value) if is_gated(&leaf.key) => Some((leaf.key.clone(), value.clone())),
            _ => None,
        });
        let changes = guarded.iter().filter_map(|(key, guarded)| Some((key.clone(), guarded.changes.clone()?)));
        Gated { values: values.collect(), changes: changes.collect() }
    }

    /// Returns what shows changes of the guarded tensors of these objects.
    pub(crate) fn of(objects: &[(String, Node)]) -> Result<Gated> {
        let walked = walk(objects)?;
        Ok(Gated::among(&walked.guarded(), &walked.leaves))
    }

    /// Returns the present moment. Tensors are read afterwards.
    pub(crate) fn now(&self) -> Result<Moment> {
        let changes = self.changes.iter().map(|(_, count)| count.load(Ordering::SeqCst)).collect();
        Ok(Moment { values: self.values()?, changes })
    }

    /// Returns the key of an object, or of its value, that has changed since that moment. Tensors were read before.
    pub(crate) fn changed_since(&self, then: &Moment) -> Result<Option<String>> {
        let values = self.values()?;
        if let Some((key, _)) = values.into_iter().find(|(key, value)| then.values.get(key) != Some(value)) {
            return Ok(Some(key));
        }
        let mut counts = self.changes.iter().zip(&then.changes);
        Ok(counts.find(|((_, count), then)| count.load(Ordering::SeqCst) != **then).map(|((key, _), _)| key.clone()))
    }

    fn values(&self) -> Result<BTreeMap<String, Json>> {
        let saved = |(key, leaf): &(String, Arc<dyn ValueLeaf>)| {
            let value = leaf.save().map_err(|reason| Error::object(key, reason))?;
            Ok((key.clone(), value))
        };
        self.values.iter().map(saved).collect()
    }
}
