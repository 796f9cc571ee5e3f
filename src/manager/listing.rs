//! Lists a directory of checkpoints without opening it for writing.

use crate::catalog::{Catalog, Found};
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::IndexEntry;
use crate::location::Location;
use crate::provenance::Provenance;
use crate::repository::{Directory, OpenOptions, Posix, before_trash};
use std::collections::{BTreeMap, HashSet};

/// The content of a directory of checkpoints; see [`list_checkpoints`].
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct Listing {
    /// The checkpoints that are valid, judging by manifests and file sizes, oldest first. The last one is the
    /// latest: the head of the chain in which each checkpoint follows the one before, regardless of its number and of
    /// the clock. Checkpoints of other runs come first.
    pub checkpoints: Vec<ListedCheckpoint>,
    /// Two checkpoints of one name and different runs, if nothing decides which one is the latest.
    pub undecided: Option<(Location, Location)>,
    /// Checkpoints that are damaged or cannot be read, with the error, by name.
    pub damaged: Vec<(Location, Error)>,
    /// Symbolic links, by name. They are not followed: restore their targets by path. A link with the name of a
    /// checkpoint that may be the newest, by its number or according to the index, is also listed as [`damaged`](Listing::damaged).
    pub links: Vec<Location>,
    /// Checkpoints that a manager found damaged or skipped, and renamed (`damaged-…`, `passed-over-…`), by name.
    pub moved_aside: Vec<Location>,
    /// Checkpoints that a run abandoned when it went back to an older one (`superseded-…`), by name. A manager removes
    /// them when `max_to_keep` newer ones are complete.
    pub superseded: Vec<Location>,
    /// Saves in progress, or left behind by a process that died (`.tmp-…`), by name.
    pub unfinished_saves: Vec<Location>,
    /// Removed checkpoints whose files are kept for the next save to overwrite, or left behind by a process that died
    /// (`.trash-…`), by name.
    pub removed: Vec<Location>,
    /// Those of `damaged` that may be anything, see [`Catalog::is_strange`].
    strange: HashSet<Location>,
}

/// A checkpoint in a [`Listing`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ListedCheckpoint {
    /// The checkpoint's directory.
    pub path: Location,
    /// The content of its manifest and its marks.
    pub entry: IndexEntry,
    /// The number of tensor names.
    pub tensors: usize,
    /// The number of values.
    pub values: usize,
    /// The names of the [metadata](crate::Checkpoint::metadata) that was recorded with it.
    pub metadata: Vec<String>,
    /// Where its run came from, if that was [recorded](crate::Checkpoint::provenance).
    pub provenance: Option<Provenance>,
    /// The cost of the save, if it was recorded.
    pub figures: Option<SaveFigures>,
    /// The keys of tensors with values that are NaN or infinite, if that was recorded.
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

/// Lists everything in a directory of checkpoints, intact or not. Takes no lock and works on a read-only file system. A
/// directory that does not exist is empty. Reads manifests and file sizes, not tensors;
/// [`verify_checkpoint`](crate::verify_checkpoint) reads those.
///
/// A directory that is not a valid checkpoint is listed as damaged if it has a manifest or a component file, or if the
/// index lists it; one with neither a manifest nor an entry in the index may be another program's, and no manager
/// renames or removes it. Other directories are ignored. Checkpoints removed during the scan are omitted.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be listed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, list_checkpoints};
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// checkpoint.save(dir.join("ckpt"))?;
/// std::fs::write(checkpoint.save(dir.join("ckpt"))?.join("manifest.json"), "not what was written")?;
/// let listing = list_checkpoints(dir)?;
/// assert_eq!(listing.checkpoints[0].entry.name, "ckpt-1");
/// assert_eq!(listing.damaged[0].0, dir.join("ckpt-2"));
/// # Ok(())
/// # }
/// ```
pub fn list_checkpoints(directory: impl Into<Location>) -> Result<Listing> {
    list(&Directory::new(&Posix::default(), directory, &OpenOptions::default())?)
}

/// Like [`list_checkpoints`], for any storage.
pub(super) fn list(directory: &Directory) -> Result<Listing> {
    // A writer that keeps one checkpoint may remove it before it is examined, after the directory was listed without
    // the next one: then list it again.
    let (mut listing, mut vanished) = look(directory)?;
    for _ in 0..LOOKS {
        if vanished.is_empty() {
            break;
        }
        let before = std::mem::take(&mut vanished);
        (listing, vanished) = look(directory)?;
        if vanished == before {
            // Names that are not Unicode are not ours.
            break;
        }
    }
    Ok(listing)
}

