//! Restoring what a `Checkpoint` tracks.

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::graph::{Gated, Node, torn_keys, walk};
use crate::location::Location;
use crate::name;
use crate::restore::{
    self, About, Opened, Origin, Pending, Request, RestoreOptions, RestoreStatus, Restored, Verify, Whence,
    match_objects,
};
use crate::snapshot::Snapshot;
#[cfg(feature = "torch")]
use crate::source::Source;
use crate::source::TensorSource;
use crate::{callback, parallel};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Checkpoint {
    /// Restores the checkpoint at `path` into the tracked objects, in place and all-or-nothing.
    ///
    /// The format is recognized by content: a checkpoint of this crate, or a file, directory or TensorFlow prefix that
    /// [`interop`](crate::interop) reads. Every tracked object must be in it with exact type and shape. Every byte is
    /// verified before anything changes, as far as the format allows ([`RestoreStatus::verified_by`]). If another
    /// tool's file changes while it is read, that is an error. Values that no object uses are kept for objects that are
    /// tracked later, and replace those of earlier restores. No file stays open: what is tracked later takes its values
    /// only while the checkpoint is the same, and only its own files are verified then.
    ///
    /// A file of another tool that has unknown objects, or expands beyond the limit, is an error. To allow either, open
    /// it with [`interop::open_with`](crate::interop::open_with) and pass the source to
    /// [`restore_source`](Checkpoint::restore_source).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::Unsupported`], [`Error::Mismatch`] with all differences; no
    /// object has been changed then. Only if the files change or become unreadable between verifying and reading may
    /// some objects have been changed: [`Error::PartlyRestored`].
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

    /// Like [`read`](Checkpoint::read), with `options`.
    ///
    /// # Errors
    /// As for [`restore`](Checkpoint::restore).
    pub fn read_with(&mut self, path: impl Into<Location>, options: &RestoreOptions) -> Result<RestoreStatus> {
        let opened = Opened::open(&self.storage, &path.into(), options)?;
        self.read_opened(opened, options)
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
    /// [`Error::Object`] for an object that cannot be saved, if there is not enough memory, or if a step of a tracked
    /// optimizer or average on another thread changed something meanwhile.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.refuse_torn()?;
        let objects = self.objects.list();
        let mut snapshot = Snapshot::of(&objects, &Gated::of(&objects)?, parallel::default_threads())?;
        snapshot.save_counter = self.save_counter.get();
        (snapshot.follows, snapshot.earlier) = (self.follows.clone(), self.earlier.clone());
        Ok(snapshot)
    }

    /// Copies the state of some of the tracked objects to memory.
    #[cfg(feature = "huggingface")]
    pub(crate) fn snapshot_of(&self, components: &BTreeSet<String>) -> Result<Snapshot> {
        self.refuse_torn()?;
        let mut objects = self.objects.list();
        // A step of an optimizer that is left out changes what is copied.
        let gated = Gated::of(&objects)?;
        objects.retain(|(name, _)| components.contains(name));
        if let Some(name) = components.iter().find(|name| objects.iter().all(|(tracked, _)| tracked != *name)) {
            return Err(Error::object(name, "no object of this name is tracked"));
        }
        Snapshot::of(&objects, &gated, parallel::default_threads())
    }

    /// Restores a snapshot into the tracked objects, in place and all-or-nothing, as exactly as a restore from a
    /// checkpoint: tensors, optimizer state, values, counters and random state. Waits for background saves that are
    /// still copying what would be overwritten.
    ///
    /// The run continues from the checkpoint that it had restored or saved before the snapshot, if any: the next save
    /// of a manager supersedes later ones, as after a [restore](crate::CheckpointManager#going-back). `requires_grad`
    /// is unchanged. What a restore keeps for objects that are tracked later, and for variables that are built after the
    /// rollback, is kept.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the objects differ from those of the snapshot: one was tracked later, or has another
    /// shape. No object has been changed then.
    pub fn rollback(&mut self, snapshot: &Snapshot) -> Result<()> {
        // A snapshot has nothing of objects that come later, so that what a restore keeps for them still belongs to it.
        let waiting = walk(&self.objects.list())?.collections;
        let waiting: Vec<_> = waiting.iter().filter_map(|collection| collection.keep_waiting()).collect();
        self.apply(&Origin::any(snapshot), &RestoreOptions::new().verify(Verify::Never))?;
        waiting.into_iter().for_each(|keep| keep());
        self.save_counter.set(snapshot.save_counter);
        self.follows.clone_from(&snapshot.follows);
        self.earlier.clone_from(&snapshot.earlier);
        self.restores += 1;
        Ok(())
    }

    /// Like [`restore_with`](Checkpoint::restore_with), for a checkpoint of this crate.
    pub(crate) fn restore_own(&mut self, path: &Location, options: &RestoreOptions) -> Result<RestoreStatus> {
        let opened = Opened::open_ours(&self.storage, path, options)?;
        self.go_on_from(opened, options)
    }

    /// Returns the checkpoint that was restored or saved last, and the number of restores.
    pub(crate) fn restored(&self) -> (Option<&Follows>, u64) {
        (self.follows.as_ref(), self.restores)
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

    /// Restores from an open checkpoint, whatever its path leads to by now. Keeps nothing for objects that are tracked later.
    #[cfg(feature = "torch")]
    pub(crate) fn read_open(&mut self, source: &Source) -> Result<()> {
        self.apply(&Origin::Ours(source), &RestoreOptions::new()).map(drop)
    }

    fn read_opened(&mut self, opened: Opened, options: &RestoreOptions) -> Result<RestoreStatus> {
        let done = opened.with_origin(options, |origin| self.apply(origin, options))?;
        let about = opened.about();
        let whence = Some(Whence::close(opened, &self.storage));
        Ok(self.note(Pending::new(about, whence, options.clone(), self.objects.clone(), done)))
    }

    /// Matches objects with values, verifies, and applies the values.
    fn apply(&mut self, origin: &Origin<'_>, options: &RestoreOptions) -> Result<Restored> {
        callback::refuse()?;
        let saved = origin.saved();
        let objects = self.objects.list();
        let torn = torn_keys(&objects)?;
        let request = Request { saved: &saved, origin, options, torn: &torn, given: &BTreeSet::new() };
        let matching = match_objects(&objects, &request)?;
        drop(saved);
        restore::check(&matching, origin.path(), options)?;
        let done = Restored::of(&matching, origin);
        restore::run(matching, origin, options)?;
        Ok(done)
    }

    /// Replaces earlier restores for the components of its checkpoint.
    fn note(&mut self, pending: Arc<Pending>) -> RestoreStatus {
        self.pending.iter().for_each(|older| older.superseded_by(&pending));
        self.pending.retain(|pending| !pending.is_over());
        self.pending.push(pending.clone());
        RestoreStatus::new(pending)
    }

    /// Restores a newly tracked object from the latest restore that has a value for it.
    pub(super) fn fill(&mut self, name: &str, node: &Node) -> Result<()> {
        self.pending.retain(|pending| !pending.is_over());
        let pending = self.pending.iter().rev().find(|pending| pending.waits_for(name));
        pending.map_or(Ok(()), |pending| pending.fill(name, node))
    }

    /// Refuses to read tensors that may be partly overwritten.
    pub(crate) fn refuse_torn(&self) -> Result<()> {
        torn_keys(&self.objects.list())?.first().map_or(Ok(()), |key| Err(is_torn(key)))
    }

    /// Returns `true` if a restore that stopped halfway may have left objects partly overwritten, or that is unknown.
    pub(crate) fn is_torn(&self) -> bool {
        !torn_keys(&self.objects.list()).is_ok_and(|keys| keys.is_empty())
    }

    /// Returns the error of a restore that could not repair partly overwritten objects.
    pub(crate) fn explain_torn(&self, path: &Location, error: Error) -> Error {
        match error {
            error @ Error::PartlyRestored { .. } => error,
            error if self.is_torn() => Error::PartlyRestored { path: path.clone(), source: Box::new(error) },
            error => error,
        }
    }
}

/// Returns why a tensor is not saved.
pub(super) fn is_torn(key: &str) -> Error {
    let component = name::component(key);
    let reason = format!(
        "a restore, a step or a change of averages that stopped half-way may have left it partly overwritten; before saving, \
         restore a checkpoint that has it, or, if all of it has got new values since, call `Checkpoint::reinitialized` with {}. If it is a part of another \
         tensor, that one must be tracked and restored or declared",
        name::shown(component)
    );
    Error::object(key, reason)
}
