//! Whether two checkpoints hold the same state, and what differs.

use super::elements::{Comparison, ElementDiff};
use super::reading::{Wanted, fold};
use super::target::{Overview, Target};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::{AssetEntry, Digest, canonical};
use crate::name;
use crate::parallel;
use crate::source::{TensorSource, digest};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// The result of [`diff`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diff<'a> {
    /// Whether the states are equal: bit for bit, or within the tolerance that was given.
    pub equal: bool,
    /// The first checkpoint.
    pub a: Overview,
    /// The second checkpoint.
    pub b: Overview,
    /// What differs: tensors and values by key, then the files of saved models.
    pub differences: Vec<DiffEntry<'a>>,
    /// The metadata that differs, by name. It is not part of the state.
    pub metadata: Vec<MetadataDiff<'a>>,
    /// The number of tensors that are equal in both.
    pub equal_tensors: usize,
    /// The number of values that are equal in both.
    pub equal_values: usize,
    /// The number of tensors that differ by no more than the tolerance. They are not among the differences.
    pub within_tolerance: usize,
}

impl Diff<'_> {
    /// Sorts the differences: tensors whose elements differ come first, by how far they moved
    /// ([`relative_l2`](ElementDiff::relative_l2), unknown ones before all others), then everything else by key.
    pub fn sort_by_change(&mut self) {
        let change = |entry: &DiffEntry<'_>| match (entry.kind, &entry.elements) {
            (DiffKind::Content, Some(elements)) => (0, -elements.relative_l2.unwrap_or(f64::INFINITY)),
            (DiffKind::Content, None) => (0, f64::NEG_INFINITY),
            _ => (1, 0.0),
        };
        self.differences.sort_by(|a, b| {
            let (a, b) = (change(a), change(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
    }
}

/// How [`diff_with`] compares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct DiffOptions {
    tolerance: Option<f64>,
}

impl DiffOptions {
    /// Returns options that compare bits.
    #[must_use]
    pub fn new() -> DiffOptions {
        DiffOptions::default()
    }

    /// Counts tensors of one type and shape as equal if no two elements are further apart than `tolerance`, and all
    /// pairs that differ are finite. Elements are then read whenever digests differ. Defaults to no tolerance.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = Some(tolerance);
        self
    }
}

/// Metadata that differs between two checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetadataDiff<'a> {
    /// The name.
    pub name: &'a str,
    /// What was recorded with the first checkpoint.
    pub a: Option<&'a Value>,
    /// What was recorded with the second checkpoint.
    pub b: Option<&'a Value>,
}

/// A tensor, value or file that differs between two checkpoints.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DiffEntry<'a> {
    /// The key, or the name of the file.
    pub key: &'a str,
    /// How it differs.
    pub kind: DiffKind,
    /// What the first checkpoint has under the key.
    pub a: Option<DiffSide<'a>>,
    /// What the second checkpoint has under the key.
    pub b: Option<DiffSide<'a>>,
    /// How the elements of two tensors of the same type and shape differ. `None` if too many tensors share their bytes
    /// to read each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elements: Option<ElementDiff>,
}

/// How two entries of one key differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiffKind {
    /// Only the first checkpoint has it.
    OnlyInA,
    /// Only the second checkpoint has it.
    OnlyInB,
    /// A tensor in one, a value in the other.
    TensorOrValue,
    /// Tensors of different types.
    Dtype,
    /// Tensors of different shapes.
    Shape,
    /// Tensors of different types and shapes.
    DtypeAndShape,
    /// Tensors with different elements.
    Content,
    /// Different values.
    Value,
    /// Different files of two saved models, such as their programs.
    Asset,
}

/// What a checkpoint has under a key.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum DiffSide<'a> {
    /// A tensor.
    Tensor {
        /// The element type.
        dtype: Dtype,
        /// The size of each dimension.
        shape: &'a [u64],
    },
    /// A value.
    Value {
        /// The value, as JSON.
        value: &'a Value,
    },
    /// A file of a saved model.
    Asset {
        /// Its length and digest.
        asset: &'a AssetEntry,
    },
}

