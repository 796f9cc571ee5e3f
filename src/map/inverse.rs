//! The inverse of a map: tensors of ours with the names and layouts of the source that the map is made for.

use super::NameMap;
use super::bound::Bound;
use super::mapped;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name;
use crate::source::{TensorSource, VerifiedBy, check_range, check_target, room};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Tensors of ours with the names and layouts of another source: see [`NameMap::apply_inverse`].
#[derive(Debug)]
pub struct Inverse<'a> {
    ours: &'a dyn TensorSource,
    specs: BTreeMap<String, TensorSpec>,
    /// Of each tensor, those of ours that hold its elements, and where.
    parts: BTreeMap<String, Vec<(String, Arc<Bound>)>>,
    places: Places,
    left_out: BTreeSet<String>,
}

impl NameMap {
    /// Applies the map backwards: gives tensors of ours the names and layouts that they have in `template`, the source
    /// that the map is made for, such as the Keras file whose layers were taken over. No element of `template` is read.
    /// The result has the tensors of `template` that the map uses, under the names by which it uses them; write it with
    /// [`tensorflow::write`](crate::interop::tensorflow::write()) or [`pytorch::write`](crate::interop::pytorch::write()).
    ///
    /// The map must move each element of such a tensor somewhere, unchanged: `transpose`, `reshape`, `slice`, `blocks`,
    /// `concat`, `stack`, and padding. All presets do, with one condition: `bias_hh` of
    /// [`Preset::KerasLstm`](super::Preset::KerasLstm), for which Keras has no place, must be zero or missing. Add it to
    /// `bias_ih` before: Keras has their sum.
    ///
    /// # Errors
    /// Those of [`apply`](NameMap::apply); [`Error::Object`] for a tensor whose elements are not all in tensors of ours, or
    /// are converted or computed, and where `ours` lacks a tensor or has another dtype or shape.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::interop::{self, tensorflow};
    /// use tch_checkpoint::map::{NameMap, Preset};
    /// let theirs = tensorflow::Bundle::open("keras/ckpt-5")?;
    /// let map = NameMap::new().layer("model/encoder.gru", Preset::KerasGru, "encoder/rnn").only(["model"]);
    /// let ours = interop::open("checkpoints/run/ckpt-900")?;
    /// let trained = map.apply_inverse(&theirs, &*ours)?;
    /// tensorflow::write(&trained, "export/ckpt-900", &tensorflow::WriteOptions::default())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_inverse<'a>(&self, template: &dyn TensorSource, ours: &'a dyn TensorSource) -> Result<Inverse<'a>> {
        let places = Places::of(template);
        let by_value = mapped::apply(&self.statements, template)?.into_tensors();
        for (key, wanted) in by_value.iter().filter(|(key, wanted)| !wanted.is_zeros() && wanted.plain() != Some(key)) {
            let movable = wanted.moves_elements().and_then(|()| wanted.converts_nothing());
            movable.map_err(|reason| Error::object(key, reason))?;
        }
        // The same map of the elements' places.
        let tensors = mapped::apply(&self.statements, &places)?.into_tensors();
        let mut inverse = Inverse {
            ours,
            specs: BTreeMap::new(),
            parts: BTreeMap::new(),
            places,
            left_out: template.tensors().keys().cloned().collect(),
        };
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (key, bound) in tensors {
            let wanted = &by_value[&key];
            if wanted.is_zeros() {
                inverse.check_zeros(&key)?;
                continue;
            }
            // What the map does not name stays what it is.
            if wanted.plain() == Some(&key) && !ours.tensors().contains_key(&key) {
                continue;
            }
            inverse.check_ours(&key, &wanted.spec)?;
            let mut from = BTreeSet::new();
            bound.keys(&mut from);
            for from in from {
                let name =
                    names.entry(template.first_alias(from).to_string()).or_insert_with(|| from.to_string()).clone();
                inverse.specs.insert(name.clone(), template.tensors()[from].clone());
                inverse.parts.entry(name).or_default().push((key.clone(), bound.clone()));
            }
        }
        inverse.left_out.retain(|key| !names.contains_key(template.first_alias(key)));
        for (key, spec) in &inverse.specs {
            let elements = spec.bytes().unwrap_or_default() / spec.dtype.size() as u64;
            let mut found: Vec<Option<&str>> = vec![None; elements as usize];
            for (part, bound) in &inverse.parts[key] {
                let first = ours.first_alias(part);
                let mut seen = vec![false; elements as usize];
                for place in inverse.places_of(key, bound)?.into_iter().flatten() {
                    // Tied tensors are the same; of two others, either could be written.
                    let is_other = found[place].replace(first).is_some_and(|other| other != first);
                    if is_other || std::mem::replace(&mut seen[place], true) {
                        return Err(Error::object(key, format!("the map takes its element {place} more than once")));
                    }
                }
            }
            if let Some(missing) = found.iter().position(Option::is_none) {
                let reason = format!("the map drops its element {missing}: there is nothing to write in its place");
                return Err(Error::object(key, reason));
            }
        }
        Ok(inverse)
    }
}

