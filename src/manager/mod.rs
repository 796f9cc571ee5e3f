//! `CheckpointManager`: numbered checkpoints in a directory, pruning, and restores of the newest intact one.

mod background;
mod builder;
mod checkpoint_ref;
mod commit;
mod directory;
mod failures;
mod guard;
mod ledger;
mod links;
mod listing;
mod marks;
mod on_saved;
mod outlook;
mod pins;
mod preemption;
mod prune;
mod recover;
pub mod retention;
mod room;
pub mod save_policy;
mod saving;
mod seen;
mod select;
mod thinning;
mod watcher;
#[cfg(feature = "huggingface")]
mod weights;
mod why;

pub use background::{Background, WhenBusy};
pub use builder::CheckpointManagerBuilder;
pub use checkpoint_ref::CheckpointRef;
pub use directory::CheckpointDirectory;
pub use failures::{OnNoSpace, OnSaveError, OnUnhealthy};
pub use listing::{ListedCheckpoint, Listing, checkpoints, latest_checkpoint, list_checkpoints};
pub use on_saved::SavedCheckpoint;
pub use preemption::Preemption;
#[cfg(feature = "signals")]
pub use preemption::Signal;
pub use prune::Pruned;
pub(crate) use select::selected;
pub use watcher::CheckpointWatcher;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::{Follows, MarkKind};
use crate::location::Location;
use crate::repository::Directory;
use crate::restore::RestoreOptions;
use crate::save::{Held, Image, SaveClock, SaveOptions};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::{callback, graph};
use background::InFlight;
use commit::EarlyMarks;
use guard::Guard;
use ledger::Ledger;
use on_saved::OnSaved;
use save_policy::SavePolicy;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
#[cfg(feature = "huggingface")]
use weights::WeightsCadence;

/// Writes numbered checkpoints into a directory, keeps the newest `max_to_keep`, and restores the newest intact one.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
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
/// At most one manager may write to a directory at a time, enforced by an advisory lock that the system releases when
/// the process exits. Readers take no lock. The manager removes only checkpoints with its name and a number, after the
/// new one is durable. A damaged checkpoint is renamed (`damaged-ckpt-80-…`); the 3 of these with the highest numbers
/// are kept ([`keep_damaged`](CheckpointManagerBuilder::keep_damaged)).
///
/// # Going back
/// If an older checkpoint is restored and the run continues from there, the first save renames the later ones
/// (`superseded-ckpt-80-…`), so that their numbers are free. They are removed when
/// [`max_to_keep`](CheckpointManagerBuilder::max_to_keep) newer ones are complete; for a healthy one, only healthy ones
/// count. Nothing changes before that save, so an older checkpoint can be restored for inspection. A checkpoint whose
/// number is saved again is superseded in the same way. A checkpoint of another run that was copied in, which neither
/// the index nor a manifest connects with the restored one, is neither renamed nor removed.
pub struct CheckpointManager {
    checkpoint: Checkpoint,
    options: SaveOptions,
    directory: Directory,
    name: String,
    save_policies: Vec<Box<dyn SavePolicy>>,
    /// When a state was last saved or restored.
    last_save_at: Instant,
    /// The step of the last call of `save_if_due`, and the lowest one of all calls.
    previous_step: Option<u64>,
    first_step: Option<u64>,
    on_save_error: OnSaveError,
    /// The number of consecutive failures of those calls.
    failures: u32,
    on_saved: OnSaved,
    preemption: Option<Preemption>,
    /// Whether the state has been saved because the end was requested.
    saved_for_end: bool,
    /// Whether that has been tried.
    has_to_stop: bool,
    init: Option<Init>,
    /// The checkpoint to read if there is nothing to restore.
    initialize_from: Option<(Location, RestoreOptions)>,
    ledger: Arc<Mutex<Ledger>>,
    held: Arc<Held>,
    /// The checkpoint restored or saved last: the next one follows it.
    head: Option<Follows>,
    /// Whether the run of this directory continues: something in it was restored or saved, or it was empty.
    begun: bool,
    /// The number of restores of the checkpoint that the head accounts for.
    restores: u64,
    /// Whether a new run may start in a directory with another one.
    fresh_start: bool,
    /// Whether a checkpoint with non-finite values is restored like any other.
    restore_unhealthy: bool,
    /// Whether a checkpoint that lacks components is restored like any other.
    restore_incomplete: bool,
    /// When to export weights, which ones, and where; and the step of the last export.
    #[cfg(feature = "huggingface")]
    exports: Vec<WeightsCadence>,
    /// What to do if there is no space.
    on_no_space: OnNoSpace,
    /// Whether to remove something before the next save, because the one in the background had no space.
    lacked_room: bool,
    /// How a save treats values that are not finite.
    on_unhealthy: OnUnhealthy,
    /// The step of the last save or restore, from which the next interval is counted.
    last_step: Option<u64>,
    /// Whether a restore bypassed this manager after it.
    restored_past: bool,
    /// The number of restores at which a save was due that has failed, or was postponed, if nothing has been saved since. A
    /// restore begins anew.
    owed: Option<u64>,
    background: Option<Background>,
    in_flight: Option<InFlight>,
    /// The name of the save in flight, and marks to write once it is durable.
    early: Option<(String, EarlyMarks)>,
    /// Set while a due save waits for gradients to be used: whose they are, the steps of that optimizer when the wait
    /// started, and the calls since.
    waits_since: Option<(String, u64, u64)>,
    /// The last background saves that failed, and what each of them followed.
    never_saved: VecDeque<(Follows, Option<Follows>)>,
    /// The guard of the training loop.
    guard: Option<Guard>,
    /// Whether a possibly inconsistent state is saved when the loop fails.
    unclean_on_failure: bool,
    /// The metadata of the next save.
    next_metadata: BTreeMap<String, serde_json::Value>,
    /// The memory of the last background save.
    image: Image,
}

