//! What a source records in addition to tensors and values.

use crate::format::{AssetEntry, Follows};
use crate::name;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a [`TensorSource`](crate::TensorSource) records in addition to its tensors and values. Only checkpoints of this
/// crate have attributes.
///
/// [`convert`](crate::convert::convert) writes them into a checkpoint of this crate, and lists them in
/// [`Written::attributes_left_out`](crate::interop::Written::attributes_left_out) for any other format.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, TensorSource, interop};
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?.metadata("layers", &3)?;
/// let source = interop::open(checkpoint.write(dir.join("seven"))?)?;
/// assert_eq!(source.attributes()?.metadata["layers"], 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SourceAttributes {
    /// The run and the sequence of the checkpoint. A copy gets others.
    pub id: Option<Follows>,
    /// The training step.
    pub step: Option<u64>,
    /// The save counter of its `Checkpoint`.
    pub save_counter: Option<u64>,
    /// The metrics, including those that became known after the save.
    pub metrics: BTreeMap<String, f64>,
    /// What the program recorded about the run and the save, as JSON.
    pub metadata: BTreeMap<String, Value>,
    /// Whether the state was saved after an error and may be inconsistent.
    pub unclean: bool,
    /// The components that were left out of the save, or removed later, sorted.
    pub without: Vec<String>,
    /// The files that are not components, by name; [`TensorSource::read_asset`](crate::TensorSource::read_asset) reads
    /// them.
    pub assets: BTreeMap<String, AssetEntry>,
    /// The attributes of each source, as JSON objects, if it was made from several (an average, a merge): `path`,
    /// `format`, `run`, `sequence`, `step`, `metrics`, the `metadata` that others do not share, and `weight`. A new
    /// checkpoint has it as the metadata `sources`.
    pub sources: Vec<Value>,
    /// Attributes of the checkpoint that the source does not pass on: the reason, by name. Names are keys such as
    /// `metrics/loss`, `metadata/layers`, `assets/tokenizer.json` and `notes/reviewed`.
    pub left_out: BTreeMap<String, String>,
}

/// The name of the metadata that lists the sources of a checkpoint that was made from several.
pub(crate) const SOURCES: &str = "sources";

impl SourceAttributes {
    /// Returns the names of everything that a format without attributes cannot represent.
    #[cfg(feature = "pytorch")]
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.step.iter().map(|_| "step".to_string()).collect();
        names.extend(self.metrics.keys().map(|name| of("metrics", name)));
        names.extend(self.metadata.keys().map(|name| of("metadata", name)));
        names.extend(self.assets.keys().map(|name| of("assets", name)));
        names
    }
}

/// Returns the name of an attribute.
pub(crate) fn of(kind: &str, name: &str) -> String {
    name::key([kind, name])
}
