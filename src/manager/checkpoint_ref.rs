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
    /// Returns the checkpoint's name in its directory.
    pub(super) fn name(&self) -> Result<String> {
        let name = self.location.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
        name.map(str::to_string).ok_or_else(|| {
            Error::InvalidArgument(format!("{} does not end in the name of a checkpoint", self.location))
        })
    }

    /// Returns its identity: that of the checkpoint that has the name now, if only the name is known.
    pub(super) fn id(&self, directory: &Directory, name: &str) -> Result<Follows> {
        match &self.id {
            Some(id) => Ok(id.clone()),
            None => Ok(directory.manifest(name)?.id()),
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
