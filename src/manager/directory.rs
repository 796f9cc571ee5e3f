//! `CheckpointDirectory`: a directory of checkpoints without a model.

use super::listing::{Listing, list};
use super::marks::name_of;
use super::retention::{Best, CheckpointInfo, Explanation, Goal, Retention, RetentionPolicy};
use crate::catalog::{self, Catalog, Found, Looks, Marks, is_settled, numbered, remove_mark, write_mark};
use crate::error::{Error, Result};
use crate::format::MarkKind;
use crate::graph;
use crate::location::Location;
use crate::repository::{Directory, OpenOptions, Posix, Stat, Storage};
use crate::save::Held;
use crate::sync::Arc;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// A directory of checkpoints, opened without a model and without libtorch.
///
/// Reads take no lock, and neither do pins, notes and metrics, which can be written while a training process runs. Only
/// [`prune`](CheckpointDirectory::prune) and [`delete`](CheckpointDirectory::delete) take the writer's lock.
///
/// A checkpoint is given by the name of its directory or by a path, of which only the last component is used.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::retention::Goal;
/// use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, Counter};
/// # let step = Counter::new(0);
/// # let checkpoint = Checkpoint::new().track("step", &step)?;
/// # let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(2).open()?;
/// # for step in 1..=2 { manager.save_at(step)?; }
/// // An evaluator, in another process than the training:
/// let checkpoints = CheckpointDirectory::new(&dir);
/// for (checkpoint, accuracy) in checkpoints.checkpoints()?.iter().zip([0.9, 0.8]) {
///     checkpoints.add_metrics(&checkpoint.name, [("accuracy", accuracy)])?;
/// }
/// let best = checkpoints.best("accuracy", Goal::Maximize)?.ok_or("none was evaluated")?;
/// checkpoints.pin(&best.name, "release", "evaluated and chosen")?;
/// assert_eq!(best.name, "ckpt-1");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CheckpointDirectory {
    storage: Arc<dyn Storage>,
    location: Location,
    options: OpenOptions,
    pub(super) components: BTreeMap<String, usize>,
    directory: OnceLock<Directory>,
}

impl CheckpointDirectory {
    /// Creates a handle to the directory at `path`. Nothing is opened yet; a directory that does not exist has no
    /// checkpoints.
    pub fn new(path: impl Into<Location>) -> CheckpointDirectory {
        CheckpointDirectory::in_storage(Arc::new(Posix::default()), path)
    }

    /// Creates a handle to the directory at `location` in `storage`.
    pub fn in_storage(storage: Arc<dyn Storage>, location: impl Into<Location>) -> CheckpointDirectory {
        CheckpointDirectory {
            storage,
            location: location.into(),
            options: OpenOptions::default(),
            components: BTreeMap::new(),
            directory: OnceLock::new(),
        }
    }

    /// Takes no lock when removing checkpoints, for file systems without locks. Make sure by other means that no other
    /// process writes at the same time.
    #[must_use]
    pub fn without_lock(mut self) -> CheckpointDirectory {
        self.options.lock = false;
        self.directory = OnceLock::new();
        self
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Keeps a component, such as the optimizer, only in the newest `keep` healthy checkpoints, in those that are
    /// needed to resume, and in pinned ones. [`prune`](CheckpointDirectory::prune) removes it from the others, as a
    /// manager with [`keep_component`](crate::CheckpointManagerBuilder::keep_component) does after a save.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = temp.path().join("run");
    /// use std::sync::Arc;
    /// use tch_checkpoint::retention::{Latest, RetentionPolicy};
    /// use tch_checkpoint::{CheckpointDirectory, Error};
    /// # tch_checkpoint::CheckpointManager::builder(tch_checkpoint::Checkpoint::new(), &dir).open()?.close()?;
    /// let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(10))];
    /// let pruned = CheckpointDirectory::new(&dir).keep_component("optimizer", 2).prune(&policies)?;
    /// for (checkpoint, component) in pruned.thinned {
    ///     println!("{} lost its {component}", checkpoint.display());
    /// }
    /// let error = CheckpointDirectory::new(&dir).keep_component("optimizer", 0).prune(&policies);
    /// assert!(matches!(error, Err(Error::InvalidArgument(_))));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn keep_component(mut self, component: impl Into<String>, keep: usize) -> CheckpointDirectory {
        self.components.insert(component.into(), keep);
        self
    }

    pub(super) fn directory(&self) -> Result<&Directory> {
        match self.directory.get() {
            Some(directory) => Ok(directory),
            None => {
                let directory = Directory::new(&*self.storage, &self.location, &self.options)?;
                Ok(self.directory.get_or_init(|| directory))
            }
        }
    }

    /// Returns everything in the directory, intact or not; see [`list_checkpoints`](crate::list_checkpoints).
    ///
    /// # Errors
    /// As for [`list_checkpoints`](crate::list_checkpoints).
    pub fn list(&self) -> Result<Listing> {
        list(self.directory()?)
    }

