//! Saving what a `Checkpoint` tracks.

use super::Checkpoint;
use super::restoring::is_torn;
use crate::catalog::{Found, Marks};
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::{Follows, Manifest};
use crate::graph::{Gated, LOST, Moment, Unfinished};
use crate::location::Location;
use crate::repository::{Directory, checkpoint_name, nonce, parent_of};
use crate::save::{
    self, AllSeen, AssetStream, FileStamp, Held, Plan, SaveClock, SaveOptions, SaveRequest, Stamp, Unchanged,
    UserAsset, check_names,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Checkpoint {
    /// Saves as `PREFIX-N`, where N is the save counter, which this increments: `save("dir/ckpt")` writes `dir/ckpt-1`,
    /// then `dir/ckpt-2`. Creates the directory if necessary and updates its index. Returns the path.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] instead of overwriting; [`Error::NoSpace`], [`Error::Io`], [`Error::Object`] for an
    /// object that cannot be saved, or if a step of a tracked optimizer on another thread ended meanwhile,
    /// [`Error::Locked`] if a manager or another process writes to the directory. After an error, the directory and the
    /// counter are unchanged.
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
        let (path, manifest, held) = self.save_alone(&target, stamp, options, Vec::new(), None)?;
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
        self.write_stamped(&path.into(), options, assets.into_iter().collect(), None, |_| ())
    }

    /// Returns the present moment of the tracked objects, for what is computed from them before it is saved with them.
    #[cfg(feature = "torch")]
    pub(crate) fn moment(&self) -> Result<Moment> {
        Gated::of(&self.objects.list())?.now()
    }

    /// Like [`write_with_assets`](Checkpoint::write_with_assets), with a stamp that `complete` has completed. It is an
    /// error if a writer on another thread has changed something `since` then.
    pub(crate) fn write_stamped(
        &mut self,
        path: &Location,
        options: &SaveOptions,
        assets: Vec<AssetStream<'_>>,
        since: Option<Moment>,
        complete: impl FnOnce(&mut Stamp),
    ) -> Result<Location> {
        check_names(&assets, self.assets.iter().map(UserAsset::name))?;
        let target = Target { directory: self.directory(&parent_of(path), options)?, name: checkpoint_name(path)? };
        let mut stamp = Stamp { save_counter: self.save_counter(), ..self.stamp() };
        complete(&mut stamp);
        Ok(self.save_alone(&target, stamp, options, assets, since)?.0)
    }

    /// Returns the cost of this object's last save, or `None` before the first one. Saves by a manager are not
    /// included: see [`CheckpointManager::last_save_figures`](crate::CheckpointManager::last_save_figures).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path();
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
    /// checkpoint.write(dir.join("seven"))?;
    /// let figures = checkpoint.last_save_figures().ok_or("nothing was saved")?;
    /// assert_eq!(figures.stall, figures.total);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn last_save_figures(&self) -> Option<SaveFigures> {
        self.figures
    }

    /// Returns the save counter after the next save.
    pub(crate) fn next_save(&self) -> Result<u64> {
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
        since: Option<Moment>,
    ) -> Result<(Location, Manifest, Arc<Held>)> {
        let clock = SaveClock::start();
        let Target { directory, name } = target;
        let (plan, seen) = self.plan(options)?;
        let held = self.hold(directory)?;
        // A sequence is one of a directory: in another one than the manager's, the same of this run may be another save.
        let is_elsewhere = self.held.as_ref().is_some_and(|own| !own.is_of(directory));
        let run = if is_elsewhere { nonce() } else { stamp.run };
        let stamp = Stamp { sequence: held.next_sequence()?, run, ..stamp };
        let unchanged = Unchanged::since_nothing(&plan, seen);
        let request = self.request(plan, unchanged, stamp, options, clock)?.since(since);
        directory.must_be_free(name)?;
        // The lock may be a manager's, which opened the directory itself.
        let saved = request.run(None, directory, name, assets, &[], |_| held.check().map(|()| Vec::new()));
        let saved = saved.inspect_err(|_| self.forget_plan())?;
        self.figures = Some(saved.figures);
        Ok((saved.path, saved.manifest, held))
    }

    /// Requests a save of the plan, with the current values and files.
    pub(crate) fn request(
        &self,
        plan: Arc<Plan>,
        unchanged: Unchanged,
        stamp: Stamp,
        options: &SaveOptions,
        clock: SaveClock,
    ) -> Result<SaveRequest> {
        // The last state of a run that has failed is better than none.
        if let Some(key) = plan.lost(unchanged.seen()).next().filter(|_| !stamp.unclean) {
            return Err(Error::object(key, LOST));
        }
        SaveRequest::new(plan, unchanged, stamp, &self.assets, options, clock)
    }

    /// Returns the lock of a directory: the manager's, if it writes to this directory.
    fn hold(&mut self, directory: &Directory) -> Result<Arc<Held>> {
        match self.held.as_ref().filter(|held| held.is_of(directory)) {
            Some(held) => held.check().map(|()| held.clone()),
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

    /// Returns an update of a tracked object that has started and is not complete, with the object's name.
    pub(crate) fn unfinished(&self) -> Option<(String, Unfinished)> {
        self.objects.unfinished()
    }

    /// Returns the plan of a save, and what its tensors [report](Plan::look) now. Reuses the plan of the last save if
    /// nothing has changed.
    pub(crate) fn plan(&mut self, options: &SaveOptions) -> Result<(Arc<Plan>, AllSeen)> {
        if let Some(plan) = self.planned.as_ref().filter(|plan| plan.fits_options(options)) {
            let seen = plan.look();
            if plan.fits(&seen) && plan.fits_collections() {
                plan.torn().map_or(Ok(()), |key| Err(is_torn(key)))?;
                return Ok((plan.clone(), Arc::new(seen)));
            }
        }
        // The handles of the old plan would hide from the new one what is lost.
        self.planned = None;
        let objects = self.objects.list();
        let plan = save::plan(&objects, options)?;
        let plan = Arc::new(match &self.beside {
            None => plan,
            // A step of an object that is not saved changes what is saved.
            Some(beside) => {
                let mut all = beside.list();
                all.retain(|(name, _)| objects.iter().all(|(own, _)| own != name));
                all.extend(objects);
                plan.with_gated(Gated::of(&all)?)
            }
        });
        plan.torn().map_or(Ok(()), |key| Err(is_torn(key)))?;
        let seen = Arc::new(plan.look());
        // A plan that contains gradients would keep their memory alive after they are used.
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
        let all = self.objects.list();
        // A step of an optimizer that is left out changes what is saved.
        let gated = Gated::of(&all)?;
        let (objects, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| only.contains(name));
        let plan = Arc::new(save::plan(&objects, options)?.with_gated(gated));
        let seen = Arc::new(plan.look());
        let mut without: Vec<String> = others.into_iter().map(|(name, _)| name).collect();
        without.sort();
        Ok((plan, seen, without))
    }

    /// Like [`plan`](Checkpoint::plan), for a capture. Returns `None` instead of what the tensors report if the capture
    /// is to check whether the plan fits.
    pub(crate) fn plan_to_capture(&mut self, options: &SaveOptions) -> Result<(Arc<Plan>, Option<AllSeen>)> {
        let is_current = |plan: &&Arc<Plan>| {
            plan.was_captured() && plan.fits_options(options) && plan.fits_collections() && plan.torn().is_none()
        };
        match self.planned.as_ref().filter(is_current) {
            Some(plan) => Ok((plan.clone(), None)),
            None => self.plan(options).map(|(plan, seen)| (plan, Some(seen))),
        }
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
            records_figures: true,
        }
    }

    fn directory(&self, root: &Location, options: &SaveOptions) -> Result<Directory> {
        Directory::new(&*self.storage, root, &options.open_options())
    }

    pub(crate) fn set_save_counter(&self, counter: u64) {
        self.save_counter.set(counter);
    }

    /// Returns the states of the user's files; `None` for what may change unnoticed, and what a function writes.
    pub(crate) fn files(&self) -> Vec<Option<FileStamp>> {
        self.assets.iter().map(UserAsset::stamp).collect()
    }

    /// Returns the name of an asset that is neither in the state that it had `then` nor, if that is not known, what the
    /// checkpoint `last` has.
    pub(crate) fn changed_asset(&self, then: &[Option<FileStamp>], last: Option<&Manifest>) -> Option<String> {
        let is_same = |at: usize, asset: &UserAsset| match then.get(at) {
            Some(Some(then)) => asset.stamp() == Some(*then),
            _ => last.is_some_and(|last| has_asset(last, asset).unwrap_or(false)),
        };
        let mut assets = self.assets.iter().enumerate();
        assets.find(|(at, asset)| !is_same(*at, asset)).map(|(_, asset)| asset.name().to_string())
    }

    /// Returns `true` if a checkpoint has the current files of the user.
    pub(crate) fn has_assets(&self, manifest: &Manifest) -> Result<bool> {
        if self.assets.len() != manifest.assets.len() {
            return Ok(false);
        }
        self.assets.iter().try_fold(true, |all, asset| Ok(all && has_asset(manifest, asset)?))
    }
}

/// Returns `true` if a checkpoint has the present content of an asset.
fn has_asset(manifest: &Manifest, asset: &UserAsset) -> Result<bool> {
    Ok(manifest.assets.get(asset.name()) == Some(&asset.capture(None)?.entry))
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
