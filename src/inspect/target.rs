//! Opens what a path refers to: a checkpoint of any format, or the latest in a directory.

use super::problem::Problem;
use super::{lossy, lossy_option};
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::format::{INDEX_FILE, MANIFEST_FILE, SavedModelInfo};
use crate::interop::{self, OWN_FORMAT, Ours, ReadOptions};
use crate::location::Location;
use crate::manager::{CheckpointDirectory, Listing, list_checkpoints, selected};
use crate::reader::{CheckpointReader, saved_model};
use crate::repository::{Posix, Storage, path_of};
use crate::source::{Source, TensorSource};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// An open checkpoint of any format.
#[derive(Debug)]
pub struct Target {
    opened: Opened,
    latest_of: Option<Location>,
    skipped: Vec<(Location, Error)>,
}

#[derive(Debug)]
enum Opened {
    Own(Box<Ours>),
    Foreign(Box<dyn TensorSource>),
}

/// Identifies the checkpoint of a [`Target`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Overview {
    /// The file or directory.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The name of the format; `tch-checkpoint` for checkpoints of this crate.
    pub format: &'static str,
    /// The directory whose latest checkpoint it is, if the directory was opened.
    #[serde(serialize_with = "lossy_option")]
    pub latest_of: Option<Location>,
    /// The training step, if the checkpoint has one.
    pub step: Option<u64>,
    /// When it was saved. `None` for other formats.
    pub saved_at: Option<DateTime<Utc>>,
    /// Its commit sequence. `None` for other formats.
    pub sequence: Option<u64>,
    /// The run that saved it. `None` for other formats.
    pub run: Option<String>,
    /// The save counter of its `Checkpoint`, if it has one.
    pub save_counter: Option<u64>,
}

