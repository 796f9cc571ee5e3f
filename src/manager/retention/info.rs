//! What a policy looks at.

use crate::catalog::Found;
use crate::format::Follows;
use crate::save::Stamp;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// What is known of a checkpoint without reading its tensors.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckpointInfo {
    /// The name of its directory.
    pub name: String,
    /// The training step, where there is one.
    pub step: Option<u64>,
    /// When it was saved, by the clock of the machine that saved it.
    pub saved_at: DateTime<Utc>,
    /// The metrics that were given with the save or later.
    pub metrics: BTreeMap<String, f64>,
    /// Bytes of all its files but the manifest and the marks.
    pub bytes: u64,
    /// Whether it is marked as kept for good.
    pub permanent: bool,
    /// Its pins: names and notes.
    pub pins: BTreeMap<String, String>,
    /// What was noted about it: names and texts.
    pub notes: BTreeMap<String, String>,
    /// The keys of tensors with values that are NaN or infinite, as far as that was noted
    /// ([`Health`](crate::Health)).
    pub non_finite: Vec<String>,
    /// Whether it was saved after an error, when the state may not have belonged together
    /// ([`unclean_on_failure`](crate::CheckpointManagerBuilder::unclean_on_failure)).
    pub unclean: bool,
    /// The components that were tracked and that it does not have: left out of the save, or removed since.
    pub without: Vec<String>,
    /// The time from which [`Every`](super::Every) counted its intervals when this was saved.
    pub counted_from: Option<DateTime<Utc>>,
    pub(crate) id: Option<Follows>,
    pub(crate) follows: Option<Follows>,
    pub(crate) earlier: Vec<Follows>,
}

impl CheckpointInfo {
    /// A checkpoint of which nothing more is known. The fields are public: set what a test needs.
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
            counted_from: None,
            id: None,
            follows: None,
            earlier: Vec::new(),
        }
    }

    /// Whether all values are finite, as far as that was noted, and the state was not saved after an error that may have
    /// torn it.
    pub fn is_healthy(&self) -> bool {
        self.non_finite.is_empty() && !self.unclean
    }

    /// Whether it has all components that were tracked, so that a run can be resumed from it exactly.
    pub fn is_complete(&self) -> bool {
        self.without.is_empty()
    }

    /// What is saved now as `name`.
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

    /// Its time, or the present if that is earlier.
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
            permanent: entry.preserved,
            pins: found.pins.clone(),
            notes: found.notes.clone(),
            non_finite: found.non_finite.clone(),
            unclean: found.unclean,
            without: found.without.clone(),
            counted_from: found.counted_from,
            id: Some(found.id()),
            follows: found.follows.clone(),
            earlier: found.earlier.clone(),
        }
    }
}
