//! A complete run, as data: what `ckpt report` draws.

mod files;
mod gaps;
mod histories;
mod options;
mod origin;
mod point;
mod trend;

pub use gaps::ReportGap;
pub use histories::TensorHistory;
pub use options::ReportOptions;
pub use origin::RunOrigin;
pub use point::TensorPoint;
pub use trend::Trend;

use super::listing::{CheckpointEntry, OtherEntry};
use super::problem::Problem;
use super::target::Target;
use super::{lossy, retention};
use crate::error::Result;
use crate::location::Location;
use crate::manager::retention::labels;
use crate::name;
use crate::source::Source;
use files::Files;
use histories::Histories;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The maximum number of points of all tensors together.
const POINTS: usize = 250_000;

/// The maximum number of histograms of a tensor, and of all tensors together.
const HISTOGRAMS_EACH: usize = 12;
const HISTOGRAMS: usize = 120_000;

/// A run: its checkpoints, and how its tensors changed; see [`report`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// The name of the newest valid checkpoint. `None` if there is none, or if [`undecided`](Self::undecided) names
    /// two.
    pub latest: Option<String>,
    /// The names of two checkpoints of different runs, if nothing decides which one is the newest.
    pub undecided: Option<(String, String)>,
    /// The policies of [`kept_by`](ReportedCheckpoint::kept_by).
    pub policies: Vec<String>,
    /// The valid checkpoints, oldest first.
    pub checkpoints: Vec<ReportedCheckpoint>,
    /// What else this crate left in the directory, including damaged checkpoints.
    pub others: Vec<OtherEntry>,
    /// The gaps left by saves that are no longer in the directory.
    pub gaps: Vec<ReportGap>,
    /// The runs that saved the checkpoints, oldest first.
    pub runs: Vec<RunOrigin>,
    /// The positions in [`checkpoints`](Self::checkpoints) of those that [`TensorHistory::points`] describes.
    pub sampled: Vec<usize>,
    /// The tensors, by key.
    pub tensors: Vec<TensorHistory>,
}

/// A checkpoint of a [`RunReport`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ReportedCheckpoint {
    /// Its entry in a listing.
    #[serde(flatten)]
    pub entry: CheckpointEntry,
    /// What keeps it under the policies, each with what would end that. `None` for checkpoints of other runs, to which
    /// no policy applies.
    pub kept_by: Option<Vec<String>>,
    /// Bytes of the tensors by component.
    pub components: BTreeMap<String, u64>,
    /// Bytes of files that no earlier checkpoint of the directory has.
    pub written_bytes: u64,
    /// Bytes of files that are hard links to those of an earlier checkpoint of the directory.
    pub linked_bytes: u64,
    /// The problem that reading it for the report revealed, if any.
    pub problem: Option<Problem>,
}