impl Inverse<'_> {
    /// Returns the keys of the template that the map does not use, and that are not written.
    pub fn left_out(&self) -> &BTreeSet<String> {
        &self.left_out
    }

    fn check_ours(&self, key: &str, wanted: &TensorSpec) -> Result<()> {
        match self.ours.tensors().get(key) {
            Some(spec) if spec == wanted => Ok(()),
            Some(spec) => Err(Error::object(key, format!("the map makes it {wanted}, it is {spec} in ours"))),
            None => {
                let near = name::nearest_hint(key, self.ours.tensors().keys().map(String::as_str));
                Err(Error::object(key, format!("{} has no such tensor{near}", self.ours.path().display())))
            }
        }
    }

    /// Checks that nothing is lost with a tensor for which the template has no place.
    fn check_zeros(&self, key: &str) -> Result<()> {
        let Some(spec) = self.ours.tensors().get(key) else { return Ok(()) };
        let mut bytes = room(key, spec.bytes())?;
        self.ours.read(key, &mut bytes)?;
        match bytes.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(Error::object(
                key,
                "the map makes it of zeros, and it is not zero: the other tool has no place for it; add it to another \
                 tensor, or leave it out",
            )),
        }
    }

    /// Returns for each element of a tensor of ours its place in the tensor `key`, if it is one of its elements.
    fn places_of(&self, key: &str, bound: &Bound) -> Result<Vec<Option<usize>>> {
        let bytes = bound.read(key, &PlacesIn { all: &self.places, tensor: key })?;
        // 0 is what other tensors and padding have.
        let place = |bytes: &[u8; 8]| usize::try_from(i64::from_le_bytes(*bytes)).ok()?.checked_sub(1);
        Ok(bytes.as_chunks().0.iter().map(place).collect())
    }
}

impl TensorSource for Inverse<'_> {
    fn format(&self) -> &'static str {
        self.ours.format()
    }

    fn path(&self) -> &Location {
        self.ours.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        let parts = self.parts.get(key).map(Vec::as_slice).unwrap_or_default();
        parts.iter().map(|(part, _)| self.ours.verified_by(part)).min().unwrap_or(VerifiedBy::Nothing)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let unknown = || Error::object(key, "the map uses no tensor of this name");
        let (spec, parts) = self.specs.get(key).zip(self.parts.get(key)).ok_or_else(unknown)?;
        check_target(key, spec, target.len())?;
        let size = spec.dtype.size();
        for (part, bound) in parts {
            let mut bytes = room(part, self.ours.tensors()[part].bytes())?;
            self.ours.read(part, &mut bytes)?;
            for (element, place) in bytes.chunks_exact(size).zip(self.places_of(key, bound)?) {
                if let Some(place) = place {
                    target[place * size..(place + 1) * size].copy_from_slice(element);
                }
            }
        }
        Ok(())
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let spec = self.specs.get(key).ok_or_else(|| Error::object(key, "the map uses no tensor of this name"))?;
        check_range(key, spec, &range, target.len())?;
        let mut all = room(key, spec.bytes())?;
        self.read(key, &mut all)?;
        let size = spec.dtype.size() as u64;
        target.copy_from_slice(&all[(range.start * size) as usize..(range.end * size) as usize]);
        Ok(())
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        let parts = self.parts.get(key).map(Vec::as_slice).unwrap_or_default();
        parts.iter().try_for_each(|(part, _)| self.ours.verify_tensor(part))
    }

    fn verify(&self) -> Result<()> {
        self.ours.verify()
    }
}

/// Of every tensor of a source, the places of its elements instead of the elements: 1, 2, 3 and so on.
#[derive(Debug)]
struct Places {
    path: Location,
    specs: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, serde_json::Value>,
    unreadable: BTreeMap<String, String>,
    first: BTreeMap<String, String>,
}

impl Places {
    fn of(source: &dyn TensorSource) -> Places {
        let place = |spec: &TensorSpec| TensorSpec::new(Dtype::I64, spec.shape.clone());
        Places {
            path: source.path().clone(),
            specs: source.tensors().iter().map(|(key, spec)| (key.clone(), place(spec))).collect(),
            values: source.values().clone(),
            unreadable: source.unreadable().clone(),
            first: source.tensors().keys().map(|key| (key.clone(), source.first_alias(key).to_string())).collect(),
        }
    }
}

impl TensorSource for Places {
    fn format(&self) -> &'static str {
        "places"
    }

    fn path(&self) -> &Location {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn values(&self) -> &BTreeMap<String, serde_json::Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.first.get(key).map_or(key, String::as_str)
    }

    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }

    fn read(&self, _: &str, target: &mut [u8]) -> Result<()> {
        for (place, bytes) in (1i64..).zip(target.as_chunks_mut().0) {
            *bytes = place.to_le_bytes();
        }
        Ok(())
    }

    fn read_range(&self, _: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        for (place, bytes) in (range.start as i64 + 1..).zip(target.as_chunks_mut().0) {
            *bytes = place.to_le_bytes();
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }
}

/// The places of one tensor, 0 for the elements of all others.
#[derive(Debug)]
struct PlacesIn<'p> {
    all: &'p Places,
    tensor: &'p str,
}

impl TensorSource for PlacesIn<'_> {
    fn format(&self) -> &'static str {
        self.all.format()
    }

    fn path(&self) -> &Location {
        self.all.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        self.all.tensors()
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.all.verified_by(key)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        if self.all.first_alias(key) == self.all.first_alias(self.tensor) {
            return self.all.read(key, target);
        }
        target.fill(0);
        Ok(())
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        if self.all.first_alias(key) == self.all.first_alias(self.tensor) {
            return self.all.read_range(key, range, target);
        }
        target.fill(0);
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }
}
