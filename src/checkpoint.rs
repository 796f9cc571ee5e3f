//! `Checkpoint`: named objects, saved and restored together.

use crate::callback;
use crate::catalog::{Found, Marks, Sequences};
use crate::error::{Error, Result};
use crate::format::{Follows, Manifest};
use crate::graph::{self, Counter, Node, Trackable, Tracked, Unfinished};
use crate::location::Location;
use crate::name;
use crate::parallel;
use crate::provenance::Provenance;
use crate::repository::{Directory, Posix, Storage, checkpoint_name, nonce, parent_of};
use crate::restore::{
    self, About, Opened, Origin, Pending, Request, RestoreOptions, RestoreStatus, Restored, match_objects,
};
use crate::save::{
    self, AllSeen, AssetStream, Held, Plan, SaveOptions, SaveRequest, Stamp, Unchanged, UserAsset, check_names,
};
use crate::snapshot::Snapshot;
use crate::source::TensorSource;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Named objects that are saved and restored together: the components of a model, its optimizer, counters, random
/// state, and values of your own.
///
/// A checkpoint on disk is a directory with a `manifest.json` and one safetensors file per tracked object with tensors.
/// It is written atomically and is durable when the call returns. A restore verifies every byte before it changes
/// anything.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, Value};
///
/// let step = Counter::new(0);
/// let best = Value::new(f64::INFINITY);
/// let mut checkpoint = Checkpoint::new().track("step", &step)?.track("best", &best)?;
///
/// step.set(100);
/// best.set(0.5);
/// let path = checkpoint.save(dir.join("ckpt"))?;          // dir/ckpt-1
///
/// step.set(0);
/// checkpoint.restore(&path)?.assert_consumed()?;
/// assert_eq!((step.get(), best.get()), (100, 0.5));
/// # Ok(())
/// # }
/// ```
pub struct Checkpoint {
    objects: Tracked,
    /// User-provided files.
    assets: Vec<UserAsset>,
    /// The metadata of every save.
    metadata: BTreeMap<String, serde_json::Value>,
    save_counter: Counter,
    storage: Arc<dyn Storage>,
    run: String,
    /// The plan of the last save.
    planned: Option<Arc<Plan>>,
    /// The checkpoint that was last restored, or saved by `save`. The next one follows it.
    follows: Option<Follows>,
    /// The checkpoints of earlier runs that this run came from, latest first.
    earlier: Vec<Follows>,
    /// The number of restores.
    restores: u64,
    /// The directory that a manager of this checkpoint writes into.
    held: Option<Arc<Held>>,
    /// The sequences of the directory that was last saved to.
    sequences: Sequences,
    /// Restores whose checkpoints have values for objects that are tracked later, newest last.
    pending: Vec<Arc<Pending>>,
    /// Tensors that a restore which stopped halfway may have left partly overwritten.
    torn: BTreeSet<String>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("objects", &self.objects)
            .field("save_counter", &self.save_counter())
            .finish_non_exhaustive()
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint::new()
    }
}

impl Checkpoint {
    /// Creates a checkpoint that tracks nothing.
    #[must_use]
    pub fn new() -> Checkpoint {
        Checkpoint {
            objects: Tracked::default(),
            assets: Vec::new(),
            metadata: BTreeMap::new(),
            save_counter: Counter::new(0),
            storage: Arc::new(Posix::default()),
            run: nonce(),
            planned: None,
            follows: None,
            earlier: Vec::new(),
            restores: 0,
            held: None,
            sequences: Sequences::default(),
            pending: Vec::new(),
            torn: BTreeSet::new(),
        }
    }

