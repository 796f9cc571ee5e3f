//! `Checkpoint`: named objects, saved and restored together.

mod restoring;
mod saving;

use crate::catalog::Sequences;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::Follows;
use crate::graph::{self, Counter, Mark, Node, Trackable, Tracked};
use crate::provenance::{PROVENANCE, Provenance};
use crate::repository::{Posix, Storage, nonce};
use crate::restore::Pending;
use crate::save::{Held, Plan, UserAsset};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A set of named objects that are saved and restored together: the components of a model, its optimizer, counters,
/// random state, and your own values.
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
    /// The objects that these are some of, if this was made to save them alone.
    beside: Option<Tracked>,
    /// Files that the user adds.
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
    /// The restores whose checkpoints have values for objects that are tracked later, newest last.
    pending: Vec<Arc<Pending>>,
    /// The cost of the last save.
    figures: Option<SaveFigures>,
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
            beside: None,
            assets: Vec::new(),
            metadata: BTreeMap::new(),
            save_counter: Counter::new(0),
            storage: Arc::new(Posix::default()),
            run: nonce(),
            planned: None,
            figures: None,
            follows: None,
            earlier: Vec::new(),
            restores: 0,
            held: None,
            sequences: Sequences::default(),
            pending: Vec::new(),
        }
    }

    /// Creates a checkpoint that tracks nothing, and whose locations are in `storage` instead of the operating system's
    /// file systems.
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
    /// with the options of that restore. If there are several, the most recent restore counts.
    ///
    /// # Errors
    /// [`Error::InvalidName`] if the name is taken or invalid, here or below `object`; the errors of
    /// [`restore`](Checkpoint::restore) if a deferred value does not fit, and [`Error::NotFound`] if its checkpoint was
    /// removed.
    pub fn track(mut self, name: &str, object: impl Trackable) -> Result<Self> {
        self.track_mut(name, object)?;
        Ok(self)
    }

    /// Like [`track`](Checkpoint::track), in place: for a checkpoint that is borrowed, such as that of a
    /// [manager](crate::CheckpointManager::checkpoint_mut).
    ///
    /// # Errors
    /// As for [`track`](Checkpoint::track); the checkpoint is unchanged then.
    pub fn track_mut(&mut self, name: &str, object: impl Trackable) -> Result<()> {
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
        drop(object);
        node.was_tracked();
        result
    }

    /// Stops tracking the object `name`, so that later checkpoints do not contain it. Returns whether there was one.
    /// Another object, such as a list that has grown, can then be tracked under the name. Of the checkpoints restored
    /// before, it gets only values that no object has used; restore again to fill all of it.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let mut steps = vec![Counter::new(1)];
    /// let mut checkpoint = Checkpoint::new().track("steps", &steps)?;
    /// steps.push(Counter::new(2));
    /// assert!(checkpoint.untrack("steps"));
    /// checkpoint.track_mut("steps", &steps)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn untrack(&mut self, name: &str) -> bool {
        let was_tracked = self.objects.remove(name);
        if was_tracked {
            self.planned = None;
        }
        was_tracked
    }

    /// Declares that all tensors of the object `name` have new values, for example because it was initialized again.
    ///
    /// A restore that stopped half-way ([`Error::PartlyRestored`]) leaves tensors that are partly overwritten. None of them
    /// is saved any more, under whatever name and by whatever checkpoint of this process, until a restore or a
    /// [`rollback`](Checkpoint::rollback) overwrites them, or this is called. A tensor that is a part of a larger one is
    /// saved again once that one is restored or declared; it must be tracked for that.
    ///
    /// ```
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// # let decoder = Counter::new(0);
    /// # let reset = |decoder: &Counter| decoder.set(0);
    /// let mut checkpoint = Checkpoint::new().track("decoder", &decoder)?;
    /// // A restore has failed with `Error::PartlyRestored`, and the run goes on with a fresh decoder.
    /// reset(&decoder);
    /// checkpoint.reinitialized("decoder")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] if no object of that name is tracked.
    pub fn reinitialized(&mut self, name: &str) -> Result<()> {
        let objects: Vec<_> = self.objects.list().into_iter().filter(|(tracked, _)| tracked == name).collect();
        if objects.is_empty() {
            return Err(Error::object(name, "no object of this name is tracked"));
        }
        let leaves = graph::walk(&objects)?.leaves.into_iter();
        graph::mark_whole(leaves.filter_map(|leaf| Some(Mark::at(leaf.object.into_tensor()?, &leaf.key, &objects))));
        Ok(())
    }

    /// Adds a file to every checkpoint from now on, in addition to the components.
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

    /// Like [`metadata`](Checkpoint::metadata), in place.
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
        self.metadata(PROVENANCE, provenance)
    }

    /// Returns how many times this state was saved by [`save`](Checkpoint::save) or a manager. The number is part of
    /// every checkpoint.
    #[must_use]
    pub fn save_counter(&self) -> u64 {
        self.save_counter.get()
    }

    /// Returns the tracked objects, in the order they were tracked.
    pub(crate) fn objects(&self) -> Vec<(String, Node)> {
        self.objects.list()
    }

    /// Returns a handle to the tracked objects.
    pub(crate) fn tracked(&self) -> Tracked {
        self.objects.clone()
    }

    /// Creates a checkpoint in `storage`, for some of these objects alone. A step of another one of them during a save is
    /// an error as well.
    pub(crate) fn beside(storage: Arc<dyn Storage>, others: Tracked) -> Checkpoint {
        Checkpoint { beside: Some(others), ..Checkpoint::in_storage(storage) }
    }

    /// Returns the leaves of the tracked objects, with their names.
    #[cfg(feature = "torch")]
    pub(crate) fn leaves(&self) -> Result<Vec<crate::graph::Leaf>> {
        Ok(crate::graph::walk(&self.objects.list())?.leaves)
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}
