//! The manifest: the content of a checkpoint, with digests.

mod check;
mod text;
mod thin;

pub(crate) use check::MAX_SEQUENCE;
pub(super) use check::{check_count, check_run, check_sequence, check_time};

use super::Digest;
use crate::dtype::TensorSpec;
use crate::figures::SaveFigures;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The maximum length of a manifest, in bytes: enough for about two million tensors. Check the length of the file
/// before reading it.
pub const MAX_MANIFEST_BYTES: usize = 512 * 1024 * 1024;

/// The content of a checkpoint: files, tensors and values, with digests.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Manifest {
    /// The training step, if there is one.
    pub step: Option<u64>,
    /// The number of times that the `Checkpoint` was saved, including this save.
    pub save_counter: Option<u64>,
    /// The safetensors files by name. Each byte of each file is covered by at least one digest: the header's or a
    /// tensor's.
    pub files: BTreeMap<String, FileEntry>,
    /// Other files by name, each with a digest, such as the program, signatures and examples of a saved model.
    pub assets: BTreeMap<String, AssetEntry>,
    /// The tensors by key (see [`name`](crate::name)). Two keys whose pieces are the same are one tensor under two
    /// names.
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
    /// The cost of the save, up to the writing of the manifest. `None` in manifests of versions 1 to 5, and of
    /// checkpoints that were converted or copied.
    pub figures: Option<SaveFigures>,
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
#[non_exhaustive]
pub struct FileEntry {
    /// The length of the whole file.
    pub bytes: u64,
    /// The part before the data section.
    pub header: HeaderEntry,
}

impl FileEntry {
    /// Returns the entry of a file of so many `bytes`, its header included.
    #[must_use]
    pub fn new(bytes: u64, header: HeaderEntry) -> FileEntry {
        FileEntry { bytes, header }
    }
}

/// The part of a file before its data section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HeaderEntry {
    /// Its length; the data section starts there.
    pub bytes: u64,
    /// Its digest, over the 8 bytes of the length, the JSON and the padding.
    #[serde(rename = "xxh3_128")]
    pub digest: Digest,
}

impl HeaderEntry {
    /// Returns the entry of a header of so many `bytes`.
    #[must_use]
    pub fn new(bytes: u64, digest: Digest) -> HeaderEntry {
        HeaderEntry { bytes, digest }
    }
}

/// A file of a checkpoint that is not a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AssetEntry {
    /// The length of the file.
    pub bytes: u64,
    /// Its digest.
    #[serde(rename = "xxh3_128")]
    pub digest: Digest,
}

impl AssetEntry {
    /// Returns the entry of a file of so many `bytes`.
    #[must_use]
    pub fn new(bytes: u64, digest: Digest) -> AssetEntry {
        AssetEntry { bytes, digest }
    }
}

/// Statistics of the values of a float tensor, recorded by a save. The parts of complex numbers count as values.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The number of values that are NaN or infinite.
    pub non_finite: u64,
    /// The L2 norm of the finite values, accurate to about five digits.
    pub norm: f64,
    /// The smallest and the largest finite value; `None` if there is none, or if it was not recorded.
    pub range: Option<(f64, f64)>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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

impl TensorRecord {
    /// Returns the record of a tensor without a gradient flag and statistics.
    #[must_use]
    pub fn new(spec: TensorSpec, digest: Digest, pieces: Vec<Piece>) -> TensorRecord {
        TensorRecord { spec, digest, pieces, requires_grad: None, statistics: None }
    }
}

/// Consecutive elements of a tensor in one file, under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
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

impl Piece {
    /// Returns a piece that is the whole tensor.
    pub fn new(file: impl Into<String>, name: impl Into<String>, bytes: Range<u64>) -> Piece {
        Piece { file: file.into(), name: name.into(), begin: bytes.start, end: bytes.end, slice: None }
    }
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
            figures: None,
        }
    }

    /// Returns the identity of the checkpoint, independent of its name, by which marks and later manifests refer to it.
    #[must_use]
    pub fn id(&self) -> Follows {
        Follows { run: self.run.clone(), sequence: self.sequence }
    }

    /// Returns this checkpoint and the checkpoints of earlier runs from which it descends: the `earlier` of a
    /// checkpoint that follows it.
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
}
