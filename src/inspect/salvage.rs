//! The intact components of a damaged checkpoint.

use super::lossy;
use super::problem::Problem;
use crate::convert::{Format, convert};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::interop::Ours;
use crate::location::Location;
use crate::repository::Posix;
use crate::source::{Source, TensorSource, VerifiedBy};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// The result of [`salvage`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Salvaged {
    /// The damaged checkpoint.
    #[serde(serialize_with = "lossy")]
    pub from: Location,
    /// The new checkpoint.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The components that are intact, and in the new checkpoint.
    pub components: Vec<String>,
    /// The components that are not, with what is wrong.
    pub lost: BTreeMap<String, Problem>,
}

/// Writes every component of a damaged checkpoint that is intact, with all its tensors and values, as a new checkpoint at
/// `to`. The manifest must be readable. Everything is verified; the damaged checkpoint is not changed.
///
/// The new checkpoint has no step, no metrics and no place in a run: restore it by its path, and allow what is missing.
///
/// # Errors
/// [`Error::Damaged`] if the manifest cannot be read, or if no component is intact; [`Error::AlreadyExists`] if there is
/// something at `to`; [`Error::Locked`] while a manager writes into that directory; [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// let salvaged = inspect::salvage(&path, dir.join("salvaged"))?;
/// assert_eq!(salvaged.components, ["step"]);
/// # Ok(())
/// # }
/// ```
pub fn salvage(from: impl Into<Location>, to: impl Into<Location>) -> Result<Salvaged> {
    let (from, to) = (from.into(), to.into());
    let (source, problems) = Source::open_what_is_whole(&Posix::default(), &from)?;
    let mut lost = BTreeMap::new();
    let mut buffer = Vec::new();
    let of = |key: &str| key.split('/').next().unwrap_or(key).to_string();
    for (key, record) in &source.manifest.tensors {
        let component = of(key);
        if lost.contains_key(&component) {
            continue;
        }
        let missing = record.pieces.iter().find(|piece| !source.has_file(&piece.file));
        let error = match missing {
            Some(piece) => {
                let file = from.join(&piece.file);
                let known = problems.iter().find(|error| Problem::of(error).path.as_ref() == Some(&file));
                Some(known.map_or_else(|| Problem::of(&Error::damaged(&file, "the file is missing")), Problem::of))
            }
            None => source.verify_tensor(key, record, &mut buffer).err().as_ref().map(Problem::of),
        };
        if let Some(problem) = error {
            lost.insert(component, problem);
        }
    }
    let keys = source.manifest.tensors.keys().chain(source.manifest.values.keys());
    let mut components: Vec<String> =
        keys.map(|key| of(key)).filter(|component| !lost.contains_key(component)).collect();
    components.sort();
    components.dedup();
    if components.is_empty() {
        return Err(Error::damaged(&from, "none of its components is intact"));
    }
    let ours = Ours::new(source);
    let is_intact = |key: &String| !lost.contains_key(&of(key));
    let tensors = ours.tensors().iter().filter(|(key, _)| is_intact(key));
    let specs = tensors.map(|(key, spec)| (key.clone(), spec.clone())).collect();
    let values = ours.values().iter().filter(|(key, _)| is_intact(key));
    let values = values.map(|(key, value)| (key.clone(), value.clone())).collect();
    convert(&Intact { ours: &ours, specs, values }, &to, Format::Checkpoint)?;
    Ok(Salvaged { from, path: to, components, lost })
}

/// The intact part of a checkpoint.
#[derive(Debug)]
struct Intact<'a> {
    ours: &'a Ours,
    specs: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, Value>,
}

impl Intact<'_> {
    fn check(&self, key: &str) -> Result<()> {
        let known = self.specs.contains_key(key);
        if known { Ok(()) } else { Err(Error::object(key, "it is not intact")) }
    }
}

impl TensorSource for Intact<'_> {
    fn format(&self) -> &'static str {
        self.ours.format()
    }

    fn path(&self) -> &Location {
        self.ours.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn first_alias<'k>(&'k self, key: &'k str) -> &'k str {
        let first = self.ours.first_alias(key);
        // The first of those that are left, in sorted order.
        let is_same = |other: &&String| self.ours.first_alias(other) == first;
        if self.specs.contains_key(first) { first } else { self.specs.keys().find(is_same).map_or(key, String::as_str) }
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.ours.verified_by(key)
    }

    fn digest(&self, key: &str) -> Option<Digest> {
        self.ours.digest(key)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.check(key)?;
        self.ours.read(key, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.check(key)?;
        self.ours.read_range(key, range, target)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.check(key)?;
        self.ours.verify_tensor(key)
    }

    fn verify(&self) -> Result<()> {
        self.specs.keys().try_for_each(|key| self.ours.verify_tensor(key))
    }
}
