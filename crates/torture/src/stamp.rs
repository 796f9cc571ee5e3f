//! Saves in the background while everything is overwritten right after the call: the state of the call must be saved.

use super::random::Random;
use super::words::{Optimizer, Words, others};
use std::path::Path;
use tch_checkpoint::Checkpoint;
use tch_checkpoint::CheckpointReader;
use tch_checkpoint::Counter;
use tch_checkpoint::Durability;
use tch_checkpoint::Result;
use tch_checkpoint::{Background, CheckpointManager, SaveOptions};

/// The result of [`stamp`].
#[derive(Debug, Clone, Default)]
pub struct StampReport {
    /// The number of saves.
    pub saves: u64,
    /// The number of checkpoints with a stamp of another call.
    pub mixed: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

/// Saves so often into `directory`, and stamps every element with the number of the next save right after each call, in
/// another thread every other time. A `careless` mutator does not go through the gate.
pub fn stamp(directory: &Path, saves: u64, seed: u64, careless: bool) -> Result<StampReport> {
    let mut random = Random::new(seed);
    let mut report = StampReport::default();
    let optimizer = Optimizer::new(&[1, 300, 7000, 20_000]);
    let buffers = [Words::new(5), Words::new(3000)];
    let count = Counter::new(0);
    // Durability is tested elsewhere.
    let options = SaveOptions::new().threads(1 + random.below(2)).durability(Durability::ProcessCrash);
    let mut checkpoint = Checkpoint::new();
    checkpoint.track_mut("model", optimizer.clone())?;
    checkpoint.track_mut("buffers", buffers.clone())?;
    checkpoint.track_mut("count", count.clone())?;
    let builder = CheckpointManager::builder(checkpoint, directory).max_to_keep(2).save_options(options);
    let mut manager = builder.background(Background::new()).open()?;
    let overwrite = |stamp: u64| {
        buffers.iter().for_each(|buffer| buffer.fill(stamp));
        count.set(stamp);
    };
    optimizer.step(1);
    overwrite(1);
    let mut unseen = None;
    for number in 1..=saves {
        let path = manager.save_at(number)?;
        overwrite(number + 1);
        let step = || if careless { optimizer.overwrite(number + 1) } else { optimizer.step(number + 1) };
        let waits = random.one_in(3);
        let waited = std::thread::scope(|scope| {
            if random.one_in(2) {
                // At the same time as this thread's work.
                scope.spawn(step);
            } else {
                step();
            }
            if waits { manager.wait() } else { Ok(()) }
        });
        waited?;
        // The save before this one has ended, and its checkpoint is kept.
        if let Some((path, stamp)) = unseen.replace((path, number)) {
            report.look(path, stamp)?;
        }
    }
    manager.close()?;
    match unseen {
        Some((path, stamp)) => report.look(path, stamp).map(|()| report),
        None => Ok(report),
    }
}

impl StampReport {
    fn look(&mut self, path: impl AsRef<Path>, stamp: u64) -> Result<()> {
        let reader = CheckpointReader::open(path.as_ref())?;
        let manifest = reader.manifest();
        let mut wrong = Vec::new();
        for key in manifest.tensors.keys() {
            if let Some(other) = others(&reader.tensor(key)?, stamp).first() {
                wrong.push(format!("save {stamp}: {key} has the stamp {other}"));
            }
        }
        if manifest.values.get("count").and_then(|count| count.as_u64()) != Some(stamp) {
            wrong.push(format!("save {stamp}: the counter is {:?}", manifest.values.get("count")));
        }
        self.saves += 1;
        self.mixed += u64::from(!wrong.is_empty());
        self.examples.extend(wrong.into_iter().take(10 - self.examples.len().min(10)));
        Ok(())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_in_the_background_is_of_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let report = stamp(&dir.path().join("right"), 300, 1, false).unwrap();
        assert_eq!((report.saves, report.mixed), (300, 0), "{}", report.examples.join("\n"));
        // A mixture would have been noticed.
        let careless = stamp(&dir.path().join("careless"), 100, 1, true).unwrap();
        assert!(careless.mixed > 0);
    }
}
