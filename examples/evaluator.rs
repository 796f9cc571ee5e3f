//! Two processes: one trains and saves; this program, which it starts, evaluates each new checkpoint. The metrics
//! arrive late, are written into the checkpoints, and decide which ones the training keeps.
//!
//! ```text
//! cargo run --release --example evaluator -- checkpoints/evaluator
//! ```

#[path = "common/arguments.rs"]
mod arguments;
#[path = "common/line.rs"]
mod line;

use line::Line;
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tch_checkpoint::retention::Best;
use tch_checkpoint::{
    Background, Checkpoint, CheckpointDirectory, CheckpointManager, CheckpointWatcher, Goal, RestoreOptions, Variables,
};

const USAGE: &str = "\
Trains in one process and evaluates the checkpoints in another one.

usage: evaluator [DIR [evaluate]]

  DIR       where the checkpoints are  [checkpoints/evaluator]
  evaluate  evaluates what another process trains in DIR, until nothing new comes";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, more) = arguments::directory(USAGE, "checkpoints/evaluator", 1);
    match more.first().map(String::as_str) {
        None => train(&dir),
        Some("evaluate") => evaluate(&dir),
        Some(other) => Err(format!("unexpected argument {other:?}\n\n{USAGE}").into()),
    }
}

fn train(dir: &Path) -> Result<(), Box<dyn Error>> {
    tch::manual_seed(1);
    let mut line = Line::new(0.02)?;
    let checkpoint = Checkpoint::new().track("model", Variables::of(&line.vs))?.track("optimizer", &line.optimizer)?;
    // Checkpoints must be kept until they are evaluated.
    let mut manager = CheckpointManager::builder(checkpoint, dir)
        .max_to_keep(4)
        .keep(Best::new("validation loss", Goal::Minimize, 1))
        .save_every(10)
        .background(Background::new())
        .open()?;
    manager.restore_or_initialize()?;
    let mut evaluator = Command::new(std::env::current_exe()?).arg(dir).arg("evaluate").spawn()?;
    for _ in 0..100 {
        line.train();
        manager.save_if_due(line.optimizer.steps())?;
        // Slows the training down, so that the evaluator can keep up.
        std::thread::sleep(Duration::from_millis(10));
    }
    manager.close()?;
    if !evaluator.wait()?.success() {
        return Err("the evaluator failed".into());
    }
    let best = CheckpointDirectory::new(dir).best("validation loss", Goal::Minimize)?.ok_or("none was evaluated")?;
    println!("best: {}, validation loss {:.5}", best.name, best.metrics["validation loss"]);
    Ok(())
}

fn evaluate(dir: &Path) -> Result<(), Box<dyn Error>> {
    let line = Line::new(0.0)?;
    let mut checkpoint = Checkpoint::new().track("model", Variables::of(&line.vs))?;
    let checkpoints = CheckpointDirectory::new(dir);
    for info in CheckpointWatcher::new(dir).each().timeout(Duration::from_secs(3)) {
        let info = info?;
        let name = &info.name;
        // The training may have removed the checkpoint by now: then continue with the next one.
        match checkpoint.read_with(dir.join(name), &RestoreOptions::new()) {
            Err(tch_checkpoint::Error::NotFound { .. }) => continue,
            result => drop(result?),
        }
        let loss = line.validate();
        match checkpoints.add_metrics(&info, [("validation loss", loss)]) {
            Err(tch_checkpoint::Error::NotFound { .. } | tch_checkpoint::Error::Removed { .. }) => continue,
            result => result?,
        }
        println!("evaluated {name}: {loss:.5}");
    }
    Ok(())
}