    /// Returns the checkpoints that are valid, judging by manifests and file sizes, the newest last.
    ///
    /// # Errors
    /// As for [`checkpoints`](crate::checkpoints).
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>> {
        Ok(self.checkpoints_changed(&mut Looks::default())?.0)
    }

    /// Like [`checkpoints`](CheckpointDirectory::checkpoints), reading only those that changed since the last time with
    /// these `looks`. Also returns whether there is a directory that is no whole checkpoint.
    pub(super) fn checkpoints_changed(&self, looks: &mut Looks) -> Result<(Vec<CheckpointInfo>, bool)> {
        let (catalog, found) = self.found_changed(looks)?;
        Ok((found.iter().map(CheckpointInfo::from).collect(), catalog.has_partial))
    }

    /// Returns the directory's `stat`, if any later change will give it another modification time.
    pub(super) fn settled(&self) -> Option<Stat> {
        self.directory().ok()?.dir().ok()?.stat().ok().filter(is_settled)
    }

    /// Returns the content of the directory, and the valid checkpoints in order.
    fn found(&self) -> Result<(Catalog, Vec<Found>)> {
        self.found_changed(&mut Looks::default())
    }

    fn found_changed(&self, looks: &mut Looks) -> Result<(Catalog, Vec<Found>)> {
        let directory = self.directory()?;
        let mut catalog = Catalog::of_changed(directory, directory.scan()?, looks);
        let (found, undecided) = catalog.ordered();
        for list in [&mut catalog.damaged, &mut catalog.unreachable] {
            if let Some(at) = list.iter().position(|(_, error)| !error.is_damage()) {
                return Err(list.swap_remove(at).1);
            }
        }
        match undecided {
            Some((first, second)) => {
                let path = |name: &str| directory.path(name);
                Err(Error::Undecided { first: path(&first), second: path(&second) })
            }
            None => Ok((catalog, found)),
        }
    }

    /// Returns the newest checkpoint, if there is one, even if it is unhealthy, unclean or incomplete: check
    /// [`is_healthy`](CheckpointInfo::is_healthy) and [`is_complete`](CheckpointInfo::is_complete).
    ///
    /// # Errors
    /// As for [`checkpoints`](CheckpointDirectory::checkpoints).
    pub fn latest(&self) -> Result<Option<CheckpointInfo>> {
        Ok(self.checkpoints()?.pop())
    }

    /// Returns the [healthy](CheckpointInfo::is_healthy) checkpoint with the best finite value of `metric`; of two with
    /// the same value the newer one.
    ///
    /// # Errors
    /// As for [`checkpoints`](CheckpointDirectory::checkpoints).
    pub fn best(&self, metric: impl Into<String>, goal: Goal) -> Result<Option<CheckpointInfo>> {
        Ok(Best::new(metric, goal, 1).choose(&self.checkpoints()?).cloned())
    }

