//! The manifest: the content of a checkpoint, with digests.

use super::envelope::Envelope;
use super::json::{self, Sorted, Unique, Values};
use super::safetensors::{Header, LENGTH_BYTES, MAX_HEADER, METADATA, Shape};
use super::{Digest, FormatError, MANIFEST_FILE, MAX_RANK, MAX_TENSOR_NAME, damaged, dtype_named};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::name;
use chrono::{DateTime, Datelike, Utc};
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// The maximum length of a manifest, in bytes: enough for about two million tensors. Check the length of the file
/// before reading it.
pub const MAX_MANIFEST_BYTES: usize = 512 * 1024 * 1024;

const ENVELOPE: Envelope =
    Envelope { format: "tch-checkpoint", version: 5, max_bytes: MAX_MANIFEST_BYTES, what: "manifest" };

/// The content of a checkpoint: files, tensors and values, with digests.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Manifest {
    /// The training step, if there is one.
    pub step: Option<u64>,
    /// The number of times that the `Checkpoint` was saved, including this save.
    pub save_counter: Option<i64>,
    /// The safetensors files by name. Each byte of each file is covered by at least one digest: the header's or a
    /// tensor's.
    pub files: BTreeMap<String, FileEntry>,
    /// Other files by name, each with a digest, such as the program, signatures and examples of a saved model.
    pub assets: BTreeMap<String, AssetEntry>,
    /// The tensors by key (see [`name`]). Two keys whose pieces are the same are one tensor under two names.
    pub tensors: BTreeMap<String, TensorRecord>,
    /// The small values by key, as JSON.
    pub values: BTreeMap<String, serde_json::Value>,
    /// The metrics that were given with the save. NaN and infinities are preserved.
    pub metrics: BTreeMap<String, f64>,
    /// What the program recorded about the run and this save, by name, as JSON. It is not part of the state: a restore
    /// ignores it.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// The order of this save among the saves into its directory: higher is later, whatever the step and the clock. At
    /// most 2⁶³.
    pub sequence: u64,
    /// The run that saved it: 32 lower-case hexadecimal digits, random per run.
    pub run: String,
    /// When it was saved, for information.
    pub saved_at: DateTime<Utc>,
    /// The checkpoint that the saving program had restored or saved before. `None` if there was none, and in manifests
    /// of versions 1 and 2, which do not record it.
    pub follows: Option<Follows>,
    /// The origin of the run: the checkpoint that was restored from each earlier run, latest first, at most
    /// [`MAX_EARLIER`], without `follows`. It is used if the checkpoint that `follows` names has been removed.
    pub earlier: Vec<Follows>,
    /// The time from which the intervals of the manager's `keep_every` were counted when this was saved; `None` if
    /// there is no such policy.
    pub counted_from: Option<DateTime<Utc>>,
    /// Whether the state was saved after an error and may be inconsistent. Restarts do not use such a checkpoint.
    pub unclean: bool,
    /// The tracked components that were left out of this save, sorted. Empty if the checkpoint is complete.
    pub without: Vec<String>,
}

/// The maximum number of earlier runs in a manifest.
pub const MAX_EARLIER: usize = 8;

/// The checkpoint that another one follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follows {
    /// The `run` of its manifest.
    pub run: String,
    /// The `sequence` of its manifest.
    pub sequence: u64,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// The length of the whole file.
    pub bytes: u64,
    /// The part before the data section.
    pub header: HeaderEntry,
}

/// The part of a file before its data section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderEntry {
    /// Its length; the data section starts there.
    pub bytes: u64,
    /// Its digest, over the 8 bytes of the length, the JSON and the padding.
    #[serde(rename = "xxh3_128")]
    pub digest: Digest,
}

/// A file of a checkpoint that is not a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssetEntry {
    /// The length of the file.
    pub bytes: u64,
    /// Its digest.
    #[serde(rename = "xxh3_128")]
    pub digest: Digest,
}

