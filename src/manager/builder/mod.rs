//! The settings of a manager, and how it opens a directory.

mod kept;
mod start;

use super::background::Background;
use super::failures::{OnNoSpace, OnSaveError, OnUnhealthy};
use super::ledger::{Ledger, Link};
use super::links;
use super::on_saved::{OnSaved, SavedCheckpoint};
use super::preemption::Preemption;
use super::retention::{Goal, RetentionPolicy};
use super::save_policy::{EverySteps, SavePolicy};
#[cfg(feature = "huggingface")]
use super::weights::WeightsCadence;
use super::{CheckpointManager, Init};
use crate::catalog::Catalog;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
#[cfg(feature = "huggingface")]
use crate::export::WeightsExport;
use crate::location::Location;
use crate::repository::{Aside, Directory, OpenOptions};
use crate::restore::RestoreOptions;
use crate::rules::Rules;
use crate::save::{Held, Image, SaveOptions};
use crate::sync::{Arc, Mutex};
use std::collections::{BTreeMap, VecDeque};
#[cfg(feature = "huggingface")]
use std::path::Path;
use std::time::{Duration, Instant};

/// Sets up a [`CheckpointManager`].
pub struct CheckpointManagerBuilder {
    checkpoint: Checkpoint,
    directory: Location,
    name: String,
    /// The value of `max_to_keep`, if it was set.
    #[allow(clippy::option_option, reason = "the outer `None` means not set, the inner one keeps all")]
    max_to_keep: Option<Option<usize>>,
    keep_every: Option<Duration>,
    rules: Rules,
    policies: Vec<Arc<dyn RetentionPolicy>>,
    protect_restored: usize,
    keep_unhealthy: usize,
    keep_damaged: Option<usize>,
    keep_components: BTreeMap<String, usize>,
    restore_incomplete: bool,
    links: Vec<Link>,
    #[cfg(feature = "huggingface")]
    exports: Vec<WeightsCadence>,
    on_no_space: OnNoSpace,
    on_unhealthy: OnUnhealthy,
    restore_unhealthy: bool,
    /// The value of `save_every`, if it was set.
    interval: Option<u64>,
    save_policies: Vec<Box<dyn SavePolicy>>,
    on_save_error: OnSaveError,
    on_saved: OnSaved,
    preemption: Option<Preemption>,
    unclean_on_failure: bool,
    init: Option<Init>,
    initialize_from: Option<(Location, RestoreOptions)>,
    background: Option<Background>,
    recycle: bool,
    fresh_start: bool,
    options: SaveOptions,
}

impl std::fmt::Debug for CheckpointManagerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointManagerBuilder")
            .field("directory", &self.directory)
            .field("name", &self.name)
            .field("max_to_keep", &self.max_to_keep)
            .field("policies", &self.policies)
            .field("save_every", &self.interval)
            .finish_non_exhaustive()
    }
}

impl CheckpointManagerBuilder {
    pub(super) fn new(checkpoint: Checkpoint, directory: &Location) -> Self {
        CheckpointManagerBuilder {
            checkpoint,
            directory: directory.clone(),
            name: "ckpt".to_string(),
            max_to_keep: None,
            keep_every: None,
            rules: Rules::default(),
            policies: Vec::new(),
            protect_restored: 1,
            keep_unhealthy: 1,
            keep_damaged: Some(3),
            keep_components: BTreeMap::new(),
            restore_incomplete: false,
            links: Vec::new(),
            #[cfg(feature = "huggingface")]
            exports: Vec::new(),
            on_no_space: OnNoSpace::default(),
            on_unhealthy: OnUnhealthy::default(),
            restore_unhealthy: false,
            interval: None,
            save_policies: Vec::new(),
            on_save_error: OnSaveError::default(),
            on_saved: OnSaved::default(),
            preemption: None,
            unclean_on_failure: false,
            init: None,
            initialize_from: None,
            background: None,
            recycle: true,
            fresh_start: false,
            options: SaveOptions::new(),
        }
    }

