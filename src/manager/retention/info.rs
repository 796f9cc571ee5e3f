//! The information about a checkpoint on which policies decide.

use crate::catalog::Found;
use crate::format::Follows;
use crate::save::Stamp;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Information about a checkpoint that is available without reading its tensors.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckpointInfo {
    /// The name of its directory.
    pub name: String,
    /// The training step, if there is one.
    pub step: Option<u64>,
    /// When it was saved, by the clock of the machine that saved it.
    pub saved_at: DateTime<Utc>,
    /// The metrics that were recorded with the save or added later.
    pub metrics: BTreeMap<String, f64>,
    /// Bytes of all its files but the manifest and the marks.
    pub bytes: u64,
    /// Whether it is permanent.
    pub permanent: bool,
    /// Its pins: names and notes.
    pub pins: BTreeMap<String, String>,
    /// Its notes: names and texts.
    pub notes: BTreeMap<String, String>,
    /// The keys of tensors with values that are NaN or infinite, as far as they were recorded
    /// ([`Health`](crate::Health)).
    pub non_finite: Vec<String>,
    /// Whether it was saved after an error and may be inconsistent
    /// ([`unclean_on_failure`](crate::CheckpointManagerBuilder::unclean_on_failure)).
    pub unclean: bool,
    /// The tracked components that it lacks: left out of the save, or removed later.
    pub without: Vec<String>,
    /// The components with files of their own, which
    /// [`keep_component`](crate::CheckpointManagerBuilder::keep_component) can remove without the others.
    pub components: Vec<String>,
    /// The time from which [`Every`](super::Every) counted its intervals when this was saved.
    pub counted_from: Option<DateTime<Utc>>,
    /// A mark cannot be read, so none of its components are removed.
    pub(crate) has_unknown_mark: bool,
    pub(crate) id: Option<Follows>,
    pub(crate) follows: Option<Follows>,
    pub(crate) earlier: Vec<Follows>,
}

impl CheckpointInfo {
    /// Creates the information about a checkpoint. Set the public fields as needed, for example in tests.
    pub fn new(name: impl Into<String>, saved_at: DateTime<Utc>) -> CheckpointInfo {
        CheckpointInfo {
            name: name.into(),
            step: None,
            saved_at,
            metrics: BTreeMap::new(),
            bytes: 0,
            permanent: false,
            pins: BTreeMap::new(),
            notes: BTreeMap::new(),
            non_finite: Vec::new(),
            unclean: false,
            without: Vec::new(),
            components: Vec::new(),
            counted_from: None,
            has_unknown_mark: false,
            id: None,
            follows: None,
            earlier: Vec::new(),
        }
    }

    /// Returns `true` if all values are finite, as far as they were recorded, and the state is not unclean.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.non_finite.is_empty() && !self.unclean
    }

    /// Returns `true` if it has all tracked components, so that a run can be resumed from it exactly.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.without.is_empty()
    }

    /// Describes the checkpoint that is being saved as `name`.
    pub(crate) fn of_save(name: &str, stamp: &Stamp, now: DateTime<Utc>) -> CheckpointInfo {
        CheckpointInfo {
            step: stamp.step,
            metrics: stamp.metrics.clone(),
            unclean: stamp.unclean,
            without: stamp.without.clone(),
            counted_from: stamp.counted_from,
            id: Some(Follows { run: stamp.run.clone(), sequence: stamp.sequence }),
            follows: stamp.follows.clone(),
            earlier: stamp.earlier.clone(),
            ..CheckpointInfo::new(name, now)
        }
    }

    /// Returns its time, or the present if that is earlier.
    pub(super) fn time(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.saved_at.min(now)
    }
}

impl From<&Found> for CheckpointInfo {
    fn from(found: &Found) -> CheckpointInfo {
        let entry = &found.entry;
        CheckpointInfo {
            name: entry.name.clone(),
            step: entry.step,
            saved_at: entry.saved_at,
            metrics: entry.metrics.clone(),
            bytes: entry.bytes,
            permanent: entry.permanent || found.has_unknown_mark,
            pins: found.pins.clone(),
            notes: found.notes.clone(),
            non_finite: found.non_finite.clone(),
            unclean: found.unclean,
            without: found.without.clone(),
            components: found.separable.clone(),
            counted_from: found.counted_from,
            has_unknown_mark: found.has_unknown_mark,
            id: Some(found.id()),
            follows: found.follows.clone(),
            earlier: found.earlier.clone(),
        }
    }
}
