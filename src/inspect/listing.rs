//! What is in a directory of checkpoints.

use super::files::files_in;
use super::problem::{Problem, ProblemKind};
use super::target::{Place, directories_below, place};
use super::{lossy, lossy_all, retention};
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::MANIFEST_FILE;
use crate::location::Location;
use crate::manager::retention::{Best, CheckpointInfo, Goal};
use crate::manager::{ListedCheckpoint, Listing};
use crate::parallel;
use crate::provenance::Provenance;
use crate::reader::CheckpointReader;
use crate::repository::FileId;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;

/// The content of a directory of checkpoints; see [`list`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DirectoryListing {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// The name of the newest valid checkpoint. `None` if there is none, or if [`undecided`](Self::undecided) names
    /// two.
    pub latest: Option<String>,
    /// The names of two checkpoints of different runs, if nothing decides which one is the newest.
    pub undecided: Option<(String, String)>,
    /// The valid checkpoints, oldest first by commit sequence.
    pub checkpoints: Vec<CheckpointEntry>,
    /// What else this crate left in the directory, by state and name.
    pub others: Vec<OtherEntry>,
    /// The name of the checkpoint with the best value of a metric, once [`mark_best`](Self::mark_best) was called.
    pub best: Option<String>,
    /// What keeps each checkpoint regardless of policies, by name, once [`explain`](Self::explain) was called.
    /// Checkpoints of other runs are not included.
    pub kept_by: Option<BTreeMap<String, Vec<String>>>,
    /// Directories of checkpoints directly in this one. Empty if this one has checkpoints of its own.
    #[serde(serialize_with = "lossy_all")]
    pub below: Vec<Location>,
}

impl DirectoryListing {
    /// Records which healthy checkpoint has the best finite value of `metric`; of two with the same value, the one that
    /// was saved later.
    pub fn mark_best(&mut self, metric: &str, goal: Goal) {
        let mut entries: Vec<&CheckpointEntry> = self.checkpoints.iter().collect();
        entries.sort_by_key(|entry| entry.sequence);
        let infos: Vec<CheckpointInfo> = entries.into_iter().map(info).collect();
        self.best = Best::new(metric, goal, 1).choose(&infos).map(|info| info.name.clone());
    }

    /// Records what keeps each checkpoint regardless of policies.
    ///
    /// # Errors
    /// As for [`CheckpointDirectory::explain`](crate::CheckpointDirectory::explain), such as [`Error::Undecided`].
    pub fn explain(&mut self) -> Result<()> {
        let report = retention::explain(&self.directory, &[], &BTreeMap::new())?;
        self.kept_by = Some(report.checkpoints.into_iter().map(|entry| (entry.name, entry.kept_by)).collect());
        Ok(())
    }
}

/// A checkpoint that is valid, judging by its manifest and its file sizes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckpointEntry {
    /// The name of its directory.
    pub name: String,
    /// Its directory.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// Whether it is the newest.
    pub latest: bool,
    /// Whether it is kept permanently.
    pub permanent: bool,
    /// The training step, if it has one.
    pub step: Option<u64>,
    /// Its commit sequence.
    pub sequence: u64,
    /// The run that saved it.
    pub run: String,
    /// When it was saved, by the clock of the machine that saved it.
    pub saved_at: DateTime<Utc>,
    /// Bytes of all its files, including the manifest.
    pub bytes: u64,
    /// Bytes of the files that no older checkpoint of the directory shares with it by a hard link.
    pub new_bytes: u64,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of values.
    pub values: usize,
    /// Its metrics.
    pub metrics: BTreeMap<String, f64>,
    /// The names of the metadata that was recorded with it.
    pub metadata: Vec<String>,
    /// Where its run came from, if that was [recorded](crate::Checkpoint::provenance).
    pub provenance: Option<Provenance>,
    /// The cost of the save. `None` if it was saved before version 6 of the format, or converted or copied.
    pub figures: Option<SaveFigures>,
    /// The keys of tensors with values that are NaN or infinite, as far as that was recorded.
    pub non_finite: Vec<String>,
    /// Whether it was saved after an error, and its state may be inconsistent.
    pub unclean: bool,
    /// The tracked components that it lacks.
    pub without: Vec<String>,
    /// Its pins: names and notes.
    pub pins: BTreeMap<String, String>,
    /// Its notes: names and texts.
    pub notes: BTreeMap<String, String>,
}

/// An entry of the directory that this crate created and that is not a valid checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OtherEntry {
    /// The name.
    pub name: String,
    /// The path.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// What it is.
    pub state: OtherState,
    /// Why it is not a valid checkpoint.
    pub reason: String,
}

/// The state of an [`OtherEntry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OtherState {
    /// A damaged checkpoint.
    Damaged,
    /// A checkpoint that cannot be read now, or by this version.
    Unreadable,
    /// A symbolic link, which is not followed.
    Link,
    /// A checkpoint that a manager found damaged or skipped, and renamed.
    MovedAside,
    /// A checkpoint that a run abandoned when it went back to an older one.
    Superseded,
    /// A save in progress, or one whose process died.
    UnfinishedSave,
    /// A removed checkpoint whose files are kept for reuse.
    Removed,
}

