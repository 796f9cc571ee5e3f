//! The index of a manager's directory: a cache. The checkpoints in the directory are the truth.

use super::envelope::Envelope;
use super::json;
use super::manifest::{check_count, check_run, check_sequence, check_time};
use super::{FormatError, damaged};
use crate::error::{Error, Result};
use chrono::{DateTime, Utc};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// The maximum length of an index, in bytes. Check the length of the file before reading it.
pub const MAX_INDEX_BYTES: usize = 64 * 1024 * 1024;

const ENVELOPE: Envelope =
    Envelope { format: "tch-checkpoint-index", version: 2, max_bytes: MAX_INDEX_BYTES, what: "index" };

/// A cache of a directory's checkpoints, so that a manager need not read every manifest. It may be lost or stale.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Index {
    /// The newest checkpoint's name.
    pub latest: Option<String>,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<IndexEntry>,
    /// When the last permanent checkpoint was saved.
    pub last_permanent: Option<DateTime<Utc>>,
}

/// A checkpoint in the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct IndexEntry {
    /// Its directory's name.
    pub name: String,
    /// As in its manifest.
    pub sequence: u64,
    /// As in its manifest.
    pub run: String,
    /// As in its manifest.
    #[serde(deserialize_with = "Option::deserialize")]
    pub step: Option<u64>,
    /// As in its manifest.
    pub saved_at: DateTime<Utc>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// As in its manifest.
    #[serde(serialize_with = "json::write_metrics", deserialize_with = "json::read_metrics")]
    pub metrics: BTreeMap<String, f64>,
    /// Whether it is kept permanently.
    #[serde(rename = "preserved")]
    pub permanent: bool,
}

impl Index {
    /// Returns the text of the file, with one checkpoint per line.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an index that [`from_bytes`](Index::from_bytes) would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check().map_err(|e| e.unwritable("the index"))?;
        let text = self.lines().map_err(|e| Error::InvalidArgument(format!("the index cannot be written: {e}")))?;
        ENVELOPE.close(text).map_err(|e| e.unwritable("the index"))
    }

    /// Returns the lowest version that can represent this index.
    fn version(&self) -> u64 {
        let mut metrics = self.checkpoints.iter().flat_map(|entry| entry.metrics.values());
        if metrics.all(|value| value.is_finite()) { 1 } else { 2 }
    }

    /// Returns all lines but the last.
    fn lines(&self) -> Result<Vec<u8>, String> {
        let mut text = ENVELOPE.open(self.version());
        text.extend_from_slice(b"\"latest\":");
        json::append(&mut text, &self.latest)?;
        text.extend_from_slice(b",\n\"last_preserved\":");
        json::append(&mut text, &self.last_permanent)?;
        text.extend_from_slice(b",\n\"checkpoints\":[\n");
        for (i, entry) in self.checkpoints.iter().enumerate() {
            if i > 0 {
                text.extend_from_slice(b",\n");
            }
            json::append(&mut text, entry)?;
        }
        text.extend_from_slice(if self.checkpoints.is_empty() { b"],\n" } else { b"\n],\n" });
        Ok(text)
    }

    /// Reads an index.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unsupported`] for an index of a newer version, [`FormatError::Damaged`] for every other
    /// difference from what a writer writes. Neither is fatal: all of it follows from the checkpoints themselves.
    ///
    /// ```
    /// use tch_checkpoint::format::Index;
    /// let index = Index::default();
    /// assert_eq!(Index::from_bytes(&index.to_bytes()?), Ok(index));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Result<Index, FormatError> {
        let version = ENVELOPE.check(bytes)?;
        let text: Text = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        let index = Index { latest: text.latest, checkpoints: text.checkpoints, last_permanent: text.last_preserved };
        if index.version() > version {
            return Err(damaged(format!("it has version {version}, and has metrics that only version 2 has")));
        }
        index.check()?;
        Ok(index)
    }

    fn check(&self) -> Result<(), FormatError> {
        let mut names = HashSet::new();
        for entry in &self.checkpoints {
            check_name(&entry.name)?;
            if !names.insert(&entry.name) {
                return Err(damaged(format!("{:?} is listed twice", entry.name)));
            }
            check_sequence(entry.sequence)?;
            check_run(&entry.run)?;
            check_time(entry.saved_at)?;
            check_count("metrics", entry.metrics.len())?;
        }
        self.latest.as_deref().map_or(Ok(()), check_name)?;
        self.last_permanent.map_or(Ok(()), check_time)
    }
}

/// Checks the name of a checkpoint, which the user chooses. It must not lead out of the directory, or be the name of
/// something else in it.
fn check_name(checkpoint: &str) -> Result<(), FormatError> {
    if !checkpoint.is_empty() && !checkpoint.starts_with('.') && !checkpoint.contains(['/', '\0']) {
        return Ok(());
    }
    Err(damaged(format!("{checkpoint:?} is not the name of a checkpoint")))
}

/// An index's JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    // Without `deserialize_with`, a field that may be null may also be missing.
    #[serde(deserialize_with = "Option::deserialize")]
    latest: Option<String>,
    #[serde(deserialize_with = "Option::deserialize")]
    last_preserved: Option<DateTime<Utc>>,
    checkpoints: Vec<IndexEntry>,
    #[serde(rename = "xxh3_128")]
    _digest: IgnoredAny,
}
