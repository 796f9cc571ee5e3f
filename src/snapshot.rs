//! A snapshot of the state in memory.

#[cfg(feature = "huggingface")]
use crate::dtype::Dtype;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::graph::{Gated, LOST, LeafObject, Node, changed_meanwhile, walk};
use crate::location::Location;
use crate::parallel;
use crate::source::{TensorSource, VerifiedBy, room};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{LazyLock, OnceLock};

/// The state of the tracked objects at one moment, in memory. Created by
/// [`Checkpoint::snapshot`](crate::Checkpoint::snapshot) and restored by
/// [`Checkpoint::rollback`](crate::Checkpoint::rollback), as often as needed.
#[must_use = "a snapshot takes as much memory as the state"]
pub struct Snapshot {
    tensors: BTreeMap<String, TensorSpec>,
    bytes: BTreeMap<String, Vec<u8>>,
    /// The keys of variables that were trained.
    trained: BTreeSet<String>,
    /// The keys that share the memory of another one.
    aliases: BTreeMap<String, String>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
    pub(crate) save_counter: u64,
    pub(crate) follows: Option<Follows>,
    pub(crate) earlier: Vec<Follows>,
}

impl Snapshot {
    /// Copies the state of these objects. `gated` shows changes by writers on other threads.
    pub(crate) fn of(objects: &[(String, Node)], gated: &Gated, threads: usize) -> Result<Snapshot> {
        let moment = gated.now()?;
        let snapshot = Snapshot::copy(objects, threads)?;
        gated.changed_since(&moment)?.map_or(Ok(snapshot), |key| Err(changed_meanwhile(&key)))
    }

    fn copy(objects: &[(String, Node)], threads: usize) -> Result<Snapshot> {
        let mut snapshot = Snapshot {
            tensors: BTreeMap::new(),
            bytes: BTreeMap::new(),
            trained: BTreeSet::new(),
            aliases: BTreeMap::new(),
            values: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            save_counter: 0,
            follows: None,
            earlier: Vec::new(),
        };
        let (mut seen, mut leaves) = (HashMap::new(), Vec::new());
        for leaf in walk(objects)?.leaves {
            let failed = |reason| Error::object(&leaf.key, reason);
            match leaf.object {
                LeafObject::Value(value) => {
                    snapshot.values.insert(leaf.key.clone(), value.save().map_err(failed)?);
                }
                LeafObject::Tensor(tensor) => {
                    let spec = tensor.spec().map_err(failed)?;
                    if tensor.is_lost() {
                        return Err(Error::object(&leaf.key, LOST));
                    }
                    snapshot.tensors.insert(leaf.key.clone(), spec.clone());
                    if tensor.requires_grad() == Some(true) {
                        snapshot.trained.insert(leaf.key.clone());
                    }
                    let first =
                        tensor.identity().map(|identity| seen.entry(identity).or_insert(leaf.key.clone()).clone());
                    match first.filter(|first| *first != leaf.key) {
                        Some(first) => drop(snapshot.aliases.insert(leaf.key, first)),
                        None => leaves.push((leaf.key, spec, tensor, OnceLock::new())),
                    }
                }
            }
        }
        let bytes = leaves.iter().filter_map(|(_, spec, ..)| spec.bytes()).fold(0, u64::saturating_add);
        parallel::for_each(
            &leaves,
            parallel::worth(threads, bytes),
            || (),
            |(key, spec, tensor, copy), ()| {
                let mut bytes = room(key, spec.bytes())?;
                tensor.copy_to(spec, &mut bytes).map_err(|reason| Error::object(key, reason))?;
                let _ = copy.set(bytes);
                Ok(())
            },
        )?;
        let copies = leaves.into_iter().filter_map(|(key, _, _, copy)| Some((key, copy.into_inner()?)));
        snapshot.bytes = copies.collect();
        Ok(snapshot)
    }

    /// Returns the size of the tensors in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Converts the tensors of floating-point types to one of them.
    #[cfg(feature = "huggingface")]
    pub(crate) fn cast_floats(&mut self, to: Dtype) -> Result<()> {
        for (key, spec) in &mut self.tensors {
            if ![Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16].contains(&spec.dtype) || spec.dtype == to {
                continue;
            }
            if let Some(bytes) = self.bytes.get_mut(key) {
                *bytes = crate::map::cast(bytes, spec.dtype, to).map_err(|reason| Error::object(key, reason))?;
            }
            spec.dtype = to;
        }
        Ok(())
    }

    /// The only tensor.
    #[cfg(feature = "huggingface")]
    pub(crate) fn only(&self, key: &str) -> Snapshot {
        let (tensors, bytes) = (self.tensors.get(key), self.bytes.get(self.first_alias(key)));
        let entry = |key: &str| key.to_string();
        Snapshot {
            tensors: tensors.map(|spec| (entry(key), spec.clone())).into_iter().collect(),
            bytes: bytes.map(|bytes| (entry(key), bytes.clone())).into_iter().collect(),
            trained: BTreeSet::new(),
            aliases: BTreeMap::new(),
            values: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            save_counter: self.save_counter,
            follows: None,
            earlier: Vec::new(),
        }
    }

    fn elements(&self, key: &str) -> Result<(&TensorSpec, &[u8])> {
        let found = self.tensors.get(key).zip(self.bytes.get(self.first_alias(key)));
        let (spec, bytes) = found.ok_or_else(|| Error::object(key, "the snapshot has no such tensor"))?;
        Ok((spec, bytes))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("tensors", &self.tensors.len())
            .field("values", &self.values.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl TensorSource for Snapshot {
    fn format(&self) -> &'static str {
        "snapshot"
    }

    fn path(&self) -> &Location {
        static PATH: LazyLock<Location> = LazyLock::new(|| "snapshot".into());
        &PATH
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.tensors
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.values.get(key).cloned()
    }

    fn was_trained(&self, key: &str) -> bool {
        self.trained.contains(key)
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.aliases.get(key).map_or(key, String::as_str)
    }

    fn verified_by(&self, _key: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let (_, bytes) = self.elements(key)?;
        if bytes.len() != target.len() {
            return Err(Error::object(key, "its size differs from that in the snapshot"));
        }
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let (spec, bytes) = self.elements(key)?;
        let at = |element: u64| usize::try_from(element.saturating_mul(spec.dtype.size() as u64)).unwrap_or(usize::MAX);
        let part = bytes.get(at(range.start)..at(range.end)).filter(|part| part.len() == target.len());
        let part = part.ok_or_else(|| Error::object(key, "the snapshot does not have these elements"))?;
        target.copy_from_slice(part);
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }
}