/// Statistics of the values of a float tensor, recorded by a save. The parts of complex numbers count as values.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The number of values that are NaN or infinite.
    pub non_finite: u64,
    /// The L2 norm of the finite values, accurate to about five digits.
    pub norm: f64,
    /// The smallest and the largest finite value; `None` if there is none.
    pub range: Option<(f64, f64)>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorRecord {
    /// Type and shape.
    pub spec: TensorSpec,
    /// The digest of all its elements, row-major and little-endian.
    pub digest: Digest,
    /// The location of the elements: one piece for the whole tensor, or pieces along the first dimension, in order.
    pub pieces: Vec<Piece>,
    /// Whether it was a variable that required a gradient; `None` if that has no meaning or was not recorded.
    pub requires_grad: Option<bool>,
    /// Statistics of its values, if recorded. By default, they are recorded only for tensors with non-finite values.
    pub statistics: Option<Statistics>,
}

/// Consecutive elements of a tensor in one file, under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The file, a plain name.
    pub file: String,
    /// The name in the file's header.
    pub name: String,
    /// The first byte, counted from the start of the file.
    pub begin: u64,
    /// The byte after the last one.
    pub end: u64,
    /// The slice of the tensor, as start and length per dimension; `None` for the whole tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<Vec<[u64; 2]>>,
}

impl Manifest {
    /// Creates an empty manifest.
    pub fn new(sequence: u64, run: impl Into<String>, saved_at: DateTime<Utc>) -> Manifest {
        Manifest {
            step: None,
            save_counter: None,
            files: BTreeMap::new(),
            assets: BTreeMap::new(),
            tensors: BTreeMap::new(),
            values: BTreeMap::new(),
            metrics: BTreeMap::new(),
            metadata: BTreeMap::new(),
            sequence,
            run: run.into(),
            saved_at,
            follows: None,
            earlier: Vec::new(),
            counted_from: None,
            unclean: false,
            without: Vec::new(),
        }
    }

    /// Returns the identity of the checkpoint, independent of its name, by which marks and later manifests refer to it.
    pub fn id(&self) -> Follows {
        Follows { run: self.run.clone(), sequence: self.sequence }
    }

    /// Returns this checkpoint and those of earlier runs that it goes back to: the `earlier` of a checkpoint that
    /// follows it.
    pub(crate) fn lineage(&self) -> Vec<Follows> {
        let mut lineage = vec![self.id()];
        for earlier in self.follows.iter().chain(&self.earlier) {
            if lineage.iter().all(|known| known.run != earlier.run) && lineage.len() < MAX_EARLIER {
                lineage.push(earlier.clone());
            }
        }
        lineage
    }

    /// Returns the keys of the tensors with non-finite values, as far as they were recorded.
    pub fn non_finite(&self) -> impl Iterator<Item = &str> {
        let is_it = |record: &TensorRecord| record.statistics.is_some_and(|statistics| statistics.non_finite > 0);
        self.tensors.iter().filter(move |(_, record)| is_it(record)).map(|(key, _)| key.as_str())
    }

    /// Returns the total length of all files, without the manifest.
    pub fn bytes(&self) -> u64 {
        let assets = self.assets.values().map(|asset| asset.bytes);
        self.files.values().map(|file| file.bytes).chain(assets).fold(0, u64::saturating_add)
    }

