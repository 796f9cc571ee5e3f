//! Keeps the newest checkpoints to resume from and the best one to use: two policies, and links to them.
//!
//! ```text
//! cargo run --release --example best_and_latest -- checkpoints/best_and_latest
//! ```

#[path = "common/arguments.rs"]
mod arguments;
#[path = "common/line.rs"]
mod line;

use line::Line;
use std::error::Error;
use tch_checkpoint::retention::Best;
use tch_checkpoint::{Checkpoint, CheckpointManager, EarlyStopping, Goal, Rng, Variables};

const USAGE: &str = "\
Trains until the loss gets no better, keeps the newest 2 checkpoints and the best one, and ends with the best.

usage: best_and_latest [DIR]

  DIR  where the checkpoints are  [checkpoints/best_and_latest]";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _) = arguments::directory(USAGE, "checkpoints/best_and_latest", 0);
    tch::manual_seed(1);
    // A learning rate so large that the loss oscillates.
    let mut line = Line::new(0.3)?;
    let stopping = EarlyStopping::new(Goal::Minimize).patience(10);
    let checkpoint = Checkpoint::new()
        .track("model", Variables::of(&line.vs))?
        .track("optimizer", &line.optimizer)?
        .track("stopping", &stopping)?
        .track("rng", Rng::global())?;
    let mut manager = CheckpointManager::builder(checkpoint, &dir)
        .max_to_keep(2)
        .keep(Best::new("loss", Goal::Minimize, 1))
        .link_latest()
        .link_best("loss", Goal::Minimize)
        .open()?;
    manager.restore_or_initialize()?;

    while !stopping.stop().is_stop() && line.optimizer.steps() < 500 {
        line.train();
        let (step, loss) = (line.optimizer.steps(), line.validate());
        stopping.observe(step, loss);
        manager.save_with_metrics(step, [("loss", loss)])?;
    }
    for explanation in manager.explain() {
        println!("{explanation}");
    }
    // Restore the best checkpoint.
    let last = line.validate();
    manager.restore_best("loss", Goal::Minimize)?;
    let best = line.validate();
    println!("loss {last:.5} at the end, {best:.5} at the best step, {}", line.optimizer.steps());
    manager.close()?;
    Ok(())
}
