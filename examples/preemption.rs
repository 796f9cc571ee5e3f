//! A training run that is asked to end, by a signal or a time limit: it saves, ends, and resumes when it is started
//! again.
//!
//! ```text
//! cargo run --release --example preemption -- checkpoints/preemption 5 &
//! kill -TERM $!
//! ```

#[path = "common/arguments.rs"]
mod arguments;
#[path = "common/line.rs"]
mod line;

use line::Line;
use std::error::Error;
use std::time::Duration;
use tch_checkpoint::{Background, Checkpoint, CheckpointManager, Preemption, Rng, Signal, Variables};

const USAGE: &str = "\
Trains 2000 steps. SIGTERM, SIGUSR1 and the end of the time save and end it; started again, it goes on.

usage: preemption [DIR [SECONDS]]

  DIR      where the checkpoints are  [checkpoints/preemption]
  SECONDS  how long it may run, less what the last save takes  [3600]";

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, more) = arguments::directory(USAGE, "checkpoints/preemption", 1);
    let seconds: f64 = more.first().map_or(Ok(3600.0), |seconds| seconds.parse())?;
    tch::manual_seed(1);
    let mut line = Line::new(0.001)?;
    let checkpoint = Checkpoint::new()
        .track("model", Variables::of(&line.vs))?
        .track("optimizer", &line.optimizer)?
        .track("rng", Rng::global())?;
    let preemption = Preemption::new()
        .after(Duration::try_from_secs_f64(seconds)?)
        .on_signals([Signal::Term, Signal::Usr1])?
        // If saving the full state would take longer than the remaining time, only the model is saved.
        .grace(Duration::from_secs(30))
        .save_only(["model"]);
    let mut manager = CheckpointManager::builder(checkpoint, &dir)
        .save_every(500)
        .background(Background::new())
        .preemption(preemption)
        .open()?;
    manager.restore_or_initialize()?;
    println!("begins at step {}", line.optimizer.steps());
    while line.optimizer.steps() < 2000 && !manager.should_stop() {
        line.train();
        manager.save_if_due(line.optimizer.steps())?;
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("ends at step {}, loss {:.5}", line.optimizer.steps(), line.validate());
    manager.close()?;
    Ok(())
}
