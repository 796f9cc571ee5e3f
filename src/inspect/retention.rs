//! Which checkpoints there are, and which of them a policy keeps.

use super::{lossy, lossy_all};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::manager::CheckpointDirectory;
use crate::manager::retention::{CheckpointInfo, Explanation, Goal, RetentionPolicy};
use crate::sync::Arc;
use serde::{Serialize, Serializer};
use std::path::Path;

/// A checkpoint that [`latest`] or [`best`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FoundCheckpoint {
    /// Its directory.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The name of its directory.
    pub name: String,
    /// The training step, if it has one.
    pub step: Option<u64>,
    /// The value of the metric that [`best`] compared.
    pub value: Option<f64>,
}

/// What retention policies decide; see [`explain`] and [`prune`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RetentionReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<RetentionEntry>,
    /// What [`prune`] removed.
    #[serde(serialize_with = "lossy_all")]
    pub removed: Vec<Location>,
    /// What [`prune`] was to remove and did not, with the reason.
    #[serde(serialize_with = "lossy_pairs")]
    pub spared: Vec<(Location, String)>,
}

/// What keeps a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetentionEntry {
    /// The name of its directory.
    pub name: String,
    /// The training step, if it has one.
    pub step: Option<u64>,
    /// Whether anything keeps it.
    pub kept: bool,
    /// What keeps it, each with what would end that.
    pub kept_by: Vec<String>,
    /// The components that it lacks: left out of the save, or removed later.
    pub without: Vec<String>,
}

/// Whether a checkpoint has a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PinState {
    /// The checkpoint.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The name of the pin.
    pub pin: String,
    /// Whether the checkpoint has it now.
    pub pinned: bool,
}

impl PinState {
    /// Describes the pin `pin` of the checkpoint `path`.
    pub fn new(path: impl Into<Location>, pin: impl Into<String>, pinned: bool) -> PinState {
        PinState { path: path.into(), pin: pin.into(), pinned }
    }
}

/// A note of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NoteState {
    /// The checkpoint.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The name of the note.
    pub note: String,
    /// The text of the note.
    pub text: String,
}

impl NoteState {
    /// Describes the note `note` of the checkpoint `path`.
    pub fn new(path: impl Into<Location>, note: impl Into<String>, text: impl Into<String>) -> NoteState {
        NoteState { path: path.into(), note: note.into(), text: text.into() }
    }
}

/// Returns the newest checkpoint in `directory`, healthy or not.
///
/// # Errors
/// [`Error::NotFound`] if there is none; otherwise as for [`CheckpointDirectory::latest`].
pub fn latest(directory: impl AsRef<Path>) -> Result<FoundCheckpoint> {
    let directory = directory.as_ref();
    let found = CheckpointDirectory::new(directory).latest()?;
    found_in(directory, found, |_| None, || "it has no checkpoint".to_string())
}

/// Returns the healthy checkpoint in `directory` with the best finite value of `metric`, the newer one of two with the
/// same value.
///
/// # Errors
/// [`Error::NotFound`] if no healthy checkpoint has a finite value; otherwise as for [`CheckpointDirectory::best`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, inspect, retention::Goal};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let mut manager = CheckpointManager::builder(checkpoint, dir).open()?;
/// for (step, loss) in [(1, 0.5), (2, 0.2), (3, 0.9)] {
///     manager.save_with_metrics(step, [("loss", loss)])?;
/// }
/// assert_eq!(inspect::best(dir, "loss", Goal::Minimize)?.step, Some(2));
/// # Ok(())
/// # }
/// ```
pub fn best(directory: impl AsRef<Path>, metric: &str, goal: Goal) -> Result<FoundCheckpoint> {
    let directory = directory.as_ref();
    let found = CheckpointDirectory::new(directory).best(metric, goal)?;
    let value = |info: &CheckpointInfo| info.metrics.get(metric).copied();
    found_in(directory, found, value, || format!("no healthy checkpoint has a finite value of the metric {metric:?}"))
}

fn found_in(
    directory: &Path,
    found: Option<CheckpointInfo>,
    value: impl Fn(&CheckpointInfo) -> Option<f64>,
    missing: impl Fn() -> String,
) -> Result<FoundCheckpoint> {
    let info = found.ok_or_else(|| Error::not_found(directory, missing()))?;
    let value = value(&info);
    Ok(FoundCheckpoint { path: directory.join(&info.name).into(), name: info.name, step: info.step, value })
}

/// Reports for each checkpoint in `directory` what keeps it under `policies`. Changes nothing.
///
/// # Errors
/// As for [`CheckpointDirectory::explain`].
pub fn explain(directory: impl AsRef<Path>, policies: &[Arc<dyn RetentionPolicy>]) -> Result<RetentionReport> {
    let directory = directory.as_ref();
    Ok(report(directory, &CheckpointDirectory::new(directory).explain(policies)?))
}

/// Removes the checkpoints in `directory` that nothing keeps under `policies`. Takes the writer's lock.
///
/// # Errors
/// As for [`CheckpointDirectory::prune`].
pub fn prune(directory: impl AsRef<Path>, policies: &[Arc<dyn RetentionPolicy>]) -> Result<RetentionReport> {
    let directory = directory.as_ref();
    let checkpoints = CheckpointDirectory::new(directory);
    let mut report = report(directory, &checkpoints.explain(policies)?);
    let pruned = checkpoints.prune(policies)?;
    (report.removed, report.spared) = (pruned.removed, pruned.spared);
    Ok(report)
}

fn report(directory: &Path, explanations: &[Explanation]) -> RetentionReport {
    let entry = |explanation: &Explanation| RetentionEntry {
        name: explanation.checkpoint.name.clone(),
        step: explanation.checkpoint.step,
        kept: explanation.is_kept(),
        kept_by: explanation.kept_by.iter().map(ToString::to_string).collect(),
        without: explanation.checkpoint.without.clone(),
    };
    RetentionReport {
        directory: directory.into(),
        checkpoints: explanations.iter().map(entry).collect(),
        removed: Vec::new(),
        spared: Vec::new(),
    }
}

fn lossy_pairs<S: Serializer>(pairs: &[(Location, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(pairs.iter().map(|(path, reason)| (path.to_string_lossy(), reason)))
}