/// Compares the state in two checkpoints: tensors and values by key, and the files of two saved models.
///
/// Tensors are compared by their digests where both have one. The elements of the others are read in pieces, by several
/// threads, and verified; if so many names share them that they would be read more than a few times, their digests are
/// computed and compared. Step, time, run, sequence, metrics, save counter and the division into files are not part of
/// the state. Values are compared by their JSON text, elements by their bits.
///
/// # Errors
/// [`Error::Damaged`] if what was read is not what was written; [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::inspect::{DiffKind, Target, diff};
/// use tch_checkpoint::{Checkpoint, Counter};
/// let write = |step, name| Checkpoint::new().track("step", Counter::new(step))?.write(dir.join(name));
/// let (a, b) = (Target::open(&write(1, "a")?)?, Target::open(&write(2, "b")?)?);
/// let diff = diff(&a, &b)?;
/// assert!(!diff.equal);
/// assert_eq!((&*diff.differences[0].key, diff.differences[0].kind), ("step", DiffKind::Value));
/// # Ok(())
/// # }
/// ```
pub fn diff<'a>(a: &'a Target, b: &'a Target) -> Result<Diff<'a>> {
    diff_as(a, a.source(), b)
}

/// Like [`diff`], with the first checkpoint under other names: `named` is its [`source`](Target::source) behind a
/// [`NameMap`](crate::map::NameMap), for example.
///
/// # Errors
/// As for [`diff`].
pub fn diff_as<'a>(a: &'a Target, named: &'a dyn TensorSource, b: &'a Target) -> Result<Diff<'a>> {
    diff_with(a, named, b, &DiffOptions::new())
}

/// Like [`diff_as`], with options.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::inspect::{self, DiffOptions, Target};
/// let (a, b) = (Target::open("run/ckpt-100")?, Target::open("run/ckpt-200")?);
/// let mut diff = inspect::diff_with(&a, a.source(), &b, &DiffOptions::new().tolerance(1e-6))?;
/// diff.sort_by_change();
/// if let Some(most) = diff.differences.first() {
///     println!("{} changed most", most.key);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`diff`]; [`Error::InvalidArgument`] for a tolerance that is negative or not finite; [`Error::Unsupported`]
/// if tensors are to be compared within a tolerance, and so many names share them that they would be read more than a
/// few times.
pub fn diff_with<'a>(
    a: &'a Target,
    named: &'a dyn TensorSource,
    b: &'a Target,
    options: &DiffOptions,
) -> Result<Diff<'a>> {
    if let Some(tolerance) = options.tolerance.filter(|tolerance| !(tolerance.is_finite() && *tolerance >= 0.0)) {
        let reason = format!("a tolerance is finite and not negative, {tolerance} is not");
        return Err(Error::InvalidArgument(reason));
    }
    let sides = [named, b.source()];
    let mut diff = Diff {
        equal: true,
        a: a.overview(),
        b: b.overview(),
        differences: Vec::new(),
        metadata: metadata(a, b),
        equal_tensors: 0,
        equal_values: 0,
        within_tolerance: 0,
    };
    let bytes = a.tensor_bytes().saturating_add(b.tensor_bytes());
    let mut budget = Budget { left: bytes.saturating_mul(READS), pairs: HashMap::new() };
    let is_close = |elements: &ElementDiff| options.tolerance.is_some_and(|tolerance| elements.is_within(tolerance));
    let compared = (&keys(sides[0]) | &keys(sides[1])).into_iter().map(|key| {
        let entries = sides.map(|source| Entry::of(source, key));
        (key, entries, compare(key, entries, sides, &mut budget))
    });
    let compared: Vec<(&str, [Option<Entry<'_>>; 2], Found)> = compared.collect();
    let mut elements = read_all(&compared, sides)?;
    let digested = digest_all(&compared, sides)?;
    for (key, entries, found) in compared {
        let kind = match (found, elements.get(key)) {
            (Found::Read { differ: false }, Some(elements)) if elements.differing == 0 => None,
            (Found::Read { .. }, Some(elements)) if is_close(elements) => {
                diff.within_tolerance += 1;
                continue;
            }
            (Found::Read { .. }, _) => Some(DiffKind::Content),
            (Found::Digested, _) if digested.are_equal(key, sides) => None,
            (Found::Digested, _) if options.tolerance.is_some() => return Err(too_many_names(key, sides)),
            (Found::Digested, _) => Some(DiffKind::Content),
            (Found::Differs(kind), _) => Some(kind),
            (Found::Equal, _) => None,
        };
        match kind {
            Some(kind) => {
                let [a, b] = entries.map(|entry| entry.map(Entry::side));
                diff.differences.push(DiffEntry { key, kind, a, b, elements: elements.remove(key) });
            }
            None if matches!(entries[0], Some(Entry::Tensor(_))) => diff.equal_tensors += 1,
            None => diff.equal_values += 1,
        }
    }
    diff.differences.extend(assets(a, b));
    diff.equal = diff.differences.is_empty();
    Ok(diff)
}

/// Returns the metadata that differs. Only checkpoints of this crate have any.
fn metadata<'a>(a: &'a Target, b: &'a Target) -> Vec<MetadataDiff<'a>> {
    let (Some(a), Some(b)) = (a.own_source(), b.own_source()) else { return Vec::new() };
    let (a, b) = (&a.manifest.metadata, &b.manifest.metadata);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let diff = names.into_iter().map(|name| MetadataDiff { name, a: a.get(name), b: b.get(name) });
    diff.filter(|diff| diff.a != diff.b).collect()
}

/// Returns the files of two saved models that differ. If only one of the two is a saved model, that is not a difference
/// in state.
fn assets<'a>(a: &'a Target, b: &'a Target) -> Vec<DiffEntry<'a>> {
    let (Some(a), Some(b)) = (a.own_source(), b.own_source()) else { return Vec::new() };
    let (a, b) = (&a.manifest.assets, &b.manifest.assets);
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).collect();
    let side = |assets: &'a BTreeMap<String, AssetEntry>, name| assets.get(name).map(|asset| DiffSide::Asset { asset });
    let entry = |name: &'a String| {
        let (a, b) = (side(a, name), side(b, name));
        DiffEntry { key: name, kind: DiffKind::Asset, a, b, elements: None }
    };
    names.into_iter().map(entry).collect()
}

