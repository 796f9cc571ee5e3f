//! `CheckpointDirectory`: a directory of checkpoints without a model.

use super::checkpoint_ref::CheckpointRef;
use super::listing::{Listing, list};
use super::retention::{Best, CheckpointInfo, Explanation, Goal, Retention, RetentionPolicy};
use crate::catalog::{self, Catalog, Found, Looks, Marks, is_settled, numbered, remove_mark, write_marks};
use crate::error::{Error, Result};
use crate::format::MarkKind;
use crate::graph;
use crate::location::Location;
use crate::repository::{Directory, OpenOptions, Posix, Stat, Storage};
use crate::save::Held;
use crate::sync::Arc;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A directory of checkpoints, opened without a model and without libtorch.
///
/// Reads take no lock, and neither do pins, notes and metrics, which can be written while a training process runs. Only
/// [`prune`](CheckpointDirectory::prune) and [`delete`](CheckpointDirectory::delete) take the writer's lock.
///
/// What this changes is durable when a call returns, where the file system can sync directories. Where it cannot, which
/// a manager has to be told ([`Durability::ProcessCrash`](crate::Durability::ProcessCrash)), a warning is logged.
///
/// A checkpoint is given by the name of its directory, by a path into this directory, or by a description, which stands
/// for that checkpoint even if another one takes its name; see [`CheckpointRef`]. A path into another directory is an
/// error ([`Error::InvalidArgument`]).
///
/// A relative path is that of the working directory when this is created. Every call works on the directory that the path
/// leads to then: if the directory was removed, or moved away and made anew, it is the new one.
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
///     checkpoints.add_metrics(checkpoint, [("accuracy", accuracy)])?;
/// }
/// let best = checkpoints.best("accuracy", Goal::Maximize)?.ok_or("none was evaluated")?;
/// checkpoints.pin(&best, "release", "evaluated and chosen")?;
/// assert_eq!(best.name, "ckpt-1");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CheckpointDirectory {
    storage: Arc<dyn Storage>,
    location: Location,
    /// The location independent of the working directory, if the storage knows it.
    absolute: Option<Location>,
    options: OpenOptions,
    pub(super) components: BTreeMap<String, usize>,
    /// The directory that the path led to at the last call.
    directory: Arc<Mutex<Option<Directory>>>,
}

impl CheckpointDirectory {
    /// Creates a handle to the directory at `path`. Nothing is opened yet; a directory that does not exist has no
    /// checkpoints.
    pub fn new(path: impl Into<Location>) -> CheckpointDirectory {
        CheckpointDirectory::in_storage(Arc::new(Posix::default()), path)
    }

    /// Creates a handle to the directory at `location` in `storage`.
    pub fn in_storage(storage: Arc<dyn Storage>, location: impl Into<Location>) -> CheckpointDirectory {
        let location = location.into();
        CheckpointDirectory {
            absolute: storage.absolute(&location).ok(),
            storage,
            location,
            options: OpenOptions { lenient: true, ..OpenOptions::default() },
            components: BTreeMap::new(),
            directory: Arc::default(),
        }
    }

    /// Takes no lock when removing checkpoints, for file systems without locks. Make sure by other means that no other
    /// process writes at the same time.
    #[must_use]
    pub fn without_lock(mut self) -> CheckpointDirectory {
        self.options.lock = false;
        self.directory = Arc::default();
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

    fn current(&self) -> MutexGuard<'_, Option<Directory>> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the directory that the path leads to now.
    pub(super) fn directory(&self) -> Result<Directory> {
        let last = self.current().clone();
        // Another process took over the handle, or another directory the path.
        if let Some(last) = last.filter(|last| !matches!(last.check(), Err(Error::Moved { .. }))) {
            return Ok(last);
        }
        let is_the_same = self.storage.absolute(&self.location).ok() == self.absolute;
        let path = self.absolute.as_ref().filter(|_| !is_the_same).unwrap_or(&self.location);
        let directory = Directory::new(&*self.storage, path, &self.options)?;
        Ok(self.current().insert(directory).clone())
    }

    /// Like [`directory`](CheckpointDirectory::directory), if it exists. Taking the lock would create it.
    pub(super) fn existing(&self) -> Result<Directory> {
        let directory = self.directory()?;
        match directory.dir() {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Err(Error::not_found(directory.root(), "there is no such directory"))
            }
            Err(error) => Err(error),
            Ok(_) => Ok(directory),
        }
    }

