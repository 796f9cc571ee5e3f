//! Explains why a manager's checkpoints are kept, and what its next save removes.

use super::CheckpointManager;
use super::checkpoint_ref::name_in;
use super::retention::Explanation;
use crate::error::{Error, Result};
use crate::location::Location;
use std::collections::BTreeMap;

impl CheckpointManager {
    /// Reports for each checkpoint of this run, oldest first, what keeps it; then the same for checkpoints that the run
    /// abandoned (`superseded-…`) and those that were found damaged (`damaged-…`). Those that nothing keeps are removed
    /// after the next save. Reads the marks of all of them, so that pins and metrics of other processes count. A save
    /// that is still being written does not count.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(2).open()?;
    /// manager.save_at(1)?;
    /// manager.save_at(2)?;
    /// assert_eq!(
    ///     manager.explain()[0].to_string(),
    ///     "ckpt-1 stays: the newest 2: it is among the newest 2, until 1 newer one is saved"
    /// );
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn explain(&self) -> Vec<Explanation> {
        self.outlook(None).explanations()
    }

    /// Reports what keeps the checkpoint at `path`, which can be its name alone.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this manager has no checkpoint of that name; [`Error::InvalidArgument`] if the path leads to
    /// another directory.
    pub fn why(&self, path: impl Into<Location>) -> Result<Explanation> {
        let path = &path.into();
        let name = name_in(path, self.directory.root())?;
        let found = self.explain().into_iter().find(|explanation| explanation.checkpoint.name == name);
        found.ok_or_else(|| Error::NotFound {
            path: path.clone(),
            reason: "it is none of the checkpoints that this manager keeps or removes".to_string(),
        })
    }

    /// Reports what a save at `step` with these metrics would remove: for each existing checkpoint, what would keep it
    /// then. Lists the same checkpoints as [`explain`](CheckpointManager::explain); those that the save would
    /// supersede, because the run went back, come after the others of the run. Changes nothing.
    ///
    /// Assumes that the values to save are finite, and that the state has changed since it was saved at this step, if it
    /// was. Otherwise the save removes nothing, or, with new metadata or changed assets, replaces that checkpoint and
    /// takes over its pins.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(1).open()?;
    /// manager.save_at(1)?;
    /// let plan = manager.plan_removal(Some(2), [("loss", 0.5)]);
    /// assert_eq!(plan[0].to_string(), "ckpt-1 is removed: no policy keeps it");
    /// # Ok(())
    /// # }
    /// ```
    pub fn plan_removal<N: Into<String>>(
        &self,
        step: Option<u64>,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Vec<Explanation> {
        let metrics: BTreeMap<String, f64> = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let next = match step {
            Some(step) => self.next_at(step, &metrics),
            None => self.next("", None, &metrics),
        };
        self.outlook(Some(next)).explanations()
    }
}