    /// Returns the text of the file. Two manifests of the same state differ only in the last two lines.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a manifest that [`from_bytes`](Manifest::from_bytes) would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check().map_err(|e| e.unwritable("the manifest"))?;
        let text = self.lines().map_err(|e| Error::InvalidArgument(format!("the manifest cannot be written: {e}")))?;
        ENVELOPE.close(text).map_err(|e| match self.heaviest() {
            Some(key) => Error::object(key, format!("the manifest cannot be written with this value: {e}")),
            None => e.unwritable("the manifest"),
        })
    }

    /// Returns the value that takes the most memory relative to its text.
    fn heaviest(&self) -> Option<&str> {
        let memory = |value: &serde_json::Value| json::memory(value.to_string().as_bytes());
        self.values.iter().max_by_key(|(_, value)| memory(value)).map(|(key, _)| key.as_str())
    }

    /// Returns the lowest version that can represent this manifest.
    fn version(&self) -> u64 {
        if !self.metadata.is_empty() || self.unclean || !self.without.is_empty() {
            return 5;
        }
        if self.counted_from.is_some() || self.tensors.values().any(|record| record.statistics.is_some()) {
            return 4;
        }
        let non_finite = self.metrics.values().any(|value| !value.is_finite());
        if self.follows.is_some() || non_finite || self.tensors.values().any(|record| record.requires_grad.is_some()) {
            return 3;
        }
        if self.assets.is_empty() { 1 } else { 2 }
    }

    /// Returns all lines but the last.
    fn lines(&self) -> Result<Vec<u8>, String> {
        let version = self.version();
        let mut text = ENVELOPE.open(version);
        text.extend_from_slice(b"\"step\":");
        json::append(&mut text, &self.step)?;
        text.extend_from_slice(b",\n\"save_counter\":");
        json::append(&mut text, &self.save_counter)?;
        text.extend_from_slice(b",\n");
        json::append_map(&mut text, "files", &self.files, json::append)?;
        if version > 1 {
            json::append_map(&mut text, "assets", &self.assets, json::append)?;
        }
        json::append_map(&mut text, "tensors", &self.tensors, |text, tensor| {
            let TensorRecord { spec, digest, pieces, requires_grad, statistics } = tensor;
            let statistics = statistics.map(StatisticsText::from);
            let (dtype, shape, requires_grad) = (spec.dtype.name(), &spec.shape, *requires_grad);
            json::append(text, &RecordOut { dtype, shape, digest, pieces, requires_grad, statistics })
        })?;
        json::append_map(&mut text, "values", &self.values, |text, value| json::append(text, &Sorted(value)))?;
        json::append_map(&mut text, "metrics", &self.metrics, |text, value| json::append(text, &json::Metric(*value)))?;
        if !self.metadata.is_empty() {
            let append = |text: &mut Vec<u8>, value: &serde_json::Value| json::append(text, &Sorted(value));
            json::append_map(&mut text, "metadata", &self.metadata, append)?;
        }
        let (sequence, run, saved_at) = (self.sequence, self.run.clone(), self.saved_at);
        let (follows, earlier, counted_from) = (self.follows.clone(), self.earlier.clone(), self.counted_from);
        let (unclean, without) = (self.unclean, self.without.clone());
        let commit = Commit { sequence, run, saved_at, follows, earlier, counted_from, unclean, without };
        text.extend_from_slice(b"\"commit\":");
        json::append(&mut text, &commit)?;
        text.extend_from_slice(b",\n");
        Ok(text)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unsupported`] for a manifest of a newer version, and for features of the format that this reader
    /// does not read; [`FormatError::Damaged`] for every other difference from what a writer writes, including every
    /// changed bit.
    ///
    /// ```
    /// use tch_checkpoint::format::Manifest;
    /// let manifest = Manifest::new(7, "0123456789abcdef0123456789abcdef", chrono::Utc::now());
    /// let mut bytes = manifest.to_bytes()?;
    /// assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest));
    /// bytes[60] ^= 1;
    /// assert!(Manifest::from_bytes(&bytes).is_err());
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest, FormatError> {
        let version = ENVELOPE.check(bytes)?;
        let text = std::str::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        let text: Text = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        if text.assets.is_some() != (version > 1) {
            return Err(damaged("a manifest has `assets` from version 2 on, and not before"));
        }
        let tensors = text.tensors.0.into_iter().map(|(key, record)| {
            let record = record.known(&key)?;
            Ok((key, record))
        });
        let manifest = Manifest {
            step: text.step,
            save_counter: text.save_counter,
            files: text.files.0,
            assets: text.assets.map(|assets| assets.0).unwrap_or_default(),
            tensors: tensors.collect::<Result<_, FormatError>>()?,
            values: text.values.0,
            metrics: text.metrics.0.into_iter().map(|(name, value)| (name, value.0)).collect(),
            metadata: text.metadata.map(|metadata| metadata.0).unwrap_or_default(),
            sequence: text.commit.sequence,
            run: text.commit.run,
            saved_at: text.commit.saved_at,
            follows: text.commit.follows,
            earlier: text.commit.earlier,
            counted_from: text.commit.counted_from,
            unclean: text.commit.unclean,
            without: text.commit.without,
        };
        if manifest.version() > version {
            let newer = manifest.version();
            return Err(damaged(format!("it says version {version}, and has what only version {newer} has")));
        }
        manifest.check()?;
        Ok(manifest)
    }
}