/// A save: its name, and what it supersedes.
struct Next {
    number: u64,
    step: Option<u64>,
    counter: u64,
    metrics: BTreeMap<String, f64>,
    /// Pins and notes of the checkpoint that it replaces, whose state is the same.
    noted: Vec<MarkKind>,
    superseded: Vec<String>,
    /// Whether the state may be inconsistent.
    unclean: bool,
    /// The components that are left out, sorted.
    without: Vec<String>,
    /// Started by the call of the save.
    clock: SaveClock,
}

/// The function to call if there is nothing to restore.
type Init = Box<dyn FnMut() -> Result<()> + Send>;

impl std::fmt::Debug for CheckpointManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointManager").field("checkpoints", &self.checkpoints()).finish_non_exhaustive()
    }
}

impl CheckpointManager {
    /// Starts building a manager of `checkpoint` in the directory `directory`.
    pub fn builder(checkpoint: Checkpoint, directory: impl Into<Location>) -> CheckpointManagerBuilder {
        CheckpointManagerBuilder::new(checkpoint, &directory.into())
    }

    /// Returns the managed checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Returns the managed checkpoint, to track more objects.
    pub fn checkpoint_mut(&mut self) -> &mut Checkpoint {
        &mut self.checkpoint
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Location {
        self.directory.root()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records `value` under `name` with the next save only. It replaces the value that
    /// [`Checkpoint::metadata`](crate::Checkpoint::metadata) recorded under that name. If a save fails, the next one
    /// records it. If the checkpoint of the step of that save already has the current state, a new checkpoint replaces it,
    /// and keeps its metrics, pins and notes. So does one with changed files of the user ([`Asset`](crate::Asset)).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir).open()?;
    /// manager.set_next_metadata("samples", &["never odd", "or even"])?;
    /// let path = manager.save_at(1)?;
    /// let samples: Option<Vec<String>> = CheckpointDirectory::new(&dir).metadata(path, "samples")?;
    /// assert_eq!(samples.ok_or("none")?.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if the value cannot be serialized.
    pub fn set_next_metadata<T: Serialize + ?Sized>(&mut self, name: impl Into<String>, value: &T) -> Result<()> {
        let name = name.into();
        let value = graph::encode(value).map_err(|reason| Error::object(&name, reason))?;
        self.next_metadata.insert(name, value);
        Ok(())
    }

    /// Returns the newest checkpoint. One that is still being written does not count.
    #[must_use]
    pub fn latest_checkpoint(&self) -> Option<Location> {
        let ledger = self.ledger();
        ledger.known.last().map(|found| ledger.path(&found.entry.name))
    }

    /// Returns the checkpoints, oldest first, without permanent ones.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<Location> {
        self.paths(false)
    }

    /// Returns the permanent checkpoints ([`keep_every`](CheckpointManagerBuilder::keep_every)), oldest first;
    /// superseded ones (`superseded-…`) come before the others.
    #[must_use]
    pub fn permanent_checkpoints(&self) -> Vec<Location> {
        let ledger = self.ledger();
        let superseded = ledger.superseded.iter().filter(|(_, found)| found.entry.permanent);
        let mut paths: Vec<Location> = superseded.map(|(name, _)| ledger.path(name)).collect();
        drop(ledger);
        paths.extend(self.paths(true));
        paths
    }

    fn paths(&self, permanent: bool) -> Vec<Location> {
        let ledger = self.ledger();
        let wanted = ledger.known.iter().filter(|found| found.entry.permanent == permanent);
        wanted.map(|found| ledger.path(&found.entry.name)).collect()
    }

    /// Returns `true` if the end was requested ([`preemption`](CheckpointManagerBuilder::preemption)), for example to cut a
    /// long step short. The request may have come after the last call of [`save_if_due`](CheckpointManager::save_if_due),
    /// so that nothing is saved for it yet: a loop stops when [`should_stop`](CheckpointManager::should_stop) returns
    /// `true`.
    #[must_use]
    pub fn preempted(&self) -> bool {
        self.preemption.as_ref().is_some_and(Preemption::is_requested)
    }

    /// Returns `true` if the end was requested ([`preemption`](CheckpointManagerBuilder::preemption)) and
    /// [`save_if_due`](CheckpointManager::save_if_due) was called after it: the loop stops here. That call has saved the
    /// state, durably, or has returned the error that prevented it. After such an error, another call of `save_if_due`
    /// tries again.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.has_to_stop
    }

