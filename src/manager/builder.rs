//! What can be set of a manager, and what happens when it opens a folder.

use super::background::Background;
use super::ledger::Ledger;
use super::listing::order;
use super::{CheckpointManager, number_of};
use crate::checkpoint::{Checkpoint, index_entry};
use crate::error::{Error, Result};
use crate::format::{IndexEntry, Manifest};
use crate::retention::Retention;
use crate::save::{Image, Memo};
use crate::source::Source;
use crate::store::{Directory, name_before_aside};
use crate::sync::{Arc, Mutex};
use chrono::TimeDelta;
use std::path::{Path, PathBuf};

/// Sets up a [`CheckpointManager`].
pub struct CheckpointManagerBuilder {
    checkpoint: Checkpoint,
    directory: PathBuf,
    name: String,
    max_to_keep: Option<usize>,
    keep_every_hours: Option<f64>,
    interval: u64,
    init: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
    background: Option<Background>,
    recycle: bool,
}

impl std::fmt::Debug for CheckpointManagerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointManagerBuilder")
            .field("directory", &self.directory)
            .field("name", &self.name)
            .field("max_to_keep", &self.max_to_keep)
            .field("save_every", &self.interval)
            .finish_non_exhaustive()
    }
}

impl CheckpointManagerBuilder {
    pub(super) fn new(checkpoint: Checkpoint, directory: &Path) -> Self {
        CheckpointManagerBuilder {
            checkpoint,
            directory: directory.to_path_buf(),
            name: "ckpt".to_string(),
            max_to_keep: Some(5),
            keep_every_hours: None,
            interval: 1,
            init: None,
            background: None,
            recycle: true,
        }
    }

    /// How many checkpoints stay, `None` for all; 5 unless set.
    pub fn max_to_keep(mut self, keep: impl Into<Option<usize>>) -> Self {
        self.max_to_keep = keep.into();
        self
    }

    /// Preserves, for good, a checkpoint about to be removed when it was saved at least `hours` after the last
    /// preserved one.
    pub fn keep_every_n_hours(mut self, hours: f64) -> Self {
        self.keep_every_hours = Some(hours);
        self
    }

    /// How many steps apart [`CheckpointManager::save_if_due`] saves; 1 unless set.
    pub fn save_every(mut self, steps: u64) -> Self {
        self.interval = steps;
        self
    }

    /// The name before the number: `ckpt` unless set.
    pub fn checkpoint_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What [`CheckpointManager::restore_or_initialize`] calls when there is nothing to restore.
    pub fn init(mut self, init: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        self.init = Some(Box::new(init));
        self
    }

    /// Saves in the background: calls return as soon as the state can no longer be torn, and a thread writes it. What
    /// that thread meets is returned by the next call that saves, waits or closes.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tch_checkpoint::Error> {
    /// # let checkpoint = tch_checkpoint::Checkpoint::new();
    /// use tch_checkpoint::{Background, CheckpointManager};
    /// let mut manager = CheckpointManager::builder(checkpoint, "checkpoints/run").background(Background::new()).open()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn background(mut self, background: Background) -> Self {
        self.background = Some(background);
        self
    }

    /// Whether the files of a removed checkpoint are kept until the next save, which overwrites them: about twice as fast
    /// as writing new ones, for the disk space of one checkpoint more. True unless set. Files that anyone else has
    /// open, has mapped, or has given a second name are never overwritten.
    pub fn recycle(mut self, recycle: bool) -> Self {
        self.recycle = recycle;
        self
    }

    /// Opens the folder: creates it if need be, takes its lock, removes what a dead writer left half-done, and finds
    /// the checkpoints by looking at them; the index is only a hint.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that make no sense, [`Error::Locked`] when another writer has the folder,
    /// [`Error::Io`]; also when a checkpoint cannot be looked at for a reason that may pass (no rights, too many open
    /// files): to go on without it would be to lose it.
    pub fn open(self) -> Result<CheckpointManager> {
        let retention = self.retention()?;
        let mut directory = self.checkpoint.directory(&self.directory);
        if self.recycle {
            directory.recycle();
        }
        directory.create()?;
        let lock = directory.lock()?;
        let scan = directory.scan_for_writing()?;
        for leftover in &scan.leftovers {
            directory.remove_leftover(leftover);
        }
        let found = Found::among(&directory, &self.name, &scan.checkpoints)?;
        let ours = |aside: &&String| name_before_aside(aside).and_then(|name| number_of(&self.name, name)).is_some();
        let aside = scan.set_aside.iter().find(ours).map(|name| directory.root().join(name));
        let (directory_of, known) = (directory.clone(), found.known);
        let mut ledger = Ledger {
            directory: directory_of,
            retention,
            known,
            last_preserved: None,
            passed_over: Vec::new(),
            memo: Memo::default(),
        };
        for (name, error) in found.damaged {
            ledger.pass_over(&name, &error);
        }
        let sequence = found.sequence.max(take_hints(&mut ledger));
        Ok(CheckpointManager {
            checkpoint: self.checkpoint,
            directory,
            name: self.name,
            interval: self.interval,
            init: self.init,
            ledger: Arc::new(Mutex::new(ledger)),
            sequence,
            last_step: None,
            background: self.background,
            in_flight: None,
            aside,
            image: Image::default(),
            _lock: lock,
        })
    }

    fn retention(&self) -> Result<Retention> {
        let usage = |text: String| Err(Error::Usage(text));
        if self.max_to_keep == Some(0) {
            return usage("max_to_keep is 0: it must be at least 1, or None to keep all".into());
        }
        if self.interval == 0 {
            return usage("save_every is 0: it must be at least 1 step".into());
        }
        if self.name.is_empty() || self.name.starts_with('.') || self.name.contains(['/', '\\', '\0']) {
            return usage(format!("checkpoint_name is {:?}: it must be a plain name such as \"ckpt\"", self.name));
        }
        let keep_every = match self.keep_every_hours {
            None => None,
            Some(hours) if hours > 0.0 && hours < 1e6 => Some(TimeDelta::milliseconds((hours * 3_600_000.0) as i64)),
            Some(hours) => {
                return usage(format!("keep_every_n_hours is {hours}: it must be a positive number of hours"));
            }
        };
        Ok(Retention { max_to_keep: self.max_to_keep, keep_every })
    }
}

