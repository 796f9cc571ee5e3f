//! The manifest as text.

use super::{AssetEntry, FileEntry, Follows, MAX_MANIFEST_BYTES, Manifest, Piece, Statistics, TensorRecord};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::envelope::Envelope;
use crate::format::json::{self, Sorted, Unique, Values};
use crate::format::safetensors::Shape;
use crate::format::{Digest, FormatError, damaged, dtype_named};
use chrono::{DateTime, Utc};
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

const ENVELOPE: Envelope =
    Envelope { format: "tch-checkpoint", version: 6, max_bytes: MAX_MANIFEST_BYTES, what: "manifest" };

impl Manifest {
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
        if self.figures.is_some() {
            return 6;
        }
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
        let (unclean, without, figures) = (self.unclean, self.without.clone(), self.figures);
        let commit = Commit { sequence, run, saved_at, follows, earlier, counted_from, unclean, without, figures };
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
            figures: text.commit.figures,
        };
        if manifest.version() > version {
            let newer = manifest.version();
            return Err(damaged(format!("it has version {version}, and has what only version {newer} has")));
        }
        manifest.check()?;
        Ok(manifest)
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
    save_counter: Option<u64>,
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
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    figures: Option<SaveFigures>,
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