impl Manifest {
    /// Checks that the headers of the files agree with the manifest and have no other tensors, so that other programs,
    /// which read the headers, read the same tensors. `headers` has the headers by file name; a file without one is
    /// skipped.
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] with the first difference.
    pub fn check_headers(&self, headers: &BTreeMap<String, Header>) -> Result<(), FormatError> {
        let entries = |header: &Header| header.tensors.len();
        let mut in_headers = HashMap::with_capacity(headers.values().map(entries).sum());
        for (file, header) in headers {
            for entry in &header.tensors {
                in_headers.insert((file.as_str(), entry.name.as_str()), (entry, header.data_start));
            }
        }
        let mut named = HashSet::with_capacity(in_headers.len());
        for (key, record) in &self.tensors {
            for piece in record.pieces.iter().filter(|piece| headers.contains_key(&piece.file)) {
                let place = (piece.file.as_str(), piece.name.as_str());
                let agree = in_headers.get(&place).is_some_and(|(entry, data_start)| {
                    let range = Range { key, record, piece, index: 0 };
                    entry.spec.dtype == record.spec.dtype
                        && range.shape().eq(entry.spec.shape.iter().copied())
                        && piece.begin.checked_sub(*data_start) == Some(entry.begin)
                        && piece.end.checked_sub(*data_start) == Some(entry.end)
                });
                if !agree {
                    let (file, name, key) = (place.0, name::shown(place.1), name::shown(key));
                    return Err(damaged(format!("the header of {file:?} says something else of {name}, {key}")));
                }
                named.insert(place);
            }
        }
        match in_headers.keys().find(|place| !named.contains(*place)) {
            Some((file, name)) => {
                Err(damaged(format!("the header of {file:?} has a tensor {} more", name::shown(name))))
            }
            None => Ok(()),
        }
    }
}

/// A manifest's JSON. `format`, `version` and the digest are handled by [`ENVELOPE`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text<'a> {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    // Without `deserialize_with`, a field that may be null may be missing too.
    #[serde(deserialize_with = "Option::deserialize")]
    step: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    save_counter: Option<i64>,
    files: Unique<FileEntry>,
    #[serde(default, deserialize_with = "present")]
    assets: Option<Unique<AssetEntry>>,
    #[serde(borrow)]
    tensors: Unique<RecordIn<'a>>,
    values: Values,
    metrics: Unique<json::Metric>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Values>,
    commit: Commit,
    #[serde(rename = "xxh3_128")]
    _digest: IgnoredAny,
}

/// Everything that differs between two saves of the same state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Commit {
    sequence: u64,
    run: String,
    saved_at: DateTime<Utc>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    follows: Option<Follows>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Follows>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    counted_from: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unclean: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without: Vec<String>,
}

/// Reads a field that may be missing, but not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A tensor's JSON for writing.
#[derive(Serialize)]
struct RecordOut<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    #[serde(rename = "xxh3_128")]
    digest: &'a Digest,
    pieces: &'a [Piece],
    #[serde(skip_serializing_if = "Option::is_none")]
    requires_grad: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<StatisticsText>,
}