/// Describes the run in a directory of checkpoints.
///
/// Reads the tensors of up to [`samples`](ReportOptions::samples) checkpoints in pieces of 512 KiB, and verifies what
/// it reads. A tensor that changed is read again, together with the one in the previous sample, to compare them. Takes
/// no lock. Memory is bounded by the manifests of two checkpoints and about 100 MB, regardless of the sizes of the
/// tensors.
///
/// # Errors
/// As for [`list`](super::list). A checkpoint that cannot be read is not an error: it has a
/// [`problem`](ReportedCheckpoint::problem).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::inspect::{self, ReportOptions};
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let mut manager = CheckpointManager::builder(checkpoint, dir).max_to_keep(2).open()?;
/// for step in 1..=5 {
///     manager.save_at(step)?;
/// }
/// let report = inspect::report(dir, &ReportOptions::default())?;
/// assert_eq!(report.checkpoints.len(), 2);
/// assert_eq!(report.gaps[0].missing, 3);
/// # Ok(())
/// # }
/// ```
pub fn report(path: impl Into<Location>, options: &ReportOptions) -> Result<RunReport> {
    let path = &path.into();
    let listing = super::list(path)?;
    let kept_by = kept_by(path, options);
    let tensors = listing.checkpoints.iter().map(|entry| entry.tensors).max().unwrap_or(0).max(1);
    let sampled = spread(listing.checkpoints.len(), options.samples.min((POINTS / tensors).max(2)));
    let histograms = spread(sampled.len(), HISTOGRAMS_EACH.min(HISTOGRAMS / tensors));
    let mut files = Files::default();
    let mut runs = origin::Runs::default();
    let mut histories = Histories::new(&options.tensors);
    let mut checkpoints = Vec::with_capacity(listing.checkpoints.len());
    for (at, entry) in listing.checkpoints.into_iter().enumerate() {
        let mut checkpoint = ReportedCheckpoint::new(entry, &kept_by);
        let opened = Target::open(&checkpoint.entry.path);
        let target = opened.map_err(|error| checkpoint.problem = Some(Problem::of(&error))).ok();
        let source = target.as_ref().and_then(Target::own_source);
        if let Some(source) = source {
            checkpoint.describe(source);
            (checkpoint.written_bytes, checkpoint.linked_bytes) = files.count(source);
            runs.add(&checkpoint.entry, &source.manifest);
        }
        if let Ok(sample) = sampled.binary_search(&at) {
            let failed = histories.add(target, histograms.binary_search(&sample).is_ok());
            checkpoint.problem = checkpoint.problem.or_else(|| failed.as_ref().map(Problem::of));
        }
        checkpoints.push(checkpoint);
    }
    Ok(RunReport {
        directory: listing.directory,
        latest: listing.latest,
        undecided: listing.undecided,
        policies: labels(&options.policies),
        gaps: gaps::of(&checkpoints, &listing.others),
        checkpoints,
        others: listing.others,
        runs: runs.finish(),
        sampled,
        tensors: histories.finish(),
    })
}

impl ReportedCheckpoint {
    fn new(entry: CheckpointEntry, kept_by: &BTreeMap<String, Vec<String>>) -> ReportedCheckpoint {
        ReportedCheckpoint {
            kept_by: kept_by.get(&entry.name).cloned(),
            entry,
            components: BTreeMap::new(),
            written_bytes: 0,
            linked_bytes: 0,
            problem: None,
        }
    }

    /// Adds the content of the manifest.
    fn describe(&mut self, source: &Source) {
        let mut stored = BTreeSet::new();
        for (key, record) in &source.manifest.tensors {
            let component = self.components.entry(name::component(key).to_string()).or_default();
            // Tied tensors have the same pieces.
            for piece in record.pieces.iter().filter(|piece| stored.insert((&piece.file, piece.begin, piece.end))) {
                *component = component.saturating_add(piece.end - piece.begin);
            }
        }
    }
}

/// Returns what keeps each checkpoint, by name; empty if nothing decides which run the policies concern.
fn kept_by(path: &Location, options: &ReportOptions) -> BTreeMap<String, Vec<String>> {
    match retention::explain(path, &options.policies, &BTreeMap::new()) {
        Ok(report) => report.checkpoints.into_iter().map(|entry| (entry.name, entry.kept_by)).collect(),
        Err(error) => {
            log::debug!("what keeps the checkpoints of {} is not known: {error:#}", path.display());
            BTreeMap::new()
        }
    }
}

/// Returns at most `samples` positions below `count`, evenly spaced, with the first and the last one. A single sample
/// is the last one.
fn spread(count: usize, samples: usize) -> Vec<usize> {
    match samples.min(count) {
        0 => Vec::new(),
        1 => vec![count - 1],
        samples => (0..samples).map(|at| at * (count - 1) / (samples - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn samples_are_spread_from_the_first_to_the_last() {
        assert!(spread(0, 5).is_empty());
        assert!(spread(5, 0).is_empty());
        assert_eq!(spread(5, 1), [4]);
        assert_eq!(spread(5, 2), [0, 4]);
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
    }
}
