//! The intact components of a damaged checkpoint.

use super::lossy;
use super::problem::Problem;
use crate::convert::{Format, convert};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::interop::Ours;
use crate::location::Location;
use crate::name;
use crate::repository::Posix;
use crate::source::{Source, SourceAttributes, TensorSource, VerifiedBy};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
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
    /// The intact components, which are in the new checkpoint.
    pub components: Vec<String>,
    /// The damaged components, with their errors.
    pub lost: BTreeMap<String, Problem>,
}

/// Writes every component of a damaged checkpoint that is intact, with all its tensors and values, as a new checkpoint
/// at `to`. The manifest must be readable. Everything is verified; the damaged checkpoint is not changed.
///
/// The new checkpoint has no step, no metrics and no place in a run: restore it by its path, and allow what is missing.
///
/// # Errors
/// [`Error::Damaged`] if the manifest cannot be read, or if no component is intact; [`Error::AlreadyExists`] if there
/// is something at `to`; [`Error::Locked`] while a manager writes into that directory; [`Error::Io`].
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
    // What is wrong with the bytes of a tensor, by its first piece: tensors that share that share all.
    let mut verified: HashMap<(&str, &str), Option<Problem>> = HashMap::new();
    let mut buffer = Vec::new();
    let of = |key: &str| name::component(key).to_string();
    for (key, record) in &source.manifest.tensors {
        let component = of(key);
        if lost.contains_key(&component) {
            continue;
        }
        let first = record.pieces.first().map(|piece| (piece.file.as_str(), piece.name.as_str()));
        if let Some(problem) = first.and_then(|first| verified.get(&first)) {
            lost.extend(problem.clone().map(|problem| (component, problem)));
            continue;
        }
        let missing = record.pieces.iter().find(|piece| !source.has_file(&piece.file));
        let problem = match missing {
            Some(piece) => {
                let file = from.join(&piece.file);
                let known = problems.iter().find(|error| Problem::of(error).path.as_ref() == Some(&file));
                Some(known.map_or_else(|| Problem::of(&Error::damaged(&file, "the file is missing")), Problem::of))
            }
            None => source.verify_tensor(key, record, &mut buffer).err().as_ref().map(Problem::of),
        };
        verified.extend(first.map(|first| (first, problem.clone())));
        lost.extend(problem.map(|problem| (component, problem)));
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
    let intact = Intact::of(&ours, &|key| !lost.contains_key(&of(key)));
    convert(&intact, &to, Format::Checkpoint)?;
    Ok(Salvaged { from, path: to, components, lost })
}

/// The intact part of a checkpoint.
#[derive(Debug)]
struct Intact<'a> {
    ours: &'a dyn TensorSource,
    specs: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, Value>,
    /// For a first key that is not intact, the first one that is, in sorted order, of the same elements.
    firsts: BTreeMap<String, String>,
}

impl Intact<'_> {
    fn of<'a>(ours: &'a dyn TensorSource, is_intact: &dyn Fn(&str) -> bool) -> Intact<'a> {
        let tensors = ours.tensors().iter().filter(|(key, _)| is_intact(key));
        let specs: BTreeMap<String, TensorSpec> = tensors.map(|(key, spec)| (key.clone(), spec.clone())).collect();
        let values = ours.values().iter().filter(|(key, _)| is_intact(key));
        let values = values.map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut firsts = BTreeMap::new();
        for key in specs.keys() {
            let first = ours.first_alias(key);
            if !specs.contains_key(first) {
                firsts.entry(first.to_string()).or_insert_with(|| key.clone());
            }
        }
        Intact { ours, specs, values, firsts }
    }

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
        self.firsts.get(first).map_or(first, String::as_str)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        self.ours.requires_grad(key)
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        // The rest would make it look like the checkpoint that it was.
        Ok(SourceAttributes { unclean: self.ours.attributes()?.unclean, ..SourceAttributes::default() })
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

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.check(key)?;
        self.ours.ensure_readable(key)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.check(key)?;
        self.ours.verify_tensor(key)
    }

    fn verify(&self) -> Result<()> {
        let mut stored = self.specs.keys().filter(|key| self.first_alias(key) == key.as_str());
        stored.try_for_each(|key| self.ours.verify_tensor(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Tensors that are all the same, and how often it was asked.
    #[derive(Debug)]
    struct Same {
        path: Location,
        specs: BTreeMap<String, TensorSpec>,
        values: BTreeMap<String, Value>,
        asked: AtomicUsize,
    }

    impl TensorSource for Same {
        fn format(&self) -> &'static str {
            "same"
        }

        fn path(&self) -> &Location {
            &self.path
        }

        fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
            &self.specs
        }

        fn values(&self) -> &BTreeMap<String, Value> {
            &self.values
        }

        fn first_alias<'k>(&'k self, _: &'k str) -> &'k str {
            self.asked.fetch_add(1, Relaxed);
            "a/0"
        }

        fn verified_by(&self, _: &str) -> VerifiedBy {
            VerifiedBy::Nothing
        }

        fn read(&self, key: &str, _: &mut [u8]) -> Result<()> {
            Err(Error::object(key, "it is not read"))
        }

        fn read_range(&self, key: &str, _: Range<u64>, target: &mut [u8]) -> Result<()> {
            self.read(key, target)
        }

        fn verify(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_of_many_that_are_the_same_is_found_once() {
        let count = 2_000;
        let key = |n: usize| format!("{}/{n}", if n == 0 { "a" } else { "b" });
        let specs = (0..count).map(|n| (key(n), TensorSpec::new(Dtype::F32, vec![1]))).collect();
        let same = Same { path: "same".into(), specs, values: BTreeMap::new(), asked: AtomicUsize::new(0) };
        let whole = Intact::of(&same, &|_| true);
        assert!(whole.tensors().keys().all(|key| whole.first_alias(key) == "a/0"));
        same.asked.store(0, Relaxed);
        let intact = Intact::of(&same, &|key| !key.starts_with("a/"));
        assert!(intact.tensors().keys().all(|key| intact.first_alias(key) == "b/1"));
        let asked = same.asked.load(Relaxed);
        assert!(asked <= 2 * count, "{asked}");
    }
}
