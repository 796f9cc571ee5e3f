//! The overhead in training: a loop whose step takes about ten times as long as copying the state, without saves and
//! with background saves at every tenth and at every step.

use super::{Bench, Outcome, timed};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{CheckpointManager, Durability};

const STEPS: u64 = 20;
const ROUNDS: usize = 3;

/// Mean seconds of a step.
pub struct Paid {
    pub plain: f64,
    pub every_10: f64,
    pub every_1: f64,
}

pub fn training(bench: &Bench) -> Outcome<Paid> {
    let work = Work::new(10.0 * bench.state.copy()?);
    let mut manager = bench.manager(Durability::PowerLoss, true)?;
    let mut step = 0;
    // One round each that does not count: it allocates memory, and leaves old files to be overwritten.
    for _ in 0..3 {
        step += 1;
        work.run();
        bench.state.update();
        manager.save_at(step)?;
        manager.wait()?;
    }
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, interval) in times.iter_mut().zip([None, Some(10), Some(1)]) {
            times.push(block(bench, &work, &mut manager, &mut step, interval)?);
        }
    }
    let [plain, every_10, every_1] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2].as_secs_f64() / STEPS as f64
    });
    Ok(Paid { plain, every_10, every_1 })
}

/// Trains for some steps, and waits for what was saved.
fn block(
    bench: &Bench,
    work: &Work,
    manager: &mut CheckpointManager,
    step: &mut u64,
    interval: Option<u64>,
) -> Outcome<Duration> {
    let began = Instant::now();
    for i in 0..STEPS {
        work.run();
        bench.state.update();
        *step += 1;
        // Ends in the middle of an interval, because what follows a save is part of its cost.
        if interval.is_some_and(|interval| i % interval == interval / 2) {
            manager.save_at(*step)?;
        }
    }
    manager.wait()?;
    Ok(began.elapsed())
}

/// Simulates forward and backward passes: multiplies matrices for a given time, on all processors.
struct Work {
    a: Tensor,
    times: usize,
}

impl Work {
    fn new(seconds: f64) -> Work {
        let a = Tensor::randn([1024, 1024], (Kind::Float, Device::Cpu));
        let _ = a.matmul(&a);
        let once = (0..5).map(|_| timed(|| drop(a.matmul(&a)))).min().unwrap_or_default().as_secs_f64();
        Work { a, times: (seconds / once).ceil().max(1.0) as usize }
    }

    fn run(&self) {
        for _ in 0..self.times {
            let _ = self.a.matmul(&self.a);
        }
    }
}