impl Target {
    /// Opens the checkpoint at `path`, of any format that [`interop::open`] recognizes. If `path` is a directory of
    /// checkpoints, opens the latest. If nothing exists at `path`, its last component can
    /// [select](CheckpointDirectory::select) a checkpoint of its parent directory, such as `run/best:loss:min`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no checkpoint; [`Error::Undecided`] if a directory has two latest checkpoints;
    /// [`Error::InvalidArgument`] for a URL; [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
    /// checkpoint.save(dir.join("ckpt"))?;
    /// let path = checkpoint.save(dir.join("ckpt"))?;
    /// let latest = Target::open(dir)?;
    /// assert_eq!(latest.source().path(), &path);
    /// assert_eq!(latest.overview().latest_of.as_deref(), Some(dir));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(path: impl Into<Location>) -> Result<Target> {
        Target::open_with(path, &ReadOptions::default())
    }

    /// Like [`open`](Target::open), with options for files of other tools.
    ///
    /// # Errors
    /// As for [`open`](Target::open).
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::interop::ReadOptions;
    /// let target = Target::open_with("training.pt", &ReadOptions::default().unknown_objects(true))?;
    /// # let _ = target;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_with(path: impl Into<Location>, options: &ReadOptions) -> Result<Target> {
        let path = &path.into();
        let found = match place_with(path, options) {
            Err(error @ Error::NotFound { .. }) => {
                let storage: Arc<dyn Storage> = Arc::new(Posix::default());
                let selected = selected(&storage, path)?.ok_or(error)?;
                return Ok(Target::own(CheckpointReader::open(selected)?));
            }
            found => found?,
        };
        match found {
            Place::Checkpoint => Ok(Target::own(CheckpointReader::open(path)?)),
            Place::LostManifest => Err(lost_manifest(path)),
            Place::Directory(listing) => Target::latest(path, *listing),
            Place::Foreign(source) => Ok(Target::of(source)),
        }
    }

    /// Like [`open`](Target::open), for a checkpoint of this crate, or a directory of them, in a storage other than the
    /// operating system's file systems.
    ///
    /// # Errors
    /// As for [`open`](Target::open); [`Error::InvalidArgument`] for a location that the storage does not serve.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use std::sync::Arc;
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::repository::Memory;
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let storage = Arc::new(Memory::default());
    /// let checkpoint = Checkpoint::in_storage(storage.clone()).track("step", &Counter::new(7))?;
    /// CheckpointManager::builder(checkpoint, "mem://run").open()?.save_at(7)?;
    /// let latest = Target::open_in(storage, "mem://run")?;
    /// assert_eq!(latest.source().path().to_string(), "mem://run/ckpt-7");
    /// assert_eq!(*latest.summary(None)?.values["step"], 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_in(storage: Arc<dyn Storage>, path: impl Into<Location>) -> Result<Target> {
        let path = path.into();
        let not_found = match CheckpointReader::open_in(&*storage, path.clone()) {
            Err(error @ Error::NotFound { .. }) => error,
            opened => return Ok(Target::own(opened?)),
        };
        let listing = CheckpointDirectory::in_storage(storage.clone(), path.clone()).list()?;
        if let Some((first, second)) = listing.undecided {
            return Err(Error::Undecided { first, second });
        }
        let Some(latest) = listing.checkpoints.last() else { return Err(not_found) };
        let reader = CheckpointReader::open_in(&*storage, latest.path.clone())?;
        Ok(Target { latest_of: Some(path), skipped: listing.damaged, ..Target::own(reader) })
    }

    /// Creates a target from an open source: one of a custom format, a [`Snapshot`](crate::Snapshot), or one that
    /// [`interop::open_with`] opened. Its [`Overview`] has the format and the path; everything that only checkpoints of
    /// this crate have is `None`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
    /// let target = Target::of(Box::new(checkpoint.snapshot()?));
    /// assert_eq!(target.overview().format, "snapshot");
    /// assert_eq!(*target.summary(None)?.values["step"], 7);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn of(source: Box<dyn TensorSource>) -> Target {
        Target { opened: Opened::Foreign(source), latest_of: None, skipped: Vec::new() }
    }

    fn own(reader: CheckpointReader) -> Target {
        Target { opened: Opened::Own(Box::new(Ours::new(reader.source))), latest_of: None, skipped: Vec::new() }
    }

    /// Opens the latest checkpoint in the directory `path`.
    fn latest(path: &Path, mut listing: Listing) -> Result<Target> {
        let mut reader = open_latest(path, &listing);
        for _ in 0..ATTEMPTS {
            match listing.checkpoints.last() {
                // A newer checkpoint replaced it in the meantime.
                Some(latest) if reader.is_err() && !latest.path.exists() => {}
                _ => break,
            }
            listing = list_checkpoints(path)?;
            reader = open_latest(path, &listing);
        }
        Ok(Target { latest_of: Some(path.into()), skipped: listing.damaged, ..Target::own(reader?) })
    }

    /// Returns the tensors and values.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        match &self.opened {
            Opened::Own(ours) => &**ours,
            Opened::Foreign(source) => &**source,
        }
    }

    /// Returns the checkpoints of the directory that are damaged or cannot be read, with the reason. Empty unless a
    /// directory of checkpoints was opened.
    #[must_use]
    pub fn skipped(&self) -> &[(Location, Error)] {
        &self.skipped
    }

    /// Returns the tensors and values whose key matches `filter`; all of them if there is no filter. `*` matches any
    /// text, including `/`. Their [`Display`](std::fmt::Display) form is a tree.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use tch_checkpoint::inspect::Target;
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.path().join("seven"))?;
    /// assert_eq!(Target::open(path)?.contents(None).to_string(), "0 tensors (0 B), 1 value\n└── step: 7");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn contents(&self, filter: Option<&str>) -> Contents {
        Contents::of_source(self.source(), filter)
    }

    /// Returns which checkpoint this is.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let manifest = self.own_source().map(|source| &source.manifest);
        Overview {
            path: self.source().path().clone(),
            format: self.source().format(),
            latest_of: self.latest_of.clone(),
            step: manifest.and_then(|manifest| manifest.step),
            saved_at: manifest.map(|manifest| manifest.saved_at),
            sequence: manifest.map(|manifest| manifest.sequence),
            run: manifest.map(|manifest| manifest.run.clone()),
            save_counter: manifest.and_then(|manifest| manifest.save_counter),
        }
    }

    /// The stored checkpoint, if it is one of this crate.
    pub(super) fn own_source(&self) -> Option<&Source> {
        match &self.opened {
            Opened::Own(ours) => Some(&ours.source),
            Opened::Foreign(_) => None,
        }
    }

    /// Returns the description of a saved model.
    pub(super) fn saved_model(&self) -> Result<Option<SavedModelInfo>> {
        self.own_source().map_or(Ok(None), saved_model)
    }

    /// Returns bytes of the tensors, each storage once.
    pub(super) fn tensor_bytes(&self) -> u64 {
        if let Some(source) = self.own_source() {
            return source.manifest.bytes();
        }
        let source = self.source();
        let own = source.tensors().iter().filter(|(key, _)| source.first_alias(key) == key.as_str());
        own.fold(0, |sum, (_, spec)| sum.saturating_add(spec.bytes().unwrap_or(u64::MAX)))
    }
}

