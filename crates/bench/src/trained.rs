//! How long calls of a manager take for a model in a `VarStore` that an Adam of this crate trains: those that save in
//! the background, of the model as a whole or with everything but the decoder frozen, and those that do not save.

use super::{Outcome, state, timed};
use std::path::Path;
use std::time::Duration;
use tch::nn::{Init, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::optim::{Adam, Optimizer};
use tch_checkpoint::{Background, Checkpoint, CheckpointManager, Counter, Variables};

/// The components that the model is saved as.
const PARTS: [&str; 3] = ["embedding", "encoder", "decoder"];

/// Saves after every step.
const SAVES: u64 = 9;

struct Trained {
    vs: VarStore,
    optimizer: Optimizer,
    step: Counter,
}

impl Trained {
    /// All variables are trained, or those of the decoder only.
    fn new(size: &str, is_frozen: bool) -> Outcome<Trained> {
        tch::manual_seed(7);
        let vs = VarStore::new(Device::Cpu);
        for (name, shape, _) in state::specs(size)? {
            let mut path = vs.root();
            let mut parts: Vec<&str> = name.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            parts.into_iter().for_each(|part| path = path.sub(part));
            let _ = path.var(last, &shape, Init::Randn { mean: 0.0, stdev: 1.0 });
        }
        if is_frozen {
            let frozen = vs.variables().into_iter().filter(|(name, _)| !name.starts_with("decoder"));
            frozen.for_each(|(_, tensor)| drop(tensor.set_requires_grad(false)));
        }
        let optimizer = Adam::default().build(&vs, 1e-3)?;
        Ok(Trained { vs, optimizer, step: Counter::new(0) })
    }

    fn checkpoint(&self) -> Outcome<Checkpoint> {
        let mut checkpoint = Checkpoint::new();
        for part in PARTS {
            checkpoint.track_mut(part, Variables::of(&self.vs).under(part))?;
        }
        checkpoint.track_mut("optimizer", &self.optimizer)?;
        checkpoint.track_mut("step", &self.step)?;
        Ok(checkpoint)
    }

    /// Performs a step that changes every element of every trained variable.
    fn step(&mut self) -> Outcome<()> {
        self.optimizer.zero_grad();
        let trained: Vec<Tensor> = self.vs.trainable_variables();
        for tensor in trained.iter().filter(|tensor| tensor.requires_grad()) {
            tensor.sum(Kind::Float).backward();
        }
        self.optimizer.step();
        self.step.increment();
        Ok(())
    }
}

/// Returns the median time until the call returns.
pub fn stall(size: &str, is_frozen: bool, directory: &Path) -> Outcome<Duration> {
    let mut trained = Trained::new(size, is_frozen)?;
    let builder = CheckpointManager::builder(trained.checkpoint()?, directory).max_to_keep(1);
    let mut manager = builder.background(Background::new()).open()?;
    let mut times = Vec::new();
    // The first saves create what later saves reuse.
    for step in 1..=3 + SAVES {
        trained.step()?;
        let mut saved = Ok(tch_checkpoint::Location::default());
        times.push(timed(|| saved = manager.save_at(step)));
        saved?;
        manager.wait()?;
    }
    let times = &mut times[3..];
    times.sort();
    Ok(times[times.len() / 2])
}

/// The median time of a call that does not save, inside or outside of `CheckpointManager::guard`.
pub fn call(size: &str, is_guarded: bool, directory: &Path) -> Outcome<Duration> {
    let mut trained = Trained::new(size, false)?;
    let mut manager = CheckpointManager::builder(trained.checkpoint()?, directory).save_every(u64::MAX).open()?;
    let mut times = Vec::new();
    let mut train = |manager: &mut CheckpointManager| -> Outcome<()> {
        for step in 1..=3 + SAVES {
            trained.step()?;
            let mut saved = Ok(None);
            times.push(timed(|| saved = manager.save_if_due(step)));
            saved?;
        }
        Ok(())
    };
    if is_guarded {
        manager.guard(train)?;
    } else {
        train(&mut manager)?;
    }
    let times = &mut times[3..];
    times.sort();
    Ok(times[times.len() / 2])
}