/// What only the index knows: which checkpoints are preserved. Without an index, all that could be are. Returns the
/// highest commit sequence of the index: checkpoints that cannot be read count too, what is saved now is later.
fn take_hints(ledger: &mut Ledger) -> u64 {
    let index = ledger.directory.index();
    let sequence = index.iter().flat_map(|index| &index.checkpoints).map(|entry| entry.sequence).max();
    match index {
        Some(index) => {
            ledger.last_preserved = index.last_preserved;
            for entry in &mut ledger.known {
                let same = |hint: &IndexEntry| hint.name == entry.name && hint.sequence == entry.sequence;
                entry.preserved = index.checkpoints.iter().any(|hint| hint.preserved && same(hint));
            }
        }
        None if ledger.retention.keep_every.is_some() => {
            let active = ledger.retention.max_to_keep.unwrap_or(ledger.known.len());
            let older = ledger.known.len().saturating_sub(active);
            for entry in &mut ledger.known[..older] {
                entry.preserved = true;
            }
        }
        None => {}
    }
    if ledger.last_preserved.is_none() {
        // As TensorFlow: the first interval begins with the manager, or with the oldest checkpoint it finds.
        ledger.last_preserved = Some(ledger.known.first().map_or_else(chrono::Utc::now, |entry| entry.saved_at));
    }
    sequence.unwrap_or(0)
}

/// The checkpoints of a folder, looked at.
struct Found {
    /// Those of the manager's name, whole as far as a quick look tells, oldest commit first.
    known: Vec<IndexEntry>,
    /// Those of the manager's name that are not, and why.
    damaged: Vec<(String, Error)>,
    /// The highest commit sequence, of any name.
    sequence: u64,
}

impl Found {
    fn among(directory: &Directory, manager: &str, names: &[String]) -> Result<Found> {
        let mut found = Found { known: Vec::new(), damaged: Vec::new(), sequence: 0 };
        for name in names {
            let ours = number_of(manager, name).is_some();
            match quick_look(directory, name) {
                Ok(manifest) => {
                    found.sequence = found.sequence.max(manifest.sequence);
                    if ours {
                        found.known.push(index_entry(name, &manifest));
                    }
                }
                Err(error)
                    if ours && (error.is_about_the_checkpoint() || matches!(error, Error::Unsupported { .. })) =>
                {
                    found.damaged.push((name.clone(), error))
                }
                Err(error) if ours => return Err(error),
                // Some other folder of the user's.
                Err(_) => {}
            }
        }
        found.known.sort_by(order);
        // The newest first, as far as numbers tell.
        found.damaged.sort_by_key(|(name, _)| std::cmp::Reverse(number_of(manager, name)));
        Ok(found)
    }
}

/// The manifest of a checkpoint whose files are all there in full length.
fn quick_look(directory: &Directory, name: &str) -> Result<Manifest> {
    Ok(Source::open(directory.disk(), &directory.root().join(name))?.manifest)
}
