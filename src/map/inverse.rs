//! The inverse of a map: our tensors with the names and layouts of the source for which the map is made.

use super::NameMap;
use super::bound::Bound;
use super::computed::Computed;
use super::mapped;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::location::Location;
use crate::source::{TensorSource, VerifiedBy, check, check_range, check_target, no_such_tensor, room};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Our tensors with the names and layouts of another source; see [`NameMap::apply_inverse`].
#[derive(Debug)]
pub struct Inverse<'a> {
    ours: &'a dyn TensorSource,
    specs: BTreeMap<String, TensorSpec>,
    /// Of each tensor, those of ours that hold its elements.
    parts: BTreeMap<String, Vec<Part>>,
    template: Template,
    left_out: BTreeSet<String>,
    computed: Computed,
}

/// A tensor of ours.
#[derive(Debug)]
struct Part {
    key: String,
    /// The map, of the places of elements: which element of the template each of its elements is.
    places: Arc<Bound>,
}

impl NameMap {
    /// Applies the map backwards: gives our tensors the names and layouts that they have in `template`, the source for
    /// which the map is made, such as the Keras file whose layers were imported. No element of `template` is read. The
    /// result has the tensors of `template` that the map uses, under the names by which it uses them; write it with
    /// [`tensorflow::write`](crate::interop::tensorflow::write()) or
    /// [`pytorch::write`](crate::interop::pytorch::write()).
    ///
    /// The map must move each element of such a tensor somewhere, unchanged: `transpose`, `reshape`, `slice`, `blocks`,
    /// `concat`, `stack`, and padding. All presets do, with one condition: `bias_hh` of
    /// [`Preset::KerasLstm`](super::Preset::KerasLstm), which Keras lacks, must be zero or missing. If it is not, add
    /// it to `bias_ih` first: Keras has their sum.
    ///
    /// For each tensor of `template`, the places of all elements of each of our tensors that are made of it are
    /// computed, here and when it is read. Where `concat` or `stack` makes one of ours of many tensors, the cost is
    /// their number times the size of ours.
    ///
    /// # Errors
    /// Those of [`apply`](NameMap::apply); [`Error::Object`] for a tensor whose elements are not all in our tensors, or
    /// are converted or computed, and if `ours` lacks a tensor or has another dtype or shape.
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
        let tensors = mapped::apply(&self.statements, template)?.into_tensors();
        let mut inverse = Inverse {
            ours,
            specs: BTreeMap::new(),
            parts: BTreeMap::new(),
            template: Template::of(template),
            left_out: template.tensors().keys().cloned().collect(),
            computed: Computed::default(),
        };
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (key, bound) in tensors {
            if bound.is_zeros() {
                inverse.check_zeros(&key)?;
                continue;
            }
            // Tensors that the map does not name are unchanged.
            if bound.plain() == Some(&key) && !ours.tensors().contains_key(&key) {
                continue;
            }
            let places = bound.of_places().map_err(|reason| Error::object(&key, reason))?;
            inverse.check_ours(&key, &bound.spec)?;
            let mut from = BTreeSet::new();
            bound.keys(&mut from);
            let mut used = BTreeSet::new();
            for from in from {
                let name =
                    names.entry(template.first_alias(from).to_string()).or_insert_with(|| from.to_string()).clone();
                if let Some(spec) = template.tensors().get(&name) {
                    inverse.specs.insert(name.clone(), spec.clone());
                    used.insert(name);
                }
            }
            for name in used {
                inverse.parts.entry(name).or_default().push(Part { key: key.clone(), places: places.clone() });
            }
        }
        inverse.left_out.retain(|key| !names.contains_key(template.first_alias(key)));
        for (key, spec) in &inverse.specs {
            inverse.check_places(key, spec)?;
        }
        Ok(inverse)
    }
}

