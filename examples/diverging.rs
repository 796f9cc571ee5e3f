//! A training run that diverges: although only the last 3 checkpoints are kept, healthy ones still exist, and the run
//! restarts from the newest of them.
//!
//! ```text
//! cargo run --release --example diverging -- checkpoints/diverging
//! ```

#[path = "common/arguments.rs"]
mod arguments;
#[path = "common/line.rs"]
mod line;

use line::Line;
use std::error::Error;
use std::path::Path;
use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointManager, Rng, StartOutcome, Variables};

const USAGE: &str = "\
Trains with a learning rate that grows until the weights are NaN, and goes on from the last healthy checkpoint with a lower one.

usage: diverging [DIR]

  DIR  where the checkpoints are  [checkpoints/diverging]";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/diverging", 0);
    let (_, diverged) = train(&dir, 2.0, 400)?;
    println!("the loss is {diverged} after the first run");
    for info in CheckpointDirectory::new(&dir).checkpoints()? {
        let what =
            if info.is_healthy() { "healthy".to_string() } else { format!("NaN in {}", info.non_finite.join(", ")) };
        println!("{}: {what}", info.name);
    }
    let (started, loss) = train(&dir, 0.05, 1000)?;
    let restored = started.restored.ok_or("there are healthy ones")?;
    println!("restarted from {}", restored.path().display());
    for passed in started.passed_over {
        println!("passed over {}: {}", passed.path.display(), passed.reason);
    }
    println!("the loss is {loss:.5} after the second run");
    if loss.is_finite() && diverged.is_nan() { Ok(()) } else { Err("this should have been otherwise".into()) }
}

/// Trains with a learning rate that grows by 10 % per step up to `most`.
fn train(dir: &Path, most: f64, steps: usize) -> Result<(StartOutcome, f64), Box<dyn Error>> {
    tch::manual_seed(1);
    let mut line = Line::new(0.01)?;
    let checkpoint = Checkpoint::new()
        .track("model", Variables::of(&line.vs))?
        .track("optimizer", &line.optimizer)?
        .track("rng", Rng::global())?;
    let mut manager = CheckpointManager::builder(checkpoint, dir).max_to_keep(3).save_every(5).open()?;
    let started = manager.restore_or_initialize()?;
    for step in 0..steps {
        line.optimizer.set_lr(most.min(0.01 * 1.1_f64.powi(step as i32)));
        line.train();
        manager.save_if_due(line.optimizer.steps())?;
    }
    let loss = line.validate();
    manager.close()?;
    Ok((started, loss))
}