/// The JSON of [`Statistics`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatisticsText {
    norm: f64,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    non_finite: Option<u64>,
}

impl From<Statistics> for StatisticsText {
    fn from(statistics: Statistics) -> StatisticsText {
        let Statistics { non_finite, norm, range } = statistics;
        let (min, max) = range.unzip();
        StatisticsText { norm, min, max, non_finite: (non_finite > 0).then_some(non_finite) }
    }
}

impl StatisticsText {
    fn known(self, key: &str) -> Result<Statistics, FormatError> {
        let range = self.min.zip(self.max);
        let is_right = self.min.is_some() == self.max.is_some()
            && self.norm >= 0.0
            && range.is_none_or(|(min, max)| min <= max)
            && self.non_finite != Some(0);
        if !is_right {
            return Err(damaged(format!("the statistics of the tensor {key:?} contradict each other")));
        }
        Ok(Statistics { non_finite: self.non_finite.unwrap_or(0), norm: self.norm, range })
    }
}

/// A tensor's JSON for reading.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordIn<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    #[serde(rename = "xxh3_128")]
    digest: Digest,
    #[serde(deserialize_with = "pieces")]
    pieces: Vec<Piece>,
    #[serde(default, deserialize_with = "present")]
    requires_grad: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    statistics: Option<StatisticsText>,
}

/// Reads a list that takes no more memory than necessary in the most frequent case, one piece.
fn pieces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Piece>, D::Error> {
    struct Pieces;
    impl<'de> Visitor<'de> for Pieces {
        type Value = Vec<Piece>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of pieces")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<Piece>, A::Error> {
            let mut pieces = Vec::with_capacity(1);
            while let Some(piece) = access.next_element()? {
                pieces.push(piece);
            }
            Ok(pieces)
        }
    }
    deserializer.deserialize_seq(Pieces)
}

impl RecordIn<'_> {
    fn known(self, key: &str) -> Result<TensorRecord, FormatError> {
        let dtype = dtype_named(&self.dtype).ok_or_else(|| {
            FormatError::Unsupported(format!("the tensor {key:?} is of the unknown element type {:?}", self.dtype))
        })?;
        let statistics = self.statistics.map(|text| text.known(key)).transpose()?;
        let spec = TensorSpec { dtype, shape: self.shape.0 };
        let (digest, pieces, requires_grad) = (self.digest, self.pieces, self.requires_grad);
        Ok(TensorRecord { spec, digest, pieces, requires_grad, statistics })
    }
}

/// Invariants that readers rely on, and that writers must keep as well.
impl Manifest {
    fn check(&self) -> Result<(), FormatError> {
        let counts = [("files", self.files.len()), ("assets", self.assets.len()), ("tensors", self.tensors.len())];
        for (what, entries) in counts {
            check_count(what, entries)?;
        }
        check_sequence(self.sequence)?;
        check_run(&self.run)?;
        check_time(self.saved_at)?;
        check_count("metrics", self.metrics.len())?;
        for follows in self.follows.iter().chain(&self.earlier) {
            check_run(&follows.run)?;
            check_sequence(follows.sequence)?;
        }
        if self.follows.is_none() && !self.earlier.is_empty() || self.earlier.len() > MAX_EARLIER {
            return Err(damaged(format!("it names {} earlier runs", self.earlier.len())));
        }
        self.counted_from.map_or(Ok(()), check_time)?;
        self.check_files()?;
        self.check_keys()?;
        let mut left = json::MAX_NODES;
        for (key, value) in self.values.iter().chain(&self.metadata) {
            json::check_bounds(value, &mut left, 0)
                .map_err(|reason| damaged(format!("the value {key:?}: {reason}")))?;
        }
        check_count("metadata", self.metadata.len())?;
        self.check_without()?;
        self.check_ranges()
    }