/// How often to retry opening a checkpoint of a directory while a training saves and prunes.
pub(super) const ATTEMPTS: usize = 10;

fn open_latest(directory: &Path, listing: &Listing) -> Result<CheckpointReader> {
    if let Some((first, second)) = &listing.undecided {
        return Err(Error::Undecided { first: first.clone(), second: second.clone() });
    }
    let Some(latest) = listing.checkpoints.last() else {
        let damaged = listing
            .damaged
            .first()
            .map(|(path, error)| format!("; {} cannot be used: {}", path.display(), Problem::of(error).within(path)));
        return Err(Error::not_found(directory, no_checkpoint_in(directory, listing) + &damaged.unwrap_or_default()));
    };
    CheckpointReader::open(&latest.path)
}

/// The kind of what is at a path.
pub(super) enum Place {
    /// A checkpoint of this crate, intact or not.
    Checkpoint,
    /// A checkpoint of this crate without its manifest.
    LostManifest,
    /// Any other directory: one of checkpoints, or an empty one.
    Directory(Box<Listing>),
    /// A checkpoint of another tool.
    Foreign(Box<dyn TensorSource>),
}

/// Determines what is at `path`.
///
/// # Errors
/// [`Error::NotFound`] for nothing; otherwise as for [`interop::open`] and [`list_checkpoints`].
pub(super) fn place(path: &Path) -> Result<Place> {
    place_with(path, &ReadOptions::default())
}

/// Like [`place`], with options for files of other tools.
pub(super) fn place_with(path: &Path, options: &ReadOptions) -> Result<Place> {
    path_of(&Location::from(path))?;
    match fs::metadata(path) {
        // The prefix of a TensorFlow checkpoint is the name of no file.
        Err(e) if e.kind() == ErrorKind::NotFound => return foreign(path, options),
        Err(source) => return Err(Error::io("look for", path, source)),
        Ok(found) if !found.is_dir() => return foreign(path, options),
        Ok(_) => {}
    }
    // Any entry with the manifest's name counts: a directory or a dangling link of that name is damage.
    if fs::symlink_metadata(path.join(MANIFEST_FILE)).is_ok() {
        return Ok(Place::Checkpoint);
    }
    let listing = list_checkpoints(path)?;
    let has_some = !listing.checkpoints.is_empty() || !listing.damaged.is_empty() || !listing.moved_aside.is_empty();
    if has_some || fs::symlink_metadata(path.join(INDEX_FILE)).is_ok() {
        return Ok(Place::Directory(Box::new(listing)));
    }
    // A checkpoint that lost its manifest also consists of component files: if no index lists it, they count as another
    // tool's only if one of that tool's own files is in the same directory.
    let is_lost = (has_component_file(path) && !has_foreign_description(path)) || is_listed_as_damaged(path);
    if is_lost || interop::is_listed(path) {
        return Ok(Place::LostManifest);
    }
    match interop::open_with(path, options) {
        Err(Error::Unsupported { .. } | Error::NotFound { .. }) => Ok(Place::Directory(Box::new(listing))),
        source => Ok(Place::Foreign(source?)),
    }
}

/// Returns the content of the directory of checkpoints at `path`.
///
/// # Errors
/// As for [`place`]; [`Error::InvalidArgument`] for a checkpoint.
pub(super) fn directory_at(path: &Path) -> Result<Listing> {
    match place(path)? {
        Place::Directory(listing) => Ok(*listing),
        Place::Checkpoint | Place::LostManifest | Place::Foreign(_) => {
            let reason = format!("{} is a checkpoint, not a directory of checkpoints", path.display());
            Err(Error::InvalidArgument(reason))
        }
    }
}

fn foreign(path: &Path, options: &ReadOptions) -> Result<Place> {
    interop::open_with(path, options).map(Place::Foreign)
}