fn keys(source: &dyn TensorSource) -> BTreeSet<&str> {
    source.tensors().keys().chain(source.values().keys()).map(String::as_str).collect()
}

/// What a source has under a key.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Tensor(&'a TensorSpec),
    Value(&'a Value),
}

impl<'a> Entry<'a> {
    fn of(source: &'a dyn TensorSource, key: &str) -> Option<Entry<'a>> {
        let tensor = source.tensors().get(key).map(Entry::Tensor);
        tensor.or_else(|| source.values().get(key).map(Entry::Value))
    }

    fn side(self) -> DiffSide<'a> {
        match self {
            Entry::Tensor(spec) => DiffSide::Tensor { dtype: spec.dtype, shape: &spec.shape },
            Entry::Value(value) => DiffSide::Value { value },
        }
    }
}

/// What is known of the entries of a key before elements are read.
#[derive(Clone, Copy)]
enum Found {
    Equal,
    Differs(DiffKind),
    /// Only the elements show how they differ, and whether they do if their digests do not tell.
    Read {
        differ: bool,
    },
    /// Only the digests of the elements are compared, because too many tensors share their bytes to read each pair.
    Digested,
}

/// Compares the two entries of a key without reading elements.
fn compare<'a>(
    key: &'a str,
    entries: [Option<Entry<'_>>; 2],
    sides: [&'a dyn TensorSource; 2],
    budget: &mut Budget<'a>,
) -> Found {
    let kind = match entries {
        [None, None] => return Found::Equal,
        [Some(_), None] => DiffKind::OnlyInA,
        [None, Some(_)] => DiffKind::OnlyInB,
        [Some(Entry::Value(a)), Some(Entry::Value(b))] if is_same(a, b) => return Found::Equal,
        [Some(Entry::Value(_)), Some(Entry::Value(_))] => DiffKind::Value,
        [Some(Entry::Tensor(a)), Some(Entry::Tensor(b))] => match (a.dtype == b.dtype, a.shape == b.shape) {
            (false, false) => DiffKind::DtypeAndShape,
            (false, true) => DiffKind::Dtype,
            (true, false) => DiffKind::Shape,
            (true, true) => return budget.compare(key, a, sides),
        },
        [Some(_), Some(_)] => DiffKind::TensorOrValue,
    };
    Found::Differs(kind)
}

/// Compares as text, which distinguishes 0.0 from -0.0.
fn is_same(a: &Value, b: &Value) -> bool {
    canonical(a) == canonical(b)
}

/// The number of bytes of elements that may still be read, so that bytes that many keys share are not read for each of
/// them.
struct Budget<'a> {
    left: u64,
    /// What was decided for two stored tensors, under whatever keys.
    pairs: HashMap<[&'a str; 2], Found>,
}

/// The maximum number of times that the bytes of both checkpoints are read to compare elements. Their digests are
/// computed once more at most.
const READS: u64 = 3;

impl<'a> Budget<'a> {
    /// Compares the digests of the tensor `key`, of one type and shape in both, and decides whether its elements are
    /// read.
    fn compare(&mut self, key: &'a str, spec: &TensorSpec, sides: [&'a dyn TensorSource; 2]) -> Found {
        let digests = sides.map(|source| source.digest(key));
        let differ = match digests {
            [Some(a), Some(b)] if a == b => return Found::Equal,
            [Some(_), Some(_)] => true,
            _ => false,
        };
        let pair = sides.map(|source| source.first_alias(key));
        *self.pairs.entry(pair).or_insert_with(|| {
            let bytes = spec.bytes().unwrap_or(u64::MAX);
            match self.left.checked_sub(bytes.saturating_mul(2)) {
                Some(left) => {
                    self.left = left;
                    Found::Read { differ }
                }
                None => Found::Digested,
            }
        })
    }
}