/// Lists everything in a directory of checkpoints, intact or not.
///
/// Reads manifests and file sizes, not tensors; [`verify`](super::verify) reads those. Takes no lock.
///
/// # Errors
/// [`Error::NotFound`] if the directory does not exist; [`Error::InvalidArgument`] if `path` is a checkpoint or a URL;
/// [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// checkpoint.save(dir.join("ckpt"))?;
/// let listing = inspect::list(dir)?;
/// assert_eq!(listing.latest.as_deref(), Some("ckpt-1"));
/// assert_eq!(listing.checkpoints[0].values, 1);
/// # Ok(())
/// # }
/// ```
pub fn list(path: impl Into<Location>) -> Result<DirectoryListing> {
    let path = &path.into();
    match place(path)? {
        Place::Directory(listing) => Ok(of(path, &listing)),
        Place::Checkpoint | Place::LostManifest | Place::Foreign(_) => Err(Error::InvalidArgument(format!(
            "{} is a checkpoint, not a directory of checkpoints; show it with `ckpt show`",
            path.display()
        ))),
    }
}

fn of(path: &Location, listing: &Listing) -> DirectoryListing {
    let latest = match listing.undecided {
        Some(_) => None,
        None => listing.checkpoints.len().checked_sub(1),
    };
    let entries = listing.checkpoints.iter().enumerate();
    let files = parallel::of_each(&listing.checkpoints, |listed| files_in(&listed.path));
    let mut seen = HashSet::new();
    let checkpoints =
        entries.zip(files).map(|((at, listed), files)| entry(listed, Some(at) == latest, files, &mut seen));
    let checkpoints: Vec<CheckpointEntry> = checkpoints.collect();
    DirectoryListing {
        directory: path.into(),
        latest: latest.and_then(|at| checkpoints.get(at)).map(|entry| entry.name.clone()),
        undecided: listing.undecided.as_ref().map(|(first, second)| (name_of(first), name_of(second))),
        best: None,
        kept_by: None,
        below: if checkpoints.is_empty() { directories_below(path) } else { Vec::new() },
        checkpoints,
        others: others(listing),
    }
}

fn name_of(path: &Location) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Describes a checkpoint of these files; `seen` has those of older ones.
fn entry(
    listed: &ListedCheckpoint,
    latest: bool,
    files: Vec<(OsString, FileId, u64)>,
    seen: &mut HashSet<FileId>,
) -> CheckpointEntry {
    let ListedCheckpoint { path, entry, tensors, values, .. } = listed;
    let manifest = files.iter().find(|(name, ..)| name == MANIFEST_FILE).map_or(0, |(_, _, bytes)| *bytes);
    CheckpointEntry {
        name: entry.name.clone(),
        path: path.clone(),
        latest,
        permanent: entry.permanent,
        step: entry.step,
        sequence: entry.sequence,
        run: entry.run.clone(),
        saved_at: entry.saved_at,
        bytes: entry.bytes.saturating_add(manifest),
        new_bytes: files.into_iter().filter(|(_, id, _)| seen.insert(*id)).map(|(_, _, bytes)| bytes).sum(),
        tensors: *tensors,
        values: *values,
        metrics: entry.metrics.clone(),
        metadata: listed.metadata.clone(),
        provenance: listed.provenance.clone(),
        figures: listed.figures,
        non_finite: listed.non_finite.clone(),
        unclean: listed.unclean,
        without: listed.without.clone(),
        pins: listed.pins.clone(),
        notes: listed.notes.clone(),
    }
}

/// What decides which checkpoint is the best.
fn info(entry: &CheckpointEntry) -> CheckpointInfo {
    let mut info = CheckpointInfo::new(&entry.name, entry.saved_at);
    info.metrics.clone_from(&entry.metrics);
    info.non_finite.clone_from(&entry.non_finite);
    info.unclean = entry.unclean;
    info
}

fn others(listing: &Listing) -> Vec<OtherEntry> {
    let other =
        |path: &Location, state, reason: String| OtherEntry { name: name_of(path), path: path.into(), state, reason };
    let damaged = listing.damaged.iter().map(|(path, error)| {
        let problem = Problem::of(error);
        let is_damage = matches!(problem.kind, ProblemKind::Damaged | ProblemKind::NotFound);
        other(path, if is_damage { OtherState::Damaged } else { OtherState::Unreadable }, problem.within(path))
    });
    let known: HashSet<&Location> = listing.damaged.iter().map(|(path, _)| path).collect();
    let links = listing.links.iter().filter(|path| !known.contains(path));
    let links = links.map(|path| other(path, OtherState::Link, "a symbolic link, which is not followed".to_string()));
    let aside = listing.moved_aside.iter().map(|path| {
        let reason = match CheckpointReader::open(path) {
            Ok(_) => "a manager found it damaged; `ckpt verify` on it reports where".to_string(),
            Err(error) => Problem::of(&error).within(path),
        };
        other(path, OtherState::MovedAside, reason)
    });
    let with = |paths: &[Location], state, reason: &str| -> Vec<OtherEntry> {
        paths.iter().map(|path| other(path, state, reason.to_string())).collect()
    };
    let superseded = with(
        &listing.superseded,
        OtherState::Superseded,
        "abandoned when the run went back to an older checkpoint; removed once newer ones replace it",
    );
    let saves = with(
        &listing.unfinished_saves,
        OtherState::UnfinishedSave,
        "in progress, or left behind by a process that died",
    );
    let removed = with(&listing.removed, OtherState::Removed, "the next save overwrites its files, or removes them");
    damaged.chain(links).chain(aside).chain(superseded).chain(saves).chain(removed).collect()
}