    /// Checks that components that are left out are absent.
    fn check_without(&self) -> Result<(), FormatError> {
        if !self.without.is_sorted_by(|a, b| a < b) {
            return Err(damaged("the components that it leaves out are not sorted, or one of them is there twice"));
        }
        let is_in = |key: &String| {
            let component = key.split('/').next().and_then(name::path).and_then(|mut path| path.pop());
            component.is_some_and(|component| self.without.binary_search(&component).is_ok())
        };
        match self.tensors.keys().chain(self.values.keys()).find(|key| !self.without.is_empty() && is_in(key)) {
            Some(key) => Err(damaged(format!("it leaves out the component of {}, and has it", name::shown(key)))),
            None => Ok(()),
        }
    }

    fn check_files(&self) -> Result<(), FormatError> {
        let mut folded = HashSet::new();
        for (file, FileEntry { bytes, header }) in &self.files {
            if !name::is_plain_file_name(file) || !file.ends_with(name::COMPONENT_EXTENSION) {
                return Err(damaged(format!("{file:?} is not the name of a component's file")));
            }
            if !folded.insert(file.to_ascii_lowercase()) {
                return Err(damaged(format!("another file's name differs from {file:?} only in case")));
            }
            let (least, most) = (LENGTH_BYTES as u64 + 2, LENGTH_BYTES as u64 + MAX_HEADER);
            if header.bytes > *bytes || !(least..=most).contains(&header.bytes) {
                return Err(damaged(format!("{file:?} of {bytes} bytes cannot have a header of {}", header.bytes)));
            }
        }
        for asset in self.assets.keys() {
            let is_taken = asset.ends_with(name::COMPONENT_EXTENSION) || asset.eq_ignore_ascii_case(MANIFEST_FILE);
            if !name::is_plain_file_name(asset) || is_taken || !folded.insert(asset.to_ascii_lowercase()) {
                return Err(damaged(format!("{asset:?} is not the name of an asset, or there is another such file")));
            }
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), FormatError> {
        for key in self.tensors.keys().chain(self.values.keys()) {
            if !is_key(key) {
                return Err(damaged(format!("{} is not a key", name::shown(key))));
            }
        }
        check_tree(self.tensors.keys(), 100)?;
        check_tree(self.values.keys(), 3)?;
        match self.values.keys().find(|key| self.tensors.contains_key(*key)) {
            Some(key) => Err(damaged(format!("{key:?} is both a tensor and a value"))),
            None => Ok(()),
        }
    }

    /// Checks that every tensor is complete, and that every byte of every file belongs to the header or to one tensor
    /// of the file.
    fn check_ranges(&self) -> Result<(), FormatError> {
        let mut ranges: BTreeMap<&str, Vec<Range<'_>>> =
            self.files.keys().map(|file| (file.as_str(), vec![])).collect();
        for (key, record) in &self.tensors {
            check_pieces(key, record)?;
            for (index, piece) in record.pieces.iter().enumerate() {
                let file = ranges.get_mut(piece.file.as_str());
                let file =
                    file.ok_or_else(|| damaged(format!("{key:?} is in {:?}, which is not listed", piece.file)))?;
                file.push(Range { key, record, piece, index });
            }
        }
        for (file, ranges) in &mut ranges {
            if let Some(entry) = self.files.get(*file) {
                check_file_ranges(file, entry, ranges)?;
            }
        }
        Ok(())
    }
}

/// A piece and its tensor.
struct Range<'a> {
    key: &'a str,
    record: &'a TensorRecord,
    piece: &'a Piece,
    /// Its index among the tensor's pieces.
    index: usize,
}

