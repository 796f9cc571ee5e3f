//! The content of one checkpoint.

use super::stats::{StatsOptions, TensorStats};
use super::target::{Overview, Target};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::figures::SaveFigures;
use crate::format::{Digest, MANIFEST_FILE, Manifest, MarkKind, SavedModelInfo};
use crate::name;
use crate::source::{Source, TensorSource, VerifiedBy};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

/// The longest key in [`TensorSummary::same_as`], in characters: many tensors can name the same one.
const SAME_AS: usize = 200;

/// The content of a checkpoint; see [`Target::summary`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Summary<'a> {
    /// Which checkpoint it is.
    #[serde(flatten)]
    pub overview: Overview,
    /// How far the bytes of the tensors can be verified: that of the least verifiable tensor.
    pub verified_by: VerifiedBy,
    /// The metrics, with those that were added later, which replace those of the same name.
    pub metrics: BTreeMap<String, f64>,
    /// The metadata that was recorded with it, by name.
    pub metadata: BTreeMap<&'a str, &'a Value>,
    /// The cost of the save, if its manifest records it.
    pub figures: Option<SaveFigures>,
    /// Whether it was saved after an error, and its state may be inconsistent.
    pub unclean: bool,
    /// The tracked components that it lacks.
    pub without: &'a [String],
    /// Its pins: names and notes.
    pub pins: BTreeMap<String, String>,
    /// Its notes: names and texts.
    pub notes: BTreeMap<String, String>,
    /// The components of the checkpoint, by name: the tracked objects.
    pub components: Vec<ComponentSummary<'a>>,
    /// The tensors by element type.
    pub dtypes: Vec<DtypeSummary>,
    /// The files.
    pub files: Vec<FileSummary>,
    /// The tensors that pass the filter, by key.
    pub tensors: Vec<TensorSummary<'a>>,
    /// The values that pass the filter, by key.
    pub values: BTreeMap<&'a str, &'a Value>,
    /// The entries of another tool's file that this crate cannot read: the reason, by key.
    pub unreadable: &'a BTreeMap<String, String>,
    /// The description of a saved model's program.
    pub saved_model: Option<SavedModelInfo>,
    /// Counts and sizes of the complete checkpoint, regardless of the filter.
    pub totals: Totals,
}

/// What was tracked under one name.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ComponentSummary<'a> {
    /// The first part of its keys: up to the first `/`, in other formats up to the first `/` or `.`.
    pub name: &'a str,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of values.
    pub values: usize,
    /// Bytes of its tensors. Tensors that share memory count once.
    pub bytes: u64,
    /// The names of the files that hold its tensors. Empty for other formats.
    pub files: BTreeSet<&'a str>,
    #[serde(skip)]
    seen: HashSet<&'a str>,
}

/// The tensors of one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DtypeSummary {
    /// The element type.
    pub dtype: Dtype,
    /// The number of tensors.
    pub tensors: usize,
    /// Bytes of its tensors. Tensors that share memory count once.
    pub bytes: u64,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileSummary {
    /// The name of the file in the checkpoint's directory.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorSummary<'a> {
    /// The key.
    pub key: &'a str,
    /// The element type.
    pub dtype: Dtype,
    /// The size of each dimension.
    pub shape: &'a [u64],
    /// Bytes of its elements.
    pub bytes: u64,
    /// The digest of its elements. `None` if neither the checkpoint nor a seal has one.
    pub xxh3_128: Option<Digest>,
    /// The names of the files that hold it. Empty for other formats.
    pub files: BTreeSet<&'a str>,
    /// The first key that has the same elements, if that is another one. Keys of more than 200 characters are
    /// shortened.
    pub same_as: Option<String>,
    /// Statistics of its values, in a summary with statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<TensorStats>,
}

