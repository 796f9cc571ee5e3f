//! Averages the last checkpoints. The average is often better than each of them.
//!
//! ```text
//! cargo run --release --example average -- checkpoints/average
//! ```

#[path = "common/arguments.rs"]
mod arguments;
#[path = "common/line.rs"]
mod line;

use line::Line;
use std::error::Error;
use tch_checkpoint::map::Average;
use tch_checkpoint::{
    Checkpoint, CheckpointManager, RestoreOptions, TensorSource, Variables, WeightsExport, checkpoints, interop,
};

const USAGE: &str = "\
Trains with much noise, averages the weights of the last 8 checkpoints, and exports the average.

usage: average [DIR]

  DIR  where the checkpoints are  [checkpoints/average]";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/average", 0);
    tch::manual_seed(1);
    let mut line = Line::new(0.1)?;
    let checkpoint = Checkpoint::new().track("model", Variables::of(&line.vs))?;
    let mut manager =
        CheckpointManager::builder(checkpoint, &dir).max_to_keep(8).save_every(10).fresh_start().open()?;
    let mut losses = Vec::new();
    for step in 1..=200 {
        line.train();
        if manager.save_if_due(step)?.is_some() {
            losses.push(line.validate());
        }
    }
    let last = &losses[losses.len() - 8..];
    println!("mean of the last 8 losses: {:.6}", last.iter().sum::<f64>() / 8.0);

    let sources = checkpoints(&dir)?.iter().map(|path| interop::open(path)).collect::<Result<Vec<_>, _>>()?;
    let sources: Vec<&dyn TensorSource> = sources.iter().map(|source| &**source).collect();
    let average = Average::uniform(sources)?;
    manager.checkpoint_mut().restore_source(&average, &RestoreOptions::new())?;
    println!("loss of their average: {:.6}", line.validate());
    let exported =
        manager.checkpoint().export_weights(dir.join("average.safetensors"), &WeightsExport::of(["model"]))?;
    println!("exported {}", exported[0].display());
    manager.close()?;
    Ok(())
}
