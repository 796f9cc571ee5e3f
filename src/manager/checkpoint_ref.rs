//! Which checkpoint of a directory a call is about.

use super::on_saved::SavedCheckpoint;
use super::retention::CheckpointInfo;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use crate::repository::Directory;

/// Names one checkpoint of a directory. Everything that is a name or a path converts into it, and so do
/// [`&CheckpointInfo`](CheckpointInfo) and [`&SavedCheckpoint`](SavedCheckpoint).
///
/// A name is that of whichever checkpoint has it now. A description stands for the checkpoint that it describes: if that
/// is gone, and a training that went back has saved another one under its name, the call fails with [`Error::Removed`]
/// instead of reaching that one.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, Counter, Error};
/// let step = Counter::new(1);
/// let checkpoint = Checkpoint::new().track("step", &step)?;
/// let mut manager = CheckpointManager::builder(checkpoint, &dir).open()?;
/// manager.save_at(5)?;
/// let checkpoints = CheckpointDirectory::new(&dir);
/// let evaluated = checkpoints.latest()?.ok_or("none")?;
/// // Meanwhile, the state of that step is saved anew.
/// step.set(2);
/// manager.save_at(5)?;
/// let late = checkpoints.add_metrics(&evaluated, [("accuracy", 0.9)]);
/// assert!(matches!(late, Err(Error::Removed { .. })));
/// checkpoints.add_metrics(&checkpoints.get("ckpt-5")?, [("accuracy", 0.8)])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CheckpointRef {
    location: Location,
    id: Option<Follows>,
}

impl<T: Into<Location>> From<T> for CheckpointRef {
    fn from(location: T) -> CheckpointRef {
        CheckpointRef { location: location.into(), id: None }
    }
}

impl From<&CheckpointInfo> for CheckpointRef {
    fn from(info: &CheckpointInfo) -> CheckpointRef {
        CheckpointRef { location: info.name.as_str().into(), id: info.id.clone() }
    }
}

impl From<&SavedCheckpoint> for CheckpointRef {
    fn from(saved: &SavedCheckpoint) -> CheckpointRef {
        CheckpointRef { location: saved.path.clone(), id: saved.info.id.clone() }
    }
}

impl CheckpointRef {
    /// Returns the checkpoint's name in the directory at `root`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the location does not end in a name, or leads to another directory.
    pub(super) fn name(&self, root: &Location) -> Result<String> {
        name_in(&self.location, root).map(str::to_string)
    }

    /// Returns its identity: that of the checkpoint that has the name now, if only the name is known.
    pub(super) fn id(&self, directory: &Directory, name: &str) -> Result<Follows> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        match directory.manifest(name) {
            Err(Error::Link { path, .. }) => {
                Err(Error::link(path, "links are not followed here: name the checkpoint that it leads to"))
            }
            manifest => Ok(manifest?.id()),
        }
    }

    /// Returns `true` if it may be the checkpoint `id`.
    pub(super) fn may_be(&self, id: Option<&Follows>) -> bool {
        self.id.is_none() || self.id.as_ref() == id
    }

    /// Checks that it may be the checkpoint `id`, whose name is `name`.
    ///
    /// # Errors
    /// [`Error::Removed`] otherwise.
    pub(super) fn must_be(&self, directory: &Directory, name: &str, id: &Follows) -> Result<()> {
        if self.may_be(Some(id)) { Ok(()) } else { Err(Error::removed(directory.path(name))) }
    }
}

/// Returns the name of the checkpoint at `path`, which is a name in the directory at `root`, or a path into it.
///
/// # Errors
/// [`Error::InvalidArgument`] if the path does not end in a name, or does not lead into that directory.
pub(super) fn name_in<'a>(path: &'a Location, root: &Location) -> Result<&'a str> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
    let name =
        name.ok_or_else(|| Error::InvalidArgument(format!("{path} does not end in the name of a checkpoint")))?;
    let is_root = |parent: &Location| {
        parent == root || parent.canonicalize().is_ok_and(|parent| root.canonicalize().is_ok_and(|root| parent == root))
    };
    if path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || is_root(&parent)) {
        return Ok(name);
    }
    Err(Error::InvalidArgument(format!(
        "{path} is not in the directory {root}: give a checkpoint of that directory, or open the other one"
    )))
}
