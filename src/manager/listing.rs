//! Looking into a directory of checkpoints without opening it for writing.

use crate::catalog::{Catalog, Found};
use crate::error::{Error, Result};
use crate::format::IndexEntry;
use crate::location::Location;
use crate::repository::{Directory, OpenOptions, Posix, TRASH};

/// What is in a directory of checkpoints; see [`list_checkpoints`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// Whole as far as manifests and file sizes tell; oldest first, so that the last is the latest: the head of the chain
    /// in which each follows the one before, whatever its number or the clock. Those of other runs, which that one does
    /// not lead back to, come first.
    pub checkpoints: Vec<Listed>,
    /// Two checkpoints of one name and different runs of which nothing tells which is the latest, if there are such.
    pub undecided: Option<(Location, Location)>,
    /// What is no whole checkpoint any more, or cannot be read, and why; by name.
    pub damaged: Vec<(Location, Error)>,
    /// Symbolic links; by name. They are not followed: restore what they lead to by its path. One that is called like a
    /// checkpoint and has a higher number than all that are there is among the [`damaged`](Listing::damaged) too.
    pub links: Vec<Location>,
    /// What a manager found damaged or passed over, and moved aside (`damaged-…`, `passed-over-…`); by name.
    pub moved_aside: Vec<Location>,
    /// What a run abandoned when it went back to an older checkpoint (`superseded-…`); by name. A manager removes it when
    /// as many newer ones are complete as it keeps.
    pub superseded: Vec<Location>,
    /// Saves that are under way, or that ended with their process (`.tmp-…`); by name.
    pub unfinished_saves: Vec<Location>,
    /// Removed checkpoints with files that are still there (`.trash-…`), for a manager to overwrite with its next save,
    /// or left by a process that died; by name.
    pub removed: Vec<Location>,
}

/// A checkpoint in a [`Listing`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Listed {
    /// The checkpoint's directory.
    pub path: Location,
    /// What its manifest and its marks say of it.
    pub entry: IndexEntry,
    /// How many tensors it has, by name.
    pub tensors: usize,
    /// How many small values it has.
    pub values: usize,
    /// The names of the [metadata](crate::Checkpoint::metadata) that was recorded with it.
    pub metadata: Vec<String>,
    /// The keys of tensors with values that are NaN or infinite, as far as that was noted.
    pub non_finite: Vec<String>,
    /// Whether it was saved after an error, when the state may not have belonged together.
    pub unclean: bool,
    /// The components that were tracked and that it does not have.
    pub without: Vec<String>,
}

/// Looks at everything in a directory of checkpoints, sound or not. Takes no lock; works on a read-only file system; a
/// directory that is not there has nothing in it. Manifests and file sizes are read, not the tensors: that is
/// [`verify_checkpoint`](crate::verify_checkpoint).
///
/// A directory that is no whole checkpoint counts as a damaged one when it holds a manifest or a component file or the index
/// knows it; any other, such as those of other programs and `lost+found`, is left out. What is removed while this looks
/// is not listed.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
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
pub fn list_checkpoints(directory: impl Into<Location>) -> Result<Listing> {
    list(&Directory::new(&Posix::default(), directory, &OpenOptions::default())?)
}

/// As [`list_checkpoints`], of any storage.
pub(super) fn list(directory: &Directory) -> Result<Listing> {
    // Beside a writer that keeps one checkpoint, what was there is removed before it is looked at, and what came in its
    // place was not there yet: then look again.
    let (mut listing, mut vanished) = look(directory)?;
    for _ in 0..LOOKS {
        if vanished.is_empty() {
            break;
        }
        let before = std::mem::take(&mut vanished);
        (listing, vanished) = look(directory)?;
        if vanished == before {
            // Those were never there: their names are not Unicode.
            break;
        }
    }
    Ok(listing)
}

/// How often to look again at a directory that changes.
const LOOKS: usize = 10;

/// What is in the directory, and the names of what was not there any more when it was looked at.
fn look(directory: &Directory) -> Result<(Listing, Vec<String>)> {
    let catalog = Catalog::of(directory, directory.scan()?);
    let (found, undecided) = catalog.ordered();
    let path = |name: &str| directory.root().join(name);
    let (removals, saves): (Vec<_>, Vec<_>) = catalog.leftovers.iter().partition(|name| name.starts_with(TRASH));
    let mut damaged: Vec<(String, Error)> = catalog.damaged.into_iter().chain(catalog.unreachable).collect();
    damaged.sort_by(|a, b| a.0.cmp(&b.0));
    let listing = Listing {
        checkpoints: found
            .into_iter()
            .map(|found| {
                let Found { entry, non_finite, unclean, without, metadata, tensors, values, .. } = found;
                Listed { path: path(&entry.name), entry, tensors, values, metadata, non_finite, unclean, without }
            })
            .collect(),
        undecided: undecided.map(|(first, second)| (path(&first), path(&second))),
        damaged: damaged.into_iter().map(|(name, error)| (path(&name), error)).collect(),
        links: catalog.links.iter().map(|name| path(name)).collect(),
        moved_aside: catalog.set_aside.iter().map(|name| path(name)).collect(),
        superseded: catalog.superseded.iter().map(|(name, _)| path(name)).collect(),
        unfinished_saves: saves.into_iter().map(|name| path(name)).collect(),
        removed: removals.into_iter().map(|name| path(name)).collect(),
    };
    Ok((listing, catalog.vanished))
}

/// The checkpoints in a directory that are whole as far as manifests and file sizes tell, oldest first; see
/// [`Listing::checkpoints`]. Damaged ones are left out. Takes no lock; works on a read-only file system; a directory that is
/// not there has none.
///
/// # Errors
/// [`Error::Io`] when the directory, or a checkpoint in it, cannot be looked at now, and [`Error::Unsupported`] when a newer
/// version wrote one: it may be the newest. [`Error::NotFound`] when the directory is a link that leads nowhere.
/// [`Error::Undecided`] when nothing tells which of two is the latest. [`list_checkpoints`] lists what there is all the
/// same.
pub fn checkpoints(directory: impl Into<Location>) -> Result<Vec<Location>> {
    let listing = list_checkpoints(directory)?;
    for (path, error) in listing.damaged {
        match error.is_damage() {
            true => log::debug!("{} is not listed: {error:#}", path.display()),
            false => return Err(error),
        }
    }
    if let Some((first, second)) = listing.undecided {
        return Err(Error::Undecided { first, second });
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
pub fn latest_checkpoint(directory: impl Into<Location>) -> Result<Option<Location>> {
    Ok(checkpoints(directory)?.pop())
}
