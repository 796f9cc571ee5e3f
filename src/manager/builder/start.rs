//! The settings that determine how a run starts.

use super::CheckpointManagerBuilder;
use crate::error::Result;
use crate::location::Location;
use crate::restore::RestoreOptions;

impl CheckpointManagerBuilder {
    /// Sets a function that [`restore_or_initialize`](crate::CheckpointManager::restore_or_initialize) calls if there
    /// is nothing to restore. After an error, the next `restore_or_initialize` calls it again.
    #[must_use]
    pub fn init(mut self, init: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        self.init = Some(Box::new(init));
        self
    }

    /// Restores the checkpoint at `path` if there is nothing to resume in the directory: a warm start from another run,
    /// or from a file of another tool. It runs after the function of [`init`](CheckpointManagerBuilder::init). The run
    /// is a new one: steps, save counter and lineage do not continue those of that checkpoint. A relative path is
    /// relative to the working directory at the time of this call.
    ///
    /// If nothing exists at `path`, its last component can [select](crate::CheckpointDirectory::select) a checkpoint of
    /// its parent directory: `run/latest`, `run/best:loss:min`, `run/pin:paper`, `run/1000`.
    ///
    /// For a file that [`restore`](crate::Checkpoint::restore) rejects because of unknown objects or its expansion,
    /// call [`restore_source`](crate::Checkpoint::restore_source) after `restore_or_initialize` has found nothing to
    /// resume.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::{CheckpointManager, RestoreOptions};
    /// let mut manager = CheckpointManager::builder(checkpoint, "checkpoints/fine-tuned")
    ///     .initialize_from("checkpoints/pretrained/best:loss:min", RestoreOptions::new().skip("optimizer"))
    ///     .open()?;
    /// manager.restore_or_initialize()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn initialize_from(mut self, path: impl Into<Location>, options: RestoreOptions) -> Self {
        let path = path.into();
        // A location that the storage does not serve is an error when it is restored.
        let path = self.checkpoint.storage().absolute(&path).unwrap_or(path);
        self.initialize_from = Some((path, options));
        self
    }

    /// Allows a new run in a directory that holds the checkpoints of another one.
    ///
    /// By default, the first save is an error if nothing in the directory was restored and it has checkpoints of this
    /// name, or damaged, superseded or passed-over ones, and [`restore_or_initialize`](crate::CheckpointManager::restore_or_initialize) is an error if there are
    /// checkpoints but none that can be restored. With this option, both start a new run: the first save renames the
    /// checkpoints of the other run (`superseded-…`), which are kept until `max_to_keep` newer ones are complete.
    /// `restore_or_initialize` still restores the newest one if there is one.
    #[must_use]
    pub fn fresh_start(mut self) -> Self {
        self.fresh_start = true;
        self
    }

    /// Allows [`restore_or_initialize`](crate::CheckpointManager::restore_or_initialize) to restore a checkpoint that
    /// lacks components ([`Preemption::save_only`](crate::Preemption::save_only),
    /// [`keep_component`](CheckpointManagerBuilder::keep_component)), which are then left unchanged. By default, such
    /// checkpoints are skipped, because the run could not be resumed exactly.
    #[must_use]
    pub fn restore_incomplete(mut self) -> Self {
        self.restore_incomplete = true;
        self
    }

    /// Allows [`restore_or_initialize`](crate::CheckpointManager::restore_or_initialize) to restore a checkpoint with
    /// values that are NaN or infinite. By default, such checkpoints are skipped.
    #[must_use]
    pub fn restore_unhealthy(mut self) -> Self {
        self.restore_unhealthy = true;
        self
    }
}