    /// Returns a description of a checkpoint.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none of that name; [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    pub fn get(&self, checkpoint: impl Into<Location>) -> Result<CheckpointInfo> {
        let directory = self.directory()?;
        let name = &*name_of(checkpoint)?;
        Ok(CheckpointInfo::from(&catalog::look(directory, name)?))
    }

    /// Returns the metadata `name` of a checkpoint ([`Checkpoint::metadata`](crate::Checkpoint::metadata)), if there is
    /// any: for example, to build the model that was trained.
    ///
    /// # Errors
    /// As for [`get`](CheckpointDirectory::get); [`Error::Object`] if it does not fit the type.
    pub fn metadata<T: DeserializeOwned>(&self, checkpoint: impl Into<Location>, name: &str) -> Result<Option<T>> {
        let manifest = self.directory()?.manifest(&name_of(checkpoint)?)?;
        let value = manifest.metadata.get(name).map(graph::decode);
        value.transpose().map_err(|reason| Error::object(name, reason))
    }

    /// Reports for each checkpoint what keeps it under `policies`, by the rules of a manager: per name, for the run of
    /// the newest checkpoint. Checkpoints of other runs and names are not listed. Without policies, reports what keeps
    /// each checkpoint regardless of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no checkpoint has a component that is given to
    /// [`keep_component`](CheckpointDirectory::keep_component), or if none is to keep it; as for
    /// [`checkpoints`](CheckpointDirectory::checkpoints).
    pub fn explain(&self, policies: &[Arc<dyn RetentionPolicy>]) -> Result<Vec<Explanation>> {
        Ok(self.decide(policies)?.into_iter().map(|(_, explanation)| explanation).collect())
    }

    pub(super) fn decide(&self, policies: &[Arc<dyn RetentionPolicy>]) -> Result<Vec<(Found, Explanation)>> {
        let directory = self.directory()?;
        // Checkpoints that only the index of an older version lists as permanent are permanent, too.
        let (catalog, found) = self.found()?;
        let retention = Retention::new(policies.to_vec(), None).keep_components(self.components.clone());
        self.check_components(&found)?;
        let names = found.iter().filter_map(|found| numbered(&found.entry.name)).map(|(manager, _)| manager);
        let managers: BTreeSet<&str> = names.collect();
        let by_name: BTreeMap<&str, &Found> = found.iter().map(|found| (found.entry.name.as_str(), found)).collect();
        let mut decided = Vec::new();
        for manager in managers {
            let chain = catalog.chain(manager).map_err(|(first, second)| {
                let path = |name: &str| directory.path(name);
                Error::Undecided { first: path(&first), second: path(&second) }
            })?;
            let own: Vec<&Found> = chain.own.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect();
            let infos: Vec<CheckpointInfo> = own.iter().map(|found| CheckpointInfo::from(*found)).collect();
            let explanations = retention.explain(&infos, None, directory.now());
            decided.extend(own.into_iter().cloned().zip(explanations));
        }
        Ok(decided)
    }

    /// Removes one checkpoint, even if it is permanent. Takes the writer's lock.
    ///
    /// # Errors
    /// [`Error::Pinned`] if it is pinned; [`Error::Locked`] while a manager writes into the directory;
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::Io`].
    pub fn delete(&self, checkpoint: impl Into<Location>) -> Result<()> {
        let directory = self.directory()?;
        let name = &*name_of(checkpoint)?;
        let held = Held::take(directory)?;
        let found = catalog::look(directory, name)?;
        let id = found.id();
        let is_pinned = |marks: &[(String, Vec<u8>)]| !Marks::among(marks, &id, directory.rules()).pins.is_empty();
        if !directory.remove(name, &id, &is_pinned)? {
            let pins = catalog::look(directory, name)?.pins.into_keys().collect();
            return Err(Error::Pinned { path: directory.path(name), pins });
        }
        CheckpointDirectory::tidy_index(directory, &held);
        Ok(())
    }

    /// Removes entries of the index whose checkpoints are gone.
    pub(super) fn tidy_index(directory: &Directory, held: &Held) {
        let noted = held.update_index(directory, |index| {
            index.checkpoints.retain(|entry| directory.has(&entry.name).unwrap_or(true));
            index.latest = index.latest.take().filter(|name| directory.has(name).unwrap_or(true));
        });
        if let Err(e) = noted {
            log::warn!("the index could not be written: {e:#}; the checkpoints are found without it");
        }
    }

    /// Keeps a checkpoint until the pin `name` is removed, and records why, durably. Replaces a pin of the same name.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such checkpoint; [`Error::Removed`] if it was removed meanwhile;
    /// [`Error::Io`].
    pub fn pin(&self, checkpoint: impl Into<Location>, name: impl Into<String>, note: impl Into<String>) -> Result<()> {
        self.mark(&checkpoint.into(), MarkKind::Pin { name: name.into(), note: note.into() })
    }

    /// Removes a pin, durably. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`pin`](CheckpointDirectory::pin).
    pub fn unpin(&self, checkpoint: impl Into<Location>, name: impl Into<String>) -> Result<bool> {
        let directory = self.directory()?;
        let checkpoint = &*name_of(checkpoint)?;
        let id = directory.manifest(checkpoint)?.id();
        remove_mark(directory, checkpoint, id, MarkKind::Pin { name: name.into(), note: String::new() })
    }

    /// Adds a note to a checkpoint, durably. Replaces a note of the same name.
    ///
    /// # Errors
    /// As for [`pin`](CheckpointDirectory::pin).
    pub fn annotate(
        &self,
        checkpoint: impl Into<Location>,
        name: impl Into<String>,
        text: impl Into<String>,
    ) -> Result<()> {
        self.mark(&checkpoint.into(), MarkKind::Note { name: name.into(), text: text.into() })
    }

    /// Adds metrics to a checkpoint, durably, or replaces those of the same name. They can be NaN or infinite. An open
    /// manager reads them at its next save.
    ///
    /// # Errors
    /// As for [`pin`](CheckpointDirectory::pin).
    pub fn add_metrics<N: Into<String>>(
        &self,
        checkpoint: impl Into<Location>,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<()> {
        let checkpoint = &checkpoint.into();
        let mut kinds = metrics.into_iter().map(|(name, value)| MarkKind::Metric { name: name.into(), value });
        kinds.try_for_each(|kind| self.mark(checkpoint, kind))
    }

    fn mark(&self, checkpoint: &Location, kind: MarkKind) -> Result<()> {
        let directory = self.directory()?;
        let name = &*name_of(checkpoint)?;
        write_mark(directory, name, directory.manifest(name)?.id(), kind)
    }
}