/// Counts and sizes of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// The number of components.
    pub components: usize,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of values.
    pub values: usize,
    /// Bytes of all tensors. Tensors that share memory count once.
    pub tensor_bytes: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Target {
    /// Returns the content: components, files, tensors, values and, for a saved model, its signatures. No tensor is
    /// read.
    ///
    /// With a `filter`, only tensors and values whose key matches are included; `*` matches any text, including `/`.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io) if the description of a saved model,
    /// or a metric, pin or note, cannot be read.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.path().join("seven"))?;
    /// let target = Target::open(&path)?;
    /// assert_eq!(*target.summary(None)?.values["step"], 7);
    /// assert!(target.summary(Some("encoder/*"))?.values.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn summary(&self, filter: Option<&str>) -> Result<Summary<'_>> {
        let source = self.source();
        let manifest = self.own_source().map(|source| &source.manifest);
        let fits = |key: &str| filter.is_none_or(|pattern| name::matches(pattern, key));
        let (mut tensors, mut tensor_bytes) = (Vec::new(), 0u64);
        for (key, spec) in source.tensors() {
            let same_as = source.first_alias(key);
            let bytes = spec.bytes().unwrap_or(u64::MAX);
            if same_as == key {
                tensor_bytes = tensor_bytes.saturating_add(bytes);
            }
            if fits(key) {
                tensors.push(TensorSummary {
                    key,
                    dtype: spec.dtype,
                    shape: &spec.shape,
                    bytes,
                    xxh3_128: source.digest(key),
                    files: files_of(manifest, key).collect(),
                    same_as: (same_as != key).then(|| shortened(same_as)),
                    stats: None,
                });
            }
        }
        let components = components(source, manifest);
        let files = match manifest {
            Some(manifest) => own_files(source.path(), manifest),
            None => files_at(source.path()),
        };
        let values = source.values();
        let metadata = manifest.into_iter().flat_map(|manifest| &manifest.metadata);
        let mut metrics = manifest.map(|manifest| manifest.metrics.clone()).unwrap_or_default();
        let (mut pins, mut notes) = (BTreeMap::new(), BTreeMap::new());
        for mark in self.own_source().map_or(Ok(Vec::new()), Source::marks)? {
            match mark.kind {
                MarkKind::Metric { name, value } => drop(metrics.insert(name, value)),
                MarkKind::Pin { name, note } => drop(pins.insert(name, note)),
                MarkKind::Note { name, text } => drop(notes.insert(name, text)),
                MarkKind::Permanent | MarkKind::Thinned { .. } => {}
            }
        }
        Ok(Summary {
            overview: self.overview(),
            verified_by: source.tensors().keys().map(|key| source.verified_by(key)).min().unwrap_or(VerifiedBy::Digest),
            metrics,
            pins,
            notes,
            metadata: metadata.map(|(name, value)| (name.as_str(), value)).collect(),
            figures: manifest.and_then(|manifest| manifest.figures),
            unclean: manifest.is_some_and(|manifest| manifest.unclean),
            without: manifest.map_or(&[], |manifest| manifest.without.as_slice()),
            totals: Totals {
                components: components.len(),
                tensors: source.tensors().len(),
                values: values.len(),
                tensor_bytes,
                bytes: files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes)),
            },
            components,
            dtypes: dtypes(source),
            files,
            tensors,
            values: values.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| fits(key)).collect(),
            unreadable: source.unreadable(),
            saved_model: self.saved_model()?,
        })
    }

    /// Like [`summary`](Target::summary), with [statistics](TensorSummary::stats) of the tensors that pass the filter.
    ///
    /// # Errors
    /// As for [`summary`](Target::summary) and [`stats`](Target::stats).
    pub fn summary_with_stats(&self, filter: Option<&str>, options: &StatsOptions) -> Result<Summary<'_>> {
        let mut summary = self.summary(filter)?;
        let mut stats = self.stats(filter, options)?;
        summary.tensors.iter_mut().for_each(|tensor| tensor.stats = stats.remove(tensor.key));
        Ok(summary)
    }
}