    /// Returns the cost of the last save; `None` before the first one. A background save counts once it is durable;
    /// [`wait`](CheckpointManager::wait) waits for that.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path();
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
    /// let mut manager = CheckpointManager::builder(checkpoint, dir).open()?;
    /// assert!(manager.last_save_figures().is_none());
    /// manager.save()?;
    /// let figures = manager.last_save_figures().ok_or("nothing was saved")?;
    /// println!("saved in {:?}, which stalled the training for {:?}", figures.total, figures.stall);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn last_save_figures(&self) -> Option<SaveFigures> {
        self.ledger().figures
    }

    /// Returns `true` if a save is being written in the background, or the functions given to
    /// [`on_saved`](CheckpointManagerBuilder::on_saved) are running after it.
    #[must_use]
    pub fn is_saving(&self) -> bool {
        // In a forked child, nothing is: the thread is the parent's, and would never end.
        let is_written = self.in_flight.as_ref().is_some_and(|in_flight| !in_flight.is_finished());
        is_written && self.directory.check_process().is_ok()
    }

    /// Like [`wait`](CheckpointManager::wait), for at most `timeout`. Returns whether everything that was saved is
    /// durable.
    ///
    /// # Errors
    /// As for [`wait`](CheckpointManager::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        callback::refuse()?;
        let began = Instant::now();
        while self.is_saving() {
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
        self.settle().map(|()| true)
    }

    /// Waits until everything that was saved is durable.
    ///
    /// # Errors
    /// The error of the background save, once.
    pub fn wait(&mut self) -> Result<()> {
        self.settle()
    }

    /// Closes the manager. When this returns, everything saved is durable, and the directory is free for another
    /// manager.
    ///
    /// # Errors
    /// The error of the background save, unless a call has returned it before.
    pub fn close(mut self) -> Result<()> {
        self.settle()
    }
}

/// Waits for the save in progress. Its error is only logged, so prefer [`CheckpointManager::close`].
impl Drop for CheckpointManager {
    fn drop(&mut self) {
        if self.directory.check_process().is_err() {
            // In a forked child, the background thread belongs to the parent.
            std::mem::forget(self.in_flight.take());
            return;
        }
        if let Err(e) = self.settle() {
            log::error!("the last save failed: {e:#}");
        }
        self.directory.clear_spares();
    }
}