fn names(path: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn has_component_file(path: &Path) -> bool {
    names(path).any(|name| name.ends_with(".safetensors"))
}

/// Returns `true` if Hugging Face's own description or index is there.
fn has_foreign_description(path: &Path) -> bool {
    names(path).any(|name| name == "config.json" || name == "adapter_config.json" || name.ends_with(".index.json"))
}

/// Returns `true` if the directory around `path` has it as a checkpoint that lost its manifest.
fn is_listed_as_damaged(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    if has_foreign_description(path) {
        return false;
    }
    let around = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let listing = list_checkpoints(around).unwrap_or_default();
    listing.damaged.iter().any(|(damaged, _)| damaged.file_name() == Some(name))
}

/// Returns the error for a checkpoint whose manifest is missing.
pub(super) fn lost_manifest(path: &Path) -> Error {
    Error::damaged(path.join(MANIFEST_FILE), "the file is missing")
}

/// Returns the reason why a directory has no valid checkpoint, and where one may be.
pub(super) fn no_checkpoint_in(path: &Path, listing: &Listing) -> String {
    let mut reason = "this directory holds no valid checkpoint".to_string();
    let below = directories_below(path);
    if let Some(first) = below.first() {
        let more = if below.len() > 1 { format!(" and {} more", below.len() - 1) } else { String::new() };
        reason.push_str(&format!("; {}{more} in it may hold some", first.display()));
    } else if names(path).next().is_some() && !is_of_checkpoints(path, listing) {
        // Nothing in it is of this crate.
        if let Err(Error::Unsupported { reason: foreign, .. }) = interop::open(path) {
            reason.push_str(&format!("; {foreign}; {OWN_FORMAT}"));
        }
    }
    reason
}

/// Returns `true` if this crate left anything in a directory.
fn is_of_checkpoints(path: &Path, listing: &Listing) -> bool {
    let Listing { checkpoints, damaged, moved_aside, superseded, unfinished_saves, removed, .. } = listing;
    let others = [moved_aside, superseded, unfinished_saves, removed];
    let has_some = !checkpoints.is_empty() || !damaged.is_empty() || others.iter().any(|paths| !paths.is_empty());
    has_some || fs::symlink_metadata(path.join(INDEX_FILE)).is_ok()
}

/// The maximum depth of [`runs_below`].
const DEPTH: usize = 16;

/// Returns the directories of checkpoints at `path` and below it, at most 16 levels deep, by name. Symbolic links,
/// hidden directories and the checkpoints themselves are not entered.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be listed, or is not a directory. Directories below it that cannot be listed are
/// skipped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::{Checkpoint, Counter, inspect};
/// Checkpoint::new().track("step", &Counter::new(7))?.save(dir.join("mnist/adam/ckpt"))?;
/// assert_eq!(inspect::runs_below(dir)?, [dir.join("mnist/adam")]);
/// # Ok(())
/// # }
/// ```
pub fn runs_below(path: impl Into<Location>) -> Result<Vec<Location>> {
    let path = path.into();
    path_of(&path)?;
    let mut found = Vec::new();
    fs::read_dir(&path).map_err(|source| Error::io("list", &path, source))?;
    search(&path, DEPTH, &mut found);
    found.sort();
    Ok(found)
}

fn search(path: &Location, depth: usize, found: &mut Vec<Location>) {
    let has_manifest = |path: &Path| fs::symlink_metadata(path.join(MANIFEST_FILE)).is_ok();
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let visible = directories.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let (checkpoints, others): (Vec<Location>, Vec<Location>) =
        visible.map(|entry| Location::from(entry.path())).partition(|path| has_manifest(path));
    if !checkpoints.is_empty() || path.join(INDEX_FILE).is_file() {
        found.push(path.clone());
    }
    if let Some(depth) = depth.checked_sub(1) {
        others.iter().for_each(|path| search(path, depth, found));
    }
}

/// Returns the directories in `path` in which checkpoints were saved, by name.
pub(super) fn directories_below(path: &Path) -> Vec<Location> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.map(|entry| Location::from(entry.path()));
    let mut below: Vec<Location> = directories.filter(|directory| directory.join(INDEX_FILE).is_file()).collect();
    below.sort();
    below
}
