//! `CheckpointManager`: numbered checkpoints in a folder, old ones removed, the newest intact one restored.

mod builder;
mod listing;

pub use builder::CheckpointManagerBuilder;
pub use listing::{Listed, Listing, checkpoints, latest_checkpoint, list_checkpoints};

use crate::checkpoint::{Checkpoint, SaveRequest, index_entry};
use crate::error::{Error, Result};
use crate::format::{Index, IndexEntry};
use crate::restore::{PassedOver, RestoreOptions, RestoreStatus, Started};
use crate::retention::{Candidate, Retention};
use crate::store::{Directory, Lock};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes numbered checkpoints into a folder, keeps the newest `max_to_keep`, and restores the newest intact one.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path().join("run");
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
///
/// let step = Counter::new(0);
/// let checkpoint = Checkpoint::new().track("step", &step)?;
/// let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(3).save_every(10).open()?;
///
/// manager.restore_or_initialize()?;            // the newest intact checkpoint, or a fresh start
/// while step.get() < 100 {
///     step.increment();                        // train
///     manager.save_if_due(step.get())?;
/// }
/// assert_eq!(manager.checkpoints(), [dir.join("ckpt-80"), dir.join("ckpt-90"), dir.join("ckpt-100")]);
/// manager.close()?;
/// # Ok(())
/// # }
/// ```
///
/// One manager a folder writes, held off from each other by a lock that a dead process cannot leave behind; any number
/// of readers need none. It removes only checkpoints that carry its name and a number, after the new one is durable.
/// A checkpoint found damaged is moved aside (`damaged-ckpt-80-…`), never removed.
pub struct CheckpointManager {
    checkpoint: Checkpoint,
    directory: Directory,
    name: String,
    retention: Retention,
    interval: u64,
    init: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
    /// What is there, oldest commit first.
    known: Vec<IndexEntry>,
    last_preserved: Option<DateTime<Utc>>,
    /// The highest commit sequence of the folder.
    sequence: u64,
    /// The step of the last save or restore: where the next interval begins.
    last_step: Option<u64>,
    _lock: Lock,
}

impl std::fmt::Debug for CheckpointManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.known.iter().map(|entry| entry.name.as_str()).collect();
        f.debug_struct("CheckpointManager")
            .field("directory", &self.directory.root())
            .field("checkpoints", &names)
            .finish_non_exhaustive()
    }
}

impl CheckpointManager {
    /// Begins a manager of `checkpoint` in the folder `directory`; see the builder for what can be set.
    pub fn builder(checkpoint: Checkpoint, directory: impl AsRef<Path>) -> CheckpointManagerBuilder {
        CheckpointManagerBuilder::new(checkpoint, directory.as_ref())
    }

    /// The managed checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The managed checkpoint, to track more.
    pub fn checkpoint_mut(&mut self) -> &mut Checkpoint {
        &mut self.checkpoint
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        self.directory.root()
    }

    /// The newest checkpoint.
    pub fn latest_checkpoint(&self) -> Option<PathBuf> {
        self.known.last().map(|entry| self.path(&entry.name))
    }