/// The digests of the stored tensors of two sources, by first key: the recorded ones, and those that were computed.
#[derive(Default)]
struct Digested<'a>([HashMap<&'a str, Digest>; 2]);

impl Digested<'_> {
    fn are_equal(&self, key: &str, sides: [&dyn TensorSource; 2]) -> bool {
        let [a, b] = [0, 1].map(|side| self.0[side].get(sides[side].first_alias(key)));
        a.is_some() && a == b
    }
}

/// Returns the digests of all tensors that only those compare. Each stored tensor that has none is read, on several
/// threads, and verified.
fn digest_all<'a>(
    compared: &[(&'a str, [Option<Entry<'_>>; 2], Found)],
    sides: [&'a dyn TensorSource; 2],
) -> Result<Digested<'a>> {
    let mut digested = Digested::default();
    for (source, known) in sides.into_iter().zip(&mut digested.0) {
        let keys = compared.iter().filter(|(_, _, found)| matches!(found, Found::Digested));
        let first: BTreeSet<&str> = keys.map(|(key, _, _)| source.first_alias(key)).collect();
        let (with, without): (Vec<&str>, Vec<&str>) = first.into_iter().partition(|key| source.digest(key).is_some());
        known.extend(with.into_iter().filter_map(|key| Some((key, source.digest(key)?))));
        let found = Mutex::new(known);
        parallel::for_each(
            &without,
            parallel::default_threads(),
            || (),
            |key, ()| {
                source.verify_tensor(key)?;
                let digest = digest(source, key)?;
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, digest);
                Ok(())
            },
        )?;
    }
    Ok(digested)
}

fn too_many_names(key: &str, sides: [&dyn TensorSource; 2]) -> Error {
    let reason = format!(
        "too many of its tensors share their bytes to read each pair, such as {}: compare without a tolerance, which \
         needs digests only",
        name::shown(key)
    );
    Error::unsupported(sides[0].path(), reason)
}

/// Reads the elements of all pairs that are to be read, on several threads.
fn read_all<'a>(
    compared: &[(&'a str, [Option<Entry<'_>>; 2], Found)],
    sides: [&dyn TensorSource; 2],
) -> Result<HashMap<&'a str, ElementDiff>> {
    let are_read = compared.iter().filter(|(_, _, found)| matches!(found, Found::Read { .. }));
    // Names of the same two tensors are compared once.
    let (mut wanted, mut places, mut known) = (Vec::new(), Vec::new(), HashMap::new());
    for (key, _, _) in are_read {
        let place = *known.entry(sides.map(|source| source.first_alias(key))).or_insert(wanted.len());
        if place == wanted.len() {
            wanted.push(Wanted { key, sources: sides });
        }
        places.push((*key, place));
    }
    let bytes = wanted.iter().fold(0u64, |sum, pair| sum.saturating_add(pair.bytes().saturating_mul(2)));
    let threads = parallel::worth(parallel::default_threads(), bytes);
    let found = fold(&wanted, threads, |_, dtype, [a, b]| Comparison::of(dtype, a, b), |_, sums| sums.finish())?;
    Ok(places.into_iter().filter_map(|(key, place)| Some((key, *found.get(place)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If the program's `serde_json` keeps the order of the files.
    #[test]
    fn the_order_of_keys_is_no_difference() {
        let [a, b, c] = [r#"[{"a":0.0,"b":1}]"#, r#"[{"b":1,"a":0.0}]"#, r#"[{"b":1,"a":-0.0}]"#]
            .map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert!(is_same(&a, &b) && !is_same(&a, &c));
    }
}