impl Range<'_> {
    /// Returns the lengths of the piece's dimensions.
    fn shape(&self) -> impl Iterator<Item = u64> {
        let first = self.piece.slice.as_ref().and_then(|slice| slice.first()).map(|[_, length]| *length);
        let whole = self.record.spec.shape.iter().copied();
        whole.enumerate().map(move |(i, length)| if i == 0 { first.unwrap_or(length) } else { length })
    }

    /// Returns `true` if both are the same piece of one tensor that has two keys. All pieces of such tensors are equal,
    /// so that no byte is read for two digests. The first pieces compare the whole lists; the others have the same
    /// first piece.
    fn is_tied_to(&self, other: &Range<'_>) -> bool {
        let (a, b) = (self.record, other.record);
        let lists_agree = if self.index == 0 { a.pieces == b.pieces } else { a.pieces.first() == b.pieces.first() };
        !std::ptr::eq(a, b)
            && self.index == other.index
            && self.piece == other.piece
            && (&a.spec, a.digest) == (&b.spec, b.digest)
            && lists_agree
    }
}

/// Checks that the pieces cover the whole tensor and have the bytes of their shape.
fn check_pieces(key: &str, TensorRecord { spec, pieces, .. }: &TensorRecord) -> Result<(), FormatError> {
    if spec.shape.len() > MAX_RANK {
        return Err(damaged(format!("the tensor {key:?} has more than {MAX_RANK} dimensions")));
    }
    let total = spec.bytes().ok_or_else(|| damaged(format!("the tensor {key:?} of {spec} is too large")))?;
    let mut next = 0;
    for piece in pieces {
        if piece.name.len() > MAX_TENSOR_NAME || piece.name == METADATA {
            return Err(damaged(format!("the tensor {key:?} has a name in its file that is not allowed")));
        }
        let bytes = match &piece.slice {
            None if pieces.len() == 1 => total,
            None => return Err(damaged(format!("a piece of the tensor {key:?} is all of it, and there is another"))),
            Some(slice) => {
                let length = first_dimension(key, spec, slice, next)?;
                next += length;
                let part = [length];
                let mut lengths = part.iter().chain(spec.shape.iter().skip(1));
                let bytes = lengths.try_fold(spec.dtype.size() as u64, |bytes, length| bytes.checked_mul(*length));
                bytes.ok_or_else(|| damaged(format!("a piece of the tensor {key:?} is too large")))?
            }
        };
        if piece.end.checked_sub(piece.begin) != Some(bytes) {
            let (begin, end) = (piece.begin, piece.end);
            return Err(damaged(format!("{bytes} bytes of the tensor {key:?} cannot be the bytes {begin} to {end}")));
        }
    }
    let complete = match pieces.as_slice() {
        [] => false,
        [Piece { slice: None, .. }] => true,
        _ => spec.shape.first() == Some(&next),
    };
    if complete { Ok(()) } else { Err(damaged(format!("a part of the tensor {key:?} is in no file"))) }
}

/// Returns the length in the first dimension of a slice that starts at `next` and is complete in the other dimensions.
fn first_dimension(key: &str, spec: &TensorSpec, slice: &[[u64; 2]], next: u64) -> Result<u64, FormatError> {
    let fits = slice.len() == spec.shape.len()
        && slice
            .iter()
            .zip(&spec.shape)
            .all(|([start, length], &whole)| start.checked_add(*length).is_some_and(|end| end <= whole));
    if !fits {
        return Err(damaged(format!("a piece of the tensor {key:?} is not a part of its shape {:?}", spec.shape)));
    }
    let whole_otherwise = slice.iter().zip(&spec.shape).skip(1).all(|(part, &whole)| *part == [0, whole]);
    match slice.first() {
        Some(&[start, length]) if whole_otherwise && start == next && length > 0 => Ok(length),
        _ => Err(FormatError::Unsupported(format!(
            "the tensor {key:?} is not cut along its first dimension alone, in order; this version reads no other cut"
        ))),
    }
}