    /// The checkpoints there are, oldest first, without those preserved for good by
    /// [`keep_every_n_hours`](CheckpointManagerBuilder::keep_every_n_hours).
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        self.known.iter().filter(|entry| !entry.preserved).map(|entry| self.path(&entry.name)).collect()
    }

    /// The checkpoints preserved for good by [`keep_every_n_hours`](CheckpointManagerBuilder::keep_every_n_hours), oldest first.
    pub fn preserved_checkpoints(&self) -> Vec<PathBuf> {
        self.known.iter().filter(|entry| entry.preserved).map(|entry| self.path(&entry.name)).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.root().join(name)
    }

    /// Saves now, numbered by the counter of saves: `ckpt-1`, `ckpt-2` … In a folder that has higher numbers already
    /// the next free one is taken; nothing is overwritten.
    ///
    /// # Errors
    /// As for [`Checkpoint::save`]; the folder, the counter and the list are then as before.
    pub fn save(&mut self) -> Result<PathBuf> {
        let counter = self.checkpoint.save_counter() + 1;
        let highest = self.known.iter().filter_map(|entry| number_of(&self.name, &entry.name)).max();
        let taken = self.known.iter().any(|entry| number_of(&self.name, &entry.name) == u64::try_from(counter).ok());
        let number = if taken { highest.map_or(counter, |highest| highest as i64 + 1) } else { counter };
        self.save_as(number, None, number, BTreeMap::new())
    }

    /// Saves now, numbered by `step`: `ckpt-240`. Saving the step of the newest checkpoint again, when that was saved
    /// or restored by this manager, does nothing.
    ///
    /// # Errors
    /// As for [`save`](CheckpointManager::save); [`Error::AlreadyExists`] when the folder has that step already,
    /// from a run that was not restored.
    pub fn save_at(&mut self, step: i64) -> Result<PathBuf> {
        self.save_with_metrics::<&str>(step, [])
    }

    /// As [`save_at`](CheckpointManager::save_at), noting figures such as a validation loss in manifest and index.
    ///
    /// # Errors
    /// As for [`save_at`](CheckpointManager::save_at); [`Error::Usage`] for a figure that is not finite.
    pub fn save_with_metrics<N: Into<String>>(
        &mut self,
        step: i64,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<PathBuf> {
        let metrics: BTreeMap<String, f64> = metrics.into_iter().map(|(name, value)| (name.into(), value)).collect();
        if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Usage(format!("the metric {name:?} is {value}; a metric must be a finite number")));
        }
        let number = step_number(step)?;
        if let Some(latest) =
            self.known.last().filter(|latest| latest.step == Some(number) && self.last_step == Some(number))
        {
            return Ok(self.path(&latest.name));
        }
        self.save_as(step, Some(number), self.checkpoint.save_counter() + 1, metrics)
    }

    /// Saves if at least [`save_every`](CheckpointManagerBuilder::save_every) steps have passed since the last save, the
    /// restored checkpoint, or step 0. Returns the path when it saved.
    ///
    /// # Errors
    /// As for [`save_at`](CheckpointManager::save_at). After an error the next call tries again.
    pub fn save_if_due(&mut self, step: i64) -> Result<Option<PathBuf>> {
        let number = step_number(step)?;
        let last = self.last_step.unwrap_or(0);
        if number < last.saturating_add(self.interval) {
            return Ok(None);
        }
        self.save_at(step).map(Some)
    }

    fn save_as(
        &mut self,
        number: i64,
        step: Option<u64>,
        counter: i64,
        metrics: BTreeMap<String, f64>,
    ) -> Result<PathBuf> {
        let name = format!("{}-{number}", self.name);
        let sequence = self.sequence.saturating_add(1);
        let request = SaveRequest { step, number: counter, metrics, sequence: Some(sequence), overwrite: false };
        let saved = self.checkpoint.save_in(&self.directory, &name, request)?;
        self.sequence = sequence;
        self.last_step = step.or(self.last_step);
        self.known.push(index_entry(&name, &saved.manifest));
        self.rotate();
        Ok(saved.path)
    }

    /// Removes what is too much. The checkpoint just written is durable; failing to remove an old one, or to note it,
    /// fails nothing: it is tried again at the next save.
    fn rotate(&mut self) {
        let candidate = |entry: &IndexEntry| Candidate {
            name: entry.name.clone(),
            saved_at: entry.saved_at,
            preserved: entry.preserved,
        };
        let candidates: Vec<Candidate> = self.known.iter().map(candidate).collect();
        let verdict = self.retention.decide(&candidates, self.last_preserved);
        self.last_preserved = verdict.last_preserved;
        for entry in &mut self.known {
            entry.preserved |= verdict.preserve.contains(&entry.name);
        }
        let before = self.known.clone();
        self.known.retain(|entry| !verdict.remove.contains(&entry.name));
        // The index is durable before anything is removed; on a full disk it is only after.
        let noted = self.write_index();
        for name in &verdict.remove {
            if let Err(e) = self.directory.remove(name) {
                log::warn!("the old checkpoint {name} could not be removed: {e}; it will be tried again");
                let kept = before.iter().filter(|entry| entry.name == *name).cloned();
                self.known.splice(0..0, kept);
            }
        }
        if let Err(e) = noted.or_else(|_| self.write_index()) {
            log::warn!("the index could not be written: {e}; the checkpoints are found without it");
        }
    }

    fn write_index(&self) -> Result<()> {
        self.directory.write_index(&Index {
            latest: self.known.last().map(|entry| entry.name.clone()),
            checkpoints: self.known.clone(),
            last_preserved: self.last_preserved,
        })
    }

    /// Restores the newest intact checkpoint into the tracked objects; in an empty folder calls the init function
    /// instead. Damaged checkpoints are passed over, moved aside, and listed in what is returned.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the newest intact checkpoint does not fit the objects; no object has changed.
    /// When there are checkpoints and none is intact, the error of the newest: starting afresh would be the wrong
    /// thing to do silently.
    pub fn restore_or_initialize(&mut self) -> Result<Started> {
        self.restore_or_initialize_with(&RestoreOptions::new())
    }

    /// As [`restore_or_initialize`](CheckpointManager::restore_or_initialize), allowing what `options` allow.
    ///
    /// # Errors
    /// As for [`restore_or_initialize`](CheckpointManager::restore_or_initialize).
    pub fn restore_or_initialize_with(&mut self, options: &RestoreOptions) -> Result<Started> {
        let mut passed_over = Vec::new();
        let mut first_error = None;
        for entry in self.known.clone().into_iter().rev() {
            let path = self.path(&entry.name);
            match self.restore_with(&path, options) {
                Ok(status) => return Ok(Started { restored: Some(status), passed_over }),
                Err(error) if error.is_about_the_checkpoint() => {
                    let aside = self.pass_over(&entry.name, &error);
                    passed_over.push(PassedOver { path: aside, reason: error.to_string() });
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        if let Some(init) = self.init.take() {
            init()?;
        }
        Ok(Started { restored: None, passed_over })
    }

    /// Takes a checkpoint that cannot be restored out of the list, and a damaged one out of the numbering; returns
    /// where it is now.
    fn pass_over(&mut self, name: &str, error: &Error) -> PathBuf {
        let mut path = self.path(name);
        log::warn!("{} is passed over: {error}", path.display());
        if !matches!(error, Error::Io { .. }) {
            match self.directory.set_aside(name) {
                Ok(aside) => path = aside,
                Err(e) => log::warn!("{} could not be moved aside: {e}", path.display()),
            }
        }
        self.known.retain(|entry| entry.name != name);
        path
    }

    /// Restores the checkpoint at `path`; saving goes on from its step.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`].
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<RestoreStatus> {
        self.restore_with(path.as_ref(), &RestoreOptions::new())
    }

    fn restore_with(&mut self, path: &Path, options: &RestoreOptions) -> Result<RestoreStatus> {
        let status = self.checkpoint.restore_with(path, options)?;
        self.last_step = status.step();
        Ok(status)
    }

    /// Ends the manager: the folder is free for another when this returns.
    ///
    /// # Errors
    /// What is still to be reported of saves.
    pub fn close(self) -> Result<()> {
        Ok(())
    }
}

fn step_number(step: i64) -> Result<u64> {
    u64::try_from(step).map_err(|_| Error::Usage(format!("a step is 0 or more, this is {step}")))
}

/// The number of the checkpoint called `name`, if it carries the manager's name and a number as we write it.
fn number_of(manager: &str, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(manager)?.strip_prefix('-')?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}