/// Returns the tensors by element type, in the order of [`Dtype`].
fn dtypes(source: &dyn TensorSource) -> Vec<DtypeSummary> {
    let mut dtypes = BTreeMap::new();
    for (key, spec) in source.tensors() {
        let dtype = spec.dtype;
        let of = dtypes.entry(dtype).or_insert(DtypeSummary { dtype, tensors: 0, bytes: 0 });
        of.tensors += 1;
        if source.first_alias(key) == key {
            of.bytes = of.bytes.saturating_add(spec.bytes().unwrap_or(u64::MAX));
        }
    }
    dtypes.into_values().collect()
}

/// Returns at most [`SAME_AS`] characters of a key.
fn shortened(key: &str) -> String {
    match key.char_indices().nth(SAME_AS) {
        None => key.to_string(),
        Some((end, _)) => format!("{}… ({} characters)", &key[..end], key.chars().count()),
    }
}

/// Returns the files that hold the tensor `key`.
fn files_of<'a>(manifest: Option<&'a Manifest>, key: &str) -> impl Iterator<Item = &'a str> {
    let record = manifest.and_then(|manifest| manifest.tensors.get(key));
    record.into_iter().flat_map(|record| &record.pieces).map(|piece| piece.file.as_str())
}

fn components<'a>(source: &'a dyn TensorSource, manifest: Option<&'a Manifest>) -> Vec<ComponentSummary<'a>> {
    let mut components = BTreeMap::new();
    for (key, spec) in source.tensors() {
        let component = component_of(key, manifest, &mut components);
        component.tensors += 1;
        component.files.extend(files_of(manifest, key));
        if component.seen.insert(source.first_alias(key)) {
            component.bytes = component.bytes.saturating_add(spec.bytes().unwrap_or(u64::MAX));
        }
    }
    for key in source.values().keys() {
        component_of(key, manifest, &mut components).values += 1;
    }
    components.into_values().collect()
}

fn component_of<'a, 'b>(
    key: &'a str,
    manifest: Option<&Manifest>,
    components: &'b mut BTreeMap<&'a str, ComponentSummary<'a>>,
) -> &'b mut ComponentSummary<'a> {
    // Names of other tools are paths with dots.
    let ends = |c| c == '/' || (c == '.' && manifest.is_none());
    let name = key.split(ends).next().unwrap_or(key);
    components.entry(name).or_insert_with(|| ComponentSummary {
        name,
        tensors: 0,
        values: 0,
        bytes: 0,
        files: BTreeSet::new(),
        seen: HashSet::new(),
    })
}

/// Returns the files that a manifest lists, and the manifest.
fn own_files(path: &Path, manifest: &Manifest) -> Vec<FileSummary> {
    let length = fs::metadata(path.join(MANIFEST_FILE)).map_or(0, |metadata| metadata.len());
    let files = manifest.files.iter().map(|(name, file)| (name.as_str(), file.bytes));
    let assets = manifest.assets.iter().map(|(name, asset)| (name.as_str(), asset.bytes));
    let all = files.chain(assets).chain([(MANIFEST_FILE, length)]);
    all.map(|(name, bytes)| FileSummary { name: name.to_string(), bytes }).collect()
}

/// Returns the file at `path`, the files in the directory `path`, or those of the TensorFlow prefix `path`; by name.
fn files_at(path: &Path) -> Vec<FileSummary> {
    let name_of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = name_of(path);
    let (directory, is_prefix) = match fs::metadata(path) {
        Ok(found) if found.is_dir() => (path, false),
        Ok(found) => return vec![FileSummary { name: prefix, bytes: found.len() }],
        Err(_) => (path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")), true),
    };
    let is_one = |name: &str| {
        let rest = name.strip_prefix(&prefix);
        !is_prefix || rest.is_some_and(|rest| rest == ".index" || rest.starts_with(".data-"))
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(FileSummary { name: entry.file_name().to_string_lossy().into_owned(), bytes: metadata.len() })
    });
    let mut files: Vec<FileSummary> = files.filter(|file| is_one(&file.name)).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}
