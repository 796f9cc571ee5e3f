//! Selects checkpoints, and reports which of them a policy keeps.

use super::target::directory_at;
use super::{lossy, lossy_all};
use crate::catalog::numbered;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::manager::CheckpointDirectory;
use crate::manager::retention::{CheckpointInfo, Explanation, Goal, RetentionPolicy, labels};
use crate::sync::Arc;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
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
    /// The labels of the policies ([`RetentionPolicy::label`]). Without policies, the report has only the reasons that
    /// do not depend on them.
    pub policies: Vec<String>,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<RetentionEntry>,
    /// What [`prune`] removed.
    #[serde(serialize_with = "lossy_all")]
    pub removed: Vec<Location>,
    /// What [`prune`] should have removed and could not, with the reason.
    #[serde(serialize_with = "lossy_pairs")]
    pub spared: Vec<(Location, String)>,
    /// The components that [`prune`] removed from checkpoints that it kept.
    #[serde(serialize_with = "lossy_pairs")]
    pub thinned: Vec<(Location, String)>,
}

impl RetentionReport {
    /// Leaves out all checkpoints except the one that `selection` selects
    /// ([`CheckpointDirectory::select`](crate::CheckpointDirectory::select)).
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such checkpoint, or if it belongs to a run to which the policies do not
    /// apply; otherwise as for [`CheckpointDirectory::select`].
    pub fn only(mut self, selection: &str) -> Result<RetentionReport> {
        let name = CheckpointDirectory::new(&self.directory).select(selection)?.name;
        self.checkpoints.retain(|entry| entry.name == name);
        match self.checkpoints.is_empty() {
            true => {
                let reason = match numbered(&name) {
                    Some(_) => "it belongs to another run than the newest checkpoint, and no policy applies to it",
                    None => "its name has no number, so that no policy applies to it, and nothing removes it",
                };
                Err(Error::not_found(self.directory.join(name), reason.to_string()))
            }
            false => Ok(self),
        }
    }
}

/// What keeps a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetentionEntry {
    /// The name of its directory.
    pub name: String,
    /// The training step, if it has one.
    pub step: Option<u64>,
    /// Whether it is kept.
    pub kept: bool,
    /// What keeps it, each with what would end that.
    pub kept_by: Vec<String>,
    /// The components that it lacks: left out of the save, or removed later.
    pub without: Vec<String>,
    /// The components that [`prune`] removes from it although it keeps it.
    pub loses: Vec<String>,
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
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// Checkpoint::new().track("step", Counter::new(7))?.save(dir.join("ckpt"))?;
/// assert_eq!(inspect::latest(&dir)?.name, "ckpt-1");
/// # Ok(())
/// # }
/// ```
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

/// Reports for each checkpoint in `directory` what keeps it under `policies`; without policies, what keeps it
/// regardless of them. `components` maps components that only the newest checkpoints keep to the number of these
/// checkpoints ([`CheckpointDirectory::keep_component`]). Changes nothing.
///
/// # Errors
/// [`Error::NotFound`] if there is no such directory; [`Error::InvalidArgument`] if `directory` is a checkpoint; as for
/// [`CheckpointDirectory::explain`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use std::collections::BTreeMap;
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, inspect};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// CheckpointManager::builder(checkpoint, dir).open()?.save_at(7)?;
/// let report = inspect::explain(dir, &[], &BTreeMap::new())?.only("7")?;
/// assert_eq!(report.checkpoints[0].kept_by, ["it is the newest, until another one is saved"]);
/// # Ok(())
/// # }
/// ```
pub fn explain(
    directory: impl AsRef<Path>,
    policies: &[Arc<dyn RetentionPolicy>],
    components: &BTreeMap<String, usize>,
) -> Result<RetentionReport> {
    let directory = directory.as_ref();
    let explanations = at(directory, components).explain(policies)?;
    if explanations.is_empty() {
        directory_at(directory).map(drop)?;
    }
    Ok(report(directory, policies, &explanations))
}

/// Removes the checkpoints in `directory` that nothing keeps under `policies`, and from the kept ones the components
/// that only newer ones keep. Takes the writer's lock, unless there is no checkpoint.
///
/// # Errors
/// As for [`explain`] and [`CheckpointDirectory::prune`].
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use std::collections::BTreeMap;
/// use std::sync::Arc;
/// use tch_checkpoint::inspect;
/// use tch_checkpoint::retention::Latest;
/// // The newest 10, of which the newest 2 keep the optimizer.
/// let components = BTreeMap::from([("optimizer".to_string(), 2)]);
/// let report = inspect::prune("checkpoints/run", &[Arc::new(Latest(10))], &components)?;
/// println!("removed {:?}", report.removed);
/// # Ok(())
/// # }
/// ```
pub fn prune(
    directory: impl AsRef<Path>,
    policies: &[Arc<dyn RetentionPolicy>],
    components: &BTreeMap<String, usize>,
) -> Result<RetentionReport> {
    let mut report = explain(&directory, policies, components)?;
    if report.checkpoints.is_empty() {
        return Ok(report);
    }
    let pruned = at(directory.as_ref(), components).prune(policies)?;
    (report.removed, report.spared, report.thinned) = (pruned.removed, pruned.spared, pruned.thinned);
    Ok(report)
}

fn at(directory: &Path, components: &BTreeMap<String, usize>) -> CheckpointDirectory {
    let checkpoints = CheckpointDirectory::new(directory);
    components.iter().fold(checkpoints, |checkpoints, (component, keep)| checkpoints.keep_component(component, *keep))
}

fn report(directory: &Path, policies: &[Arc<dyn RetentionPolicy>], explanations: &[Explanation]) -> RetentionReport {
    let entry = |explanation: &Explanation| RetentionEntry {
        name: explanation.checkpoint.name.clone(),
        step: explanation.checkpoint.step,
        kept: explanation.is_kept(),
        kept_by: explanation.kept_by.iter().map(ToString::to_string).collect(),
        without: explanation.checkpoint.without.clone(),
        loses: explanation.loses.clone(),
    };
    RetentionReport {
        directory: directory.into(),
        policies: labels(policies),
        checkpoints: explanations.iter().map(entry).collect(),
        removed: Vec::new(),
        spared: Vec::new(),
        thinned: Vec::new(),
    }
}

fn lossy_pairs<S: Serializer>(pairs: &[(Location, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(pairs.iter().map(|(path, reason)| (path.to_string_lossy(), reason)))
}