    /// Returns everything in the directory, intact or not; see [`list_checkpoints`](crate::list_checkpoints).
    ///
    /// # Errors
    /// As for [`list_checkpoints`](crate::list_checkpoints).
    pub fn list(&self) -> Result<Listing> {
        list(&self.directory()?)
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
        let mut catalog = Catalog::of_changed(&directory, directory.scan()?, looks);
        let (found, undecided) = catalog.ordered();
        if let Some(at) = catalog.unreachable.iter().position(|(name, _)| !catalog.is_strange(name)) {
            return Err(catalog.unreachable.swap_remove(at).1);
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
    /// [`Error::NotFound`] if there is none of that name; [`Error::Removed`] if another one has the name of the described
    /// one; [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    pub fn get(&self, checkpoint: impl Into<CheckpointRef>) -> Result<CheckpointInfo> {
        let (directory, checkpoint) = (self.existing()?, checkpoint.into());
        let name = &*checkpoint.name(directory.root())?;
        let found = catalog::look(&directory, name)?;
        checkpoint.must_be(&directory, name, &found.id())?;
        Ok(CheckpointInfo::from(&found))
    }

    /// Returns the metadata `name` of a checkpoint ([`Checkpoint::metadata`](crate::Checkpoint::metadata)), if there is
    /// any: for example, to build the model that was trained.
    ///
    /// # Errors
    /// As for [`get`](CheckpointDirectory::get); [`Error::Object`] if it does not fit the type.
    pub fn metadata<T: DeserializeOwned>(&self, checkpoint: impl Into<CheckpointRef>, name: &str) -> Result<Option<T>> {
        let (directory, checkpoint) = (self.existing()?, checkpoint.into());
        let dir_name = &*checkpoint.name(directory.root())?;
        let manifest = directory.manifest(dir_name)?;
        checkpoint.must_be(&directory, dir_name, &manifest.id())?;
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

    /// Removes one checkpoint, even if it is permanent, and links to it such as `latest`. Takes the writer's lock.
    ///
    /// # Errors
    /// [`Error::Pinned`] if it is pinned; [`Error::Unsupported`] if it has a mark that cannot be read, which may be a pin;
    /// [`Error::Locked`] while a manager writes into the directory; [`Error::NotFound`], [`Error::Removed`],
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn delete(&self, checkpoint: impl Into<CheckpointRef>) -> Result<()> {
        let (directory, checkpoint) = (&self.existing()?, checkpoint.into());
        let name = &*checkpoint.name(directory.root())?;
        let held = Held::take(directory)?;
        let found = catalog::look(directory, name)?;
        let id = found.id();
        checkpoint.must_be(directory, name, &id)?;
        let why_kept = |marks: &[(String, Vec<u8>)]| {
            let Marks { pins, unknown, .. } = Marks::among(marks, &id, directory.rules());
            let path = directory.path(name);
            if !pins.is_empty() {
                return Some(Error::Pinned { path, pins: pins.into_keys().collect() });
            }
            let reason = "it is damaged, another user's or of a newer version, and may be a pin: remove the file first";
            unknown.map(|file| Error::unsupported(path.join(file), reason))
        };
        if let Some(error) = why_kept(&directory.marks(name)?) {
            return Err(error);
        }
        CheckpointDirectory::drop_links(directory, &[name])?;
        if !directory.remove(name, &id, &|marks| why_kept(marks).is_some())? {
            let (path, pins) = (directory.path(name), Vec::new());
            return Err(why_kept(&directory.marks(name)?).unwrap_or(Error::Pinned { path, pins }));
        }
        CheckpointDirectory::tidy_index(directory, &held);
        Ok(())
    }

    /// Removes the links to these checkpoints, before they are removed. Links with names of checkpoints are not ours.
    pub(super) fn drop_links(directory: &Directory, names: &[&str]) -> Result<()> {
        for link in directory.scan()?.links.iter().filter(|link| numbered(link).is_none()) {
            match directory.put_link(link, None, &|target| names.contains(&target)) {
                // It leads elsewhere.
                Err(Error::AlreadyExists { .. }) => {}
                dropped => dropped?,
            }
        }
        Ok(())
    }

    /// Removes entries of the index whose checkpoints are gone. Writes nothing if there are none.
    pub(super) fn tidy_index(directory: &Directory, held: &Held) {
        let is_there = |name: &String| directory.has(name).unwrap_or(true);
        let index = directory.index().unwrap_or_default();
        if index.checkpoints.iter().map(|entry| &entry.name).chain(&index.latest).all(is_there) {
            return;
        }
        let noted = held.update_index(directory, |index| {
            index.checkpoints.retain(|entry| is_there(&entry.name));
            index.latest = index.latest.take().filter(is_there);
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
    pub fn pin(
        &self,
        checkpoint: impl Into<CheckpointRef>,
        name: impl Into<String>,
        note: impl Into<String>,
    ) -> Result<()> {
        self.mark(&checkpoint.into(), MarkKind::Pin { name: name.into(), note: note.into() })
    }

    /// Removes a pin, durably. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`pin`](CheckpointDirectory::pin).
    pub fn unpin(&self, checkpoint: impl Into<CheckpointRef>, name: impl Into<String>) -> Result<bool> {
        let (directory, checkpoint) = (self.existing()?, checkpoint.into());
        let of = &*checkpoint.name(directory.root())?;
        let id = checkpoint.id(&directory, of)?;
        remove_mark(&directory, of, id, MarkKind::Pin { name: name.into(), note: String::new() })
    }

    /// Adds a note to a checkpoint, durably. Replaces a note of the same name.
    ///
    /// # Errors
    /// As for [`pin`](CheckpointDirectory::pin).
    pub fn annotate(
        &self,
        checkpoint: impl Into<CheckpointRef>,
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
        checkpoint: impl Into<CheckpointRef>,
        metrics: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<()> {
        let kinds = metrics.into_iter().map(|(name, value)| MarkKind::Metric { name: name.into(), value });
        self.mark_all(&checkpoint.into(), kinds.collect())
    }

    fn mark(&self, checkpoint: &CheckpointRef, kind: MarkKind) -> Result<()> {
        self.mark_all(checkpoint, vec![kind])
    }

    fn mark_all(&self, checkpoint: &CheckpointRef, kinds: Vec<MarkKind>) -> Result<()> {
        let directory = self.existing()?;
        let name = &*checkpoint.name(directory.root())?;
        write_marks(&directory, name, checkpoint.id(&directory, name)?, kinds)
    }
}
