//! A tracked object, by its name.

use crate::checkpoint::Checkpoint;
use crate::contents::Contents;
use crate::error::Result;
use crate::graph::{Node, Trackable, Tracked};
use crate::location::Location;
use crate::repository::Storage;
use crate::restore::{RestoreOptions, RestoreStatus};
use std::fmt;
use std::sync::Arc;

/// A tracked object, returned by [`Checkpoint::get`]: a live handle to its state, which can be inspected, saved and
/// restored alone, in the storage of the checkpoint, and tracked in another checkpoint.
///
/// With the feature `torch`, `Part::tensors` returns its tensors.
#[derive(Clone)]
pub struct Part {
    name: String,
    node: Node,
    storage: Arc<dyn Storage>,
    /// What is tracked with it.
    beside: Tracked,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("name", &self.name).field("node", &self.node).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Returns the object that is tracked under `name`, as `checkpoint.encoder` does in TensorFlow, or `None`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path();
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let (step, epoch) = (Counter::new(7), Counter::new(1));
    /// let mut checkpoint = Checkpoint::new().track("step", &step)?.track("epoch", &epoch)?;
    /// let path = checkpoint.write(dir.join("both"))?;
    /// (step.set(0), epoch.set(0));
    /// let part = checkpoint.get("step").ok_or("it is tracked")?;
    /// part.restore(path)?;
    /// assert_eq!((step.get(), epoch.get()), (7, 0));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Part> {
        let node = self.objects().into_iter().find(|(tracked, _)| tracked == name)?.1;
        Some(Part { name: name.to_string(), node, storage: self.storage().clone(), beside: self.tracked() })
    }
}

impl Part {
    /// Returns the name it is tracked under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its current content.
    ///
    /// # Errors
    /// As for [`Checkpoint::contents`].
    pub fn contents(&self) -> Result<Contents> {
        Contents::of(&[(self.name.clone(), self.node.clone())])
    }

    /// Saves it alone; see [`Checkpoint::write`].
    ///
    /// # Errors
    /// As for [`Checkpoint::write`], also if the step that ended meanwhile was that of another object of the checkpoint,
    /// such as the optimizer of a model; and if another object cannot be saved at this moment, such as averages that are
    /// swapped in, because it may have changed this one.
    pub fn write(&self, path: impl Into<Location>) -> Result<Location> {
        self.alone()?.write(path)
    }

    /// Restores it alone, from a checkpoint that may have other objects.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`].
    pub fn restore(&self, path: impl Into<Location>) -> Result<RestoreStatus> {
        self.restore_with(path, &RestoreOptions::new())
    }

    /// Like [`restore`](Part::restore), with `options`.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`].
    pub fn restore_with(&self, path: impl Into<Location>, options: &RestoreOptions) -> Result<RestoreStatus> {
        self.alone()?.restore_with(path, options)
    }

    fn alone(&self) -> Result<Checkpoint> {
        Checkpoint::beside(self.storage.clone(), self.beside.clone()).track(&self.name, &self.node)
    }
}

impl Trackable for Part {
    fn node(&self) -> Node {
        self.node.clone()
    }
}