/// How many times a changing directory is listed again.
const LOOKS: usize = 10;

/// Lists the directory. Also returns the names of entries that were gone when they were examined.
fn look(directory: &Directory) -> Result<(Listing, Vec<String>)> {
    let catalog = Catalog::of(directory, directory.scan()?);
    let (found, undecided) = catalog.ordered();
    let path = |name: &str| directory.root().join(name);
    let unreachable = catalog.unreachable.iter().map(|(name, _)| name);
    let strange = unreachable.filter(|name| catalog.is_strange(name)).map(|name| path(name)).collect();
    let (removals, saves): (Vec<_>, Vec<_>) = catalog.leftovers.iter().partition(|name| before_trash(name).is_some());
    let mut damaged: Vec<(String, Error)> =
        catalog.damaged.into_iter().chain(catalog.doubtful).chain(catalog.unreachable).collect();
    damaged.sort_by(|a, b| a.0.cmp(&b.0));
    let listing = Listing {
        checkpoints: found
            .into_iter()
            .map(|found| {
                let Found { entry, tensors, values, metadata, provenance, figures, .. } = found;
                let Found { non_finite, unclean, without, pins, notes, .. } = found;
                let path = path(&entry.name);
                ListedCheckpoint {
                    path,
                    entry,
                    tensors,
                    values,
                    metadata,
                    provenance: provenance.as_deref().cloned(),
                    figures,
                    non_finite,
                    unclean,
                    without,
                    pins,
                    notes,
                }
            })
            .collect(),
        undecided: undecided.map(|(first, second)| (path(&first), path(&second))),
        damaged: damaged.into_iter().map(|(name, error)| (path(&name), error)).collect(),
        links: catalog.links.iter().map(|name| path(name)).collect(),
        moved_aside: catalog.set_aside.iter().map(|name| path(name)).collect(),
        superseded: catalog.superseded.iter().map(|(name, _)| path(name)).collect(),
        unfinished_saves: saves.into_iter().map(|name| path(name)).collect(),
        removed: removals.into_iter().map(|name| path(name)).collect(),
        strange,
    };
    Ok((listing, catalog.vanished))
}

/// Returns the checkpoints in a directory that are valid, judging by manifests and file sizes, oldest first; see
/// [`Listing::checkpoints`]. Damaged ones are left out. Takes no lock and works on a read-only file system. A directory
/// that does not exist has none.
///
/// A link, or a directory that cannot be listed, may be a checkpoint if it has the name of one (`NAME-NUMBER`). It is left
/// out as well if there are checkpoints, and never was one of that NAME, as far as the directory tells.
///
/// # Errors
/// [`Error::Io`] if the directory, or a checkpoint in it, cannot be read now, and [`Error::Unsupported`] if a newer
/// version wrote one: it may be the newest. [`Error::NotFound`] if the directory is a dangling link.
/// [`Error::Undecided`] if nothing decides which of two is the latest. [`list_checkpoints`] lists the directory in all
/// of these cases.
pub fn checkpoints(directory: impl Into<Location>) -> Result<Vec<Location>> {
    let listing = list_checkpoints(directory)?;
    for (path, error) in listing.damaged {
        match error.is_damage() || listing.strange.contains(&path) {
            true => log::debug!("{} is not listed: {error:#}", path.display()),
            false => return Err(error),
        }
    }
    if let Some((first, second)) = listing.undecided {
        return Err(Error::Undecided { first, second });
    }
    Ok(listing.checkpoints.into_iter().map(|listed| listed.path).collect())
}

/// Returns the newest of [`checkpoints`], if there is one, even if it has values that are not finite.
/// [`CheckpointDirectory`](crate::CheckpointDirectory) reports which ones are healthy.
///
/// # Errors
/// As for [`checkpoints`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, latest_checkpoint};
/// assert_eq!(latest_checkpoint(dir)?, None);
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// let path = checkpoint.save(dir.join("ckpt"))?;
/// assert_eq!(latest_checkpoint(dir)?, Some(path));
/// # Ok(())
/// # }
/// ```
pub fn latest_checkpoint(directory: impl Into<Location>) -> Result<Option<Location>> {
    Ok(checkpoints(directory)?.pop())
}
