//! Explains why a manager's checkpoints stay, and what its next save removes.

use super::CheckpointManager;
use super::ledger::infos;
use super::retention::{CheckpointInfo, Explanation};
use crate::error::{Error, Result};
use crate::location::Location;

impl CheckpointManager {
    /// Reports for each checkpoint of this run, oldest first, what keeps it. A save that is still being written does
    /// not count. Checkpoints that nothing keeps are removed after the next save.
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
    ///     "ckpt-1 stays: Latest(2): it is among the newest 2, until 1 newer one is saved"
    /// );
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn explain(&self) -> Vec<Explanation> {
        let ledger = self.ledger();
        ledger.retention.explain(&infos(&ledger.known), ledger.restored.as_ref(), self.directory.now())
    }

    /// Reports what keeps the checkpoint at `path`. Only the last component of the path is used, so a name is enough.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this manager has no checkpoint of that name.
    pub fn why(&self, path: impl Into<Location>) -> Result<Explanation> {
        let path = &path.into();
        let name = path.file_name().and_then(|name| name.to_str());
        let found = self.explain().into_iter().find(|explanation| Some(explanation.checkpoint.name.as_str()) == name);
        found.ok_or_else(|| Error::NotFound {
            path: path.clone(),
            reason: "it is none of the checkpoints that this manager keeps or removes".to_string(),
        })
    }

    /// Reports what a save at `step` with these metrics would remove: for each existing checkpoint, what would keep it
    /// then. Changes nothing. Does not consider what a save of an earlier step supersedes.
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
        let (ledger, now) = (self.ledger(), self.directory.now());
        let name = step.map_or_else(String::new, |step| format!("{}-{step}", self.name));
        let mut next = CheckpointInfo::new(name, now);
        next.step = step;
        next.metrics = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        next.counted_from = ledger.counted_from(&[]);
        let next = ledger.retention.with_components(next);
        let mut all = infos(&ledger.known);
        all.push(next);
        let mut explanations = ledger.retention.explain(&all, ledger.restored.as_ref(), now);
        explanations.pop();
        explanations
    }
}