/// Checks that the ranges are disjoint or the same tensor, and leave no gap between the header and the end.
fn check_file_ranges(file: &str, entry: &FileEntry, ranges: &mut [Range<'_>]) -> Result<(), FormatError> {
    ranges.sort_by(|a, b| {
        let order = |range: &Range<'_>| (range.piece.begin, range.piece.end);
        order(a).cmp(&order(b)).then_with(|| a.piece.name.cmp(&b.piece.name))
    });
    let mut names = HashSet::with_capacity(ranges.len());
    let mut end = entry.header.bytes;
    let mut previous: Option<&Range<'_>> = None;
    for range in &*ranges {
        let Range { key, piece, .. } = range;
        if previous.is_some_and(|previous| range.is_tied_to(previous)) {
            continue;
        }
        if piece.begin != end {
            return Err(damaged(format!(
                "the bytes {} to {} of {file:?} cannot be those of {key:?}: the bytes before end at {end}",
                piece.begin, piece.end
            )));
        }
        if !names.insert(piece.name.as_str()) {
            return Err(damaged(format!("the name {:?} stands for two tensors of {file:?}", piece.name)));
        }
        end = piece.end;
        previous = Some(range);
    }
    if end != entry.bytes {
        return Err(damaged(format!("the tensors in {file:?} end at byte {end}, the file at {}", entry.bytes)));
    }
    Ok(())
}

/// Returns `true` if this is a key: names of valid length, escaped as in [`name::key`].
fn is_key(key: &str) -> bool {
    let simple = |part: &str| {
        !part.is_empty() && part.len() <= name::MAX_NAME && part.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'%')
    };
    // Most keys have nothing to unescape; the allocations of the general case would be slow for a million keys.
    key.split('/').all(simple) && key.split('/').nth(name::MAX_NAMES).is_none()
        || name::path(key).is_some_and(|names| names.iter().all(|name| name.len() <= name::MAX_NAME))
}

/// Checks that the tree of the names in these sorted keys takes memory in proportion to the manifest. `least` is the
/// least that an entry takes in the text beside its key.
fn check_tree<'a>(keys: impl Iterator<Item = &'a String>, least: usize) -> Result<(), FormatError> {
    let (mut parents, mut bytes) = (0, 0);
    let mut previous = "";
    for key in keys {
        let above = |key: &str| key.bytes().filter(|&byte| byte == b'/').count();
        let shared = key.split('/').zip(previous.split('/')).take_while(|(a, b)| a == b).count();
        parents += above(key) - shared.min(above(previous)).min(above(key));
        bytes += key.len() + least;
        previous = key;
    }
    if parents <= PARENTS_BESIDE + bytes / BYTES_PER_PARENT {
        return Ok(());
    }
    Err(damaged(format!("its keys nest too deep for their length: {parents} objects have no more than {bytes} bytes")))
}

/// The maximum number of objects with children, plus one more per so many bytes of the manifest. Such an object takes
/// about 1000 bytes of memory in a restore.
const PARENTS_BESIDE: usize = 16_000;
const BYTES_PER_PARENT: usize = 16;

/// Checks a sequence against [`MAX_SEQUENCE`], so that there is always a later one.
pub(super) fn check_sequence(sequence: u64) -> Result<(), FormatError> {
    if sequence <= MAX_SEQUENCE {
        return Ok(());
    }
    Err(damaged(format!("the sequence {sequence} is above {MAX_SEQUENCE}")))
}

/// A number that a writer that counts saves never reaches.
const MAX_SEQUENCE: u64 = 1 << 63;

/// Checks that a run is 32 lower-case hexadecimal digits.
pub(super) fn check_run(run: &str) -> Result<(), FormatError> {
    if run.len() == 32 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(damaged(format!("{run:?} is not the identity of a run: that has 32 lower-case hexadecimal digits")))
}

/// Checks that RFC 3339 can represent the year.
pub(super) fn check_time(time: DateTime<Utc>) -> Result<(), FormatError> {
    if (0..=9999).contains(&time.year()) { Ok(()) } else { Err(damaged(format!("the time {time} is out of range"))) }
}

pub(super) fn check_count(what: &str, entries: usize) -> Result<(), FormatError> {
    let most = json::MAX_ENTRIES;
    if entries <= most { Ok(()) } else { Err(damaged(format!("{entries} {what} are too many, {most} are allowed"))) }
}
