//! Looking into a folder of checkpoints without opening it for writing.

use crate::checkpoint::index_entry;
use crate::error::{Error, Result};
use crate::format::{Index, IndexEntry};
use crate::name::COMPONENT_EXTENSION;
use crate::source::Source;
use crate::store::{Directory, Durability, LocalDisk, TRASH};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is in a folder of checkpoints; see [`list_checkpoints`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// Whole as far as manifests and file sizes tell; oldest first by commit sequence, so that the last is the latest.
    pub checkpoints: Vec<Listed>,
    /// What is no whole checkpoint any more, or cannot be read, and why; by name.
    pub damaged: Vec<(PathBuf, Error)>,
    /// What a manager found damaged and moved aside (`damaged-…`); by name.
    pub moved_aside: Vec<PathBuf>,
    /// Saves that are under way, or that ended with their process (`.tmp-…`); by name.
    pub unfinished_saves: Vec<PathBuf>,
    /// Removed checkpoints with files that are still there (`.trash-…`), for a manager to overwrite with its next save,
    /// or left by a process that died; by name.
    pub removed: Vec<PathBuf>,
}

/// A checkpoint in a [`Listing`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Listed {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// What its manifest says of it; `preserved` is what the folder's index says.
    pub entry: IndexEntry,
    /// How many tensors it has, by name.
    pub tensors: usize,
    /// How many small values it has.
    pub values: usize,
}

/// Looks at everything in a folder of checkpoints, sound or not. Takes no lock; works on a read-only file system; a
/// folder that is not there has nothing in it. Manifests and file sizes are read, not the tensors: that is
/// [`verify_checkpoint`](crate::verify_checkpoint).
///
/// A folder without a manifest counts as a damaged checkpoint when it holds a component file or the index knows it;
/// any other is no affair of ours. What is removed while this looks is not listed.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be listed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path();
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
pub fn list_checkpoints(directory: impl AsRef<Path>) -> Result<Listing> {
    let directory = Directory::new(Arc::new(LocalDisk), directory.as_ref(), Durability::default());
    // Beside a writer that keeps one checkpoint, what was there is removed before it is looked at, and what came in its
    // place was not there yet: then look again.
    let (mut listing, mut vanished) = look(&directory)?;
    for _ in 0..LOOKS {
        if vanished.is_empty() {
            break;
        }
        let before = std::mem::take(&mut vanished);
        (listing, vanished) = look(&directory)?;
        if vanished == before {
            // Those were never there: their names are not Unicode.
            break;
        }
    }
    Ok(listing)
}

/// How often to look again at a folder that changes.
const LOOKS: usize = 10;

/// What is in the folder, and the names of what was not there any more when it was looked at.
fn look(directory: &Directory) -> Result<(Listing, Vec<String>)> {
    let mut scan = directory.scan()?;
    let index = directory.index().unwrap_or_default();
    scan.leftovers.sort_by(|a, b| a.name.cmp(&b.name));
    scan.set_aside.sort();
    let (removals, saves): (Vec<_>, Vec<_>) =
        scan.leftovers.iter().map(|entry| &entry.name).partition(|name| name.starts_with(TRASH));
    let path = |name: &String| directory.root().join(name);
    let mut listing = Listing {
        moved_aside: scan.set_aside.iter().map(path).collect(),
        unfinished_saves: saves.into_iter().map(path).collect(),
        removed: removals.into_iter().map(path).collect(),
        ..Listing::default()
    };
    let mut vanished = Vec::new();
    for name in &scan.checkpoints {
        let path = path(name);
        match Source::open(directory.disk(), &path) {
            Ok(Source { manifest, .. }) => {
                let mut entry = index_entry(name, &manifest);
                let known = index.checkpoints.iter().find(|hint| hint.name == *name && hint.sequence == entry.sequence);
                entry.preserved = known.is_some_and(|hint| hint.preserved);
                let (tensors, values) = (manifest.tensors.len(), manifest.values.len());
                listing.checkpoints.push(Listed { path, entry, tensors, values });
            }
            Err(_) if !directory.disk().exists(&path).unwrap_or(true) => vanished.push(name.clone()),
            Err(error) if is_ours(directory, &index, name, &error) => listing.damaged.push((path, error)),
            Err(_) => {}
        }
    }
    listing.checkpoints.sort_by(|a, b| order(&a.entry, &b.entry));
    Ok((listing, vanished))
}

/// Oldest first: by commit sequence. The rest only tells copies of one checkpoint apart.
pub(super) fn order(a: &IndexEntry, b: &IndexEntry) -> Ordering {
    (a.sequence, a.saved_at, &a.run, &a.name).cmp(&(b.sequence, b.saved_at, &b.run, &b.name))
}

/// Whether the folder `name`, which could not be opened as a checkpoint, should be one.
fn is_ours(directory: &Directory, index: &Index, name: &str, error: &Error) -> bool {
    let holds_a_component = || match directory.disk().list(&directory.root().join(name)) {
        Ok(entries) => entries.iter().any(|entry| entry.name.ends_with(COMPONENT_EXTENSION)),
        Err(_) => false,
    };
    !matches!(error, Error::NotFound { .. })
        || index.checkpoints.iter().any(|entry| entry.name == name)
        || holds_a_component()
}

/// The checkpoints in a folder that are whole as far as manifests and file sizes tell, oldest first by commit
/// sequence. Takes no lock; works on a read-only file system; a folder that is not there has none.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be listed.
pub fn checkpoints(directory: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let listing = list_checkpoints(directory)?;
    for (path, error) in &listing.damaged {
        log::debug!("{} is not listed: {error}", path.display());
    }
    Ok(listing.checkpoints.into_iter().map(|listed| listed.path).collect())
}

/// The newest of [`checkpoints`], if there is one.
///
/// # Errors
/// As for [`checkpoints`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path();
/// use tch_checkpoint::{Checkpoint, Counter, latest_checkpoint};
/// assert_eq!(latest_checkpoint(dir)?, None);
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// let path = checkpoint.save(dir.join("ckpt"))?;
/// assert_eq!(latest_checkpoint(dir)?, Some(path));
/// # Ok(())
/// # }
/// ```
pub fn latest_checkpoint(directory: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    Ok(checkpoints(directory)?.pop())
}