    /// Returns a checkpoint of nothing yet, whose locations a storage other than the operating system's file systems
    /// serves.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use std::sync::Arc;
    /// use tch_checkpoint::repository::Memory;
    /// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
    ///
    /// let step = Counter::new(3);
    /// let checkpoint = Checkpoint::in_storage(Arc::new(Memory::default())).track("step", &step)?;
    /// let mut manager = CheckpointManager::builder(checkpoint, "mem://run").open()?;
    /// assert_eq!(manager.save()?.to_string(), "mem://run/ckpt-1");
    /// step.set(0);
    /// manager.restore("mem://run/ckpt-1")?;
    /// assert_eq!(step.get(), 3);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn in_storage(storage: Arc<dyn Storage>) -> Checkpoint {
        Checkpoint { storage, ..Checkpoint::new() }
    }

    /// Tracks `object` under `name`, which is also the name of its file.
    ///
    /// If a checkpoint that was restored before has a value of that name that no object used, `object` is restored now,
    /// with the options of that restore; the newest such restore counts.
    ///
    /// # Errors
    /// [`Error::InvalidName`] if the name is taken or invalid, here or below `object`; the errors of
    /// [`restore`](Checkpoint::restore) if a deferred value does not fit, and [`Error::NotFound`] if its checkpoint was
    /// removed.
    pub fn track(mut self, name: &str, object: impl Trackable) -> Result<Self> {
        self.add(name, object)?;
        Ok(self)
    }

    /// Like [`track`](Checkpoint::track), for a checkpoint that exists already.
    ///
    /// # Errors
    /// As for [`track`](Checkpoint::track); the checkpoint is unchanged then.
    pub fn add(&mut self, name: &str, object: impl Trackable) -> Result<()> {
        if name == "save_counter" {
            return Err(Error::name(name, "the checkpoint's own counter of saves has this name; choose another"));
        }
        let node = object.node();
        self.objects.add(name, node.clone())?;
        self.planned = None;
        let result = self.fill(name, &node);
        if result.is_err() {
            self.objects.remove(name);
        }
        result
    }

    /// Restores a newly tracked object from the latest restore that has a value for it.
    fn fill(&mut self, name: &str, node: &Node) -> Result<()> {
        self.pending.retain(|pending| !pending.is_over());
        let pending = self.pending.iter().rev().find(|pending| pending.waits_for(name));
        pending.map_or(Ok(()), |pending| pending.fill(name, node))
    }

    /// Stops tracking the object `name`, which later checkpoints do not have. Returns whether there was one. Another
    /// object, such as a list that has grown, can then be tracked under the name. It gets only values that no object
    /// has used from the checkpoints restored before; restore again to fill all of it.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let mut steps = vec![Counter::new(1)];
    /// let mut checkpoint = Checkpoint::new().track("steps", &steps)?;
    /// steps.push(Counter::new(2));
    /// assert!(checkpoint.untrack("steps"));
    /// checkpoint.add("steps", &steps)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn untrack(&mut self, name: &str) -> bool {
        let was_tracked = self.objects.remove(name);
        if was_tracked {
            self.planned = None;
            let key = name::key([name]);
            let below = name::prefix(&key);
            self.torn.retain(|torn| *torn != key && !torn.starts_with(&below));
        }
        was_tracked
    }

    /// Adds a file to every checkpoint from now on, beside the components.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Asset, Checkpoint};
    /// let checkpoint = Checkpoint::new().asset(Asset::file("data/tokenizer.json"))?;
    /// # let _ = checkpoint;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidName`] for an invalid name, or one that another asset has.
    pub fn asset(mut self, asset: UserAsset) -> Result<Self> {
        asset.check_name()?;
        if let Some(other) = self.assets.iter().find(|other| other.name().eq_ignore_ascii_case(asset.name())) {
            let reason = format!("the asset {:?} has this name; choose another with `Asset::named`", other.name());
            return Err(Error::name(asset.name(), reason));
        }
        self.assets.push(asset);
        Ok(self)
    }

    /// Records `value` under `name` with every save from now on, such as the hyperparameters of the run or the
    /// configuration of the data. Replaces a value of the same name. Metadata is not part of the state: a restore
    /// ignores it. [`CheckpointReader::metadata`](crate::CheckpointReader::metadata) and
    /// [`CheckpointDirectory::metadata`](crate::CheckpointDirectory::metadata) read it without a model.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path();
    /// use tch_checkpoint::{Checkpoint, CheckpointReader, Counter};
    /// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?.metadata("layers", &3)?;
    /// let path = checkpoint.write(dir.join("seven"))?;
    ///
    /// let layers: Option<usize> = CheckpointReader::open(path)?.metadata("layers")?;
    /// assert_eq!(layers, Some(3)); // Builds the model with it, then restores.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if the value cannot be serialized.
    pub fn metadata<T: Serialize + ?Sized>(mut self, name: impl Into<String>, value: &T) -> Result<Self> {
        self.set_metadata(name, value)?;
        Ok(self)
    }

    /// Like [`metadata`](Checkpoint::metadata), for a checkpoint that exists already.
    ///
    /// # Errors
    /// As for [`metadata`](Checkpoint::metadata).
    pub fn set_metadata<T: Serialize + ?Sized>(&mut self, name: impl Into<String>, value: &T) -> Result<()> {
        let name = name.into();
        let value = graph::encode(value).map_err(|reason| Error::object(&name, reason))?;
        self.metadata.insert(name, value);
        Ok(())
    }

    /// Records the origin of the run with every save, as the metadata `provenance`.
    ///
    /// # Errors
    /// As for [`metadata`](Checkpoint::metadata).
    pub fn provenance(self, provenance: &Provenance) -> Result<Self> {
        self.metadata("provenance", provenance)
    }

    /// Returns `true` if a checkpoint has the present user-provided files.
    pub(crate) fn has_assets(&self, manifest: &Manifest) -> Result<bool> {
        if self.assets.len() != manifest.assets.len() {
            return Ok(false);
        }
        let has = |asset: &UserAsset| -> Result<bool> {
            Ok(manifest.assets.get(asset.name()) == Some(&asset.capture(None)?.entry))
        };
        self.assets.iter().try_fold(true, |all, asset| Ok(all && has(asset)?))
    }

    /// Returns how many times this state was saved by [`save`](Checkpoint::save) or a manager. The number is part of
    /// every checkpoint.
    #[must_use]
    pub fn save_counter(&self) -> i64 {
        self.save_counter.get()
    }

    /// Saves as `PREFIX-N`, where N is the save counter, which this increments: `save("dir/ckpt")` writes `dir/ckpt-1`,
    /// then `dir/ckpt-2`. Creates the directory if necessary and updates its index. Returns the path.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] instead of overwriting; [`Error::NoSpace`], [`Error::Io`], [`Error::Object`] for an
    /// object that cannot be saved, [`Error::Locked`] if a manager or another process writes to the directory. After an
    /// error, the directory and the counter are unchanged.
    pub fn save(&mut self, prefix: impl Into<Location>) -> Result<Location> {
        self.save_with(prefix, &SaveOptions::new())
    }

    /// Like [`save`](Checkpoint::save), with `options`.
    ///
    /// # Errors
    /// As for [`save`](Checkpoint::save).
    pub fn save_with(&mut self, prefix: impl Into<Location>, options: &SaveOptions) -> Result<Location> {
        let prefix = &prefix.into();
        let number = self.next_save()?;
        let name = format!("{}-{number}", checkpoint_name(prefix)?);
        let target = Target { directory: self.directory(&parent_of(prefix), options)?, name: &name };
        let stamp = Stamp { save_counter: number, ..self.stamp() };
        let (path, manifest, held) = self.save_alone(&target, stamp, options, Vec::new())?;
        self.save_counter.set(number);
        self.follows = Some(Follows { run: manifest.run.clone(), sequence: manifest.sequence });
        if let Err(e) = update_index(&target.directory, &held, &name, &manifest) {
            log::warn!("the index could not be written: {e:#}; the checkpoints are found without it");
        }
        Ok(path)
    }

    /// Saves as exactly `path`, without changing the counter or the index.
    ///
    /// # Errors
    /// As for [`save`](Checkpoint::save).
    pub fn write(&mut self, path: impl Into<Location>) -> Result<Location> {
        self.write_with(path, &SaveOptions::new())
    }

    /// Like [`write`](Checkpoint::write), with `options`.
    ///
    /// # Errors
    /// As for [`save`](Checkpoint::save).
    pub fn write_with(&mut self, path: impl Into<Location>, options: &SaveOptions) -> Result<Location> {
        self.write_with_assets(path, options, [])
    }

    /// Like [`write_with`](Checkpoint::write_with), with files for this checkpoint only, in addition to those of every
    /// checkpoint ([`asset`](Checkpoint::asset)). See [`AssetStream`] for an example.
    ///
    /// # Errors
    /// As for [`save`](Checkpoint::save); [`Error::InvalidName`] for an invalid name, or one that another asset has;
    /// the errors of the assets' writers.
    pub fn write_with_assets<'a>(
        &mut self,
        path: impl Into<Location>,
        options: &SaveOptions,
        assets: impl IntoIterator<Item = AssetStream<'a>>,
    ) -> Result<Location> {
        self.write_at_step(&path.into(), None, options, assets.into_iter().collect())
    }

    /// Like [`write_with_assets`](Checkpoint::write_with_assets), with a step.
    pub(crate) fn write_at_step(
        &mut self,
        path: &Location,
        step: Option<u64>,
        options: &SaveOptions,
        assets: Vec<AssetStream<'_>>,
    ) -> Result<Location> {
        check_names(&assets, self.assets.iter().map(UserAsset::name))?;
        let target = Target { directory: self.directory(&parent_of(path), options)?, name: checkpoint_name(path)? };
        let stamp = Stamp { step, save_counter: self.save_counter(), ..self.stamp() };
        Ok(self.save_alone(&target, stamp, options, assets)?.0)
    }

    /// Returns the save counter after the next save.
    pub(crate) fn next_save(&self) -> Result<i64> {
        let counter = self.save_counter.get();
        counter
            .checked_add(1)
            .ok_or_else(|| Error::InvalidArgument(format!("the counter of saves cannot go beyond {counter}")))
    }

    /// Saves to a directory whose lock is free or held by a manager of this checkpoint.
    fn save_alone(
        &mut self,
        target: &Target<'_>,
        stamp: Stamp,
        options: &SaveOptions,
        assets: Vec<AssetStream<'_>>,
    ) -> Result<(Location, Manifest, Arc<Held>)> {
        let Target { directory, name } = target;
        let (plan, seen) = self.plan(options)?;
        let held = self.hold(directory)?;
        let stamp = Stamp { sequence: held.next_sequence()?, ..stamp };
        let unchanged = Unchanged::since_nothing(&plan, seen);
        let request = self.request(plan, unchanged, stamp, options)?;
        directory.must_be_free(name)?;
        let saved = request.run(None, directory, name, assets, || Ok(()));
        let saved = saved.inspect_err(|_| self.forget_plan())?;
        Ok((saved.path, saved.manifest, held))
    }

    /// Requests a save of the plan, with the present values and user-provided files.
    pub(crate) fn request(
        &self,
        plan: Arc<Plan>,
        unchanged: Unchanged,
        stamp: Stamp,
        options: &SaveOptions,
    ) -> Result<SaveRequest> {
        SaveRequest::new(plan, unchanged, stamp, &self.assets, options)
    }

    /// Returns the lock of a directory: the manager's, if it writes to this directory.
    fn hold(&mut self, directory: &Directory) -> Result<Arc<Held>> {
        match self.held.as_ref().filter(|held| held.is_of(directory)) {
            Some(held) => Ok(held.clone()),
            None => Held::take_again(directory, &mut self.sequences).map(Arc::new),
        }
    }

    /// Sets the lock that a manager holds, which direct saves use as well.
    pub(crate) fn set_held(&mut self, held: Arc<Held>) {
        self.held = Some(held);
    }

    /// Sets the checkpoint that a manager has saved, or, after a failed save, had saved before.
    pub(crate) fn set_follows(&mut self, follows: Option<Follows>) {
        self.follows = follows;
    }

    /// Returns the checkpoint that was restored or saved last, and the number of restores.
    pub(crate) fn restored(&self) -> (Option<&Follows>, u64) {
        (self.follows.as_ref(), self.restores)
    }

    /// Returns an update of a tracked object that has started and is not complete, with the object's name.
    pub(crate) fn unfinished(&self) -> Option<(String, Unfinished)> {
        self.objects.unfinished()
    }

    /// Returns the plan of a save, and what its tensors [report](Plan::look) now. Reuses the plan of the last save if
    /// nothing has changed.
    pub(crate) fn plan(&mut self, options: &SaveOptions) -> Result<(Arc<Plan>, AllSeen)> {
        self.refuse_torn()?;
        if let Some(plan) = self.planned.as_ref().filter(|plan| plan.fits_options(options)) {
            let seen = plan.look();
            if plan.fits(&seen) && plan.fits_collections() {
                return Ok((plan.clone(), Arc::new(seen)));
            }
        }
        let plan = Arc::new(save::plan(&self.objects.list(), options)?);
        let seen = Arc::new(plan.look());
        // A plan with gradients that will be used would keep their memory.
        self.planned = self.unfinished().is_none().then(|| plan.clone());
        Ok((plan, seen))
    }

    /// Like [`plan`](Checkpoint::plan), for some of the tracked objects. Also returns the names of the others.
    pub(crate) fn plan_only(
        &self,
        only: &BTreeSet<String>,
        options: &SaveOptions,
    ) -> Result<(Arc<Plan>, AllSeen, Vec<String>)> {
        self.refuse_torn()?;
        let (objects, others): (Vec<_>, Vec<_>) =
            self.objects.list().into_iter().partition(|(name, _)| only.contains(name));
        if let Some(name) = only.iter().find(|name| objects.iter().all(|(tracked, _)| tracked != *name)) {
            return Err(Error::object(name, "it is to be saved alone, and no object of this name is tracked"));
        }
        let plan = Arc::new(save::plan(&objects, options)?);
        let seen = Arc::new(plan.look());
        let mut without: Vec<String> = others.into_iter().map(|(name, _)| name).collect();
        without.sort();
        Ok((plan, seen, without))
    }

    /// Like [`plan`](Checkpoint::plan), for a capture. Returns `None` instead of what the tensors report if the capture
    /// is to check whether the plan fits.
    pub(crate) fn plan_to_capture(&mut self, options: &SaveOptions) -> Result<(Arc<Plan>, Option<AllSeen>)> {
        let is_current = |plan: &&Arc<Plan>| {
            self.torn.is_empty() && plan.was_captured() && plan.fits_options(options) && plan.fits_collections()
        };
        match self.planned.as_ref().filter(is_current) {
            Some(plan) => Ok((plan.clone(), None)),
            None => self.plan(options).map(|(plan, seen)| (plan, Some(seen))),
        }
    }

    /// Returns the tracked objects, in the order they were tracked.
    pub(crate) fn objects(&self) -> Vec<(String, Node)> {
        self.objects.list()
    }

    /// Returns the leaves of the tracked objects, with their names.
    #[cfg(feature = "torch")]
    pub(crate) fn leaves(&self) -> Result<Vec<crate::graph::Leaf>> {
        Ok(crate::graph::walk(&self.objects.list())?.leaves)
    }

    /// Discards the plan: after an error, something may have changed unnoticed.
    pub(crate) fn forget_plan(&mut self) {
        self.planned = None;
    }

    /// Returns the identity of the next checkpoint of this run; the caller sets sequence and counter.
    pub(crate) fn stamp(&self) -> Stamp {
        let (run, follows, earlier) = (self.run.clone(), self.follows.clone(), self.earlier.clone());
        let (metrics, counted_from, metadata) = (BTreeMap::new(), None, self.metadata.clone());
        let (unclean, without) = (false, Vec::new());
        Stamp {
            sequence: 0,
            run,
            step: None,
            save_counter: 0,
            metrics,
            follows,
            earlier,
            counted_from,
            metadata,
            unclean,
            without,
        }
    }

    fn directory(&self, root: &Location, options: &SaveOptions) -> Result<Directory> {
        Directory::new(&*self.storage, root, &options.open_options())
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(crate) fn set_save_counter(&self, counter: i64) {
        self.save_counter.set(counter);
    }

    /// Restores the checkpoint at `path` into the tracked objects, in place and all-or-nothing.
    ///
    /// The format is recognized by content: a checkpoint of this crate, or a file, directory or TensorFlow prefix that
    /// [`interop`](crate::interop) reads. Every tracked object must be in it with exact type and shape. Every byte is
    /// verified before anything changes, as far as the format allows ([`RestoreStatus::verified_by`]). If another
    /// tool's file changes while it is read, that is an error. Values that no object uses are kept for objects that are
    /// tracked later, and replace those of earlier restores. No file stays open.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::Unsupported`], [`Error::Mismatch`] with all differences. No
    /// object was changed then. Only if the files fail between verifying and reading, some objects were changed:
    /// [`Error::PartlyRestored`].
    pub fn restore(&mut self, path: impl Into<Location>) -> Result<RestoreStatus> {
        self.restore_with(path, &RestoreOptions::new())
    }

    /// Like [`restore`](Checkpoint::restore), with `options`.
    ///
    /// # Errors
    /// As for [`restore`](Checkpoint::restore).
    pub fn restore_with(&mut self, path: impl Into<Location>, options: &RestoreOptions) -> Result<RestoreStatus> {
        let opened = Opened::open(&self.storage, &path.into(), options)?;
        self.go_on_from(opened, options)
    }

    /// Like [`restore_with`](Checkpoint::restore_with), for a checkpoint of this crate.
    pub(crate) fn restore_own(&mut self, path: &Location, options: &RestoreOptions) -> Result<RestoreStatus> {
        let opened = Opened::open_ours(&self.storage, path, options)?;
        self.go_on_from(opened, options)
    }

    fn go_on_from(&mut self, opened: Opened, options: &RestoreOptions) -> Result<RestoreStatus> {
        let status = self.read_opened(opened, options)?;
        if let Some(counter) = status.save_counter() {
            self.save_counter.set(counter);
        }
        if let [follows, ..] = status.lineage() {
            self.follows = Some(follows.clone());
            let earlier = status.lineage().iter().filter(|earlier| earlier.run != self.run);
            self.earlier = earlier.cloned().collect();
            self.restores += 1;
        }
        Ok(status)
    }

    /// Like [`restore_with`](Checkpoint::restore_with), from an open source. The save counter is unchanged, and values
    /// that no object uses are not kept for objects that are tracked later.
    ///
    /// # Errors
    /// As for [`restore`](Checkpoint::restore).
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Checkpoint, RestoreOptions, VerifiedBy, interop};
    /// # let mut checkpoint = Checkpoint::new();
    /// let options = interop::ReadOptions::default().unknown_objects(true);
    /// let source = interop::open_with("training.pt", &options)?;
    /// let status = checkpoint.restore_source(&*source, &RestoreOptions::new())?;
    /// assert_eq!(status.verified_by(), VerifiedBy::Container);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore_source(&mut self, source: &dyn TensorSource, options: &RestoreOptions) -> Result<RestoreStatus> {
        let about = About { path: source.path().clone(), ..About::default() };
        let done = restore::with_names(source, options, |origin| self.apply(origin, options))?;
        Ok(self.note(Pending::new(about, None, options.clone(), self.objects.clone(), done)))
    }

    /// Like [`restore`](Checkpoint::restore), but does not change the save counter.
    ///
    /// # Errors
    /// As for [`restore`](Checkpoint::restore).
    pub fn read(&mut self, path: impl Into<Location>) -> Result<RestoreStatus> {
        self.read_with(path, &RestoreOptions::new())
    }

    /// Copies the state of all tracked objects to memory, for [`rollback`](Checkpoint::rollback).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let step = Counter::new(5);
    /// let mut checkpoint = Checkpoint::new().track("step", &step)?;
    /// let good = checkpoint.snapshot()?;
    /// step.set(6); // A step after which the loss is NaN.
    /// checkpoint.rollback(&good)?;
    /// assert_eq!(step.get(), 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] for an object that cannot be saved, or if there is not enough memory.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.refuse_torn()?;
        let mut snapshot = Snapshot::of(&self.objects.list(), parallel::default_threads())?;
        snapshot.save_counter = self.save_counter.get();
        (snapshot.follows, snapshot.earlier) = (self.follows.clone(), self.earlier.clone());
        Ok(snapshot)
    }

    /// Restores a snapshot into the tracked objects, in place and all-or-nothing, as exactly as a restore from a
    /// checkpoint: tensors, slots of optimizers, values, counters and random state. Waits for background saves that
    /// still copy what would be overwritten.
    ///
    /// The run continues from the checkpoint that it had restored or saved before the snapshot: the next save of a
    /// manager supersedes later ones, as after a [restore](crate::CheckpointManager#going-back). `requires_grad` is
    /// unchanged.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the objects differ from those of the snapshot: one was tracked later, or has another
    /// shape. No object was changed then.
    pub fn rollback(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.apply(&Origin::any(snapshot), &RestoreOptions::new().without_verification())?;
        self.save_counter.set(snapshot.save_counter);
        if snapshot.follows.is_some() {
            self.follows.clone_from(&snapshot.follows);
            self.earlier.clone_from(&snapshot.earlier);
            self.restores += 1;
        }
        Ok(())
    }

    /// Like [`read`](Checkpoint::read), with `options`.
    ///
    /// # Errors
    /// As for [`restore`](Checkpoint::restore).
    pub fn read_with(&mut self, path: impl Into<Location>, options: &RestoreOptions) -> Result<RestoreStatus> {
        let opened = Opened::open(&self.storage, &path.into(), options)?;
        self.read_opened(opened, options)
    }

    fn read_opened(&mut self, opened: Opened, options: &RestoreOptions) -> Result<RestoreStatus> {
        let done = opened.with_origin(options, |origin| self.apply(origin, options))?;
        let about = opened.about();
        let whence = Some(opened.close(&self.storage));
        Ok(self.note(Pending::new(about, whence, options.clone(), self.objects.clone(), done)))
    }

    /// Matches, verifies, applies.
    fn apply(&mut self, origin: &Origin<'_>, options: &RestoreOptions) -> Result<Restored> {
        callback::refuse()?;
        let saved = origin.saved();
        let request = Request { saved: &saved, origin, options, torn: &self.torn, given: &BTreeSet::new() };
        let matching = match_objects(&self.objects.list(), &request)?;
        drop(saved);
        restore::check(&matching, origin.path(), options)?;
        let done = Restored::of(&matching, origin);
        let tensors: Vec<String> = matching.tensors.iter().map(|(key, _)| key.clone()).collect();
        match restore::run(matching, origin, options) {
            Ok(()) => self.torn.clear(),
            Err(error @ Error::PartlyRestored { .. }) => {
                self.torn.extend(tensors);
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        Ok(done)
    }

    fn refuse_torn(&self) -> Result<()> {
        let Some(key) = self.torn.first() else { return Ok(()) };
        let reason = "a restore that stopped half-way may have left it partly overwritten; restore a checkpoint that has it \
                      before saving, or `untrack` the object";
        Err(Error::object(key, reason))
    }

    /// Returns `true` if a restore that stopped halfway may have left objects partly overwritten.
    pub(crate) fn is_torn(&self) -> bool {
        !self.torn.is_empty()
    }

    /// Returns the error of a restore that could not repair partly overwritten objects.
    pub(crate) fn explain_torn(&self, path: &Location, error: Error) -> Error {
        match error {
            error @ Error::PartlyRestored { .. } => error,
            error if self.is_torn() => Error::PartlyRestored { path: path.clone(), source: Box::new(error) },
            error => error,
        }
    }

    /// Replaces earlier restores, for the components of its checkpoint.
    fn note(&mut self, pending: Arc<Pending>) -> RestoreStatus {
        self.pending.iter().for_each(|older| older.superseded_by(&pending));
        self.pending.retain(|pending| !pending.is_over());
        self.pending.push(pending.clone());
        RestoreStatus::new(pending)
    }
}

/// The destination of a checkpoint.
struct Target<'a> {
    directory: Directory,
    name: &'a str,
}

/// Adds a checkpoint to the index of its directory, and keeps the entries of existing others.
fn update_index(directory: &Directory, held: &Held, name: &str, manifest: &Manifest) -> Result<()> {
    let there = directory.scan()?.names;
    held.update_index(directory, |index| {
        index.checkpoints.retain(|entry| entry.name != name && there.contains(&entry.name));
        index.checkpoints.push(Found::new(name, manifest, Marks::default()).entry);
        index.latest = Some(name.to_string());
    })
}
