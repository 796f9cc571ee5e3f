//! Where checkpoints come from.

use crate::format::{Follows, Manifest};
use crate::inspect::listing::CheckpointEntry;
use crate::provenance::{PROVENANCE, Provenance};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A run of a program, and what it recorded about itself.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunOrigin {
    /// The run, as in [`CheckpointEntry::run`].
    pub run: String,
    /// The number of its checkpoints.
    pub checkpoints: usize,
    /// The name of its first checkpoint that still exists.
    pub first: String,
    /// The name of its last checkpoint.
    pub last: String,
    /// The checkpoint that its first one followed: the one it was restored from, unless that was saved by the same run.
    pub follows: Option<Follows>,
    /// The [`Provenance`] that it recorded, if any.
    pub provenance: Option<Provenance>,
    /// The other metadata of its last checkpoint, by name.
    pub metadata: BTreeMap<String, Value>,
}

/// The runs so far, in the order of their first checkpoints.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<RunOrigin>);

impl Runs {
    /// Adds the next checkpoint.
    pub(super) fn add(&mut self, entry: &CheckpointEntry, manifest: &Manifest) {
        let at = self.0.iter().position(|run| run.run == entry.run).unwrap_or_else(|| {
            self.0.push(RunOrigin {
                run: entry.run.clone(),
                checkpoints: 0,
                first: entry.name.clone(),
                last: String::new(),
                follows: manifest.follows.clone().filter(|follows| follows.run != entry.run),
                provenance: None,
                metadata: BTreeMap::new(),
            });
            self.0.len() - 1
        });
        let Some(run) = self.0.get_mut(at) else { return };
        run.checkpoints += 1;
        run.last = entry.name.clone();
        run.provenance = Provenance::of(&manifest.metadata).or(run.provenance.take());
        let others =
            manifest.metadata.iter().filter(|(name, _)| name.as_str() != PROVENANCE || run.provenance.is_none());
        run.metadata = others.map(|(name, value)| (name.clone(), value.clone())).collect();
    }

    pub(super) fn finish(self) -> Vec<RunOrigin> {
        self.0
    }
}
