//! A training of one tensor, and what its directory holds.
#![allow(dead_code, reason = "each test uses a part")]

use super::Memory;
use std::path::Path;
use tch_checkpoint::{Checkpoint, CheckpointDirectory, Counter, Error, Location};

/// A counter, and a tensor whose elements depend on it.
pub struct Run {
    pub step: Counter,
    pub weights: Memory,
    count: u64,
}

impl Run {
    /// A run at step 0 whose tensor has `count` elements.
    pub fn of(count: u64) -> Run {
        Run { step: Counter::new(0), weights: Memory::seeded(count, 0), count }
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::new().track("step", &self.step).unwrap().track("weights", &self.weights).unwrap()
    }

    pub fn set(&self, step: u64) {
        self.step.set(step);
        *self.weights.bytes() = Memory::seeded(self.count, step).bytes().clone();
    }

    /// Goes to the next step, and returns it.
    pub fn train(&self) -> u64 {
        self.set(self.step.get() + 1);
        self.step.get()
    }

    pub fn is_at(&self, step: u64) -> bool {
        self.step.get() == step && *self.weights.bytes() == *Memory::seeded(self.count, step).bytes()
    }
}

/// The names of checkpoints.
pub fn names(paths: &[Location]) -> Vec<String> {
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

/// The names of the checkpoints in a directory.
pub fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    Ok(CheckpointDirectory::new(dir).checkpoints()?.into_iter().map(|info| info.name).collect())
}

/// The steps of the checkpoints in a directory.
pub fn steps_in(dir: &Path) -> Result<Vec<u64>, Error> {
    Ok(CheckpointDirectory::new(dir).checkpoints()?.iter().filter_map(|info| info.step).collect())
}
