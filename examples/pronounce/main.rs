//! Letters to phonemes: an encoder-decoder that learns from the CMU Pronouncing Dictionary how English words are
//! pronounced. Kill it at any time: it resumes from its last checkpoint, and its result is bit-identical to that of a
//! run without interruption.
//!
//! ```text
//! cargo run --release --example pronounce -- --dir checkpoints/pronounce
//! ```

mod args;
mod model;
mod report;
mod words;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tch::{Device, nn};
use tch_checkpoint::{
    Background, Batches, Checkpoint, CheckpointManager, Counter, EarlyStopping, Ema, Goal, Preemption, ReduceOnPlateau,
    Rng, Schedule, Signal, Variables, optim,
};

use args::Args;
use model::Pronouncer;
use report::{LossLog, Progress, phoneme_error_rate};
use words::Words;

fn main() -> ExitCode {
    args::run(train)
}

fn train(args: &Args) -> Result<(), Box<dyn Error>> {
    // How libtorch divides sums depends on the number of threads: with one, the bits do not depend on the number of
    // cores. A model this small gains little from more.
    tch::set_num_threads(1);
    tch::manual_seed(args.seed);
    let device = Device::cuda_if_available();
    let words = Words::load();

    let vs = nn::VarStore::new(device);
    let model = Pronouncer::new(&vs.root(), words.phoneme_count(), args.hidden);
    let mut optimizer = optim::Adam::default().build(&vs, 0.0)?;
    let mut ema = Ema::new(&vs, 0.999)?.warm_up();
    let mut batches = Batches::new(words.train.len(), args.batch)?.shuffle(args.seed as u64);
    // Independent of the total number of steps, so that a finished run can be extended.
    let schedule = Schedule::cosine(0.002, 1e-4, 20_000).warm_up(200, 0.0);
    let plateau = ReduceOnPlateau::new(1.0, Goal::Minimize).factor(0.5).patience(3).min_lr(0.05);
    let stopping = EarlyStopping::new(Goal::Minimize).patience(args.patience);
    let step = Counter::new(0);

    let checkpoint = Checkpoint::new()
        .track("embedding", Variables::of(&vs).under("embedding"))?
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?
        .track("optimizer", &optimizer)?
        .track("ema", &ema)?
        .track("batches", &batches)?
        .track("plateau", &plateau)?
        .track("stopping", &stopping)?
        .track("step", &step)?
        .track("rng", Rng::global())?;
    // After SIGTERM or the time limit, saves the completed step and stops.
    let mut preemption = Preemption::new().grace(Duration::from_secs(args.grace)).on_signals([Signal::Term])?;
    if let Some(limit) = args.time_limit {
        preemption = preemption.after(Duration::from_secs(limit));
    }
    let mut manager = CheckpointManager::builder(checkpoint, &args.dir)
        .max_to_keep(args.max_to_keep)
        .save_every(args.save_every)
        .preemption(preemption)
        .background(Background::new())
        .open()?;

    report::started(&manager.restore_or_initialize()?);
    let mut loss_log = args.loss_log.as_deref().map(LossLog::append_to).transpose()?;
    let mut progress = Progress::start(step.get(), args.steps, stopping.best().value());

    while step.get() < args.steps && !stopping.stop().is_stop() {
        optimizer.set_lr(schedule.at(step.get()) * plateau.lr());
        let positions = batches.next().ok_or("there are no words")?;
        let loss = model.loss(&words.batch(&positions, device));
        optimizer.backward_step_clip_norm(&loss, 1.0);
        ema.update()?;
        step.increment();

        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            return Err(format!("the loss of step {} is {loss}", step.get()).into());
        }
        if let Some(log) = &mut loss_log {
            log.write(step.get(), loss)?;
        }
        progress.step(step.get(), loss);

        if step.get().is_multiple_of(args.save_every) || step.get() == args.steps {
            let error_rate = ema.with_averaged(|| phoneme_error_rate(&model, &words))??;
            plateau.observe(error_rate);
            stopping.observe(step.get(), error_rate);
            let path = manager.save_with_metrics(step.get(), [("loss", loss), ("error_rate", error_rate)])?;
            progress.saved(&path, step.get(), error_rate);
        }
        manager.save_if_due(step.get())?;
        if manager.should_stop() {
            manager.close()?;
            println!("stopped at step {}, which is saved; start again to go on", step.get());
            return Ok(());
        }
    }
    manager.close()?;

    report::stopped(&stopping);
    Ok(ema.with_averaged(|| report::print_samples(&model, &words))??)
}