    pub(crate) fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Sets what happens when values that are NaN or infinite are saved. Defaults to [`OnUnhealthy::Keep`].
    #[must_use]
    pub fn on_unhealthy(mut self, on_unhealthy: OnUnhealthy) -> Self {
        self.on_unhealthy = on_unhealthy;
        self
    }

    /// Sets what happens if there is no space for a checkpoint. Defaults to [`OnNoSpace::Fail`]. When the manager
    /// opens, it logs a warning if the policies, as far as they bound the number of checkpoints, will need more space
    /// than there is.
    #[must_use]
    pub fn on_no_space(mut self, on_no_space: OnNoSpace) -> Self {
        self.on_no_space = on_no_space;
        self
    }

    /// Maintains the symbolic link `latest` in the directory, to the newest healthy checkpoint. It is relative, and is
    /// replaced atomically after each save. Anything else of this name is left alone, with a warning. A link that
    /// cannot be created is a warning as well, and does not make the save fail.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Goal};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let mut manager =
    ///     CheckpointManager::builder(checkpoint, &dir).link_latest().link_best("loss", Goal::Minimize).open()?;
    /// manager.save_with_metrics(1, [("loss", 0.5)])?;
    /// manager.save_with_metrics(2, [("loss", 0.7)])?;
    /// assert_eq!(std::fs::read_link(dir.join("latest"))?.to_str(), Some("ckpt-2"));
    /// assert_eq!(std::fs::read_link(dir.join("best"))?.to_str(), Some("ckpt-1"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn link_latest(mut self) -> Self {
        self.links.push(Link { name: "latest".to_string(), best: None });
        self
    }

    /// Maintains the symbolic link `best` in the directory, to the healthy checkpoint with the best value of `metric`,
    /// like [`link_latest`](CheckpointManagerBuilder::link_latest). It is updated after each save, and when a metric is
    /// added through the manager. While no checkpoint has the metric, there is no link. The link does not keep the
    /// checkpoint: use the policy [`Best`](crate::retention::Best).
    #[must_use]
    pub fn link_best(mut self, metric: impl Into<String>, goal: Goal) -> Self {
        self.links.push(Link { name: "best".to_string(), best: Some((metric.into(), goal)) });
        self
    }

    /// Exports weights into `directory` whenever `policy` requests it, independently of the saves: as
    /// `weights-STEP.safetensors`, or as the directory `weights-STEP` with one file per component.
    /// [`CheckpointManager::save_if_due`] exports after the save, and returns when the export is durable and verified,
    /// as with [`Checkpoint::export_weights`]. It also returns the errors; with
    /// [`OnSaveError::Continue`](crate::OnSaveError::Continue), they are logged. An export that fails is due again at the next
    /// call, also after a restart from the checkpoint of its step. After a restart from a later one, a policy that names
    /// the step ([`AtSteps`](crate::save_policy::AtSteps)) does not request it again. The time of
    /// [`EveryDuration`](crate::save_policy::EveryDuration) counts since this process's last export, or since this call.
    ///
    /// One is made even if the save fails, except of a state that this call's save refuses, after a failed last save, and where the
    /// manager may not write. All exports are kept unless [`WeightsExport::keep`] limits their number. Can be set several times, with a directory for each.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::save_policy::EverySteps;
    /// use tch_checkpoint::{CheckpointManager, Dtype, WeightsExport};
    /// let weights = WeightsExport::of(["model"]).dtype(Dtype::BF16)?;
    /// let manager = CheckpointManager::builder(checkpoint, "checkpoints/run")
    ///     .export_weights_when(EverySteps(10_000), weights, "exports/run")
    ///     .open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "huggingface")]
    #[must_use]
    pub fn export_weights_when(
        mut self,
        policy: impl SavePolicy + 'static,
        export: WeightsExport,
        directory: impl AsRef<Path>,
    ) -> Self {
        self.exports.push(WeightsCadence::new(Box::new(policy), export, directory.as_ref()));
        self
    }

    /// Sets the number of steps between saves of [`CheckpointManager::save_if_due`], with the policy [`EverySteps`].
    /// Defaults to 1, or to the policies that were added with [`save_when`](CheckpointManagerBuilder::save_when).
    #[must_use]
    pub fn save_every(mut self, steps: u64) -> Self {
        self.interval = Some(steps);
        self
    }

    /// Adds a [save policy](crate::save_policy). [`CheckpointManager::save_if_due`] saves if any of the policies
    /// requests it, including [`save_every`](CheckpointManagerBuilder::save_every).
    #[must_use]
    pub fn save_when(mut self, policy: impl SavePolicy + 'static) -> Self {
        self.save_policies.push(Box::new(policy));
        self
    }

    /// Sets what [`CheckpointManager::save_if_due`] does when a save fails. Defaults to [`OnSaveError::Return`].
    #[must_use]
    pub fn on_save_error(mut self, on_save_error: OnSaveError) -> Self {
        self.on_save_error = on_save_error;
        self
    }

    /// Calls `function` after each save, when the checkpoint is durable and older ones have been pruned, for example to
    /// copy it elsewhere, to start an evaluation, or to log. With background saves, it is called on the thread that
    /// writes, and the next save waits for it. Can be set several times.
    ///
    /// An error or a panic of the function is returned as [`Error::Callback`](crate::Error::Callback), like an error of
    /// that save: by this call, or with background saves by the next one. The checkpoint is kept, and the save is not
    /// due again. Inside the function, calls of a manager that save, restore, wait or write a mark are errors, and so is every restore; a
    /// [`CheckpointReader`](crate::CheckpointReader) and a [`CheckpointDirectory`](crate::CheckpointDirectory) can be
    /// used. Do not lock anything that the training holds while it calls the manager.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path().join("run");
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    /// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
    /// let log = dir.join("saved.log");
    /// let mut manager = CheckpointManager::builder(checkpoint, &dir)
    ///     .on_saved(move |saved| std::fs::write(&log, format!("{} bytes", saved.info.bytes)))
    ///     .open()?;
    /// manager.save_at(1)?;
    /// assert_eq!(std::fs::read_to_string(dir.join("saved.log"))?, "0 bytes");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn on_saved<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        self,
        function: impl FnMut(&SavedCheckpoint) -> std::result::Result<(), E> + Send + 'static,
    ) -> Self {
        self.on_saved.add(function);
        self
    }

    /// Saves when the end is requested: the next [`CheckpointManager::save_if_due`] waits for the save in progress,
    /// saves once more, and returns when that is durable. [`CheckpointManager::should_stop`] then returns `true`.
    #[must_use]
    pub fn preemption(mut self, preemption: Preemption) -> Self {
        self.preemption = Some(preemption);
        self
    }

    /// Saves the state when a [guarded](CheckpointManager::guard) loop fails, even if the state may be inconsistent.
    /// Such a checkpoint is marked as unclean: restarts do not use it, no policy counts it, and the newest
    /// [`keep_unhealthy`](CheckpointManagerBuilder::keep_unhealthy) of them are kept. Its number is the step, or one
    /// more than the highest number if that is taken. By default, nothing is saved then.
    #[must_use]
    pub fn unclean_on_failure(mut self) -> Self {
        self.unclean_on_failure = true;
        self
    }

    /// Sets the name of the checkpoints, which the number follows (`ckpt-100`). Defaults to `ckpt`.
    #[must_use]
    pub fn checkpoint_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Saves in the background: calls return as soon as a consistent snapshot is guaranteed, and a background thread
    /// writes it. If it fails, the next call that saves, waits or closes returns the error.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::{Background, CheckpointManager};
    /// let mut manager = CheckpointManager::builder(checkpoint, "checkpoints/run").background(Background::new()).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn background(mut self, background: Background) -> Self {
        self.background = Some(background);
        self
    }

    /// Sets how every checkpoint is saved. Defaults to [`SaveOptions::new`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::{CheckpointManager, Durability, SaveOptions};
    /// let options = SaveOptions::new().durability(Durability::ProcessCrash);
    /// let mut manager = CheckpointManager::builder(checkpoint, "checkpoints/run").save_options(options).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn save_options(mut self, options: SaveOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets whether the files of a removed checkpoint are kept until the next save, which overwrites them: this is
    /// about twice as fast as writing new files, and needs the disk space of one more checkpoint. Defaults to `true`.
    /// Files that any other process has open or mapped, that have another hard link, or whose owner, group or mode is
    /// not that of a new file are never overwritten. Has an effect only on file systems that are known to be local
    /// (ext4, XFS, btrfs, tmpfs, F2FS, bcachefs). Set this to `false` for a directory that is exported over NFS version
    /// 3, whose clients cannot be detected.
    #[must_use]
    pub fn recycle(mut self, recycle: bool) -> Self {
        self.recycle = recycle;
        self
    }

    /// Opens the directory: creates it if necessary, takes its lock, removes the remains of writers that died, and
    /// examines all checkpoints; the index is only a cache. Damaged checkpoints are renamed. If a checkpoint cannot be
    /// examined now, the next restore or save returns the error, not this call.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for invalid settings,
    /// [`Error::Locked`](crate::Error::Locked) if another writer uses the directory, [`Error::Io`](crate::Error::Io).
    pub fn open(mut self) -> Result<CheckpointManager> {
        let retention = self.retention()?;
        self.look_at_components();
        #[cfg(feature = "huggingface")]
        WeightsCadence::check(&self.exports)?;
        let default = || if self.save_policies.is_empty() { Some(1) } else { None };
        if let Some(steps) = self.interval.or_else(default) {
            self.save_policies.push(Box::new(EverySteps(steps)));
        }
        let storage = &**self.checkpoint.storage();
        let options = OpenOptions { recycle: self.recycle, ..self.options.open_options() };
        // An absolute path, independent of the working directory.
        let directory = Directory::new(storage, storage.absolute(&self.directory)?, &options)?.with_rules(self.rules);
        directory.create()?;
        // With the longest possible number.
        directory.check_name(&format!("{}-{}", self.name, u64::MAX))?;
        let lock = directory.lock()?;
        let opened = directory.now();
        let scan = directory.scan_for_writing()?;
        directory.sweep(&scan.leftovers);
        // What was moved aside may get its name back, and must be older than the next save then.
        let aside = scan.aside.iter().filter(|(aside, _)| *aside != Aside::Superseded);
        let aside = aside.filter_map(|(_, name)| directory.manifest(name).ok());
        let aside = aside.map(|manifest| manifest.sequence).max().unwrap_or(0);
        let catalog = Catalog::of(&directory, scan);
        let held = Arc::new(Held::new(&directory, lock, catalog.sequence().max(aside)));
        let mut ledger = Ledger::new(directory.clone(), held.clone(), self.name.clone(), retention, opened);
        ledger.take_in(catalog);
        ledger.links = Arc::new(Mutex::new(self.links));
        let mut checkpoint = self.checkpoint;
        checkpoint.set_held(held.clone());
        let mut manager = CheckpointManager {
            checkpoint,
            options: self.options,
            directory,
            name: self.name,
            save_policies: self.save_policies,
            last_save_at: Instant::now(),
            previous_step: None,
            first_step: None,
            on_save_error: self.on_save_error,
            failures: 0,
            on_saved: self.on_saved,
            preemption: self.preemption,
            saved_for_end: false,
            has_to_stop: false,
            init: self.init,
            initialize_from: self.initialize_from,
            ledger: Arc::new(Mutex::new(ledger)),
            held,
            head: None,
            begun: false,
            restores: 0,
            fresh_start: self.fresh_start,
            restore_unhealthy: self.restore_unhealthy,
            restore_incomplete: self.restore_incomplete,
            #[cfg(feature = "huggingface")]
            exports: self.exports,
            on_no_space: self.on_no_space,
            lacked_room: false,
            on_unhealthy: self.on_unhealthy,
            last_step: None,
            restored_past: false,
            owed: None,
            background: self.background,
            in_flight: None,
            early: None,
            waits_since: None,
            never_saved: VecDeque::new(),
            guard: None,
            unclean_on_failure: self.unclean_on_failure,
            next_metadata: BTreeMap::new(),
            image: Image::default(),
        };
        manager.warn_of_room();
        links::update(&manager.ledger, &manager.directory);
        Ok(manager)
    }
}
