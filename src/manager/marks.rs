//! Marks that are added to a checkpoint after its save: metrics, pins, notes.

use super::checkpoint_ref::CheckpointRef;
use super::{CheckpointManager, commit, links};
use crate::callback;
use crate::catalog::{check_marks, remove_mark, write_marks};
use crate::error::Result;
use crate::format::{Follows, MarkKind};
use crate::sync::PoisonError;

impl CheckpointManager {
    /// Adds metrics to a checkpoint of this manager, durably, or replaces those of the same name. It is
    /// given by its name, by a path into the manager's directory, or by a description, which stands for that checkpoint
    /// even if another one takes its name ([`CheckpointRef`]). They can be NaN or infinite. Policies use them from the next save on.
    ///
    /// A checkpoint that is still being written in the background is committed with them; while it is being committed, the
    /// call waits. If its save fails, the metrics are lost with it, and a warning names them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).open()?;
    /// let path = manager.save_at(1)?;
    /// manager.add_metrics(&path, [("validation loss", 0.5)])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) if there is no such checkpoint;
    /// [`Error::Removed`](crate::Error::Removed) if it was removed meanwhile;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a path into another directory, and for a mark that
    /// cannot be represented, such as a text of more than 64 KiB; [`Error::Io`](crate::Error::Io).
    pub fn add_metrics<N: Into<String>>(
        &mut self,
        path: impl Into<CheckpointRef>,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<()> {
        let kinds = metrics.into_iter().map(|(name, value)| MarkKind::Metric { name: name.into(), value });
        self.mark(&path.into(), kinds.collect())
    }

    /// Keeps a checkpoint until the pin `name` is removed, and records why. Replaces a pin of the same name.
    ///
    /// # Errors
    /// As for [`add_metrics`](CheckpointManager::add_metrics).
    pub fn pin(
        &mut self,
        path: impl Into<CheckpointRef>,
        name: impl Into<String>,
        note: impl Into<String>,
    ) -> Result<()> {
        self.mark(&path.into(), vec![MarkKind::Pin { name: name.into(), note: note.into() }])
    }

    /// Removes a pin, durably. Returns whether there was one. Waits for a background save.
    ///
    /// # Errors
    /// As for [`add_metrics`](CheckpointManager::add_metrics), and the error of the background save.
    pub fn unpin(&mut self, path: impl Into<CheckpointRef>, name: impl Into<String>) -> Result<bool> {
        self.settle()?;
        let path = path.into();
        let checkpoint = &path.name(self.directory.root())?;
        let id = path.id(&self.directory, checkpoint)?;
        let pin = MarkKind::Pin { name: name.into(), note: String::new() };
        let was_pinned = remove_mark(&self.directory, checkpoint, id, pin)?;
        self.look_at_marks(checkpoint);
        Ok(was_pinned)
    }

    /// Adds a note to a checkpoint, durably. Replaces a note of the same name.
    ///
    /// # Errors
    /// As for [`add_metrics`](CheckpointManager::add_metrics).
    pub fn annotate(
        &mut self,
        path: impl Into<CheckpointRef>,
        name: impl Into<String>,
        text: impl Into<String>,
    ) -> Result<()> {
        self.mark(&path.into(), vec![MarkKind::Note { name: name.into(), text: text.into() }])
    }

    fn mark(&mut self, path: &CheckpointRef, kinds: Vec<MarkKind>) -> Result<()> {
        callback::refuse()?;
        // In a forked child, nobody would write what waits for the save in flight.
        self.directory.check_process()?;
        let name = &*path.name(self.directory.root())?;
        let run = self.checkpoint.stamp().run;
        check_marks(&Follows { run, sequence: 0 }, kinds.clone())?;
        if kinds.is_empty() {
            return Ok(());
        }
        let is_in_flight = |in_flight: &str| in_flight == name && path.may_be(self.head.as_ref());
        if let Some((_, early)) = self.early.as_ref().filter(|(in_flight, _)| is_in_flight(in_flight)) {
            let mut early = early.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(waiting) = early.as_mut() {
                waiting.extend(kinds);
                return Ok(());
            }
        }
        write_marks(&self.directory, name, path.id(&self.directory, name)?, kinds)?;
        self.look_at_marks(name);
        // Until something is restored or saved, nobody knows whose the checkpoints are that would be listed.
        if !self.begun {
            return Ok(());
        }
        // Another process may have the directory by now.
        let written =
            self.directory.check().and_then(|()| commit::write_index(&self.ledger, &self.directory, &self.held));
        if let Err(e) = written {
            log::warn!("the index could not be written: {e:#}; what was noted is found without it");
        }
        Ok(())
    }

    /// Reads the marks of a checkpoint.
    pub(super) fn look_at_marks(&self, name: &str) {
        let Ok(files) = self.directory.marks(name) else { return };
        self.ledger().note_marks(name, &files);
        links::update(&self.ledger, &self.directory);
    }
}
