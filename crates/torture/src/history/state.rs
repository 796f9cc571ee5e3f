//! The state that is saved in a history, and a foreign run.

use crate::memory::Memory;
use crate::system::System;
use chrono::DateTime;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::internal::checkpoint_on;
use tch_checkpoint::{Checkpoint, CheckpointManager, CheckpointReader, Counter, Dtype, Durability, SaveOptions};

/// The names of managers. Foreign checkpoints that are copied in have the first.
pub(super) const NAMES: [&str; 2] = ["ckpt", "best"];

/// Saves a run with more checkpoints than any history; the last ones are copied into histories. All but the newest two
/// are permanent.
pub(super) fn foreign_run(dir: &Path) -> tch_checkpoint::Result<()> {
    let _ = fs::remove_dir_all(dir);
    let state = State::new();
    let builder = CheckpointManager::builder(state.checkpoint()?, dir).save_options(State::options());
    let mut manager = builder.max_to_keep(2).keep_every(std::time::Duration::from_secs(1)).open()?;
    for step in 1000..1060 {
        state.system.shift(chrono::TimeDelta::seconds(1));
        state.set(1_000_000 + step, false);
        manager.save_at(step)?;
    }
    manager.close()
}

/// The state: a number, as a value and as a tensor, and slots that often stay the same from save to save.
pub(super) struct State {
    value: Counter,
    tensor: Memory,
    slots: Memory,
    pub system: System,
}

impl State {
    pub(super) fn new() -> State {
        State::on(System::standing_at(DateTime::UNIX_EPOCH + chrono::TimeDelta::days(20_000)))
    }

    /// Returns the state before a restore.
    pub(super) fn on(system: System) -> State {
        let slots = Memory::of(Dtype::F32, vec![0; 8]);
        State { value: Counter::new(0), tensor: Memory::plain(vec![0; 8]), slots, system }
    }

    pub(super) fn checkpoint(&self) -> tch_checkpoint::Result<Checkpoint> {
        let checkpoint = checkpoint_on(Arc::new(self.system.clone())).track("value", &self.value)?;
        checkpoint.track("tensor", self.tensor.clone())?.track("slots", self.slots.clone())
    }

    pub(super) fn options() -> SaveOptions {
        SaveOptions::new().durability(Durability::ProcessCrash).threads(1)
    }

    /// Sets the number. If it `diverges`, one of the slots is NaN.
    pub(super) fn set(&self, value: u64, diverges: bool) {
        self.value.set(value);
        self.tensor.set(value.to_le_bytes().to_vec());
        let second = if diverges { f32::NAN } else { 1.0 };
        self.slots.set([slot(value), second].into_iter().flat_map(f32::to_le_bytes).collect());
    }

    pub(super) fn get(&self) -> u64 {
        self.value.get()
    }

    pub(super) fn is(&self, value: u64) -> bool {
        let slots = self.slots.get().starts_with(&slot(value).to_le_bytes());
        self.value.get() == value && ***self.tensor.get() == value.to_le_bytes() && slots
    }
}

pub(super) fn slot(value: u64) -> f32 {
    (value / 3) as f32
}

pub(super) fn value_of(reader: &CheckpointReader) -> Option<u64> {
    reader.manifest().values.get("value")?.as_u64()
}
