//! The program under test, which saves through a manager.

use super::memory::Memory;
use super::random::mix;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::Checkpoint;
use tch_checkpoint::Counter;
use tch_checkpoint::Durability;
use tch_checkpoint::Goal;
use tch_checkpoint::Location;
use tch_checkpoint::Result;
use tch_checkpoint::internal::Disk;
use tch_checkpoint::{Background, CheckpointManager, SaveOptions};
use tch_checkpoint::{RestoreOptions, StartOutcome};

/// The settings of the program.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub components: usize,
    /// The number of components that never change.
    pub frozen: usize,
    pub keep: Option<usize>,
    pub saves: usize,
    /// The length of a component in bytes.
    pub bytes: usize,
    /// The number of parts into which a crash can tear a write.
    pub atoms: usize,
    /// Saves in the background.
    pub(super) background: bool,
    /// The directory of checkpoints exists, with files of the user's.
    pub strangers: bool,
    pub durability: Durability,
    /// Pins, and metrics from another process.
    pub marks: bool,
    /// The links `latest` and `best`.
    pub links: bool,
    /// The number of checkpoints that keep the component [`THINNED`].
    pub thin: Option<usize>,
    /// The program ends with an error, and saves a state that may be inconsistent.
    pub unclean: bool,
    /// Each step is saved twice, the second time with another state.
    pub again: bool,
    /// Each checkpoint gets a note while it is written, and is then saved again for its metadata, with the same state.
    pub noted: bool,
    /// Before every third save, the oldest checkpoint is restored: the later ones are superseded.
    pub back: bool,
}

impl Setup {
    /// Returns `true` if the program does more than saving.
    pub(super) fn marks_anything(&self) -> bool {
        self.marks || self.links || self.thin.is_some() || self.unclean || self.noted
    }

    /// Returns the step of a state. The states of a run are numbered.
    pub(super) fn step_of(&self, state: u64) -> u64 {
        if self.again { state / 2 } else { state }
    }

    /// Returns `true` if checkpoints are superseded.
    pub(super) fn supersedes(&self) -> bool {
        self.unclean || self.again || self.back || self.noted
    }
}

/// The component that only the newest checkpoints keep.
pub(super) const THINNED: &str = "part0";

/// The metric of each save.
pub(super) const METRIC: &str = "loss";

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            components: 2,
            frozen: 0,
            keep: Some(2),
            saves: 3,
            bytes: 24,
            atoms: 1,
            background: false,
            strangers: false,
            durability: Durability::PowerLoss,
            marks: false,
            links: false,
            thin: None,
            unclean: false,
            again: false,
            noted: false,
            back: false,
        }
    }
}

/// The step of new objects.
const UNTOUCHED: u64 = u64::MAX;

/// Tracked objects whose values are a function of the state's number, which is the step unless steps are saved again.
pub(super) struct Run {
    setup: Setup,
    step: Counter,
    parts: Vec<Memory>,
}

impl Run {
    /// Returns objects with values of no step.
    pub(super) fn new(setup: &Setup) -> Run {
        let parts = (0..setup.components).map(|_| Memory::new(vec![0xEE; setup.bytes]));
        Run { setup: setup.clone(), step: Counter::new(UNTOUCHED), parts: parts.collect() }
    }

    /// Returns options with one thread, so that the order of operations is deterministic.
    pub(super) fn options(&self) -> SaveOptions {
        SaveOptions::new().durability(self.setup.durability).threads(1)
    }

    pub(super) fn checkpoint(&self, disk: Arc<dyn Disk>) -> Result<Checkpoint> {
        let mut checkpoint = tch_checkpoint::internal::checkpoint_on(disk);
        checkpoint.track_mut("step", self.step.clone())?;
        for (i, part) in self.parts.iter().enumerate() {
            checkpoint.track_mut(&format!("part{i}"), part.clone())?;
        }
        Ok(checkpoint)
    }

    pub(super) fn open(&self, disk: Arc<dyn Disk>, root: &Path) -> Result<CheckpointManager> {
        let builder = CheckpointManager::builder(self.checkpoint(disk)?, root).save_options(self.options());
        let mut builder = builder.max_to_keep(self.setup.keep);
        if self.setup.links {
            builder = builder.link_latest().link_best(METRIC, Goal::Minimize);
        }
        if let Some(keep) = self.setup.thin {
            builder = builder.keep_component(THINNED, keep);
        }
        if self.setup.unclean {
            builder = builder.unclean_on_failure();
        }
        match self.setup.background {
            true => builder.background(Background::new()).open(),
            false => builder.open(),
        }
    }

    /// Returns the bytes of a component at a step.
    fn value(&self, part: usize, step: u64) -> Vec<u8> {
        let step = if part < self.setup.frozen { 0 } else { step };
        let word = |i: usize| mix((part as u64) << 48 | step << 16 | i as u64).to_le_bytes();
        let bytes: Vec<u8> = (0..self.setup.bytes.div_ceil(8)).flat_map(word).collect();
        bytes[..self.setup.bytes].to_vec()
    }

    pub(super) fn set(&self, step: u64) {
        self.step.set(step);
        for (i, part) in self.parts.iter().enumerate() {
            part.set(self.value(i, step));
        }
    }

    /// Returns `true` if every value is that of `step`.
    pub(super) fn is_at(&self, step: u64) -> bool {
        self.step.get() == step && self.parts.iter().enumerate().all(|(i, part)| **part.get() == self.value(i, step))
    }

    /// Returns the number of the state.
    pub(super) fn state(&self) -> u64 {
        self.step.get()
    }

    /// Returns `true` if nothing was restored.
    pub(super) fn is_untouched(&self) -> bool {
        self.step.get() == UNTOUCHED && self.parts.iter().all(|part| part.get().iter().all(|byte| *byte == 0xEE))
    }
}

/// Saves, and waits until the checkpoint is durable.
pub(super) fn save(manager: &mut CheckpointManager, setup: &Setup, state: u64) -> Result<()> {
    begin(manager, setup, state)?;
    manager.wait()
}

/// Saves, in the background if that is set.
pub(super) fn begin(manager: &mut CheckpointManager, setup: &Setup, state: u64) -> Result<Location> {
    manager.save_with_metrics(setup.step_of(state), [(METRIC, (state % 3) as f64)])
}

/// Restores, with one thread.
pub(super) fn restore(manager: &mut CheckpointManager) -> Result<StartOutcome> {
    manager.restore_or_initialize_with(&RestoreOptions::new().threads(1))
}
