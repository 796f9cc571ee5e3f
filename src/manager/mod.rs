//! `CheckpointManager`: numbered checkpoints in a folder, old ones removed, the newest intact one restored.

mod background;
mod builder;
mod ledger;
mod listing;

pub use background::{Background, Overlap};
pub use builder::CheckpointManagerBuilder;
pub use listing::{Listed, Listing, checkpoints, latest_checkpoint, list_checkpoints};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::restore::{RestoreOptions, RestoreStatus, Started};
use crate::save::{self, Header, Image, Stamp, Unchanged};
use crate::store::{Directory, Lock};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use background::{Before, InFlight, Order};
use ledger::Ledger;
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
    interval: u64,
    init: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
    ledger: Arc<Mutex<Ledger>>,
    /// The highest commit sequence of the folder, those being written included.
    sequence: u64,
    /// The step of the last save or restore: where the next interval begins.
    last_step: Option<u64>,
    background: Option<Background>,
    in_flight: Option<InFlight>,
    /// The folder holds a damaged checkpoint that an earlier process moved aside.
    aside: Option<PathBuf>,
    /// Memory of the last save in the background.
    image: Image,
    _lock: Lock,
}

impl std::fmt::Debug for CheckpointManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointManager").field("checkpoints", &self.checkpoints()).finish_non_exhaustive()
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

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest checkpoint. One that is still being written does not count.
    pub fn latest_checkpoint(&self) -> Option<PathBuf> {
        let ledger = self.ledger();
        ledger.known.last().map(|entry| ledger.path(&entry.name))
    }

    /// The checkpoints there are, oldest first, without those preserved for good by
    /// [`keep_every_n_hours`](CheckpointManagerBuilder::keep_every_n_hours).
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        self.paths(false)
    }

    /// The checkpoints preserved for good by [`keep_every_n_hours`](CheckpointManagerBuilder::keep_every_n_hours),
    /// oldest first.
    pub fn preserved_checkpoints(&self) -> Vec<PathBuf> {
        self.paths(true)
    }

    fn paths(&self, preserved: bool) -> Vec<PathBuf> {
        let ledger = self.ledger();
        let wanted = ledger.known.iter().filter(|entry| entry.preserved == preserved);
        wanted.map(|entry| ledger.path(&entry.name)).collect()
    }

    /// Saves now, numbered by the counter of saves: `ckpt-1`, `ckpt-2` … In a folder that has higher numbers already
    /// the next free one is taken; nothing is overwritten. Returns the path.
    ///
    /// # Errors
    /// As for [`Checkpoint::save`]; the folder, the counter and the list are then as before. With
    /// [`background`](CheckpointManagerBuilder::background) also what the last save met, once; then this one has not
    /// begun.
    pub fn save(&mut self) -> Result<PathBuf> {
        self.settle()?;
        let counter = self.checkpoint.save_counter() + 1;
        let numbers: Vec<u64> =
            self.ledger().known.iter().filter_map(|entry| number_of(&self.name, &entry.name)).collect();
        let taken = numbers.iter().any(|&number| i64::try_from(number) == Ok(counter));
        let highest = numbers.into_iter().max().and_then(|highest| i64::try_from(highest).ok());
        let number = highest.filter(|_| taken).map_or(counter, |highest| highest + 1);
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
        self.settle()?;
        let saved =
            self.ledger().known.last().filter(|latest| latest.step == Some(number)).map(|latest| latest.name.clone());
        if let Some(name) = saved.filter(|_| self.last_step == Some(number)) {
            return Ok(self.directory.root().join(name));
        }
        self.save_as(step, Some(number), self.checkpoint.save_counter() + 1, metrics)
    }

    /// Saves if at least [`save_every`](CheckpointManagerBuilder::save_every) steps have passed since the last save, the
    /// restored checkpoint, or step 0. Returns the path when it saves.
    ///
    /// # Errors
    /// As for [`save_at`](CheckpointManager::save_at). After an error the next call tries again.
    pub fn save_if_due(&mut self, step: i64) -> Result<Option<PathBuf>> {
        let number = step_number(step)?;
        if self.in_flight.as_ref().is_some_and(InFlight::is_finished) {
            self.settle()?;
        }
        let last = self.last_step.unwrap_or(0);
        if number < last.saturating_add(self.interval) {
            return Ok(None);
        }
        let skips = self.background.as_ref().is_some_and(|background| background.overlap == Overlap::Skip);
        if skips && self.in_flight.is_some() {
            return Ok(None);
        }
        self.save_at(step).map(Some)
    }

    /// Nothing is in flight when this is called.
    fn save_as(
        &mut self,
        number: i64,
        step: Option<u64>,
        counter: i64,
        metrics: BTreeMap<String, f64>,
    ) -> Result<PathBuf> {
        let name = format!("{}-{number}", self.name);
        let plan = self.checkpoint.plan()?;
        // Used up even when the save fails: what it leaves behind could come back with a power cut.
        self.sequence = self.sequence.saturating_add(1);
        let sequence = self.sequence;
        let stamp = Stamp { sequence, step, save_counter: counter, metrics, ..self.checkpoint.stamp() };
        let path = self.directory.root().join(&name);
        let header = Header { stamp, values: plan.values()? };
        let unchanged = Unchanged::since(&self.ledger().memo, &plan);
        let options = self.checkpoint.options().clone();
        if self.background.as_ref().is_some_and(|background| plan.bytes() <= background.budget) {
            if self.ledger().known.iter().any(|entry| entry.name == name) {
                return Err(Error::already_exists(path));
            }
            let image = std::mem::take(&mut self.image);
            let ledger = self.ledger.clone();
            let before = Before { last_step: self.last_step, save_counter: self.checkpoint.save_counter() };
            let order = Order { plan, image, unchanged, header, name, ledger, options, before };
            let started = InFlight::start(order);
            self.in_flight = Some(started.inspect_err(|_| self.checkpoint.forget_plan())?);
        } else {
            let saved = save::save(&plan, None, unchanged, &self.directory, &name, header, &options);
            let saved = saved.inspect_err(|_| self.checkpoint.forget_plan())?;
            self.ledger().committed(&name, saved);
        }
        self.checkpoint.set_save_counter(counter);
        self.last_step = step.or(self.last_step);
        Ok(path)
    }

    /// Waits for the save in flight, if there is one.
    fn settle(&mut self) -> Result<()> {
        let Some(in_flight) = self.in_flight.take() else {
            return Ok(());
        };
        let (image, before, result) = in_flight.wait();
        self.image = image;
        result.inspect_err(|_| {
            // It is due again, and is planned anew.
            self.last_step = before.last_step;
            self.checkpoint.set_save_counter(before.save_counter);
            self.checkpoint.forget_plan();
        })
    }

    /// Waits until everything that was saved is durable.
    ///
    /// # Errors
    /// What the save in the background met, once.
    pub fn wait(&mut self) -> Result<()> {
        self.settle()
    }

    /// Restores the newest intact checkpoint into the tracked objects; in an empty folder calls the init function
    /// instead. Damaged checkpoints are passed over, moved aside, and listed in what is returned.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the newest intact checkpoint does not fit the objects; no object has changed.
    /// When there are checkpoints and none is intact, the error of the newest, or [`Error::NotFound`] with all reasons:
    /// starting afresh would be the wrong thing to do silently. It stays so until the damaged ones are moved away.
    pub fn restore_or_initialize(&mut self) -> Result<Started> {
        self.restore_or_initialize_with(&RestoreOptions::new())
    }

    /// As [`restore_or_initialize`](CheckpointManager::restore_or_initialize), allowing what `options` allow.
    ///
    /// # Errors
    /// As for [`restore_or_initialize`](CheckpointManager::restore_or_initialize).
    pub fn restore_or_initialize_with(&mut self, options: &RestoreOptions) -> Result<Started> {
        self.settle()?;
        let names: Vec<String> = self.ledger().known.iter().rev().map(|entry| entry.name.clone()).collect();
        let mut first_error = None;
        for name in names {
            match self.restore_with(&self.directory.root().join(&name), options) {
                Ok(status) => {
                    let passed_over = std::mem::take(&mut self.ledger().passed_over);
                    return Ok(Started { restored: Some(status), passed_over });
                }
                Err(error) if error.is_about_the_checkpoint() => {
                    self.ledger().pass_over(&name, &error);
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        if let Some(reason) = self.why_not_afresh() {
            return Err(Error::NotFound { path: self.directory.root().to_path_buf(), reason });
        }
        if let Some(init) = self.init.take() {
            init()?;
        }
        Ok(Started { restored: None, passed_over: Vec::new() })
    }

    /// Why a folder without a usable checkpoint is not the same as an empty one.
    fn why_not_afresh(&self) -> Option<String> {
        let ledger = self.ledger();
        if !ledger.passed_over.is_empty() {
            let reasons: Vec<&str> = ledger.passed_over.iter().map(|passed| passed.reason.as_str()).collect();
            return Some(format!("none that is there can be used: {}", reasons.join("; ")));
        }
        let aside = self.aside.as_ref()?;
        Some(format!("there are only damaged ones, such as {}; to start afresh, move them away", aside.display()))
    }

    /// Restores the checkpoint at `path`; saving goes on from its step.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`].
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<RestoreStatus> {
        self.settle()?;
        self.restore_with(path.as_ref(), &RestoreOptions::new())
    }

    fn restore_with(&mut self, path: &Path, options: &RestoreOptions) -> Result<RestoreStatus> {
        let status = self.checkpoint.restore_with(path, options)?;
        self.last_step = status.step();
        Ok(status)
    }

    /// Ends the manager: everything saved is durable, and the folder is free for another, when this returns.
    ///
    /// # Errors
    /// What the save in the background met, if no call has returned it yet.
    pub fn close(mut self) -> Result<()> {
        self.settle()
    }
}

/// Waits for the save in flight; what that met is only logged, so end with [`CheckpointManager::close`].
impl Drop for CheckpointManager {
    fn drop(&mut self) {
        if let Err(e) = self.settle() {
            log::error!("the last save failed: {e}");
        }
        self.directory.clear_spares();
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