impl Inverse<'_> {
    /// Returns the keys of the template that the map does not use, and that are not written.
    pub fn left_out(&self) -> &BTreeSet<String> {
        &self.left_out
    }

    /// Checks that each element of a tensor is in ours, at one place.
    fn check_places(&self, key: &str, spec: &TensorSpec) -> Result<()> {
        let failed = |reason: String| Err(Error::object(key, reason));
        let parts = self.parts_of(key)?;
        if let [part] = parts
            && part.places.plain().is_some()
        {
            return Ok(());
        }
        let elements = spec.bytes().map(|bytes| bytes / spec.dtype.size() as u64);
        // Not 0 for the elements that were found.
        let mut found = room(key, elements)?;
        let mut seen = BTreeSet::new();
        for part in parts {
            let bytes = self.places_of(key, part)?;
            // Tied tensors whose elements have the same places are the same; of two others, either could be written.
            if !seen.insert((self.ours.first_alias(&part.key), Digest::of(&bytes))) {
                continue;
            }
            for place in places(&bytes).flatten() {
                let Some(found) = found.get_mut(place) else {
                    return failed(format!("the map takes its element {place}, and it is {spec}"));
                };
                if std::mem::replace(found, 1) != 0 {
                    return failed(format!("the map takes its element {place} more than once"));
                }
            }
        }
        match found.iter().position(|found| *found == 0) {
            Some(missing) => {
                failed(format!("the map drops its element {missing}: there is nothing to write in its place"))
            }
            None => Ok(()),
        }
    }

    fn check_ours(&self, key: &str, wanted: &TensorSpec) -> Result<()> {
        match self.ours.tensors().get(key) {
            Some(spec) if spec == wanted => Ok(()),
            Some(spec) => Err(Error::object(key, format!("the map makes it {wanted}, it is {spec} in ours"))),
            None => Err(no_such_tensor(self.ours, key)),
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

    fn spec(&self, key: &str) -> Result<&TensorSpec> {
        self.specs.get(key).ok_or_else(|| unused(key))
    }

    fn parts_of(&self, key: &str) -> Result<&[Part]> {
        self.parts.get(key).map(Vec::as_slice).ok_or_else(|| unused(key))
    }

    /// Returns for each element of a part its place in the tensor `key`, for [`places`].
    fn places_of(&self, key: &str, part: &Part) -> Result<Vec<u8>> {
        part.places.read(key, &PlacesOf { template: &self.template, tensor: key })
    }

    /// Returns a tensor of ours that is the tensor `key`, if there is one.
    fn same(&self, key: &str) -> Option<&str> {
        let parts = self.parts.get(key)?;
        parts.iter().find(|part| part.places.plain().is_some()).map(|part| part.key.as_str())
    }

    /// Fills `target` with all elements of the tensor `key`.
    fn gather(&self, key: &str, spec: &TensorSpec, target: &mut [u8]) -> Result<()> {
        let size = spec.dtype.size();
        for part in self.parts_of(key)? {
            let mut bytes = room(&part.key, self.ours.tensors().get(&part.key).and_then(TensorSpec::bytes))?;
            self.ours.read(&part.key, &mut bytes)?;
            for (element, place) in bytes.chunks_exact(size).zip(places(&self.places_of(key, part)?)) {
                if let Some(to) = place.and_then(|place| target.get_mut(place * size..(place + 1) * size)) {
                    to.copy_from_slice(element);
                }
            }
        }
        Ok(())
    }
}

fn unused(key: &str) -> Error {
    Error::object(key, "the map uses no tensor of this name")
}

/// Returns the place of each element, or `None` for one of another tensor and for padding, which have 0.
fn places(bytes: &[u8]) -> impl Iterator<Item = Option<usize>> {
    let place = |bytes: &[u8; 8]| usize::try_from(i64::from_le_bytes(*bytes)).ok()?.checked_sub(1);
    bytes.as_chunks().0.iter().map(place)
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
        parts.iter().map(|part| self.ours.verified_by(&part.key)).min().unwrap_or(VerifiedBy::Nothing)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let spec = self.spec(key)?;
        check_target(key, spec, target.len())?;
        if let Some(same) = self.same(key) {
            return self.ours.read(same, target);
        }
        self.gather(key, spec, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let spec = self.spec(key)?;
        check_range(key, spec, &range, target.len())?;
        if let Some(same) = self.same(key) {
            return self.ours.read_range(same, range, target);
        }
        self.computed.read_range(key, spec, range, target, || {
            let mut all = room(key, spec.bytes())?;
            self.gather(key, spec, &mut all)?;
            Ok(all)
        })
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        for part in self.parts_of(key)? {
            if !check(self.ours, &part.key)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.parts_of(key)?.iter().try_for_each(|part| self.ours.verify_tensor(&part.key))
    }

    fn verify(&self) -> Result<()> {
        self.ours.verify()
    }
}

/// What the places are counted in.
#[derive(Debug)]
struct Template {
    path: Location,
    specs: BTreeMap<String, TensorSpec>,
    first: BTreeMap<String, String>,
}

impl Template {
    fn of(source: &dyn TensorSource) -> Template {
        let place = |spec: &TensorSpec| TensorSpec::new(Dtype::I64, spec.shape.clone());
        Template {
            path: source.path().clone(),
            specs: source.tensors().iter().map(|(key, spec)| (key.clone(), place(spec))).collect(),
            first: source.tensors().keys().map(|key| (key.clone(), source.first_alias(key).to_string())).collect(),
        }
    }
}

/// The places of the elements of one tensor, from 1 on, instead of the elements; 0 for the elements of all others.
#[derive(Debug)]
struct PlacesOf<'p> {
    template: &'p Template,
    tensor: &'p str,
}

impl TensorSource for PlacesOf<'_> {
    fn format(&self) -> &'static str {
        "places"
    }

    fn path(&self) -> &Location {
        &self.template.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.template.specs
    }

    fn first_alias<'k>(&'k self, key: &'k str) -> &'k str {
        self.template.first.get(key).map_or(key, String::as_str)
    }

    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Nothing
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.read_range(key, 0..(target.len() / Dtype::I64.size()) as u64, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        if self.first_alias(key) != self.first_alias(self.tensor) {
            target.fill(0);
            return Ok(());
        }
        for (place, bytes) in (range.start as i64 + 1..).zip(target.as_chunks_mut().0) {
            *bytes = place.to_le_bytes();
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }
}
